//! By which rules running statistics move: every engine as the reference, and the reference as by hand.
use crate::support::engines::engines;
use crate::support::layer::{down, numbers, small, up, view};
use crate::support::oracle::{self, judge, served};
use crate::support::run::{self, Epilogue, Inputs, Mode, Rules, Want, channel_of};
use crate::support::shapes::cases;
use crate::support::tolerance::{Kind, tolerance};
use batchnorm::{
    BatchNorm, Config, Element, EmptyBatch, Engine, Error, Mask, Momentum, NonFinite, OneValue,
    Reference, Shape, Variance,
};
use half::{bf16, f16};

engines! { [reference, cpu, cuda, cuda_split, cudnn, gpu] [
    rules_agree_f64,
    rules_agree_f32,
    rules_agree_f16,
    rules_agree_bf16,
    rules_of_merged_records_agree,
    what_is_not_finite_is_skipped_in_its_channel_alone,
    averages_leave_out_what_is_skipped,
    one_value_per_channel_gives_the_bias,
    a_batch_without_values_is_what_the_rule_says,
    a_debiased_average_is_haikus,
    a_forward_may_leave_running_statistics_alone,
    skipped_updates_are_told,
    a_weight_of_the_variance_without_a_meaning_is_refused,
] }

const FACTOR: f64 = 0.3;

/// Every rule that differs from the default, alone and together.
fn rules() -> Vec<Rules> {
    let biased = Rules { variance: Variance::Biased, ..Rules::default() };
    let separate = Rules { var_factor: Some(0.75), ..Rules::default() };
    let skips = Rules { non_finite: NonFinite::Skip, skipped: Some(2.0), ..Rules::default() };
    vec![
        biased,
        separate,
        skips,
        Rules { averages: true, ..skips },
        // Of more batches than there were: the weight is 1 at most.
        Rules { averages: true, skipped: Some(1e6), ..skips },
        Rules { averages: true, skipped: None, ..skips },
        Rules { variance: Variance::Biased, var_factor: Some(1.0), ..skips },
    ]
}

fn rules_agree_f64<G: Engine>(engine: &G) {
    rules_agree::<f64, G>(engine);
}
fn rules_agree_f32<G: Engine>(engine: &G) {
    rules_agree::<f32, G>(engine);
}
fn rules_agree_f16<G: Engine>(engine: &G) {
    rules_agree::<f16, G>(engine);
}
fn rules_agree_bf16<G: Engine>(engine: &G) {
    rules_agree::<bf16, G>(engine);
}

fn rules_agree<E: Element, G: Engine>(engine: &G) {
    let dims: [&[usize]; 5] = [&[3, 5, 7], &[2, 3, 3, 5], &[5, 3, 2], &[2, 5, 127], &[8, 301]];
    for case in cases().iter().filter(|case| dims.contains(&case.dims)) {
        for rules in rules() {
            let mut inputs = Inputs::<E>::new(&case.shape(), Epilogue::PLAIN, 11);
            inputs.rules = rules;
            // A channel that is not finite, in the first value and beyond it.
            for at in [channel_of(&inputs.shape, 0), inputs.shape.len() - 1] {
                inputs.x[at] = run::narrow(f64::NAN);
            }
            let mode = Mode::Train(Some(FACTOR));
            let Some(got) = served(run::forward(engine, &inputs, mode, None)) else { continue };
            let what = format!("{}, {}, {:?}, {rules:?}", engine.name(), E::DTYPE, case.dims);
            judge(&what, E::DTYPE, &inputs.shape, &got, &oracle::forward(&inputs, mode));
        }
    }
}

fn rules_of_merged_records_agree<G: Engine>(engine: &G) {
    let records = [
        // Two channels: means, rests, variances, count. The second channel is not finite.
        vec![2.5, f64::NAN, 0.0, 0.0, 1.25, f64::NAN, 4.0],
        vec![1.0, 3.0, 0.0, 0.0, 0.0, 0.0, 1.0],
        vec![0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
    ];
    let (mean, var) = ([0.5, 0.25], [2.0, 1.5]);
    let one = Rules { one_value: OneValue::KeepVariance, ..Rules::default() };
    let zero = Rules { one_value: OneValue::ZeroVariance, ..Rules::default() };
    let empty = Rules { empty_batch: EmptyBatch::Nan, ..Rules::default() };
    let parts: [(&[usize], Vec<Rules>); 3] = [
        (&[0, 1, 2], rules()),
        (&[1, 2], vec![one, zero]),
        (&[2, 2], vec![Rules::default(), empty]),
    ];
    for (parts, all) in parts {
        let records: Vec<f64> = parts.iter().flat_map(|part| records[*part].clone()).collect();
        for rules in all {
            let running = Some((&mean[..], &var[..], FACTOR));
            let got = run::merge_stats_by::<f64, G>(engine, &records, 2, running, rules);
            let Some(got) = served(got) else { return };
            let right = run::merge_stats_by::<f64, _>(&Reference, &records, 2, running, rules);
            for (name, right) in right.unwrap() {
                let near = |(a, b): (&f64, &f64)| {
                    a == b || (a - b).abs() < 1e-12 || a.is_nan() && b.is_nan()
                };
                assert!(
                    got[name].iter().zip(&right).all(near),
                    "{rules:?}: {name}: {got:?}, {right:?}"
                );
            }
        }
    }
}

/// Mean and both variances of a channel by the formula, in f64.
fn moments<E: Element>(inputs: &Inputs<E>, c: usize) -> (f64, f64, f64) {
    let wide = inputs.wide();
    let mine = |i: &usize| channel_of(&wide.shape, *i) == c;
    let xs: Vec<f64> = (0..wide.x.len()).filter(mine).map(|i| wide.x[i]).collect();
    let mean = xs.iter().sum::<f64>() / xs.len() as f64;
    let squares: f64 = xs.iter().map(|x| (x - mean).powi(2)).sum();
    (mean, squares / xs.len() as f64, squares / (xs.len() - 1) as f64)
}

#[test]
fn the_reference_moves_by_the_formulas() {
    let shape = Shape::new(&[4, 3, 5], 1).unwrap();
    let mut inputs = Inputs::<f64>::new(&shape, Epilogue::PLAIN, 3);
    let train = |inputs: &Inputs<f64>| {
        run::forward(&Reference, inputs, Mode::Train(Some(FACTOR)), None).unwrap()
    };
    let near = |got: f64, right: f64| assert!((got - right).abs() < 1e-12, "{got}, {right}");
    let blend = |old: f64, new: f64, factor: f64| (1.0 - factor) * old + factor * new;
    for (variance, var_factor) in [(Variance::Biased, 0.75), (Variance::Unbiased, 0.0)] {
        inputs.rules = Rules { variance, var_factor: Some(var_factor), ..Rules::default() };
        let got = train(&inputs);
        let moved = got["running_mean"].iter().zip(&got["running_var"]);
        for (c, (got_mean, got_var)) in moved.enumerate() {
            let (mean, biased, unbiased) = moments(&inputs, c);
            let var = if variance == Variance::Biased { biased } else { unbiased };
            near(*got_mean, blend(inputs.mean[c], mean, FACTOR));
            near(*got_var, blend(inputs.var[c], var, var_factor));
        }
    }
    // 10 batches with this one, of which a channel has skipped 6.
    let skips = Rules { non_finite: NonFinite::Skip, skipped: Some(6.0), ..Rules::default() };
    inputs.rules = Rules { averages: true, ..skips };
    let got = run::forward(&Reference, &inputs, Mode::Train(Some(0.1)), None).unwrap();
    let (mean, _, unbiased) = moments(&inputs, 1);
    near(got["running_mean"][1], blend(inputs.mean[1], mean, 0.25));
    near(got["running_var"][1], blend(inputs.var[1], unbiased, 0.25));
    assert_eq!(got["skipped"], [6.0; 3]);
}

/// An infinity, a NaN, and a variance beyond the type; what else there is stays bit for bit as without.
fn what_is_not_finite_is_skipped_in_its_channel_alone<G: Engine>(engine: &G) {
    let shape = Shape::new(&[6, 4, 9], 1).unwrap();
    let clean = Inputs::<f32>::new(&shape, Epilogue::PLAIN, 7);
    let skips = Rules { non_finite: NonFinite::Skip, skipped: Some(0.0), ..Rules::default() };
    let mode = Mode::Train(Some(FACTOR));
    for values in [[f32::NAN, 1.0], [f32::INFINITY, f32::NEG_INFINITY], [3e38, -3e38]] {
        let mut inputs = Inputs { rules: skips, ..clean.clone() };
        // The last two values of channel 2.
        let last = (0..shape.len()).rev().filter(|&i| channel_of(&shape, i) == 2);
        last.zip(values).for_each(|(i, value)| inputs.x[i] = value);
        let Some(got) = served(run::forward(engine, &inputs, mode, None)) else { return };
        let without = Inputs { rules: skips, ..clean.clone() };
        let without = run::forward(engine, &without, mode, None).unwrap();
        assert_eq!(got["skipped"], [0.0, 0.0, 1.0, 0.0], "{values:?}");
        for c in [0, 1, 3] {
            assert_eq!(got["running_mean"][c], without["running_mean"][c]);
            assert_eq!(got["running_var"][c], without["running_var"][c]);
        }
        let before = (f64::from(clean.mean[2]), f64::from(clean.var[2]));
        assert_eq!((got["running_mean"][2], got["running_var"][2]), before, "{values:?}");
        // y is what it is without the rule.
        inputs.rules = Rules::default();
        let follows = run::forward(engine, &inputs, mode, None).unwrap();
        for (got, right) in got["y"].iter().zip(&follows["y"]) {
            let near = (got - right).abs() < 1e-6 || got.is_nan() && right.is_nan();
            assert!(near, "{values:?}: {got}, {right}");
        }
        assert!(!(follows["running_mean"][2].is_finite() && follows["running_var"][2].is_finite()));
    }
}

/// Feeds a layer, and says what its running statistics are then.
fn feed<G: Engine>(bn: &mut BatchNorm<f64, G>, shape: &Shape, x: &[f64]) -> Option<Vec<f64>> {
    feed_by(bn, shape, x, None)
}
fn feed_by<G: Engine>(
    bn: &mut BatchNorm<f64, G>,
    shape: &Shape,
    x: &[f64],
    places: Option<&[u8]>,
) -> Option<Vec<f64>> {
    let engine = bn.engine().clone();
    let x = up(&engine, x);
    let done = match places.map(|places| up(&engine, places)) {
        None => bn.forward(shape, view::<G, f64>(&x)),
        Some(places) => {
            bn.forward_masked(shape, view::<G, f64>(&x), Mask::new(view::<G, u8>(&places)))
        }
    };
    served(done)?;
    let running = bn.running().unwrap();
    Some([down(&engine, &running.mean), down(&engine, &running.var)].concat())
}

fn near(got: &[f64], right: &[f64]) {
    let max = right.iter().fold(0.0, |max: f64, v| max.max(v.abs()));
    let bar = tolerance(batchnorm::DType::F64, Kind::Statistic, max, 0.0);
    let near = got.iter().zip(right).all(|(got, right)| (got - right).abs() <= bar);
    assert!(near && got.len() == right.len(), "{got:?}, expected {right:?}");
}

/// In a channel with a batch that was not finite: as if that batch had not been. By a mask, where a value that counts was
/// not.
fn averages_leave_out_what_is_skipped<G: Engine>(engine: &G) {
    let shape = small();
    let places: Vec<u8> = (0..shape.per_channel()).map(|place| (place % 5 != 2).into()).collect();
    let config = Config::default().momentum(Momentum::Average).non_finite(NonFinite::Skip);
    for places in [None, Some(&places[..])] {
        let mut bn = BatchNorm::<f64, G>::new(engine, 3, config).unwrap();
        let mut without = BatchNorm::<f64, G>::new(engine, 3, config).unwrap();
        for seed in 0..5 {
            let mut x = numbers::<f64>(shape.len(), seed);
            if places.is_some() {
                x[6] = f64::INFINITY; // channel 1, at a place that does not count
            }
            if [0, 3].contains(&seed) {
                x[5] = f64::NAN; // channel 1
            } else if feed_by(&mut without, &shape, &x, places).is_none() {
                return;
            }
            if feed_by(&mut bn, &shape, &x, places).is_none() {
                return;
            }
        }
        let of = |bn: &BatchNorm<f64, G>| {
            let running = bn.running().unwrap();
            let channel = |buf| down::<G, f64>(engine, buf)[1];
            [channel(&running.mean), channel(&running.var)]
        };
        near(&of(&bn), &of(&without));
        assert!(of(&bn).iter().all(|value| value.is_finite()));
        assert_eq!(bn.running().unwrap().num_batches_tracked, 5);
        assert_eq!(bn.skipped_updates().unwrap(), [0, 2, 0]);
    }
}

fn one_value_per_channel_gives_the_bias<G: Engine>(engine: &G) {
    let shape = Shape::new(&[1, 5], 1).unwrap();
    let mut inputs = Inputs::<f32>::new(&shape, Epilogue::PLAIN, 9);
    let mode = Mode::Train(Some(FACTOR));
    let refused = run::forward(engine, &inputs, mode, None).unwrap_err();
    assert!(matches!(refused, Error::Invalid { what: "x", .. }), "{refused}");
    for one_value in [OneValue::ZeroVariance, OneValue::KeepVariance] {
        for variance in [Variance::Biased, Variance::Unbiased] {
            inputs.rules = Rules { one_value, variance, ..Rules::default() };
            let mut saved = run::SavedOn::<G, f32>::new();
            let got = served(run::forward(engine, &inputs, mode, Some(&mut saved)));
            let Some(got) = got else { return };
            judge("one value", f32::DTYPE, &shape, &got, &oracle::forward(&inputs, mode));
            assert_eq!(got["y"], run::widen(&inputs.bias));
            let kept = one_value == OneValue::KeepVariance;
            let share = if kept { 1.0 } else { 1.0 - FACTOR };
            for (got, before) in got["running_var"].iter().zip(&inputs.var) {
                assert!((got - share * f64::from(*before)).abs() < 1e-6, "{one_value:?}");
            }
            let got = run::backward(engine, &inputs, Want::all(inputs.epilogue), &saved, None);
            let Some(got) = served(got) else { return };
            assert_eq!(got["grad_x"], [0.0; 5]);
        }
    }
    // Without running statistics, too, where evaluation is by the batch.
    inputs.rules = Rules { one_value: OneValue::ZeroVariance, ..Rules::default() };
    let got = run::forward(engine, &inputs, Mode::Train(None), None).unwrap();
    assert_eq!(got["y"], run::widen(&inputs.bias));
}

fn a_batch_without_values_is_what_the_rule_says<G: Engine>(engine: &G) {
    for dims in [&[0, 5, 7], &[4, 5, 0]] {
        let shape = Shape::new(dims, 1).unwrap();
        let mut inputs = Inputs::<f32>::new(&shape, Epilogue::PLAIN, 9);
        let mode = Mode::Train(Some(FACTOR));
        let Some(kept) = served(run::forward(engine, &inputs, mode, None)) else { return };
        assert_eq!(kept["running_mean"], run::widen(&inputs.mean));
        inputs.rules.empty_batch = EmptyBatch::Nan;
        let got = run::forward(engine, &inputs, mode, None).unwrap();
        assert!(["running_mean", "running_var"].iter().all(|n| got[n].iter().all(|v| v.is_nan())));
        inputs.rules = Rules { non_finite: NonFinite::Skip, skipped: Some(1.0), ..inputs.rules };
        let got = run::forward(engine, &inputs, mode, None).unwrap();
        assert_eq!(got["running_var"], run::widen(&inputs.var));
        assert_eq!(got["skipped"], [2.0; 5]);
    }
}

/// The hidden sums and the counter that Haiku keeps, beside the average that is kept here.
fn a_debiased_average_is_haikus<G: Engine>(engine: &G) {
    let shape = small();
    for decay in [0.0, 0.9, 0.999_999] {
        let momentum = Momentum::Debiased { decay };
        let mut bn = BatchNorm::<f64, G>::new(engine, 3, Config::haiku(decay)).unwrap();
        let mut hidden = vec![0.0; 6];
        for n in 1..=6 {
            let x = numbers::<f64>(shape.len(), n);
            let Some(got) = feed(&mut bn, &shape, &x) else { return };
            let record = Inputs { x, ..Inputs::new(&shape, Epilogue::PLAIN, n) };
            let record = run::stats(&Reference, &record).unwrap();
            let batch = [&record[..3], &record[6..9]].concat();
            for (hidden, batch) in hidden.iter_mut().zip(batch) {
                *hidden = decay * *hidden + (1.0 - decay) * batch;
            }
            let right: Vec<f64> =
                hidden.iter().map(|hidden| hidden / momentum.bias_correction(n)).collect();
            near(&got, &right);
            // Haiku's state from here on another layer: average and counter.
            let counter = bn.running().unwrap().num_batches_tracked;
            assert_eq!(counter, n);
            let exported = got.iter().map(|average| average * momentum.bias_correction(counter));
            near(&exported.collect::<Vec<_>>(), &hidden);
        }
        // An empty batch is none.
        let empty = Shape::new(&[0, 3], 1).unwrap();
        if feed(&mut bn, &empty, &[]).is_some() {
            assert_eq!(bn.running().unwrap().num_batches_tracked, 6);
        }
    }
}

fn a_forward_may_leave_running_statistics_alone<G: Engine>(engine: &G) {
    let (shape, x) = (small(), numbers::<f64>(small().len(), 1));
    let mut bn = BatchNorm::<f64, G>::new(engine, 3, Config::default()).unwrap();
    let before = feed(&mut bn, &shape, &x).unwrap();
    let again = numbers::<f64>(shape.len(), 2);
    let mut other = bn.to(engine).unwrap();
    bn.update_running_stats(false);
    assert!(!bn.to(engine).unwrap().updates_running_stats());
    assert_eq!(feed(&mut bn, &shape, &again), Some(before.clone()));
    assert_eq!(bn.running().unwrap().num_batches_tracked, 1);
    // By the batch all the same.
    let up = up(engine, &again);
    let (y, _) = bn.forward(&shape, view::<G, f64>(&up)).unwrap();
    let (right, _) = other.forward(&shape, view::<G, f64>(&up)).unwrap();
    assert_eq!(down::<G, f64>(engine, &y), down::<G, f64>(engine, &right));
    bn.update_running_stats(true);
    assert_ne!(feed(&mut bn, &shape, &again), Some(before));
    assert_eq!(bn.running().unwrap().num_batches_tracked, 2);
}

fn skipped_updates_are_told<G: Engine>(engine: &G) {
    let shape = small();
    let config = Config::default().non_finite(NonFinite::Skip);
    let mut bn = BatchNorm::<f64, G>::new(engine, 3, config).unwrap();
    let good = numbers::<f64>(shape.len(), 1);
    let mut bad = good.clone();
    (bad[5], bad[8]) = (f64::NAN, f64::INFINITY); // channels 1 and 2
    let Some(before) = feed(&mut bn, &shape, &good) else { return };
    assert_eq!(bn.check_skipped_updates(), Ok(()));
    let after = feed(&mut bn, &shape, &bad).unwrap();
    feed(&mut bn, &shape, &bad).unwrap();
    assert_eq!([&before[1..3], &before[4..]], [&after[1..3], &after[4..]]);
    let error = Error::NonFinite { channels: 2, first: 1, updates: 4 };
    assert_eq!(bn.check_skipped_updates(), Err(error));
    // Once.
    assert_eq!(bn.check_skipped_updates(), Ok(()));
    assert_eq!(bn.skipped_updates().unwrap(), [0, 2, 2]);
    assert_eq!(bn.to(&Reference).unwrap().skipped_updates().unwrap(), [0, 2, 2]);
    feed(&mut bn, &shape, &bad).unwrap();
    let error = Error::NonFinite { channels: 2, first: 1, updates: 2 };
    assert_eq!(bn.check_skipped_updates(), Err(error));
    bn.reset_running_stats().unwrap();
    assert_eq!(bn.skipped_updates().unwrap(), [0; 3]);
    // Counted anew: fewer than were told before the reset.
    feed(&mut bn, &shape, &bad).unwrap();
    let error = Error::NonFinite { channels: 2, first: 1, updates: 2 };
    assert_eq!(bn.check_skipped_updates(), Err(error));
    bn.reset_running_stats().unwrap();
    assert_eq!(bn.check_skipped_updates(), Ok(()));
    // A layer that skips nothing has nothing to tell.
    let bn = BatchNorm::<f64, G>::new(engine, 3, Config::default()).unwrap();
    assert_eq!(bn.skipped_updates().unwrap(), [0; 3]);
}

fn a_weight_of_the_variance_without_a_meaning_is_refused<G: Engine>(engine: &G) {
    for var_factor in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
        let mut inputs = Inputs::<f32>::new(&small(), Epilogue::PLAIN, 1);
        inputs.rules.var_factor = Some(var_factor);
        let error = run::forward(engine, &inputs, Mode::Train(Some(FACTOR)), None).unwrap_err();
        let expected = format!("momentum: expected 0 to 1, got {var_factor}");
        assert_eq!(error.to_string(), expected);
        let running = Some((&inputs.mean[..], &inputs.var[..], FACTOR));
        let records = [vec![0.5; 9], vec![7.0]].concat();
        let error = run::merge_stats_by(engine, &records, 3, running, inputs.rules).unwrap_err();
        assert_eq!(error.to_string(), expected);
    }
}

#[test]
fn numbers_without_a_meaning_are_refused_by_name() {
    let refused =
        |config: Config| BatchNorm::<f32, _>::new(&Reference, 3, config).unwrap_err().to_string();
    let momentum = |momentum| refused(Config::default().momentum(momentum));
    let separate = |mean, var| momentum(Momentum::Separate { mean, var });
    assert_eq!(separate(-0.5, 0.1), "momentum: expected 0 to 1, got -0.5");
    assert_eq!(separate(0.5, 1.5), "momentum: expected 0 to 1, got 1.5");
    for decay in ["1", "-0.1", "NaN"] {
        let message = format!("momentum: decay: expected at least 0 and less than 1, got {decay}");
        assert_eq!(momentum(Momentum::Debiased { decay: decay.parse().unwrap() }), message);
    }
    let both = refused(Config::haiku(0.9).non_finite(NonFinite::Skip));
    assert!(both.starts_with("non_finite: expected propagate with a debiased momentum"), "{both}");
    let mut bn =
        BatchNorm::<f32, _>::new(&Reference, 3, Config::default().non_finite(NonFinite::Skip))
            .unwrap();
    assert!(bn.set_momentum(Momentum::Debiased { decay: 0.9 }).is_err());
}
