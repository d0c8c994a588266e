//! Step 1 of the training forward: mean and variance of every channel.
//!
//! Memory is read in segments small enough for the first-level cache. A segment's mean and sum of
//! squares are made in two passes over it, counted from its first value; segments, tiles and
//! columns are merged by Chan's formula in f64, as distances from the channel's first value. So
//! the error does not grow with the mean, and a constant channel has exactly its mean and
//! variance 0.
use super::lanes::{BLOCK, Lanes, squares_from, sum_from};
use super::plan::{Plan, Tile};
use super::tiles::clipped;
use crate::{Element, Real, Shape};

/// Values of a segment of long runs.
const SEGMENT: usize = 4096;
/// Columns of a segment of short runs (whole rows of 512 are read 1.3 times as fast as halves of
/// them), and its rows.
const STRIP: usize = 512;
const STRIP_ROWS: usize = 16;

/// Count, mean, and sum of squared differences from the mean.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Moments {
    pub count: f64,
    /// A value near the mean: the same one in all that are merged.
    pub base: f64,
    /// Mean less `base`. In two numbers the mean keeps digits that one f64 has not.
    pub offset: f64,
    pub squares: f64,
}

impl Moments {
    /// Chan's formula. What is empty changes nothing.
    #[inline(always)]
    pub fn merge(&mut self, other: Moments) {
        if other.count == 0.0 {
            return;
        }
        let count = self.count + other.count;
        let (delta, share) = (other.offset - self.offset, other.count / count);
        self.offset += delta * share;
        self.squares += other.squares + delta * delta * self.count * share;
        self.count = count;
    }
    pub fn mean(&self) -> f64 {
        self.base + self.offset
    }
    /// The mean rounded to `A`, and what that leaves; nothing where it is not finite.
    pub fn mean_and_rest<A: Real>(&self) -> (A, A) {
        let mean = A::from_f64(self.mean());
        let rest = (self.base - mean.to_f64()) + self.offset;
        (mean, A::from_f64(if rest.is_finite() { rest } else { 0.0 }))
    }
    /// Biased; 0 for an empty batch.
    pub fn var(&self) -> f64 {
        self.squares / self.count.max(1.0)
    }
}

/// Values that a slot of [`moments`] has for a tile.
pub(super) fn slot_len(plan: &Plan) -> usize {
    2 * if plan.long_runs { plan.block_channels() } else { plan.block }
}

/// What the offsets of a channel's mean count from: its first value.
#[inline(always)]
fn base<E: Element>(plan: &Plan, x: &[E], c: usize) -> f64 {
    let first = x[c * plan.run()].widen().to_f64();
    if first.is_finite() { first } else { 0.0 }
}

/// Offsets of the mean (first half of `slot`) and sums of squares (second half) of a tile's channels, or of its
/// columns where runs are short.
#[inline(always)]
pub(super) fn moments<E: Element>(plan: &Plan, tile: &Tile, x: &[E], slot: &mut [f64]) {
    let half = slot.len() / 2;
    let (offsets, squares) = slot.split_at_mut(half);
    if !plan.long_runs {
        return columns(plan, tile, x, offsets, squares);
    }
    let run = plan.run().min(tile.cols.len());
    for (k, start) in tile.cols.clone().step_by(run).enumerate() {
        let at = |row: usize| row * plan.width + start;
        let base = base(plan, x, plan.channel(start));
        let m = channel(base, tile.rows.len(), |r| &x[at(tile.rows.start + r)..][..run]);
        (offsets[k], squares[k]) = (m.offset, m.squares);
    }
}

/// Moments of `runs` slices of equal length.
#[inline(always)]
fn channel<'x, E: Element>(base: f64, runs: usize, run: impl Fn(usize) -> &'x [E]) -> Moments {
    let mut all = Moments { base, ..Moments::default() };
    let len = run(0).len();
    if len >= SEGMENT {
        for r in 0..runs {
            for part in run(r).chunks(SEGMENT) {
                all.merge(segment(base, 1, |_| part));
            }
        }
    } else {
        let together = SEGMENT / len;
        for first in (0..runs).step_by(together) {
            all.merge(segment(base, together.min(runs - first), |r| run(first + r)));
        }
    }
    all
}

#[inline(always)]
fn segment<'x, E: Element>(base: f64, runs: usize, run: impl Fn(usize) -> &'x [E]) -> Moments {
    let mut scratch = [E::Acc::default(); BLOCK];
    let shift = run(0)[0].widen();
    let mut sum = Lanes::new();
    let mut count = 0;
    for r in 0..runs {
        count += run(r).len();
        for x in run(r).chunks(BLOCK) {
            sum_from(E::widened(x, &mut scratch), shift, &mut sum);
        }
    }
    let count = count as f64;
    let delta = E::Acc::from_f64(sum.total() / count);
    let (mut rest, mut squares) = (Lanes::new(), Lanes::new());
    for r in 0..runs {
        for x in run(r).chunks(BLOCK) {
            squares_from(E::widened(x, &mut scratch), shift, delta, &mut rest, &mut squares);
        }
    }
    // What rounding left of the sum of differences corrects both results.
    let rest = rest.total() / count;
    let offset = (shift.to_f64() - base) + (delta.to_f64() + rest);
    Moments { count, base, offset, squares: (squares.total() - rest * rest * count).max(0.0) }
}

/// The same for every column of a tile, rows of a strip at a time.
#[inline(always)]
fn columns<E: Element>(
    plan: &Plan,
    tile: &Tile,
    x: &[E],
    offsets: &mut [f64],
    squares: &mut [f64],
) {
    let full = full_rows(plan, tile);
    let mut bases = [0.0; STRIP];
    for start in tile.cols.clone().step_by(STRIP) {
        let cols = start..(start + STRIP).min(tile.cols.end);
        let here = start - tile.cols.start..cols.end - tile.cols.start;
        let (offsets, squares) = (&mut offsets[here.clone()], &mut squares[here]);
        offsets.fill(0.0);
        squares.fill(0.0);
        for (base_of, col) in bases.iter_mut().zip(cols.clone()) {
            *base_of = base(plan, x, plan.channel(col));
        }
        for first in (tile.rows.start..tile.rows.start + full).step_by(STRIP_ROWS) {
            let rows = first..(first + STRIP_ROWS).min(tile.rows.start + full);
            let count = first - tile.rows.start;
            strip(rows.len(), count, &bases, offsets, squares, |r| {
                &x[(first + r) * plan.width + start..][..cols.len()]
            });
        }
        if full < tile.rows.len() {
            // The shorter last row has one more value for some of the columns.
            let last = &x[clipped(tile.rows.end - 1, cols, plan.width, x.len())];
            let n = last.len();
            strip(1, full, &bases, &mut offsets[..n], &mut squares[..n], |_| last);
        }
    }
}

/// Merges a few rows into columns of which `before` rows have been merged.
#[inline(always)]
fn strip<'x, E: Element>(
    rows: usize,
    before: usize,
    bases: &[f64; STRIP],
    offsets: &mut [f64],
    squares: &mut [f64],
    row: impl Fn(usize) -> &'x [E],
) {
    let n = offsets.len();
    assert!(n <= STRIP && squares.len() == n);
    let zeros = [E::Acc::default(); STRIP];
    let (mut scratch, mut shift, mut sum) = (zeros, zeros, zeros);
    shift[..n].copy_from_slice(E::widened(row(0), &mut scratch));
    for r in 1..rows {
        let x = &E::widened(row(r), &mut scratch)[..n];
        (0..n).for_each(|j| sum[j] += x[j] - shift[j]);
    }
    let share = E::Acc::from_f64(1.0 / rows as f64);
    (0..n).for_each(|j| sum[j] = sum[j] * share);
    let (delta, mut rest, mut square) = (sum, zeros, zeros);
    for r in 0..rows {
        let x = &E::widened(row(r), &mut scratch)[..n];
        for j in 0..n {
            let d = (x[j] - shift[j]) - delta[j];
            rest[j] += d;
            square[j] += d * d;
        }
    }
    let (count, before) = (rows as f64, before as f64);
    let share = count / (before + count);
    for j in 0..n {
        let rest = rest[j].to_f64() / count;
        let offset = (shift[j].to_f64() - bases[j]) + (delta[j].to_f64() + rest);
        let own = square[j].to_f64() - rest * rest * count;
        let delta = offset - offsets[j];
        offsets[j] += delta * share;
        squares[j] += if own < 0.0 { 0.0 } else { own } + delta * delta * before * share;
    }
}

/// The definition, for channels whose sums are not finite: an infinity or a NaN among the values,
/// or squares beyond f32.
fn wide_moments<E: Element>(shape: &Shape, c: usize, x: &[E]) -> Moments {
    let values = || shape.channel(c).map(|i| x[i].widen().to_f64());
    let count = shape.per_channel() as f64;
    let mean = values().sum::<f64>() / count;
    let squares = values().map(|x| (x - mean).powi(2)).sum();
    Moments { count, base: mean, offset: 0.0, squares }
}

/// Rows of a tile that are as long as any.
#[inline(always)]
fn full_rows(plan: &Plan, tile: &Tile) -> usize {
    (plan.len() / plan.width).min(tile.rows.end) - tile.rows.start
}

/// The moments of channel `c` from the slots of all tiles of its block.
pub(super) fn merged<'s, E: Element>(
    shape: &Shape,
    plan: &Plan,
    (block, c): (usize, usize),
    x: &[E],
    slot: impl Fn(usize) -> &'s [f64],
) -> Moments {
    let (per_block, first) = (plan.tiles_per_block(), plan.channels(block).start);
    let base = base(plan, x, c);
    let mut all = Moments { base, ..Moments::default() };
    for index in block * per_block..(block + 1) * per_block {
        let (tile, slot) = (plan.tile(index), slot(index));
        let half = slot.len() / 2;
        if plan.long_runs {
            let count = (tile.rows.len() * plan.run().min(tile.cols.len())) as f64;
            let (offset, squares) = (slot[c - first], slot[half + c - first]);
            all.merge(Moments { count, base, offset, squares });
            continue;
        }
        let full = full_rows(plan, &tile);
        for col in plan.columns_of(&tile, c) {
            let in_last = full < tile.rows.len() && {
                let last = clipped(tile.rows.end - 1, col..col + 1, plan.width, plan.len());
                !last.is_empty()
            };
            let (count, j) = ((full + usize::from(in_last)) as f64, col - tile.cols.start);
            all.merge(Moments { count, base, offset: slot[j], squares: slot[half + j] });
        }
    }
    match all.squares.is_finite() {
        true => all,
        false => wide_moments(shape, c, x),
    }
}
