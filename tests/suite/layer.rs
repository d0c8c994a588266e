//! The layer's modes, running statistics and forms; parameters are in `parameters.rs`.
use crate::support::engines::engines;
use crate::support::layer::*;
use crate::support::tolerance::Kind;
use batchnorm::*;
use half::{bf16, f16};

engines! { [reference, cpu, cuda, gpu] [
    training_follows_the_batch,
    evaluation_uses_running_statistics_and_leaves_them,
    without_running_statistics_evaluation_uses_the_batch,
    one_f32_layer_serves_f16_bf16_and_f32,
    f64_layers_serve_f64,
    frozen_gradients_flow_through_running_statistics,
    statistics_that_change_before_backward_do_not_matter,
    two_forwards_before_two_backwards,
    cumulative_momentum_is_the_plain_average,
    an_empty_batch_counts_and_changes_nothing_else,
    averages_count_empty_batches_or_do_not,
    the_first_batch_of_an_average_replaces_nan,
    shapes_beyond_memory_are_refused,
    resets_restore_the_defaults,
    forms_with_and_without_memory_agree,
    residuals_are_added_and_get_their_gradient,
    evaluation_in_place,
    several_threads_evaluate_at_once,
    moved_layers_are_the_same_and_apart,
    a_living_layer_takes_another_momentum_eps_and_activation,
] }
engines! { [reference_on_host, cpu_on_host] [memory_that_is_there_is_used_again] }

fn relu() -> Config {
    Config::default().activation(Activation::Relu)
}

/// Mean and biased variance of every channel of [`small`], in f64.
fn moments<E: Element>(x: &[E]) -> Vec<(f64, f64)> {
    let channel = |c: usize| wide(x).into_iter().enumerate().filter(move |(i, _)| i / 4 % 3 == c);
    let mean = |c| channel(c).map(|(_, x)| x).sum::<f64>() / 16.0;
    let var = |c| channel(c).map(|(_, x)| (x - mean(c)).powi(2)).sum::<f64>() / 16.0;
    (0..3).map(|c| (mean(c), var(c))).collect()
}

fn training_follows_the_batch<G: Engine>(engine: &G) {
    let momentum = Momentum::Exponential(0.3);
    let mut bn = layer(engine, Config::default().momentum(momentum));
    let x: Vec<f32> = numbers(small().len(), 1);
    let (y, saved) = forward(&mut bn, &small(), &x).unwrap();
    assert_eq!(saved.is_frozen(), Some(false));

    let moments = moments(&x);
    let (mean, var, count) = snapshot(&bn).running.unwrap();
    let expected: Vec<f64> = moments.iter().map(|(mean, _)| 0.3 * mean).collect();
    assert_near(&mean, &expected, Kind::Statistic);
    let unbiased = |var| 0.7 + 0.3 * var * 16.0 / 15.0;
    let expected: Vec<f64> = moments.iter().map(|(_, var)| unbiased(var)).collect();
    assert_near(&var, &expected, Kind::Statistic);
    assert_eq!(count, 1);

    // With the batch's own statistics in the place of the running ones, evaluation is training.
    let running = bn.running_mut().unwrap();
    running.mean = up(engine, &moments.iter().map(|m| m.0 as f32).collect::<Vec<_>>());
    running.var = up(engine, &moments.iter().map(|m| m.1 as f32).collect::<Vec<_>>());
    assert_near(&y, &by_running(&bn, &small(), &x), Kind::Element);
}

fn evaluation_uses_running_statistics_and_leaves_them<G: Engine>(engine: &G) {
    let mut bn = layer(engine, Config::default());
    assert!(bn.is_training());
    let x: Vec<f32> = numbers(small().len(), 1);
    forward(&mut bn, &small(), &x).unwrap();
    // In whichever mode the layer is.
    let inferred = infer(&bn, &small(), &x).unwrap();
    bn.eval();
    assert!(!bn.is_training());
    let before = snapshot(&bn);
    let (y, saved) = forward(&mut bn, &small(), &x).unwrap();
    assert_eq!(saved.is_frozen(), Some(true));
    assert_near(&y, &by_running(&bn, &small(), &x), Kind::Element);
    assert_eq!(inferred, y);
    assert_eq!(snapshot(&bn), before);
    // One value per channel is enough.
    let one = Shape::new(&[1, 3], 1).unwrap();
    assert_near(
        &infer(&bn, &one, &x[..3]).unwrap(),
        &by_running(&bn, &one, &x[..3]),
        Kind::Element,
    );
    bn.train(true);
    assert!(bn.is_training());
    forward(&mut bn, &small(), &x).unwrap();
    assert_eq!(snapshot(&bn).running.unwrap().2, 2);
}

fn without_running_statistics_evaluation_uses_the_batch<G: Engine>(engine: &G) {
    let mut bn = layer(engine, Config::default().track_running_stats(false));
    let x: Vec<f32> = numbers(small().len(), 1);
    let (y, _) = forward(&mut bn, &small(), &x).unwrap();
    bn.eval();
    let (evaluated, saved) = forward(&mut bn, &small(), &x).unwrap();
    assert_eq!(evaluated, y);
    assert_eq!(infer(&bn, &small(), &x).unwrap(), y);
    assert_eq!(saved.is_frozen(), Some(false));
    assert!(bn.running().is_none());
}

fn one_f32_layer_serves_f16_bf16_and_f32<G: Engine>(engine: &G) {
    fn serves<E: Element<Acc = f32>, G: Engine>(bn: &mut BatchNorm<f32, G>) {
        let x: Vec<E> = numbers(small().len(), 1);
        bn.train(true);
        let (_, saved) = forward(bn, &small(), &x).unwrap();
        let grad_x = backward(bn, &saved, &x, &numbers::<E>(x.len(), 2)).unwrap();
        assert_eq!(grad_x.len(), x.len());
        bn.eval();
        let y = infer(bn, &small(), &x).unwrap();
        assert_near(&y, &by_running(bn, &small(), &x), Kind::Element);
    }
    let mut bn = layer(engine, Config::default());
    serves::<f16, G>(&mut bn);
    serves::<bf16, G>(&mut bn);
    serves::<f32, G>(&mut bn);
    assert_eq!(bn.running().unwrap().num_batches_tracked, 3);
}

fn f64_layers_serve_f64<G: Engine>(engine: &G) {
    let mut bn = layer(engine, Config::default());
    let x: Vec<f64> = numbers(small().len(), 1);
    forward(&mut bn, &small(), &x).unwrap();
    assert_near(&infer(&bn, &small(), &x).unwrap(), &by_running(&bn, &small(), &x), Kind::Element);
}

fn frozen_gradients_flow_through_running_statistics<G: Engine>(engine: &G) {
    let mut bn = layer(engine, Config::default());
    let x: Vec<f32> = numbers(small().len(), 1);
    let grad_y: Vec<f32> = numbers(x.len(), 2);
    forward(&mut bn, &small(), &x).unwrap();
    bn.eval();
    let (_, saved) = forward(&mut bn, &small(), &x).unwrap();
    bn.train(true); // the forward decides, not the mode of now
    let grad_x = backward(&mut bn, &saved, &x, &grad_y).unwrap();

    let invstd = |var: f32| 1.0 / (f64::from(var) + 1e-5).sqrt();
    let (_, var, _) = snapshot(&bn).running.unwrap();
    let slope = |i: usize| [0.5, -2.0, 1.25][i / 4 % 3] * invstd(var[i / 4 % 3]);
    let expected: Vec<f64> =
        grad_y.iter().enumerate().map(|(i, g)| slope(i) * f64::from(*g)).collect();
    assert_near(&grad_x, &expected, Kind::Element);
}

fn statistics_that_change_before_backward_do_not_matter<G: Engine>(engine: &G) {
    let mut bn = layer(engine, relu());
    let x: Vec<f32> = numbers(small().len(), 1);
    let grad_y: Vec<f32> = numbers(x.len(), 2);
    forward(&mut bn, &small(), &x).unwrap();
    for training in [false, true] {
        bn.train(training);
        let (_, saved) = forward(&mut bn, &small(), &x).unwrap();
        bn.zero_grad();
        let expected = backward(&mut bn, &saved, &x, &grad_y).unwrap();
        let grads = snapshot(&bn).grads;

        bn.train(true);
        forward(&mut bn, &small(), &numbers::<f32>(x.len(), 3)).unwrap();
        bn.running_mut().unwrap().var = up(engine, &[9.0, 9.0, 9.0]);
        bn.zero_grad();
        assert_eq!(backward(&mut bn, &saved, &x, &grad_y).unwrap(), expected);
        assert_eq!(snapshot(&bn).grads, grads);
    }
}

fn two_forwards_before_two_backwards<G: Engine>(engine: &G) {
    let (shape, other) = (small(), Shape::new(&[5, 3], 1).unwrap());
    let first: Vec<f32> = numbers(shape.len(), 1);
    let second: Vec<f32> = numbers(other.len(), 2);
    let mut bn = layer(engine, relu());
    let alone = |bn: &mut BatchNorm<f32, G>, shape: &Shape, x: &[f32]| {
        let (_, saved) = forward(bn, shape, x).unwrap();
        backward(bn, &saved, x, x).unwrap()
    };
    let expected = [alone(&mut bn, &shape, &first), alone(&mut bn, &other, &second)];
    let grads = snapshot(&bn).grads;

    bn.zero_grad();
    let (_, saved_first) = forward(&mut bn, &shape, &first).unwrap();
    let (_, saved_second) = forward(&mut bn, &other, &second).unwrap();
    let got = [
        backward(&mut bn, &saved_first, &first, &first).unwrap(),
        backward(&mut bn, &saved_second, &second, &second).unwrap(),
    ];
    assert_eq!(got, expected);
    assert_eq!(snapshot(&bn).grads, grads);
}

fn cumulative_momentum_is_the_plain_average<G: Engine>(engine: &G) {
    let config = Config::default().momentum(Momentum::Cumulative);
    let mut bn = layer(engine, config);
    let batches: Vec<Vec<f64>> = (1..=3).map(|seed| numbers(small().len(), seed)).collect();
    for x in &batches {
        forward(&mut bn, &small(), x).unwrap();
    }
    let all: Vec<_> = batches.iter().map(|x| moments(x)).collect();
    let average = |of: fn(&(f64, f64)) -> f64| -> Vec<f64> {
        (0..3).map(|c| all.iter().map(|batch| of(&batch[c])).sum::<f64>() / 3.0).collect()
    };
    let (mean, var, count) = snapshot(&bn).running.unwrap();
    assert_near(&mean, &average(|m| m.0), Kind::Statistic);
    assert_near(&var, &average(|m| m.1 * 16.0 / 15.0), Kind::Statistic);
    assert_eq!(count, 3);
}

fn an_empty_batch_counts_and_changes_nothing_else<G: Engine>(engine: &G) {
    let mut bn = layer(engine, relu());
    let x: Vec<f32> = numbers(small().len(), 1);
    forward(&mut bn, &small(), &x).unwrap();
    let mut expected = snapshot(&bn);
    let empty = Shape::new(&[0, 3, 2, 2], 1).unwrap();
    let (y, saved) = forward::<f32, G>(&mut bn, &empty, &[]).unwrap();
    assert!(y.is_empty());
    expected.running.as_mut().unwrap().2 = 2;
    assert_eq!(snapshot(&bn), expected);
    assert!(backward::<f32, G>(&mut bn, &saved, &[], &[]).unwrap().is_empty());
    assert_eq!(grad(&bn, "weight").unwrap(), [0.0; 3]);
    assert!(infer::<f32, G>(&bn, &empty, &[]).unwrap().is_empty());
    bn.eval();
    assert!(forward::<f32, G>(&mut bn, &empty, &[]).unwrap().0.is_empty());
    assert_eq!(bn.running().unwrap().num_batches_tracked, 2);
}

/// Empty batches first and between: `Cumulative` counts them, as PyTorch does, and keeps a part of
/// the initial values; `Average` is that of the batches that had values.
fn averages_count_empty_batches_or_do_not<G: Engine>(engine: &G) {
    let (empty, pair) = (Shape::new(&[0, 3], 1).unwrap(), Shape::new(&[2, 3], 1).unwrap());
    for (momentum, mean, var, count) in
        [(Momentum::Cumulative, 2.25, 1.5, 2), (Momentum::Average, 4.5, 2.0, 1)]
    {
        let mut bn = layer(engine, Config::default().momentum(momentum));
        forward::<f32, G>(&mut bn, &empty, &[]).unwrap();
        // Mean 4.5, unbiased variance 2.
        forward(&mut bn, &pair, &[3.5f32, 3.5, 3.5, 5.5, 5.5, 5.5]).unwrap();
        let running = snapshot(&bn).running.unwrap();
        assert_eq!(running, (vec![mean; 3], vec![var; 3], count), "{momentum:?}");
    }
}

/// A weight of 1 for the new value replaces an old one that is not finite.
fn the_first_batch_of_an_average_replaces_nan<G: Engine>(engine: &G) {
    let pair = Shape::new(&[2, 3], 1).unwrap();
    for momentum in [Momentum::Cumulative, Momentum::Average, Momentum::Exponential(1.0)] {
        let mut bn = layer(engine, Config::default().momentum(momentum));
        let running = bn.running_mut().unwrap();
        running.mean = up(engine, &[f32::NAN, f32::INFINITY, 1.0]);
        running.var = up(engine, &[f32::NAN, f32::INFINITY, f32::NEG_INFINITY]);
        forward(&mut bn, &pair, &[3.5f32, 3.5, 3.5, 5.5, 5.5, 5.5]).unwrap();
        let running = snapshot(&bn).running.unwrap();
        assert_eq!(running, (vec![4.5; 3], vec![2.0; 3], 1), "{momentum:?}");
    }
}

/// As if it had been made so; an earlier forward keeps what it went by.
fn a_living_layer_takes_another_momentum_eps_and_activation<G: Engine>(engine: &G) {
    let (x, grad_y) = (numbers::<f32>(small().len(), 1), numbers::<f32>(small().len(), 2));
    let mut bn = layer(engine, relu());
    let (_, before) = forward(&mut bn, &small(), &x).unwrap();
    let expected = backward(&mut bn, &before, &x, &grad_y).unwrap();
    bn.zero_grad();

    let config = Config::default().eps(0.5).momentum(Momentum::Exponential(0.75));
    bn.set_eps(0.5).unwrap();
    bn.set_momentum(config.momentum).unwrap();
    bn.set_activation(Activation::Identity).unwrap();
    assert_eq!(bn.config(), &config);
    assert_eq!(backward(&mut bn, &before, &x, &grad_y).unwrap(), expected);
    bn.zero_grad();
    bn.reset_running_stats().unwrap();
    let mut made = layer(engine, config);
    let (y, saved) = forward(&mut bn, &small(), &x).unwrap();
    let (right, right_saved) = forward(&mut made, &small(), &x).unwrap();
    assert_eq!(y, right);
    let gradient = backward(&mut bn, &saved, &x, &grad_y).unwrap();
    assert_eq!(gradient, backward(&mut made, &right_saved, &x, &grad_y).unwrap());
    assert_eq!(snapshot(&bn), snapshot(&made));
    assert_eq!(infer(&bn, &small(), &x).unwrap(), infer(&made, &small(), &x).unwrap());

    let invalid = |result: Result<()>, of: &str| {
        assert!(matches!(result, Err(Error::Invalid { what, .. }) if what == of), "{of}");
    };
    invalid(bn.set_eps(0.0), "eps");
    invalid(bn.set_eps(1e-80), "eps");
    invalid(bn.set_momentum(Momentum::Exponential(-0.1)), "momentum");
    let leaky = Activation::LeakyRelu { negative_slope: f64::NAN };
    invalid(bn.set_activation(leaky), "negative_slope");
    assert_eq!(bn.config(), &config);
}

/// Sizes that no memory has are errors of the arguments or of the memory, never the end of the
/// process.
fn shapes_beyond_memory_are_refused<G: Engine>(engine: &G) {
    let mut bn = layer(engine, Config::default());
    let x: Vec<f32> = numbers(small().len(), 1);
    let (_, saved) = forward(&mut bn, &small(), &x).unwrap();
    for rows in [10usize.pow(12), 10usize.pow(18)] {
        let huge = Shape::new(&[rows, 3], 1).unwrap();
        let refused = Error::Length { what: "x", expected: 3 * rows, got: x.len() };
        assert_eq!(forward(&mut bn, &huge, &x).err(), Some(refused.clone()));
        assert_eq!(infer(&bn, &huge, &x).err(), Some(refused.clone()));
        let tensor = up(engine, &x);
        let (a, b) = (view::<G, f32>(&tensor), view::<G, f32>(&tensor));
        assert_eq!(bn.forward_add(&huge, a, b).err(), Some(refused));
        assert!(BatchNorm::<f32, G>::new(engine, rows, Config::default()).is_err());
        assert!(RunningStats::<G::Memory, f64>::new(engine.memory(), rows).is_err());
        assert!(engine.memory().zeros::<f32>(rows).is_err());
    }
    let short = backward(&mut bn, &saved, &x[1..], &x).unwrap_err();
    assert_eq!(short, Error::Length { what: "x", expected: 48, got: 47 });
    let most = [0, usize::MAX];
    let shape = Shape::new(&most, 1).unwrap();
    let (x, mut record) = (up::<G, f32>(engine, &[]), up(engine, &[0f64]));
    let args = Stats::<G::Memory, f32>::new(view::<G, f32>(&x), view_mut::<G, f64>(&mut record));
    let refused = Error::Length { what: "record", expected: usize::MAX, got: 1 };
    assert_eq!(engine.stats(&shape, args).err(), Some(refused));
    assert!(BatchNorm::<f32, G>::new(engine, usize::MAX, Config::default()).is_err());
}

fn resets_restore_the_defaults<G: Engine>(engine: &G) {
    let mut bn = layer::<f32, G>(engine, Config::default());
    let x: Vec<f32> = numbers(small().len(), 1);
    let (_, saved) = forward(&mut bn, &small(), &x).unwrap();
    backward(&mut bn, &saved, &x, &x).unwrap();
    let trained = snapshot(&bn);
    let defaults = Some((vec![0.0; 3], vec![1.0; 3], 0));
    bn.reset_running_stats().unwrap();
    assert_eq!(snapshot(&bn), Snapshot { running: defaults.clone(), ..trained.clone() });
    forward(&mut bn, &small(), &x).unwrap();
    bn.reset_parameters().unwrap();
    let values = vec![("weight", vec![1.0; 3]), ("bias", vec![0.0; 3])];
    assert_eq!(snapshot(&bn), Snapshot { running: defaults, values, ..trained });
}

fn forms_with_and_without_memory_agree<G: Engine>(engine: &G) {
    let x: Vec<f16> = numbers(small().len(), 1);
    let residual: Vec<f16> = numbers(x.len(), 2);
    let grad_y: Vec<f16> = numbers(x.len(), 3);
    for training in [true, false] {
        let mut owned = layer(engine, relu());
        owned.train(training);
        let mut into = owned.to(engine).unwrap();
        let [x, residual, grad_y] = [&x, &residual, &grad_y].map(|host| up(engine, host));
        let view = view::<G, f16>;
        let (y, saved) = owned.forward_add(&small(), view(&x), view(&residual)).unwrap();
        let gradients = owned.backward_add(&saved, view(&x), None, view(&grad_y)).unwrap();
        let expected = [y, gradients.0, gradients.1].map(|buf| down(engine, &buf));

        let [mut y, mut grad_x, mut grad_residual] =
            [2, 3, 4].map(|seed| up(engine, &numbers::<f16>(small().len(), seed)));
        let mut saved = Saved::new();
        let to_y = view_mut::<G, f16>(&mut y);
        into.forward_into(&small(), view(&x), Some(view(&residual)), to_y, &mut saved).unwrap();
        // In place: grad_x holds grad_y before, as its numbers have the same seed.
        let to_x = Some(view_mut::<G, f16>(&mut grad_x));
        let to_residual = Some(view_mut::<G, f16>(&mut grad_residual));
        into.backward_into(&saved, view(&x), None, Input::InPlace, to_x, to_residual).unwrap();
        assert_eq!([y, grad_x, grad_residual].map(|buf| down(engine, &buf)), expected);
        assert_eq!(snapshot(&into), snapshot(&owned));
        // Parameters only.
        let grad_y = Input::View(view(&grad_y));
        into.zero_grad();
        into.backward_into(&saved, view(&x), None, grad_y, None, None).unwrap();
        assert_eq!(snapshot(&into), snapshot(&owned));
    }
}

fn residuals_are_added_and_get_their_gradient<G: Engine>(engine: &G) {
    let x: Vec<f32> = numbers(small().len(), 1);
    let residual: Vec<f32> = numbers(x.len(), 2);
    let grad_y: Vec<f32> = numbers(x.len(), 3);
    let mut bn = layer(engine, relu());
    forward(&mut bn, &small(), &x).unwrap();
    bn.eval();
    let linear: Vec<f64> = by_running(&bn, &small(), &x);
    let sum = linear.iter().zip(&residual).map(|(v, r)| v + f64::from(*r));
    let expected: Vec<f64> = sum.map(|v| v.max(0.0)).collect();

    let [x, residual] = [&x, &residual].map(|host| up(engine, host));
    let view = view::<G, f32>;
    let (y, saved) = bn.forward_add(&small(), view(&x), view(&residual)).unwrap();
    assert_near(&down(engine, &y), &expected, Kind::Element);
    let mut inferred = up(engine, &grad_y);
    let to_y = view_mut::<G, f32>(&mut inferred);
    bn.infer_into(&small(), Input::View(view(&x)), Some(view(&residual)), to_y).unwrap();
    assert_eq!(down(engine, &inferred), down(engine, &y));

    let (_, grad_residual) =
        bn.backward_add(&saved, view(&x), None, view(&up(engine, &grad_y))).unwrap();
    let passed = |(y, g): (&f32, &f32)| if *y > 0.0 { *g } else { 0.0 };
    let expected: Vec<f32> = down(engine, &y).iter().zip(&grad_y).map(passed).collect();
    assert_eq!(down(engine, &grad_residual), expected);
}

fn memory_that_is_there_is_used_again<G: Engine<Memory = Host>>(engine: &G) {
    let mut bn = layer(engine, relu());
    let x: Vec<f32> = numbers(small().len(), 1);
    let (mut y, mut grad_x, mut saved) = (vec![0.0; x.len()], vec![0.0; x.len()], Saved::new());
    let mut step = || {
        bn.forward_into(&small(), &x, None, &mut y, &mut saved).unwrap();
        bn.backward_into(&saved, &x, None, Input::View(&x), Some(&mut grad_x), None).unwrap();
        let running = bn.running().unwrap();
        let addresses = [
            saved.mean().unwrap().as_ptr(),
            saved.invstd().unwrap().as_ptr(),
            bn.weight().unwrap().grad().unwrap().as_ptr(),
            bn.bias().unwrap().grad().unwrap().as_ptr(),
            running.mean.as_ptr(),
            running.var.as_ptr(),
        ];
        bn.zero_grad();
        addresses
    };
    assert_eq!(step(), step());
}

fn evaluation_in_place<G: Engine>(engine: &G) {
    let mut bn = layer(engine, relu());
    let x: Vec<bf16> = numbers(small().len(), 1);
    forward(&mut bn, &small(), &x).unwrap();
    let expected = infer(&bn, &small(), &x).unwrap();
    let mut y = up(engine, &x);
    bn.infer_into(&small(), Input::InPlace, None, view_mut::<G, bf16>(&mut y)).unwrap();
    assert_eq!(down(engine, &y), expected);
}

fn several_threads_evaluate_at_once<G: Engine>(engine: &G) {
    let mut bn = layer(engine, Config::default());
    forward(&mut bn, &small(), &numbers::<f32>(small().len(), 1)).unwrap();
    let batches: Vec<Vec<f32>> = (0..4).map(|seed| numbers(small().len(), seed)).collect();
    let expected: Vec<_> = batches.iter().map(|x| infer(&bn, &small(), x).unwrap()).collect();
    let bn = &bn;
    std::thread::scope(|scope| {
        let run = batches.iter().map(|x| scope.spawn(move || infer(bn, &small(), x).unwrap()));
        let threads: Vec<_> = run.collect();
        for (thread, expected) in threads.into_iter().zip(&expected) {
            assert_eq!(thread.join().unwrap(), *expected);
        }
    });
}

fn moved_layers_are_the_same_and_apart<G: Engine>(engine: &G) {
    let mut bn = layer(engine, relu());
    let x: Vec<f32> = numbers(small().len(), 1);
    let (_, saved) = forward(&mut bn, &small(), &x).unwrap();
    backward(&mut bn, &saved, &x, &x).unwrap();
    bn.bias_mut().unwrap().zero_grad();
    bn.bias_mut().unwrap().requires_grad = false;
    bn.eval();
    let before = snapshot(&bn);

    let mut moved = bn.to(&Reference).unwrap();
    assert_eq!(snapshot(&moved), before);
    assert_eq!(moved.config(), bn.config());
    assert!(moved.weight().unwrap().requires_grad && !moved.bias().unwrap().requires_grad);
    moved.train(true);
    let (_, saved) = forward(&mut moved, &small(), &x).unwrap();
    backward(&mut moved, &saved, &x, &x).unwrap();
    assert_ne!(snapshot(&moved), before);
    assert_eq!(snapshot(&bn), before);
    // And back again.
    assert_eq!(snapshot(&moved.to(engine).unwrap()), snapshot(&moved));
}

#[test]
fn types_need_no_annotation() -> Result<()> {
    let (shape, x) = (small(), numbers::<f32>(small().len(), 1));
    let mut bn = BatchNorm::new(&Reference, 3, Config::default())?;
    let (y, saved) = bn.forward(&shape, &x)?;
    let grad_x = bn.backward(&saved, &x, &y)?;
    assert_eq!(grad_x.len(), x.len());
    Ok(())
}
