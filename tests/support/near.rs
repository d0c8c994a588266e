//! Near the reference by the size of a channel's own values: the usual bars are absolute below 1.
use super::oracle::{self, served};
use super::run::{self, Inputs, Mode, Outcome, SavedOn, Want, channel_of};
use batchnorm::{DType, Element, Engine, Real};

/// Forward and backward in one outcome; the backward in place where that is asked for.
pub fn step<E: Element, G: Engine>(
    engine: &G,
    inputs: &Inputs<E>,
    mode: Mode,
    in_place: bool,
) -> Option<Outcome> {
    let mut saved = SavedOn::<G, E>::new();
    let want = Want { in_place, ..Want::all(inputs.epilogue) };
    let mut all = served(run::forward(engine, inputs, mode, Some(&mut saved)))?;
    all.extend(served(run::backward(engine, inputs, want, &saved, None))?);
    Some(all)
}

/// As a type has it.
fn rounded<E: Element>(v: f64) -> f64 {
    run::narrow::<E>(v).widen().to_f64()
}

/// Whether two subnormal numbers of a type are neighbours, or one the other's; of f32 as of bf16.
fn is_next(dtype: DType, a: f64, b: f64) -> bool {
    let (normal, least) = match dtype {
        DType::F64 => (f64::MIN_POSITIVE, f64::from_bits(1)),
        DType::F16 => (2f64.powi(-14), 2f64.powi(-24)),
        DType::F32 | DType::Bf16 => (2f64.powi(-126), 2f64.powi(-133)),
        other => panic!("{other} has no range here"),
    };
    a.abs().max(b.abs()) < normal && (a - b).abs() <= least
}

/// As the reference has it, by the size of a channel's own values, which may be tiny; NaN where it has NaN.
pub fn near_the_definition<E: Element, G: Engine>(engine: &G, inputs: &Inputs<E>, mode: Mode) {
    let (shape, m) = (&inputs.shape, inputs.shape.per_channel() as f64);
    let (unit, least) = match E::Acc::DTYPE {
        DType::F64 => (f64::EPSILON, f64::from_bits(1)),
        _ => (f64::from(f32::EPSILON), f64::from(f32::from_bits(1))),
    };
    let limit = match E::DTYPE {
        DType::F64 => 1e-11,
        DType::F32 => 1e-5,
        _ => 1e-2,
    };
    let largest = |values: &[E]| {
        let values = values.iter().map(|v| v.widen().to_f64().abs());
        values.filter(|v| v.is_finite()).fold(0.0, f64::max)
    };
    let grad_y = largest(&inputs.grad_y);
    for in_place in [false, true] {
        let Some(got) = step(engine, inputs, mode, in_place) else { return };
        let mut right = oracle::forward(inputs, mode);
        let want = Want::all(inputs.epilogue);
        right.extend(oracle::backward(inputs, mode, want, &got["y"], None));
        let names = ["y", "grad_x", "grad_residual", "grad_weight", "grad_bias"];
        for name in names.into_iter().chain(["running_mean", "running_var"]) {
            let (Some(got), Some(values)) = (got.get(name), right.get(name)) else { continue };
            let by_element = got.len() == shape.len() && !name.starts_with("running");
            let channel = |i: usize| if by_element { channel_of(shape, i) } else { i };
            let mut most = vec![0f64; shape.channels()];
            for (i, v) in values.values.iter().enumerate().filter(|(_, v)| v.is_finite()) {
                most[channel(i)] = most[channel(i)].max(v.abs());
            }
            for (i, (got, right_value)) in got.iter().zip(&values.values).enumerate() {
                let c = channel(i);
                let invstd = right["saved_invstd"].values[c];
                let weight = if inputs.epilogue.weight { inputs.weight[c].to_f64() } else { 1.0 };
                // What cancels in a sum or in a gradient leaves a rounding of its parts.
                let parts = match name {
                    "grad_weight" | "grad_bias" => m.sqrt() * grad_y,
                    "grad_x" => grad_y * weight.abs() * invstd,
                    "running_mean" => 1.0 / invstd,
                    _ => 0.0,
                };
                // One rounding of the mean, in units of the deviation; of f64 also the reference's own.
                let mean = right["saved_mean"].values[c].abs();
                let drift = (unit * mean).max(2.0 * least) * invstd;
                let drift = match name {
                    "y" => drift * weight.abs(),
                    "grad_x" => drift * grad_y * weight.abs() * invstd,
                    "grad_weight" => drift * m.sqrt() * grad_y,
                    _ => 0.0,
                };
                let parts = if parts.is_finite() { parts } else { 0.0 };
                let drift = if drift.is_finite() { drift } else { 0.0 };
                let bar = (limit * most[c].max(parts) + drift).min(f64::MAX);
                // Or as the dtype has it, where that ends above or below.
                let (dtype, exact) = match by_element {
                    true => (E::DTYPE, rounded::<E>(*right_value)),
                    false => (E::Acc::DTYPE, rounded::<E::Acc>(*right_value)),
                };
                let fine = (got - right_value).abs() <= bar
                    || *got == exact
                    || got.is_nan() && exact.is_nan()
                    || is_next(dtype, *got, exact);
                assert!(
                    fine,
                    "{}, {}, {shape}, {mode:?}, {:?}, in place {in_place}: {name}[{i}] is {got:e}, \
                     expected {right_value:e}",
                    engine.name(),
                    E::DTYPE,
                    inputs.epilogue
                );
            }
        }
    }
}
