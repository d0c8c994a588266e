//! What calls answer.

use std::ffi::CStr;

/// What a call that does nothing answers, and why.
pub type Refusal = (Status, String);

macro_rules! statuses {
    ($($variant:ident = $value:literal, $name:literal, $text:literal;)*) => {
        /// A `cublasStatus_t`; every version of cudarc's bindings has these.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(missing_docs)]
        pub enum Status {
            $($variant = $value,)*
        }

        const ALL: &[(Status, &CStr, &CStr)] = &[$((Status::$variant, $name, $text),)*];
    };
}

statuses! {
    Success = 0, c"CUBLAS_STATUS_SUCCESS", c"success";
    NotInitialized = 1, c"CUBLAS_STATUS_NOT_INITIALIZED", c"the library was not initialized";
    AllocFailed = 3, c"CUBLAS_STATUS_ALLOC_FAILED", c"the resource allocation failed";
    InvalidValue = 7, c"CUBLAS_STATUS_INVALID_VALUE", c"an unsupported value or parameter was passed";
    ArchMismatch = 8, c"CUBLAS_STATUS_ARCH_MISMATCH", c"the device lacks a required feature";
    MappingError = 11, c"CUBLAS_STATUS_MAPPING_ERROR", c"an access to device memory failed";
    ExecutionFailed = 13, c"CUBLAS_STATUS_EXECUTION_FAILED", c"the program failed to execute";
    InternalError = 14, c"CUBLAS_STATUS_INTERNAL_ERROR", c"an internal operation failed";
    NotSupported = 15, c"CUBLAS_STATUS_NOT_SUPPORTED", c"the functionality is not supported";
    LicenseError = 16, c"CUBLAS_STATUS_LICENSE_ERROR", c"the license check failed";
}

impl Status {
    pub fn from_number(number: u32) -> Option<Self> {
        ALL.iter().map(|(status, ..)| *status).find(|status| *status as u32 == number)
    }

    /// Why a call answers so.
    pub fn because<T>(self, reason: impl Into<String>) -> Result<T, Refusal> {
        Err((self, reason.into()))
    }
}

/// The name and the meaning of a number.
pub fn texts(number: u32) -> (&'static CStr, &'static CStr) {
    let known = ALL.iter().find(|(status, ..)| *status as u32 == number);
    known.map_or((c"<unknown>", c"<unknown>"), |(_, name, text)| (name, text))
}

/// Whether a test can make a call answer so.
pub fn is_failure(number: u32) -> bool {
    Status::from_number(number).is_some_and(|status| status != Status::Success)
}
