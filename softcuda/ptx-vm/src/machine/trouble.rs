//! What went wrong, before it is known where.

use crate::{fault::FaultKind, race::Stamp};

/// What went wrong in an instruction.
#[derive(Debug)]
pub(crate) struct Trouble {
    pub(crate) kind: FaultKind,
    /// The lane to blame.
    pub(crate) lane: u32,
    /// Of a race, the earlier access.
    pub(crate) other: Option<Stamp>,
    pub(crate) detail: String,
}

impl Trouble {
    pub(crate) fn new(kind: FaultKind, lane: u32, detail: impl Into<String>) -> Self {
        Self { kind, lane, other: None, detail: detail.into() }
    }

    pub(crate) fn undefined(lane: u32, detail: impl Into<String>) -> Self {
        Self::new(FaultKind::Undefined, lane, detail)
    }
}
