//! What changes a parameter. Vectors of one value per channel are short beside a tensor, so that these
//! are plain loops, which the compiler makes vector code of: in f64, by the operations that
//! `kernels/parameters.cu` has, in the same order.
use crate::engine::optimizer::{Family, Rule};
use crate::engine::penalty::Norms;
use crate::{Constrain, Constraint, Host, OptimizerStep, Real, Regularize, Regularizer};

/// Sums that are made side by side.
const LANES: usize = 16;

pub(super) fn optimizer_step<P: Real>(args: OptimizerStep<'_, Host, P>) {
    let OptimizerStep { value, grad, algorithm, lr, steps, first, second, third, .. } = args;
    let (lr, decay, taken) = (lr[0] * args.lr_factor, args.weight_decay, steps[0] + 1.0);
    let Rule { family, beta1, beta2, nesterov, decay_apart, .. } = algorithm.rule();
    let kept = 1.0 - lr * decay;
    // Parameter and gradient with the decay; one of 0 adds none of an infinite value.
    let load = |value: &P, grad: &P| {
        let (w, g) = (value.to_f64(), grad.to_f64());
        match (decay == 0.0, decay_apart) {
            (true, _) => (w, g),
            (false, true) => (w * kept, g),
            (false, false) => (w, g + decay * w),
        }
    };
    let values = value.iter_mut().zip(grad);
    match (family, first) {
        (Family::Momentum, Some(buffer)) if beta1 != 0.0 => {
            for ((value, grad), buffer) in values.zip(buffer) {
                let (w, g) = load(value, grad);
                let b = match taken {
                    1.0 => g,
                    _ => beta1 * buffer.to_f64() + (1.0 - beta2) * g,
                };
                *buffer = P::from_f64(b);
                *value = P::from_f64(w - lr * if nesterov { g + beta1 * b } else { b });
            }
        }
        (Family::Velocity, Some(buffer)) if beta1 != 0.0 => {
            for ((value, grad), buffer) in values.zip(buffer) {
                let (w, g) = load(value, grad);
                let b = beta1 * buffer.to_f64() - lr * g;
                *buffer = P::from_f64(b);
                *value = P::from_f64(w + if nesterov { beta1 * b - lr * g } else { b });
            }
        }
        (Family::Momentum | Family::Velocity, _) => {
            for (value, grad) in values {
                let (w, g) = load(value, grad);
                *value = P::from_f64(w - lr * g);
            }
        }
        (Family::Adam, first) => {
            let (Some(first), Some(second)) = (first, second) else { return };
            let adam = Adam::new(algorithm.rule(), lr, taken);
            let moments = first.iter_mut().zip(second);
            let all = values.zip(moments);
            match third.filter(|_| adam.rule.amsgrad) {
                None => {
                    for ((value, grad), (first, second)) in all {
                        let (w, g) = load(value, grad);
                        let (m, v) = adam.moments(first, second, g);
                        *value = P::from_f64(w - adam.step(m, v));
                    }
                }
                Some(third) => {
                    for (((value, grad), (first, second)), third) in all.zip(third) {
                        let (w, g) = load(value, grad);
                        let (m, v) = adam.moments(first, second, g);
                        let before = third.to_f64();
                        let most = if v > before || v.is_nan() { v } else { before };
                        *third = P::from_f64(most);
                        *value = P::from_f64(w - adam.step(m, most));
                    }
                }
            }
        }
    }
    steps[0] = taken;
}

/// What is the same for every value in a step of Adam.
struct Adam {
    rule: Rule,
    /// The learning rate with the corrections of both moments, which stay as they are.
    rate: f64,
    /// Added to the root of the uncorrected second moment.
    eps: f64,
}

impl Adam {
    fn new(rule: Rule, lr: f64, taken: f64) -> Self {
        let root = (1.0 - power(rule.beta2, taken)).sqrt();
        let rate = lr * root / (1.0 - power(rule.beta1, taken));
        Self { rule, rate, eps: if rule.eps_first { rule.eps } else { rule.eps * root } }
    }
    #[inline]
    fn moments<P: Real>(&self, first: &mut P, second: &mut P, g: f64) -> (f64, f64) {
        let Rule { beta1, beta2, .. } = self.rule;
        let m = beta1 * first.to_f64() + (1.0 - beta1) * g;
        let v = beta2 * second.to_f64() + (1.0 - beta2) * (g * g);
        (*first, *second) = (P::from_f64(m), P::from_f64(v));
        (m, v)
    }
    #[inline]
    fn step(&self, m: f64, v: f64) -> f64 {
        self.rate * (m / (v.sqrt() + self.eps))
    }
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
