//! The schedule of an operation that reads its tensors twice, which the training forward and the
//! backward have in common:
//!
//! ```text
//! first pass    for every tile   reduce its values into the tile's slot
//! merge         for every block  the slots of its tiles, into values cached for the block
//! second pass   for every tile   write outputs, by what is cached for its block
//! publish       for every block  results that are one value per channel
//! ```
//!
//! Where every tile holds its channels whole, one task takes a tile from the first pass to the second,
//! which then finds in cache what the first has read. Elsewhere each pass is a round over all tiles;
//! the second begins with what the first has read last.
use super::plan::{Plan, Tile};
use super::tiles::{Outputs, Slots, for_each_tile, with_whole};

/// An operation's steps. `cached` is memory of a block for what its tiles have in common.
pub(super) trait TwoPass: Sync {
    /// The tensors of the second pass. The first may read them: an input may lie there.
    type Outputs: Outputs;
    /// Values of `cached`.
    fn cached_len(&self) -> usize;
    /// Sums that the first pass makes of every channel.
    fn sums(&self) -> usize {
        2
    }
    /// What the first pass needs of a block.
    fn prepare(&self, block: usize, cached: &mut [f64]);
    /// The first pass over a tile.
    fn reduce(&self, tile: &Tile, outputs: &Part<'_, Self>, cached: &[f64], slot: &mut [f64]);
    /// The merge of a block: `slots` are those of its tiles, and may be overwritten. `outputs` has at
    /// least its tiles.
    fn merge(&self, block: usize, outputs: &Part<'_, Self>, slots: &mut [f64], cached: &mut [f64]);
    /// The second pass over a tile; absent if there is nothing to write.
    fn write(&self, tile: &Tile, outputs: Part<'_, Self>, cached: &[f64]);
    /// Whether there is anything to write.
    fn writes(&self) -> bool {
        true
    }
}

/// A tile of an operation's outputs.
pub(super) type Part<'o, T> = <<T as TwoPass>::Outputs as Outputs>::Part<'o>;

/// Values that [`two_pass`] works in.
pub(super) fn workspace_len(plan: &Plan, operation: &impl TwoPass) -> usize {
    plan.tiles() * slot_len(plan, operation) + plan.blocks() * operation.cached_len()
}

/// Values kept of a tile.
fn slot_len(plan: &Plan, operation: &impl TwoPass) -> usize {
    plan.slot_len() / 2 * operation.sums()
}

/// Runs all steps but the last; returns what is cached for the blocks, one after the other.
pub(super) fn two_pass<'w, T: TwoPass>(
    plan: &Plan,
    operation: &T,
    outputs: &mut T::Outputs,
    workspace: &'w mut [f64],
) -> &'w [f64] {
    let (slot_len, cached_len) = (slot_len(plan, operation), operation.cached_len());
    let (slots, all_cached) = workspace.split_at_mut(plan.tiles() * slot_len);
    if plan.whole_channels() {
        let slots = Slots::new(slots, slot_len);
        let cached = Slots::new(all_cached, cached_len);
        for_each_tile(plan, false, &mut (slots, cached, outputs), |tile, (slot, cached, part)| {
            operation.prepare(tile.block, cached);
            operation.reduce(&tile, &part, cached, slot);
            operation.merge(tile.block, &part, slot, cached);
            if operation.writes() {
                operation.write(&tile, part, cached);
            }
        });
        return all_cached;
    }
    for (block, cached) in all_cached.chunks_mut(cached_len).enumerate() {
        operation.prepare(block, cached);
    }
    let of = |tile: &Tile| tile.block * cached_len..(tile.block + 1) * cached_len;
    let of_tiles = Slots::new(slots, slot_len);
    for_each_tile(plan, false, &mut (of_tiles, &mut *outputs), |tile, (slot, part)| {
        operation.reduce(&tile, &part, &all_cached[of(&tile)], slot);
    });
    with_whole(plan, outputs, |part| {
        let of_blocks = slots.chunks_mut(slot_len * plan.tiles_per_block());
        for (block, slots) in of_blocks.enumerate() {
            let cached = &mut all_cached[block * cached_len..(block + 1) * cached_len];
            operation.merge(block, part, slots, cached);
        }
    });
    if operation.writes() {
        for_each_tile(plan, true, outputs, |tile, part| {
            operation.write(&tile, part, &all_cached[of(&tile)]);
        });
    }
    all_cached
}
