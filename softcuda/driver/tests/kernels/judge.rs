//! What kernels computed against f64, channel by channel.
use crate::support::batchnorm::{self, Backward, Dims, EPS, Forward, Inputs};
use crate::support::bound::{Gradients, Statistics};
use crate::support::cooperative::{Normalized, Plan};
use crate::support::element::Element;
use crate::support::oracle::{elements, running, statistics, sum};
use crate::support::split;

/// `got` must be `expected`, within `bound`.
#[track_caller]
fn near(what: &str, got: f64, expected: f64, bound: f64) {
    let error = (got - expected).abs();
    assert!(error <= bound, "{what}: expected {expected:e}, got {got:e}: {error:e} > {bound:e}");
}

pub fn forward<T: Element>(inputs: &Inputs<T>, got: &Forward<T>) {
    let dims = inputs.dims;
    for c in 0..dims.channels {
        let x = |i: usize| inputs.x[i].widen();
        let values = elements(dims, c).map(x);
        let channel = statistics(values.clone());
        let origin = x(c * dims.plane);
        let bound = Statistics::about::<T>(origin, batchnorm::depth::<T>(dims), &channel, values);
        let what = |name: &str| format!("forward_{}, {dims:?}, channel {c}, {name}", T::NAME);
        near(&what("mean"), got.mean[c].widen(), channel.mean, bound.mean);
        let invstd = got.invstd[c].widen();
        near(&what("invstd"), invstd, channel.invstd, bound.invstd * channel.invstd);

        let old = (inputs.running_mean[c].widen(), inputs.running_var[c].widen());
        let (mean, var) = bound.running(dims, old, &channel);
        let expected = running(old.0, channel.mean);
        near(&what("running_mean"), got.running_mean[c].widen(), expected, mean);
        let expected = running(old.1, channel.unbiased);
        near(&what("running_var"), got.running_var[c].widen(), expected, var);

        let (weight, bias) = (inputs.weight[c].widen(), inputs.bias[c].widen());
        for i in elements(dims, c) {
            let expected = (x(i) - channel.mean) * weight * channel.invstd + bias;
            let bound = bound.normalized::<T>(x(i), weight, bias, &channel);
            near(&what(&format!("y[{i}]")), got.y[i].widen(), expected, bound);
        }
    }
}

/// `mean` and `invstd` are what the kernel was given.
pub fn backward<T: Element>(
    inputs: &Inputs<T>,
    mean: &[T::Acc],
    invstd: &[T::Acc],
    got: &Backward<T>,
) {
    let dims = inputs.dims;
    for c in 0..dims.channels {
        let (mean, invstd) = (mean[c].widen(), invstd[c].widen());
        let pair = |i: usize| ((inputs.x[i].widen() - mean) * invstd, inputs.grad_y[i].widen());
        let pairs = elements(dims, c).map(pair);
        let bound = Gradients::new::<T>(dims, pairs.clone());
        let what = |name: &str| format!("backward_{}, {dims:?}, channel {c}, {name}", T::NAME);
        let grad_bias = sum(pairs.clone().map(|(_, g)| g));
        let grad_weight = sum(pairs.map(|(x, g)| x * g));
        near(&what("grad_bias"), got.grad_bias[c].widen(), grad_bias, bound.bias);
        near(&what("grad_weight"), got.grad_weight[c].widen(), grad_weight, bound.weight);

        let (scale, n) = (inputs.weight[c].widen() * invstd, dims.per_channel() as f64);
        for i in elements(dims, c) {
            let (x, g) = pair(i);
            let terms = [g, -grad_bias / n, -x * grad_weight / n];
            let expected = scale * terms.iter().sum::<f64>();
            let bound = bound.element::<T>(scale, terms, x);
            near(&what(&format!("grad_x[{i}]")), got.grad_x[i].widen(), expected, bound);
        }
    }
}

/// Parts of a channel put together: sums within a part about a value of it, then as many merges as a lane does and the
/// lanes do. A merge rounds the mean, and with it the distance to the next part's mean.
pub fn split_statistics<T: Element>(x: &[T], dims: Dims, splits: usize, got: &split::Statistics) {
    let u = f32::UNIT;
    let merges = (splits.div_ceil(32) + 5) as f64;
    // No more values than a thread of `forward_*` adds up, and then the block.
    let sums = (batchnorm::depth::<T>(dims) + 4) as f64 * u;
    for c in 0..dims.channels {
        let values = elements(dims, c).map(|i| x[i].widen());
        let channel = statistics(values.clone());
        let far = values.clone().fold(0.0, |far: f64, v| far.max((v - channel.mean).abs()));
        let largest = values.fold(0.0, |far: f64, v| far.max(v.abs()));
        // No value is further than 2 * far from the value that its part starts with.
        let of_mean = sums * 2.0 * far + 4.0 * (merges + 1.0) * u * largest;
        let of_var =
            4.0 * sums * 4.0 * far * far + 8.0 * merges * u * far * far + 4.0 * far * of_mean;
        let what = |name: &str| format!("split_stats_{}, {dims:?}, channel {c}, {name}", T::NAME);
        near(&what("mean"), got.mean[c].into(), channel.mean, of_mean);
        near(&what("var"), got.var[c].into(), channel.var, of_var);
    }
}

/// Channels last: the sums of threads, of rows of threads, of blocks.
pub fn normalize_grid<T: Element<Acc = f32>>(inputs: &Inputs<T>, plan: Plan, got: &Normalized<T>) {
    let Plan { rows, channels, blocks, .. } = plan;
    let u = f32::UNIT;
    let thread_rows = Plan::thread_rows::<T>(channels);
    let depth = rows.div_ceil(blocks).div_ceil(thread_rows) + thread_rows + blocks;
    let sums = (depth + 4) as f64 * u;
    for c in 0..channels {
        let values = (0..rows).map(|row| inputs.x[row * channels + c].widen());
        let channel = statistics(values.clone());
        let absolute = values.map(f64::abs).sum::<f64>() / rows as f64;
        let of_mean = sums * absolute + 2.0 * u * channel.mean.abs();
        // The sum of squares about a mean that is off by d is greater by n * d * d.
        let of_var = (sums + 2.0 * u) * channel.var + of_mean * of_mean;
        let bound = Statistics::new(u, of_mean, of_var, &channel);
        let what =
            |name: &str| format!("normalize_grid_{}, {plan:?}, channel {c}, {name}", T::NAME);
        near(&what("mean"), got.mean[c].into(), channel.mean, of_mean);
        near(&what("var"), got.var[c].into(), channel.var, of_var);
        let (weight, bias) = (inputs.weight[c].widen(), inputs.bias[c].widen());
        for row in 0..rows {
            let i = row * channels + c;
            let x = inputs.x[i].widen();
            let expected = (x - channel.mean) * weight / (channel.var + EPS).sqrt() + bias;
            let bound = bound.normalized::<T>(x, weight, bias, &channel);
            near(&what(&format!("y[{row}]")), got.y[i].widen(), expected, bound);
        }
    }
}
