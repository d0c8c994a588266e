//! Whole steps of ghost batches - forward, backward, the backward's gradients - with masks and without: beside the same
//! of every group as a batch of its own.
use crate::support::engines::engines;
use crate::support::layer::*;
use crate::support::steps::*;
use crate::support::tolerance::Kind;
use batchnorm::*;
use half::{bf16, f16};

engines! { [reference, cpu, cuda, gpu] [
    every_group_doubles_as_a_batch,
    every_group_counts_by_its_part_of_a_mask,
    groups_in_which_nothing_counts_follow_the_rule,
] }

/// The rows of every group.
fn groups(rows: usize, ghost: Ghost) -> Vec<Vec<usize>> {
    match ghost.rows {
        GhostRows::Strided => {
            let groups = rows / ghost.size;
            (0..groups).map(|j| (j..rows).step_by(groups).collect()).collect()
        }
        _ => {
            let all: Vec<usize> = (0..rows).collect();
            all.chunks(ghost.size).map(<[usize]>::to_vec).collect()
        }
    }
}

/// A step of groups beside one of every group, and how both move the running statistics.
pub(crate) fn compare<E: Element, G: Engine>(
    engine: &G,
    step: &Step<E>,
    ghost: Ghost,
    config: Config,
    doubles: bool,
) {
    let channels = step.dims[step.axis];
    let mut bn = parameterized::<E::Acc, G>(engine, channels, config.ghost(ghost));
    let got = step.run(&mut bn, doubles);
    let mut plain = parameterized::<f64, _>(&Reference, channels, config);
    let averages = ghost.update == GhostUpdate::Average;
    let before = snapshot(&plain).running.unwrap();
    let groups = groups(step.dims[0], ghost);
    let (row_len, n) = (step.row_len(), groups.len() as f64);
    let mut right = Outcome {
        tensors: [(); 6].map(|()| vec![f64::NAN; step.x.len()]),
        sums: [(); 4].map(|()| vec![0.0; channels]),
    };
    let mut moved = [vec![0.0; channels], vec![0.0; channels]];
    for rows in &groups {
        if averages {
            // So that each moves from where all began.
            let running = plain.running_mut().unwrap();
            (running.mean, running.var) = (before.0.clone(), before.1.clone());
            running.num_batches_tracked = before.2;
        }
        let of = step.rows(rows).run(&mut plain, doubles);
        for (to, from) in right.tensors.iter_mut().zip(of.tensors) {
            for (row, from) in rows.iter().zip(from.chunks(row_len)) {
                to[row * row_len..][..row_len].copy_from_slice(from);
            }
        }
        for (to, from) in right.sums.iter_mut().zip(of.sums) {
            to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
        }
        let (mean, var, _) = snapshot(&plain).running.unwrap();
        for (to, from) in moved.iter_mut().zip([&mean, &var]) {
            to.iter_mut().zip(from).for_each(|(to, from)| *to += from / n);
        }
    }
    let say = format!("{:?} axis {} {ghost:?} {:?}", step.dims, step.axis, config.activation);
    let named = ["y", "grad_x", "grad_residual", "gg_grad_y", "gg_x", "gg_residual"];
    for ((name, got), right) in named.into_iter().zip(&got.tensors).zip(&right.tensors) {
        near::<E>(&format!("{say}: {name}"), got, right, Kind::Element);
    }
    let m = step.x.len() / channels;
    for (got, right) in got.sums.iter().zip(&right.sums).filter(|(got, _)| !got.is_empty()) {
        near::<E>(&format!("{say}: parameters"), got, right, Kind::Sum(m));
    }
    let (mean, var, count) = snapshot(&bn).running.unwrap();
    let (right_mean, right_var, right_count) = match averages {
        true => (moved[0].clone(), moved[1].clone(), before.2 + 1),
        false => snapshot(&plain).running.unwrap(),
    };
    assert_near(&mean, &right_mean, Kind::Statistic);
    assert_near(&var, &right_var, Kind::Statistic);
    assert_eq!(count, right_count, "{say}");
}

/// Shapes, channel axes and groups: channels first, last, between others and alone.
fn cases() -> Vec<(&'static [usize], usize, Ghost)> {
    let (near, apart) = (Ghost::consecutive, Ghost::strided);
    let short = GhostRemainder::ShortLast;
    vec![
        (&[8, 3, 5], 1, near(3).remainder(short)),
        (&[8, 3, 2, 2], 1, apart(4)),
        (&[12, 5], 1, apart(3).update(GhostUpdate::Sequential)),
        (&[8, 2, 2, 3], 3, near(4).update(GhostUpdate::Average)),
        (&[8, 2, 2, 3], 3, apart(4)),
        // Rows of whole vectors, of several elements for each channel, and of more than kernels take at once.
        (&[9, 3, 4, 8], 2, apart(3).update(GhostUpdate::Sequential)),
        (&[6, 2, 2, 40], 2, apart(3)),
        (&[4, 2, 520], 2, apart(2)),
        (&[8, 1, 5], 1, apart(2)),
        (&[6, 1, 24], 1, apart(3)),
        // Few rows of many channels, which the engine of the CPU takes in one call.
        (&[14, 24], 1, near(4).remainder(short)),
        (&[12, 20], 1, apart(4).update(GhostUpdate::Average)),
    ]
}

fn every_group_doubles_as_a_batch<G: Engine>(engine: &G) {
    let leaky = Config::default().activation(Activation::LeakyRelu { negative_slope: 0.25 });
    let silu = Config::default().activation(Activation::Silu).eps(1e-2);
    for (k, (dims, axis, ghost)) in cases().into_iter().enumerate() {
        let config = if k % 2 == 0 { leaky } else { silu };
        compare(engine, &Step::<f64>::new(dims, axis, None), ghost, config, true);
        compare(engine, &Step::<f32>::new(dims, axis, None), ghost, config.eps(1e-2), true);
    }
    for (dims, axis, ghost) in cases().into_iter().rev().take(2) {
        let identity = Config::default().eps(1e-2);
        compare(engine, &Step::<f64>::new(dims, axis, None), ghost, identity, true);
        compare(engine, &Step::<f32>::new(dims, axis, None), ghost, identity, true);
        compare(engine, &Step::<bf16>::new(dims, axis, None), ghost, identity.eps(0.1), true);
    }
    for k in [1, 4, 5] {
        let (dims, axis, ghost) = cases()[k];
        compare(engine, &Step::<f16>::new(dims, axis, None), ghost, silu.eps(0.1), true);
        compare(engine, &Step::<bf16>::new(dims, axis, None), ghost, leaky.eps(0.1), true);
    }
}

fn every_group_counts_by_its_part_of_a_mask<G: Engine>(engine: &G) {
    let leaky = Config::default().activation(Activation::LeakyRelu { negative_slope: 0.25 });
    let silu = Config::default().activation(Activation::Silu);
    for (k, (dims, axis, ghost)) in cases().into_iter().enumerate() {
        let config = if k % 2 == 0 { silu } else { leaky }.eps(1e-2);
        let config = config.momentum([Momentum::Exponential(0.3), Momentum::Cumulative][k / 2 % 2]);
        let other = match ghost.update {
            GhostUpdate::Average => ghost.update(GhostUpdate::Sequential),
            _ => ghost.update(GhostUpdate::Average),
        };
        let [exact, keras] = masks(dims, axis, k as u64);
        compare(engine, &Step::<f64>::new(dims, axis, Some(exact.clone())), ghost, config, true);
        compare(engine, &Step::<f32>::new(dims, axis, Some(exact)), other, config, true);
        compare(engine, &Step::<f64>::new(dims, axis, Some(keras)), other, config, true);
    }
    for k in [1, 3, 5] {
        let (dims, axis, ghost) = cases()[k];
        let [exact, keras] = masks(dims, axis, 9);
        let config = silu.eps(0.1);
        compare(engine, &Step::<f16>::new(dims, axis, Some(exact)), ghost, config, true);
        compare(engine, &Step::<bf16>::new(dims, axis, Some(keras)), ghost, config, true);
    }
}

fn groups_in_which_nothing_counts_follow_the_rule<G: Engine>(engine: &G) {
    let shape = Shape::new(&[4, 1], 1).unwrap();
    let x = [1f32, 3.0, 7.0, 9.0];
    // Means of 2 and of nothing, variances of 1 and of nothing, from 0 and 1.
    let none = f32::NAN;
    for (ghost, places) in
        [(Ghost::consecutive(2), [1u8, 1, 0, 0]), (Ghost::strided(2), [1, 0, 1, 0])]
    {
        let x = if ghost == Ghost::strided(2) { [x[0], x[2], x[1], x[3]] } else { x };
        for (all_masked, update, mean, var) in [
            (AllMasked::Keep, GhostUpdate::Sequential, 1.0, 1.0),
            (AllMasked::Zero, GhostUpdate::Sequential, 0.5, 0.5),
            (AllMasked::Nan, GhostUpdate::Sequential, none, none),
            (AllMasked::Keep, GhostUpdate::Average, 0.5, 1.0),
            (AllMasked::Zero, GhostUpdate::Average, 0.5, 0.75),
            (AllMasked::Nan, GhostUpdate::Average, none, none),
        ] {
            let config = Config::default().ghost(ghost.update(update)).eps(1e-12);
            let config = config.momentum(Momentum::Exponential(0.5)).variance(Variance::Biased);
            let mut bn: BatchNorm<f32, G> = BatchNorm::new(engine, 1, config).unwrap();
            let (on_engine, places) = (up(engine, &x), up(engine, &places));
            let mask = Mask::new(view::<G, u8>(&places)).all_masked(all_masked);
            let (y, saved) = bn.forward_masked(&shape, view::<G, f32>(&on_engine), mask).unwrap();
            assert_eq!((saved.is_masked(), saved.shape()), (Some(true), Some(shape)));
            let y = down::<G, f32>(engine, &y);
            let counted = if ghost == Ghost::strided(2) { [y[0], y[2]] } else { [y[0], y[1]] };
            assert!((counted[0] + 1.0).abs() < 1e-6 && (counted[1] - 1.0).abs() < 1e-6, "{y:?}");
            let (got_mean, got_var, count) = snapshot(&bn).running.unwrap();
            let say = format!("{ghost:?} {all_masked:?} {update:?}");
            let same = |got: f32, right: f32| got.is_nan() && right.is_nan() || got == right;
            assert!(
                same(got_mean[0], mean) && same(got_var[0], var),
                "{say} {got_mean:?} {got_var:?}"
            );
            assert_eq!(count, if update == GhostUpdate::Average { 1 } else { 2 });
            // Its backward asks for the mask.
            let grads = bn.backward(&saved, view::<G, f32>(&on_engine), view::<G, f32>(&on_engine));
            let error = grads.err().unwrap().to_string();
            assert_eq!(error, "saved: the forward had mask one, this backward has none");
        }
    }
}

#[test]
fn masks_of_groups_are_refused_in_words() {
    let mut bn: BatchNorm<f32, _> =
        layer(&Cpu::default(), Config::default().ghost(Ghost::consecutive(2)));
    let (shape, x) = (small(), numbers::<f32>(small().len(), 1));
    let before = snapshot(&bn);
    let mut refusal =
        |places: &[u8]| bn.forward_masked(&shape, &x, Mask::new(places)).err().unwrap().to_string();
    assert_eq!(refusal(&[1; 15]), "mask: expected 16 elements, got 15");
    let mut places = [1; 16];
    places[9] = 2;
    assert_eq!(refusal(&places), "mask: expected 0 or 1 at every place, got 2 at place 9");
    assert_eq!(snapshot(&bn), before);
    let (_, saved) = bn.forward_masked(&shape, &x, Mask::new(&[1; 16][..])).unwrap();
    let error = bn.backward_masked(&saved, &x, &[1; 15], &x).unwrap_err().to_string();
    assert_eq!(error, "mask: expected 16 elements, got 15");
}
