//! Ghost batches on several ranks: groups of each rank's rows, running statistics by all of them.
use crate::support::layer::{assert_near, backward, down, forward, grad, numbers, wide};
use crate::support::tolerance::Kind;
use crate::world::{OfRanks, on_engines, on_ranks};
use batchnorm::{
    Activation, BatchNorm, Config, Element, EmptyBatch, Engine, Error, Ghost, GhostRemainder,
    GhostUpdate, Memory, Momentum, NonFinite, OneValue, Real, Reference, Shape,
};
use half::{bf16, f16};

on_engines! {
    consecutive_groups_are_those_of_one_process,
    strided_groups_are_those_of_every_rank,
    every_dtype_has_groups_of_ranks,
    groups_of_all_ranks_are_averaged,
    no_rows_on_any_rank_are_an_empty_batch,
    what_a_rank_refuses_is_an_error_of_all,
}

const CHANNELS: usize = 3;

/// What a rank has of a batch: rows of three channels, behind the rows or last.
fn part<E: Element>(rows: usize, rank: usize, last: bool) -> (Shape, Vec<E>) {
    let (dims, axis) = if last { ([rows, 2, CHANNELS], 2) } else { ([rows, CHANNELS, 2], 1) };
    let shape = Shape::new(&dims, axis).unwrap();
    (shape, numbers(shape.len(), 3 * rank as u64 + 1))
}

/// A layer's results: what is one value per channel, and how many batches it has counted.
type Statistics = ([Vec<f64>; 2], u64);
/// y and the gradient of x, of every step.
type Step<E> = [Vec<E>; 2];

fn statistics<P: Real, G: Engine>(bn: &BatchNorm<P, G>) -> Statistics {
    let running = bn.running().unwrap();
    let of = |buf| down::<G, P>(bn.engine(), buf).iter().map(|v| v.to_f64()).collect();
    ([of(&running.mean), of(&running.var)], running.num_batches_tracked)
}

/// A forward of some rows, and a backward.
fn step<E: Element, G: Engine>(
    bn: &mut BatchNorm<E::Acc, G>,
    (shape, x): &(Shape, Vec<E>),
) -> Step<E> {
    let (y, saved) = forward(bn, shape, x).unwrap();
    let grad_y = numbers(shape.len(), 77);
    let grad_x = backward(bn, &saved, x, &grad_y).unwrap();
    [y, grad_x]
}

/// Two steps on ranks with so many rows, of which running statistics are `right` after each, or those of one process
/// that takes the ranks' rows one after the other; y and gradients are those of one rank by itself.
fn steps<E: Element, G: OfRanks>(
    what: &str,
    config: Config,
    (rows, last): (&[usize], bool),
    right: Option<&dyn Fn(usize) -> Statistics>,
) {
    let all = on_ranks::<G, _>(rows.len(), |rank, engine| {
        let mut bn = BatchNorm::<E::Acc, _>::new(&engine, CHANNELS, config).unwrap();
        let mine = part::<E>(rows[rank], rank, last);
        let steps = [(); 2].map(|()| (step(&mut bn, &mine), statistics(&bn)));
        (steps, grad(&bn, "weight").unwrap())
    });
    let mut one = BatchNorm::<f64, _>::new(&Reference, CHANNELS, config).unwrap();
    let mut weights = vec![vec![0.0; CHANNELS]; rows.len()];
    for k in 0..2 {
        for (rank, (steps, _)) in all.iter().enumerate() {
            let (shape, x) = part::<E>(rows[rank], rank, last);
            let ([y, grad_x], _) = &steps[k];
            if shape.is_empty() {
                assert!(y.is_empty() && grad_x.is_empty(), "{what}");
                continue;
            }
            one.zero_grad();
            let (right_y, saved) = one.forward(&shape, &wide(&x)).unwrap();
            let grad_y = wide(&numbers::<E>(shape.len(), 77));
            let right_x = one.backward(&saved, &wide(&x), &grad_y).unwrap();
            assert_near(y, &right_y, Kind::Element);
            assert_near(grad_x, &right_x, Kind::Element);
            let of_weight = grad(&one, "weight").unwrap();
            weights[rank].iter_mut().zip(of_weight).for_each(|(sum, g)| *sum += g);
        }
        let (right, right_count) = right.map_or_else(|| statistics(&one), |right| right(k));
        for (steps, _) in &all {
            let (_, (of_rank, count)) = &steps[k];
            assert_eq!((of_rank, *count), (&all[0].0[k].1.0, right_count), "{what}, step {k}");
            for (got, right) in of_rank.iter().zip(&right) {
                let got: Vec<E::Acc> = got.iter().map(|v| E::Acc::from_f64(*v)).collect();
                assert_near(&got, right, Kind::Statistic);
            }
        }
    }
    for ((_, got), right) in all.iter().zip(&weights) {
        assert_near(got, right, Kind::Sum(40));
    }
}

fn consecutive_groups_are_those_of_one_process<G: OfRanks>() {
    let config = |ghost| Config::default().ghost(ghost);
    let even = Ghost::consecutive(2);
    let short = even.remainder(GhostRemainder::ShortLast);
    let cases: [(Config, &[usize]); 8] = [
        (config(even), &[4, 6]),
        (config(even), &[2, 0, 8]), // one group, none, four
        (config(even).activation(Activation::Silu), &[4, 2]),
        (config(short), &[5, 4]),
        (config(even.remainder(GhostRemainder::Chunk)), &[5, 3, 6]),
        (config(even).momentum(Momentum::Cumulative), &[4, 2]),
        (config(Ghost::consecutive(8)), &[3, 8]), // a batch that is no group of eight is refused, this one has less
        (config(even).non_finite(NonFinite::Skip), &[2, 4]),
    ];
    for (k, (config, rows)) in cases.into_iter().enumerate() {
        if k == 6 {
            let config = config.ghost(short_of(8));
            steps::<f32, G>("fewer rows than a group", config, (rows, false), None);
            continue;
        }
        for last in [false, true] {
            steps::<f32, G>(&format!("case {k}, {rows:?}"), config, (rows, last), None);
        }
    }
}
fn short_of(size: usize) -> Ghost {
    Ghost::consecutive(size).remainder(GhostRemainder::ShortLast)
}

fn strided_groups_are_those_of_every_rank<G: OfRanks>() {
    let ghost = Ghost::strided(2).update(GhostUpdate::Sequential);
    for last in [false, true] {
        // As channels of one call, or a call for every row.
        let config = Config::default().ghost(ghost);
        steps::<f32, G>(&format!("strided, {last}"), config, (&[4, 0, 6], last), None);
        steps::<f32, G>(&format!("one group, {last}"), config, (&[2, 4], last), None);
    }
}

fn every_dtype_has_groups_of_ranks<G: OfRanks>() {
    let config = Config::default().ghost(Ghost::consecutive(2));
    steps::<f64, G>("f64", config, (&[4, 2], false), None);
    steps::<f16, G>("f16", config, (&[4, 2], true), None);
    steps::<bf16, G>("bf16", config, (&[2, 4], false), None);
}

/// The plain average over all groups of all ranks is one batch, whatever the rank has of them.
fn groups_of_all_ranks_are_averaged<G: OfRanks>() {
    let consecutive = Ghost::consecutive(2).update(GhostUpdate::Average);
    for (ghost, rows) in [
        (consecutive, &[4, 0, 6][..]),
        (consecutive.remainder(GhostRemainder::ShortLast), &[3, 4]),
        (Ghost::strided(2), &[4, 6]),
    ] {
        for (last, momentum) in [(false, 0.1), (true, 0.4)] {
            let config = Config::default().momentum(Momentum::Exponential(momentum));
            let right = |steps: usize| {
                let (mut sums, mut groups) = ([vec![0.0; CHANNELS], vec![0.0; CHANNELS]], 0.0);
                for (rank, &rows) in rows.iter().enumerate().filter(|(_, rows)| **rows > 0) {
                    // A weight of 1 leaves the average of a rank's groups.
                    let config = config.momentum(Momentum::Exponential(1.0)).ghost(ghost);
                    let mut bn = BatchNorm::<f64, _>::new(&Reference, CHANNELS, config).unwrap();
                    let (shape, x) = part::<f32>(rows, rank, last);
                    bn.forward(&shape, &wide(&x)).unwrap();
                    let here = rows.div_ceil(2) as f64;
                    for (sums, own) in sums.iter_mut().zip(statistics(&bn).0) {
                        sums.iter_mut().zip(own).for_each(|(sum, own)| *sum += here * own);
                    }
                    groups += here;
                }
                let kept = (1.0 - momentum).powi(steps as i32 + 1);
                let moved = |(first, sums): (f64, &Vec<f64>)| -> Vec<f64> {
                    sums.iter().map(|sum| kept * first + (1.0 - kept) * sum / groups).collect()
                };
                let [mean, var] = &sums;
                ([moved((0.0, mean)), moved((1.0, var))], steps as u64 + 1)
            };
            let what = format!("{ghost}, {rows:?}");
            steps::<f32, G>(&what, config.ghost(ghost), (rows, last), Some(&right));
        }
    }
    // Groups of one value, which have no variance, stand between others that have one.
    let config = Config::default().one_value(OneValue::KeepVariance);
    let ghost = consecutive.remainder(GhostRemainder::ShortLast);
    on_ranks::<G, _>(2, |_, engine| {
        let mut bn = BatchNorm::<f32, _>::new(&engine, 1, config.ghost(ghost)).unwrap();
        let shape = Shape::new(&[3, 1], 1).unwrap();
        forward(&mut bn, &shape, &[1f32, 3.0, 8.0]).unwrap();
        let ([mean, var], count) = statistics(&bn);
        // Means 2, 8, 2, 8; variances 2 and 2.
        assert!((mean[0] - 0.5).abs() < 1e-6 && (var[0] - 1.1).abs() < 1e-6, "{mean:?} {var:?}");
        assert_eq!(count, 1);
    });
}

fn no_rows_on_any_rank_are_an_empty_batch<G: OfRanks>() {
    for empty_batch in [EmptyBatch::Keep, EmptyBatch::Nan] {
        let config = Config::default().ghost(Ghost::consecutive(2)).empty_batch(empty_batch);
        on_ranks::<G, _>(2, |_, engine| {
            let mut bn = BatchNorm::<f32, _>::new(&engine, CHANNELS, config).unwrap();
            step::<f32, _>(&mut bn, &part(0, 0, false));
            let ([mean, _], count) = statistics(&bn);
            assert_eq!(count, 1);
            assert_eq!(mean[0].is_nan(), empty_batch == EmptyBatch::Nan);
        });
    }
}

fn what_a_rank_refuses_is_an_error_of_all<G: OfRanks>() {
    // Rows that groups do not divide; another size; no updates; a plain layer.
    on_ranks::<G, _>(2, |rank, engine| {
        let config = |size| Config::default().ghost(Ghost::consecutive(size));
        let layer = |config| BatchNorm::<f32, _>::new(&engine, CHANNELS, config).unwrap();
        let failed = |bn: &mut BatchNorm<f32, _>, rows: usize| {
            let (shape, x) = part::<f32>(rows, rank, false);
            let error = forward(bn, &shape, &x).map(drop).unwrap_err();
            assert_eq!(statistics(bn).1, 0);
            error
        };
        let other = |error: &Error| matches!(error, Error::Collective { rank: Some(1), .. });
        let error = failed(&mut layer(config(2)), if rank == 1 { 5 } else { 4 });
        match rank {
            1 => assert!(matches!(error, Error::Invalid { what: "ghost", .. }), "{error}"),
            _ => assert!(other(&error), "{error}"),
        }
        let error = failed(&mut layer(config(2 + 2 * rank)), 4);
        assert!(other(&error) && error.to_string().contains("of 4 rows"), "{error}");
        let mut bn = layer(config(2));
        bn.update_running_stats(rank == 0);
        let error = failed(&mut bn, 4);
        assert!(error.to_string().contains("none of running statistics"), "{error}");
        let mut bn = layer(if rank == 1 { Config::default() } else { config(2) });
        let error = failed(&mut bn, 4);
        assert!(error.to_string().contains("none of ghost batches"), "{error}");
        // Without updates nothing but the agreement is exchanged.
        let mut bn = layer(config(2));
        bn.update_running_stats(false);
        step::<f32, _>(&mut bn, &part(4, rank, false));
        assert_eq!(statistics(&bn).1, 0);
        let on = engine.memory();
        assert_eq!(
            on.download(<G::Memory as Memory>::view(&bn.running().unwrap().mean)).unwrap(),
            [0.0; 3]
        );
    });
}
