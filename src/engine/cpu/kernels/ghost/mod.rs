//! Groups of few rows of a value per channel, as ghost batches of N x C are: a strip of a group's channels goes through
//! all steps at once, its rows on memory that the first cache holds. What such a group takes is not its elements but
//! what is done once for each of its channels (a root, divisions, coefficients, running statistics): that is a single
//! loop of vectors, and nothing is prepared, allocated or looked up for a group. The arithmetic is that of the loops
//! over blocks, in their order, so that the bits are theirs.
use super::super::simd::{GROUP, Simd, prefetch};
use super::sums::STRIP_ROWS;
use crate::{DType, Element, Real};

mod backward;
mod forward;

pub use backward::{Backward, BackwardStrip, Sums};
pub use forward::{Forward, ForwardStrip, Published, Update};

/// Most rows: those that are summed in the accumulating type.
pub const MOST_ROWS: usize = STRIP_ROWS;
/// Groups of channels of a strip, where there are so many, and where there are fewer.
pub const WIDE: usize = 4;
pub const NARROW: usize = 2;

/// Where the rows of a group are among all rows: at equal distances.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rows {
    pub first: usize,
    pub step: usize,
    /// [`MOST_ROWS`] at most.
    pub count: usize,
    /// Rows from here to the next group's first.
    pub next: usize,
}

impl Rows {
    #[inline(always)]
    pub fn each(self) -> impl Iterator<Item = usize> {
        (0..self.count).map(
            #[inline(always)]
            move |k| self.at(k),
        )
    }
    #[inline(always)]
    pub fn at(self, k: usize) -> usize {
        self.first + k * self.step
    }
}

/// The rows of a group, and which of them count: those alone make its statistics, and what flows back through these
/// reaches no others.
pub trait Group: Copy {
    /// Whether all do.
    const ALL: bool;
    fn rows(self) -> Rows;
    /// How many do.
    fn counted(self) -> usize;
    /// Numbers of rows within the group, those that count before the others.
    fn order(self) -> impl Iterator<Item = usize>;
}

impl Group for Rows {
    const ALL: bool = true;

    #[inline(always)]
    fn rows(self) -> Rows {
        self
    }
    #[inline(always)]
    fn counted(self) -> usize {
        self.count
    }
    #[inline(always)]
    fn order(self) -> impl Iterator<Item = usize> {
        0..self.count
    }
}

/// Rows in the order of what counts, so that no loop over them asks a mask.
pub struct Counted {
    rows: Rows,
    /// And room for what is written once too often.
    order: [u8; MOST_ROWS + 1],
    counted: usize,
}

impl Counted {
    /// By a byte for every row of the tensor.
    pub fn new(rows: Rows, places: &[u8]) -> Self {
        let (mut order, mut counted) = ([0; MOST_ROWS + 1], 0);
        for k in 0..rows.count {
            order[counted] = k as u8;
            counted += usize::from(places[rows.at(k)] != 0);
        }
        let mut at = counted;
        for k in 0..rows.count {
            order[at] = k as u8;
            at += usize::from(places[rows.at(k)] == 0);
        }
        Self { rows, order, counted }
    }
}

impl Group for &Counted {
    const ALL: bool = false;

    #[inline(always)]
    fn rows(self) -> Rows {
        self.rows
    }
    #[inline(always)]
    fn counted(self) -> usize {
        self.counted
    }
    #[inline(always)]
    fn order(self) -> impl Iterator<Item = usize> {
        self.order[..self.rows.count].iter().map(
            #[inline(always)]
            |k| usize::from(*k),
        )
    }
}

/// A value for each channel of a strip.
pub type Strip<A, const G: usize> = [[A; GROUP]; G];

/// A strip of an array, and the same to write.
#[inline(always)]
pub fn strip<T, const G: usize>(values: &[T]) -> &Strip<T, G> {
    values[..G * GROUP].as_chunks().0.first_chunk().unwrap()
}
#[inline(always)]
pub fn strip_mut<T, const G: usize>(values: &mut [T]) -> &mut Strip<T, G> {
    values[..G * GROUP].as_chunks_mut().0.first_chunk_mut().unwrap()
}

/// The strip from `column` on of a group's rows of a tensor of rows of `width`, in the group's order. It asks for those
/// of the next group, as a strip is too short a run to be fetched ahead by itself.
#[inline(always)]
fn load<E: Element, const G: usize>(
    simd: Simd,
    (from, width): (&[E], usize),
    (group, column): (impl Group, usize),
    to: &mut [Strip<E::Acc, G>],
) {
    let rows = group.rows();
    let ahead = rows.next * width;
    for (k, to) in group.order().zip(to) {
        let from: &Strip<E, G> = strip(&from[rows.at(k) * width + column..]);
        for g in 0..G {
            prefetch(from[g].as_ptr().wrapping_add(ahead));
            to[g] = simd.widen(&from[g]);
        }
    }
}

/// Asks for a strip that will be written.
#[inline(always)]
fn prefetch_strip<E, const G: usize>(to: &[E]) {
    for g in 0..G {
        prefetch(to[g * GROUP..].as_ptr());
    }
}

/// A division by a number of rows, [`MOST_ROWS`] at most, rounded as it should be, in a third of the time of one: a
/// product with the inverse, and what is left of the value, which is exact. Of values in the range of f32.
#[inline(always)]
fn over(value: f64, (count, each): (f64, f64)) -> f64 {
    // Digits that leave room for those of a count.
    const HIGH: u64 = !0 << 8;
    let guess = value * each;
    let high = f64::from_bits(guess.to_bits() & HIGH);
    let left = (value - high * count) - (guess - high) * count;
    guess + left * each
}

/// The same of any values, by a division where the type has others; exactly, by a power of two.
#[inline(always)]
fn divided<A: Real, const EXACT: bool>(value: f64, (count, each): (f64, f64)) -> f64 {
    match (EXACT, A::DTYPE) {
        (true, _) => value * each,
        (false, DType::F64) => value / count,
        (false, _) => over(value, (count, each)),
    }
}

/// Whether a division by it is a product with its inverse.
#[inline(always)]
fn is_exact(count: usize) -> bool {
    count.is_power_of_two()
}

/// Something of every channel of a group.
#[inline(always)]
fn each<T: Copy + Default>(of: impl Fn(usize) -> T) -> [T; GROUP] {
    let mut all = [T::default(); GROUP];
    for (l, to) in all.iter_mut().enumerate() {
        *to = of(l);
    }
    all
}

/// Whether a number that is known but for so many last digits may be rounded to f32 otherwise than the right one, as it
/// is near the middle between two.
#[inline(always)]
fn may_round_otherwise(value: f64, digits: u32) -> bool {
    const DROPPED: u32 = f64::MANTISSA_DIGITS - f32::MANTISSA_DIGITS;
    let from = (1 << (DROPPED - 1)) - (1 << digits);
    let dropped = value.to_bits() & ((1 << DROPPED) - 1);
    dropped.wrapping_sub(from) < 2 << digits
}

/// To the accumulating type and back: what is left where a number is stored after every group.
#[inline(always)]
fn rounded<A: Real>(value: f64) -> f64 {
    A::from_f64(value).to_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_division_by_rows_is_rounded_as_it_should_be() {
        let mut bits = 1_u64;
        for count in 1..=MOST_ROWS {
            let by = (count as f64, 1.0 / count as f64);
            for value in [0.0, 1.0, -3.0, 1e-90, f64::from(f32::MAX)] {
                assert_eq!(over(value, by), value / by.0, "{value} over {count}");
            }
            for _ in 0..10_000 {
                bits = bits.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let value = ((bits >> 11) as f64 - (1_u64 << 52) as f64) * 2_f64.powi(-60);
                assert_eq!(over(value, by), value / by.0, "{value:e} over {count}");
                // What a short sum is made of.
                let value = f64::from(value as f32);
                assert_eq!(over(value, by), value / by.0, "{value:e} over {count}");
            }
        }
    }
}
