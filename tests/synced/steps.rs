//! Whole steps of a layer, double backwards among them, by masks and in ghost batches: as of one batch, or as of one
//! process that takes the groups of all ranks one after the other.
use crate::support::layer::down;
use crate::support::steps::{OfMask, Outcome, Step, masks, near, parameterized};
use crate::support::tolerance::Kind;
use crate::world::{OfRanks, on_engines, on_ranks};
use batchnorm::{
    Activation, AllMasked, BatchNorm, Config, DoubleBackward, Element, Engine, Error, Ghost,
    GhostRemainder, GhostUpdate, Memory, Momentum, Real, Reference, Renorm, Shape,
};
use half::f16;

on_engines! {
    gradients_of_a_backward_are_those_of_one_batch,
    renormalized_gradients_of_a_backward_are_those_of_one_batch,
    a_double_backward_that_a_rank_refuses_is_an_error_of_all,
    groups_by_a_mask_are_those_of_one_process,
    nothing_that_counts_in_a_group_is_what_the_rule_says,
    masks_and_groups_that_differ_are_errors_of_all,
}

/// Rows of each of 1, 2 and 3 ranks: unequal, and none.
const SPLITS: [&[usize]; 4] = [&[7], &[3, 4], &[0, 7], &[2, 0, 5]];
const ACTIVATIONS: [Activation; 4] =
    [Activation::Silu, Activation::Relu, Activation::Identity, Activation::Gelu];

/// Running means and variances of a layer, and how many batches it has counted.
type Running = ([Vec<f64>; 2], u64);
fn running<P: Real, G: Engine>(bn: &BatchNorm<P, G>) -> Running {
    let running = bn.running().unwrap();
    let of = |buf| down::<G, P>(bn.engine(), buf).iter().map(|v| v.to_f64()).collect();
    ([of(&running.mean), of(&running.var)], running.num_batches_tracked)
}

/// The step of a batch of which ranks have these rows, against the reference's of those rows in an order of its own.
fn one_step<E: Element, G: OfRanks>(
    what: &str,
    whole: &Step<E>,
    (config, of_one): (Config, Config),
    rows: &[Vec<usize>],
    order: &[usize],
) {
    let channels = whole.dims[whole.axis];
    let got = on_ranks::<G, _>(rows.len(), |rank, engine| {
        let mut bn = parameterized::<E::Acc, _>(&engine, channels, config);
        let outcome = whole.of_rows(&rows[rank]).run(&mut bn, true);
        (outcome, running(&bn))
    });
    // Which decides at kinks as the type does.
    let mut bn = parameterized::<E::Acc, _>(&Reference, channels, of_one);
    let right: Outcome = whole.of_rows(order).run(&mut bn, true);
    let (right_running, len) = (running(&bn), whole.row_len());
    for (k, right) in right.tensors.iter().enumerate() {
        let mut all = vec![f64::NAN; right.len()];
        for (of_rank, (outcome, _)) in rows.iter().zip(&got) {
            for (row, values) in of_rank.iter().zip(outcome.tensors[k].chunks(len)) {
                let at = order.iter().position(|r| r == row).unwrap();
                all[at * len..][..len].copy_from_slice(values);
            }
        }
        near::<E>(&format!("{what}: tensor {k}"), &all, right, Kind::Element);
    }
    let m = whole.x.len() / channels;
    for (k, right) in right.sums.iter().enumerate() {
        let mut sum = vec![0.0; channels];
        for (outcome, _) in &got {
            sum.iter_mut().zip(&outcome.sums[k]).for_each(|(sum, own)| *sum += own);
        }
        near::<E>(&format!("{what}: sum {k}"), &sum, right, Kind::Sum(m));
    }
    for (_, (of_rank, count)) in &got {
        let bits =
            |all: &[Vec<f64>; 2]| all.concat().into_iter().map(f64::to_bits).collect::<Vec<_>>();
        let (of_first, right_count) = (bits(&got[0].1.0), right_running.1);
        assert_eq!((bits(of_rank), *count), (of_first, right_count), "{what}: on every rank");
        for (got, right) in of_rank.iter().zip(&right_running.0) {
            near::<E>(&format!("{what}: running"), got, right, Kind::Statistic);
        }
    }
}

fn rows_of(split: &[usize]) -> Vec<Vec<usize>> {
    let starts = split.iter().scan(0, |from, rows| {
        *from += rows;
        Some(*from - rows)
    });
    starts.zip(split).map(|(from, rows)| (from..from + rows).collect()).collect()
}

fn gradients_of_a_backward_are_those_of_one_batch<G: OfRanks>() {
    fn of<E: Element, G: OfRanks>(every: usize) {
        let mut k = 0;
        for (dims, axis) in [(&[7, 3, 4][..], 1), (&[7, 4, 3], 2), (&[7, 2, 40], 1)] {
            let [exact, keras] = masks(dims, axis, 5);
            for mask in [None, Some(exact), Some(keras)] {
                for split in SPLITS {
                    k += 1;
                    if !G::IS_FAST && k % every != 0 {
                        continue;
                    }
                    let activation = ACTIVATIONS[k % ACTIVATIONS.len()];
                    let config = Config::default().activation(activation).eps(0.1);
                    let whole = Step::<E>::new(dims, axis, mask.clone());
                    let order: Vec<usize> = (0..7).collect();
                    let what = format!("{}, {dims:?}, {config}, {split:?}", E::DTYPE);
                    one_step::<E, G>(&what, &whole, (config, config), &rows_of(split), &order);
                }
            }
        }
    }
    of::<f32, G>(2);
    of::<f64, G>(5);
    of::<f16, G>(7);
}

/// r and d are constants in it.
fn renormalized_gradients_of_a_backward_are_those_of_one_batch<G: OfRanks>() {
    let (dims, axis) = (&[7, 3, 4][..], 1);
    for mask in [None, Some(masks(dims, axis, 5)[0].clone())] {
        let config = Config::default().eps(0.1).renorm(Renorm::paper(1.5, 0.5));
        let mut whole = Step::<f32>::new(dims, axis, mask);
        whole.v_weight.clear();
        let order: Vec<usize> = (0..7).collect();
        one_step::<f32, G>("renormalized", &whole, (config, config), &rows_of(&[2, 0, 5]), &order);
    }
}

/// Nobody waits for it, and nothing is written.
fn a_double_backward_that_a_rank_refuses_is_an_error_of_all<G: OfRanks>() {
    on_ranks::<G, _>(2, |rank, engine| {
        let (on, shape) = (engine.memory().clone(), Shape::new(&[4, 2], 1).unwrap());
        let x = on.upload(&[1f32, 2., 3., 4., 6., 5., 8., 7.]).unwrap();
        let short = on.upload(&[1f32; 7]).unwrap();
        let mut bn = BatchNorm::<f32, _>::new(&engine, 2, Config::default()).unwrap();
        let (_, saved) = bn.forward(&shape, G::Memory::view(&x)).unwrap();
        let mut to = on.upload(&[5f32; 8]).unwrap();
        for case in 0..3 {
            let mut own = on.zeros::<f32>(2).unwrap();
            let v_x = if rank == 1 && case == 0 { &short } else { &x };
            let (a, b) = (G::Memory::view(&x), G::Memory::view(&x));
            let mut args = DoubleBackward::<G::Memory, f32>::new(&saved, a, b)
                .v_x(G::Memory::view(v_x))
                .gg_x(G::Memory::view_mut(&mut to))
                .create_graph(rank == 1 && case == 1);
            if rank == 1 && case == 2 {
                args.gg_weight = Some(G::Memory::view_mut(&mut own));
            }
            let error = bn.double_backward_into(args).unwrap_err();
            match (rank, case) {
                (0, _) => {
                    let other = matches!(error, Error::Collective { rank: Some(1), .. });
                    assert!(other, "{case}: {error}");
                }
                (_, 0) => assert!(matches!(error, Error::Length { what: "v_x", .. }), "{error}"),
                (_, 1) => assert!(matches!(error, Error::Unsupported { .. }), "{error}"),
                _ => assert!(matches!(error, Error::Invalid { .. }), "{error}"),
            }
            assert_eq!(on.download(G::Memory::view(&to)).unwrap(), [5f32; 8]);
        }
    });
}

/// The rows of each group of each rank, in the order of ranks.
fn groups(ghost: Ghost, strided: bool, rows: &[Vec<usize>]) -> Vec<Vec<usize>> {
    let of_rank = |rows: &Vec<usize>| -> Vec<Vec<usize>> {
        let groups = rows.len().div_ceil(ghost.size);
        match strided {
            false => rows.chunks(ghost.size).map(<[usize]>::to_vec).collect(),
            true => (0..groups)
                .map(|group| rows.iter().skip(group).step_by(groups).copied().collect())
                .collect(),
        }
    };
    rows.iter().flat_map(of_rank).collect()
}

fn groups_by_a_mask_are_those_of_one_process<G: OfRanks>() {
    fn of<E: Element, G: OfRanks>(every: usize) {
        let ghosts = [
            (Ghost::consecutive(2), false),
            (Ghost::consecutive(2).update(GhostUpdate::Average), false),
            (Ghost::strided(2), true),
            (Ghost::strided(2).update(GhostUpdate::Sequential), true),
        ];
        let mut k = 0;
        for (dims, axis) in [(&[8, 3, 4][..], 1), (&[8, 4, 3], 2)] {
            for mask in masks(dims, axis, 3) {
                for (ghost, strided) in ghosts {
                    for split in [&[8][..], &[4, 4], &[2, 0, 6]] {
                        k += 1;
                        if k % every != 0 {
                            continue;
                        }
                        let activation = ACTIVATIONS[k % ACTIVATIONS.len()];
                        let config = Config::default().activation(activation).eps(0.1);
                        let config = config.momentum(Momentum::Exponential(0.4));
                        let rows = rows_of(split);
                        let order = groups(ghost, strided, &rows).concat();
                        // One process has them as neighbours.
                        let near = Ghost::consecutive(2).update(ghost.update);
                        let whole = Step::<E>::new(dims, axis, Some(mask.clone()));
                        let what = format!("{}, {dims:?}, {ghost}, {split:?}", E::DTYPE);
                        let both = (config.ghost(ghost), config.ghost(near));
                        one_step::<E, G>(&what, &whole, both, &rows, &order);
                    }
                }
            }
        }
    }
    let of_devices = if G::IS_FAST { 1 } else { 2 };
    of::<f32, G>(of_devices);
    of::<f64, G>(5);
    of::<f16, G>(7);
}

/// The last group of the one rank has nothing that counts, and the other rank no rows.
fn nothing_that_counts_in_a_group_is_what_the_rule_says<G: OfRanks>() {
    for all_masked in [AllMasked::Keep, AllMasked::Zero, AllMasked::Nan] {
        for update in [GhostUpdate::Sequential, GhostUpdate::Average] {
            let dims = [6, 2, 3];
            let ghost = Ghost::consecutive(2).update(update);
            let ghost = ghost.remainder(GhostRemainder::ShortLast);
            let places = (0..18).map(|i| u8::from(i < 12 && i % 3 > 0)).collect();
            let mask = OfMask { places, last: None, count_eps: 0.25, all_masked };
            let whole = Step::<f32>::new(&dims, 1, Some(mask));
            let config = Config::default().ghost(ghost);
            let order: Vec<usize> = (0..6).collect();
            let what = format!("{all_masked:?}, {update:?}");
            let rows = vec![vec![], order.clone()];
            one_step::<f32, G>(&what, &whole, (config, config), &rows, &order);
        }
    }
}

fn masks_and_groups_that_differ_are_errors_of_all<G: OfRanks>() {
    on_ranks::<G, _>(2, |rank, engine| {
        let failed = |count_eps: f64, all_masked: AllMasked, size: usize| -> Error {
            let on = engine.memory();
            let shape = Shape::new(&[8, 2], 1).unwrap();
            let (x, places) = (on.upload(&[1f32; 16]).unwrap(), on.upload(&[1u8; 8]).unwrap());
            let config = Config::default().ghost(Ghost::consecutive(size));
            let mut bn = BatchNorm::<f32, _>::new(&engine, 2, config).unwrap();
            let mask = batchnorm::Mask::<G::Memory>::new(G::Memory::view(&places));
            let mask = mask.count_eps(count_eps).all_masked(all_masked);
            let error = bn.forward_masked(&shape, G::Memory::view(&x), mask).map(drop).unwrap_err();
            assert_eq!(running(&bn).1, 0);
            error
        };
        let others = [
            (failed(0.5 * rank as f64, AllMasked::Keep, 4), "count_eps of 0.5"),
            (failed(0.0, [AllMasked::Zero, AllMasked::Nan][rank], 4), "all_masked=nan"),
            (failed(0.0, AllMasked::Keep, 4 + 4 * rank), "of 8 rows"),
        ];
        for (error, says) in others {
            assert!(error.to_string().contains(says), "{error}");
        }
        let error = failed(0.0, AllMasked::Keep, 4 - rank);
        match rank {
            1 => assert!(matches!(error, Error::Invalid { what: "ghost", .. }), "{error}"),
            _ => assert!(matches!(error, Error::Collective { rank: Some(1), .. }), "{error}"),
        }
    });
}
