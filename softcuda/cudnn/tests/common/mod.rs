//! What the tests have in common.
#![allow(dead_code)]

mod calls;
mod descriptors;
pub mod norm;
pub mod numbers;
pub mod wanted;

use std::sync::Arc;

use cudarc::{
    cudnn::sys,
    driver::{CudaContext, CudaStream},
};
use softcuda::Exclusive;
use softcudnn::Control;

pub use descriptors::{Activation, Handle, Tensor};
pub use norm::{At, Norm};
pub use sys::{
    cudnnBatchNormMode_t as Mode, cudnnBatchNormOps_t as Ops, cudnnStatus_t as Status,
    cudnnTensorFormat_t as Format,
};

pub const OK: Status = Status::CUDNN_STATUS_SUCCESS;
pub const BAD_PARAM: Status = Status::CUDNN_STATUS_BAD_PARAM;
pub const NOT_SUPPORTED: Status = Status::CUDNN_STATUS_NOT_SUPPORTED;
pub const PER_ACTIVATION: Mode = Mode::CUDNN_BATCHNORM_PER_ACTIVATION;
pub const SPATIAL: Mode = Mode::CUDNN_BATCHNORM_SPATIAL;
pub const PERSISTENT: Mode = Mode::CUDNN_BATCHNORM_SPATIAL_PERSISTENT;
pub const BN: Ops = Ops::CUDNN_BATCHNORM_OPS_BN;
pub const RELU: Ops = Ops::CUDNN_BATCHNORM_OPS_BN_ACTIVATION;
pub const ADD_RELU: Ops = Ops::CUDNN_BATCHNORM_OPS_BN_ADD_ACTIVATION;

pub fn cudnn() -> &'static Control {
    softcudnn::install().expect("the library")
}

/// A device that no other test has, and a stream of it.
pub fn start() -> (Exclusive, Arc<CudaStream>) {
    let device = softcuda::install().expect("the software device").exclusive(0);
    cudnn();
    let context = CudaContext::new(0).unwrap();
    // SAFETY: each test has one stream.
    unsafe { context.disable_event_tracking() };
    let stream = context.new_stream().unwrap();
    (device, stream)
}
