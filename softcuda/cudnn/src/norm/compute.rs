//! The arithmetic, in f64. Elements are in NCHW order.

use softlibrary::{Memory, Slot};

use super::arguments::Normalization;
use crate::tensor::Tensor;

/// A tensor of a job and where its elements are.
#[derive(Clone, Debug)]
pub struct Elements {
    pub slot: Slot,
    places: Vec<usize>,
}

impl Elements {
    pub fn new(slot: Slot, tensor: &Tensor) -> Self {
        Self { slot, places: tensor.places() }
    }

    pub fn load(&self, memory: &Memory<'_>) -> Vec<f64> {
        let stored = memory.load(self.slot);
        self.places.iter().map(|place| stored[*place]).collect()
    }

    pub fn store(&self, memory: &mut Memory<'_>, values: &[f64]) {
        let mut stored = vec![0.0; values.len()];
        self.places.iter().zip(values).for_each(|(place, value)| stored[*place] = *value);
        memory.store(self.slot, &stored);
    }
}

/// `alpha * new + beta * old`; what is not kept is not looked at.
pub fn blend([alpha, beta]: [f64; 2], new: &[f64], old: &[f64]) -> Vec<f64> {
    let kept = |old: &f64| if beta == 0.0 { 0.0 } else { beta * old };
    new.iter().zip(old).map(|(new, old)| alpha * new + kept(old)).collect()
}

/// Per mean: the mean, the variance (of the values as they are, not as a sample), and how many values.
#[derive(Clone, Debug)]
pub struct Statistics {
    pub mean: Vec<f64>,
    pub var: Vec<f64>,
    pub count: f64,
}

impl Statistics {
    pub fn of(norm: &Normalization, x: &[f64]) -> Self {
        let groups = norm.groups();
        let count = (x.len() / groups) as f64;
        let average = |value: &dyn Fn(usize) -> f64| {
            let mut sums = vec![0.0; groups];
            (0..x.len()).for_each(|i| sums[norm.group(i)] += value(i));
            sums.into_iter().map(|sum| sum / count).collect::<Vec<f64>>()
        };
        // From the first value on, so that values that are all the same have exactly that mean.
        let mut first = vec![None; groups];
        for (i, x) in x.iter().enumerate() {
            first[norm.group(i)].get_or_insert(if x.is_finite() { *x } else { 0.0 });
        }
        let first: Vec<f64> = first.into_iter().map(Option::unwrap_or_default).collect();
        let mean = average(&|i| x[i] - first[norm.group(i)]);
        let mean: Vec<f64> = mean.iter().zip(&first).map(|(mean, first)| mean + first).collect();
        let var = average(&|i| (x[i] - mean[norm.group(i)]).powi(2));
        Self { mean, var, count }
    }

    /// The variance of the values as a sample.
    pub fn unbiased(&self) -> Vec<f64> {
        self.var.iter().map(|var| var * (self.count / (self.count - 1.0))).collect()
    }
}

/// `1 / sqrt(var + epsilon)`
pub fn inverse(var: &[f64], epsilon: f64) -> Vec<f64> {
    var.iter().map(|var| 1.0 / (var + epsilon).sqrt()).collect()
}

/// `scale * (x - mean) * invstd + bias`
pub fn normalize(norm: &Normalization, x: &[f64], parameters: [&[f64]; 4]) -> Vec<f64> {
    let [mean, invstd, scale, bias] = parameters;
    let one = |(i, x): (usize, &f64)| {
        let group = norm.group(i);
        scale[group] * (x - mean[group]) * invstd[group] + bias[group]
    };
    x.iter().enumerate().map(one).collect()
}

/// What a ReLU lets through, and so its gradient: what is not 0 or less.
pub fn passes(norm: &Normalization, value: f64) -> bool {
    if value.is_nan() { !norm.drops_nan } else { value > 0.0 }
}

/// Gradients of x, scale and bias.
pub fn gradients(
    norm: &Normalization,
    x: &[f64],
    dy: &[f64],
    parameters: [&[f64]; 3],
) -> [Vec<f64>; 3] {
    let [mean, invstd, scale] = parameters;
    let groups = norm.groups();
    let count = (x.len() / groups) as f64;
    let xhat = |i: usize| (x[i] - mean[norm.group(i)]) * invstd[norm.group(i)];
    let (mut dscale, mut dbias) = (vec![0.0; groups], vec![0.0; groups]);
    for (i, dy) in dy.iter().enumerate() {
        dbias[norm.group(i)] += dy;
        dscale[norm.group(i)] += dy * xhat(i);
    }
    let dx = (0..x.len()).map(|i| {
        let group = norm.group(i);
        let centred = dy[i] - dbias[group] / count - xhat(i) * dscale[group] / count;
        scale[group] * invstd[group] * centred
    });
    [dx.collect(), dscale, dbias]
}
