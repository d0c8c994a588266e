//! What kernels read and write of global memory, against the sizes of the tensors, and all else that is counted.
use crate::counts;
use crate::support::cuda::{self, on_device};
use crate::support::run::{self, Epilogue, Inputs, Mode, SavedOn, Want};
use batchnorm::{Activation, Cuda, Element, Family, Shape, Tuning};
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

const SPLIT: (&str, Tuning) = ("mini", cuda::SPLIT);
/// On a device that has room for a million elements, even where several launches should be faster.
const RESIDENT: (&str, Tuning) = ("sm_90", Tuning::new(Family::Resident { blocks: None }));

/// The passes of a forward, and of a backward where one is asked for.
fn measure<E: Element>(
    (profile, tuning): (&str, Tuning),
    shape: &Shape,
    epilogue: Epilogue,
    mode: Mode,
    want: Option<Want>,
) -> [Passes; 2] {
    let softcuda = softcuda::install().unwrap();
    let device = softcuda.exclusive(softcuda::ordinal(profile).unwrap());
    let engine = on_device(device.ordinal()).unwrap().tuned(tuning);
    let inputs = Inputs::<E>::new(shape, epilogue, 3);
    let bytes = (shape.len() * size_of::<E>()) as f64;
    let mut seen = 0;
    let case = |step: &str| {
        let Epilogue { activation, residual, .. } = epilogue;
        let [outer, channels, inner] = [shape.outer(), shape.channels(), shape.inner()];
        let family = if tuning.family == Family::Split { "split" } else { "resident" };
        let sums = match want {
            None => "",
            Some(want) if want.grad_weight => ", saved",
            Some(_) => ", saved, no sums",
        };
        let (added, mode) = (if residual { "+residual" } else { "" }, format!("{mode:?}"));
        let mode = mode.split('(').next().unwrap_or_default();
        let dtype = E::DTYPE;
        format!(
            "{dtype} {outer}x{channels}x{inner} {activation}{added} {mode} {step}, {family}{sums}"
        )
    };
    let mut passes = |step: &str| {
        let launches = device.launches().split_off(seen);
        seen += launches.len();
        if !launches.is_empty() {
            counts::check(&case(step), &launches);
        }
        let resident =
            launches.iter().filter(|launch| launch.kernel.contains("_resident_")).count();
        let in_one = launches.len() == 1 && resident == 1;
        let trains = matches!(mode, Mode::Train(_)) && tuning.family != Family::Split;
        assert_eq!((in_one, resident > 0), (trains, trains), "{shape}");
        let sum = |of: fn(&softcuda::Report) -> u64| {
            launches.iter().map(|launch| of(&launch.counts)).sum::<u64>() as f64 / bytes
        };
        Passes { reads: sum(|c| c.global_loads.bytes), writes: sum(|c| c.global_stores.bytes) }
    };
    let mut saved = SavedOn::<Cuda, E>::new();
    let kept = want.is_some().then_some(&mut saved);
    run::forward(&engine, &inputs, mode, kept).unwrap();
    let forward = passes("forward");
    if mode == Mode::Eval {
        assert_eq!(device.launches().len(), 1, "{shape}: inference is one launch");
    }
    if let Some(want) = want {
        run::backward(&engine, &inputs, want, &saved, None).unwrap();
    }
    assert_eq!(device.faults(), [""; 0]);
    [forward, passes("backward")]
}

/// Large planes, small odd planes, channels last: about a million elements.
fn shapes() -> [Shape; 3] {
    [&[16, 16, 4096][..], &[256, 64, 49], &[8192, 128]].map(|dims| Shape::new(dims, 1).unwrap())
}

const RELU: Epilogue = Epilogue { activation: Activation::Relu, ..Epilogue::PLAIN };

#[test]
fn inference_reads_and_writes_once() {
    for shape in shapes() {
        let [forward, _] = measure::<f32>(SPLIT, &shape, RELU, Mode::Eval, None);
        forward.is_at_most(&format!("f32 {shape}"), 1.0, 1.0, 1.02);
        let [forward, _] = measure::<f16>(SPLIT, &shape, RELU, Mode::Eval, None);
        forward.is_at_most(&format!("f16 {shape}"), 1.0, 1.0, 1.05);
    }
}

#[test]
fn a_resident_step_reads_and_writes_every_tensor_once() {
    fn train<E: Element>(shape: &Shape) {
        let passes = |epilogue| {
            let want = Want { sums: false, ..Want::all(epilogue) };
            measure::<E>(RESIDENT, shape, epilogue, Mode::Train(Some(0.1)), Some(want))
        };
        let what = format!("{} {shape}", E::DTYPE);
        let [forward, backward] = passes(RELU);
        forward.is_at_most(&format!("{what}, forward"), 1.0, 1.0, 1.05);
        backward.is_at_most(&format!("{what}, backward"), 2.0, 1.0, 1.05);
        // x and residual, y and mask; gradient of y, x and mask, gradients of both.
        let [forward, backward] = passes(Epilogue::FULL);
        let more = |passes: Passes, plain: f64| passes.reads + passes.writes - plain;
        assert!(more(forward, 2.0) <= 1.1 + 0.05 * 2.0, "{what}, forward: {forward:?}");
        assert!(more(backward, 3.0) <= 1.1 + 0.05 * 3.0, "{what}, backward: {backward:?}");
    }
    for shape in shapes() {
        train::<f32>(&shape);
        train::<f16>(&shape);
    }
}

#[test]
fn training_reads_twice_and_its_backward_four_times() {
    fn train<E: Element>(shape: &Shape) {
        let want = Want { sums: false, ..Want::all(RELU) };
        let mode = Mode::Train(Some(0.1));
        let [forward, backward] = measure::<E>(SPLIT, shape, RELU, mode, Some(want));
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
        let [_, backward] = measure::<f32>(SPLIT, &shape, RELU, Mode::Eval, Some(want));
        backward.is_at_most(&format!("f32 {shape}"), 2.0, 1.0, 1.05);
        // Frozen parameters, too, and no ReLU: x is not read.
        let alone = Want { grad_weight: false, grad_bias: false, ..want };
        let [_, backward] = measure::<f32>(SPLIT, &shape, Epilogue::PLAIN, Mode::Eval, Some(alone));
        backward.is_at_most(&format!("f32 {shape}, grad_x alone"), 1.0, 1.0, 1.05);
    }
}

/// x, the gradient of y and `v_x` are read for the sums and once more, and two gradients written; an activation
/// takes nothing beside. Through frozen statistics the elements take no sums. Partial sums of columns are what goes
/// beyond: 5 f64 for each part of one, 12 behind a curved activation, and a part of so small a tensor has 128 rows.
#[test]
fn a_double_backward_reads_for_its_sums_and_once_more() {
    use crate::support::doubly::{Given, double_backward};
    fn moved<E: Element>(shape: &Shape, activation: Activation, mode: Mode) -> Passes {
        let softcuda = softcuda::install().unwrap();
        let device = softcuda.exclusive(softcuda::ordinal("sm_90").unwrap());
        let engine = on_device(device.ordinal()).unwrap();
        let inputs = Inputs::<E>::new(shape, Epilogue { activation, ..Epilogue::PLAIN }, 3);
        let given = Given::<E>::new(shape, false, 5);
        let mut saved = SavedOn::<Cuda, E>::new();
        run::forward(&engine, &inputs, mode, Some(&mut saved)).unwrap();
        let seen = device.launches().len();
        let all = ["gg_grad_y", "gg_x", "gg_weight", "gg_bias"];
        let sums = if mode == Mode::Eval { 0 } else { 1 };
        let wanted = &all[..2 + 2 * sums];
        double_backward(&engine, &inputs, &given, &saved, wanted, false).unwrap();
        let launches = device.launches().split_off(seen);
        assert_eq!(launches.len(), 2 + sums, "sums, what they add up to, elements");
        assert_eq!(device.faults(), [""; 0]);
        let [outer, channels, inner] = [shape.outer(), shape.channels(), shape.inner()];
        let (dtype, mode) = (E::DTYPE, if sums == 0 { "Eval" } else { "Train" });
        let case =
            format!("{dtype} {outer}x{channels}x{inner} {activation} {mode} double backward");
        counts::check(&case, &launches);
        let bytes = (shape.len() * size_of::<E>()) as f64;
        let sum = |of: fn(&softcuda::Report) -> u64| {
            launches.iter().map(|launch| of(&launch.counts)).sum::<u64>() as f64 / bytes
        };
        Passes { reads: sum(|c| c.global_loads.bytes), writes: sum(|c| c.global_stores.bytes) }
    }
    fn bounded<E: Element>(shape: &Shape, factor: f64) {
        for (activation, factor) in [(Activation::Identity, factor), (Activation::Silu, 1.1)] {
            let what = format!("{} {shape} {activation}", E::DTYPE);
            let train = moved::<E>(shape, activation, Mode::Train(None));
            train.is_at_most(&what, 6.0, 2.0, factor);
        }
        let frozen = moved::<E>(shape, Activation::Identity, Mode::Eval);
        frozen.is_at_most(&format!("{} {shape}, frozen", E::DTYPE), 3.0, 2.0, factor);
    }
    for shape in shapes() {
        bounded::<f32>(&shape, 1.05);
        bounded::<f16>(&shape, 1.1);
    }
}
