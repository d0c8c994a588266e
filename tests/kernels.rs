//! The kernels of `kernels/` by themselves, on the software device: every layout, alignment and cut
//! against the reference.
#![cfg(all(target_os = "linux", feature = "cuda"))]

#[path = "kernels/launch.rs"]
#[allow(unsafe_code)]
mod launch; // parameters as kernels/README.md lists them
#[path = "kernels/parameters.rs"]
mod parameters;
#[path = "kernels/ptx.rs"]
mod ptx; // the texts that ship
#[path = "kernels/resident.rs"]
mod resident;
#[path = "kernels/rows.rs"]
mod rows;
#[path = "kernels/step.rs"]
mod step; // the steps of each operation
#[path = "support/mod.rs"]
mod support;

use batchnorm::{Activation, Element, Shape};
use half::{bf16, f16};
use launch::{Device, Layout};
use step::{Kernels, Step};
use support::oracle::{self, judge};
use support::run::{Epilogue, Inputs, Mode, Spread, Want, same_bits};

const TRAIN: Mode = Mode::Train(Some(0.1));

fn layouts() -> Vec<(Shape, Layout)> {
    let shape = |dims: &[usize], axis| Shape::new(dims, axis).unwrap();
    let layout =
        |width, channels, threads, tile| Layout { width, channels, threads, tile, lead: 0 };
    vec![
        // Runs: whole vectors, threads that fit the plane and that do not.
        (shape(&[3, 5, 64], 1), layout(Layout::VECTOR, 1, 32, 64)),
        (shape(&[2, 3, 200], 1), layout(Layout::VECTOR, 1, 96, 96)),
        // A short plane, several rows per step.
        (shape(&[40, 2, 16], 1), layout(Layout::VECTOR, 1, 50, 50)),
        // Runs, one by one; the last tile is short.
        (shape(&[7, 3, 49], 1), layout(1, 1, 128, 128)),
        (shape(&[1, 2, 1], 1), layout(1, 1, 32, 32)),
        // Columns: channels last, the last slice short, more rows than threads.
        (shape(&[150, 24], 1), layout(Layout::VECTOR, 16, 4, 32)),
        (shape(&[150, 21], 1), layout(1, 8, 64, 128)),
        // Columns: channels of several columns that begin inside of vectors.
        (shape(&[9, 16, 7], 1), layout(Layout::VECTOR, 8, 112, 112)),
        (shape(&[5, 9, 3], 1), layout(1, 4, 24, 48)),
    ]
}

fn agrees<E: Kernels>(profile: &str, lead: usize) {
    for (shape, layout) in layouts() {
        let layout = Layout { lead, ..layout };
        if layout.vectors::<E>(&shape).is_none() {
            continue;
        }
        let others = Epilogue::others().map(|epilogue| (epilogue, TRAIN));
        for (epilogue, mode) in [
            (Epilogue::PLAIN, TRAIN),
            (Epilogue { activation: Activation::Relu, ..Epilogue::PLAIN }, TRAIN),
            (Epilogue::FULL, TRAIN),
            (Epilogue::FULL, Mode::Eval),
            (Epilogue { activation: Activation::Relu, ..Epilogue::PLAIN }, Mode::Eval),
            (Epilogue { activation: Activation::Silu, ..Epilogue::FULL }, Mode::Eval),
            (Epilogue { activation: Activation::Relu6, ..Epilogue::FULL }, Mode::Eval),
        ]
        .into_iter()
        .chain(others)
        {
            if mode == TRAIN && shape.per_channel() < 2 {
                continue;
            }
            let what = format!("{}, {shape}, {layout:?}, {epilogue:?}, {mode:?}", E::DTYPE);
            println!("{what}");
            let inputs = Inputs::<E>::new(&shape, epilogue, 1);
            let device = Device::new(profile);
            let got =
                Step { device: &device, inputs: &inputs, layout, mode, cuts: [None; 2] }.run();
            device.finish(&what);
            let mut right = oracle::forward(&inputs, mode);
            right.extend(oracle::backward(&inputs, mode, Want::all(epilogue), &got["y"], None));
            judge(&what, E::DTYPE, &shape, &got, &right);
        }
    }
}

#[test]
fn f32_agrees() {
    agrees::<f32>("sm_90", 0);
}

#[test]
fn f64_agrees() {
    agrees::<f64>("sm_90", 0);
}

#[test]
fn f16_agrees() {
    agrees::<f16>("sm_80", 0);
}

#[test]
fn bf16_agrees_on_every_target() {
    for profile in ["sm_90", "sm_80", "sm_75", "mini"] {
        agrees::<bf16>(profile, 0);
    }
}

#[test]
fn tensors_that_are_not_aligned_agree() {
    agrees::<f32>("sm_90", 1);
    agrees::<f16>("sm_75", 3);
}

/// A mean of many deviations; and first values, which set the pivot, far from all that follow.
#[test]
fn pivots_follow_the_values() {
    let shape = Shape::new(&[6000, 4], 1).unwrap();
    let layout = Layout::of(1, 4, 32, 24_000);
    let spread = |mean| Spread { mean, std: 1.0 };
    let large = Inputs::<f32>::spread(&shape, Epilogue::FULL, spread(1e6), 2);
    let mut moving = Inputs::<f32>::spread(&shape, Epilogue::FULL, spread(0.0), 3);
    moving.x[..4 * 32].iter_mut().for_each(|x| *x += 3e4);
    for inputs in [large, moving] {
        let device = Device::new("sm_90");
        let got =
            Step { device: &device, inputs: &inputs, layout, mode: TRAIN, cuts: [None; 2] }.run();
        device.finish("pivots");
        let mut right = oracle::forward(&inputs, TRAIN);
        right.extend(oracle::backward(&inputs, TRAIN, Want::all(Epilogue::FULL), &got["y"], None));
        judge("pivots", f32::DTYPE, &shape, &got, &right);
    }
}

/// The order of blocks and warps changes no bit.
#[test]
fn every_seed_gives_the_same_bits() {
    for (shape, layout) in layouts() {
        let mode = if shape.per_channel() > 1 { TRAIN } else { Mode::Eval };
        let inputs = Inputs::<f16>::new(&shape, Epilogue::FULL, 4);
        if layout.vectors::<f16>(&shape).is_none() {
            continue;
        }
        let outcomes = [1, 2, 3].map(|seed| {
            let device = Device::new("sm_90");
            device.set_seed(seed);
            let got =
                Step { device: &device, inputs: &inputs, layout, mode, cuts: [None; 2] }.run();
            device.finish("seeds");
            got
        });
        let same = outcomes.iter().all(|outcome| same_bits(outcome, &outcomes[0]));
        assert!(same, "{shape}, {layout:?}");
    }
}

/// What kernels/README.md derives. Beside the tensors: coefficients, partials and first values.
#[test]
fn traffic_is_what_the_table_says() {
    for (shape, layout) in [
        (Shape::new(&[16, 4, 2048], 1).unwrap(), Layout::of(Layout::VECTOR, 1, 128, 2048)),
        (Shape::new(&[4096, 64], 1).unwrap(), Layout::of(Layout::VECTOR, 32, 128, 4096)),
    ] {
        let inputs = Inputs::<f16>::new(&shape, Epilogue::PLAIN, 3);
        let device = Device::new("sm_90");
        let bytes = 2.0 * shape.len() as f64;
        let mut step =
            Step { device: &device, inputs: &inputs, layout, mode: TRAIN, cuts: [None; 2] };
        step.run();
        let [forward, backward] = device.traffic().map(|b| b as f64 / bytes);
        assert!((3.0..3.0 * 1.05).contains(&forward), "{shape}: forward {forward}");
        assert!((5.0..5.0 * 1.05).contains(&backward), "{shape}: backward {backward}");
        step.mode = Mode::Eval;
        step.run();
        let [forward, backward] = device.traffic().map(|b| b as f64 / bytes);
        assert!((2.0..2.0 * 1.05).contains(&forward), "{shape}: inference {forward}");
        assert!((3.0..3.0 * 1.05).contains(&backward), "{shape}: frozen backward {backward}");
        device.finish("traffic");
    }
}
