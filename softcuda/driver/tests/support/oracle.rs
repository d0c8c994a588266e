//! Batch normalization in f64, as the textbook has it.
use super::batchnorm::{Dims, EPS, MOMENTUM};

/// A channel's values.
pub struct Channel {
    pub mean: f64,
    /// Over n.
    pub var: f64,
    /// Over n - 1.
    pub unbiased: f64,
    pub invstd: f64,
}

/// The indices of a channel's elements.
pub fn elements(dims: Dims, channel: usize) -> impl Iterator<Item = usize> + Clone {
    let Dims { images, channels, plane } = dims;
    (0..images).flat_map(move |image| {
        let begin = (image * channels + channel) * plane;
        begin..begin + plane
    })
}

/// A sum that carries what each addition loses (Neumaier's), so that it can judge one in f64.
pub fn sum(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, lost) = values.fold((0.0_f64, 0.0), |(sum, lost), v| {
        let next = sum + v;
        let (large, small) = if sum.abs() >= v.abs() { (sum, v) } else { (v, sum) };
        (next, lost + (large - next + small))
    });
    sum + lost
}

/// The statistics of those values.
pub fn statistics(values: impl Iterator<Item = f64> + Clone) -> Channel {
    let n = values.clone().count() as f64;
    let mean = sum(values.clone()) / n;
    let squares = sum(values.map(|v| (v - mean) * (v - mean)));
    let var = squares / n;
    Channel { mean, var, unbiased: squares / (n - 1.0), invstd: 1.0 / (var + EPS).sqrt() }
}

/// A running statistic after a step.
pub fn running(old: f64, new: f64) -> f64 {
    old + MOMENTUM * (new - old)
}
