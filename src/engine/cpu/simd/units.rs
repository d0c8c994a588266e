//! Sizes that loops, coefficients and scratch memory have in common.
use crate::Element;

/// Bytes of a cache line.
pub const LINE: usize = 64;
/// Values that loops take at a time: the widest vector of f32.
pub const GROUP: usize = 16;
/// Values of a row that a step takes at a time.
pub const BLOCK: usize = 512;
/// A block, and the last few values of a row that are not worth a step of their own.
pub const ROOM: usize = BLOCK + GROUP;
/// Values that a step takes at a time where it takes them twice: what it reads and what it writes, of three
/// tensors and f32, fits the first cache, and to begin and to end costs little beside so many.
pub const TWICE: usize = 4 * BLOCK;

/// A task's memory for a block, if it turns out that it needs one.
pub struct Scratch<E, const N: usize = ROOM>(Option<[E; N]>);

impl<E: Element, const N: usize> Scratch<E, N> {
    pub fn new() -> Self {
        Self(None)
    }
    /// Memory for `len` values; what was there stays.
    #[inline(always)]
    pub fn values(&mut self, len: usize) -> &mut [E] {
        &mut self.0.get_or_insert_with(|| [E::default(); N])[..len]
    }
    /// A copy of `from`.
    #[inline(always)]
    pub fn copy(&mut self, from: &[E]) -> &[E] {
        let values = self.values(from.len());
        values.copy_from_slice(from);
        values
    }
}

/// Values until one starts a cache line, if there are so many.
#[inline(always)]
pub fn to_line<T>(values: &[T]) -> usize {
    values.as_ptr().align_offset(LINE).min(values.len())
}
