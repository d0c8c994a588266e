//! Shapes that are cut in every way: the engine's results are the reference's, and the same bits on other threads and
//! in place.
use super::bytes::Bytes;
use crate::support::oracle::{self, judge, served};
use crate::support::run::{
    self, Epilogue, Inputs, Mode, Outcome, SavedOn, Spread, Want, same_bits,
};
use batchnorm::{Cpu, Element, Engine, Shape};
use half::{bf16, f16};
use std::sync::OnceLock;

/// Elements of a shape, at most: two tasks and some.
const MOST: usize = 150_000;
/// The same on a device that is interpreted.
#[cfg(all(feature = "cuda", target_os = "linux"))]
const MOST_OF_DEVICE: usize = 3000;

pub fn run(input: &[u8]) {
    let mut input = Bytes(input);
    match input.below(4) {
        0 => one::<f32>(&mut input),
        1 => one::<bf16>(&mut input),
        2 => one::<f16>(&mut input),
        _ => one::<f64>(&mut input),
    }
}

fn one<E: Element>(input: &mut Bytes) {
    let most = input.pick(&[500, 2000, 10_000, MOST]);
    let shape = shape(input, most);
    let epilogue = Epilogue::all().nth(input.below(16)).expect("sixteen");
    let mode = match shape.per_channel() {
        1 => Mode::Eval,
        _ => input.pick(&[Mode::Train(Some(0.1)), Mode::Train(None), Mode::Eval]),
    };
    let spread =
        Spread { mean: input.pick(&[0.5, 0.0, -20.0, 300.0]), std: input.pick(&[1.0, 0.1, 30.0]) };
    let in_place = input.one_in(3);
    let inputs = Inputs::<E>::spread(&shape, epilogue, spread, input.byte().into());
    let cpu = Cpu::default();
    let here = step(&cpu, &inputs, mode, in_place);
    static POOL: OnceLock<rayon::ThreadPool> = OnceLock::new();
    let pool = || rayon::ThreadPoolBuilder::new().num_threads(3).build().expect("threads");
    let there = POOL.get_or_init(pool).install(|| step(&cpu, &inputs, mode, in_place));
    assert!(same_bits(&here, &there), "{shape}, {mode:?}, {epilogue:?}: other bits on 3 threads");
    #[cfg(all(feature = "cuda", target_os = "linux"))]
    if shape.len() <= MOST_OF_DEVICE && input.one_in(4) {
        let (engine, split) = (crate::support::cuda::engine(), crate::support::cuda::split());
        step(if input.one_in(2) { &split } else { &engine }, &inputs, mode, in_place);
    }
}

/// Of every magnitude, most of them near powers of two.
fn shape(input: &mut Bytes, most: usize) -> Shape {
    let mut left = most;
    let mut size = |input: &mut Bytes| {
        let power = 1usize << input.below(18);
        let size = match input.below(4) {
            0 => power,
            1 => power + 1,
            2 => power - 1,
            _ => power + input.below(power),
        };
        let size = size.clamp(input.below(40).min(1), left.max(1));
        left /= size.max(1);
        size
    };
    let mut dims = [size(input), size(input), size(input)];
    dims.rotate_left(input.below(3));
    dims[1] = dims[1].max(1);
    Shape::new(&dims, 1).expect("a small tensor")
}

/// Forward and backward by the reference's measure.
fn step<E: Element, G: Engine>(
    engine: &G,
    inputs: &Inputs<E>,
    mode: Mode,
    in_place: bool,
) -> Outcome {
    let what = format!("{}, {}, {mode:?}, {:?}", engine.name(), inputs.shape, inputs.epilogue);
    let (want, mut saved) =
        (Want { in_place, ..Want::all(inputs.epilogue) }, SavedOn::<G, E>::new());
    let mut right = oracle::forward(inputs, mode);
    let mut got =
        served(run::forward(engine, inputs, mode, Some(&mut saved))).expect("serves everything");
    if mode == Mode::Eval {
        let over_x =
            served(run::forward(engine, inputs, Mode::InPlace, None)).expect("serves everything");
        assert!(over_x["y"] == got["y"], "{what}: in place");
    }
    got.extend(
        served(run::backward(engine, inputs, want, &saved, None)).expect("serves everything"),
    );
    right.extend(oracle::backward(inputs, mode, want, &got["y"], None));
    judge(&what, E::DTYPE, &inputs.shape, &got, &right);
    got
}
