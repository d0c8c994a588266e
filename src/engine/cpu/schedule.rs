//! The schedule of an operation that reads its tensors twice, which the training forward and the
//! backward have in common:
//!
//! ```text
//! first pass    for every tile    reduce its values into the tile's slot
//! merge         for every range   the slots of its tiles, into coefficients of its channels and
//!               of channels       into the results that are one value per channel
//! second pass   for every tile    write outputs, by the coefficients of its channels
//! ```
//!
//! Where every tile holds its channels whole, one task takes a tile from the first step to the last:
//! the second pass finds in cache what the first has read. Elsewhere each step is a round of tasks, and
//! the second pass begins with what the first has read last. Every range adds up the tiles in their
//! order, so results do not depend on how channels are cut into ranges, nor on who merges which.
//!
//! So nothing that grows with a tensor is left to one thread. What threads wait for is one of them that sets the
//! coefficients of a block for the first pass: 1.2 % of the time of 32 threads at most, for a ResNet-50's layers on 32
//! images. `schedule_tests.rs` counts it, and how many of 8 to 64 threads have work, if all are as fast
//! (`cargo test --lib -- cpu::schedule --nocapture` prints all layers):
//!
//! ```text
//! backward, f32           tasks of a pass        of 8     16     32     64 threads
//! 64 x 112 x 112  NHWC    100                    96 %   89 %   77 %   77 %
//! 1024 x 14 x 14  NHWC     49                    87 %   76 %   76 %   75 %
//! 2048 x 7 x 7    NHWC     13                    76 %   75 %   37 %   18 %
//! 2048 x 7 x 7    NCHW     52, of both passes    91 %   80 %   80 %   80 %
//! ```
use super::counted;
use super::plan::{Plan, Tile};
use super::ranges::ChannelRanges;
use super::slots::{Sums, scratch_len};
use super::table::{Fields, FieldsMut, split_mut};
use super::tiles::by_range::{ByRange, Channels, OfTiles, for_each_range};
use super::tiles::{Outputs, Slots, for_each_tile, numbers_mut, with_whole};
use crate::Real;
use std::sync::{Mutex, OnceLock, TryLockError};

/// An operation's steps. `FIELDS` coefficients of every channel are what the steps have in common.
pub(super) trait TwoPass<const FIELDS: usize>: Sync {
    /// The tensors of the second pass. The first may read them: an input may lie there.
    type Outputs: Outputs;
    /// The results that are one value per channel, or a few.
    type Results: ByRange;
    /// The type of the coefficients.
    type Number: Real;
    /// Sums that the first pass makes of every channel.
    fn sums(&self) -> usize {
        2
    }
    /// The plan by whose columns it keeps sums: as many tiles, of the same memory.
    fn summed(&self, plan: &Plan) -> Plan {
        *plan
    }
    /// Values that the merge of a channel works in.
    fn work_len(&self) -> usize;
    /// Sets the coefficients that the first pass takes.
    fn prepare(&self, table: FieldsMut<'_, Self::Number, FIELDS>);
    /// The first pass over a tile.
    fn reduce(
        &self,
        tile: &Tile,
        outputs: &Part<'_, Self, FIELDS>,
        table: &Fields<'_, Self::Number, FIELDS>,
        slot: &mut [f64],
    );
    /// Merges the sums of some channels, sets their other coefficients and writes their results. `outputs` has at
    /// least their tiles, `work` values for each.
    fn merge(
        &self,
        sums: Sums<'_>,
        outputs: &Part<'_, Self, FIELDS>,
        table: FieldsMut<'_, Self::Number, FIELDS>,
        work: &mut [f64],
        results: <Self::Results as ByRange>::Part<'_>,
    );
    /// The second pass over a tile; absent if there is nothing to write.
    fn write(
        &self,
        tile: &Tile,
        outputs: Part<'_, Self, FIELDS>,
        table: &Fields<'_, Self::Number, FIELDS>,
    );
    /// Whether there is anything to write.
    fn writes(&self) -> bool {
        true
    }
}

/// A tile of an operation's outputs.
pub(super) type Part<'o, T, const FIELDS: usize> =
    <<T as TwoPass<FIELDS>>::Outputs as Outputs>::Part<'o>;

/// Values that [`two_pass`] works in.
pub(super) fn workspace_len<const FIELDS: usize>(
    plan: &Plan,
    operation: &impl TwoPass<FIELDS>,
) -> usize {
    let (summed, sums) = (operation.summed(plan), operation.sums());
    let of_channel = FIELDS + operation.work_len() + scratch_len(&summed, sums);
    plan.tiles() * slot_len(&summed, sums) + plan.blocks() * plan.block_channels() * of_channel
}

/// Values kept of a tile, by the sums of a channel.
pub(super) fn slot_len(plan: &Plan, sums: usize) -> usize {
    plan.slot_len() / 2 * sums
}

/// Runs all steps.
pub(super) fn two_pass<const FIELDS: usize, T: TwoPass<FIELDS>>(
    plan: &Plan,
    operation: &T,
    outputs: &mut T::Outputs,
    results: &mut T::Results,
    workspace: &mut [f64],
) {
    let summed = &operation.summed(plan);
    let slot_len = slot_len(summed, operation.sums());
    let (work_len, scratch_len) = (operation.work_len(), scratch_len(summed, operation.sums()));
    let (all, of_block) = (plan.all_channels(), plan.block_channels());
    let ranges = ChannelRanges::new(summed, workspace.len());
    let (slots, rest) = workspace.split_at_mut(plan.tiles() * slot_len);
    let (table, work) = rest.split_at_mut(plan.blocks() * of_block * FIELDS);
    let of_channel = work_len + scratch_len;
    if plan.whole_channels() {
        let work = Slots::new(work, of_block * of_channel);
        let tables = Slots::new(table, of_block * FIELDS);
        let of_tiles = (Slots::new(slots, slot_len), work, tables);
        let mut parts = (of_tiles, OfTiles(results), outputs);
        for_each_tile(plan, false, &mut parts, |tile, ((slot, work, table), results, part)| {
            let channels = plan.channels(tile.block);
            counted::values(channels.len() * (FIELDS + of_channel));
            let mut table = FieldsMut::new(table, channels.clone());
            operation.prepare(table.reborrow());
            operation.reduce(&tile, &part, &table.read(), slot);
            let (work, scratch) = work.split_at_mut(of_block * work_len);
            let work = &mut work[..channels.len() * work_len];
            let sums = Sums::new(summed, (tile.block, channels), (slot, slot_len), scratch);
            operation.merge(sums, &part, table.reborrow(), work, results);
            if operation.writes() {
                operation.write(&tile, part, &table.read());
            }
        });
        return;
    }
    {
        let tables: Vec<_> = of_blocks(plan, table).map(Prepared::new).collect();
        let mut parts = (Slots::new(slots, slot_len), &mut *outputs);
        for_each_tile(plan, false, &mut parts, |tile, (slot, part)| {
            let table = tables[tile.block].get(|table| operation.prepare(table));
            operation.reduce(&tile, &part, table, slot);
        });
    }
    with_whole(plan, outputs, |part| {
        let fields: [_; FIELDS] = split_mut(numbers_mut(table), all);
        let work = Channels::several(work, of_channel);
        let mut parts = (fields.map(Channels::new), work, results);
        for_each_range(&ranges, &mut parts, |i, (fields, work, results)| {
            let channels = ranges.channels(i);
            let (work, scratch) = work.split_at_mut(channels.len() * work_len);
            let table = FieldsMut::of(channels, fields);
            let sums = Sums::of_range(&ranges, i, (slots, slot_len), scratch);
            operation.merge(sums, part, table, work, results);
        });
    });
    if operation.writes() {
        let table = Fields::new(table, 0..all);
        for_each_tile(plan, true, outputs, |tile, part| operation.write(&tile, part, &table));
    }
}

/// The coefficients of a block, which the first thread that needs them prepares while others are being woken. Who is
/// awake waits for that at full speed: to sleep and to be woken takes longer, a fifth of the backward of 256 x 1024 on two
/// threads.
struct Prepared<'t, A, const FIELDS: usize> {
    raw: Mutex<Option<FieldsMut<'t, A, FIELDS>>>,
    ready: OnceLock<Fields<'t, A, FIELDS>>,
}

impl<'t, A: Real, const FIELDS: usize> Prepared<'t, A, FIELDS> {
    fn new(raw: FieldsMut<'t, A, FIELDS>) -> Self {
        Self { raw: Mutex::new(Some(raw)), ready: OnceLock::new() }
    }
    fn get(&self, prepare: impl Fn(FieldsMut<'_, A, FIELDS>)) -> &Fields<'t, A, FIELDS> {
        let mut turn = 0_usize;
        loop {
            if let Some(ready) = self.ready.get() {
                return ready;
            }
            match self.raw.try_lock() {
                // Locked while it prepares: a panic is known to the others.
                Ok(mut raw) => {
                    if let Some(mut table) = raw.take() {
                        counted::awaited(|| prepare(table.reborrow()));
                        return self.ready.get_or_init(|| table.into_read());
                    }
                }
                Err(TryLockError::Poisoned(_)) => panic!("who prepared coefficients has panicked"),
                Err(TryLockError::WouldBlock) => (),
            }
            // Another thread has them; perhaps it has lost its processor.
            turn = turn.wrapping_add(1);
            match turn % 1024 {
                0 => std::thread::yield_now(),
                _ => std::hint::spin_loop(),
            }
        }
    }
}

/// The coefficients of all blocks, of which each has its own.
fn of_blocks<'t, A: Real, const FIELDS: usize>(
    plan: &Plan,
    table: &'t mut [f64],
) -> impl Iterator<Item = FieldsMut<'t, A, FIELDS>> {
    let mut rest: [&'t mut [A]; FIELDS] = split_mut(numbers_mut(table), plan.all_channels());
    (0..plan.blocks()).map(move |block| {
        let channels = plan.channels(block);
        let fields = rest.each_mut().map(|field| {
            let (own, others) = std::mem::take(field).split_at_mut(channels.len());
            *field = others;
            own
        });
        FieldsMut::of(channels, fields)
    })
}

#[cfg(test)]
#[path = "schedule_tests.rs"]
mod tests;
