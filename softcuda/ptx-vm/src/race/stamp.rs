//! Who accessed a place, when and how, in 64 bits.

use super::clock::Time;

/// How an access relates to others of other threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Strength {
    /// Must be ordered with every conflicting access.
    Weak = 1,
    /// Needs no order with a strong access of the same block.
    Block = 2,
    /// Needs no order with a strong access of the device.
    Device = 3,
}

/// The most warps of a grid that can be told apart.
pub(crate) const WARPS: u64 = 1 << 25;

const LANE: u64 = 31;
const STRENGTH: u32 = 5;
const WARP: u32 = 7;
const TIME: u32 = 32;

/// A lane (bits 0-4), a [`Strength`] (5-6), a warp of the grid (7-31) and its time (32-63); 0 is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Stamp(pub(crate) u64);

impl Stamp {
    /// The stamp of lane 0.
    pub(crate) fn new(warp: u32, time: Time, strength: Strength) -> Self {
        debug_assert!(u64::from(warp) < WARPS);
        Self(u64::from(time) << TIME | u64::from(warp) << WARP | (strength as u64) << STRENGTH)
    }

    /// The stamp of another lane.
    #[inline]
    pub(crate) fn with_lane(self, lane: u32) -> Self {
        Self(self.0 & !LANE | u64::from(lane))
    }

    /// Whether the other is of the same warp and strength.
    #[inline]
    pub(crate) fn same_kind(self, other: Self) -> bool {
        (self.0 ^ other.0) as u32 >> STRENGTH == 0
    }

    #[inline]
    pub(crate) fn lane(self) -> u32 {
        (self.0 & LANE) as u32
    }

    #[inline]
    pub(crate) fn warp(self) -> u32 {
        (self.0 as u32) >> WARP
    }

    #[inline]
    pub(crate) fn time(self) -> Time {
        (self.0 >> TIME) as u32
    }

    #[inline]
    pub(crate) fn strength(self) -> Strength {
        match self.0 >> STRENGTH & 3 {
            2 => Strength::Block,
            3 => Strength::Device,
            _ => Strength::Weak,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_do_not_touch() {
        let stamp = Stamp::new((WARPS - 1) as u32, Time::MAX, Strength::Block).with_lane(31);
        assert_eq!((stamp.warp(), stamp.time(), stamp.lane()), ((WARPS - 1) as u32, Time::MAX, 31));
        assert_eq!(stamp.strength(), Strength::Block);
        let stamp = Stamp::new(0, 1, Strength::Device).with_lane(5).with_lane(2);
        assert_eq!((stamp.warp(), stamp.time(), stamp.lane()), (0, 1, 2));
        assert!(stamp.same_kind(Stamp::new(0, 9, Strength::Device)));
        assert!(!stamp.same_kind(Stamp::new(0, 1, Strength::Weak)));
        assert!(!stamp.same_kind(Stamp::new(1, 1, Strength::Device)));
        assert_eq!(stamp.strength(), Strength::Device);
    }
}
