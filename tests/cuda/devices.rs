//! Golden cases on every profile, and more than one engine at a time.
use crate::support::cuda::{SPLIT, on_device, resident};
use crate::support::faults::refuses_memory_of_another_device;
use crate::support::files::checkout;
use crate::support::golden::{Case, compute, files, judge};
use crate::support::run::{self, Epilogue, Inputs, Mode, SavedOn, Want, same_bits};
use batchnorm::{Activation, Algorithm, BatchNorm, Config, DType, LayerNorm, LayerNormConfig};
use batchnorm::{Cuda, Device, Engine, Error, ForwardTrain, Memory, MergeStats, Op, Optimizer};
use batchnorm::{Regularizer, Request, Shape, Tuning};

/// Every golden case on a device that nobody else has, by every family, and nothing that the device
/// complains about.
fn golden_cases_pass_on(profile: &str) {
    let softcuda = softcuda::install().unwrap();
    let device = softcuda.exclusive(softcuda::ordinal(profile).unwrap());
    let engine = on_device(device.ordinal()).unwrap();
    for file in files(&checkout("tests/golden")).unwrap() {
        let case = Case::read(&file).unwrap();
        for tuning in [Tuning::default(), SPLIT, resident(0), resident(2)] {
            let verdicts = judge(&case, &compute(&engine.tuned(tuning), &case).unwrap()).unwrap();
            let wrong: Vec<_> = verdicts.iter().filter(|verdict| !verdict.pass).collect();
            assert!(wrong.is_empty(), "{profile}, {tuning:?}: {}: {wrong:?}", case.name);
        }
    }
    drop(engine);
    assert_eq!(device.faults(), [""; 0]);
    assert_eq!(device.refusals(), [""; 0]);
    assert_eq!(device.leaks(), [""; 0]);
    assert_eq!(device.used(), 0);
}

#[test]
fn golden_cases_pass_on_sm_80() {
    golden_cases_pass_on("sm_80");
}
#[test]
fn golden_cases_pass_on_sm_75() {
    golden_cases_pass_on("sm_75");
}
#[test]
fn golden_cases_pass_without_pools() {
    golden_cases_pass_on("no pools");
}
#[test]
fn golden_cases_pass_on_a_mini_device() {
    golden_cases_pass_on("mini");
}

fn inputs(seed: u64) -> Inputs<f32> {
    Inputs::new(&Shape::new(&[6, 36, 240], 1).unwrap(), Epilogue::FULL, seed)
}

fn step(engine: &Cuda, inputs: &Inputs<f32>) -> Vec<run::Outcome> {
    let mut saved = SavedOn::<Cuda, f32>::new();
    let mode = Mode::Train(Some(0.1));
    let forward = run::forward(engine, inputs, mode, Some(&mut saved)).unwrap();
    let want = Want::all(inputs.epilogue);
    vec![forward, run::backward(engine, inputs, want, &saved, None).unwrap()]
}

#[test]
fn streams_and_threads_change_no_bit() {
    let softcuda = softcuda::install().unwrap();
    let device = softcuda.exclusive(softcuda::ordinal("sm_80").unwrap());
    for tuning in [SPLIT, resident(1), resident(2)] {
        streams_and_threads(&device, tuning);
    }
    assert_eq!(device.faults(), [""; 0]);
}

fn streams_and_threads(device: &softcuda::Device, tuning: Tuning) {
    let engine = on_device(device.ordinal()).unwrap().tuned(tuning);
    let alone: Vec<_> = (0..4).map(|seed| step(&engine, &inputs(seed))).collect();
    let context = engine.stream().context().clone();
    let engines: Vec<Cuda> = (0..4)
        .map(|k| match k {
            0 | 1 => engine.clone(),
            _ => Cuda::on_stream(context.new_stream().unwrap()).unwrap().tuned(tuning),
        })
        .collect();
    for seed in 1..4 {
        device.set_seed(seed);
        std::thread::scope(|scope| {
            for (k, engine) in engines.iter().enumerate() {
                let alone = &alone[k];
                scope.spawn(move || {
                    let now = step(engine, &inputs(k as u64));
                    assert!(now.iter().zip(alone).all(|(a, b)| same_bits(a, b)), "engine {k}");
                });
            }
        });
    }
}

/// Every argument of every operation, by itself: nothing is launched, nothing is written.
#[test]
fn memory_of_another_device_is_refused() {
    let softcuda = softcuda::install().unwrap();
    let [here, there] = ["sm_80", "sm_75"].map(|name| softcuda::ordinal(name).unwrap());
    let devices = [here, there].map(|ordinal| softcuda.exclusive(ordinal));
    let (engine, other) = (on_device(here).unwrap(), on_device(there).unwrap());
    let expected = |what: &str| {
        format!(
            "{what}: expected memory of this engine's context on device {here}, got another's, on device {there}"
        )
    };
    refuses_memory_of_another_device(&engine, other.memory(), expected);
    engine.stream().synchronize().unwrap();
    let mut foreign = other.memory().upload(&[1f32; 4]).unwrap();
    let written = engine.memory().write(&[2.0; 4], foreign.as_view_mut()).unwrap_err();
    assert_eq!(written.to_string(), expected("to"));
    let zeroed = engine.memory().zero(foreign.as_view_mut()).unwrap_err();
    assert_eq!(zeroed.to_string(), expected("to"));
    let read = engine.memory().download(foreign.as_view()).unwrap_err();
    assert_eq!(read.to_string(), expected("view"));
    assert_eq!(other.memory().download(foreign.as_view()).unwrap(), [1.0; 4]);
    drop((foreign, engine, other));
    for device in devices {
        assert_eq!(device.faults(), [""; 0]);
        assert_eq!(device.refusals(), [""; 0]);
        assert_eq!(device.leaks(), [""; 0]);
    }
}

/// A `Saved` goes where the forward runs that fills it: its buffers of before are not written there.
#[test]
fn a_saved_belongs_to_the_device_of_its_last_forward() {
    let softcuda = softcuda::install().unwrap();
    let ordinals = ["sm_80", "sm_75"].map(|name| softcuda::ordinal(name).unwrap());
    let devices = ordinals.map(|ordinal| softcuda.exclusive(ordinal));
    let engines = ordinals.map(|ordinal| on_device(ordinal).unwrap().tuned(SPLIT));
    let (inputs, mut saved) = (inputs(3), SavedOn::<Cuda, f32>::new());
    let right = step(&engines[0], &inputs);
    for k in [0, 1, 0] {
        for mode in [Mode::Eval, Mode::Train(Some(0.1))] {
            let forward = run::forward(&engines[k], &inputs, mode, Some(&mut saved)).unwrap();
            let want = Want::all(inputs.epilogue);
            let backward = run::backward(&engines[k], &inputs, want, &saved, None).unwrap();
            if mode != Mode::Eval {
                assert!(same_bits(&forward, &right[0]) && same_bits(&backward, &right[1]));
            }
            // And not to the other one, which the backward must not read it from.
            let error = run::backward(&engines[1 - k], &inputs, want, &saved, None).unwrap_err();
            assert!(matches!(error, Error::Invalid { what: "saved", .. }), "{error}");
        }
    }
    drop((saved, engines));
    for device in devices {
        assert_eq!(device.faults(), [""; 0]);
        assert_eq!(device.refusals(), [""; 0]);
        assert_eq!(device.leaks(), [""; 0]);
    }
}

/// What a layer is given of another device is refused by its name, and nothing is changed.
#[test]
fn a_layer_trains_by_what_lies_on_its_device() {
    let softcuda = softcuda::install().unwrap();
    let ordinals = ["sm_80", "sm_75"].map(|name| softcuda::ordinal(name).unwrap());
    let devices = ordinals.map(|ordinal| softcuda.exclusive(ordinal));
    let engines = ordinals.map(|ordinal| on_device(ordinal).unwrap());
    let mut layers = engines.each_ref().map(|engine| {
        let mut bn = BatchNorm::<f32, Cuda>::new(engine, 4, Config::default()).unwrap();
        for (_, param) in bn.named_parameters_mut() {
            param.regularizer = Regularizer::new(0.0, 0.5);
            param.set_grad(engine.memory().upload(&[0.5; 4]).unwrap()).unwrap();
        }
        bn
    });
    let [bn, other] = &mut layers;
    let weight = |bn: &BatchNorm<f32, Cuda>| {
        let weight = bn.weight().unwrap();
        let grad = weight.grad().unwrap().as_view();
        [weight.value.as_view(), grad].map(|buf| bn.engine().memory().download(buf).unwrap())
    };
    let refused = |error: Error, by: &str| {
        assert!(matches!(error, Error::Invalid { what, .. } if what == by), "{by}: {error}");
    };
    let before = weight(bn);
    let mut foreign = Optimizer::new(other, Algorithm::adam(), 0.5).unwrap();
    refused(foreign.step(bn).unwrap_err(), "optimizer");
    let mut loss = engines[1].memory().zeros(1).unwrap();
    refused(bn.regularize(Some(loss.as_view_mut())).unwrap_err(), "loss");
    // Of the second parameter: the first is not changed either.
    let mut optimizer = Optimizer::new(bn, Algorithm::adam(), 0.5).unwrap();
    std::mem::swap(&mut bn.bias_mut().unwrap().value, &mut other.bias_mut().unwrap().value);
    refused(optimizer.step(bn).unwrap_err(), "bias");
    refused(bn.regularize(None).unwrap_err(), "bias");
    assert_eq!(weight(bn), before);

    // A layer normalization's `Saved` goes where the forward runs that fills it.
    let (shape, mut saved) = (Shape::new(&[3, 4], 1).unwrap(), None);
    for k in [0, 1, 0] {
        let [x, mut y] = [(); 2].map(|()| engines[k].memory().upload(&[0.25f32; 12]).unwrap());
        let rows = |k: usize| {
            LayerNorm::<f32, Cuda>::new(&engines[k], 4, LayerNormConfig::default()).unwrap()
        };
        let saved = saved.get_or_insert_default();
        rows(k).forward_into(&shape, x.as_view(), y.as_view_mut(), Some(saved)).unwrap();
        rows(k).backward::<f32>(saved, x.as_view(), y.as_view()).unwrap();
        let there = engines[1 - k].memory().upload(&[0.25f32; 12]).unwrap();
        let error = rows(1 - k).backward::<f32>(saved, there.as_view(), there.as_view());
        refused(error.unwrap_err(), "saved");
    }
    drop((saved, loss, foreign, optimizer, layers, engines));
    for device in devices {
        assert_eq!(device.faults(), [""; 0]);
        assert_eq!(device.refusals(), [""; 0]);
        assert_eq!(device.leaks(), [""; 0]);
    }
}

/// The handle means another stream in every thread: engines of two threads share nothing, whatever the order in which
/// their blocks run, and neither serves the other thread.
#[test]
fn a_stream_per_thread_has_engines_per_thread() {
    let softcuda = softcuda::install().unwrap();
    let device = softcuda.exclusive(softcuda_mini());
    let context = on_device(device.ordinal()).unwrap().stream().context().clone();
    let engine = || Cuda::on_stream(context.per_thread_stream()).unwrap();
    let wanted: Vec<_> = (0..2).map(|seed| step(&engine(), &inputs(seed))).collect();
    std::thread::scope(|scope| {
        for (seed, wanted) in (0..2).zip(&wanted) {
            let run = move || {
                let engine = engine();
                (0..20).for_each(|_| assert_eq!(&step(&engine, &inputs(seed)), wanted));
            };
            scope.spawn(run);
        }
    });
    let here = engine();
    let x = here.memory().upload(&[1f32; 12]).unwrap();
    let error = std::thread::scope(|scope| {
        let there = || {
            let mut y = context.per_thread_stream().alloc_zeros::<f32>(12).unwrap();
            let args = ForwardTrain::<Device, f32>::new(x.as_view(), y.as_view_mut());
            here.forward_train(&Shape::new(&[4, 3], 1).unwrap(), args).unwrap_err()
        };
        scope.spawn(there).join().unwrap()
    });
    let Error::Invalid { what: "stream", reason } = error else { panic!("{error}") };
    assert!(reason.starts_with("expected the thread of") && reason.contains(", got "), "{reason}");
    drop((x, here, context));
    assert_eq!(device.faults(), [""; 0]);
    assert_eq!(device.refusals(), [""; 0]);
    assert_eq!(device.leaks(), [""; 0]);
}

#[test]
fn a_device_that_is_not_there_is_an_error() {
    let error = on_device(99).unwrap_err();
    assert!(matches!(error, Error::Device { call: "cuDevicePrimaryCtxRetain", .. }), "{error}");
}

#[test]
fn statistics_that_are_not_finite_raise_a_flag() {
    let engine = on_device(softcuda_mini()).unwrap();
    let mut inputs = inputs(1);
    step(&engine, &inputs);
    assert!(!engine.take_nonfinite().unwrap());
    inputs.x[17] = f32::INFINITY;
    step(&engine, &inputs);
    assert!(engine.take_nonfinite().unwrap());
    assert!(!engine.take_nonfinite().unwrap(), "it was taken");
    let layer = LayerNorm::<f32, Cuda>::new(&engine, 4, LayerNormConfig::default()).unwrap();
    for (first, raised) in [(0.5, false), (f32::NAN, true)] {
        let x = [first, 1.0, 2.0, 3.0].repeat(3);
        let x = engine.memory().upload(&x).unwrap();
        layer.infer::<f32>(&Shape::new(&[3, 4], 1).unwrap(), x.as_view()).unwrap();
        assert_eq!(engine.take_nonfinite().unwrap(), raised);
    }
}

fn softcuda_mini() -> usize {
    softcuda::ordinal("mini").unwrap()
}

#[test]
fn explanations_name_kernels_and_blocks() {
    let engine = on_device(softcuda_mini()).unwrap();
    let (dtype, activation) = (DType::F16, Activation::Relu);
    let request = Request::new(Op::ForwardTrain, dtype).activation(activation);
    let shape = Shape::new(&[6272, 1024], 1).unwrap();
    let text = engine.tuned(SPLIT).explain(&shape, request).unwrap();
    assert!(text.starts_with("cuda: stats, stats_finalize, apply; "), "{text}");
    assert!(text.contains("vectors of 8, 256 threads: "), "{text}");
    let text = engine.tuned(resident(3)).explain(&shape, request).unwrap();
    assert!(text.starts_with("cuda: forward_resident; "), "{text}");
    assert!(text.contains(" groups of 3 blocks, 256 threads, "), "{text}");
}

#[test]
fn merging_waits_only_where_counts_may_be_too_few() {
    let softcuda = softcuda::install().unwrap();
    let device = softcuda.exclusive(softcuda::ordinal("sm_75").unwrap());
    let engine = on_device(device.ordinal()).unwrap();
    let records = engine.memory().upload(&[1.0, 2.0, 0.0, 0.0, 0.5, 0.5, 9.0]).unwrap();
    let mut record = engine.memory().zeros::<f64>(7).unwrap();
    for (known, launched) in [(2, 0), (1, 1)] {
        // What is queued is done when something waits for it.
        engine.stream().synchronize().unwrap();
        device.reset();
        for _ in 0..2 {
            let args =
                MergeStats::<batchnorm::Device, f32>::new(records.as_view(), record.as_view_mut())
                    .known(known);
            engine.merge_stats(args).unwrap();
        }
        assert_eq!(device.launches().len(), launched, "{known} values are known");
    }
    assert_eq!(engine.memory().download(record.as_view()).unwrap()[..2], [1.0, 2.0]);
}
