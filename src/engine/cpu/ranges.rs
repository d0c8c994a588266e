//! How the channels of a plan are cut into ranges, for what lies between two passes over tiles.
use super::plan::Plan;
use super::policy::{LEAST_CHANNELS, MERGED_AT_ONCE, RANGE, RANGES};
use std::ops::Range;

/// Ranges of channels, each in one block. Together they have every channel once.
pub(super) struct ChannelRanges<'p> {
    pub plan: &'p Plan,
    /// Whether they are worth more threads than one.
    pub at_once: bool,
    /// Channels of a range; the last one of a block may have fewer, or none.
    each: usize,
}

impl<'p> ChannelRanges<'p> {
    /// For work on so many values, those of all channels together.
    pub fn new(plan: &'p Plan, values: usize) -> Self {
        let at_once = values >= MERGED_AT_ONCE;
        let (all, ranges) = (plan.block_channels(), (values / RANGE).clamp(1, RANGES));
        let each = match at_once {
            true => all.div_ceil(ranges.div_ceil(plan.blocks())).max(LEAST_CHANNELS),
            false => all,
        };
        Self { plan, at_once, each: each.clamp(1, all.max(1)) }
    }
    fn per_block(&self) -> usize {
        self.plan.block_channels().div_ceil(self.each)
    }
    /// How many there are.
    pub fn len(&self) -> usize {
        self.plan.blocks() * self.per_block()
    }
    /// The block of range `i`.
    pub fn block(&self, i: usize) -> usize {
        i / self.per_block()
    }
    /// The channels of range `i`.
    pub fn channels(&self, i: usize) -> Range<usize> {
        let of_block = self.plan.channels(self.block(i));
        let start = of_block.start + i % self.per_block() * self.each;
        start.min(of_block.end)..(start + self.each).min(of_block.end)
    }
}
