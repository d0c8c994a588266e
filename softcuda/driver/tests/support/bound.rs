//! How far the kernels may be from [`super::oracle`]: what rounding can cost, added up to first order, with no constant
//! that was fitted. `u` is the unit roundoff of sums, parameters and statistics.
use super::batchnorm::{self, Dims, MOMENTUM};
use super::element::Element;
use super::oracle::Channel;

/// Of sums over a channel.
#[derive(Clone, Copy, Debug)]
pub struct Statistics {
    pub mean: f64,
    pub var: f64,
    /// Relative.
    pub invstd: f64,
    u: f64,
}

impl Statistics {
    /// For the sums of `d = x - origin` and of `d * d`, each of them `depth` additions deep. As |shift| is at most the
    /// mean of |d|, and its square at most that of d * d, all terms of the variance are of that size.
    pub fn about<T: Element>(
        origin: f64,
        depth: usize,
        channel: &Channel,
        values: impl Iterator<Item = f64> + Clone,
    ) -> Self {
        let u = T::Acc::UNIT;
        let sums = (depth + 4) as f64 * u;
        let n = values.clone().count() as f64;
        let absolute = values.clone().map(|v| (v - origin).abs()).sum::<f64>() / n;
        let square = values.map(|v| (v - origin).powi(2)).sum::<f64>() / n;
        Self::new(u, sums * absolute + 2.0 * u * channel.mean.abs(), 4.0 * sums * square, channel)
    }

    /// For a mean and a variance that are so far off.
    pub fn new(u: f64, mean: f64, var: f64, channel: &Channel) -> Self {
        let relative = var * channel.invstd * channel.invstd;
        assert!(relative < 0.1, "first order does not do: the variance may be off by {relative}");
        Self { mean, var, invstd: 0.6 * relative + 4.0 * u, u }
    }

    /// For `(x - mean) * (weight * invstd) + bias`, rounded to T.
    pub fn normalized<T: Element>(&self, x: f64, weight: f64, bias: f64, c: &Channel) -> f64 {
        let scale = (weight * c.invstd).abs();
        let slope = (x - c.mean).abs() * scale;
        let rounded = (T::UNIT + self.u) * (slope + bias.abs()) + T::TINY;
        scale * self.mean + slope * (self.invstd + 3.0 * self.u) + rounded
    }

    /// For the running mean and the running variance.
    pub fn running(&self, dims: Dims, old: (f64, f64), channel: &Channel) -> (f64, f64) {
        let n = dims.per_channel() as f64;
        let rounded = |old: f64, new: f64| 4.0 * self.u * (old.abs() + new.abs());
        (
            MOMENTUM * self.mean + rounded(old.0, channel.mean),
            MOMENTUM * self.var * n / (n - 1.0) + rounded(old.1, channel.unbiased),
        )
    }
}

/// Of the gradients of a channel, where the mean and 1 / deviation are given.
#[derive(Clone, Copy, Debug)]
pub struct Gradients {
    pub bias: f64,
    pub weight: f64,
    n: f64,
    u: f64,
}

impl Gradients {
    /// `pairs`: the normalized x and the gradient of y.
    pub fn new<T: Element>(dims: Dims, pairs: impl Iterator<Item = (f64, f64)> + Clone) -> Self {
        let u = T::Acc::UNIT;
        let sums = (batchnorm::depth::<T>(dims) + 4) as f64 * u;
        let bias = sums * pairs.clone().map(|(_, g)| g.abs()).sum::<f64>();
        let weight = sums * pairs.map(|(x, g)| (x * g).abs()).sum::<f64>();
        Self { bias, weight, n: dims.per_channel() as f64, u }
    }

    /// For `scale * (g - mean_g - normalized * slope)`, rounded to T.
    pub fn element<T: Element>(&self, scale: f64, terms: [f64; 3], normalized: f64) -> f64 {
        let size = terms.iter().map(|t| t.abs()).sum::<f64>();
        let of_means = (self.bias + normalized.abs() * self.weight) / self.n;
        scale.abs() * (of_means + (6.0 * self.u + T::UNIT) * size) + T::TINY
    }
}
