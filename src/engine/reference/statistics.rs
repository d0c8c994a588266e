//! Mean and variance of a channel.
use super::{or_zero, wide};
use crate::{Element, Shape};

/// What a channel is normalized by. The mean is two numbers: that of a constant channel is exact then,
/// and a large one keeps its digits.
#[derive(Debug, Clone, Copy)]
pub struct Statistics64 {
    pub mean: f64,
    pub rest: f64,
    pub var: f64,
    pub invstd: f64,
}

impl Statistics64 {
    pub fn given(mean: f64, rest: f64, var: f64, eps: f64) -> Self {
        Self { mean, rest, var, invstd: 1.0 / (var + eps).sqrt() }
    }
    /// Those of the batch, biased; zeros for an empty one.
    pub fn of_batch<E: Element>(shape: &Shape, c: usize, x: &[E], eps: f64) -> Self {
        let xs = shape.channel(c).map(|i| wide(x[i]));
        let Moments { mean, rest, var, unit } = Moments::of(xs, shape.per_channel());
        let invstd = 1.0 / f64::hypot(var.sqrt() * unit, eps.sqrt());
        Self { mean, rest, var: var * unit * unit, invstd }
    }
    /// `(x - mean) * invstd`, where the distance need not be in the range of f64.
    pub fn xhat(&self, x: f64) -> f64 {
        // Of an invstd that is no normal number, the least power that is one.
        let power = match self.invstd > 0.0 && self.invstd < f64::MIN_POSITIVE {
            true => f64::MIN_POSITIVE,
            false => power_below(self.invstd).min(1.0),
        };
        (x * power - self.mean * power - self.rest * power) * (self.invstd / power)
    }
}

/// Mean, in two numbers, and biased variance of some values, the variance in squares of a power of two that
/// they are counted in.
pub struct Moments {
    pub mean: f64,
    pub rest: f64,
    pub var: f64,
    pub unit: f64,
}

impl Moments {
    /// Zeros where there are none.
    pub fn of(xs: impl Iterator<Item = f64> + Clone, count: usize) -> Self {
        let m = count.max(1) as f64;
        // In units of a power of two, so that neither sums nor squares leave f64.
        let unit =
            power_below(xs.clone().filter(|x| x.is_finite()).fold(0.0, |max, x| x.abs().max(max)));
        let xs = xs.map(|x| x * unit.recip());
        let first = xs.clone().next().filter(|x| x.is_finite()).unwrap_or(0.0);
        let mean = |from: f64| xs.clone().map(|x| x - first - from).sum::<f64>() / m;
        // The second sum is what rounding left of the first, where the first value is far from others.
        let (offset, rest) = (mean(0.0), mean(mean(0.0)));
        let offset = if rest.is_finite() { offset + rest } else { offset };
        let var = xs.map(|x| (x - first - offset).powi(2)).sum::<f64>() / m;
        let mean = first + offset;
        let rest = or_zero(first - mean + offset) * unit;
        Self { mean: mean * unit, rest, var, unit }
    }
}

/// The power of two that a positive number is 1 to 2 times; 1 for what is no normal number.
fn power_below(value: f64) -> f64 {
    const EXPONENT: u64 = 0x7ff << 52;
    if value.is_normal() { f64::from_bits(value.to_bits() & EXPONENT) } else { 1.0 }
}
