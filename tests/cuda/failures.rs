//! What fails leaves an engine that works.
use crate::support::cuda::{SPLIT, on_device, resident};
use crate::support::run::{self, Epilogue, Inputs, Mode, SavedOn, Want, same_bits};
use batchnorm::cudarc::driver::DriverError;
use batchnorm::{Cuda, Error, Result, Shape, Tuning};
use softcuda::{Code, FailurePoint};
use std::error::Error as _;

/// One step with the seed's inputs.
fn step(engine: &Cuda) -> Result<Vec<run::Outcome>> {
    let shape = Shape::new(&[6, 5, 240], 1).unwrap();
    let inputs = Inputs::<f32>::new(&shape, Epilogue::FULL, 5);
    let mut saved = SavedOn::<Cuda, f32>::new();
    let forward = run::forward(engine, &inputs, Mode::Train(Some(0.1)), Some(&mut saved))?;
    let want = Want::all(inputs.epilogue);
    Ok(vec![forward, run::backward(engine, &inputs, want, &saved, None)?])
}

/// Lets each call of a kind fail in its turn, until a step has no more of them: how many there were.
fn failures_at(point: FailurePoint, code: Code, tuning: Tuning, call: &str) -> u64 {
    let engine_on = |ordinal| on_device(ordinal).map(|engine| engine.tuned(tuning));
    let softcuda = softcuda::install().unwrap();
    let device = softcuda.exclusive(softcuda::ordinal("sm_75").unwrap());
    let right = step(&engine_on(device.ordinal()).unwrap()).unwrap();
    let mut failed = 0;
    loop {
        assert!(failed < 1000, "a step ends");
        device.reset();
        device.fail(point, failed, code);
        let engine = engine_on(device.ordinal());
        let first = engine.as_ref().map_err(Clone::clone).and_then(step);
        let Err(error) = first else { break };
        let Error::Device { code: got, .. } = error else { panic!("{error}") };
        assert_eq!(got, code as u32);
        assert!(error.to_string().starts_with(call), "{error}");
        assert_eq!(error.is_out_of_memory(), code == Code::OutOfMemory, "{error}");
        // The driver's own error, for who wants more of it than the text.
        let source = error.source().and_then(|source| source.downcast_ref::<DriverError>());
        assert_eq!(source.map(|source| source.0 as u32), Some(code as u32));
        // The failure is spent: the same engine goes on, if there is one.
        let engine = engine.or_else(|_| engine_on(device.ordinal())).unwrap();
        let again = step(&engine).unwrap();
        assert!(again.iter().zip(&right).all(|(a, b)| same_bits(a, b)), "failure {failed}");
        failed += 1;
    }
    device.reset();
    assert_eq!(device.faults(), [""; 0]);
    failed
}

#[test]
fn launches_that_fail() {
    let ways = [(SPLIT, 6, "cuLaunchKernel: "), (resident(1), 2, "cuLaunchKernel: ")];
    for (tuning, launches, call) in
        [ways[0], ways[1], (resident(2), 2, "cuLaunchCooperativeKernel: ")]
    {
        let code = Code::InvalidValue;
        assert_eq!(failures_at(FailurePoint::Launch, code, tuning, call), launches, "{tuning:?}");
    }
}

/// Whatever an earlier forward had saved is gone, too: half of it may be overwritten.
#[test]
fn a_forward_that_fails_saves_nothing() {
    let softcuda = softcuda::install().unwrap();
    let device = softcuda.exclusive(softcuda::ordinal("sm_80").unwrap());
    let engine = on_device(device.ordinal()).unwrap();
    let shape = Shape::new(&[6, 5, 240], 1).unwrap();
    let inputs = Inputs::<f32>::new(&shape, Epilogue::FULL, 5);
    let want = Want::all(inputs.epilogue);
    let train = Mode::Train(Some(0.1));
    for (tuning, mode) in [(SPLIT, train), (resident(2), train), (SPLIT, Mode::Eval)] {
        let engine = engine.tuned(tuning);
        let mut saved = SavedOn::<Cuda, f32>::new();
        let mut failed = 0;
        loop {
            run::forward(&engine, &inputs, mode, Some(&mut saved)).unwrap();
            run::backward(&engine, &inputs, want, &saved, None).unwrap();
            device.reset();
            device.fail(FailurePoint::Launch, failed, Code::InvalidValue);
            if run::forward(&engine, &inputs, mode, Some(&mut saved)).is_ok() {
                break;
            }
            assert_eq!((saved.shape(), saved.is_frozen()), (None, None));
            assert!(saved.mean().is_none() && saved.invstd().is_none());
            let error = run::backward(&engine, &inputs, want, &saved, None).unwrap_err();
            assert!(matches!(error, Error::Invalid { what: "saved", .. }), "{error}");
            failed += 1;
        }
        device.reset();
        assert!(failed > 0);
    }
}

#[test]
fn memory_that_runs_out() {
    let failed =
        failures_at(FailurePoint::Allocation, Code::OutOfMemory, resident(2), "cuMemAlloc: ");
    assert!(failed > 10, "{failed}");
}

#[test]
fn modules_that_do_not_load() {
    let code = Code::UnsupportedPtxVersion;
    for (tuning, modules) in [(SPLIT, 1), (resident(0), 1)] {
        let failed = failures_at(FailurePoint::Module, code, tuning, "cuModuleLoadData: ");
        assert_eq!(failed, modules, "{tuning:?}");
    }
}

#[test]
fn a_device_too_small_for_a_workspace_serves_what_fits() {
    let softcuda = softcuda::install().unwrap();
    let device = softcuda.exclusive(softcuda::ordinal("tiny memory").unwrap());
    let engine = on_device(device.ordinal()).unwrap();
    let shape = Shape::new(&[2, 700_000], 1).unwrap();
    let inputs = Inputs::<f32>::new(&shape, Epilogue::PLAIN, 5);
    let error = run::forward(&engine, &inputs, Mode::Eval, None).unwrap_err();
    assert!(error.is_out_of_memory(), "{error}");
    step(&engine).unwrap();
    assert_eq!(device.faults(), [""; 0]);
}
