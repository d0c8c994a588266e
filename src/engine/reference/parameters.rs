//! The definition of what changes a parameter: every formula as it stands in the documentation.
use crate::engine::penalty::Norms;
use crate::{Algorithm, Constrain, Constraint, Host, OptimizerStep, Real, Regularize, Regularizer};

pub(super) fn optimizer_step<P: Real>(args: OptimizerStep<'_, Host, P>) {
    let OptimizerStep {
        value, grad, algorithm, lr, steps, mut first, mut second, mut third, ..
    } = args;
    let (lr, decay) = (lr[0] * args.lr_factor, args.weight_decay);
    let t = steps[0] + 1.0;
    steps[0] = t;
    for i in 0..value.len() {
        let (w, g) = (value[i].to_f64(), grad[i].to_f64());
        let load = |buffer: &Option<&mut [P]>| buffer.as_ref().map_or(0.0, |b| b[i].to_f64());
        let store = |buffer: &mut Option<&mut [P]>, v: f64| {
            if let Some(buffer) = buffer {
                buffer[i] = P::from_f64(v);
            }
        };
        // The moments of Adam: the first, and the second or the greatest of all second ones.
        let mut moments = |g: f64, beta1: f64, beta2: f64, amsgrad: bool| {
            let m = beta1 * load(&first) + (1.0 - beta1) * g;
            let v = beta2 * load(&second) + (1.0 - beta2) * g * g;
            store(&mut first, m);
            store(&mut second, v);
            if !amsgrad {
                return (m, v);
            }
            let before = load(&third);
            let most = if v > before || v.is_nan() { v } else { before };
            store(&mut third, most);
            (m, most)
        };
        // Its step without the learning rate.
        let mut adam = |g: f64, beta1: f64, beta2: f64, eps: f64, amsgrad: bool| {
            let (m, v) = moments(g, beta1, beta2, amsgrad);
            let (m, v) = (m / (1.0 - beta1.powf(t)), v / (1.0 - beta2.powf(t)));
            m / (v.sqrt() + eps)
        };
        let decayed = if decay == 0.0 { g } else { g + decay * w };
        value[i] = P::from_f64(match algorithm {
            Algorithm::Sgd { momentum: 0.0, .. } | Algorithm::MatlabSgdm { momentum: 0.0 } => {
                w - lr * decayed
            }
            Algorithm::KerasSgd { momentum: 0.0, .. } => w * (1.0 - lr * decay) - lr * g,
            Algorithm::Sgd { momentum, dampening, nesterov } => {
                let b = match t {
                    1.0 => decayed,
                    _ => momentum * load(&first) + (1.0 - dampening) * decayed,
                };
                store(&mut first, b);
                w - lr * if nesterov { decayed + momentum * b } else { b }
            }
            Algorithm::Adam { beta1, beta2, eps, amsgrad } => {
                w - lr * adam(decayed, beta1, beta2, eps, amsgrad)
            }
            Algorithm::AdamW { beta1, beta2, eps, amsgrad } => {
                w * (1.0 - lr * decay) - lr * adam(g, beta1, beta2, eps, amsgrad)
            }
            Algorithm::KerasAdam { beta1, beta2, eps, amsgrad } => {
                let (m, v) = moments(g, beta1, beta2, amsgrad);
                let alpha = lr * (1.0 - beta2.powf(t)).sqrt() / (1.0 - beta1.powf(t));
                w * (1.0 - lr * decay) - alpha * m / (v.sqrt() + eps)
            }
            Algorithm::KerasSgd { momentum, nesterov } => {
                let b = momentum * load(&first) - lr * g;
                store(&mut first, b);
                w * (1.0 - lr * decay) + if nesterov { momentum * b - lr * g } else { b }
            }
            Algorithm::MatlabSgdm { momentum } => {
                let b = momentum * load(&first) - lr * decayed;
                store(&mut first, b);
                w + b
            }
        });
    }
}

pub(super) fn regularize<P: Real>(args: Regularize<'_, Host, P>) {
    let Regularizer { l1, l2 } = args.regularizer;
    let times = |factor: f64, v: f64| if factor == 0.0 { 0.0 } else { factor * v };
    let w = || args.value.iter().map(|w| w.to_f64());
    if let Some(grad) = args.grad {
        for (grad, w) in grad.iter_mut().zip(w()) {
            let sign = if w == 0.0 { 0.0 } else { w.signum() };
            let before = if args.accumulate_grad { grad.to_f64() } else { 0.0 };
            *grad = P::from_f64(before + (times(l1, sign) + times(2.0 * l2, w)));
        }
    }
    if let Some([loss]) = args.loss {
        let before = if args.accumulate_loss { *loss } else { 0.0 };
        let (absolute, squares) = (w().map(f64::abs).sum(), w().map(|w| w * w).sum());
        *loss = before + (times(l1, absolute) + times(l2, squares));
    }
}

pub(super) fn constrain<P: Real>(args: Constrain<'_, Host, P>) {
    let w = || args.value.iter().map(|w| w.to_f64());
    let becomes: Vec<f64> = match args.constraint.norms() {
        None => w().map(|w| if w < 0.0 { 0.0 } else { w }).collect(),
        Some(Norms { min, max, rate }) => {
            let norm = w().map(|w| w * w).sum::<f64>().sqrt();
            let wanted = rate * norm.clamp(min, max) + (1.0 - rate) * norm;
            w().map(|w| w * wanted / (norm + Constraint::NORM_EPS)).collect()
        }
    };
    for (value, becomes) in args.value.iter_mut().zip(becomes) {
        *value = P::from_f64(becomes);
    }
}
