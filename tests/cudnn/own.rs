//! Overflow of the persistent mode, graphs, threads, explanations.
use crate::support::cudnn::on_device;
use crate::support::oracle::{self, judge};
use crate::support::run::{self, Epilogue, Inputs, Mode, SavedOn, Spread, Want, same_bits};
use batchnorm::cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use batchnorm::{
    Activation, Cudnn, DType, Engine, ForwardTrain, Memory, Op, Request, Saved, Shape,
};
use half::f16;

fn planes(values: impl Fn(usize) -> f32) -> Inputs<f32> {
    let shape = Shape::new(&[3, 4, 25], 1).unwrap();
    let mut inputs = Inputs::<f32>::new(&shape, Epilogue::PLAIN, 3);
    inputs.x.iter_mut().enumerate().for_each(|(i, x)| *x = values(i));
    inputs
}

#[test]
fn the_persistent_mode_is_asked_for_and_agrees() {
    let softcuda = softcuda::install().unwrap();
    let device = softcuda.exclusive(softcuda::ordinal("sm_80").unwrap());
    let engine = on_device(device.ordinal()).unwrap();
    let persistent = engine.clone().persistent();
    let inputs = planes(|i| ((i * 37) % 97) as f32 / 31.0);
    let mode = Mode::Train(Some(0.1));
    for engine in [&engine, &persistent] {
        let mut saved = SavedOn::<Cudnn, f32>::new();
        let got = run::forward(engine, &inputs, mode, Some(&mut saved)).unwrap();
        judge("forward", DType::F32, &inputs.shape, &got, &oracle::forward(&inputs, mode));
        let want = Want { sums: false, ..Want::all(Epilogue::PLAIN) };
        let got = run::backward(engine, &inputs, want, &saved, None).unwrap();
        let right = oracle::backward(&inputs, mode, want, &[], None);
        judge("backward", DType::F32, &inputs.shape, &got, &right);
    }
    engine.stream().synchronize().unwrap();
    assert_eq!(engine.poll_overflow(), Ok(Some(false)));
    assert_eq!(device.faults(), [""; 0]);
}

#[test]
fn an_overflow_is_told_when_it_is_asked_for_and_steps_do_not_wait() {
    let softcuda = softcuda::install().unwrap();
    let device = softcuda.exclusive(softcuda::ordinal("sm_75").unwrap());
    let engine = on_device(device.ordinal()).unwrap();
    let persistent = engine.clone().persistent();
    // The variance is not a number of f32.
    let inputs = planes(|i| if i % 2 == 0 { 3e38 } else { -3e38 });
    run::forward(&engine, &inputs, Mode::Train(None), None).unwrap();
    assert!(!engine.take_overflow().unwrap(), "the spatial mode does not overflow");
    // Queued and not yet done.
    let on = persistent.memory();
    let x = on.upload(&inputs.x).unwrap();
    let mut y = on.zeros(inputs.x.len()).unwrap();
    let args = ForwardTrain::<batchnorm::Device, _>::new(x.as_view(), y.as_view_mut());
    persistent.forward_train(&inputs.shape, args).unwrap();
    assert_eq!(persistent.poll_overflow(), Ok(None));
    assert!(persistent.take_overflow().unwrap());
    assert_eq!(persistent.poll_overflow(), Ok(Some(false)), "it was taken");
    // As any clone may ask, and later.
    run::forward(&persistent, &inputs, Mode::Train(None), None).unwrap();
    let right = planes(|i| i as f32);
    run::forward(&persistent, &right, Mode::Train(None), None).unwrap();
    assert!(engine.take_overflow().unwrap());
}

/// cuDNN saves the mean rounded to f32: as much as that may cost, and our kernels less.
#[test]
fn a_mean_far_away_costs_gradients_no_more_than_its_rounding() {
    let shape = Shape::new(&[40, 6, 25], 1).unwrap();
    let (mode, want) = (Mode::Train(None), Want { sums: false, ..Want::all(Epilogue::PLAIN) });
    let mut beyond = 0;
    for seed in 0..8 {
        let spread = Spread { mean: 5000.0, std: 0.5 };
        let inputs = Inputs::<f32>::spread(&shape, Epilogue::PLAIN, spread, seed);
        let right = oracle::backward(&inputs, mode, want, &[], None);
        let (x, engine) = (inputs.wide(), crate::support::cudnn::engine());
        let mut saved = SavedOn::<Cudnn, f32>::new();
        run::forward(&engine, &inputs, mode, Some(&mut saved)).unwrap();
        let got = run::backward(&engine, &inputs, want, &saved, None).unwrap();
        let granted = 2e-6 * 1000f64.sqrt();
        for (c, got) in got["grad_weight"].iter().enumerate() {
            let of = |v: &[f64]| -> Vec<f64> {
                let mine = v.iter().enumerate().filter(|(i, _)| i / 25 % 6 == c);
                mine.map(|(_, v)| *v).collect()
            };
            let (xs, sum_g) = (of(&x.x), of(&x.grad_y).iter().sum::<f64>());
            let mean = xs.iter().sum::<f64>() / 1000.0;
            let var = xs.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 1000.0;
            let cost = mean.abs() / (var + inputs.eps).sqrt() * sum_g.abs() * 2f64.powi(-24);
            let right = right["grad_weight"].values[c];
            let error = (got - right).abs();
            assert!(error <= cost + granted * right.abs().max(1.0), "{error:e}, {cost:e}");
            beyond += usize::from(error > granted * right.abs().max(1.0));
        }
    }
    assert!(beyond > 0, "a case that shows it");
    let ours = crate::support::cuda::engine();
    let inputs =
        Inputs::<f32>::spread(&shape, Epilogue::PLAIN, Spread { mean: 5000.0, std: 0.5 }, 0);
    let mut saved = SavedOn::<batchnorm::Cuda, f32>::new();
    run::forward(&ours, &inputs, mode, Some(&mut saved)).unwrap();
    let got = run::backward(&ours, &inputs, want, &saved, None).unwrap();
    let right = oracle::backward(&inputs, mode, want, &[], None);
    judge("cuda", DType::F32, &shape, &got, &right);
}

#[test]
fn a_graph_replays_a_step() {
    let softcuda = softcuda::install().unwrap();
    let device = softcuda.exclusive(softcuda::ordinal("sm_90").unwrap());
    let context = on_device(device.ordinal()).unwrap().stream().context().clone();
    // SAFETY: everything here is on one stream.
    #[allow(unsafe_code)]
    unsafe {
        context.disable_event_tracking()
    };
    let engine = Cudnn::on_stream(context.new_stream().unwrap()).unwrap();
    let (on, shape) = (engine.memory(), Shape::new(&[2, 3, 5, 8], 3).unwrap());
    let values = |seed: usize| -> Vec<f16> {
        (0..shape.len()).map(|i| f16::from_f32(((i * 37 + seed) % 97) as f32 / 31.0)).collect()
    };
    let mut x = on.upload(&values(0)).unwrap();
    let mut y = on.zeros::<f16>(shape.len()).unwrap();
    let mut saved = Saved::new();
    let mut step = |x: &_, y: &mut _| {
        let args = ForwardTrain::<batchnorm::Device, _>::new(
            batchnorm::Device::view(x),
            batchnorm::Device::view_mut(y),
        )
        .activation(Activation::Relu)
        .saved(&mut saved);
        engine.forward_train(&shape, args)
    };
    step(&x, &mut y).unwrap(); // makes all memory
    let stream = engine.stream().clone();
    let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    stream.begin_capture(mode).unwrap();
    step(&x, &mut y).unwrap();
    let graph = stream.end_capture(CUgraphInstantiate_flags(0)).unwrap().unwrap();
    for seed in 1..4 {
        on.write(&values(seed), x.as_view_mut()).unwrap();
        step(&x, &mut y).unwrap();
        let right = on.download(y.as_view()).unwrap();
        on.write(&vec![f16::NAN; shape.len()], y.as_view_mut()).unwrap();
        graph.launch().unwrap();
        assert_eq!(on.download(y.as_view()).unwrap(), right);
    }
    drop(graph); // before the handle
    assert_eq!(device.faults(), [""; 0]);
}

#[test]
fn clones_share_a_handle_between_threads() {
    let softcuda = softcuda::install().unwrap();
    let device = softcuda.exclusive(softcuda::ordinal("no pools").unwrap());
    let engine = on_device(device.ordinal()).unwrap();
    let step = |engine: &Cudnn, k: usize| {
        let inputs = planes(|i| ((i * 37 + k) % 97) as f32 / 31.0);
        run::forward(engine, &inputs, Mode::Train(Some(0.1)), None).unwrap()
    };
    let alone: Vec<_> = (0..4).map(|k| step(&engine, k)).collect();
    std::thread::scope(|scope| {
        for (k, alone) in alone.iter().enumerate() {
            let engine = engine.clone();
            scope.spawn(move || assert!(same_bits(&step(&engine, k), alone), "thread {k}"));
        }
    });
    assert_eq!(device.faults(), [""; 0]);
}

#[test]
fn explanations_name_call_mode_and_what_is_unknown() {
    let engine = crate::support::cudnn::engine();
    let request = Request::new(Op::ForwardTrain, DType::F16).activation(Activation::Relu);
    let shape = Shape::new(&[4, 7, 7, 64], 3).unwrap();
    let expected = "cudnn: cudnnBatchNormalizationForwardTrainingEx, \
        CUDNN_BATCHNORM_SPATIAL_PERSISTENT, CUDNN_BATCHNORM_OPS_BN_ACTIVATION, \
        4 x 64 x 49 x 1 as NHWC";
    assert_eq!(engine.explain(&shape, request).unwrap(), expected);
    let plain = request.activation(Activation::Identity).dtype(DType::Bf16);
    let text = engine.explain(&Shape::new(&[4, 64, 49], 1).unwrap(), plain).unwrap();
    assert!(text.ends_with("4 x 64 x 49 x 1 as NCHW; not known before the call: bf16"), "{text}");
    let error = engine.explain(&shape, request.dtype(DType::F32)).unwrap_err();
    assert_eq!(error.to_string(), "cudnn: a ReLU behind the normalization needs f16, got f32");
    assert!(engine.version() >= 90_000);
}
