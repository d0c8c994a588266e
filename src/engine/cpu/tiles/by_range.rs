//! Arrays of values for every channel, of which tasks write disjoint ranges of channels.
use super::{Memory, Outputs, in_parallel};
use crate::engine::cpu::counted;
use crate::engine::cpu::plan::{Plan, Tile};
use crate::engine::cpu::ranges::ChannelRanges;
use std::ops::Range;

/// Runs `task` for every range, by its number, each with its own part of `arrays`; on the pool's threads
/// where the ranges are worth it.
pub(in crate::engine::cpu) fn for_each_range<'o, R: ByRange>(
    ranges: &ChannelRanges<'_>,
    arrays: &'o mut R,
    task: impl Fn(usize, R::Part<'o>) + Sync,
) {
    arrays.check(ranges.plan.all_channels());
    let arrays = &*arrays;
    in_parallel(ranges.len(), !ranges.at_once, false, &|i| {
        let channels = ranges.channels(i);
        if channels.is_empty() {
            return;
        }
        counted::values(channels.len() * arrays.each());
        // SAFETY: every index comes once, and ranges of different indices share no channel (tested in
        // by_range_tests.rs); `check` has passed, and `arrays` is mutably borrowed for 'o.
        task(i, unsafe { arrays.part(&channels) });
    });
}

/// Arrays that are handed out by ranges of channels.
///
/// # Safety
/// After `check` has returned, parts of disjoint ranges below that number of channels must not overlap, and
/// those of any such range lie in the memory.
pub(in crate::engine::cpu) unsafe trait ByRange: Sync {
    /// A range's part.
    type Part<'o>: Sync;
    /// Panics unless there are values for so many channels: a fault of this engine, not of its user.
    fn check(&self, channels: usize);
    /// Values of a channel.
    fn each(&self) -> usize;
    /// The part of some channels.
    ///
    /// # Safety
    /// `check` has passed for a number that they are below; `self` is mutably borrowed for `'o`, and in
    /// that time no other part with any of them is asked for.
    unsafe fn part<'o>(&self, channels: &Range<usize>) -> Self::Part<'o>;
}

/// An array of as many values for each channel as it is said, those of a channel next to each other.
pub(in crate::engine::cpu) struct Channels<'a, T> {
    memory: Memory<'a, T>,
    each: usize,
}

impl<'a, T> Channels<'a, T> {
    /// One value for each channel.
    pub fn new(array: &'a mut [T]) -> Self {
        Self::several(array, 1)
    }
    pub fn several(array: &'a mut [T], each: usize) -> Self {
        Self { memory: Memory::new(array), each }
    }
}

// SAFETY: `check` finds `each` values for every channel; channel c has those from `c * each` on.
unsafe impl<T: Send + Sync + 'static> ByRange for Channels<'_, T> {
    type Part<'o> = &'o mut [T];
    fn check(&self, channels: usize) {
        let needed = channels.checked_mul(self.each);
        assert!(needed.is_some_and(|len| self.memory.len >= len), "values for every channel");
    }
    fn each(&self) -> usize {
        self.each
    }
    unsafe fn part<'o>(&self, channels: &Range<usize>) -> &'o mut [T] {
        // SAFETY: inside the memory (checked), and of no other range.
        unsafe {
            let start = self.memory.start.add(channels.start * self.each);
            std::slice::from_raw_parts_mut(start, channels.len() * self.each)
        }
    }
}

// SAFETY: as its content; nothing has no parts.
unsafe impl<R: ByRange> ByRange for Option<R> {
    type Part<'o> = Option<R::Part<'o>>;
    fn check(&self, channels: usize) {
        self.iter().for_each(|arrays| arrays.check(channels));
    }
    fn each(&self) -> usize {
        self.as_ref().map_or(0, R::each)
    }
    unsafe fn part<'o>(&self, channels: &Range<usize>) -> Self::Part<'o> {
        // SAFETY: what the caller promised.
        self.as_ref().map(|arrays| unsafe { arrays.part(channels) })
    }
}

// SAFETY: as its members, which are different memory: each was a `&mut`.
unsafe impl<R: ByRange, const N: usize> ByRange for [R; N] {
    type Part<'o> = [R::Part<'o>; N];
    fn check(&self, channels: usize) {
        self.iter().for_each(|arrays| arrays.check(channels));
    }
    fn each(&self) -> usize {
        self.iter().map(R::each).sum()
    }
    unsafe fn part<'o>(&self, channels: &Range<usize>) -> Self::Part<'o> {
        // SAFETY: what the caller promised.
        self.each_ref().map(|arrays| unsafe { arrays.part(channels) })
    }
}

// SAFETY: as what it borrows.
unsafe impl<R: ByRange> ByRange for &mut R {
    type Part<'o> = R::Part<'o>;
    fn check(&self, channels: usize) {
        (**self).check(channels);
    }
    fn each(&self) -> usize {
        (**self).each()
    }
    unsafe fn part<'o>(&self, channels: &Range<usize>) -> Self::Part<'o> {
        // SAFETY: what the caller promised.
        unsafe { (**self).part(channels) }
    }
}

macro_rules! tuple {
    ($($name:ident $i:tt),+) => {
        // SAFETY: as its members, which are different memory: each was a `&mut`.
        unsafe impl<$($name: ByRange),+> ByRange for ($($name,)+) {
            type Part<'o> = ($($name::Part<'o>,)+);
            fn check(&self, channels: usize) {
                $(self.$i.check(channels);)+
            }
            fn each(&self) -> usize {
                [$(self.$i.each()),+].iter().sum()
            }
            unsafe fn part<'o>(&self, channels: &Range<usize>) -> Self::Part<'o> {
                // SAFETY: what the caller promised.
                unsafe { ($(self.$i.part(channels),)+) }
            }
        }
    };
}
tuple!(A 0, B 1);
tuple!(A 0, B 1, C 2);
tuple!(A 0, B 1, C 2, D 3);

/// The same arrays for tiles that hold their channels whole.
pub(in crate::engine::cpu) struct OfTiles<R>(pub R);

// SAFETY: tiles of whole channels are those of different blocks, which share no channel.
unsafe impl<R: ByRange> Outputs for OfTiles<R> {
    type Part<'o> = R::Part<'o>;
    fn check(&self, plan: &Plan) {
        assert!(plan.whole_channels(), "tiles of whole channels");
        self.0.check(plan.all_channels());
    }
    unsafe fn part<'o>(&self, plan: &Plan, tile: &Tile) -> Self::Part<'o> {
        let channels = plan.channels(tile.block);
        counted::values(channels.len() * self.0.each());
        // SAFETY: what the caller promised: the tile is its block's only one.
        unsafe { self.0.part(&channels) }
    }
}

/// All of the arrays at once.
pub(in crate::engine::cpu) fn all_channels<R: ByRange>(
    arrays: &mut R,
    channels: usize,
) -> R::Part<'_> {
    arrays.check(channels);
    // SAFETY: checked; there is no other part while `arrays` is mutably borrowed.
    unsafe { arrays.part(&(0..channels)) }
}

#[cfg(test)]
#[path = "by_range_tests.rs"]
mod tests;
