//! A driver that refuses steps in one launch although its figures allow them: they take several, and say why.
use crate::support::cuda::{on_device, resident};
use crate::support::oracle::{self, judge};
use crate::support::run::{self, Epilogue, Inputs, Mode, SavedOn, Want};
use batchnorm::cudarc::driver::CudaSlice;
use batchnorm::cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use batchnorm::{Cuda, DType, Device, Engine, ForwardTrain, Memory, Op, Request, Shape};
use softcuda::{Code, Exclusive, FailurePoint};

const MODE: Mode = Mode::Train(Some(0.1));
/// An ordinary device of a profile that the engine of all tests does not have.
const PROFILE: &str = "sm_80";

fn exclusive(profile: &str) -> Exclusive {
    softcuda::install().unwrap().exclusive(softcuda::ordinal(profile).unwrap())
}

fn inputs() -> Inputs<f32> {
    Inputs::new(&Shape::new(&[256, 32], 1).unwrap(), Epilogue::FULL, 5)
}

fn explained(engine: &Cuda, op: Op) -> String {
    let Inputs { shape, epilogue, .. } = inputs();
    let request = Request::new(op, DType::F32);
    let request = request.activation(epilogue.activation).residual(epilogue.residual);
    engine.explain(&shape, request).unwrap()
}

/// Launches since the last call, and whether any of them was by blocks that wait for each other.
fn launches(device: &softcuda::Device, seen: &mut usize) -> (usize, bool) {
    let launches = device.launches().split_off(*seen);
    *seen += launches.len();
    assert_eq!(device.faults(), [""; 0]);
    (launches.len(), launches.iter().any(|launch| launch.cooperative))
}

/// A right forward, whose running statistics are judged, too: they move once.
fn forward(engine: &Cuda, mode: Mode, saved: &mut SavedOn<Cuda, f32>) -> run::Outcome {
    let inputs = inputs();
    let outcome = run::forward(engine, &inputs, mode, Some(saved)).unwrap();
    judge("forward", DType::F32, &inputs.shape, &outcome, &oracle::forward(&inputs, mode));
    outcome
}

fn backward(engine: &Cuda, mode: Mode, saved: &SavedOn<Cuda, f32>, forward: &run::Outcome) {
    let inputs = inputs();
    // In place, so that nothing may have been overwritten before the several launches.
    let want = Want { in_place: true, accumulate: true, ..Want::all(inputs.epilogue) };
    let outcome = run::backward(engine, &inputs, want, saved, None).unwrap();
    let right = oracle::backward(&inputs, mode, want, &forward["y"], None);
    judge("backward", DType::F32, &inputs.shape, &outcome, &right);
}

#[test]
fn a_refused_group_is_several_launches_from_then_on() {
    for code in [Code::CooperativeLaunchTooLarge, Code::LaunchOutOfResources, Code::NotSupported] {
        for refused in [Op::ForwardTrain, Op::Backward] {
            let device = exclusive(PROFILE);
            let (tuning, mut seen) = (resident(4), 0);
            let engine = on_device(device.ordinal()).unwrap().tuned(tuning);
            assert!(explained(&engine, refused).contains("groups of 4 blocks"));
            let mut saved = SavedOn::<Cuda, f32>::new();
            let refuse_first = |op| {
                if op == refused {
                    device.fail(FailurePoint::Launch, 0, code);
                }
            };
            refuse_first(Op::ForwardTrain);
            let y = forward(&engine, MODE, &mut saved);
            let expected = if refused == Op::ForwardTrain { (3, false) } else { (1, true) };
            assert_eq!(launches(&device, &mut seen), expected, "{code:?}");
            refuse_first(Op::Backward);
            backward(&engine, MODE, &saved, &y);
            // Behind a refused forward a single block takes the backward, where it has been asked for.
            let expected = if refused == Op::ForwardTrain { (1, false) } else { (3, false) };
            assert_eq!(launches(&device, &mut seen), expected, "{code:?}");

            for op in [Op::ForwardTrain, Op::Backward] {
                let text = explained(&engine, op);
                let why = "; no steps in one launch by groups of blocks, since the driver refused one: \
                           cuLaunchCooperativeKernel: CUDA_ERROR_";
                assert!(text.contains(why) && !text.contains("groups of 4"), "{text}");
            }
            // Other engines of the context do not try again, and frozen statistics are as ever.
            let other = Cuda::on_stream(engine.stream().context().new_stream().unwrap()).unwrap();
            let y = forward(&other.tuned(tuning), MODE, &mut saved);
            backward(&other.tuned(tuning), MODE, &saved, &y);
            let y = forward(&other, Mode::Eval, &mut saved);
            backward(&other, Mode::Eval, &saved, &y);
            assert!(!launches(&device, &mut seen).1);
            drop((engine, other, saved));
            // What is known goes with the last engine.
            let engine = on_device(device.ordinal()).unwrap().tuned(tuning);
            assert!(!explained(&engine, refused).contains("refused"));
        }
    }
}

#[test]
fn refused_blocks_are_several_launches_from_then_on() {
    let device = exclusive(PROFILE);
    let (engine, mut seen) = (on_device(device.ordinal()).unwrap().tuned(resident(1)), 0);
    let mut saved = SavedOn::<Cuda, f32>::new();
    device.fail(FailurePoint::Launch, 0, Code::LaunchOutOfResources);
    for _ in 0..2 {
        let y = forward(&engine, MODE, &mut saved);
        assert_eq!(launches(&device, &mut seen), (3, false));
        backward(&engine, MODE, &saved, &y);
        assert_eq!(launches(&device, &mut seen), (3, false));
    }
    let text = explained(&engine, Op::Backward);
    let why = "; no steps in one launch by blocks by themselves, since the driver refused one: cuLaunchKernel: ";
    assert!(text.starts_with("cuda: backward_sums, ") && text.contains(why), "{text}");
}

/// What cannot be known beforehand: kernels are loaded, then somebody takes a part of the device.
#[test]
fn a_grid_that_no_longer_fits_is_several_launches() {
    let device = exclusive(PROFILE);
    // Blocks of 20 KiB, two for each multiprocessor, of which one fits then.
    let (engine, mut seen) = (on_device(device.ordinal()).unwrap().tuned(resident(200)), 0);
    let inputs = Inputs::<f32>::new(&Shape::new(&[8192, 128], 1).unwrap(), Epilogue::PLAIN, 5);
    let step = || {
        let y = run::forward(&engine, &inputs, MODE, None).unwrap();
        judge("y", DType::F32, &inputs.shape, &y, &oracle::forward(&inputs, MODE));
    };
    step();
    assert_eq!(launches(&device, &mut seen), (1, true));
    device.set_shared_taken(130 << 10);
    step();
    assert_eq!(launches(&device, &mut seen), (3, false));
    assert!(device.refusals()[0].contains("a cooperative grid"), "{:?}", device.refusals());
}

/// The driver is asked with the shared memory that blocks will have.
#[test]
fn kernels_of_which_too_few_blocks_fit_are_not_taken() {
    let device = exclusive(PROFILE);
    // Two blocks of 81 KiB fit 164 KiB, and no longer fit 160.
    device.set_shared_taken(4 << 10);
    let (engine, mut seen) = (on_device(device.ordinal()).unwrap().tuned(resident(0)), 0);
    let mut saved = SavedOn::<Cuda, f32>::new();
    let y = forward(&engine, MODE, &mut saved);
    backward(&engine, MODE, &saved, &y);
    assert_eq!(launches(&device, &mut seen), (6, false));
    let why = "; no steps in one launch: expected 2 blocks of 82944 bytes of shared memory for a \
               multiprocessor, the driver has 1";
    for op in [Op::ForwardTrain, Op::Backward] {
        let text = explained(&engine, op);
        assert!(text.ends_with(why), "{text}");
    }
    assert_eq!(device.refusals(), [""; 0]);
}

#[test]
fn a_graph_that_is_captured_behind_a_refusal_has_no_groups() {
    let device = exclusive(PROFILE);
    let context = on_device(device.ordinal()).unwrap().stream().context().clone();
    // SAFETY: everything here is on one stream.
    #[allow(unsafe_code)]
    unsafe {
        context.disable_event_tracking()
    };
    let engine = Cuda::on_stream(context.new_stream().unwrap()).unwrap().tuned(resident(4));
    let (on, shape) = (engine.memory(), Shape::new(&[256, 32], 1).unwrap());
    let values: Vec<f32> = (0..shape.len()).map(|i| (i * 37 % 97) as f32 / 31.0).collect();
    let x = on.upload(&values).unwrap();
    let (mut y, mut right) = (on.zeros::<f32>(x.len()).unwrap(), on.zeros::<f32>(x.len()).unwrap());
    device.fail(FailurePoint::Launch, 0, Code::CooperativeLaunchTooLarge);
    let step = |engine: &Cuda, y: &mut CudaSlice<f32>| {
        let args = ForwardTrain::<Device, f32>::new(x.as_view(), y.as_view_mut());
        engine.forward_train(&shape, args).unwrap();
    };
    step(&engine, &mut y);
    let stream = engine.stream().clone();
    let launched = |seen: &mut usize| {
        stream.synchronize().unwrap();
        launches(&device, seen)
    };
    let mut seen = 0;
    assert_eq!(launched(&mut seen), (3, false));
    stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
    step(&engine, &mut y);
    let graph = stream.end_capture(CUgraphInstantiate_flags(0)).unwrap().unwrap();
    stream.memset_zeros(&mut y).unwrap();
    graph.launch().unwrap();
    assert_eq!(launched(&mut seen), (1, false), "a block by itself");
    // Refused while it is captured, too.
    drop(engine);
    let engine = Cuda::on_stream(context.new_stream().unwrap()).unwrap().tuned(resident(4));
    step(&engine, &mut right);
    let stream = engine.stream().clone();
    stream.synchronize().unwrap();
    assert!(launches(&device, &mut seen).1, "a refusal is forgotten with the last engine");
    stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
    device.fail(FailurePoint::Launch, 0, Code::CooperativeLaunchTooLarge);
    step(&engine, &mut right);
    let graph = stream.end_capture(CUgraphInstantiate_flags(0)).unwrap().unwrap();
    stream.memset_zeros(&mut right).unwrap();
    graph.launch().unwrap();
    stream.synchronize().unwrap();
    assert_eq!(launches(&device, &mut seen), (3, false));
    let on = engine.memory();
    let [y, right] = [&y, &right].map(|of| on.download(of.as_view()).unwrap());
    assert!(y.iter().zip(&right).all(|(a, b)| approx::abs_diff_eq!(a, b, epsilon = 1e-5)));
    assert!(y.iter().any(|&y| y > 1.0));
}
