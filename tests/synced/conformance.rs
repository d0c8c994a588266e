//! A batch in parts on several ranks is one whole batch: every shape, dtype and epilogue, forward and backward.
use crate::support::oracle::{self, judge};
use crate::support::run::{self, Epilogue, Inputs, Masked, Mode, Outcome, SavedOn, Spread, Want};
use crate::support::shapes::{CHANNELS_LAST, SMALL, cases};
use crate::world::{LONG, OfRanks, Part, on_engines, on_ranks_in_steps, parts};
use batchnorm::{AllMasked, Element, Engine, Error, OneValue, Shape};
use half::{bf16, f16};

on_engines! {
    every_shape_is_one_batch_f64,
    every_shape_is_one_batch_f32,
    every_shape_is_one_batch_f16,
    every_shape_is_one_batch_bf16,
    every_presence_of_parameters_is_one_batch,
    gathers_in_steps_are_one_batch,
    large_means_keep_their_digits,
    one_value_per_channel_on_all_ranks_is_refused_on_all,
}

pub const MODE: Mode = Mode::Train(Some(0.3));

fn every_shape_is_one_batch_f64<G: OfRanks>() {
    every_shape::<f64, G>();
}
fn every_shape_is_one_batch_f32<G: OfRanks>() {
    every_shape::<f32, G>();
}
fn every_shape_is_one_batch_f16<G: OfRanks>() {
    every_shape::<f16, G>();
}
fn every_shape_is_one_batch_bf16<G: OfRanks>() {
    every_shape::<bf16, G>();
}

fn every_shape<E: Element, G: OfRanks>() {
    let others: Vec<Epilogue> = Epilogue::others().collect();
    for (seed, case) in cases().iter().enumerate() {
        if case.shape().per_channel() == 1 {
            continue;
        }
        let all: Vec<Epilogue> =
            Epilogue::affine().chain([others[7 * seed % others.len()]]).collect();
        let some = [all[seed % 4], all[4]];
        for (k, &epilogue) in (if G::IS_FAST { &all[..] } else { &some }).iter().enumerate() {
            let whole = Inputs::<E>::new(&case.shape(), epilogue, seed as u64);
            let what = format!("{}, {:?} ({}), {epilogue:?}", E::DTYPE, case.dims, case.why);
            for ranks in if G::IS_FAST { 1..=4 } else { 2 + (seed + k) % 3..=2 + (seed + k) % 3 } {
                one_batch::<E, G>(&what, &whole, ranks, 16, seed + k);
            }
        }
    }
}

/// What a rank has of a step.
pub struct Step {
    forward: Outcome,
    gradients: Outcome,
    is_frozen: Option<bool>,
}

/// Forward and backward of a batch on so many ranks, against the reference on all of it.
pub fn one_batch<E: Element, G: OfRanks>(
    what: &str,
    whole: &Inputs<E>,
    ranks: usize,
    at_once: usize,
    way: usize,
) {
    let what = format!("{what}, {ranks} ranks, split {}", way % 3);
    let parts = parts(whole, ranks, way);
    let steps = on_ranks_in_steps::<G, _>(ranks, at_once, LONG, |rank, engine| {
        step(&engine, &parts[rank].inputs, rank)
    });
    judge_steps(&what, whole, &parts, &steps);
}

/// Forward and backward of a rank's part.
pub fn step<E: Element, G: Engine>(engine: &G, mine: &Inputs<E>, rank: usize) -> Step {
    let mut saved = SavedOn::<G, E>::new();
    let forward = run::forward(engine, mine, MODE, Some(&mut saved)).unwrap();
    let all = Want::all(mine.epilogue);
    let want = Want { in_place: rank % 2 == 1, accumulate: rank == 0, ..all };
    let gradients = run::backward(engine, mine, want, &saved, None).unwrap();
    Step { forward, gradients, is_frozen: saved.is_frozen() }
}

/// What the ranks have of their parts, against the reference on the whole batch; running statistics bit by bit.
pub fn judge_steps<E: Element>(what: &str, whole: &Inputs<E>, parts: &[Part<E>], steps: &[Step]) {
    let all = Want::all(whole.epilogue);
    let mut got = Outcome::from([("y", vec![0.0; whole.shape.len()])]);
    let mut gradients = Outcome::new();
    for (step, part) in steps.iter().zip(parts) {
        assert_eq!(step.is_frozen, Some(false), "{what}");
        for (name, values) in &step.forward {
            match *name {
                "y" => scatter(got.get_mut("y").unwrap(), part, values),
                name => {
                    // Of all parts, on every rank in the same bits.
                    let first = got.entry(name).or_insert_with(|| values.clone());
                    let bits = |v: &[f64]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                    assert_eq!(bits(first), bits(values), "{what}: {name}");
                }
            }
        }
        for (name, values) in &step.gradients {
            let len = if is_tensor(name) { whole.shape.len() } else { values.len() };
            let to = gradients.entry(*name).or_insert_with(|| vec![0.0; len]);
            match is_tensor(name) {
                true => scatter(to, part, values),
                false => to.iter_mut().zip(values).for_each(|(sum, value)| *sum += value),
            }
        }
    }
    judge(what, E::DTYPE, &whole.shape, &got, &oracle::forward(whole, MODE));
    let want = Want { accumulate: true, ..all };
    let right = oracle::backward(whole, MODE, want, &got["y"], None);
    judge(what, E::DTYPE, &whole.shape, &gradients, &right);
}

fn is_tensor(name: &str) -> bool {
    ["grad_x", "grad_residual"].contains(&name)
}
fn scatter<E: Element>(to: &mut [f64], part: &Part<E>, values: &[f64]) {
    assert_eq!(values.len(), part.at.len());
    part.at.iter().zip(values).for_each(|(&at, &value)| to[at] = value);
}

fn every_presence_of_parameters_is_one_batch<G: OfRanks>() {
    fn of<E: Element, G: OfRanks>() {
        for (k, epilogue) in Epilogue::all().chain(Epilogue::others()).enumerate() {
            let case = [SMALL, CHANNELS_LAST][k % 2];
            let whole = Inputs::<E>::new(&case.shape(), epilogue, 21);
            one_batch::<E, G>(&format!("{}, {epilogue:?}", E::DTYPE), &whole, 2 + k % 2, 16, k);
        }
    }
    of::<f64, G>();
    of::<f32, G>();
    of::<f16, G>();
    of::<bf16, G>();
}

fn gathers_in_steps_are_one_batch<G: OfRanks>() {
    for (ranks, at_once) in [(4, 2), (6, 2), (6, 3), (8, 2), (12, 4)] {
        if ranks > 4 && !G::IS_FAST {
            continue;
        }
        for way in 0..3 {
            let shape = Shape::new(&[13, 5, 3], 1).unwrap();
            let whole = Inputs::<f32>::new(&shape, Epilogue::FULL, 3);
            one_batch::<f32, G>(&format!("steps of {at_once}"), &whole, ranks, at_once, way);
        }
    }
}

/// Where the mean is up to 1e6 deviations away from 0, parts have the digits of the whole batch, which one
/// engine has too: y as the reference has it within some units of f32.
fn large_means_keep_their_digits<G: OfRanks>() {
    means_keep_their_digits::<G>(false);
}
pub fn means_keep_their_digits<G: OfRanks>(masked: bool) {
    fn of<E: Element, G: OfRanks>(mean: f64, limit: f64, masked: bool) {
        let shape = Shape::new(&[60, 3], 1).unwrap();
        let spread = Spread { mean, std: 1.0 };
        let mut whole = Inputs::<E>::spread(&shape, Epilogue::PLAIN, spread, 11);
        let places = (0..60).map(|i| u8::from(i % 5 > 0)).collect();
        let all_masked = AllMasked::Keep;
        let mask = Masked { places, last: None, count_eps: 0.0, all_masked };
        whole.mask = masked.then_some(mask);
        let right = oracle::forward(&whole, MODE);
        for way in 0..3 {
            let parts = parts(&whole, 3, way);
            let steps = on_ranks_in_steps::<G, _>(3, 16, LONG, |rank, engine| {
                let (mine, mut saved) = (&parts[rank].inputs, SavedOn::<G, E>::new());
                let y = run::forward(&engine, mine, MODE, Some(&mut saved)).unwrap();
                let want = Want::all(mine.epilogue);
                (y, run::backward(&engine, mine, want, &saved, None).unwrap())
            });
            let mut got = Outcome::new();
            for ((forward, backward), part) in steps.iter().zip(&parts) {
                for (name, values) in [("y", &forward["y"]), ("grad_x", &backward["grad_x"])] {
                    let to = got.entry(name).or_insert_with(|| vec![0.0; shape.len()]);
                    scatter(to, part, values);
                }
            }
            let gradients =
                oracle::backward(&whole, MODE, Want::all(whole.epilogue), &got["y"], None);
            for (name, right) in [("y", &right["y"]), ("grad_x", &gradients["grad_x"])] {
                for (i, (got, right)) in got[name].iter().zip(&right.values).enumerate() {
                    let off = (got - right).abs();
                    assert!(off <= limit, "mean {mean}, {name}[{i}] is {got}, right {right}");
                }
            }
        }
    }
    for mean in [1e2, 1e4, 1e6] {
        of::<f32, G>(mean, 4e-6, masked);
        of::<f64, G>(mean, 1e-13 * mean, masked);
    }
}

fn one_value_per_channel_on_all_ranks_is_refused_on_all<G: OfRanks>() {
    let shape = Shape::new(&[1, 4], 1).unwrap();
    for one_value in [OneValue::Refuse, OneValue::ZeroVariance, OneValue::KeepVariance] {
        let mut whole = Inputs::<f32>::new(&shape, Epilogue::PLAIN, 5);
        whole.rules.one_value = one_value;
        let parts = parts(&whole, 3, 1); // the last rank has it
        let steps = on_ranks_in_steps::<G, _>(3, 16, LONG, |rank, engine| {
            run::forward(&engine, &parts[rank].inputs, MODE, None)
        });
        if one_value == OneValue::Refuse {
            for step in steps {
                let error = step.unwrap_err();
                assert!(matches!(error, Error::Invalid { what: "x", .. }), "{error}");
            }
            continue;
        }
        let right = oracle::forward(&whole, MODE);
        for step in steps {
            let mut got = step.unwrap();
            got.retain(|name, values| *name != "y" || !values.is_empty());
            judge("one value", batchnorm::DType::F32, &shape, &got, &right);
        }
    }
}
