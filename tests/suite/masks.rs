//! Statistics of the values that count: every engine as the reference, and the reference as by hand.
use crate::support::engines::engines;
use crate::support::oracle::{self, judge, served};
use crate::support::run::{
    self, Epilogue, Inputs, Masked, Mode, Outcome, Random, Rules, SavedOn, Want, channel_of,
};
use crate::support::shapes::{CHANNELS_LAST, SMALL, cases};
use batchnorm::{
    Activation, AllMasked, Backward, BatchNorm, Config, Cpu, Element, Engine, Error, ForwardTrain,
    Host, Mask, Momentum, OneValue, Reference, Saved, Shape, Variance,
};
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
] }

// It takes our kernels wherever there is a mask.
engines! { [gpu] [
    every_shape_agrees_f32,
    what_does_not_count_may_be_anything,
    a_mask_of_ones_is_no_mask,
    nothing_that_counts_is_what_the_rule_says,
    one_value_that_counts_has_no_variance,
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
enum Pattern {
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
        1 => lasts.extend([Some(1), Some(shape.channels())]),
        inner => lasts.extend((2..inner).rev().find(|n| inner.is_multiple_of(*n)).map(Some)),
    }
    if shape.inner() > 1 {
        lasts.push(Some(shape.inner()));
    }
    lasts
}

fn masked(shape: &Shape, last: Option<usize>, pattern: Pattern, seed: u64) -> Masked {
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
fn step<E: Element, G: Engine>(engine: &G, inputs: &Inputs<E>) -> Option<(Outcome, Outcome)> {
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

/// Numbers say places, or what is wrong with them.
#[test]
fn f32_masks_are_zeros_and_ones() {
    let places = |numbers: &[f32]| Mask::places_of(&Host, numbers).map_err(|e| e.to_string());
    assert_eq!(places(&[1.0, 0.0, -0.0, 1.0]), Ok(vec![1, 0, 0, 1]));
    assert_eq!(places(&[]), Ok(vec![]));
    for (number, shown) in [(0.5, "0.5"), (f32::NAN, "NaN"), (2.0, "2"), (-1.0, "-1")] {
        let expected = format!("mask: expected 0 or 1 at every place, got {shown} at place 1");
        assert_eq!(places(&[1.0, number]), Err(expected));
    }
}

/// The definition, by numbers worked out by hand.
#[test]
fn the_reference_is_the_definition() {
    // Of 1, 3, (7), 5: mean 3, variance 8 / 3.
    let shape = Shape::new(&[4, 1], 1).unwrap();
    let (x, places, grad_y) = ([1.0, 3.0, 7.0, 5.0], [1, 1, 0, 1], [1.0, 0.0, 2.0, -1.0]);
    let (mut y, mut saved) = ([0.0; 4], Saved::new());
    let (mut mean, mut var) = ([1.0], [1.0]);
    let mask = Mask::<Host>::new(&places);
    let args = ForwardTrain::<Host, f64>::new(&x, &mut y).eps(1.0 / 3.0).mask(mask);
    let args = args.running(&mut mean, &mut var, 0.5).saved(&mut saved);
    Reference.forward_train(&shape, args).unwrap();
    let s = 3f64.sqrt();
    let near = |a: &[f64], b: &[f64]| {
        assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-14), "{a:?}, {b:?}");
    };
    near(&y, &[-2.0 / s, 0.0, 4.0 / s, 2.0 / s]);
    near(&[mean[0], var[0]], &[2.0, 2.5]); // 8 over 2, as PyTorch's
    let (mut grad_x, mut grad_weight, mut grad_bias) = ([0.0; 4], [0.0], [0.0]);
    let args = Backward::<Host, f64>::new(&saved, &x, &grad_y).mask(&places);
    let args = args.grad_x(&mut grad_x).grad_weight(&mut grad_weight).grad_bias(&mut grad_bias);
    Reference.backward(&shape, args).unwrap();
    // sum(g) = 2, sum(g xhat) = (-2 + 8 - 2) / s = 4 / s.
    near(&[grad_bias[0], grad_weight[0]], &[2.0, 4.0 / s]);
    let through = |xhat: f64| 2.0 / 3.0 + xhat * 4.0 / s / 3.0;
    let right = [1.0 - through(-2.0 / s), -through(0.0), 2.0, -1.0 - through(2.0 / s)];
    near(&grad_x, &right.map(|g| g / s));
}

/// A mask's gradient is that of finite differences, with Keras' count, too.
#[test]
fn the_gradient_is_that_of_finite_differences() {
    for (last, count_eps) in [(None, 0.0), (Some(3), 0.5), (None, 0.25)] {
        let shape = Shape::new(&[3, 2, 3], 1).unwrap();
        let mut inputs = Inputs::<f64>::new(&shape, Epilogue::PLAIN, 5);
        inputs.eps = 1e-2;
        let mask = Masked { count_eps, ..masked(&shape, last, Pattern::Sparse(60), 2) };
        inputs.mask = Some(mask);
        let loss = |inputs: &Inputs<f64>| -> f64 {
            let y = run::forward(&Reference, inputs, Mode::Train(None), None).unwrap();
            y["y"].iter().zip(&inputs.grad_y).map(|(y, g)| y * g).sum()
        };
        let (_, gradients) = step(&Reference, &inputs).unwrap();
        for (i, got) in gradients["grad_x"].iter().enumerate() {
            let at = |by: f64| {
                let mut inputs = inputs.clone();
                inputs.x[i] += by;
                loss(&inputs)
            };
            let right = (at(1e-5) - at(-1e-5)) / 2e-5;
            assert!((got - right).abs() < 1e-7, "{last:?}, {count_eps}: {i}: {got}, {right}");
        }
    }
}

#[test]
fn bad_masks_are_refused_by_both_sides() {
    let shape = Shape::new(&[4, 3, 6], 1).unwrap();
    let x = vec![1f32; 72];
    let say = |mask: Mask<'_, Host>| {
        let mut messages = vec![];
        let mut y = vec![7f32; 72];
        let args = ForwardTrain::<Host, f32>::new(&x, &mut y).mask(mask.reborrow());
        messages.push(Cpu::default().forward_train(&shape, args).unwrap_err().to_string());
        let args = ForwardTrain::<Host, f32>::new(&x, &mut y).mask(mask.reborrow());
        messages.push(Reference.forward_train(&shape, args).unwrap_err().to_string());
        assert_eq!(y, [7f32; 72]);
        assert_eq!(messages[0], messages[1]);
        messages.remove(0)
    };
    let (ones, mut two) = ([1; 24], [1; 24]);
    two[5] = 2;
    assert_eq!(say(Mask::<Host>::new(&ones[1..])), "mask: expected 24 elements, got 23");
    assert_eq!(
        say(Mask::<Host>::new(&two)),
        "mask: expected 0 or 1 at every place, got 2 at place 5"
    );
    assert_eq!(say(Mask::<Host>::new(&ones).without_last(6)), "mask: expected 12 elements, got 24");
    assert_eq!(
        say(Mask::<Host>::new(&ones[..18]).without_last(4)),
        "mask: expected a last axis that divides the 6 elements behind the channels, or that has the 3 \
         channels where nothing is behind them, got one of 4"
    );
    for (eps, shown) in [(-1.0, "-1"), (f64::NAN, "NaN"), (f64::INFINITY, "inf")] {
        let expected = format!("mask: count_eps: expected a finite number from 0 on, got {shown}");
        assert_eq!(say(Mask::<Host>::new(&ones).count_eps(eps)), expected);
    }
}

#[test]
fn a_backward_asks_for_the_mask_of_its_forward() {
    let shape = Shape::new(&[4, 3], 1).unwrap();
    let (x, places, mut y) = ([1f32; 12], [1, 0, 1, 1], [0.0; 12]);
    let (mut with, mut without) = (Saved::new(), Saved::new());
    let engine = Cpu::default();
    let args = ForwardTrain::<Host, f32>::new(&x, &mut y).mask(Mask::<Host>::new(&places));
    engine.forward_train(&shape, args.saved(&mut with)).unwrap();
    let args = ForwardTrain::<Host, f32>::new(&x, &mut y).saved(&mut without);
    engine.forward_train(&shape, args).unwrap();
    let refused = |args: Backward<'_, Host, f32>| engine.backward(&shape, args).unwrap_err();
    let saved = |forward: &str, backward: &str| Error::Saved {
        what: "mask",
        forward: forward.into(),
        backward: backward.into(),
    };
    assert_eq!(refused(Backward::new(&with, &x, &x)), saved("one", "none"));
    assert_eq!(refused(Backward::new(&without, &x, &x).mask(&places)), saved("none", "one"));
    let error = refused(Backward::new(&with, &x, &x).mask(&places[1..]));
    assert_eq!(error.to_string(), "mask: expected 4 elements, got 3");
    let error = refused(Backward::new(&with, &x, &x).mask(&[1, 3, 0, 0]));
    assert_eq!(error.to_string(), "mask: expected 0 or 1 at every place, got 3 at place 1");
    let mut sums = [0.0; 7];
    let error = refused(Backward::new(&with, &x, &x).mask(&places).sums(&mut sums));
    let expected = "sums: after a mask: expected no sums of a part of a batch, got some";
    assert_eq!(error.to_string(), expected);
}

#[test]
fn a_layer_takes_a_mask_in_training_alone() {
    let shape = Shape::from_end(&[2, 3, 2], -1).unwrap();
    let x = [1f32, 2.0, 3.0, 4.0, 50.0, 60.0, 3.0, 6.0, -50.0, 7.0, 8.0, 9.0];
    let places = [1, 1, 0, 1, 0, 0];
    let config = Config::default().momentum(Momentum::Exponential(1.0)).variance(Variance::Biased);
    let mut bn = BatchNorm::new(&Cpu::default(), 2, config).unwrap();
    let (_, saved) = bn.forward_masked(&shape, &x, Mask::<Host>::new(&places)).unwrap();
    assert_eq!(saved.mean().unwrap(), [7.0 / 3.0, 4.0]);
    assert_eq!(bn.running().unwrap().mean, [7.0 / 3.0, 4.0]);
    let grad_x = bn.backward_masked(&saved, &x, &places, &x).unwrap();
    assert!(grad_x.iter().all(|g| g.is_finite()));
    let error = bn.backward(&saved, &x, &x).unwrap_err();
    assert!(matches!(error, Error::Saved { what: "mask", .. }), "{error}");
    bn.eval();
    let (y, saved) = bn.forward_masked(&shape, &x, Mask::<Host>::new(&places)).unwrap();
    assert_eq!(saved.is_masked(), Some(false));
    assert_eq!(y, bn.infer(&shape, &x).unwrap());
    bn.backward_masked(&saved, &x, &places, &x).unwrap();
}
