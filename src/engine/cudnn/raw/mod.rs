//! How cuDNN is called: what becomes of the statuses that it answers, and handles and descriptors that
//! destroy themselves.
//!
//! `library::cudnn` has looked for every function that is called here ([`SYMBOLS`]) before the
//! first one is, since cudarc panics where one is missing.
use crate::{Error, Result};
use cudarc::cudnn::{result::CudnnError, sys};
use std::ffi::CStr;

mod objects;

pub use objects::{ActivationDescriptor, Handle, TensorDescriptor, device_pointer};

/// Names that calls have in messages, and what a library must export.
macro_rules! symbols {
    ($($name:ident),+ $(,)?) => {
        /// Every function of cuDNN that this engine calls.
        pub const SYMBOLS: &[&str] = &[$(stringify!($name)),+];
    };
}
symbols![
    cudnnBatchNormalizationBackwardEx,
    cudnnBatchNormalizationForwardInference,
    cudnnBatchNormalizationForwardTrainingEx,
    cudnnCreate,
    cudnnCreateActivationDescriptor,
    cudnnCreateTensorDescriptor,
    cudnnDeriveBNTensorDescriptor,
    cudnnDestroy,
    cudnnDestroyActivationDescriptor,
    cudnnDestroyTensorDescriptor,
    cudnnGetBatchNormalizationBackwardExWorkspaceSize,
    cudnnGetBatchNormalizationForwardTrainingExWorkspaceSize,
    cudnnGetBatchNormalizationTrainingExReserveSpaceSize,
    cudnnGetErrorString,
    cudnnGetLastErrorString,
    cudnnGetVersion,
    cudnnQueryRuntimeError,
    cudnnSetActivationDescriptor,
    cudnnSetStream,
    cudnnSetTensorNdDescriptor,
];

/// Calls a function of cuDNN by its name; what it answers becomes a [`Result`].
macro_rules! call {
    ($name:ident($($argument:expr),* $(,)?)) => {
        $crate::engine::cudnn::raw::answer(
            stringify!($name),
            cudarc::cudnn::sys::$name($($argument),*),
        )
    };
}
pub(super) use call;

/// `CUDNN_VERSION` of the library: 9 21 00 is 92100.
pub fn version() -> usize {
    // SAFETY: takes nothing and may be called at any time.
    unsafe { sys::cudnnGetVersion() }
}

/// What becomes of the status that a call answered.
pub(super) fn answer(call: &'static str, status: sys::cudnnStatus_t) -> Result<()> {
    // Of cuDNN 9: 2xxx says that arguments have no meaning to it, 3xxx that it has no algorithm for
    // them. Either way nothing has run; the lengths and addresses being right, the case is one that
    // it does not serve.
    match status as u32 {
        0 => Ok(()),
        2000..4000 => {
            let reason = format!("{call}: {}", told(status));
            Err(Error::Unsupported { engine: super::NAME, reason })
        }
        code => Err(Error::device(call, code, told(status), CudnnError(status))),
    }
}

/// The name of a status, and what cuDNN says about the last one of this thread.
fn told(status: sys::cudnnStatus_t) -> String {
    let mut message = [0u8; 512];
    // SAFETY: the name is a constant of the library; the message is written with its 0 into the
    // room there is.
    let name = unsafe {
        sys::cudnnGetLastErrorString(message.as_mut_ptr().cast(), message.len());
        CStr::from_ptr(sys::cudnnGetErrorString(status))
    };
    let name = name.to_string_lossy();
    let message = CStr::from_bytes_until_nul(&message).unwrap_or_default().to_string_lossy();
    match message.trim() {
        "" => name.into_owned(),
        message => format!("{name}, {message}"),
    }
}
