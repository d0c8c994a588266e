//! Strided groups behind whose channels other axes lie, which an engine may take in one call: rows in one piece each, far
//! apart.
use super::ghost::{Case, Right, groups, parameterized, tensors};
use super::ghost_steps::compare;
use crate::support::engines::engines;
use crate::support::layer::*;
use crate::support::steps::Step;
use crate::support::tolerance::Kind;
use batchnorm::*;
use half::{bf16, f16};

engines! { [reference_on_host, cpu_on_host] [
    rows_of_any_size_are_those_of_batches,
    every_epilogue_passes,
    their_gradients_have_gradients,
    numbers_of_all_kinds_stay_in_their_group,
] }

/// Dims, channel axis and rows of a group: short rows, which are taken together, the last ones fewer; rows of a unit each,
/// of one tile and of several; groups that are shared among tasks, with units of one row and of several; runs behind the
/// channels; one position, one channel; many channels.
const CASES: [(&[usize], usize, usize); 16] = [
    (&[6, 7, 3], 2, 3),
    (&[66, 3, 5], 2, 33),
    (&[14, 40, 26], 2, 7),
    (&[14, 2, 520], 2, 7),
    (&[12, 33, 17], 2, 4),
    (&[8, 64, 70], 2, 4),
    (&[28, 40, 32], 2, 14),
    (&[4, 130, 300], 2, 2),
    (&[6, 49, 48], 2, 1),
    (&[6, 3, 5, 40], 2, 3),
    (&[4, 2, 3, 300], 2, 2),
    (&[8, 2, 16, 64], 2, 4),
    (&[10, 5, 4, 9], 3, 5),
    (&[12, 1, 24], 2, 4),
    (&[12, 11, 1], 2, 3),
    (&[8, 2, 1100], 2, 2),
];

/// Two steps of a layer beside those of a batch for each group: without a residual, unless one is asked for, and with the
/// gradient in place or not.
fn one<E: Element, G: Engine>(
    engine: &G,
    case: Case<'_>,
    config: Config,
    (adds, in_place): (bool, bool),
) {
    let (dims, axis, ghost) = case;
    let shape = Shape::new(dims, axis).unwrap();
    let (len, m) = (shape.len(), shape.per_channel());
    let config = config.ghost(ghost);
    let mut bn = parameterized::<E::Acc, G>(engine, shape.channels(), config);
    let mut right = Right::new(shape.channels(), config);
    let blank = || up(engine, &numbers::<E>(len, 99));
    let (mut y, mut grad_residual, mut saved) = (blank(), blank(), Saved::new());
    let mut sums = vec![];
    for step in 0..2 {
        let [x, mut residual, grad_y] = tensors::<E>(len, step);
        residual.1.iter_mut().for_each(|r| *r = if adds { *r } else { 0.0 });
        sums.push(snapshot(&right.bn).grads);
        right.step(case, [&x.1, &residual.1, &grad_y.1]);
        let [x, residual, grad_y, mut grad_x] =
            [&x.0, &residual.0, &grad_y.0, &grad_y.0].map(|v| up(engine, v));
        let residual = || adds.then(|| view::<G, E>(&residual));
        let to = view_mut::<G, E>(&mut y);
        bn.forward_into(&shape, view::<G, E>(&x), residual(), to, &mut saved).unwrap();
        let from = match in_place {
            true => Input::InPlace,
            false => Input::View(view::<G, E>(&grad_y)),
        };
        let to = Some(view_mut::<G, E>(&mut grad_x));
        let to_residual = adds.then(|| view_mut::<G, E>(&mut grad_residual));
        bn.backward_into(&saved, view::<G, E>(&x), residual(), from, to, to_residual).unwrap();
        assert_near(&down::<G, E>(engine, &y), &right.y, Kind::Element);
        assert_near(&down::<G, E>(engine, &grad_x), &right.grad_x, Kind::Element);
        if adds {
            let got = down::<G, E>(engine, &grad_residual);
            assert_near(&got, &right.grad_residual, Kind::Element);
        }
        if step == 1 {
            // Once more, for the parameters alone.
            let (x, grad_y) = (view::<G, E>(&x), Input::View(view::<G, E>(&grad_y)));
            bn.backward_into(&saved, x, residual(), grad_y, None, None).unwrap();
        }
    }
    let (got, right) = (snapshot(&bn), snapshot(&right.bn));
    let (got_running, right_running) = (got.running.unwrap(), right.running.unwrap());
    assert_near(&got_running.0, &right_running.0, Kind::Statistic);
    assert_near(&got_running.1, &right_running.1, Kind::Statistic);
    assert_eq!(got_running.2, right_running.2, "{case:?}");
    for ((got, all), first) in got.grads.iter().zip(&right.grads).zip(&sums[1]) {
        let (all, first) = (all.as_ref().unwrap(), first.as_ref().unwrap());
        // Of the second step twice.
        let right: Vec<f64> = all.iter().zip(first).map(|(all, first)| 2.0 * all - first).collect();
        assert_near(got.as_ref().unwrap(), &right, Kind::Sum(3 * m));
    }
}

fn rows_of_any_size_are_those_of_batches<G: Engine>(engine: &G) {
    let relu = Config::default().activation(Activation::Relu).one_value(OneValue::ZeroVariance);
    for (k, (dims, axis, size)) in CASES.into_iter().enumerate() {
        let update = [GhostUpdate::Average, GhostUpdate::Sequential][k % 2];
        let case = (dims, axis, Ghost::strided(size).update(update));
        let config = relu
            .variance([Variance::Unbiased, Variance::Biased][k / 2 % 2])
            .momentum([Momentum::Exponential(0.3), Momentum::Cumulative][k / 4 % 2])
            .weight(k % 5 != 1)
            .bias(k % 5 != 2);
        one::<f32, G>(engine, case, config, (false, k % 2 == 0));
        one::<f64, G>(engine, case, config, (true, k % 2 == 1));
        let config = config.eps(1e-2);
        match k % 2 {
            0 => one::<f16, G>(engine, case, config, (false, true)),
            _ => one::<bf16, G>(engine, case, config, (false, false)),
        }
    }
}

/// Each by what a backward takes of it: nothing, x, the residual, the bits that the forward has left.
fn every_epilogue_passes<G: Engine>(engine: &G) {
    for (k, (dims, axis, size)) in CASES.into_iter().enumerate().filter(|(k, _)| k % 3 == 0) {
        for (n, activation) in Activation::ALL.into_iter().enumerate() {
            let case = (dims, axis, Ghost::strided(size));
            let config = Config::default().activation(activation).eps(1e-2);
            one::<f64, G>(engine, case, config, (n % 2 == 0, k % 2 == 0));
            one::<f64, G>(engine, case, config, (n % 2 == 1, k % 2 == 1));
        }
    }
    let (case, leaky) = (CASES[2], Activation::LeakyRelu { negative_slope: 0.25 });
    for (k, activation) in [Activation::Relu, Activation::Silu, leaky].into_iter().enumerate() {
        let case = (case.0, case.1, Ghost::strided(case.2));
        let config = Config::default().activation(activation).eps(1e-2);
        one::<f32, G>(engine, case, config, (true, k == 0));
        one::<bf16, G>(engine, case, config, (true, k == 1));
    }
}

fn their_gradients_have_gradients<G: Engine>(engine: &G) {
    let leaky = Activation::LeakyRelu { negative_slope: 0.25 };
    for (k, (dims, axis, size)) in CASES.into_iter().enumerate().filter(|(k, _)| k % 2 == 0) {
        let activation = [leaky, Activation::Silu, Activation::Identity][k / 2 % 3];
        let config = Config::default().activation(activation).eps(1e-2);
        let config = config.one_value(OneValue::ZeroVariance);
        let step = Step::<f64>::new(dims, axis, None);
        compare(engine, &step, Ghost::strided(size), config, true);
        let step = Step::<f32>::new(dims, axis, None);
        compare(engine, &step, Ghost::strided(size), config, true);
    }
}

/// Constants, numbers that are not finite, and those at the ends of the range, in a channel each of one group: that group
/// has what a batch of its rows has, and no other group knows of it.
fn numbers_of_all_kinds_stay_in_their_group<G: Engine>(engine: &G) {
    for (dims, size) in [(&[8usize, 33, 130], 4), (&[14, 40, 26], 7), (&[28, 40, 32], 14)] {
        let (shape, channels) = (Shape::new(dims, 2).unwrap(), dims[2]);
        let row_len = shape.len() / dims[0];
        // Sums that calls for rows hand on are f32.
        let most = if engine.name() == "cpu" { 1e38 } else { 1e36 };
        for eps in [1e-5, 1e-36] {
            let mut x = numbers::<f32>(shape.len(), 1);
            let mut grad_y = numbers::<f32>(shape.len(), 2);
            let groups = groups(dims[0], Ghost::strided(size));
            for row in &groups[1] {
                for at in (row * row_len..(row + 1) * row_len).step_by(channels) {
                    x[at] = 7.25;
                    x[at + 1] *= 1e30;
                    x[at + 2] *= 1e-30;
                    x[at + 3] += 1e6;
                    grad_y[at + 4] *= most;
                }
            }
            let last = groups[1][size - 1] * row_len;
            x[groups[1][0] * row_len + 3 * channels + 5] = f32::INFINITY;
            x[last + 6] = f32::NAN;
            grad_y[last + 2 * channels + 7] = f32::INFINITY;
            let config = Config::default().activation(Activation::Relu).eps(eps);
            let config = config.one_value(OneValue::ZeroVariance);
            let ghost = config.ghost(Ghost::strided(size));
            let mut bn = parameterized::<f32, G>(engine, channels, ghost);
            let (y, saved) = forward(&mut bn, &shape, &x).unwrap();
            let grad_x = backward(&mut bn, &saved, &x, &grad_y).unwrap();
            for rows in &groups {
                let gather = |of: &[f32]| -> Vec<f32> {
                    rows.iter().flat_map(|row| of[row * row_len..][..row_len].to_vec()).collect()
                };
                let own = Shape::new(&[size, dims[1], channels], 2).unwrap();
                let mut plain = parameterized::<f32, G>(engine, channels, config);
                let (own_x, own_grad) = (gather(&x), gather(&grad_y));
                let (right, saved) = forward(&mut plain, &own, &own_x).unwrap();
                let right_grad = backward(&mut plain, &saved, &own_x, &own_grad).unwrap();
                for (got, right) in [(gather(&y), right), (gather(&grad_x), right_grad)] {
                    for c in 0..channels {
                        let of = |all: &[f32]| -> Vec<f32> {
                            all.iter().skip(c).step_by(channels).copied().collect()
                        };
                        let (got, right) = (of(&got), of(&right));
                        let finite = right.iter().filter(|v| v.is_finite());
                        let most = finite.fold(0.0, |most: f32, v| most.max(v.abs()));
                        for (got, right) in got.iter().zip(&right) {
                            let near = (got - right).abs() <= 1e-5 * most;
                            let same = got == right || got.is_nan() && right.is_nan();
                            assert!(near || same, "{dims:?}, {eps}, {c}: {got}, not {right}");
                        }
                    }
                }
            }
        }
    }
}
