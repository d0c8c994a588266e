//! What calls answer.

use std::ffi::CStr;

/// What a call that does nothing answers, and why.
pub type Refusal = (Status, String);

/// The statuses of cuDNN 9 that cudarc's bindings have in all its versions; to their enum any other number would be
/// undefined behaviour.
const ALL: [(u32, &CStr); 48] = [
    (0, c"CUDNN_STATUS_SUCCESS"),
    (1001, c"CUDNN_STATUS_NOT_INITIALIZED"),
    (1002, c"CUDNN_STATUS_SUBLIBRARY_VERSION_MISMATCH"),
    (1003, c"CUDNN_STATUS_SERIALIZATION_VERSION_MISMATCH"),
    (1004, c"CUDNN_STATUS_DEPRECATED"),
    (1005, c"CUDNN_STATUS_LICENSE_ERROR"),
    (1006, c"CUDNN_STATUS_RUNTIME_IN_PROGRESS"),
    (1007, c"CUDNN_STATUS_RUNTIME_FP_OVERFLOW"),
    (1008, c"CUDNN_STATUS_SUBLIBRARY_LOADING_FAILED"),
    (2000, c"CUDNN_STATUS_BAD_PARAM"),
    (2001, c"CUDNN_STATUS_INVALID_VALUE"),
    (2002, c"CUDNN_STATUS_BAD_PARAM_NULL_POINTER"),
    (2003, c"CUDNN_STATUS_BAD_PARAM_MISALIGNED_POINTER"),
    (2004, c"CUDNN_STATUS_BAD_PARAM_NOT_FINALIZED"),
    (2005, c"CUDNN_STATUS_BAD_PARAM_OUT_OF_BOUND"),
    (2006, c"CUDNN_STATUS_BAD_PARAM_SIZE_INSUFFICIENT"),
    (2007, c"CUDNN_STATUS_BAD_PARAM_STREAM_MISMATCH"),
    (2008, c"CUDNN_STATUS_BAD_PARAM_SHAPE_MISMATCH"),
    (2009, c"CUDNN_STATUS_BAD_PARAM_DUPLICATED_ENTRIES"),
    (2010, c"CUDNN_STATUS_BAD_PARAM_ATTRIBUTE_TYPE"),
    (2011, c"CUDNN_STATUS_BAD_PARAM_CUDA_GRAPH_MISMATCH"),
    (2012, c"CUDNN_STATUS_BAD_PARAM_DESCRIPTOR_TYPE"),
    (3000, c"CUDNN_STATUS_NOT_SUPPORTED"),
    (3001, c"CUDNN_STATUS_NOT_SUPPORTED_GRAPH_PATTERN"),
    (3002, c"CUDNN_STATUS_NOT_SUPPORTED_SHAPE"),
    (3003, c"CUDNN_STATUS_NOT_SUPPORTED_DATA_TYPE"),
    (3004, c"CUDNN_STATUS_NOT_SUPPORTED_LAYOUT"),
    (3005, c"CUDNN_STATUS_NOT_SUPPORTED_INCOMPATIBLE_CUDA_DRIVER"),
    (3006, c"CUDNN_STATUS_NOT_SUPPORTED_INCOMPATIBLE_CUDART"),
    (3007, c"CUDNN_STATUS_NOT_SUPPORTED_ARCH_MISMATCH"),
    (3008, c"CUDNN_STATUS_NOT_SUPPORTED_RUNTIME_PREREQUISITE_MISSING"),
    (3009, c"CUDNN_STATUS_NOT_SUPPORTED_SUBLIBRARY_UNAVAILABLE"),
    (3010, c"CUDNN_STATUS_NOT_SUPPORTED_SHARED_MEMORY_INSUFFICIENT"),
    (3011, c"CUDNN_STATUS_NOT_SUPPORTED_PADDING"),
    (3012, c"CUDNN_STATUS_NOT_SUPPORTED_BAD_LAUNCH_PARAM"),
    (3013, c"CUDNN_STATUS_NOT_SUPPORTED_CUDA_GRAPH_NATIVE_API"),
    (4000, c"CUDNN_STATUS_INTERNAL_ERROR"),
    (4001, c"CUDNN_STATUS_INTERNAL_ERROR_COMPILATION_FAILED"),
    (4002, c"CUDNN_STATUS_INTERNAL_ERROR_UNEXPECTED_VALUE"),
    (4003, c"CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED"),
    (4004, c"CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    (4005, c"CUDNN_STATUS_INTERNAL_ERROR_BAD_LAUNCH_PARAM"),
    (4006, c"CUDNN_STATUS_INTERNAL_ERROR_TEXTURE_CREATION_FAILED"),
    (5000, c"CUDNN_STATUS_EXECUTION_FAILED"),
    (5001, c"CUDNN_STATUS_EXECUTION_FAILED_CUDA_DRIVER"),
    (5002, c"CUDNN_STATUS_EXECUTION_FAILED_CUBLAS"),
    (5003, c"CUDNN_STATUS_EXECUTION_FAILED_CUDART"),
    (5004, c"CUDNN_STATUS_EXECUTION_FAILED_CURAND"),
];

/// A `cudnnStatus_t`, one of those above.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status(u32);

impl Status {
    pub const SUCCESS: Self = Self(0);
    pub const NOT_INITIALIZED: Self = Self(1001);
    pub const RUNTIME_IN_PROGRESS: Self = Self(1006);
    pub const RUNTIME_FP_OVERFLOW: Self = Self(1007);
    pub const BAD_PARAM: Self = Self(2000);
    pub const NOT_SUPPORTED: Self = Self(3000);
    pub const INTERNAL_ERROR: Self = Self(4000);
    pub const EXECUTION_FAILED: Self = Self(5000);

    pub fn from_number(number: u32) -> Option<Self> {
        ALL.iter().any(|(status, _)| *status == number).then_some(Self(number))
    }

    /// Why a call answers so.
    pub fn because<T>(self, reason: impl Into<String>) -> Result<T, Refusal> {
        Err((self, reason.into()))
    }
}

/// The name of a number.
pub fn name(number: u32) -> &'static CStr {
    let known = ALL.iter().find(|(status, _)| *status == number);
    known.map_or(c"CUDNN_UNKNOWN_STATUS", |(_, name)| name)
}

/// Whether a test can make a call answer so.
pub fn is_failure(number: u32) -> bool {
    Status::from_number(number).is_some_and(|status| status != Status::SUCCESS)
}
