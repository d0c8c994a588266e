//! Statistics of the values that count: every engine as the reference.
use crate::support::engines::engines;
use crate::support::oracle::{self, judge, served};
use crate::support::run::{
    self, Epilogue, Inputs, Masked, Mode, Outcome, Random, Rules, SavedOn, Want, channel_of,
};
use crate::support::shapes::{CHANNELS_LAST, SMALL, cases};
#[cfg(all(feature = "cudnn", target_os = "linux"))]
use batchnorm::Error;
use batchnorm::{Activation, AllMasked, Element, Engine, OneValue, Real, Shape, Variance};
use half::{bf16, f16};

engines! { [reference, cpu, cuda] [
    every_shape_agrees_f64,
    every_shape_agrees_f32,
    every_shape_agrees_f16,
    every_shape_agrees_bf16,
    large_tensors_agree,
    every_epilogue_agrees,
    what_does_not_count_may_be_anything,
    a_mask_of_ones_is_no_mask,
    nothing_that_counts_is_what_the_rule_says,
    one_value_that_counts_has_no_variance,
    a_record_is_of_the_values_that_count,
] }

// It takes our kernels wherever there is a mask.
engines! { [gpu] [
    every_shape_agrees_f32,
    what_does_not_count_may_be_anything,
    a_mask_of_ones_is_no_mask,
    nothing_that_counts_is_what_the_rule_says,
    one_value_that_counts_has_no_variance,
    a_record_is_of_the_values_that_count,
] }

engines! { [cudnn] [a_mask_is_refused_in_words] }

/// By what these say of it beforehand, too; nothing is saved.
#[cfg(all(feature = "cudnn", target_os = "linux"))]
fn a_mask_is_refused_in_words<G: Engine>(engine: &G) {
    let shape = SMALL.shape();
    let mut inputs = Inputs::<f32>::new(&shape, Epilogue::PLAIN, 1);
    inputs.mask = Some(masked(&shape, None, Pattern::Sparse(50), 0));
    let mut saved = SavedOn::<G, f32>::new();
    let mode = Mode::Train(None);
    let error = run::forward(engine, &inputs, mode, Some(&mut saved)).unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    assert!(error.to_string().contains("expected no mask, got one"), "{error}");
    assert_eq!(saved.shape(), None);
}

/// Which places count.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pattern {
    /// A share of them, anywhere.
    Sparse(u64),
    /// The beginning of every row of so many places: sequences that are padded.
    Padded(usize),
    All,
    None,
}

fn places(len: usize, pattern: Pattern, seed: u64) -> Vec<u8> {
    let mut random = Random(seed);
    let place = |i: usize| match pattern {
        Pattern::Sparse(share) => u8::from((random.normal().abs() * 100.0) as u64 % 100 < share),
        Pattern::Padded(row) => u8::from(i % row < (i / row * 7 + 3) % (row + 1)),
        Pattern::All => 1,
        Pattern::None => 0,
    };
    (0..len).map(place).collect()
}

/// The last axes that a mask of such a shape may be without.
fn lasts(shape: &Shape) -> Vec<Option<usize>> {
    let mut lasts = vec![None];
    match shape.inner() {
        0 => {}
        1 => {
            lasts.extend([Some(1), Some(shape.channels())]);
            // Channels on two axes, of which the last is one.
            let channels = shape.channels();
            lasts.extend((2..channels).rev().find(|n| channels.is_multiple_of(*n)).map(Some));
        }
        inner => lasts.extend((2..inner).rev().find(|n| inner.is_multiple_of(*n)).map(Some)),
    }
    if shape.inner() > 1 {
        lasts.push(Some(shape.inner()));
    }
    lasts
}

pub fn masked(shape: &Shape, last: Option<usize>, pattern: Pattern, seed: u64) -> Masked {
    let len = match last {
        Some(last) => shape.len() / last.max(1),
        None => shape.per_channel(),
    };
    let (count_eps, all_masked) = match seed % 2 {
        0 => (0.0, AllMasked::Keep),
        _ => (1e-7, AllMasked::Zero),
    };
    Masked { places: places(len, pattern, seed + 5), last, count_eps, all_masked }
}

/// A forward, and backwards apart, in place and of some gradients.
fn there_and_back<E: Element, G: Engine>(what: &str, engine: &G, inputs: &Inputs<E>) {
    let mode = Mode::Train(Some(0.3));
    let mut saved = SavedOn::<G, E>::new();
    let Some(got) = served(run::forward(engine, inputs, mode, Some(&mut saved))) else { return };
    judge(what, E::DTYPE, &inputs.shape, &got, &oracle::forward(inputs, mode));
    let all = Want { sums: false, ..Want::all(inputs.epilogue) };
    let of_x = Want { grad_weight: false, grad_bias: false, grad_residual: false, ..all };
    for want in [all, Want { accumulate: true, in_place: true, ..all }, of_x] {
        let Some(gradients) = served(run::backward(engine, inputs, want, &saved, None)) else {
            return;
        };
        let right = oracle::backward(inputs, mode, want, &got["y"], None);
        judge(&format!("{what}, {want:?}"), E::DTYPE, &inputs.shape, &gradients, &right);
    }
}

fn every_shape_agrees_f64<G: Engine>(engine: &G) {
    every_shape::<f64, G>(engine);
}
fn every_shape_agrees_f32<G: Engine>(engine: &G) {
    every_shape::<f32, G>(engine);
}
fn every_shape_agrees_f16<G: Engine>(engine: &G) {
    every_shape::<f16, G>(engine);
}
fn every_shape_agrees_bf16<G: Engine>(engine: &G) {
    every_shape::<bf16, G>(engine);
}

fn every_shape<E: Element, G: Engine>(engine: &G) {
    for (seed, case) in cases().iter().enumerate() {
        let shape = case.shape();
        if shape.per_channel() == 1 {
            continue;
        }
        let padded = Pattern::Padded((shape.per_channel() / 3).max(2));
        for (k, last) in lasts(&shape).into_iter().enumerate() {
            for pattern in [Pattern::Sparse(60), Pattern::Sparse(3), padded] {
                let activation = if (seed + k).is_multiple_of(2) {
                    Activation::Relu
                } else {
                    Activation::Identity
                };
                let epilogue = Epilogue { activation, residual: seed % 3 == 1, ..Epilogue::PLAIN };
                let mut inputs = Inputs::<E>::new(&shape, epilogue, seed as u64);
                inputs.mask = Some(masked(&shape, last, pattern, (seed + k) as u64));
                let (name, dtype, dims) = (engine.name(), E::DTYPE, case.dims);
                let what = format!("{name}, {dtype}, {dims:?}, without {last:?}, {pattern:?}");
                there_and_back(&what, engine, &inputs);
            }
        }
    }
}

fn large_tensors_agree<G: Engine>(engine: &G) {
    fn one<E: Element, G: Engine>(engine: &G, dims: &[usize], axis: usize, row: usize) {
        let shape = Shape::new(dims, axis).unwrap();
        for (k, last) in lasts(&shape).into_iter().take(2).enumerate() {
            let mut inputs = Inputs::<E>::new(&shape, Epilogue::FULL, 1);
            inputs.mask = Some(masked(&shape, last, Pattern::Padded(row), k as u64));
            there_and_back(&format!("{dims:?}, without {last:?}"), engine, &inputs);
        }
    }
    one::<f32, G>(engine, &[3, 9, 40_000], 1, 40_000);
    one::<f32, G>(engine, &[5_000, 17], 1, 100);
    one::<bf16, G>(engine, &[700, 601], 1, 50);
    one::<f16, G>(engine, &[60, 33, 49], 1, 49);
}

fn every_epilogue_agrees<G: Engine>(engine: &G) {
    fn all<E: Element, G: Engine>(engine: &G) {
        for shape in [SMALL.shape(), CHANNELS_LAST.shape(), Shape::new(&[3, 2, 600], 1).unwrap()] {
            for (seed, epilogue) in Epilogue::all().chain(Epilogue::others()).enumerate() {
                for last in [None, lasts(&shape).into_iter().next_back().flatten()] {
                    let mut inputs = Inputs::<E>::new(&shape, epilogue, seed as u64);
                    inputs.mask = Some(masked(&shape, last, Pattern::Sparse(70), seed as u64));
                    let what = format!("{}, {shape}, {epilogue:?}, {last:?}", E::DTYPE);
                    there_and_back(&what, engine, &inputs);
                }
            }
        }
    }
    all::<f64, G>(engine);
    all::<f32, G>(engine);
    all::<f16, G>(engine);
}

/// What a training step gives, without y and gradients where a value does not count.
pub fn step<E: Element, G: Engine>(engine: &G, inputs: &Inputs<E>) -> Option<(Outcome, Outcome)> {
    let mut saved = SavedOn::<G, E>::new();
    let mode = Mode::Train(Some(0.3));
    let forward = served(run::forward(engine, inputs, mode, Some(&mut saved)))?;
    let want = Want { sums: false, ..Want::all(inputs.epilogue) };
    Some((forward, served(run::backward(engine, inputs, want, &saved, None))?))
}

/// Statistics, and so what counts, are the same whatever stands in other places.
fn what_does_not_count_may_be_anything<G: Engine>(engine: &G) {
    fn any<E: Element, G: Engine>(engine: &G) {
        for (seed, dims) in [[3, 5, 7], [2, 3, 600], [40, 3, 1], [4, 600, 1]].iter().enumerate() {
            let shape = Shape::new(dims, 1).unwrap();
            let mut inputs = Inputs::<E>::new(&shape, Epilogue::PLAIN, seed as u64);
            inputs.mask = Some(masked(&shape, None, Pattern::Sparse(50), seed as u64));
            let places = inputs.mask.as_ref().unwrap().places.clone();
            let place = |i: usize| i / (dims[1] * dims[2]) * dims[2] + i % dims[2];
            let counts = |i: usize| places[place(i)] == 1;
            let Some((right, _)) = step(engine, &inputs) else { return };
            for (i, x) in inputs.x.iter_mut().enumerate() {
                if !counts(i) {
                    *x = run::narrow([f64::NAN, f64::INFINITY, 6e4, -0.0][i % 4]);
                }
            }
            let (got, _) = step(engine, &inputs).unwrap();
            for name in ["running_mean", "running_var", "saved_mean", "saved_invstd"] {
                let near = |(a, b): (&f64, &f64)| (a - b).abs() <= 1e-5 * a.abs().max(1e-3);
                let all = right[name].iter().zip(&got[name]).all(near);
                assert!(all, "{dims:?}: {name}: {:?}, {:?}", right[name], got[name]);
            }
            let y = right["y"].iter().zip(&got["y"]).enumerate().filter(|(i, _)| counts(*i));
            y.for_each(|(i, (a, b))| assert!((a - b).abs() < 1e-2, "{dims:?}: {i}: {a}, {b}"));
        }
    }
    any::<f64, G>(engine);
    any::<f32, G>(engine);
    any::<f16, G>(engine);
}

fn a_mask_of_ones_is_no_mask<G: Engine>(engine: &G) {
    for dims in [[3, 5, 7], [2, 3, 600], [400, 3, 1], [4, 600, 1]] {
        let shape = Shape::new(&dims, 1).unwrap();
        let plain = Inputs::<f32>::new(&shape, Epilogue::FULL, 3);
        let ones = Masked {
            places: vec![1; shape.per_channel()],
            ..masked(&shape, None, Pattern::All, 0)
        };
        let all = Inputs { mask: Some(ones), ..plain.clone() };
        let Some(right) = step(engine, &plain) else { return };
        let got = step(engine, &all).unwrap();
        for (right, got) in [(right.0, got.0), (right.1, got.1)] {
            for (name, right) in right {
                let near = |(a, b): (&f64, &f64)| (a - b).abs() <= 2e-5 * a.abs().max(1.0);
                assert!(right.iter().zip(&got[name]).all(near), "{dims:?}: {name}");
            }
        }
    }
}

fn nothing_that_counts_is_what_the_rule_says<G: Engine>(engine: &G) {
    for shape in [SMALL.shape(), CHANNELS_LAST.shape(), Shape::new(&[2, 3, 600], 1).unwrap()] {
        for count_eps in [0.0, 1e-7] {
            for all_masked in [AllMasked::Keep, AllMasked::Zero, AllMasked::Nan] {
                let mut inputs = Inputs::<f32>::new(&shape, Epilogue::PLAIN, 7);
                let mask = masked(&shape, None, Pattern::None, 0);
                inputs.mask = Some(Masked { count_eps, all_masked, ..mask });
                let Some((forward, backward)) = step(engine, &inputs) else { return };
                let old: Vec<f64> = run::widen(&inputs.mean);
                let is = |name: &str, f: fn(f64) -> f64, of: &[f64]| {
                    let near = |(a, b): (&f64, &f64)| (a - f(*b)).abs() <= 1e-6 * b.abs();
                    assert!(forward[name].iter().zip(of).all(near), "{all_masked:?}: {name}");
                };
                match all_masked {
                    AllMasked::Keep => {
                        is("running_mean", |old| old, &old);
                        is("running_var", |old| old, &run::widen(&inputs.var));
                    }
                    AllMasked::Zero => {
                        is("running_mean", |old| 0.7 * old, &old);
                        is("running_var", |old| 0.7 * old, &run::widen(&inputs.var));
                    }
                    _ => {
                        for name in ["running_mean", "running_var", "y"] {
                            assert!(forward[name].iter().all(|v| v.is_nan()), "{name}");
                        }
                        assert!(backward["grad_x"].iter().all(|v| v.is_nan()));
                        continue;
                    }
                }
                // Divided by the root of eps, of a mean of 0; nothing flows through statistics.
                let scale = 1.0 / inputs.eps.sqrt();
                for (i, y) in forward["y"].iter().enumerate() {
                    let c = channel_of(&shape, i);
                    let [x, weight, bias, g] =
                        [inputs.x[i], inputs.weight[c], inputs.bias[c], inputs.grad_y[i]]
                            .map(f64::from);
                    let (right, grad_x) = (x * scale * weight + bias, g * weight * scale);
                    assert!((y - right).abs() <= 1e-5 * right.abs().max(1.0), "{y}, {right}");
                    let got = backward["grad_x"][i];
                    assert!((got - grad_x).abs() <= 1e-5 * grad_x.abs().max(1.0));
                }
            }
        }
    }
}

fn one_value_that_counts_has_no_variance<G: Engine>(engine: &G) {
    let shape = Shape::new(&[4, 2, 3], 1).unwrap();
    for one_value in [OneValue::Refuse, OneValue::ZeroVariance, OneValue::KeepVariance] {
        let mut inputs = Inputs::<f64>::new(&shape, Epilogue::PLAIN, 2);
        let mut mask = masked(&shape, None, Pattern::None, 0);
        mask.places[4] = 1; // the second position of the second sample
        inputs.mask = Some(mask);
        inputs.rules = Rules { one_value, variance: Variance::Unbiased, ..Rules::default() };
        let Some((forward, _)) = step(engine, &inputs) else { return };
        for c in 0..2 {
            let x = inputs.x[6 + 3 * c + 1];
            assert_eq!(forward["saved_mean"][c], x);
            assert_eq!(forward["y"][6 + 3 * c + 1], inputs.bias[c]);
            let kept = if one_value == OneValue::KeepVariance { 1.0 } else { 0.7 };
            assert!((forward["running_var"][c] - kept * inputs.var[c]).abs() < 1e-15);
        }
    }
}

/// By the definition, in f64; of nothing by the rule.
fn a_record_is_of_the_values_that_count<G: Engine>(engine: &G) {
    fn all<E: Element, G: Engine>(engine: &G, near: f64) {
        for (seed, dims) in
            [[3, 5, 7], [2, 3, 600], [40, 3, 1], [4, 600, 1], [30, 16, 7], [0, 3, 4]]
                .iter()
                .enumerate()
        {
            let shape = Shape::new(dims, 1).unwrap();
            for (pattern, all_masked) in [
                (Pattern::Sparse(60), AllMasked::Keep),
                (Pattern::None, AllMasked::Keep),
                (Pattern::None, AllMasked::Zero),
                (Pattern::None, AllMasked::Nan),
            ] {
                let last = Some(dims[1]).filter(|_| dims[2] == 1 && seed % 2 == 1);
                let mask = masked(&shape, last, pattern, seed as u64);
                let mask = Masked { all_masked, ..mask };
                let mut inputs = Inputs::<E>::new(&shape, Epilogue::PLAIN, seed as u64);
                inputs.mask = Some(mask.clone());
                let Some(got) = served(run::stats(engine, &inputs)) else { return };
                let what = format!("{} {dims:?}, {pattern:?}, {all_masked:?}", E::DTYPE);
                let [channels, inner] = [dims[1], dims[2]];
                let place = |i: usize| i / (channels * inner) * inner + i % inner;
                let of = |c: usize| {
                    let all = (0..shape.len()).filter(|&i| channel_of(&shape, i) == c);
                    let all = all.filter(|&i| mask.places[place(i)] == 1);
                    all.map(|i| inputs.x[i].widen().to_f64()).collect::<Vec<f64>>()
                };
                for c in 0..channels {
                    let xs = of(c);
                    let n = xs.len() as f64 + mask.count_eps;
                    let mean = xs.iter().sum::<f64>() / n;
                    let var = xs.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
                    let (mean, var) = match (xs.is_empty(), all_masked) {
                        (false, _) => (mean, var),
                        (true, AllMasked::Nan) => (f64::NAN, f64::NAN),
                        (true, _) => (0.0, 0.0),
                    };
                    let is = |got: f64, right: f64| {
                        let same = got.is_nan() && right.is_nan();
                        assert!(
                            same || (got - right).abs() <= near * right.abs().max(1.0),
                            "{what}, {c}: {got}, {right}"
                        );
                    };
                    is(got[c] + got[channels + c], mean);
                    is(got[2 * channels + c], var);
                }
                let right = match (of(0).len(), all_masked) {
                    (0, AllMasked::Keep) => 0.0,
                    (0, _) => 2.0,
                    (n, _) => n as f64,
                };
                assert_eq!(got[3 * channels], right, "{what}");
            }
        }
        // Of which channels have different numbers of values.
        let shape = Shape::new(&[3, 2, 6], 1).unwrap();
        let mut inputs = Inputs::<E>::new(&shape, Epilogue::PLAIN, 1);
        inputs.mask = Some(masked(&shape, Some(3), Pattern::Sparse(60), 0));
        let error = run::stats(engine, &inputs).unwrap_err().to_string();
        assert!(
            error.starts_with("mask: of a record: expected one of positions, of which"),
            "{error}"
        );
        assert!(
            error.ends_with("got one without a last axis of 3 that is not the channels'"),
            "{error}"
        );
        let mut short = masked(&shape, None, Pattern::All, 0);
        short.places.pop();
        inputs.mask = Some(short);
        let error = run::stats(engine, &inputs).unwrap_err().to_string();
        assert_eq!(error, "mask: expected 18 elements, got 17");
    }
    all::<f64, G>(engine, 1e-12);
    all::<f32, G>(engine, 1e-6);
    all::<f16, G>(engine, 1e-6);
    all::<bf16, G>(engine, 1e-6);
}
