//! How a tensor is described to cuDNN, and by which of its calls it is served: pure, and tested on
//! its own.
use super::desk::Sizes;
use super::limits::{self, Ask, is_channels_last};
use crate::engine::{Activation, Op, Request};
use crate::{DType, Result, Shape};
use cudarc::cudnn::sys::{
    cudnnBatchNormMode_t as Mode, cudnnBatchNormOps_t as Ops, cudnnDataType_t,
};
use std::ffi::c_int;

/// What a call says beside its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Form {
    pub mode: Mode,
    pub ops: Ops,
    pub data_type: cudnnDataType_t,
    /// In NCHW order, as cuDNN always has them.
    pub dims: [c_int; 4],
    pub strides: [c_int; 4],
    pub is_channels_last: bool,
    /// Whether it is training, a forward or a backward: by the `Ex` calls whatever the form, as PyTorch makes them,
    /// which take a workspace and pass a reserve space on. For most forms cuDNN asks for neither.
    pub trains: bool,
}

impl Form {
    /// Of a request that no limit forbids. With `persistent` the persistent mode serves tensors
    /// with their channels first, too.
    pub fn new(shape: &Shape, request: Request, persistent: bool) -> Result<Self> {
        limits::check(&Ask { shape, request })?;
        let is_channels_last = is_channels_last(shape);
        let rows = shape.per_channel();
        let n = match is_channels_last {
            true if rows.is_multiple_of(shape.batch()) => shape.batch(),
            true => 1,
            false => shape.outer(),
        };
        // None overflows: the number of elements has been checked.
        let [n, c, h] = [n, shape.channels(), rows / n].map(|size| size as c_int);
        let strides = if is_channels_last { [h * c, 1, c, c] } else { [c * h, h, 1, 1] };
        let ops = match request.activation {
            Activation::Identity => Ops::CUDNN_BATCHNORM_OPS_BN,
            // A ReLU: a limit.
            _ if request.residual => Ops::CUDNN_BATCHNORM_OPS_BN_ADD_ACTIVATION,
            _ => Ops::CUDNN_BATCHNORM_OPS_BN_ACTIVATION,
        };
        let is_fused = ops != Ops::CUDNN_BATCHNORM_OPS_BN;
        let trains = request.op != Op::ForwardEval;
        let is_wide = request.dtype == DType::F64;
        let mode = if is_fused {
            Mode::CUDNN_BATCHNORM_SPATIAL_PERSISTENT
        } else if is_channels_last && h == 1 {
            Mode::CUDNN_BATCHNORM_PER_ACTIVATION
        } else if trains && !is_wide && (is_channels_last || persistent) {
            Mode::CUDNN_BATCHNORM_SPATIAL_PERSISTENT
        } else {
            Mode::CUDNN_BATCHNORM_SPATIAL
        };
        let data_type = match request.dtype {
            DType::F64 => cudnnDataType_t::CUDNN_DATA_DOUBLE,
            DType::F32 => cudnnDataType_t::CUDNN_DATA_FLOAT,
            DType::F16 => cudnnDataType_t::CUDNN_DATA_HALF,
            DType::Bf16 => cudnnDataType_t::CUDNN_DATA_BFLOAT16,
        };
        let dims = [n, c, h, 1];
        Ok(Self { mode, ops, data_type, dims, strides, is_channels_last, trains })
    }

    /// Bytes that a forward puts aside: what cuDNN asks for; and y, which it wants again where an
    /// activation follows, unless the caller keeps it.
    pub fn kept(&self, sizes: &Sizes, y_is_kept: bool) -> usize {
        let [n, c, h, _] = self.dims.map(|size| size as usize);
        if !self.activates() || y_is_kept {
            return sizes.reserve;
        }
        // An activation goes with f16 or bf16: a limit.
        sizes.reserve_end() + 2 * n * c * h
    }
    /// Whether a residual is added.
    pub fn adds(&self) -> bool {
        self.ops == Ops::CUDNN_BATCHNORM_OPS_BN_ADD_ACTIVATION
    }
    /// Whether an activation follows.
    pub fn activates(&self) -> bool {
        self.ops != Ops::CUDNN_BATCHNORM_OPS_BN
    }
}

/// `CUDNN_BATCHNORM_SPATIAL, CUDNN_BATCHNORM_OPS_BN, 4 x 64 x 49 x 1 as NCHW`.
impl std::fmt::Display for Form {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ([n, c, h, w], order) =
            (self.dims, if self.is_channels_last { "NHWC" } else { "NCHW" });
        write!(f, "{:?}, {:?}, {n} x {c} x {h} x {w} as {order}", self.mode, self.ops)
    }
}

#[cfg(test)]
#[path = "form_tests.rs"]
mod tests;
