//! What calls answer.

use std::ffi::CStr;

/// What a call that does nothing answers, and why.
pub type Refusal = (Status, String);

/// The results of NCCL 2.18 and later, by number, with the texts of `ncclGetErrorString`.
const ALL: [&CStr; 8] = [
    c"no error",
    c"unhandled cuda error (run with NCCL_DEBUG=INFO for details)",
    c"unhandled system error (run with NCCL_DEBUG=INFO for details)",
    c"internal error - please report this issue to the NCCL developers",
    c"invalid argument (run with NCCL_DEBUG=WARN for details)",
    c"invalid usage (run with NCCL_DEBUG=WARN for details)",
    c"remote process exited or there was a network error",
    c"NCCL operation in progress",
];

/// An `ncclResult_t`.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status(u32);

impl Status {
    pub const SUCCESS: Self = Self(0);
    pub const CUDA: Self = Self(1);
    pub const INTERNAL_ERROR: Self = Self(3);
    pub const INVALID_ARGUMENT: Self = Self(4);
    pub const INVALID_USAGE: Self = Self(5);
    pub const IN_PROGRESS: Self = Self(7);

    pub fn from_number(number: u32) -> Option<Self> {
        ((number as usize) < ALL.len()).then_some(Self(number))
    }

    pub fn number(self) -> u32 {
        self.0
    }

    pub fn is_error(self) -> bool {
        self != Self::SUCCESS && self != Self::IN_PROGRESS
    }

    /// Why a call answers so.
    pub fn because<T>(self, reason: impl Into<String>) -> Result<T, Refusal> {
        Err((self, reason.into()))
    }
}

/// The text of a number.
pub fn text(number: u32) -> &'static CStr {
    ALL.get(number as usize).copied().unwrap_or(c"unknown result code")
}

/// Whether a test can make a call answer so.
pub fn is_failure(number: u32) -> bool {
    Status::from_number(number).is_some_and(|status| status != Status::SUCCESS)
}
