//! What a call reads and writes, laid out in a piece of host memory.

use crate::number::Number;

/// Where a job finds an argument.
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    offset: usize,
    count: usize,
    number: Number,
}

/// A copy between device memory and its place in host memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Move {
    pub address: u64,
    pub offset: usize,
    pub bytes: usize,
    pub reads: bool,
    pub writes: bool,
}

/// What is done with an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// It is only read.
    Read,
    /// All of it is written, whatever it was.
    Write,
    /// It is read and written.
    Update,
}

/// Columns of `rows` numbers each, `stride` numbers from one to the next.
#[derive(Clone, Copy, Debug)]
pub struct Columns {
    /// Where the first begins.
    pub address: u64,
    /// Numbers of a column.
    pub rows: usize,
    /// How many columns.
    pub columns: usize,
    /// Numbers from a column to the next.
    pub stride: usize,
}

/// What a call reads and writes.
#[derive(Clone, Debug, Default)]
pub struct Job {
    pub(crate) moves: Vec<Move>,
    pub(crate) bytes: usize,
}

impl Job {
    /// An argument of numbers side by side.
    pub fn argument(&mut self, how: Use, address: u64, number: Number, count: usize) -> Slot {
        self.columns(how, number, Columns { address, rows: count, columns: 1, stride: count })
    }

    /// An argument of columns, which lie side by side in its slot. What is between them is neither read nor written.
    pub fn columns(&mut self, how: Use, number: Number, columns: Columns) -> Slot {
        let Columns { address, mut rows, columns: mut times, stride } = columns;
        let slot = Slot { offset: self.bytes, count: rows * times, number };
        if rows == stride {
            (rows, times) = (rows * times, 1);
        }
        let width = number.width();
        for column in 0..times {
            self.moves.push(Move {
                address: address + (column * stride * width) as u64,
                offset: slot.offset + column * rows * width,
                bytes: rows * width,
                reads: how != Use::Write,
                writes: how != Use::Read,
            });
        }
        self.bytes = (slot.offset + slot.count * width).next_multiple_of(16);
        slot
    }
}

/// The host memory of a job while it runs.
#[derive(Debug)]
pub struct Memory<'a> {
    bytes: &'a mut [u8],
}

impl<'a> Memory<'a> {
    pub(crate) fn new(bytes: &'a mut [u8]) -> Self {
        Self { bytes }
    }

    /// The numbers of an argument that is read.
    #[must_use]
    pub fn load(&self, slot: Slot) -> Vec<f64> {
        slot.number.load(&self.bytes[slot.offset..][..slot.count * slot.number.width()])
    }

    /// Writes an argument, each number rounded to the nearest of its type.
    ///
    /// # Panics
    /// If these are not as many numbers as it has.
    pub fn store(&mut self, slot: Slot, values: &[f64]) {
        assert_eq!(values.len(), slot.count);
        let bytes = &mut self.bytes[slot.offset..][..slot.count * slot.number.width()];
        slot.number.store(values, bytes);
    }

    /// The bytes of an argument.
    pub fn bytes(&mut self, slot: Slot) -> &mut [u8] {
        &mut self.bytes[slot.offset..][..slot.count * slot.number.width()]
    }
}
