//! The resident family: groups of one block and of several, tensors that fit in shared memory and that do not.
use crate::TRAIN;
use crate::launch::{Device, Layout};
use crate::step::{Cut, Kernels, Step};
use crate::support::oracle::{self, Expected, judge};
use crate::support::run::{Epilogue, Inputs, Spread, Want, same_bits};
use batchnorm::{Activation, Element, Shape};
use half::{bf16, f16};

const RELU: Epilogue = Epilogue { activation: Activation::Relu, ..Epilogue::PLAIN };

/// Shapes whose rows are whole vectors, and the threads of a block.
fn layouts() -> Vec<(Shape, Layout)> {
    let shape = |dims: &[usize], axis| Shape::new(dims, axis).unwrap();
    let layout = |channels, threads| Layout::of(Layout::VECTOR, channels, threads, threads);
    vec![
        // Runs: planes of many steps, and of less than one.
        (shape(&[3, 5, 800], 1), layout(1, 64)),
        (shape(&[2, 3, 200], 1), layout(1, 96)),
        (shape(&[70, 4, 16], 1), layout(1, 50)),
        // Columns: channels last, the last slice short.
        (shape(&[300, 24], 1), layout(16, 32)),
        // More channels than a warp has lanes, and than a block has threads.
        (shape(&[40, 80], 1), layout(40, 120)),
        (shape(&[9, 320], 1), layout(320, 80)),
        // Columns of several lanes per channel, that begin inside of vectors; more than a warp has.
        (shape(&[60, 16, 7], 1), layout(8, 56)),
        (shape(&[30, 16, 49], 1), layout(8, 196)),
    ]
}

/// R1, R2 with a group for each slice and with fewer groups, R3, and one that keeps nothing; with blocks that
/// get no vectors.
const CUTS: [Cut; 5] = [
    Cut { blocks: 1, groups: 2, kept: 64 },
    Cut { blocks: 3, groups: 1, kept: 32 },
    Cut { blocks: 5, groups: 2, kept: 16 },
    Cut { blocks: 2, groups: 2, kept: 1 },
    Cut { blocks: 1, groups: 1, kept: 0 },
];

fn right<E: Element>(inputs: &Inputs<E>, y: &[f64]) -> Expected {
    let mut right = oracle::forward(inputs, TRAIN);
    right.extend(oracle::backward(inputs, TRAIN, Want::all(inputs.epilogue), y, None));
    right
}

fn agrees<E: Kernels>(profile: &str) {
    let others: Vec<Epilogue> = Epilogue::others().collect();
    for (l, (shape, layout)) in layouts().into_iter().enumerate() {
        if layout.vectors::<E>(&shape).is_none() {
            continue;
        }
        for (i, cut) in CUTS.into_iter().enumerate() {
            let slices = shape.channels().div_ceil(layout.channels);
            let cut = Some(Cut { groups: cut.groups.min(slices), ..cut });
            let some = [0, 5].map(|k| others[(3 * l + i + k) % others.len()]);
            let epilogues = [Epilogue::PLAIN, RELU, Epilogue::FULL].into_iter().chain(some);
            for (j, epilogue) in epilogues.enumerate() {
                // Either family may follow the other.
                let cuts = [[cut, cut], [cut, None], [None, cut]][(i + j) % 3];
                let what = format!("{}, {shape}, {layout:?}, {cuts:?}, {epilogue:?}", E::DTYPE);
                println!("{what}");
                let inputs = Inputs::<E>::new(&shape, epilogue, 1);
                let device = Device::new(profile);
                let got =
                    Step { device: &device, inputs: &inputs, layout, mode: TRAIN, cuts }.run();
                device.finish(&what);
                judge(&what, E::DTYPE, &shape, &got, &right(&inputs, &got["y"]));
            }
        }
    }
}

#[test]
fn f32_agrees() {
    agrees::<f32>("sm_90");
}

#[test]
fn f16_agrees() {
    agrees::<f16>("sm_80");
}

#[test]
fn bf16_agrees() {
    agrees::<bf16>("sm_90");
    agrees::<bf16>("sm_75");
}

/// A mean of many deviations; and values that set the pivots far from all that follow, the first among them.
#[test]
fn pivots_follow_the_values() {
    let shape = Shape::new(&[6000, 4], 1).unwrap();
    let layout = Layout::of(Layout::VECTOR, 4, 32, 32);
    let spread = |mean| Spread { mean, std: 1.0 };
    let large = |mean, seed| Inputs::<f32>::spread(&shape, Epilogue::FULL, spread(mean), seed);
    let mut moving = large(0.0, 3);
    moving.x[..4 * 32].iter_mut().for_each(|x| *x += 3e4);
    for inputs in [large(1e6, 2), large(1e8, 4), moving] {
        for kept in [200, 20] {
            let cuts = [Some(Cut { blocks: 2, groups: 1, kept }); 2];
            let device = Device::new("sm_90");
            let got = Step { device: &device, inputs: &inputs, layout, mode: TRAIN, cuts }.run();
            device.finish("pivots");
            judge("pivots", f32::DTYPE, &shape, &got, &right(&inputs, &got["y"]));
        }
    }
}

/// Squares beyond f32: the statistics are computed again, in f64, by the block that finishes them.
#[test]
fn squares_beyond_f32_are_computed_again() {
    for (shape, layout) in layouts() {
        if layout.vectors::<f32>(&shape).is_none() {
            continue;
        }
        let spread = Spread { mean: 3e24, std: 1e25 };
        let inputs = Inputs::<f32>::spread(&shape, RELU, spread, 5);
        for cut in CUTS {
            let slices = shape.channels().div_ceil(layout.channels);
            let cuts = [Some(Cut { groups: cut.groups.min(slices), ..cut }); 2];
            let device = Device::new("sm_90");
            let got = Step { device: &device, inputs: &inputs, layout, mode: TRAIN, cuts }.run();
            device.finish("squares");
            judge(
                &format!("{shape}, {cut:?}"),
                f32::DTYPE,
                &shape,
                &got,
                &right(&inputs, &got["y"]),
            );
        }
    }
}

/// Whichever block arrives last: the sums are taken in the order of the blocks.
#[test]
fn every_seed_gives_the_same_bits() {
    for (shape, layout) in layouts() {
        let inputs = Inputs::<f32>::new(&shape, Epilogue::FULL, 4);
        if layout.vectors::<f32>(&shape).is_none() {
            continue;
        }
        let cuts = [Some(Cut { blocks: 7, groups: 1, kept: 2 }); 2];
        let outcomes = [1, 2, 3].map(|seed| {
            let device = Device::new("sm_90");
            device.set_seed(seed);
            let got = Step { device: &device, inputs: &inputs, layout, mode: TRAIN, cuts }.run();
            device.finish("seeds");
            got
        });
        assert!(outcomes.iter().all(|outcome| same_bits(outcome, &outcomes[0])), "{shape}");
    }
}

/// What kernels/README.md derives: x is read once, but for what does not fit.
#[test]
fn traffic_is_what_the_table_says() {
    for (shape, layout) in [
        (Shape::new(&[16, 4, 2048], 1).unwrap(), Layout::of(Layout::VECTOR, 1, 128, 128)),
        (Shape::new(&[1536, 64], 1).unwrap(), Layout::of(Layout::VECTOR, 32, 128, 128)),
    ] {
        let traffic = |epilogue, blocks, kept| {
            let inputs = Inputs::<f16>::new(&shape, epilogue, 3);
            let device = Device::new("sm_90");
            let cuts = [Some(Cut { blocks, groups: 2, kept }); 2];
            Step { device: &device, inputs: &inputs, layout, mode: TRAIN, cuts }.run();
            let passes = device.traffic().map(|bytes| bytes as f64 / (2.0 * shape.len() as f64));
            device.finish("traffic");
            passes
        };
        for blocks in [1, 4] {
            let [forward, backward] = traffic(Epilogue::PLAIN, blocks, 128);
            assert!((2.0..2.0 * 1.05).contains(&forward), "{shape}: forward {forward}");
            assert!((3.0..3.0 * 1.05).contains(&backward), "{shape}: backward {backward}");
            let full = traffic(Epilogue::FULL, blocks, 128);
            for (full, plain) in full.into_iter().zip([forward, backward]) {
                assert!((1.0..1.1).contains(&(full - plain)), "{shape}: {full}, {plain} without");
            }
        }
        // A quarter of a block's steps does not fit.
        let steps = layout.vectors::<f16>(&shape).unwrap() / layout.threads / 4;
        let [forward, backward] = traffic(Epilogue::PLAIN, 4, steps - steps / 4);
        assert!((2.25..2.25 * 1.05).contains(&forward), "{shape}: forward {forward}, spilled");
        assert!((3.5..3.5 * 1.05).contains(&backward), "{shape}: backward {backward}, spilled");
    }
}
