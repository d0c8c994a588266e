//! Each thing that cuDNN documents as wrong is refused, with its status and a reason, and nothing is written.
#![allow(unsafe_code)]

mod common;

use std::ptr;

use common::{
    ADD_RELU, Activation, At, BAD_PARAM, BN, Format, Handle, Mode, NOT_SUPPORTED, Norm, OK, Ops,
    PER_ACTIVATION, PERSISTENT, RELU, SPATIAL, Status, Tensor, cudnn, norm::strides,
    numbers::Number, start,
};
use cudarc::{
    cudnn::sys::{cudnnActivationMode_t, cudnnDataType_t as Type, cudnnNanPropagation_t},
    driver::{CudaContext, CudaStream},
};
use half::{bf16, f16};
use std::sync::Arc;

const DIMS: [i32; 4] = [2, 8, 3, 2];

/// The calls by their number: forward, forward Ex, inference, backward, backward Ex.
const CALLS: [&str; 5] = [
    "cudnnBatchNormalizationForwardTraining:",
    "cudnnBatchNormalizationForwardTrainingEx:",
    "cudnnBatchNormalizationForwardInference:",
    "cudnnBatchNormalizationBackward:",
    "cudnnBatchNormalizationBackwardEx:",
];

fn call<T: Number>(norm: &Norm<T>, at: usize) -> Status {
    match at {
        0 => norm.forward(),
        1 => norm.forward_ex(),
        2 => norm.infer(),
        3 => norm.backward(),
        _ => norm.backward_ex(),
    }
}

/// Checks that calls of spoilt arguments are refused for this reason, and change nothing.
#[track_caller]
fn refused<T: Number>(norm: &Norm<T>, calls: &[usize], status: Status, reason: &str) {
    let contents = || {
        let tensors = [At::Y, At::Dx, At::Dz].map(|at| norm.tensor(at));
        let places = [At::RunningMean, At::SavedMean, At::Dscale, At::Dbias];
        (tensors, places.map(|at| norm.per_group(at)))
    };
    let before = contents();
    for at in calls {
        cudnn().reset();
        assert_eq!(call(norm, *at), status, "{} {reason}", CALLS[*at]);
        let refusals = cudnn().refusals();
        let told = refusals.len() == 1
            && refusals[0].starts_with(CALLS[*at])
            && refusals[0].contains(reason);
        assert!(told, "{refusals:?} for {reason}");
    }
    assert_eq!(contents(), before);
}

fn norm<T: Number>(stream: &Arc<CudaStream>, mode: Mode, ops: Ops, nhwc: bool) -> Norm<T> {
    let mut norm = Norm::new(stream, mode, ops, &DIMS, nhwc);
    if ops != BN {
        norm.make_spaces().unwrap();
    }
    norm
}

#[test]
fn null_and_misaligned_pointers() {
    let (device, stream) = start();
    let mut norm = norm::<f32>(&stream, SPATIAL, BN, false);
    for (at, calls, name) in [
        (At::X, &[0, 1, 2, 3, 4][..], "x"),
        (At::Y, &[0, 1, 2], "y"),
        (At::Dy, &[3, 4], "dy"),
        (At::Dx, &[3, 4], "dx"),
        (At::Scale, &[0, 1, 2, 3, 4], "scale"),
        (At::Bias, &[0, 1, 2], "bias"),
        (At::Dscale, &[3, 4], "the gradient of scale"),
        (At::Dbias, &[3, 4], "the gradient of bias"),
    ] {
        let right = std::mem::take(&mut norm.at[at as usize]);
        refused(&norm, calls, BAD_PARAM, &format!(" {name} is null"));
        norm.at[at as usize] = right + 2;
        refused(&norm, calls, BAD_PARAM, &format!(" {name} is misaligned"));
        norm.at[at as usize] = right;
    }
    for at in [At::RunningMean, At::RunningVar] {
        let right = std::mem::take(&mut norm.at[at as usize]);
        refused(&norm, &[0, 1], BAD_PARAM, "one of running mean and variance is null");
        let name = if at == At::RunningMean { "mean" } else { "variance" };
        refused(&norm, &[2], BAD_PARAM, &format!(" {name} is null"));
        norm.at[at as usize] = right;
    }
    for at in [At::SavedMean, At::SavedInverse] {
        let right = std::mem::take(&mut norm.at[at as usize]);
        let reason = "one of saved mean and inverse variance is null";
        refused(&norm, &[0, 1, 3, 4], BAD_PARAM, reason);
        norm.at[at as usize] = right;
    }
    assert_eq!(device.faults(), [""; 0]);
    assert_eq!(device.refusals(), [""; 0]);
}

#[test]
fn alpha_beta_and_handle() {
    use cudarc::cudnn::sys::cudnnBatchNormalizationForwardInference as infer;
    let (_device, stream) = start();
    let norm = norm::<f32>(&stream, SPATIAL, BN, false);
    let one = 1f32;
    let (some, null) = ((&raw const one).cast(), ptr::null());
    let handle = norm.handle.0;
    for (handle, alpha, beta, reason) in [
        (handle, null, some, "alpha is null"),
        (handle, some, null, "beta is null"),
        (ptr::null_mut(), some, some, "cuDNN handle is null"),
        (norm.tensor.0.cast(), some, some, "is no cuDNN handle"),
    ] {
        cudnn().reset();
        // SAFETY: what is wrong is refused before anything is read.
        let status = unsafe {
            infer(
                handle,
                SPATIAL,
                alpha,
                beta,
                norm.x_descriptor,
                norm.p(At::X),
                norm.y_descriptor,
                norm.p(At::Y),
                norm.parameter_descriptor,
                norm.p(At::Scale),
                norm.p(At::Bias),
                norm.p(At::RunningMean),
                norm.p(At::RunningVar),
                1e-5,
            )
        };
        assert_eq!(status, BAD_PARAM, "{reason}");
        assert!(cudnn().refusals()[0].contains(reason), "{:?}", cudnn().refusals());
    }
}

#[test]
fn epsilon_and_factor() {
    let (_device, stream) = start();
    let mut norm = norm::<f32>(&stream, SPATIAL, BN, false);
    for epsilon in [-1e-9, f64::NAN] {
        norm.epsilon = epsilon;
        refused(&norm, &[0, 1, 2, 3, 4], BAD_PARAM, "epsilon is");
    }
    norm.epsilon = 0.0;
    assert_eq!([norm.forward(), norm.infer(), norm.backward()], [OK; 3]);
    for factor in [-0.1, 1.5, f64::NAN] {
        norm.factor = factor;
        refused(&norm, &[0, 1], BAD_PARAM, "the average's factor is");
    }
}

#[test]
fn descriptors_that_do_not_go_together() {
    let (_device, stream) = start();
    let mut norm = norm::<f32>(&stream, SPATIAL, BN, false);
    let nchw = Format::CUDNN_TENSOR_NCHW;
    let described = |data_type: Type, dims: &[i32]| {
        let tensor = Tensor::new();
        assert_eq!(tensor.set(data_type, dims, &strides(dims, nchw)), OK);
        tensor
    };
    let float = Type::CUDNN_DATA_FLOAT;
    let (y, parameters) = (norm.y_descriptor, norm.parameter_descriptor);
    let fewer = described(float, &[2, 8, 3, 1]);
    let half = described(Type::CUDNN_DATA_HALF, &DIMS);
    for other in [&fewer, &half] {
        norm.y_descriptor = other.0;
        refused(&norm, &[0, 1, 2, 3, 4], BAD_PARAM, "x has dimensions");
    }
    norm.y_descriptor = y;
    let wrong = [
        described(float, &[1, 4, 1, 1]),
        described(float, &[1, 8, 3, 2]),
        described(float, &[1, 8, 1, 1, 1]),
        described(Type::CUDNN_DATA_DOUBLE, &[1, 8, 1, 1]),
    ];
    for other in &wrong {
        norm.parameter_descriptor = other.0;
        refused(&norm, &[0, 1, 2, 3, 4], BAD_PARAM, "the parameters have");
    }
    let unset = Tensor::new();
    norm.parameter_descriptor = unset.0;
    refused(&norm, &[0, 1, 2, 3, 4], BAD_PARAM, "the parameters: the descriptor has not been set");
    norm.parameter_descriptor = parameters;
    norm.x_descriptor = ptr::null_mut();
    refused(&norm, &[0, 1, 2, 3, 4], BAD_PARAM, "x: tensor descriptor is null");
    for dims in [&[2, 8, 3][..], &[2, 8], &[1, 2, 8, 3, 2, 1]] {
        let x = described(float, dims);
        (norm.x_descriptor, norm.y_descriptor) = (x.0, x.0);
        refused(&norm, &[0, 1, 2, 3, 4], BAD_PARAM, "dimensions, not 4 or 5");
    }
    // Gaps between rows.
    let x = Tensor::new();
    assert_eq!(x.set(float, &DIMS, &[96, 12, 4, 1]), OK);
    (norm.x_descriptor, norm.y_descriptor) = (x.0, x.0);
    refused(&norm, &[0, 1, 2, 3, 4], NOT_SUPPORTED, "without gaps");
    let bytes = described(Type::CUDNN_DATA_INT8, &DIMS);
    (norm.x_descriptor, norm.y_descriptor) = (bytes.0, bytes.0);
    refused(&norm, &[0, 1, 2, 3, 4], NOT_SUPPORTED, "data type 3 is not normalized");
}

#[test]
fn what_the_persistent_mode_needs() {
    let (_device, stream) = start();
    let mut norm = norm::<f32>(&stream, PERSISTENT, BN, false);
    refused(&norm, &[2], NOT_SUPPORTED, "inference in the persistent mode");
    norm.at[At::SavedMean as usize] = 0;
    norm.at[At::SavedInverse as usize] = 0;
    refused(&norm, &[3, 4], BAD_PARAM, "the persistent mode needs the saved statistics");
    assert_eq!(norm.forward(), OK);
}

/// An activation where it is not documented: the size queries refuse, and so do the calls.
fn no_activation<T: Number>(mode: Mode, ops: Ops, dims: &[i32], nhwc: bool, reason: &str) {
    let (_device, stream) = start();
    let mut norm = Norm::<T>::new(&stream, mode, ops, dims, nhwc);
    cudnn().reset();
    assert_eq!(norm.make_spaces(), Err(NOT_SUPPORTED));
    let refusals = cudnn().refusals();
    assert!(refusals.len() == 3 && refusals.iter().all(|r| r.contains(reason)), "{refusals:?}");
    norm.at[At::Workspace as usize] = norm.at[At::Z as usize];
    norm.at[At::Reserve as usize] = norm.at[At::Dz as usize];
    (norm.workspace_bytes, norm.reserve_bytes) = (16, 16);
    refused(&norm, &[1, 4], NOT_SUPPORTED, reason);
}

#[test]
fn activations_stand_for_half_precision_nhwc_persistent_alone() {
    for ops in [RELU, ADD_RELU] {
        no_activation::<f16>(SPATIAL, ops, &DIMS, true, "needs the persistent mode, got Spatial");
        no_activation::<f16>(PER_ACTIVATION, ops, &DIMS, true, "needs the persistent mode");
        no_activation::<f32>(PERSISTENT, ops, &DIMS, true, "needs half precision, got F32");
        no_activation::<f64>(PERSISTENT, ops, &DIMS, true, "needs half precision, got F64");
        no_activation::<bf16>(PERSISTENT, ops, &DIMS, true, "needs half precision, got Bf16");
        no_activation::<f16>(PERSISTENT, ops, &DIMS, false, "an activation needs NHWC");
    }
    let reason = "channels to be a multiple of 4, got 6";
    no_activation::<f16>(PERSISTENT, ADD_RELU, &[2, 6, 3, 2], true, reason);
}

#[test]
fn what_an_activation_needs() {
    let (_device, stream) = start();
    let mut norm = norm::<f16>(&stream, PERSISTENT, ADD_RELU, true);
    assert_eq!(norm.forward_ex(), OK);
    assert_eq!(norm.backward_ex(), OK);
    let right = norm.activation_descriptor;
    norm.activation_descriptor = ptr::null_mut();
    refused(&norm, &[1, 4], BAD_PARAM, "the activation descriptor is null");
    let propagate = cudnnNanPropagation_t::CUDNN_PROPAGATE_NAN;
    let tanh = Activation::new(cudnnActivationMode_t::CUDNN_ACTIVATION_TANH, propagate);
    norm.activation_descriptor = tanh.0;
    refused(&norm, &[1, 4], NOT_SUPPORTED, "activation 2 is not the ReLU");
    norm.activation_descriptor = right;
    for (at, calls, reason) in [
        (At::Z, &[1][..], "z or its descriptor is null"),
        (At::Dz, &[4], "dz or its descriptor is null"),
        (At::Y, &[4], "an activation needs y"),
        (At::Bias, &[4], "an activation needs y, its descriptor and the bias"),
        (At::Workspace, &[1, 4], "the workspace has"),
        (At::Reserve, &[1, 4], "the reserve space has"),
    ] {
        let right = std::mem::take(&mut norm.at[at as usize]);
        refused(&norm, calls, BAD_PARAM, reason);
        norm.at[at as usize] = right;
    }
    norm.blend = [1.0, 1.0];
    refused(&norm, &[1, 4], NOT_SUPPORTED, "an activation with alpha and beta of [1.0, 1.0]");
    norm.blend = [1.0, 0.0];
    let [forward, backward, reserve] = norm.make_spaces().unwrap();
    (norm.workspace_bytes, norm.reserve_bytes) = (forward - 1, reserve);
    refused(&norm, &[1], BAD_PARAM, &format!("the workspace has {} bytes", forward - 1));
    norm.workspace_bytes = backward - 1;
    refused(&norm, &[4], BAD_PARAM, &format!("the workspace has {} bytes", backward - 1));
    (norm.workspace_bytes, norm.reserve_bytes) = (forward.max(backward), reserve - 1);
    refused(&norm, &[1, 4], BAD_PARAM, &format!("the reserve space has {} bytes", reserve - 1));
}

#[test]
fn without_a_workspace_the_extended_calls_are_the_others() {
    let (_device, stream) = start();
    let mut norm = norm::<f16>(&stream, PERSISTENT, BN, true);
    assert_eq!([norm.forward_ex(), norm.backward_ex()], [OK; 2]);
    let (y, dx) = (norm.tensor(At::Y), norm.tensor(At::Dx));
    let sizes = norm.make_spaces().unwrap();
    assert!(sizes.iter().all(|size| *size > 0), "{sizes:?}");
    assert_eq!([norm.forward_ex(), norm.backward_ex()], [OK; 2]);
    assert_eq!((norm.tensor(At::Y), norm.tensor(At::Dx)), (y, dx));
    norm.at[At::Reserve as usize] = 0;
    refused(&norm, &[1, 4], BAD_PARAM, "the reserve space has");
}

#[test]
fn a_nan_that_is_dropped_or_kept() {
    let (_device, stream) = start();
    let mut norm = norm::<f16>(&stream, PERSISTENT, ADD_RELU, true);
    let mut z = norm.tensor(At::Z);
    z[5] = f64::NAN;
    norm.put(At::Z, &z);
    assert_eq!([norm.forward_ex(), norm.backward_ex()], [OK; 2]);
    assert!(norm.tensor(At::Y)[5].is_nan());
    assert_eq!(norm.tensor(At::Dz)[5], norm.tensor(At::Dy)[5]);
    let drops = cudnnNanPropagation_t::CUDNN_NOT_PROPAGATE_NAN;
    let relu = Activation::new(cudnnActivationMode_t::CUDNN_ACTIVATION_RELU, drops);
    norm.activation_descriptor = relu.0;
    assert_eq!([norm.forward_ex(), norm.backward_ex()], [OK; 2]);
    assert_eq!((norm.tensor(At::Y)[5], norm.tensor(At::Dz)[5]), (0.0, 0.0));
    assert_eq!(cudnn().faults(), [""; 0]);
}

#[test]
fn contexts_do_not_mix() {
    use cudarc::cudnn::sys::{cudnnCreate, cudnnSetStream};
    let (device, stream) = start();
    let norm = norm::<f32>(&stream, SPATIAL, BN, false);
    let there = softcuda::install().unwrap().exclusive(1);
    let other = CudaContext::new(there.ordinal()).unwrap();
    let stream_there = other.new_stream().unwrap();
    stream.context().bind_to_thread().unwrap();
    // SAFETY: a stream of another device, which is refused.
    let status = unsafe { cudnnSetStream(norm.handle.0, stream_there.cu_stream().cast()) };
    assert_eq!(status, BAD_PARAM);
    other.bind_to_thread().unwrap();
    assert_eq!(norm.forward(), BAD_PARAM);
    assert!(cudnn().refusals()[1].contains("the current context is not that of the handle"));
    let handle = Handle::new(&stream_there);
    drop((handle, stream_there, other));
    // No context at all.
    let mut handle = ptr::null_mut();
    let status = std::thread::spawn(move || {
        let mut handle = ptr::null_mut();
        // SAFETY: `handle` can be written.
        unsafe { cudnnCreate(&mut handle) }
    });
    assert_eq!(status.join().unwrap(), Status::CUDNN_STATUS_NOT_INITIALIZED);
    stream.context().bind_to_thread().unwrap();
    // SAFETY: `handle` can be written, and is destroyed as it must be.
    unsafe {
        assert_eq!(cudnnCreate(&mut handle), OK);
        assert_eq!(cudarc::cudnn::sys::cudnnDestroy(handle), OK);
    }
    drop(norm);
    drop(stream);
    assert_eq!(device.leaks(), [""; 0]);
    assert_eq!(there.leaks(), [""; 0]);
}
