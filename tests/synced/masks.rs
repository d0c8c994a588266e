//! Statistics of the values that count in all parts: as of one whole batch with one whole mask.
use crate::conformance::{MODE, means_keep_their_digits, one_batch};
use crate::support::oracle::{self, judge};
use crate::support::run::{self, Epilogue, Inputs, Masked, SavedOn, Want};
use crate::support::shapes::{CHANNELS_LAST, SMALL};
use crate::world::{LONG, OfRanks, on_engines, on_ranks, on_ranks_in_steps, parts};
use batchnorm::{
    AllMasked, BatchNorm, Config, DType, Element, Engine, Error, Mask, Memory, OneValue, Renorm,
    Shape, Variance,
};
use half::{bf16, f16};

on_engines! {
    every_mask_is_one_batch_f64,
    every_mask_is_one_batch_f32,
    every_mask_is_one_batch_f16,
    every_mask_is_one_batch_bf16,
    every_epilogue_behind_a_mask_is_one_batch,
    gathers_in_steps_are_one_batch,
    large_means_keep_their_digits,
    nothing_that_counts_on_any_rank_is_what_the_rule_says,
    every_rule_of_running_statistics_is_that_of_one_batch,
    masks_that_differ_are_errors_of_all,
    a_mask_that_a_rank_refuses_is_an_error_of_all,
}

/// Which places count.
#[derive(Debug, Clone, Copy)]
enum Pattern {
    /// Two of three.
    Some,
    /// The first half: where the last rank has all rows of it, or the first has one, others have none.
    FirstHalf,
    /// A single one.
    One,
    All,
}

fn masked(shape: &Shape, last: Option<usize>, pattern: Pattern, keras: bool) -> Masked {
    let len = last.map_or(shape.per_channel(), |last| shape.len() / last);
    let place = |i: usize| match pattern {
        Pattern::Some => u8::from(!(i * 7).is_multiple_of(3)),
        Pattern::FirstHalf => u8::from(2 * i < len),
        Pattern::One => u8::from(i == len / 3),
        Pattern::All => 1,
    };
    let (count_eps, all_masked) =
        if keras { (1e-7, AllMasked::Zero) } else { (0.0, AllMasked::Keep) };
    Masked { places: (0..len).map(place).collect(), last, count_eps, all_masked }
}

fn every_mask_is_one_batch_f64<G: OfRanks>() {
    every_mask::<f64, G>();
}
fn every_mask_is_one_batch_f32<G: OfRanks>() {
    every_mask::<f32, G>();
}
fn every_mask_is_one_batch_f16<G: OfRanks>() {
    every_mask::<f16, G>();
}
fn every_mask_is_one_batch_bf16<G: OfRanks>() {
    every_mask::<bf16, G>();
}

fn every_mask<E: Element, G: OfRanks>() {
    // With the last axis that a mask may be without: neighbours of one place, whose channels differ in how many count.
    let shapes: [(&[usize], usize, Option<usize>); 7] = [
        (SMALL.dims, 1, None),
        (CHANNELS_LAST.dims, 3, None),
        (&[9, 4], 1, None),
        (&[9, 4], 1, Some(4)),
        (&[9, 4], 1, Some(2)), // of channels on two axes
        (&[8, 3, 4], 1, Some(4)),
        (&[2, 5, 40], 1, None), // split along the inner axis
    ];
    let patterns = [Pattern::Some, Pattern::FirstHalf, Pattern::One, Pattern::All];
    let mut k = 0;
    for (of_shape, (dims, axis, last)) in shapes.into_iter().enumerate() {
        let shape = Shape::new(dims, axis).unwrap();
        for (of_pattern, pattern) in patterns.into_iter().enumerate() {
            for way in 0..3 {
                k += 1;
                if !G::IS_FAST && way != (of_shape + of_pattern) % 3 {
                    continue;
                }
                let epilogue = [Epilogue::PLAIN, Epilogue::FULL][k % 2];
                let mut whole = Inputs::<E>::new(&shape, epilogue, k as u64);
                whole.mask = Some(masked(&shape, last, pattern, k % 4 > 1));
                let what = format!("{}, {dims:?}, {pattern:?} without {last:?}", E::DTYPE);
                one_batch::<E, G>(&what, &whole, 2 + k % 2, 16, way);
            }
        }
    }
}

fn every_epilogue_behind_a_mask_is_one_batch<G: OfRanks>() {
    for (k, epilogue) in Epilogue::all().chain(Epilogue::others()).enumerate() {
        let shape = [SMALL, CHANNELS_LAST][k % 2].shape();
        let mut whole = Inputs::<f32>::new(&shape, epilogue, 21);
        whole.mask = Some(masked(&shape, None, Pattern::Some, k % 2 > 0));
        one_batch::<f32, G>(&format!("{epilogue:?}"), &whole, 2 + k % 2, 16, k);
    }
}

fn gathers_in_steps_are_one_batch<G: OfRanks>() {
    for (ranks, at_once) in [(4, 2), (6, 3), (8, 2)] {
        if ranks > 4 && !G::IS_FAST {
            continue;
        }
        let shape = Shape::new(&[13, 5, 3], 1).unwrap();
        let mut whole = Inputs::<f32>::new(&shape, Epilogue::FULL, 3);
        whole.mask = Some(masked(&shape, None, Pattern::Some, true));
        one_batch::<f32, G>(&format!("steps of {at_once}"), &whole, ranks, at_once, 0);
    }
}

fn large_means_keep_their_digits<G: OfRanks>() {
    means_keep_their_digits::<G>(true);
}

fn nothing_that_counts_on_any_rank_is_what_the_rule_says<G: OfRanks>() {
    for all_masked in [AllMasked::Keep, AllMasked::Zero, AllMasked::Nan] {
        let shape = Shape::new(&[6, 4], 1).unwrap();
        let mut whole = Inputs::<f32>::new(&shape, Epilogue::PLAIN, 9);
        let mask = masked(&shape, None, Pattern::All, false);
        whole.mask = Some(Masked { places: vec![0; 6], all_masked, ..mask });
        one_batch::<f32, G>(&format!("{all_masked:?}"), &whole, 3, 16, 0);
        // The same of no values at all.
        let shape = Shape::new(&[0, 4], 1).unwrap();
        let mut none = Inputs::<f32>::new(&shape, Epilogue::PLAIN, 9);
        let mask = masked(&shape, None, Pattern::All, false);
        none.mask = Some(Masked { all_masked, ..mask });
        if all_masked != AllMasked::Nan {
            one_batch::<f32, G>(&format!("{all_masked:?} of nothing"), &none, 2, 16, 0);
            continue;
        }
        // Whether a sum of nothing by NaN is 0 or NaN differs from engine to engine, on one rank too.
        let parts = parts(&none, 2, 0);
        on_ranks::<G, _>(2, |rank, engine| {
            let got = run::forward(&engine, &parts[rank].inputs, MODE, None).unwrap();
            assert!(got["running_mean"].iter().chain(&got["running_var"]).all(|v| v.is_nan()));
        });
    }
}

fn every_rule_of_running_statistics_is_that_of_one_batch<G: OfRanks>() {
    let shape = Shape::new(&[7, 3], 1).unwrap();
    let rules = [OneValue::Refuse, OneValue::KeepVariance];
    for (k, one_value) in rules.into_iter().enumerate() {
        for variance in [Variance::Biased, Variance::Unbiased] {
            for pattern in [Pattern::Some, Pattern::One] {
                let mut whole = Inputs::<f32>::new(&shape, Epilogue::PLAIN, 40);
                (whole.rules.one_value, whole.rules.variance) = (one_value, variance);
                whole.mask = Some(masked(&shape, None, pattern, k > 0));
                one_batch::<f32, G>(&format!("{one_value:?}, {variance:?}"), &whole, 3, 16, k);
            }
        }
    }
    // What is not finite is skipped on all ranks alike, and counted.
    let mut whole = Inputs::<f32>::new(&shape, Epilogue::PLAIN, 41);
    whole.x[4] = f32::NAN;
    whole.rules.non_finite = batchnorm::NonFinite::Skip;
    whole.rules.skipped = Some(2.0);
    whole.mask = Some(masked(&shape, None, Pattern::All, false));
    let right = oracle::forward(&whole, MODE);
    let parts = parts(&whole, 2, 0);
    on_ranks_in_steps::<G, _>(2, 16, LONG, |rank, engine| {
        let mut got = run::forward(&engine, &parts[rank].inputs, MODE, None).unwrap();
        assert_eq!(got["skipped"], [2.0, 3.0, 2.0]);
        got.remove("y");
        judge("skipped", DType::F32, &shape, &got, &right);
    });
}

/// What every rank makes of a layer's forward by its mask, of four rows of two channels.
fn forwards<G: OfRanks>(mask: impl Fn(usize) -> (Vec<u8>, f64, AllMasked) + Sync) -> Vec<Error> {
    on_ranks::<G, _>(2, |rank, engine| {
        let (on, shape) = (engine.memory().clone(), Shape::new(&[4, 2], 1).unwrap());
        let x = on.upload(&[1f32, 2., 3., 4., 6., 5., 8., 7.]).unwrap();
        let mut bn = BatchNorm::<f32, _>::new(&engine, 2, Config::default()).unwrap();
        let (places, count_eps, all_masked) = mask(rank);
        let places = on.upload(&places).unwrap();
        let mask = Mask::new(G::Memory::view(&places)).count_eps(count_eps).all_masked(all_masked);
        let done = bn.forward_masked(&shape, G::Memory::view(&x), mask).map(drop);
        assert_eq!(bn.running().unwrap().num_batches_tracked, 0);
        // And then again in step.
        bn.forward(&shape, G::Memory::view(&x)).unwrap();
        done.unwrap_err()
    })
}

fn masks_that_differ_are_errors_of_all<G: OfRanks>() {
    let ones = || vec![1u8; 4];
    let rules = |rank| [AllMasked::Keep, AllMasked::Nan][rank];
    let of_rules = forwards::<G>(|rank| (ones(), 0.0, rules(rank)));
    let of_eps = forwards::<G>(|rank| (ones(), [0.0, 1e-7][rank], AllMasked::Keep));
    for (errors, got) in [(of_rules, "all_masked=nan"), (of_eps, "count_eps of 0.0000001")] {
        for error in errors {
            assert!(matches!(error, Error::Collective { rank: Some(1), .. }), "{error}");
            assert!(error.to_string().contains(got), "{error}");
        }
    }
}

fn a_mask_that_a_rank_refuses_is_an_error_of_all<G: OfRanks>() {
    let short = forwards::<G>(|rank| (vec![1; 4 - rank], 0.0, AllMasked::Keep));
    let of_eps = forwards::<G>(|rank| (vec![1; 4], -(rank as f64), AllMasked::Keep));
    for errors in [short, of_eps] {
        assert!(matches!(errors[0], Error::Collective { rank: Some(1), .. }), "{}", errors[0]);
        assert!(!matches!(errors[1], Error::Collective { .. }), "{}", errors[1]);
    }
    // And so are places behind the forward.
    on_ranks::<G, _>(2, |rank, engine| {
        let (on, shape) = (engine.memory().clone(), Shape::new(&[4, 2], 1).unwrap());
        let x = on.upload(&[1f32, 2., 3., 4., 6., 5., 8., 7.]).unwrap();
        let x = || G::Memory::view(&x);
        let (ones, short) = (on.upload(&[1u8; 4]).unwrap(), on.upload(&[1u8; 3]).unwrap());
        let mut bn = BatchNorm::<f32, _>::new(&engine, 2, Config::default()).unwrap();
        let mask = || Mask::new(G::Memory::view(&ones));
        let (_, saved) = bn.forward_masked(&shape, x(), mask()).unwrap();
        let places = if rank == 1 { &short } else { &ones };
        let done = bn.backward_masked(&saved, x(), G::Memory::view(places), x());
        let error = done.map(drop).unwrap_err();
        match rank {
            1 => assert!(matches!(error, Error::Length { what: "mask", .. }), "{error}"),
            _ => assert!(matches!(error, Error::Collective { rank: Some(1), .. }), "{error}"),
        }
        bn.backward_masked(&saved, x(), G::Memory::view(&ones), x()).unwrap();
        // Renormalization by a mask of neighbours is refused; that by one of positions is not.
        let config = Config::default().renorm(Renorm::default());
        let mut bn = BatchNorm::<f32, _>::new(&engine, 2, config).unwrap();
        let of_neighbours = || Mask::new(G::Memory::view(&ones)).without_last(1);
        let given = if rank == 1 { of_neighbours() } else { mask() };
        let error = bn.forward_masked(&shape, x(), given).map(drop).unwrap_err();
        assert!(matches!(error, Error::Collective { .. }) == (rank == 0), "{error}");
        bn.forward_masked(&shape, x(), mask()).unwrap();
    });
}

/// The engine's own backward, given the sums of all parts, knows what counts in all of them.
#[test]
fn sums_of_parts_by_a_mask_are_for_the_forwards_of_several_ranks() {
    let shape = Shape::new(&[4, 2], 1).unwrap();
    let mut inputs = Inputs::<f32>::new(&shape, Epilogue::PLAIN, 2);
    inputs.mask = Some(masked(&shape, None, Pattern::Some, false));
    let mut saved = SavedOn::<batchnorm::Cpu, f32>::new();
    let engine = batchnorm::Cpu::default();
    run::forward(&engine, &inputs, MODE, Some(&mut saved)).unwrap();
    let sums = [1.0; 5];
    let want = Want { sums: false, ..Want::all(inputs.epilogue) };
    let error = run::backward(&engine, &inputs, want, &saved, Some(&sums)).unwrap_err();
    assert!(matches!(error, Error::Invalid { what: "sums", .. }), "{error}");
}
