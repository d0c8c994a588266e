//! Batch renormalization beside its definition in f64; golden cases have Keras' and the paper's numbers.
use crate::support::engines::engines;
use crate::support::layer::*;
use crate::support::tolerance::Kind;
use batchnorm::*;
use half::{bf16, f16};

engines! { [reference, cpu, cuda, gpu] [
    every_step_is_the_definition,
    statistics_stay_where_they_are_told_to,
    calls_into_memory_and_in_place_have_the_same_bits,
    what_is_saved_belongs_to_the_last_forward,
    parameters_that_want_no_gradient_get_none,
    state_moves_by_its_names,
    an_empty_batch_follows_the_rule,
    a_population_sets_what_is_kept,
] }
#[cfg(all(feature = "cudnn", target_os = "linux"))]
engines! { [cudnn] [an_engine_without_it_refuses_and_changes_nothing] }

/// Mean and `sqrt(var + eps)` of every channel.
fn moments(shape: &Shape, x: &[f64], eps: f64) -> (Vec<f64>, Vec<f64>) {
    let of = |c: usize| {
        let xs =
            || (0..x.len()).filter(|i| i / shape.inner() % shape.channels() == c).map(|i| x[i]);
        let m = shape.per_channel() as f64;
        let mean = xs().sum::<f64>() / m;
        (mean, (xs().map(|x| (x - mean).powi(2)).sum::<f64>() / m + eps).sqrt())
    };
    (0..shape.channels()).map(of).unzip()
}

/// The kept statistics, by the formulas.
struct Kept {
    mean: Vec<f64>,
    stddev: Vec<f64>,
    renorm_mean: Vec<f64>,
    renorm_stddev: Vec<f64>,
}

impl Kept {
    /// r and d of a batch, and what it moves.
    fn step(&mut self, config: &Config, mean: &[f64], stddev: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let renorm = config.renorm.unwrap();
        let (factor, _) = config.momentum.factors(0);
        let RenormClip { r_min, r_max, d_max, .. } = renorm.clip;
        let mut both = (vec![], vec![]);
        for c in 0..mean.len() {
            let (by_mean, by) = match renorm.momentum {
                Some(_) => (self.renorm_mean[c], self.renorm_stddev[c]),
                None => (self.mean[c], self.stddev[c]),
            };
            let by = by.max(config.eps.sqrt());
            let r = (stddev[c] / by).max(r_min.unwrap_or(0.0)).min(r_max.unwrap_or(f64::INFINITY));
            let d_max = d_max.unwrap_or(f64::INFINITY);
            both.0.push(r);
            both.1.push(((mean[c] - by_mean) / by).clamp(-d_max, d_max));
            let own = renorm.momentum.unwrap_or(0.0);
            for (to, new, factor) in [
                (&mut self.mean[c], mean[c], factor),
                (&mut self.stddev[c], stddev[c], factor),
                (&mut self.renorm_mean[c], mean[c], own),
                (&mut self.renorm_stddev[c], stddev[c], own),
            ] {
                *to = (1.0 - factor) * *to + factor * new;
            }
        }
        both
    }
}

fn kept<P: Real, G: Engine>(bn: &BatchNorm<P, G>) -> Vec<Vec<P>> {
    let running = bn.running().unwrap();
    let RenormStats { moving_stddev, renorm_mean, renorm_stddev, .. } =
        running.renorm.as_ref().unwrap();
    let all = [Some(&running.mean), Some(&running.var), Some(moving_stddev)];
    let all = all.into_iter().chain([renorm_mean.as_ref(), renorm_stddev.as_ref()]);
    all.flatten().map(|buf| down::<G, P>(bn.engine(), buf)).collect()
}

fn wide_values<P: Real, G: Engine>(bn: &BatchNorm<P, G>, name: &str, absent: f64) -> Vec<f64> {
    let found = snapshot(bn).values.into_iter().find(|(n, _)| *n == name);
    found.map_or(vec![absent; bn.channels()], |(_, values)| wide(&values))
}

fn every_step_is_the_definition<G: Engine>(engine: &G) {
    fn one<E: Element, G: Engine>(engine: &G, shape: Shape, config: Config) {
        let (len, m) = (shape.len(), shape.per_channel());
        let mut bn: BatchNorm<E::Acc, G> = layer(engine, config);
        let mut plain = config;
        plain.renorm = None;
        let mut right: BatchNorm<f64, Reference> = layer(&Reference, plain);
        let (weight, bias) = (wide_values(&bn, "weight", 1.0), wide_values(&bn, "bias", 0.0));
        let (zeros, ones) = (vec![0.0; 3], vec![1.0; 3]);
        let mut state = Kept {
            mean: zeros.clone(),
            stddev: ones.clone(),
            renorm_mean: zeros.clone(),
            renorm_stddev: ones,
        };
        let (mut grad_weight, mut grad_bias) = (zeros.clone(), zeros);
        for step in 0..3 {
            let [x, residual, grad_y] = [1, 2, 3].map(|seed| numbers::<E>(len, step * 10 + seed));
            let (mean, stddev) = moments(&shape, &wide(&x), config.eps);
            let (r, d) = state.step(&config, &mean, &stddev);
            let both = [
                weight.iter().zip(&r).map(|(w, r)| w * r).collect::<Vec<_>>(),
                (0..3).map(|c| weight[c] * d[c] + bias[c]).collect(),
            ];
            for ((_, param), value) in right.named_parameters_mut().zip(both) {
                param.value = value;
            }
            let wides = [wide(&x), wide(&residual), wide(&grad_y)];
            let (right_y, saved) = right.forward_add(&shape, &wides[0], &wides[1]).unwrap();
            right.zero_grad();
            let (right_x, right_residual) =
                right.backward_add(&saved, &wides[0], Some(&wides[1]), &wides[2]).unwrap();
            let sums = [grad(&right, "weight").unwrap(), grad(&right, "bias").unwrap()];
            for c in 0..3 {
                grad_weight[c] += r[c] * sums[0][c] + d[c] * sums[1][c];
                grad_bias[c] += sums[1][c];
            }

            let [x, residual, grad_y] = [x, residual, grad_y].map(|values| up(engine, &values));
            let views = || [&x, &residual, &grad_y].map(view::<G, E>);
            let [x_view, residual_view, _] = views();
            let (y, saved) = bn.forward_add(&shape, x_view, residual_view).unwrap();
            assert_eq!((saved.is_frozen(), saved.shape()), (Some(false), Some(shape)));
            let [x_view, residual_view, grad_view] = views();
            let (grad_x, grad_residual) =
                bn.backward_add(&saved, x_view, Some(residual_view), grad_view).unwrap();
            assert_near(&down::<G, E>(engine, &y), &right_y, Kind::Element);
            assert_near(&down::<G, E>(engine, &grad_x), &right_x, Kind::Element);
            assert_near(&down::<G, E>(engine, &grad_residual), &right_residual, Kind::Element);
        }
        let var = state.stddev.iter().map(|s| (s * s - config.eps).max(0.0)).collect();
        let all = [state.mean, var, state.stddev, state.renorm_mean, state.renorm_stddev];
        for (got, right) in kept(&bn).iter().zip(&all) {
            assert_near(got, right, Kind::Statistic);
        }
        assert_eq!(snapshot(&bn).running.unwrap().2, 3);
        if let Some(got) = bn.weight().map(|_| grad(&bn, "weight").unwrap()) {
            assert_near(&got, &grad_weight, Kind::Sum(3 * m));
        }
        assert_near(&grad(&bn, "bias").unwrap(), &grad_bias, Kind::Sum(3 * m));
    }
    let leaky = Config::default().activation(Activation::LeakyRelu { negative_slope: 0.25 });
    let clipped = RenormClip::NONE.r_min(0.75).r_max(1.1).d_max(0.5);
    let (keras, paper) = (Renorm::keras().momentum(0.25), Renorm::paper(1.5, 0.25));
    for (dims, axis) in [(&[4, 3, 2, 2][..], 1), (&[5, 7, 3], 2), (&[9, 3], 1), (&[3, 40], 0)] {
        let shape = Shape::new(dims, axis).unwrap();
        one::<f32, G>(engine, shape, leaky.renorm(keras));
        one::<f32, G>(engine, shape, leaky.renorm(keras.clip(clipped)).eps(1e-3));
        one::<f64, G>(engine, shape, Config::default().renorm(paper));
        one::<f16, G>(engine, shape, Config::default().activation(Activation::Silu).renorm(paper));
        one::<bf16, G>(engine, shape, leaky.renorm(keras.clip(clipped)));
    }
}

fn renormalizing<G: Engine>(engine: &G) -> BatchNorm<f32, G> {
    layer(engine, Config::default().activation(Activation::Relu).renorm(Renorm::keras()))
}

fn statistics_stay_where_they_are_told_to<G: Engine>(engine: &G) {
    let (shape, x) = (small(), numbers::<f32>(small().len(), 1));
    let mut bn = renormalizing(engine);
    let before = kept(&bn);
    bn.update_running_stats(false);
    let (y, _) = forward(&mut bn, &shape, &x).unwrap();
    assert_eq!((kept(&bn), snapshot(&bn).running.unwrap().2), (before.clone(), 0));
    bn.update_running_stats(true);
    assert_eq!(forward(&mut bn, &shape, &x).unwrap().0, y);
    assert_ne!(kept(&bn), before);
    let on_reference = bn.to(&Reference).unwrap();
    assert_eq!(kept(&on_reference), kept(&bn));
    bn.reset_running_stats().unwrap();
    assert_eq!(kept(&bn), before);
}

fn calls_into_memory_and_in_place_have_the_same_bits<G: Engine>(engine: &G) {
    let (shape, x) = (small(), numbers::<f32>(small().len(), 1));
    let grad_y = numbers::<f32>(shape.len(), 2);
    let mut bn = renormalizing(engine);
    bn.update_running_stats(false);
    let (y, mut saved) = forward(&mut bn, &shape, &x).unwrap();
    let grad_x = backward(&mut bn, &saved, &x, &grad_y).unwrap();
    let grads = snapshot(&bn).grads;
    bn.zero_grad();
    let (x, mut to_y) = (up(engine, &x), up(engine, &vec![0f32; shape.len()]));
    bn.forward_into(&shape, view::<G, f32>(&x), None, view_mut::<G, f32>(&mut to_y), &mut saved)
        .unwrap();
    let mut grad = up(engine, &grad_y);
    let in_place = Some(view_mut::<G, f32>(&mut grad));
    bn.backward_into(&saved, view::<G, f32>(&x), None, Input::InPlace, in_place, None).unwrap();
    assert_eq!(down::<G, f32>(engine, &to_y), y);
    assert_eq!(down::<G, f32>(engine, &grad), grad_x);
    assert_eq!(snapshot(&bn).grads, grads);
}

fn what_is_saved_belongs_to_the_last_forward<G: Engine>(engine: &G) {
    let (shape, x) = (small(), numbers::<f32>(small().len(), 1));
    let mut bn = renormalizing(engine);
    let (_, mut saved) = forward(&mut bn, &shape, &x).unwrap();
    bn.eval();
    let (on_engine, mut y) = (up(engine, &x), up(engine, &x));
    bn.forward_into(
        &shape,
        view::<G, f32>(&on_engine),
        None,
        view_mut::<G, f32>(&mut y),
        &mut saved,
    )
    .unwrap();
    assert_eq!(saved.is_frozen(), Some(true));
    let got = backward(&mut bn, &saved, &x, &x).unwrap();
    let grads = snapshot(&bn).grads;
    bn.zero_grad();
    let (_, fresh) = forward(&mut bn, &shape, &x).unwrap();
    assert_eq!(got, backward(&mut bn, &fresh, &x, &x).unwrap());
    assert_eq!(grads, snapshot(&bn).grads);
}

fn parameters_that_want_no_gradient_get_none<G: Engine>(engine: &G) {
    let (shape, x) = (small(), numbers::<f32>(small().len(), 1));
    for frozen in [["weight", "none"], ["bias", "none"], ["weight", "bias"]] {
        let (mut bn, mut all) = (renormalizing(engine), renormalizing(engine));
        for (name, param) in bn.named_parameters_mut() {
            param.requires_grad = !frozen.contains(&name);
        }
        let gradients = |bn: &mut BatchNorm<f32, G>| {
            let (_, saved) = forward(bn, &shape, &x).unwrap();
            backward(bn, &saved, &x, &x).unwrap()
        };
        assert_eq!(gradients(&mut bn), gradients(&mut all));
        for name in ["weight", "bias"] {
            let right = grad(&all, name).filter(|_| !frozen.contains(&name));
            assert_eq!(grad(&bn, name), right, "{name}");
        }
    }
}

fn state_moves_by_its_names<G: Engine>(engine: &G) {
    let (shape, x) = (small(), numbers::<f32>(small().len(), 1));
    let mut bn = renormalizing(engine);
    forward(&mut bn, &shape, &x).unwrap();
    let values = bn.values(Order::KERAS).unwrap();
    let names: Vec<_> = values.iter().map(|(name, _)| *name).collect();
    let right = ["gamma", "beta", "moving_mean", "moving_variance"];
    assert_eq!(names, [&right[..], &["moving_stddev", "renorm_mean", "renorm_stddev"]].concat());
    let mut other = renormalizing(engine);
    let all: Vec<_> = values.iter().map(|(_, values)| &values[..]).collect();
    other.set_values(Order::KERAS, &all).unwrap();
    assert_eq!(kept(&other), kept(&bn));
    // Those of a plain layer.
    let plain = [&[2.0f32, 3.0, 4.0][..], &[0.0; 3], &[0.5, -1.0, 3.0], &[0.0, 0.25, 4.0]];
    other.set_values(Order::KERAS, &plain).unwrap();
    let stddev = plain[3].iter().map(|v| (f64::from(*v) + 1e-5).sqrt()).collect::<Vec<_>>();
    let got = kept(&other);
    assert_eq!((&got[0][..], &got[1][..], &got[3][..]), (plain[2], plain[3], plain[2]));
    assert_near(&got[2], &stddev, Kind::Statistic);
    assert_near(&got[4], &stddev, Kind::Statistic);
    let error = other.set_values(Order::KERAS, &plain[..3]).unwrap_err().to_string();
    assert!(error.starts_with("values: expected the 7 of gamma, beta"), "{error}");

    #[cfg(feature = "safetensors")]
    {
        let dict = bn.state_dict("bn.").unwrap();
        let mut other = renormalizing(engine);
        assert!(other.load_state_dict(&dict, "bn.", Strict::Yes).unwrap().is_empty());
        assert_eq!(kept(&other), kept(&bn));
        let mut of_plain: BatchNorm<f32, G> = layer(engine, Config::default());
        let error = of_plain.load_state_dict(&dict, "bn.", Strict::Yes).unwrap_err().to_string();
        assert!(error.contains("unexpected bn.moving_stddev, bn.renorm_mean"), "{error}");
        of_plain.running_mut().unwrap().mean = up(engine, plain[2]);
        of_plain.running_mut().unwrap().var = up(engine, plain[3]);
        let dict = of_plain.state_dict("").unwrap();
        other.load_state_dict(&dict, "", Strict::Yes).unwrap();
        assert_eq!(kept(&other), got);
    }
}

fn a_population_sets_what_is_kept<G: Engine>(engine: &G) {
    let mut population = PopulationStatistics::new(engine, 3, PopulationRule::Exact).unwrap();
    let x = up(engine, &numbers::<f32>(small().len(), 1));
    population.add(engine, &small(), view::<G, f32>(&x)).unwrap();
    let mut bn = renormalizing(engine);
    population.apply_to(&mut bn).unwrap();
    let got = kept(&bn);
    let stddev: Vec<f64> = got[1].iter().map(|v| (f64::from(*v) + 1e-5).sqrt()).collect();
    assert_eq!(got[3], got[0]);
    assert_near(&got[2], &stddev, Kind::Statistic);
    assert_near(&got[4], &stddev, Kind::Statistic);
}

fn an_empty_batch_follows_the_rule<G: Engine>(engine: &G) {
    let shape = Shape::new(&[0, 3], 1).unwrap();
    let config = Config::default().renorm(Renorm::paper(2.0, 1.0));
    let mut bn: BatchNorm<f32, G> = layer(engine, config);
    let before = kept(&bn);
    let (y, saved) = forward(&mut bn, &shape, &[] as &[f32]).unwrap();
    assert_eq!((y.len(), kept(&bn), snapshot(&bn).running.unwrap().2), (0, before, 1));
    backward(&mut bn, &saved, &[] as &[f32], &[]).unwrap();
    assert_eq!(grad(&bn, "weight").unwrap(), [0.0; 3]);
    let mut bn: BatchNorm<f32, G> = layer(engine, config.empty_batch(EmptyBatch::Nan));
    forward(&mut bn, &shape, &[] as &[f32]).unwrap();
    assert!(kept(&bn).iter().flatten().all(|value| value.is_nan()));
}

#[cfg(all(feature = "cudnn", target_os = "linux"))]
fn an_engine_without_it_refuses_and_changes_nothing<G: Engine>(engine: &G) {
    let (shape, x) = (small(), numbers::<f32>(small().len(), 1));
    let mut bn = renormalizing(engine);
    let before = kept(&bn);
    let error = forward(&mut bn, &shape, &x).err().unwrap();
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    assert_eq!(kept(&bn), before);
    bn.eval();
    forward(&mut bn, &shape, &x).map_or_else(|e| assert!(e.to_string().contains("cudnn")), drop);
}

#[test]
fn bounds_and_rules_are_refused_in_words() {
    let config = Config::default();
    let of = |clip| config.renorm(Renorm::keras().clip(clip));
    for (config, message) in [
        (of(RenormClip::NONE.r_max(0.5)), "r_max: expected at least 1, got 0.5"),
        (of(RenormClip::NONE.r_max(f64::NAN)), "r_max: expected at least 1, got NaN"),
        (of(RenormClip::NONE.r_min(1.5)), "r_min: expected 0 to 1, got 1.5"),
        (of(RenormClip::NONE.r_min(-0.5)), "r_min: expected 0 to 1, got -0.5"),
        (of(RenormClip::NONE.d_max(-1.0)), "d_max: expected at least 0, got -1"),
        (config.renorm(Renorm::keras().momentum(2.0)), "momentum: expected 0 to 1, got 2"),
        (
            config.renorm(Renorm::keras()).track_running_stats(false),
            "renorm: expected a layer that keeps the statistics of every whole batch, got a layer that keeps no \
             running statistics",
        ),
        (
            config.renorm(Renorm::keras()).ghost(Ghost::consecutive(2)),
            "renorm: expected a layer that keeps the statistics of every whole batch, got ghost batches",
        ),
        (
            config.renorm(Renorm::keras()).non_finite(NonFinite::Skip),
            "renorm: expected a layer that keeps the statistics of every whole batch, got non_finite=skip",
        ),
    ] {
        let error = BatchNorm::<f32, _>::new(&Reference, 3, config).err().unwrap();
        assert_eq!(error.to_string(), message);
    }
    let mut bn = renormalizing(&Reference);
    let error = bn.set_renorm_clip(RenormClip::paper(0.5, 1.0)).unwrap_err().to_string();
    assert_eq!(error, "r_max: expected at least 1, got 0.5");
    assert_eq!(bn.config().renorm, Some(Renorm::keras()));
    assert!(bn.to_string().ends_with("renorm=(momentum=0.01))"), "{bn}");
    let x = numbers::<f32>(small().len(), 1);
    let error = bn.forward_parts(&[(small(), &x[..])]).err().unwrap().to_string();
    assert_eq!(error, "renorm: expected a layer without it for a list of inputs, got one with it");
    let mut plain: BatchNorm<f32, _> = layer(&Reference, config);
    let error = plain.set_renorm_clip(RenormClip::NONE).unwrap_err().to_string();
    assert_eq!(error, "renorm: expected a layer with renormalization, got one without");
}

#[test]
fn wrong_lengths_of_an_operation_are_refused() {
    let record = [3.0, 0.0, 4.0, 8.0];
    let (long, mut state) = ([0f32; 2], [[1f32]; 7]);
    for fault in 0..10 {
        let mut faulty = [0f32; 2];
        let [mean, stddev, var, scale, shift, r, d] = &mut state;
        let mut all: Vec<&mut [f32]> = vec![mean, stddev, var, scale, shift, r, d];
        if let 1..7 = fault {
            all[fault] = &mut faulty;
        }
        let [mean, stddev, var, scale, shift, r, d] = all.try_into().unwrap();
        let kept = RenormState::<Host, f32>::new(mean, stddev, var, 0.5);
        let record = if fault == 7 { &record[1..] } else { &record[..] };
        let mut args = Renormalize::new(record, kept, [scale, shift], [r, d]);
        args.weight = (fault == 8).then_some(&long[..]);
        args.bias = (fault == 9).then_some(&long[..]);
        let refused =
            [Reference.renormalize(args.reborrow()).err(), Cpu::default().renormalize(args).err()];
        for error in refused {
            assert_eq!(error.is_some(), fault != 0, "{fault}: {error:?}");
            assert!(error.is_none_or(|error| matches!(error, Error::Length { .. })));
        }
    }
}
