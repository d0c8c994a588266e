//! How a tensor is cut so that it stays in shared memory between two passes over it: a pure function
//! of shape, size of an element and device figures.
//!
//! `kernels/README.md` says what the kernels make of it. Where a slice fits into a block, that block
//! takes it alone; where it does not, a group of blocks does, which wait for each other; where all
//! blocks of the device have no room for it, the rest is read again, from the cache if it can be.
use super::costs::Costs;
use super::figures::Figures;
use super::plan::{Geometry, Plan, Rows, THREADS, dealt, folded, form, widest};
use super::tuning::{Family, Tuning};
use crate::{DType, Shape};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// What is computed in one launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Step {
    /// Keeps x.
    Forward,
    /// Keeps x and the gradient of y.
    Backward,
}

impl Step {
    /// Tensors that are read, and kept; one is written.
    fn tensors(self) -> u64 {
        match self {
            Step::Forward => 1,
            Step::Backward => 2,
        }
    }
}

/// How a tensor is cut for one launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Resident {
    /// With a tile for each block of a group.
    pub geometry: Geometry,
    /// Elements of a vector, of 16 bytes.
    pub lanes: u32,
    /// Of a group, which takes a slice at a time.
    pub blocks: u32,
    pub groups: u32,
    /// Groups of those that a device has at first that begin at once, where the others begin later; else 0.
    pub early: u32,
    /// How much later, in nanoseconds.
    pub late: u32,
    /// Vectors of a thread that it keeps.
    pub kept: u32,
    /// Bytes of dynamic shared memory.
    pub shared: u32,
    /// Values of a channel.
    pub count: u64,
}

/// What is known about a device's memory beside its costs: estimates, for an H200.
mod cache {
    /// How much of its fair share of the bandwidth a block can take where others take none.
    pub const ALONE: f64 = 1.4;
    /// The part of the cache that still holds what was read last.
    const CACHED: f64 = 0.75;
    /// A byte that comes from there.
    const HIT: f64 = 0.5;

    /// Reading again what was read last.
    pub fn reading_again(bytes: f64, cache: u32) -> f64 {
        let hits = bytes.min(CACHED * f64::from(cache));
        hits * HIT + (bytes - hits)
    }
}

/// Bytes of each channel that a block moves, at least, where a slice has several tiles: what it moves
/// beside them, partials and up to eight coefficients, stays below 5 %.
const LEAST_BYTES: u64 = 2048;

/// Blocks that a multiprocessor has at a time.
pub(super) fn occupancy(figures: &Figures) -> u32 {
    let half = (figures.shared / 2).saturating_sub(figures.shared_reserved);
    if half >= 48 << 10 && figures.threads >= 2 * THREADS as u32 { 2 } else { 1 }
}

/// Bytes of shared memory that each of them may have.
pub(super) fn capacity(figures: &Figures) -> u64 {
    let each = (figures.shared / occupancy(figures)).saturating_sub(figures.shared_reserved);
    u64::from(each.min(figures.shared_block) / 256 * 256)
}

/// Blocks of the whole device at a time.
fn slots(figures: &Figures, spared: u32) -> u64 {
    u64::from(figures.multiprocessors.saturating_sub(spared).max(1) * occupancy(figures))
}

/// What a step takes of a device, for comparing plans.
struct Model<'a> {
    figures: &'a Figures,
    costs: Costs,
    step: Step,
    element: u64,
    slots: u64,
    /// Steps that a block keeps at most, where someone has asked for that.
    kept: Option<u64>,
    /// Whether all groups begin at once.
    at_once: bool,
}

/// What a plan is made for, on one device, with or without groups of blocks.
pub(super) type Key = (Shape, DType, Step, Tuning, bool);

/// Plans that were made before: making one takes microseconds.
#[derive(Default)]
pub(super) struct Plans(Mutex<HashMap<Key, Option<Resident>>>);

impl Plans {
    /// Shapes that are remembered; who has more of them has no step that often repeats.
    const MOST: usize = 1024;

    pub fn get(&self, key: Key, make: impl FnOnce() -> Option<Resident>) -> Option<Resident> {
        let mut plans = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if plans.len() >= Self::MOST && !plans.contains_key(&key) {
            plans.clear();
        }
        *plans.entry(key).or_insert_with(make)
    }
}

/// The plan for a step in one launch; none where that cannot be, or should be slower than several.
pub(super) fn plan(
    shape: &Shape,
    element: usize,
    step: Step,
    figures: &Figures,
    tuning: &Tuning,
) -> Option<Resident> {
    let (forced, only) = match tuning.family {
        Family::Split => return None,
        Family::Fastest => (false, None),
        Family::Resident { blocks } => (true, blocks.map(|blocks| u64::from(blocks.get()))),
    };
    let element = element as u64;
    let (lanes, least) = form(shape, element);
    if dealt(shape).is_some_and(|(_, channels)| channels * folded(shape).2 > widest(element, lanes))
    {
        return None;
    }
    let (channels, vectors) = (shape.channels() as u64, shape.len() as u64 / lanes);
    let counted = channels <= i32::MAX as u64 && vectors <= u64::from(u32::MAX);
    if shape.is_empty() || element == 8 || lanes == 1 || !counted {
        return None;
    }
    let costs = tuning.costs.unwrap_or(figures.costs);
    let kept = tuning.kept.filter(|_| forced).map(u64::from);
    let slots = slots(figures, tuning.spared);
    let model = Model { figures, costs, step, element, slots, kept, at_once: tuning.at_once };
    let mut best: Option<((u64, f64), Resident)> = None;
    let mut widths = widths(shape, element, lanes, least);
    if let Some(most) = tuning.channels.filter(|_| forced) {
        let fit = widths.iter().filter(|k| **k <= u64::from(most.get())).count();
        widths = widths[fit.max(1) - 1..][..1].to_vec();
    }
    for channels in widths {
        let slice = Slice::new(shape, lanes, channels);
        for blocks in model.group_sizes(&slice, only) {
            let Some(plan) = model.plan(&slice, blocks) else { continue };
            // As many blocks as were asked for come before time.
            let missing = only.map_or(0, |only| only - u64::from(plan.blocks));
            let cost = (missing, model.time(&plan));
            if best.is_none_or(|(least, _)| cost < least) {
                best = Some((cost, plan));
            }
        }
    }
    let ((_, time), plan) = best?;
    (forced || time < model.split(shape)).then_some(plan)
}

/// Channels that a slice may have: one in runs, some in columns, the narrowest first.
fn widths(shape: &Shape, element: u64, lanes: u64, least: u64) -> Vec<u64> {
    let (_, channels, inner) = folded(shape);
    if let Some((_, channels)) = dealt(shape) {
        return vec![channels];
    }
    let most = (widest(element, lanes) / (least * inner) * least).min(channels);
    let doubled = std::iter::successors(Some(least), |k| Some(2 * k)).take_while(|k| *k < most);
    let mut widths: Vec<u64> = doubled.collect();
    widths.push(most.max(least));
    widths
}

/// A slice, and the threads that go over it.
struct Slice {
    geometry: Geometry,
    lanes: u64,
    count: u64,
    /// Vectors of a thread, if one block takes them all.
    steps: u64,
}

impl Slice {
    fn new(shape: &Shape, lanes: u64, slice_channels: u64) -> Self {
        let Rows { width, vectors, threads, positions, .. } =
            Rows::new(shape, lanes, slice_channels);
        let (outer, channels, inner) = folded(shape);
        let geometry = Geometry {
            vectors,
            tile: 0,
            row: channels * inner / lanes * positions,
            width,
            inner,
            slices: channels.div_ceil(slice_channels) as u32,
            slice_channels: slice_channels as u32,
            channels: channels as u32,
            threads: threads as u32,
            aligned: 1,
            positions: positions as u32,
        };
        Self { geometry, lanes, count: outer * inner, steps: vectors.div_ceil(threads) }
    }

    /// Bytes that a block needs beside what it keeps.
    fn scratch(&self) -> u64 {
        let Geometry { width, threads, slice_channels, positions, .. } = self.geometry;
        let (threads, channels) = (u64::from(threads), u64::from(slice_channels));
        let column = if channels == 1 { 1 } else { width / u64::from(positions) };
        let rows = if column <= 32 { threads.div_ceil(32) } else { threads / column };
        let sums = self.lanes * column * rows;
        16 + (40 * channels).next_multiple_of(16) + 8 * sums
    }
}

impl Model<'_> {
    /// Bytes that a block takes to keep a step of its threads.
    fn step_bytes(&self, slice: &Slice) -> u64 {
        16 * u64::from(slice.geometry.threads) * self.step.tensors()
    }

    /// Steps that a block has room for; none where not even its scratch fits.
    fn room(&self, slice: &Slice) -> Option<u64> {
        let free = capacity(self.figures).checked_sub(slice.scratch())?;
        Some(free / self.step_bytes(slice))
    }

    /// How many blocks may share a slice: what it takes to keep it, what the device has for each, and
    /// some others.
    fn group_sizes(&self, slice: &Slice, only: Option<u64>) -> Vec<u64> {
        let most = if self.figures.cooperative { self.slots.min(slice.steps) } else { 1 };
        if let Some(only) = only {
            return vec![only.min(most)];
        }
        // While the only group waits for its last block, nothing moves.
        let most = if slice.geometry.slices > 1 { most.min(self.slots / 2).max(1) } else { most };
        let Geometry { vectors, slice_channels, .. } = slice.geometry;
        let moved = 16 * vectors * (self.step.tensors() + 1);
        let most = most.min(moved / (LEAST_BYTES * u64::from(slice_channels))).max(1);
        let powers = (0..).map(|k| 1 << k).take_while(|blocks| *blocks < most);
        let fit = slice.steps.div_ceil(self.room(slice).unwrap_or(0).max(1));
        let share = self.slots / u64::from(slice.geometry.slices);
        let others = [fit, share, self.slots / 3, self.slots / 2, most];
        powers.chain(others).filter(|blocks| (1..=most).contains(blocks)).collect()
    }

    fn plan(&self, slice: &Slice, blocks: u64) -> Option<Resident> {
        let Geometry { threads, slices, .. } = slice.geometry;
        let each = slice.steps.div_ceil(blocks);
        // Without those that would get nothing.
        let blocks = slice.steps.div_ceil(each);
        let groups = match blocks {
            1 => u64::from(slices),
            _ => (self.slots / blocks).min(u64::from(slices)),
        };
        let kept = self.room(slice)?.min(each).min(self.kept.unwrap_or(u64::MAX));
        let shared = kept * self.step_bytes(slice) + slice.scratch();
        let tile = each * u64::from(threads);
        let first = if blocks == 1 { groups.min(self.slots) } else { groups };
        let (early, late) = match u64::from(slices) > first && first > 1 && !self.at_once {
            true => (first.div_ceil(2), self.half_a_round(tile * blocks * first)),
            false => (0, 0),
        };
        Some(Resident {
            geometry: Geometry { tile, ..slice.geometry },
            lanes: slice.lanes as u32,
            blocks: blocks as u32,
            groups: groups as u32,
            early: early as u32,
            late,
            kept: kept as u32,
            shared: shared as u32,
            count: slice.count,
        })
    }

    /// Nanoseconds that half of a round takes whose groups read so many vectors.
    fn half_a_round(&self, vectors: u64) -> u32 {
        /// What a thread may sleep at once.
        const MOST: u64 = 1_000_000;
        let bytes = 16 * vectors * (self.step.tensors() + 1);
        (self.costs.nanoseconds(bytes) / 2).min(MOST) as u32
    }

    /// Bytes that memory moves in the time that a plan takes.
    fn time(&self, plan: &Resident) -> f64 {
        let Resident { geometry, blocks, groups, kept, .. } = *plan;
        let (tensors, slots) = (self.step.tensors() as f64, self.slots as f64);
        let blocks_at_once = (f64::from(groups) * f64::from(blocks)).min(slots);
        let rounds = match blocks {
            1 => u64::from(geometry.slices).div_ceil(self.slots),
            _ => u64::from(geometry.slices.div_ceil(groups)),
        };
        let again = plan.steps().saturating_sub(u64::from(kept)) as f64 / plan.steps() as f64;
        let read = 16.0 * geometry.tile as f64 * blocks_at_once;
        let again = cache::reading_again(again * read * tensors, self.figures.cache);
        let moved = (read * (tensors + 1.0) + again) * self.dearness(&geometry);
        let idle = (slots / (cache::ALONE * blocks_at_once)).max(1.0);
        let wait = self.costs.bytes(self.costs.wait(blocks, geometry.slice_channels));
        let moved = moved * idle;
        // Others move while one waits, but for the last: they have nothing left.
        let overlaps = groups > 1 || blocks == 1;
        let round = if overlaps { moved.max(moved / 2.0 + wait) } else { moved + wait };
        (rounds - 1) as f64 * round + moved + wait + self.costs.bytes(self.costs.launch.into())
    }

    /// What a byte costs in rows of a slice that are shorter than what memory moves at a time.
    fn dearness(&self, geometry: &Geometry) -> f64 {
        match geometry.width * 16 {
            _ if geometry.width == geometry.row => 1.0,
            128.. => 1.0,
            64.. => 1.05,
            32.. => 1.3,
            _ => 2.0,
        }
    }

    /// The same for the kernels that read a tensor again in another launch.
    fn split(&self, shape: &Shape) -> f64 {
        let tensor = shape.len() as f64 * self.element as f64;
        let tensors = self.step.tensors() as f64;
        let again = cache::reading_again(tensor * tensors, self.figures.cache);
        let figures = Figures { costs: self.costs, ..*self.figures };
        let tiles = Plan::new(shape, self.element as usize, figures).map_or(0, |plan| plan.blocks);
        let tiles = tiles.div_ceil(self.figures.multiprocessors);
        let sums = u64::from(tiles) * u64::from(self.costs.tile);
        let launches = 3 * u64::from(self.costs.launch);
        tensor * (tensors + 1.0) + again + self.costs.bytes(launches + sums)
    }
}

impl Resident {
    /// Of all groups.
    pub fn grid(&self) -> u32 {
        self.groups * self.blocks
    }
    /// Vectors of a thread.
    pub fn steps(&self) -> u64 {
        self.geometry.tile / u64::from(self.geometry.threads)
    }
    /// Bytes of what the blocks of all groups tell each other.
    pub fn partials(&self) -> u64 {
        match self.blocks {
            1 => 0,
            _ => 16 * u64::from(self.grid()) * u64::from(self.geometry.slice_channels),
        }
    }
    /// What the words of all groups that a device can have take: [`Figures`] bound them.
    pub fn words_len(figures: &Figures) -> usize {
        // A group that has words has two blocks.
        WORDS * slots(figures, 0).div_ceil(2) as usize
    }
}

/// Bytes of a group's words.
const WORDS: usize = 128;

/// `4 slices of 64 channels by 2 groups of 12 blocks, 256 threads, 20 of 24 steps of vectors of 8
/// kept in 90368 bytes`.
impl std::fmt::Display for Resident {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Geometry { slices, slice_channels, threads, .. } = self.geometry;
        let Self { lanes, blocks, groups, kept, shared, .. } = self;
        write!(f, "{slices} slices of {slice_channels} channels by ")?;
        match blocks {
            1 => write!(f, "a block each")?,
            _ => write!(f, "{groups} groups of {blocks} blocks")?,
        }
        write!(f, ", {threads} threads, {kept} of {} steps of vectors of {lanes} ", self.steps())?;
        write!(f, "kept in {shared} bytes")
    }
}

#[cfg(test)]
#[path = "resident_tests.rs"]
mod tests;
