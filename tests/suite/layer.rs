//! The layer's modes and running statistics; the forms of its calls are in `layer_calls.rs`, parameters in
//! `parameters.rs`.
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
    resets_restore_the_defaults,
    a_living_layer_takes_another_momentum_eps_and_activation,
] }

pub fn relu() -> Config {
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
