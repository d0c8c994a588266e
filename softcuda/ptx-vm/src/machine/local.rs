//! Local memory: each thread's own.

use super::piece::Piece;
use crate::memory::Bits;

/// Local memory of the threads of a warp.
#[derive(Debug, Default)]
pub(crate) struct Local {
    /// Bytes of a thread.
    bytes: usize,
    data: Vec<u8>,
    written: Bits,
}

impl Local {
    /// `bytes` for each lane, none of them written.
    pub(crate) fn new(bytes: usize) -> Self {
        Self { bytes, data: vec![0; bytes * 32], written: Bits::new(bytes * 32) }
    }

    /// Bytes of a thread.
    pub(crate) fn len(&self) -> usize {
        self.bytes
    }

    /// All lanes' memory, and where that of a lane begins.
    pub(crate) fn of(&mut self, lane: u32) -> (Piece<'_>, usize) {
        let piece = Piece { data: &mut self.data, written: &mut self.written, shadow: None };
        (piece, lane as usize * self.bytes)
    }
}
