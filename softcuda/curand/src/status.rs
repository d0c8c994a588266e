//! What calls answer.

/// What a call that does nothing answers, and why.
pub type Refusal = (Status, String);

/// A `curandStatus_t`; every version of cudarc's bindings has these.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Status {
    Success = 0,
    VersionMismatch = 100,
    NotInitialized = 101,
    AllocationFailed = 102,
    TypeError = 103,
    OutOfRange = 104,
    LengthNotMultiple = 105,
    DoublePrecisionRequired = 106,
    LaunchFailure = 201,
    PreexistingFailure = 202,
    InitializationFailed = 203,
    ArchMismatch = 204,
    InternalError = 999,
}

const ALL: [Status; 13] = [
    Status::Success,
    Status::VersionMismatch,
    Status::NotInitialized,
    Status::AllocationFailed,
    Status::TypeError,
    Status::OutOfRange,
    Status::LengthNotMultiple,
    Status::DoublePrecisionRequired,
    Status::LaunchFailure,
    Status::PreexistingFailure,
    Status::InitializationFailed,
    Status::ArchMismatch,
    Status::InternalError,
];

impl Status {
    pub fn from_number(number: u32) -> Option<Self> {
        ALL.into_iter().find(|status| *status as u32 == number)
    }

    /// Why a call answers so.
    pub fn because<T>(self, reason: impl Into<String>) -> Result<T, Refusal> {
        Err((self, reason.into()))
    }
}

/// Whether a test can make a call answer so.
pub fn is_failure(number: u32) -> bool {
    Status::from_number(number).is_some_and(|status| status != Status::Success)
}
