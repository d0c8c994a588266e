//! What kernels read and write of global memory, against the sizes of the tensors.
use crate::support::cuda::on_device;
use crate::support::run::{self, Epilogue, Inputs, Mode, SavedOn, Want};
use batchnorm::{Activation, Cuda, Element, Shape};
use half::f16;

/// Reads and writes in units of a tensor.
#[derive(Debug, Clone, Copy)]
struct Passes {
    reads: f64,
    writes: f64,
}

impl Passes {
    /// Fails where it moves more than this many reads and writes, or suspiciously little.
    fn is_at_most(self, what: &str, reads: f64, writes: f64, factor: f64) {
        let (sum, bar) = (self.reads + self.writes, (reads + writes) * factor);
        assert!(
            sum <= bar,
            "{what}: {self:?}, expected at most {reads} + {writes}, times {factor}"
        );
        assert!(self.reads >= reads && self.writes >= writes, "{what}: {self:?} is too little");
    }
}

/// The passes of a forward, and of a backward where one is asked for.
fn measure<E: Element>(
    shape: &Shape,
    epilogue: Epilogue,
    mode: Mode,
    want: Option<Want>,
) -> [Passes; 2] {
    let softcuda = softcuda::install().unwrap();
    let device = softcuda.exclusive(softcuda::ordinal("mini").unwrap());
    let engine = on_device(device.ordinal()).unwrap();
    let inputs = Inputs::<E>::new(shape, epilogue, 3);
    let bytes = (shape.len() * size_of::<E>()) as f64;
    let mut seen = 0;
    let mut passes = || {
        let launches = device.launches().split_off(seen);
        seen += launches.len();
        let sum = |of: fn(&softcuda::Report) -> u64| {
            launches.iter().map(|launch| of(&launch.counts)).sum::<u64>() as f64 / bytes
        };
        Passes { reads: sum(|c| c.global_loads.bytes), writes: sum(|c| c.global_stores.bytes) }
    };
    let mut saved = SavedOn::<Cuda, E>::new();
    let kept = want.is_some().then_some(&mut saved);
    run::forward(&engine, &inputs, mode, kept).unwrap();
    let forward = passes();
    if let Some(want) = want {
        run::backward(&engine, &inputs, want, &saved, None).unwrap();
    }
    assert_eq!(device.faults(), [""; 0]);
    [forward, passes()]
}

/// Large planes, small odd planes, channels last: about a million elements.
fn shapes() -> [Shape; 3] {
    [&[16, 16, 4096][..], &[256, 64, 49], &[8192, 128]].map(|dims| Shape::new(dims, 1).unwrap())
}

const RELU: Epilogue = Epilogue { activation: Activation::Relu, ..Epilogue::PLAIN };

#[test]
fn inference_reads_and_writes_once() {
    for shape in shapes() {
        let [forward, _] = measure::<f32>(&shape, RELU, Mode::Eval, None);
        forward.is_at_most(&format!("f32 {shape}"), 1.0, 1.0, 1.02);
        let [forward, _] = measure::<f16>(&shape, RELU, Mode::Eval, None);
        forward.is_at_most(&format!("f16 {shape}"), 1.0, 1.0, 1.05);
    }
}

#[test]
fn training_reads_twice_and_its_backward_four_times() {
    fn train<E: Element>(shape: &Shape) {
        let want = Want { sums: false, ..Want::all(RELU) };
        let mode = Mode::Train(Some(0.1));
        let [forward, backward] = measure::<E>(shape, RELU, mode, Some(want));
        forward.is_at_most(&format!("{} {shape}, forward", E::DTYPE), 2.0, 1.0, 1.05);
        backward.is_at_most(&format!("{} {shape}, backward", E::DTYPE), 4.0, 1.0, 1.05);
    }
    for shape in shapes() {
        train::<f32>(&shape);
        train::<f16>(&shape);
    }
}

#[test]
fn frozen_statistics_take_one_pass_back() {
    for shape in shapes() {
        let want = Want { sums: false, ..Want::all(RELU) };
        let [_, backward] = measure::<f32>(&shape, RELU, Mode::Eval, Some(want));
        backward.is_at_most(&format!("f32 {shape}"), 2.0, 1.0, 1.05);
        // Frozen parameters, too, and no ReLU: x is not read.
        let alone = Want { grad_weight: false, grad_bias: false, ..want };
        let [_, backward] = measure::<f32>(&shape, Epilogue::PLAIN, Mode::Eval, Some(alone));
        backward.is_at_most(&format!("f32 {shape}, grad_x alone"), 1.0, 1.0, 1.05);
    }
}
