//! Shared memory: a block's own.

use super::piece::Piece;
use crate::{
    memory::Bits,
    race::{Places, Shadow},
};

/// The shared memory of a block.
#[derive(Debug)]
pub(crate) struct Shared {
    data: Vec<u8>,
    written: Bits,
    shadow: Shadow,
    pub(crate) places: Places,
}

impl Shared {
    /// `bytes`, none of them written.
    pub(crate) fn new(bytes: usize) -> Self {
        let mut shadow = Shadow::default();
        shadow.reset(bytes);
        Self { data: vec![0; bytes], written: Bits::new(bytes), shadow, places: Places::of_block() }
    }

    /// Makes it that of another block.
    pub(crate) fn renew(&mut self) {
        self.written.reset(self.data.len());
        self.shadow.reset(self.data.len());
        self.places = Places::of_block();
    }

    /// Bytes.
    pub(crate) fn len(&self) -> usize {
        self.data.len()
    }

    pub(crate) fn piece(&mut self) -> Piece<'_> {
        Piece { data: &mut self.data, written: &mut self.written, shadow: Some(&mut self.shadow) }
    }
}
