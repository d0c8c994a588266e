//! How a tensor is cut into blocks: a pure function of shape, size of an element and device figures.
//!
//! `kernels/README.md` says what the kernels make of it.
use super::figures::Figures;
use crate::shape::Dealt;
use crate::{Error, Result, Shape};

/// The first argument of every kernel that walks over tensors.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Geometry {
    /// Of a slice.
    pub vectors: u64,
    /// Vectors of a tile.
    pub tile: u64,
    /// Vectors of a row of all channels.
    pub row: u64,
    /// Vectors of a slice in a row.
    pub width: u64,
    /// Elements of a channel in a row.
    pub inner: u64,
    pub slices: u32,
    /// Channels of every slice but the last, which may have fewer.
    pub slice_channels: u32,
    pub channels: u32,
    /// Threads of a block that work.
    pub threads: u32,
    /// 1 where every tensor starts at a multiple of 16 bytes.
    pub aligned: u32,
    /// How often a row of a slice of several channels has them, one after the other: 1, but where rows are dealt out
    /// to groups.
    pub positions: u32,
}

/// Most threads of a block.
pub(super) const THREADS: u64 = 256;
/// Steps of a tile, at least: fewer make what a block reads of its channels dear.
const LEAST_STEPS: u64 = 8;
/// Bytes of each channel in a tile, at least, for 4-byte statistics: what a tile costs beside its
/// elements, two partials and seven coefficients, stays below 5 % of three passes over them.
const LEAST_BYTES: u64 = 512;
/// Bytes of a row of a slice, at least: what memory moves at a time.
const LEAST_ROW: u64 = 128;

/// How a tensor is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Plan {
    pub geometry: Geometry,
    /// Elements of a vector: 16 bytes, or 1 where rows are not whole vectors.
    pub lanes: u32,
    /// Of each slice.
    pub tiles: u32,
    /// All tiles of all slices.
    pub blocks: u32,
    /// Values of a channel.
    pub count: u64,
    /// Values of a channel in every tile but the last.
    pub tile_count: u64,
}

/// Outer, channels, inner; one channel is a single row, however it was folded.
pub(super) fn folded(shape: &Shape) -> (u64, u64, u64) {
    let [outer, channels, inner] = [shape.outer(), shape.channels(), shape.inner()];
    let [outer, channels, inner] = [outer as u64, channels as u64, inner as u64];
    if channels == 1 { (1, 1, outer * inner) } else { (outer, channels, inner) }
}

/// The most elements of several channels in a row of their slice.
pub(super) fn widest(element: u64, lanes: u64) -> u64 {
    (2048 / element.max(4)).min(THREADS * lanes)
}

/// How often a slice's row has its channels, and how many those are, where rows are dealt out to groups: a slice is a
/// group then.
pub(super) fn dealt(shape: &Shape) -> Option<(u64, u64)> {
    let Dealt { groups, positions } = shape.dealt()?;
    Some((positions as u64, (shape.channels() / groups.max(1)) as u64))
}

/// Elements of a vector, and the fewest channels whose rows are whole vectors.
pub(super) fn form(shape: &Shape, element: u64) -> (u64, u64) {
    let (_, channels, inner) = folded(shape);
    let lanes = 16 / element;
    if let Some((_, channels)) = dealt(shape) {
        let row = channels * inner;
        let fits = row.is_multiple_of(lanes) && row <= widest(element, lanes);
        return (if fits { lanes } else { 1 }, channels);
    }
    let least = lanes / gcd(inner, lanes);
    let fits = least == 1 || least * inner <= widest(element, lanes);
    if channels % least == 0 && fits { (lanes, least) } else { (1, 1) }
}

pub(super) fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Bytes of a mask for all elements: one for each vector.
pub(super) fn mask_len(shape: &Shape, element: usize) -> usize {
    shape.len() / form(shape, element as u64).0 as usize
}

/// The vectors of a slice, and the threads that go over them.
pub(super) struct Rows {
    pub width: u64,
    pub vectors: u64,
    pub threads: u64,
    pub positions: u64,
}

impl Rows {
    pub fn new(shape: &Shape, lanes: u64, slice_channels: u64) -> Self {
        let (outer, _, inner) = folded(shape);
        let positions = dealt(shape).map_or(1, |(positions, _)| positions);
        let once = slice_channels * inner / lanes;
        let (width, vectors) = (once * positions, outer * once);
        let column = if slice_channels == 1 { 1 } else { once };
        let threads = (THREADS / column).min(vectors / column) * column;
        Self { width, vectors, threads, positions }
    }
}

impl Plan {
    /// The plan for a tensor whose elements have `element` bytes.
    ///
    /// # Errors
    /// `Unsupported` from 2^31 channels or blocks on.
    pub fn new(shape: &Shape, element: usize, figures: Figures) -> Result<Self> {
        let limit = i32::MAX as u64;
        if shape.channels() as u64 > limit {
            let reason = format!("expected at most {limit} channels, got {}", shape.channels());
            return Err(Error::Unsupported { engine: super::NAME, reason });
        }
        let element = element as u64;
        if shape.is_empty() {
            return Ok(Self::empty(shape, element));
        }
        let (lanes, least) = form(shape, element);
        let (_, channels, inner) = folded(shape);
        if let Some((_, channels)) = dealt(shape) {
            let (most, row) = (widest(element, lanes), channels * inner);
            if row > most {
                let reason = format!(
                    "expected at most {most} elements of all channels in a row that is dealt out, got {row}"
                );
                return Err(Error::Unsupported { engine: super::NAME, reason });
            }
        }
        // The widest slices that leave every multiprocessor something to do; one channel at least.
        let mut widest = match shape.dealt() {
            None => (widest(element, lanes) / (least * inner) * least).max(least),
            Some(_) => least,
        };
        let plan = loop {
            let slices = channels.div_ceil(widest);
            let even = channels.div_ceil(slices).next_multiple_of(least);
            let plan = Self::cut(shape, element, figures, lanes, even);
            let narrower = even / 2 / least * least;
            let enough = plan.blocks >= 2 * figures.multiprocessors || shape.dealt().is_some();
            if enough || narrower == 0 || narrower * inner * element < LEAST_ROW {
                break plan;
            }
            widest = narrower;
        };
        if plan.blocks as u64 > limit {
            let reason = format!("expected at most {limit} blocks, got {}", plan.blocks);
            return Err(Error::Unsupported { engine: super::NAME, reason });
        }
        Ok(plan)
    }

    fn empty(shape: &Shape, element: u64) -> Self {
        let (channels, lanes) = (shape.channels() as u32, form(shape, element).0 as u32);
        let geometry = Geometry { channels, ..Geometry::default() };
        Self { geometry, lanes, tiles: 0, blocks: 0, count: 0, tile_count: 0 }
    }

    /// Cuts slices of `slice_channels` channels into tiles.
    fn cut(shape: &Shape, element: u64, figures: Figures, lanes: u64, slice_channels: u64) -> Self {
        let Rows { width, vectors, threads, positions, .. } =
            Rows::new(shape, lanes, slice_channels);
        let (outer, channels, inner) = folded(shape);
        let slices = channels.div_ceil(slice_channels);
        // Two rounds of blocks on the whole device.
        let resident = u64::from(figures.threads / THREADS as u32).max(1);
        let target = 2 * resident * u64::from(figures.multiprocessors);
        // A channel's values in a step of all threads.
        let step = threads * lanes / slice_channels;
        let least = (LEAST_BYTES * element.max(4) / 4).div_ceil(step * element);
        let all = vectors.div_ceil(threads);
        // Of tiles that leave two blocks for each multiprocessor.
        let most = all.div_ceil(u64::from(2 * figures.multiprocessors).div_ceil(slices));
        let steps = all.div_ceil(target.div_ceil(slices)).max(least).max(LEAST_STEPS).min(all);
        let steps = steps.max(figures.steps_of_sums(16 * threads).min(most));
        let tiles = vectors.div_ceil(steps * threads);
        let geometry = Geometry {
            vectors,
            tile: steps * threads,
            row: channels * inner / lanes * positions,
            width,
            inner,
            slices: slices as u32,
            slice_channels: slice_channels as u32,
            channels: channels as u32,
            threads: threads as u32,
            aligned: 0,
            positions: positions as u32,
        };
        Self {
            geometry,
            lanes: lanes as u32,
            tiles: tiles as u32,
            blocks: u32::try_from(tiles * slices).unwrap_or(u32::MAX),
            count: outer * inner,
            tile_count: steps * step,
        }
    }

    /// Bytes of the partial results of all tiles.
    pub fn partials(&self) -> u64 {
        16 * u64::from(self.geometry.channels) * u64::from(self.tiles)
    }
}

/// `4 slices of 64 channels in 12 tiles of 2048 vectors of 8, 256 threads: 48 blocks`.
impl std::fmt::Display for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Geometry { slices, slice_channels, tile, threads, .. } = self.geometry;
        let Self { lanes, tiles, blocks, .. } = self;
        write!(f, "{slices} slices of {slice_channels} channels in {tiles} tiles of {tile} ")?;
        write!(f, "vectors of {lanes}, {threads} threads: {blocks} blocks")
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
