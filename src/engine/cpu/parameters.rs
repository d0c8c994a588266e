//! What changes a parameter. Vectors of one value per channel are short beside a tensor, so that these
//! are plain loops, which the compiler makes vector code of: in f64, by the operations that
//! `kernels/parameters.cu` has, in the same order.
use crate::engine::optimizer::Norms;
use crate::{Algorithm, Constrain, Constraint, Host, OptimizerStep, Real, Regularize, Regularizer};

/// Sums that are made side by side.
const LANES: usize = 16;

pub(super) fn optimizer_step<P: Real>(args: OptimizerStep<'_, Host, P>) {
    let OptimizerStep { value, grad, algorithm, lr, steps, first, second, .. } = args;
    let (lr, decay, taken) = (lr[0] * args.lr_factor, args.weight_decay, steps[0] + 1.0);
    // The gradient with its decay; a decay of 0 adds none of an infinite value.
    let decayed = |w: f64, g: f64| if decay == 0.0 { g } else { g + decay * w };
    match algorithm {
        Algorithm::Sgd { momentum, dampening, nesterov } => match first {
            Some(buffer) if momentum != 0.0 => {
                for ((value, grad), buffer) in value.iter_mut().zip(grad).zip(buffer) {
                    let w = value.to_f64();
                    let g = decayed(w, grad.to_f64());
                    let b = match taken {
                        1.0 => g,
                        _ => momentum * buffer.to_f64() + (1.0 - dampening) * g,
                    };
                    *buffer = P::from_f64(b);
                    *value = P::from_f64(w - lr * if nesterov { g + momentum * b } else { b });
                }
            }
            _ => {
                for (value, grad) in value.iter_mut().zip(grad) {
                    let w = value.to_f64();
                    *value = P::from_f64(w - lr * decayed(w, grad.to_f64()));
                }
            }
        },
        Algorithm::Adam { beta1, beta2, eps } | Algorithm::AdamW { beta1, beta2, eps } => {
            let (Some(first), Some(second)) = (first, second) else { return };
            let is_apart = matches!(algorithm, Algorithm::AdamW { .. });
            let kept = 1.0 - lr * decay;
            let rate = lr / (1.0 - power(beta1, taken));
            let root = (1.0 - power(beta2, taken)).sqrt();
            let moments = first.iter_mut().zip(second);
            for ((value, grad), (first, second)) in value.iter_mut().zip(grad).zip(moments) {
                let (w, g) = (value.to_f64(), grad.to_f64());
                let (w, g) = if is_apart { (w * kept, g) } else { (w, decayed(w, g)) };
                let m = beta1 * first.to_f64() + (1.0 - beta1) * g;
                let v = beta2 * second.to_f64() + (1.0 - beta2) * (g * g);
                (*first, *second) = (P::from_f64(m), P::from_f64(v));
                *value = P::from_f64(w - rate * (m / (v.sqrt() / root + eps)));
            }
        }
    }
    steps[0] = taken;
}

/// `base` to the power of a whole number, by squaring.
fn power(mut base: f64, exponent: f64) -> f64 {
    let (mut left, mut result) = (exponent as u64, 1.0);
    while left > 0 {
        if left & 1 == 1 {
            result *= base;
        }
        base *= base;
        left >>= 1;
    }
    result
}

pub(super) fn regularize<P: Real>(args: Regularize<'_, Host, P>) {
    let Regularizer { l1, l2 } = args.regularizer;
    let twice = 2.0 * l2;
    if let Some(grad) = args.grad {
        for (grad, w) in grad.iter_mut().zip(args.value) {
            let w = w.to_f64();
            let sign = if w == 0.0 { 0.0 } else { w.signum() };
            let own = l1 * sign + if l2 == 0.0 { 0.0 } else { twice * w };
            *grad = P::from_f64(if args.accumulate_grad { grad.to_f64() + own } else { own });
        }
    }
    if let Some([loss]) = args.loss {
        let times = |factor: f64, sum: f64| if factor == 0.0 { 0.0 } else { factor * sum };
        let own = times(l1, sum(args.value, f64::abs)) + times(l2, sum(args.value, |w| w * w));
        *loss = if args.accumulate_loss { *loss + own } else { own };
    }
}

pub(super) fn constrain<P: Real>(args: Constrain<'_, Host, P>) {
    let Some(Norms { min, max, rate }) = args.constraint.norms() else {
        for value in args.value {
            *value = if *value < P::default() { P::default() } else { *value };
        }
        return;
    };
    let norm = sum(args.value, |w| w * w).sqrt();
    let factor =
        (rate * norm.clamp(min, max) + (1.0 - rate) * norm) / (Constraint::NORM_EPS + norm);
    for value in args.value {
        *value = P::from_f64(value.to_f64() * factor);
    }
}

/// The sum of `term` over all values, in lanes that are the same on every machine.
fn sum<P: Real>(values: &[P], term: impl Fn(f64) -> f64) -> f64 {
    let mut lanes = [0.0; LANES];
    for values in values.chunks(LANES) {
        for (lane, value) in lanes.iter_mut().zip(values) {
            *lane += term(value.to_f64());
        }
    }
    lanes.iter().sum()
}
