//! A small device, where small tensors take every way that there is through a training step.
use crate::support::cuda::{SPLIT, on_device, resident};
use crate::support::oracle::{self, judge};
use crate::support::run::{self, Epilogue, Inputs, Mode, Outcome, SavedOn, Want, same_bits};
use batchnorm::{Cuda, DType, Element, Engine, Op, Request, Shape, Tuning};
use half::{bf16, f16};
use std::collections::BTreeSet;
use std::num::NonZeroU32;

/// How an engine says that it will go.
fn regime<E: Element>(engine: &Cuda, inputs: &Inputs<E>, op: Op) -> &'static str {
    let Epilogue { activation, residual, .. } = inputs.epilogue;
    let request = Request::new(op, E::DTYPE).activation(activation).residual(residual);
    let text = engine.explain(&inputs.shape, request).unwrap();
    let Some((_, resident)) = text.split_once("_resident; ") else { return "split" };
    let words: Vec<&str> = resident.split(' ').collect();
    let of = words.windows(4).find(|words| words[1] == "of" && words[3] == "steps").unwrap();
    match (resident.contains("by a block each"), of[0] == of[2]) {
        (true, true) => "block",
        (true, false) => "block and memory",
        (false, true) => "group",
        (false, false) => "group and memory",
    }
}

/// A forward and its backward, right, and launched as it was said; blocks go in an order of the seed.
fn step<E: Element>(
    device: &softcuda::Device,
    engine: &Cuda,
    inputs: &Inputs<E>,
    seed: u64,
) -> Vec<Outcome> {
    let (epilogue, mode) = (inputs.epilogue, Mode::Train(Some(0.1)));
    let what = format!("{} {}, {epilogue:?}, {engine:?}", E::DTYPE, inputs.shape);
    let mut saved = SavedOn::<Cuda, E>::new();
    device.reset();
    device.set_seed(seed);
    let forward = run::forward(engine, inputs, mode, Some(&mut saved)).unwrap();
    judge(&what, E::DTYPE, &inputs.shape, &forward, &oracle::forward(inputs, mode));
    is_launched(device, regime(engine, inputs, Op::ForwardTrain), "forward", &what);
    let mut all = vec![];
    for other_way in [false, true] {
        let want = Want { accumulate: other_way, in_place: other_way, ..Want::all(epilogue) };
        device.reset();
        device.set_seed(seed);
        let gradients = run::backward(engine, inputs, want, &saved, None).unwrap();
        let right = oracle::backward(inputs, mode, want, &forward["y"], None);
        judge(&what, E::DTYPE, &inputs.shape, &gradients, &right);
        is_launched(device, regime(engine, inputs, Op::Backward), "backward", &what);
        all.push(gradients);
    }
    all.push(forward);
    all
}

fn is_launched(device: &softcuda::Device, regime: &str, name: &str, what: &str) {
    assert_eq!(device.faults(), [""; 0], "{what}");
    let launches = device.launches();
    if regime == "split" {
        assert!(launches.len() == 3 && !launches.iter().any(|l| l.cooperative), "{what}");
        return;
    }
    let [launch] = &launches[..] else { panic!("{what}: {launches:?}") };
    assert!(launch.kernel.starts_with(&format!("{name}_resident_")), "{what}: {launch:?}");
    assert_eq!(launch.cooperative, regime.starts_with("group"), "{what}: {launch:?}");
}

/// Channels last or a mean for every position; small planes, also odd ones; large planes. Some fit into
/// a block, some do not.
fn shapes() -> [Vec<Shape>; 3] {
    [
        &[&[64, 32][..], &[128, 32], &[1000, 48], &[32, 8 * 49]][..],
        &[&[16, 16, 12], &[32, 16, 12], &[150, 16, 12], &[9, 16, 49]],
        &[&[2, 3, 1000], &[4, 2, 1000], &[3, 5, 4096], &[1, 7, 264]],
    ]
    .map(|dims| dims.iter().map(|dims| Shape::new(dims, 1).unwrap()).collect())
}

#[test]
fn every_regime_is_right_in_every_layout() {
    fn every<E: Element>() {
        let softcuda = softcuda::install().unwrap();
        let device = softcuda.exclusive(softcuda::ordinal("mini").unwrap());
        let engine = on_device(device.ordinal()).unwrap();
        for shapes in shapes() {
            let mut seen = BTreeSet::new();
            for shape in &shapes {
                for (seed, epilogue) in Epilogue::affine().enumerate() {
                    let inputs = Inputs::<E>::new(shape, epilogue, seed as u64);
                    for tuning in [resident(0), resident(1), resident(2), resident(4), SPLIT] {
                        let engine = engine.tuned(tuning);
                        step(&device, &engine, &inputs, seed as u64);
                        seen.extend(
                            [Op::ForwardTrain, Op::Backward].map(|op| regime(&engine, &inputs, op)),
                        );
                    }
                }
            }
            let all = ["block", "block and memory", "group", "group and memory", "split"];
            assert_eq!(seen, all.into(), "{} {shapes:?}", E::DTYPE);
        }
    }
    every::<f32>();
    every::<f16>();
    every::<bf16>();
}

/// Plans that nobody would choose, but that measurements ask for.
#[test]
fn what_is_forced_is_right() {
    let softcuda = softcuda::install().unwrap();
    let device = softcuda.exclusive(softcuda::ordinal("sm_80").unwrap());
    let engine = on_device(device.ordinal()).unwrap();
    let inputs = Inputs::<f16>::new(&Shape::new(&[400, 64], 1).unwrap(), Epilogue::FULL, 6);
    let mut seen = BTreeSet::new();
    for blocks in [1, 3, 12] {
        for channels in [8, 16, 64] {
            for kept in [0, 1, 100] {
                let channels = NonZeroU32::new(channels).unwrap();
                let tuning = resident(blocks).channels(channels).kept(kept);
                let engine = engine.tuned(tuning);
                step(&device, &engine, &inputs, 1);
                let request = Request::new(Op::Backward, DType::F16).residual(true);
                let text = engine.explain(&inputs.shape, request).unwrap();
                assert!(text.contains(&format!("slices of {channels} channels")), "{text}");
                seen.insert(regime(&engine, &inputs, Op::Backward));
            }
        }
    }
    assert_eq!(seen.len(), 4, "{seen:?}");
}

/// What one saved, the other takes.
#[test]
fn families_take_what_the_other_has_saved() {
    let softcuda = softcuda::install().unwrap();
    let device = softcuda.exclusive(softcuda::ordinal("sm_75").unwrap());
    let engine = on_device(device.ordinal()).unwrap();
    let engines = [resident(0), SPLIT].map(|tuning| engine.tuned(tuning));
    for epilogue in Epilogue::affine() {
        let inputs = Inputs::<f16>::new(&Shape::new(&[5, 16, 24], 1).unwrap(), epilogue, 9);
        let mode = Mode::Train(None);
        for (first, second) in [(0, 1), (1, 0)] {
            let mut saved = SavedOn::<Cuda, f16>::new();
            let y = run::forward(&engines[first], &inputs, mode, Some(&mut saved)).unwrap();
            let want = Want::all(epilogue);
            let got = run::backward(&engines[second], &inputs, want, &saved, None).unwrap();
            let right = oracle::backward(&inputs, mode, want, &y["y"], None);
            judge("the other's", DType::F16, &inputs.shape, &got, &right);
        }
    }
    assert_eq!(device.faults(), [""; 0]);
}

/// Results of the split family are the same on all devices, those of every regime in all orders.
#[test]
fn bits_repeat() {
    let softcuda = softcuda::install().unwrap();
    let inputs = Inputs::<f32>::new(&Shape::new(&[40, 24, 36], 1).unwrap(), Epilogue::FULL, 4);
    let mut of_split = vec![];
    for profile in ["mini", "sm_75", "sm_90"] {
        let device = softcuda.exclusive(softcuda::ordinal(profile).unwrap());
        let engine = on_device(device.ordinal()).unwrap();
        for tuning in [SPLIT, resident(0), resident(2), Tuning::default()] {
            let engine = engine.tuned(tuning);
            let first = step(&device, &engine, &inputs, 1);
            for seed in 2..5 {
                let again = step(&device, &engine, &inputs, seed);
                let same = first.iter().zip(&again).all(|(a, b)| same_bits(a, b));
                assert!(same, "{profile}, {tuning:?}, seed {seed}");
            }
            if tuning == SPLIT {
                of_split.push(first);
            }
        }
    }
    for other in &of_split[1..] {
        assert!(of_split[0].iter().zip(other).all(|(a, b)| same_bits(a, b)));
    }
}

#[test]
fn a_prepared_step_makes_no_memory() {
    let softcuda = softcuda::install().unwrap();
    for (profile, tuning) in [("mini", resident(0)), ("sm_90", Tuning::default()), ("sm_80", SPLIT)]
    {
        let device = softcuda.exclusive(softcuda::ordinal(profile).unwrap());
        let engine = on_device(device.ordinal()).unwrap().tuned(tuning);
        let inputs = Inputs::<f32>::new(&Shape::new(&[300, 200], 1).unwrap(), Epilogue::PLAIN, 2);
        for op in [Op::ForwardTrain, Op::Backward] {
            let Epilogue { activation, residual, .. } = inputs.epilogue;
            let dtype = DType::F32;
            let request = Request::new(op, dtype).activation(activation).residual(residual);
            engine.prepare(&inputs.shape, request).unwrap();
        }
        engine.stream().synchronize().unwrap();
        let before = device.used();
        step(&device, &engine, &inputs, 1);
        engine.stream().synchronize().unwrap();
        assert_eq!(device.used(), before, "{profile}");
    }
}
