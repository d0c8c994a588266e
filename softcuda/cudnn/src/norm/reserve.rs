//! What a forward leaves for its backward: whose it is, and a bit per element that the activation lets through.

use super::arguments::{Normalization, Ops};

const MARK: &[u8; 8] = b"softbnrs";
const HEAD: usize = 40;

/// Bytes of the reserve space.
pub fn bytes(norm: &Normalization) -> usize {
    let bits = if norm.ops == Ops::Nothing { 0 } else { norm.x.len() };
    HEAD + bits.div_ceil(8).next_multiple_of(8)
}

/// What tells whose it is.
fn head(norm: &Normalization) -> [u8; HEAD] {
    let mut head = [0; HEAD];
    head[..8].copy_from_slice(MARK);
    let dims = norm.x.dims.iter().chain([&0; 2]).take(6);
    let numbers = dims.copied().chain([norm.ops as i32, i32::from(norm.drops_nan)]);
    for (place, number) in head[8..].chunks_exact_mut(4).zip(numbers) {
        place.copy_from_slice(&number.to_le_bytes());
    }
    head
}

/// Fills the space; `passed` is empty where there is no activation.
pub fn write(norm: &Normalization, passed: &[bool], space: &mut [u8]) {
    let (to, bits) = space.split_at_mut(HEAD);
    to.copy_from_slice(&head(norm));
    bits.fill(0);
    for (i, _) in passed.iter().enumerate().filter(|(_, passed)| **passed) {
        bits[i / 8] |= 1 << (i % 8);
    }
}

/// What the activation has let through, of as many elements as there are; `None` if the space is not what a forward of
/// the same kind has left.
pub fn read(norm: &Normalization, space: &[u8]) -> Option<Vec<bool>> {
    let (from, bits) = space.split_at(HEAD);
    let passed = |i: usize| norm.ops == Ops::Nothing || bits[i / 8] >> (i % 8) & 1 == 1;
    (from == head(norm)).then(|| (0..norm.x.len()).map(passed).collect())
}
