//! NaN, infinities, the largest values, constants and large means.
use crate::support::engines::engines;
use crate::support::near;
use crate::support::oracle::{self, judge, served};
use crate::support::run::{self, Epilogue, Inputs, Mode, Outcome, Spread, Want, channel_of};
use crate::support::shapes::{self, Case, SMALL};
use batchnorm::{Element, Engine, Real, Shape};
use half::{bf16, f16};

engines! { [reference, cpu, cuda, cuda_split, cudnn, gpu_slowly] [
    what_is_not_finite_stays_in_its_channel,
    what_is_not_finite_in_a_residual_stays_where_it_is,
    parameters_that_are_not_finite_stay_in_their_channel,
    a_relu_keeps_nan_and_passes_its_gradient,
    records_hold_the_mean_of_infinities,
    the_largest_halves_are_ordinary,
    values_whose_squares_fit_are_ordinary,
    the_largest_values_stay_in_their_channel,
    constant_channels_have_no_variance_and_give_their_bias,
    large_means_cost_no_more_than_their_rounding,
    means_that_move_within_a_channel_cost_no_digits,
] }

const MODES: [Mode; 2] = [Mode::Train(Some(0.1)), Mode::Eval];

fn cases() -> impl Iterator<Item = &'static Case> {
    let dims: [&[usize]; 5] = [&[3, 5, 7], &[2, 3, 3, 5], &[5, 3, 2], &[2, 5, 127], &[8, 301]];
    shapes::cases().iter().filter(move |c| dims.contains(&c.dims))
}

/// Forward and backward in one outcome, and y's own gate beside it.
fn step<E: Element, G: Engine>(engine: &G, inputs: &Inputs<E>, mode: Mode) -> Option<Outcome> {
    near::step(engine, inputs, mode, false)
}

fn judge_step<E: Element>(what: &str, inputs: &Inputs<E>, mode: Mode, got: &Outcome) {
    let mut right = oracle::forward(inputs, mode);
    right.extend(oracle::backward(inputs, mode, Want::all(inputs.epilogue), &got["y"], None));
    judge(what, E::DTYPE, &inputs.shape, got, &right);
}

/// All that does not belong to `channels` is the same in every bit.
fn others_are_the_same(
    what: &str,
    shape: &Shape,
    channels: &[usize],
    got: &Outcome,
    clean: &Outcome,
) {
    let mut own = vec![false; shape.channels()];
    channels.iter().for_each(|&channel| own[channel] = true);
    for (name, values) in got {
        for (i, (got, clean)) in values.iter().zip(&clean[name]).enumerate() {
            let mine = match *name {
                "y" | "grad_x" | "grad_residual" => own[channel_of(shape, i)],
                "count" => false,
                _ => own[i],
            };
            let same = got.to_bits() == clean.to_bits();
            assert!(mine || same, "{what}: {name}[{i}] is {got:e}, without it {clean:e}");
        }
    }
}

/// The elements of a channel, as they lie in memory.
fn elements(shape: &Shape, channel: usize) -> Vec<usize> {
    (0..shape.len()).filter(|&i| channel_of(shape, i) == channel).collect()
}

fn what_is_not_finite_stays_in_its_channel<G: Engine>(engine: &G) {
    fn stays<E: Element, G: Engine>(engine: &G) -> Option<()> {
        let poisons = [&[f64::NAN][..], &[f64::INFINITY], &[f64::NEG_INFINITY]];
        let both = &[f64::INFINITY, 1.0, f64::NEG_INFINITY][..];
        for (case, epilogue) in cases().flat_map(|c| [(c, Epilogue::PLAIN), (c, Epilogue::FULL)]) {
            for mode in MODES {
                let clean = Inputs::<E>::new(&case.shape(), epilogue, 1);
                let without = step(engine, &clean, mode)?;
                let (shape, dims, name) = (&clean.shape, case.dims, engine.name());
                // Every other one, so that each has neighbours without, and each with the poison at another of three
                // places: as many as there are channels in one step, which is what takes the time.
                let poisoned: Vec<usize> = (0..shape.channels()).step_by(2).collect();
                let turns = 3usize.div_ceil(poisoned.len());
                let poisons = poisons.into_iter().chain([both]);
                for (poison, turn) in poisons.flat_map(|p| (0..turns).map(move |turn| (p, turn))) {
                    for in_gradient in [false, true] {
                        let mut inputs = clean.clone();
                        let at = if in_gradient { &mut inputs.grad_y } else { &mut inputs.x };
                        for (nth, &channel) in poisoned.iter().enumerate() {
                            let mine = elements(shape, channel);
                            let places = [0, mine.len() / 2, mine.len() - poison.len()];
                            let start = places[(nth * turns + turn) % 3];
                            for (&i, &v) in mine[start..].iter().zip(poison) {
                                at[i] = run::narrow(v);
                            }
                        }
                        let what = format!(
                            "{name}, {}, {dims:?}, {epilogue:?}, {mode:?}, {poison:?}, turn {turn}, \
                             of grad_y: {in_gradient}",
                            E::DTYPE
                        );
                        let got = step(engine, &inputs, mode)?;
                        others_are_the_same(&what, shape, &poisoned, &got, &without);
                        judge_step(&what, &inputs, mode, &got);
                    }
                }
            }
        }
        Some(())
    }
    stays::<f64, G>(engine);
    stays::<f32, G>(engine);
    stays::<f16, G>(engine);
    stays::<bf16, G>(engine);
}

fn what_is_not_finite_in_a_residual_stays_where_it_is<G: Engine>(engine: &G) {
    for (mode, poison) in [(MODES[0], f32::NAN), (MODES[1], f32::NAN), (MODES[0], f32::INFINITY)] {
        let mut inputs = Inputs::<f32>::new(&SMALL.shape(), Epilogue::FULL, 2);
        let Some(clean) = served(run::forward(engine, &inputs, mode, None)) else { return };
        inputs.residual[17] = poison;
        let Some(got) = served(run::forward(engine, &inputs, mode, None)) else { return };
        for (name, values) in &got {
            for (i, (got, clean)) in values.iter().zip(&clean[name]).enumerate() {
                let mine = *name == "y" && i == 17;
                assert!(mine || got == clean, "{}: {name}[{i}]", engine.name());
            }
        }
        assert!(got["y"][17] == f64::from(poison) || poison.is_nan() && got["y"][17].is_nan());
    }
}

fn parameters_that_are_not_finite_stay_in_their_channel<G: Engine>(engine: &G) {
    for (case, mode) in cases().flat_map(|case| MODES.map(|mode| (case, mode))) {
        let clean = Inputs::<f32>::new(&case.shape(), Epilogue::FULL, 3);
        let Some(without) = step(engine, &clean, mode) else { return };
        for poison in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for which in 0..4 {
                let mut inputs = clean.clone();
                let Inputs { weight, bias, mean, var, .. } = &mut inputs;
                [weight, bias, mean, var][which][1] = poison;
                let Some(got) = step(engine, &inputs, mode) else { return };
                let what = format!("{}, {:?}, {poison} in {which}", engine.name(), case.dims);
                others_are_the_same(&what, &clean.shape, &[1], &got, &without);
            }
        }
    }
}

fn a_relu_keeps_nan_and_passes_its_gradient<G: Engine>(engine: &G) {
    fn keeps<E: Element, G: Engine>(engine: &G) {
        for case in cases() {
            let mut inputs = Inputs::<E>::new(&case.shape(), Epilogue::FULL, 4);
            let nan: Vec<usize> = (0..inputs.x.len()).step_by(3).collect();
            nan.iter().for_each(|&i| inputs.x[i] = run::narrow(f64::NAN));
            let Some(got) = step(engine, &inputs, Mode::Eval) else { return };
            for i in nan {
                let what = format!("{}, {}, {:?}, {i}", engine.name(), E::DTYPE, case.dims);
                assert!(got["y"][i].is_nan(), "{what}");
                assert_eq!(got["grad_residual"][i], inputs.grad_y[i].widen().to_f64(), "{what}");
            }
        }
    }
    keeps::<f64, G>(engine);
    keeps::<f32, G>(engine);
    keeps::<f16, G>(engine);
    keeps::<bf16, G>(engine);
}

fn records_hold_the_mean_of_infinities<G: Engine>(engine: &G) {
    for (values, mean) in [
        ([f32::INFINITY, 1.0], f64::INFINITY),
        ([1.0, f32::NEG_INFINITY], f64::NEG_INFINITY),
        ([f32::INFINITY, f32::NEG_INFINITY], f64::NAN),
        ([f32::NAN, 1.0], f64::NAN),
    ] {
        let mut inputs = Inputs::<f32>::new(&SMALL.shape(), Epilogue::PLAIN, 5);
        let channel = elements(&inputs.shape, 3);
        (inputs.x[channel[0]], inputs.x[channel[20]]) = (values[0], values[1]);
        let Some(record) = served(run::stats(engine, &inputs)) else { return };
        let got = record[3];
        assert!(got == mean || got.is_nan() && mean.is_nan(), "{values:?}: {got}, not {mean}");
        assert!(record[10 + 3].is_nan(), "{values:?}: variance {}", record[10 + 3]);
        assert!(record[4].is_finite() && record[10 + 4].is_finite());
    }
}

/// The same values with every `k`th replaced by `value`, either sign.
fn with_peaks<E: Element>(case: &Case, value: f64) -> Inputs<E> {
    let mut inputs = Inputs::<E>::new(&case.shape(), Epilogue::FULL, 6);
    for (k, x) in inputs.x.iter_mut().enumerate().filter(|(k, _)| k % 4 != 1) {
        *x = run::narrow(if k % 3 == 0 { -value } else { value });
    }
    inputs
}

fn agrees<E: Element, G: Engine>(engine: &G, inputs: &Inputs<E>, mode: Mode) {
    let what = format!("{}, {}, {}, {mode:?}", engine.name(), E::DTYPE, inputs.shape);
    if let Some(got) = step(engine, inputs, mode) {
        judge_step(&what, inputs, mode, &got);
    }
}

/// Sums in f16 would overflow from 256 on.
fn the_largest_halves_are_ordinary<G: Engine>(engine: &G) {
    for (case, mode) in cases().flat_map(|case| MODES.map(|mode| (case, mode))) {
        agrees(engine, &with_peaks::<f16>(case, 65504.0), mode);
        agrees(engine, &with_peaks::<f16>(case, 300.0), mode);
    }
}

fn values_whose_squares_fit_are_ordinary<G: Engine>(engine: &G) {
    for (case, mode) in cases().flat_map(|case| MODES.map(|mode| (case, mode))) {
        agrees(engine, &with_peaks::<f32>(case, 1e17), mode);
        agrees(engine, &with_peaks::<bf16>(case, 1e17), mode);
        agrees(engine, &with_peaks::<f64>(case, 1e140), mode);
    }
}

/// Their squares overflow an f32, which is their own channel's affair.
fn the_largest_values_stay_in_their_channel<G: Engine>(engine: &G) {
    fn stays<E: Element, G: Engine>(engine: &G, value: f64) -> Option<()> {
        for case in cases() {
            let clean = Inputs::<E>::new(&case.shape(), Epilogue::FULL, 7);
            let mut inputs = clean.clone();
            for (k, i) in elements(&clean.shape, 2).into_iter().enumerate() {
                inputs.x[i] = run::narrow(if k % 2 == 0 { value } else { -value });
            }
            let (got, without) =
                (step(engine, &inputs, MODES[0])?, step(engine, &clean, MODES[0])?);
            others_are_the_same(engine.name(), &clean.shape, &[2], &got, &without);
            // Given statistics divide by more than 1, so that y can hold every value.
            inputs.epilogue = Epilogue { weight: false, ..Epilogue::PLAIN };
            inputs.var.fill(E::Acc::from_f64(4.0));
            inputs.grad_y.fill(run::narrow(0.0)); // their product with xhat would overflow
            agrees(engine, &inputs, Mode::Eval);
        }
        Some(())
    }
    stays::<f32, G>(engine, f64::from(f32::MAX));
    stays::<bf16, G>(engine, f64::from(bf16::MAX));
    stays::<f64, G>(engine, f64::MAX);
}

fn constant_channels_have_no_variance_and_give_their_bias<G: Engine>(engine: &G) {
    /// Each channel has a value of its own, the first of them `values[from]`.
    fn constant<E: Element, G: Engine>(
        engine: &G,
        case: &Case,
        (values, from): (&[f64], usize),
    ) -> Option<()> {
        let mut inputs = Inputs::<E>::new(&case.shape(), Epilogue::PLAIN, 8);
        let (c, mode) = (inputs.shape.channels(), Mode::Train(Some(1.0)));
        let of_channel = |c: usize| -> E { run::narrow(values[(from + c) % values.len()]) };
        for (i, x) in inputs.x.iter_mut().enumerate() {
            *x = of_channel(channel_of(&inputs.shape, i));
        }
        let means: Vec<f64> = (0..c).map(|c| of_channel(c).widen().to_f64()).collect();
        let what = format!("{}, {}, {:?}, {means:?}", engine.name(), E::DTYPE, case.dims);
        let got = step(engine, &inputs, mode)?;
        assert_eq!(got["running_mean"], means, "{what}: mean");
        assert_eq!(got["running_var"], vec![0.0; c], "{what}: variance");
        assert_eq!(got["saved_mean"], means, "{what}: saved mean");
        for (i, y) in got["y"].iter().enumerate() {
            let bias = E::narrow(inputs.bias[channel_of(&inputs.shape, i)]);
            assert_eq!(*y, bias.widen().to_f64(), "{what}: y[{i}]");
        }
        assert_eq!(got["grad_weight"], vec![0.0; c], "{what}: grad_weight");
        judge_step(&what, &inputs, mode, &got);
        let record = served(run::stats(engine, &inputs))?;
        let right = [means, vec![0.0; 2 * c], vec![inputs.shape.per_channel() as f64]];
        assert_eq!(record, right.concat(), "{what}: record");
        Some(())
    }
    // The first five fit every type.
    let values = [0.0, 0.1, -1.0 / 3.0, 1e4, -65504.0, 1e6, 1e8, -1e30];
    let (all, halves) = (&values[..], &values[..5]);
    for case in shapes::cases().iter().filter(|c| c.shape().per_channel() > 1) {
        for from in (0..all.len()).step_by(case.shape().channels()) {
            constant::<f64, G>(engine, case, (all, from));
            constant::<f32, G>(engine, case, (all, from));
            constant::<bf16, G>(engine, case, (all, from));
        }
        for from in (0..halves.len()).step_by(case.shape().channels()) {
            constant::<f16, G>(engine, case, (halves, from));
        }
    }
}

fn large_means_cost_no_more_than_their_rounding<G: Engine>(engine: &G) {
    /// Each channel has a mean and a deviation of its own.
    fn large<E: Element, G: Engine>(engine: &G, spreads: &[(f64, f64)]) {
        for case in shapes::cases().iter().filter(|c| c.shape().per_channel() > 1) {
            let shape = case.shape();
            for from in (0..spreads.len()).step_by(shape.channels()) {
                let spread = |channel: usize| {
                    let (mean, std) = spreads[(from + channel) % spreads.len()];
                    Spread { mean, std }
                };
                let inputs = Inputs::<E>::spreads(&shape, Epilogue::FULL, spread, 9);
                for mode in MODES {
                    agrees(engine, &inputs, mode);
                }
            }
        }
    }
    let spreads = [(1e4, 1.0), (3e4, 0.5), (1e6, 1.0), (1e8, 1.0), (1e8, 1e3)];
    large::<f64, G>(engine, &spreads);
    large::<f32, G>(engine, &spreads);
    large::<bf16, G>(engine, &spreads);
    large::<f16, G>(engine, &[(1e4, 1.0), (3e4, 500.0)]);
}

/// What comes first says nothing of what follows: levels far apart in the values' own spread, for as
/// many neighbours as an engine may have summed when the next begins.
fn means_that_move_within_a_channel_cost_no_digits<G: Engine>(engine: &G) {
    fn moving<E: Element, G: Engine>(engine: &G, (at, step): (usize, f64)) {
        let shapes: [(&[usize], usize); 6] = [
            (&[300, 20], 1),
            (&[2000, 3], 1),
            (&[40, 16, 49], 1),
            (&[3, 9, 5000], 1),
            (&[70, 5, 300], 1),
            (&[1, 2, 70_001], 1),
        ];
        for (nth, (dims, axis)) in shapes.into_iter().enumerate() {
            let shape = Shape::new(dims, axis).unwrap();
            // The last: only the first value is elsewhere. Half of all combinations, every pair of two of them among these.
            let periods = [1, 7, 40, 1000, usize::MAX].into_iter().enumerate();
            for (_, period) in periods.filter(|(k, _)| (k + nth + at).is_multiple_of(2)) {
                let spread = Spread { mean: 0.0, std: 1.0 };
                let mut inputs = Inputs::<E>::spread(&shape, Epilogue::FULL, spread, 11);
                for channel in 0..shape.channels() {
                    for (k, i) in elements(&shape, channel).into_iter().enumerate() {
                        let level = match period {
                            usize::MAX if k == 0 => step.min(100.0) * 10.0,
                            usize::MAX => 0.0,
                            _ => step * ((k / period + channel) % 3) as f64,
                        };
                        let moved = inputs.x[i].widen().to_f64() + level;
                        inputs.x[i] = E::narrow(E::Acc::from_f64(moved));
                    }
                }
                agrees(engine, &inputs, Mode::Train(Some(0.1)));
            }
        }
    }
    for step in [3.0, 100.0, 3e4].into_iter().enumerate() {
        moving::<f64, G>(engine, step);
        moving::<f32, G>(engine, step);
        moving::<bf16, G>(engine, step);
    }
    moving::<f16, G>(engine, (0, 100.0));
    moving::<f16, G>(engine, (1, 100.0));
}

/// The table's words are what the list above goes by.
#[test]
fn every_case_of_the_list_is_found() {
    assert_eq!(cases().count(), 5);
}
