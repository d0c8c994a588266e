//! Calls of cuDNN that fail, one after the other; and that handles and descriptors are given back.
use crate::support::cudnn::on_device;
use crate::support::run::{self, Epilogue, Inputs, Mode, Outcome, SavedOn, Want, same_bits};
use batchnorm::cudarc::cudnn::result::CudnnError;
use batchnorm::{Activation, Cudnn, DType, Engine, Error, Op, Request, Result, Shape};
use half::f16;

/// Each call there is, for training, evaluation and back; and the query.
fn steps(engine: &Cudnn) -> Result<Vec<Outcome>> {
    let mut outcomes = Vec::new();
    let shape = Shape::new(&[6, 5, 7], 1)?;
    let inputs = Inputs::<f32>::new(&shape, Epilogue::PLAIN, 1);
    let mut saved = SavedOn::<Cudnn, f32>::new();
    let want = Want { sums: false, ..Want::all(Epilogue::PLAIN) };
    outcomes.push(run::forward(engine, &inputs, Mode::Train(Some(0.1)), Some(&mut saved))?);
    outcomes.push(run::backward(engine, &inputs, want, &saved, None)?);
    outcomes.push(run::forward(engine, &inputs, Mode::Eval, None)?);
    let rows = Shape::new(&[6, 3, 2, 8], 3)?;
    let relu = Epilogue { activation: Activation::Relu, ..Epilogue::PLAIN };
    for epilogue in [relu, Epilogue::FULL] {
        let inputs = Inputs::<f16>::new(&rows, epilogue, 1);
        let mut saved = SavedOn::<Cudnn, f16>::new();
        let want = Want { sums: false, ..Want::all(epilogue) };
        outcomes.push(run::forward(engine, &inputs, Mode::Train(None), Some(&mut saved))?);
        outcomes.push(run::backward(engine, &inputs, want, &saved, None)?);
    }
    assert!(!engine.take_overflow()?);
    Ok(outcomes)
}

/// Those whose status matters; the others are looked at in passing.
const CALLS: [&str; 13] = [
    "cudnnCreate",
    "cudnnSetStream",
    "cudnnCreateTensorDescriptor",
    "cudnnCreateActivationDescriptor",
    "cudnnSetActivationDescriptor",
    "cudnnSetTensorNdDescriptor",
    "cudnnDeriveBNTensorDescriptor",
    "cudnnBatchNormalizationForwardTrainingEx",
    "cudnnBatchNormalizationForwardInference",
    "cudnnBatchNormalizationBackwardEx",
    "cudnnGetBatchNormalizationForwardTrainingExWorkspaceSize",
    "cudnnGetBatchNormalizationBackwardExWorkspaceSize",
    "cudnnQueryRuntimeError",
];

#[test]
fn every_call_that_fails_is_an_error_that_names_it() {
    run::ask_nothing();
    let softcuda = softcuda::install().unwrap();
    let device = softcuda.exclusive(softcuda::ordinal("sm_80").unwrap());
    let cudnn = softcudnn::install().unwrap();
    let right = steps(&on_device(device.ordinal()).unwrap()).unwrap();
    for (status, refused) in
        [(5000, false), (1001, false), (4004, false), (3000, true), (2000, true)]
    {
        for name in CALLS {
            let mut failed = 0;
            loop {
                cudnn.fail(name, failed, status);
                let made = on_device(device.ordinal());
                let done = made.as_ref().map_err(Clone::clone).and_then(steps);
                let Err(error) = done else { break };
                match &error {
                    Error::Device { call, code, .. } if !refused => {
                        assert_eq!((*call, *code), (name, status));
                        assert_eq!(error.is_out_of_memory(), status == 4004);
                        let source = std::error::Error::source(&error).expect("cuDNN's error");
                        let source = source.downcast_ref::<CudnnError>().expect("cuDNN's error");
                        assert_eq!(source.0 as u32, status);
                    }
                    Error::Unsupported { engine, reason } if refused => {
                        assert_eq!(*engine, "cudnn");
                        assert!(reason.starts_with(&format!("{name}: CUDNN_STATUS_")), "{reason}");
                    }
                    _ => panic!("{name} answers {status}: {error:?}"),
                }
                // The failure is spent: the same engine goes on, if there is one.
                let engine = made.or_else(|_| on_device(device.ordinal())).unwrap();
                let again = steps(&engine).unwrap();
                assert!(again.iter().zip(&right).all(|(a, b)| same_bits(a, b)), "{name}");
                failed += 1;
                // Each place once: later ones are the same calls of other operations.
                if failed == 3 {
                    break;
                }
            }
            cudnn.reset();
            assert!(failed > 0, "{name} is never called");
        }
    }
    assert_eq!(cudnn.refusals(), [""; 0]);
    assert_eq!(cudnn.faults(), [""; 0]);
    assert_eq!(cudnn.live(), [""; 0]);
    assert_eq!(device.faults(), [""; 0]);
    assert_eq!(device.leaks(), [""; 0]);
}

#[test]
fn what_cannot_be_destroyed_is_left_without_a_panic() {
    let softcuda = softcuda::install().unwrap();
    let device = softcuda.exclusive(softcuda::ordinal("sm_75").unwrap());
    let cudnn = softcudnn::install().unwrap();
    let destroys =
        ["cudnnDestroy", "cudnnDestroyTensorDescriptor", "cudnnDestroyActivationDescriptor"];
    for (k, name) in destroys.into_iter().enumerate() {
        let engine = on_device(device.ordinal()).unwrap();
        // Descriptors are made for a form.
        let shape = Shape::new(&[3, 4, 5], 1).unwrap();
        engine.supports(&shape, Request::new(Op::ForwardEval, DType::F32)).unwrap();
        cudnn.fail(name, 0, 4000);
        drop(engine);
        assert_eq!(cudnn.live().len(), k + 1, "{name} was asked for");
    }
}

#[test]
fn a_forward_that_fails_saves_nothing() {
    let softcuda = softcuda::install().unwrap();
    let device = softcuda.exclusive(softcuda::ordinal("mini").unwrap());
    let cudnn = softcudnn::install().unwrap();
    let engine = on_device(device.ordinal()).unwrap();
    let shape = Shape::new(&[6, 5, 7], 1).unwrap();
    let inputs = Inputs::<f32>::new(&shape, Epilogue::PLAIN, 1);
    let mut saved = SavedOn::<Cudnn, f32>::new();
    run::forward(&engine, &inputs, Mode::Train(None), Some(&mut saved)).unwrap();
    cudnn.fail("cudnnBatchNormalizationForwardTrainingEx", 0, 3000);
    let forward = run::forward(&engine, &inputs, Mode::Train(None), Some(&mut saved));
    assert!(matches!(forward, Err(Error::Unsupported { .. })), "{forward:?}");
    assert_eq!(saved.shape(), None);
    let want = Want { sums: false, ..Want::all(Epilogue::PLAIN) };
    let error = run::backward(&engine, &inputs, want, &saved, None).unwrap_err();
    assert!(matches!(error, Error::Invalid { what: "saved", .. }), "{error}");
}
