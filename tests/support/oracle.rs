//! What is right: the reference in f64 on the widened inputs, and how far a result may be from it.
use super::run::{self, Inputs, Mode, Outcome, Want, channel_of};
use super::tolerance::{Kind, agrees, tolerance};
use batchnorm::{Activation, DType, Element, Error, Reference, Result, Saved, Shape};
use std::collections::BTreeMap;

/// One tensor of the reference.
#[derive(Debug, Clone)]
pub struct Tensor {
    pub values: Vec<f64>,
    /// Per channel, for [`tolerance`].
    pub drift: Vec<f64>,
}

/// The reference's results by name; more of them than an engine was asked for do no harm.
pub type Expected = BTreeMap<&'static str, Tensor>;

/// The name that y before its ReLU has in [`Expected`].
const PRE_ACTIVATION: &str = "pre-activation";
/// There where every gradient passes the activation as it is, or is stopped.
const PASSES: &str = "passes";

/// A forward by the reference, with everything it can give.
pub fn forward<E: Element>(inputs: &Inputs<E>, mode: Mode) -> Expected {
    let mut wide = inputs.wide();
    let mode = if mode == Mode::InPlace { Mode::Eval } else { mode };
    let mut saved = Saved::new();
    let outcome = run::forward(&Reference, &wide, mode, Some(&mut saved)).unwrap();
    wide.epilogue.activation = Activation::Identity;
    let linear = run::forward(&Reference, &wide, mode, None).unwrap();
    let drift = drifts(&wide, &outcome["saved_mean"], &outcome["saved_invstd"]);
    let mut expected = Expected::new();
    for (name, values) in outcome {
        let drift = match (name, mode) {
            ("y", _) => drift.clone(),
            // Where large values cancel in a mean, a rounding of their size is left of it.
            ("running_mean" | "saved_mean", Mode::Train(_)) => deviations(&wide),
            _ => vec![0.0; drift.len()],
        };
        expected.insert(name, Tensor { values, drift });
    }
    // The others have values below zero.
    if matches!(inputs.epilogue.activation, Activation::Relu | Activation::Relu6) {
        expected.insert(PRE_ACTIVATION, Tensor { values: linear["y"].clone(), drift });
    }
    expected
}

/// The derivative of an activation at z for a tensor of `E`. Where rounding decides on which side of a
/// kink z lies, either answer is right: it is that of the engine's own `y`, where `y` shows it.
pub fn derivative<E: Element>(activation: Activation, z: f64, y: f64) -> f64 {
    match activation {
        Activation::Relu => f64::from(y.is_nan() || y > 0.0),
        Activation::LeakyRelu { negative_slope } if negative_slope > 0.0 => {
            if y > 0.0 {
                1.0
            } else {
                negative_slope
            }
        }
        Activation::Relu6 => f64::from(y.is_nan() || y > 0.0 && y < 6.0),
        activation => activation.derivative::<E>(z),
    }
}

/// A backward by the reference, through the derivatives of the activation at the engine's own `y`; [`judge`]
/// tests that.
pub fn backward<E: Element>(
    inputs: &Inputs<E>,
    mode: Mode,
    want: Want,
    y: &[f64],
    total_sums: Option<&[E::Acc]>,
) -> Expected {
    let mut wide = inputs.wide();
    wide.epilogue.activation = Activation::Identity;
    let mut saved = Saved::new();
    let linear = run::forward(&Reference, &wide, mode, Some(&mut saved)).unwrap();
    for (g, (&z, &y)) in wide.grad_y.iter_mut().zip(linear["y"].iter().zip(y)) {
        // What a ReLU stops it stops, an infinity too.
        let derivative = derivative::<E>(inputs.epilogue.activation, z, y);
        *g = if derivative == 0.0 { 0.0 } else { *g * derivative };
    }
    let everything = Want {
        grad_residual: wide.epilogue.residual,
        accumulate: want.accumulate,
        ..Want::all(wide.epilogue)
    };
    let total_sums = total_sums.map(run::widen);
    let total = total_sums.as_deref();
    let outcome = run::backward(&Reference, &wide, everything, &saved, total).unwrap();
    let drift = backward_drifts(&wide, &saved, total);
    let mut expected = Expected::new();
    let passes = [Activation::Identity, Activation::Relu, Activation::Relu6];
    if passes.contains(&inputs.epilogue.activation) {
        expected.insert(PASSES, Tensor { values: vec![], drift: vec![] });
    }
    for (name, values) in outcome {
        let drift = match name {
            "grad_x" => drift.iter().map(|d| d.grad_x).collect(),
            "grad_weight" | "sum_g_xhat" => drift.iter().map(|d| d.sum_g_xhat).collect(),
            _ => vec![0.0; drift.len()],
        };
        expected.insert(name, Tensor { values, drift });
    }
    expected
}

/// The standard deviation of every channel, of what counts for a mask and of what does not.
fn deviations(wide: &Inputs<f64>) -> Vec<f64> {
    let all = Inputs { mask: None, ..wide.wide() };
    let (record, c) = (run::stats(&Reference, &all).unwrap(), wide.shape.channels());
    record[2 * c..3 * c].iter().map(|var| var.sqrt()).collect()
}

/// `|mean| * invstd * |weight|` of every channel.
fn drifts(wide: &Inputs<f64>, mean: &[f64], invstd: &[f64]) -> Vec<f64> {
    let drift = |c: usize| (mean[c] * invstd[c] * weight(wide, c)).abs();
    (0..wide.shape.channels()).map(drift).collect()
}

#[derive(Debug, Clone, Copy, Default)]
struct BackwardDrift {
    grad_x: f64,
    sum_g_xhat: f64,
}

/// `grad_x` is a difference that may cancel, as it does with two values per channel: a few units of
/// its terms. So may `sum(g * xhat)`, where the terms are large: the tolerance covers 16 units by
/// itself.
fn backward_drifts(
    wide: &Inputs<f64>,
    saved: &Saved<batchnorm::Host, f64>,
    total: Option<&[f64]>,
) -> Vec<BackwardDrift> {
    let (mean, invstd) = (saved.mean().unwrap(), saved.invstd().unwrap());
    let channels = wide.shape.channels();
    let (mut g_max, mut xhat_max) = (vec![0f64; channels], vec![0f64; channels]);
    for (i, (x, g)) in wide.x.iter().zip(&wide.grad_y).enumerate() {
        let c = channel_of(&wide.shape, i);
        g_max[c] = g_max[c].max(g.abs());
        xhat_max[c] = xhat_max[c].max(((x - mean[c]) * invstd[c]).abs());
    }
    let frozen = saved.is_frozen().unwrap() && total.is_none();
    let one = |c: usize| BackwardDrift {
        grad_x: match frozen {
            true => 0.0,
            false => (weight(wide, c) * invstd[c]).abs() * 4.0 * g_max[c],
        },
        sum_g_xhat: (g_max[c] * xhat_max[c] - 16.0).max(0.0),
    };
    (0..channels).map(one).collect()
}

fn weight(wide: &Inputs<f64>, c: usize) -> f64 {
    if wide.epilogue.weight { wide.weight[c] } else { 1.0 }
}

/// A result, unless the engine says that it does not serve such a request; no other error is fine.
pub fn served<T>(result: Result<T>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(Error::Unsupported { engine, reason }) => {
            println!("not served by {engine}: {reason}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// Fails where a result of an engine is not what the reference has.
pub fn judge(what: &str, dtype: DType, shape: &Shape, got: &Outcome, expected: &Expected) {
    for (name, values) in got {
        let reference = &expected[name];
        assert_eq!(values.len(), reference.values.len(), "{what}: {name}");
        let bars = bars(name, dtype, shape, reference);
        for (i, (&value, &right)) in values.iter().zip(&reference.values).enumerate() {
            let bar = bars[channel(name, shape, i)];
            let fine = match *name {
                // Counted, never computed.
                "count" => value == right,
                // Passed through or stopped.
                "grad_residual" if expected.contains_key(PASSES) => {
                    value == right || value.is_nan() && right.is_nan()
                }
                _ => agrees(value, right, bar, dtype),
            };
            assert!(fine, "{what}: {name}[{i}] is {value:e}, expected {right:e} within {bar:e}");
            if *name == "y"
                && let Some(pre) = expected.get(PRE_ACTIVATION)
                && pre.values[i] < -bar
                && right == 0.0
            {
                // The tolerance alone would let a small positive value through the ReLU.
                assert!(
                    value == 0.0,
                    "{what}: y[{i}] is {value:e}, its ReLU stops {:e}",
                    pre.values[i]
                );
            }
        }
    }
}

/// One tolerance per channel: the largest value of another channel says nothing about this one.
fn bars(name: &str, dtype: DType, shape: &Shape, reference: &Tensor) -> Vec<f64> {
    let kind = match name {
        "y" | "grad_x" | "grad_residual" => Kind::Element,
        "grad_weight" | "grad_bias" | "sum_g" | "sum_g_xhat" => Kind::Sum(shape.per_channel()),
        _ => Kind::Statistic,
    };
    let mut max_abs = vec![0f64; shape.channels()];
    for (i, v) in reference.values.iter().enumerate().filter(|(_, v)| v.is_finite()) {
        let c = channel(name, shape, i);
        max_abs[c] = max_abs[c].max(v.abs());
    }
    let one = |(max_abs, &drift): (f64, &f64)| {
        // Statistics that are not finite have a drift of NaN: only NaN agrees with NaN then.
        tolerance(dtype, kind, max_abs, if drift.is_finite() { drift } else { 0.0 })
    };
    max_abs.into_iter().zip(&reference.drift).map(one).collect()
}

fn channel(name: &str, shape: &Shape, i: usize) -> usize {
    match name {
        "y" | "grad_x" | "grad_residual" => channel_of(shape, i),
        _ => i,
    }
}
