//! What the calls must give, written as the definition reads: one mean at a time.

use super::{Mode, PER_ACTIVATION};

/// The elements of each mean, by their places in NCHW order.
pub fn groups(mode: Mode, dims: &[i32]) -> Vec<Vec<usize>> {
    let [n, c] = [0, 1].map(|axis| dims[axis] as usize);
    let inner = dims[2..].iter().product::<i32>() as usize;
    if mode == PER_ACTIVATION {
        return (0..c * inner).map(|at| (0..n).map(|i| i * c * inner + at).collect()).collect();
    }
    let channel = |k: usize| {
        (0..n).flat_map(move |i| (0..inner).map(move |j| (i * c + k) * inner + j)).collect()
    };
    (0..c).map(channel).collect()
}

/// Mean, variance and how many.
pub fn statistics(x: &[f64], group: &[usize]) -> (f64, f64, f64) {
    let m = group.len() as f64;
    let mean = group.iter().map(|i| x[*i]).sum::<f64>() / m;
    let var = group.iter().map(|i| (x[*i] - mean) * (x[*i] - mean)).sum::<f64>() / m;
    (mean, var, m)
}

/// dx, dscale, dbias.
pub fn gradients(
    x: &[f64],
    dy: &[f64],
    groups: &[Vec<usize>],
    scale: &[f64],
    epsilon: f64,
) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let mut dx = vec![0.0; x.len()];
    let (mut dscale, mut dbias) = (Vec::new(), Vec::new());
    for (group, scale) in groups.iter().zip(scale) {
        let (mean, var, m) = statistics(x, group);
        let deviation = (var + epsilon).sqrt();
        let sum = group.iter().map(|i| dy[*i]).sum::<f64>();
        let product = group.iter().map(|i| dy[*i] * (x[*i] - mean) / deviation).sum::<f64>();
        for i in group {
            let xhat = (x[*i] - mean) / deviation;
            dx[*i] = scale / deviation * (dy[*i] - sum / m - xhat * product / m);
        }
        dscale.push(product);
        dbias.push(sum);
    }
    (dx, dscale, dbias)
}
