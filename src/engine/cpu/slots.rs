//! What tasks have summed, merged by channels: the sums of tiles, then those of joined rows.
use super::counted;
use super::plan::Plan;
use super::ranges::ChannelRanges;
use super::table::split_mut;
use std::ops::Range;

/// The sums of some channels of a block: each of its tiles has left an array of every sum in its slot, a value for
/// each column, or for each channel where runs are long.
pub(super) struct Sums<'s> {
    /// The channels, and their block.
    pub channels: Range<usize>,
    pub block: usize,
    plan: &'s Plan,
    slots: &'s [f64],
    slot_len: usize,
    scratch: &'s mut [f64],
}

/// Where a channel's values are in an array.
#[derive(Debug, Clone, Copy)]
pub(super) struct Columns {
    /// So many next to each other.
    pub inner: usize,
    /// And again in as many rows that are joined.
    pub joined: usize,
}

impl Columns {
    /// As [`Plan`] says.
    pub fn of(plan: &Plan) -> Self {
        let joined = if plan.is_joined() { plan.width / plan.row() } else { 1 };
        Self { inner: if plan.by_run { 1 } else { plan.inner() }, joined }
    }
    /// A value for each channel.
    pub const CHANNELS: Self = Self { inner: 1, joined: 1 };
}

/// What is merged into what came before it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Step {
    /// A tile, number 1 or more in its block, of the joined row of that number.
    Tile(usize, usize),
    /// All tiles of a joined row, number 1 or more.
    Row(usize),
}

/// Most sums that are merged together.
const TOGETHER: usize = 3;

/// Values for each channel that merging works in, where there is anything to merge.
pub(super) fn scratch_len(plan: &Plan, sums: usize) -> usize {
    let Columns { inner, joined } = Columns::of(plan);
    match plan.tiles_per_block() > 1 || joined > 1 {
        true => 2 * sums.min(TOGETHER) * inner,
        false => 0,
    }
}

impl<'s> Sums<'s> {
    /// Of some channels of a block, whose `slots` are `slot_len` long each; `scratch` has [`scratch_len`] values for
    /// each channel.
    pub fn new(
        plan: &'s Plan,
        (block, channels): (usize, Range<usize>),
        (slots, slot_len): (&'s [f64], usize),
        scratch: &'s mut [f64],
    ) -> Self {
        Self { channels, block, plan, slots, slot_len, scratch }
    }
    /// Of range `i`, from the slots of all tiles.
    pub fn of_range(
        ranges: &ChannelRanges<'s>,
        i: usize,
        (slots, slot_len): (&'s [f64], usize),
        scratch: &'s mut [f64],
    ) -> Self {
        let (plan, block) = (ranges.plan, ranges.block(i));
        let of_block = slot_len * plan.tiles_per_block();
        let slots = &slots[block * of_block..][..of_block];
        Self::new(plan, (block, ranges.channels(i)), (slots, slot_len), scratch)
    }
    /// `N` arrays from the `first` on, of the columns of these channels: those of the block's tiles in their order,
    /// then those of joined rows in theirs, brought together by `merge`.
    pub fn merged<const N: usize, F: FnMut([&mut [f64]; N], [&[f64]; N], Step)>(
        &mut self,
        first: usize,
        columns: Columns,
        mut merge: F,
    ) -> [&[f64]; N] {
        let (plan, slots, slot_len) = (self.plan, self.slots, self.slot_len);
        let Columns { inner, joined } = columns;
        let (tiles, n) = (plan.tiles_per_block(), self.channels.len() * inner);
        let start = (self.channels.start - plan.channels(self.block).start) * inner;
        let array = plan.slot_len() / 2;
        let of = |tile: usize, row: usize| {
            let at = tile * slot_len + row * plan.row() + start;
            std::array::from_fn(|i| &slots[at + (first + i) * array..][..n])
        };
        counted::values(N * n * tiles * joined);
        if tiles == 1 && joined == 1 {
            return of(0, 0);
        }
        let (into, of_row) = self.scratch.split_at_mut(N * n);
        let mut into: [_; N] = split_mut(into, n);
        let of_tiles = |to: &mut [&mut [f64]; N], row: usize, merge: &mut F| {
            to.iter_mut().zip(of(0, row)).for_each(|(to, from)| to.copy_from_slice(from));
            for tile in 1..tiles {
                merge(to.each_mut().map(|to| &mut **to), of(tile, row), Step::Tile(tile, row));
            }
        };
        of_tiles(&mut into, 0, &mut merge);
        for row in 1..joined {
            if tiles == 1 {
                merge(into.each_mut().map(|to| &mut **to), of(0, row), Step::Row(row));
                continue;
            }
            let mut of_row: [_; N] = split_mut(&mut of_row[..N * n], n);
            of_tiles(&mut of_row, row, &mut merge);
            let of_row = of_row.map(|of_row| &*of_row);
            merge(into.each_mut().map(|to| &mut **to), of_row, Step::Row(row));
        }
        into.map(|into| &*into)
    }
}

#[cfg(test)]
#[path = "slots_tests.rs"]
mod tests;
