//! Step 1 of the training forward: mean and variance of every channel.
//!
//! Values are read once, a segment at a time, as distances from a pivot: the mean of what came
//! before. Where that turns out to be far from the segment's own mean, the segment, still in cache, is
//! read again about that. So the squares do not cancel, and the error does not grow with the mean;
//! a constant channel has exactly its mean and variance 0. Segments, tiles and columns are merged by
//! Chan's formula in f64, as distances from the channel's first value.
use super::lanes::{self, BLOCK, Lanes};
use super::plan::{Plan, Tile};
use super::tiles::clipped;
use crate::{Element, Real, Shape};
use std::ops::Range;

/// Values of a segment of long runs.
const SEGMENT: usize = 4096;
/// Rows of a segment of short runs; its columns are a [`BLOCK`].
const STRIP_ROWS: usize = 32;
/// Rows whose mean is the first pivot.
const FIRST_ROWS: usize = 8;
/// A pivot is far if its squared distance from the mean is more than this many variances; until
/// then the squares lose less than three bits.
const FAR: f64 = 4.0;

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
    /// As `merge`; an empty `self` may have a mean that is a guess.
    #[inline(always)]
    fn append(&mut self, other: Moments) {
        match self.count > 0.0 {
            true => self.merge(other),
            false => *self = other,
        }
    }
    #[inline(always)]
    pub fn mean(&self) -> f64 {
        self.base + self.offset
    }
    /// The mean rounded to `A`, and what that leaves; nothing where it is not finite.
    #[inline(always)]
    pub fn mean_and_rest<A: Real>(&self) -> (A, A) {
        let mean = A::from_f64(self.mean());
        let rest = (self.base - mean.to_f64()) + self.offset;
        (mean, A::from_f64(if rest.is_finite() { rest } else { 0.0 }))
    }
    /// Biased; 0 for an empty batch.
    #[inline(always)]
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
    let first = x[c * plan.inner()].widen().to_f64();
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
    let run = plan.inner().min(tile.cols.len());
    for (k, start) in tile.cols.clone().step_by(run).enumerate() {
        let at = |row: usize| row * plan.width + start;
        let base = base(plan, x, start / plan.inner());
        let m = channel(base, tile.rows.len(), |r| &x[at(tile.rows.start + r)..][..run]);
        (offsets[k], squares[k]) = (m.offset, m.squares);
    }
}

/// Moments of `runs` slices of equal length.
#[inline(always)]
fn channel<'x, E: Element>(base: f64, runs: usize, run: impl Fn(usize) -> &'x [E]) -> Moments {
    let len = run(0).len();
    // Where there is nothing before: the mean of a few values that lie apart.
    let few: f64 =
        (0..8).map(|i| run(i * (runs - 1) / 7)[i * (len - 1) / 7].widen().to_f64()).sum();
    let mut all = Moments { base, offset: few / 8.0 - base, ..Moments::default() };
    let pivot = |all: &Moments| E::Acc::from_f64(all.mean());
    if len >= SEGMENT {
        for r in 0..runs {
            for part in run(r).chunks(SEGMENT) {
                all.append(segment(base, pivot(&all), 1, |_| part));
            }
        }
    } else {
        let together = SEGMENT / len;
        for first in (0..runs).step_by(together) {
            let runs = together.min(runs - first);
            all.append(segment(base, pivot(&all), runs, |r| run(first + r)));
        }
    }
    all
}

#[inline(always)]
fn segment<'x, E: Element>(
    base: f64,
    mut pivot: E::Acc,
    runs: usize,
    run: impl Fn(usize) -> &'x [E],
) -> Moments {
    let mut scratch = [E::Acc::default(); BLOCK];
    let count = (0..runs).map(|r| run(r).len()).sum::<usize>() as f64;
    for last in [false, true] {
        let (mut sum, mut squares) = (Lanes::new(), Lanes::new());
        for r in 0..runs {
            for x in run(r).chunks(BLOCK) {
                lanes::distances(E::widened(x, &mut scratch), pivot, &mut sum, &mut squares);
            }
        }
        let (sum, squares) = (sum.total(), squares.total());
        let delta = sum / count;
        let squares = squares - delta * sum;
        let far = delta * sum > FAR * squares;
        if last || !far {
            let offset = (pivot.to_f64() - base) + delta;
            let squares = if squares < 0.0 { 0.0 } else { squares }; // NaN stays
            return Moments { count, base, offset, squares };
        }
        pivot = E::Acc::from_f64(pivot.to_f64() + delta);
    }
    unreachable!("the second time is the last")
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
    let full = tile.rows.len() - usize::from(has_short_row(plan, tile));
    let mut strip = Strip::<E>::new();
    for start in tile.cols.clone().step_by(BLOCK) {
        let cols = start..(start + BLOCK).min(tile.cols.end);
        let here = start - tile.cols.start..cols.end - tile.cols.start;
        let (offsets, squares) = (&mut offsets[here.clone()], &mut squares[here]);
        strip.start(plan, &cols, x);
        let row = |r: usize| &x[r * plan.width + start..][..cols.len()];
        for first in (tile.rows.start..tile.rows.start + full).step_by(STRIP_ROWS) {
            let rows = first..(first + STRIP_ROWS).min(tile.rows.start + full);
            strip.add(first - tile.rows.start, rows, row, offsets, squares);
        }
        if full < tile.rows.len() {
            // The shorter last row has one more value for some of the columns.
            let last = tile.rows.end - 1;
            let values = &x[clipped(last, cols.clone(), plan.width, x.len())];
            let n = values.len();
            strip.add(full, last..last + 1, |_| values, &mut offsets[..n], &mut squares[..n]);
        }
    }
}

/// What the moments of a strip of columns are made with.
struct Strip<E: Element> {
    scratch: [[E::Acc; BLOCK]; 4],
    pivot: [E::Acc; BLOCK],
    sum: [E::Acc; BLOCK],
    squares: [E::Acc; BLOCK],
    bases: [f64; BLOCK],
    own_bases: [f64; BLOCK],
}

impl<E: Element> Strip<E> {
    #[inline(always)]
    fn new() -> Self {
        let zeros = [E::Acc::default(); BLOCK];
        let (bases, own_bases) = ([0.0; BLOCK], [0.0; BLOCK]);
        Self { scratch: [zeros; 4], pivot: zeros, sum: zeros, squares: zeros, bases, own_bases }
    }
    /// Turns to other columns.
    #[inline(always)]
    fn start(&mut self, plan: &Plan, cols: &Range<usize>, x: &[E]) {
        let channels = plan.channels_in(cols);
        let firsts = x[channels.start * plan.inner()..].iter().step_by(plan.inner());
        for (base, x) in self.own_bases[..channels.len()].iter_mut().zip(firsts) {
            let first = x.widen().to_f64();
            *base = if first.is_finite() { first } else { 0.0 };
        }
        plan.expand(cols, &self.own_bases, &mut self.bases);
    }
    /// Merges a few rows into columns of which `before` rows have been merged.
    #[inline(always)]
    fn add<'x>(
        &mut self,
        before: usize,
        rows: Range<usize>,
        row: impl Fn(usize) -> &'x [E],
        offsets: &mut [f64],
        squares: &mut [f64],
    ) {
        let n = offsets.len();
        let squares = &mut squares[..n];
        let count = rows.len() as f64;
        if before == 0 {
            self.pivot[..n].copy_from_slice(E::widened(row(rows.start), &mut self.scratch[0]));
            let few = rows.start..rows.end.min(rows.start + FIRST_ROWS);
            self.distances(n, few.clone(), &row);
            self.turn(n, few.len());
            offsets.fill(0.0);
            squares.fill(0.0);
        }
        self.distances(n, rows.clone(), &row);
        let (far, len) = (E::Acc::from_f64(1.0 + FAR), E::Acc::from_f64(FAR * count));
        let mut any = false;
        for (sum, squares) in self.sum[..n].iter().zip(&self.squares[..n]) {
            any |= far * *sum * *sum > len * *squares;
        }
        if any {
            self.turn(n, rows.len());
            self.distances(n, rows, &row);
        }
        let (each, before) = (1.0 / count, before as f64);
        let (share, both) = (count / (before + count), before * count / (before + count));
        let (pivot, bases) = (&mut self.pivot[..n], &self.bases[..n]);
        let (sum, square) = (&self.sum[..n], &self.squares[..n]);
        for j in 0..n {
            let sum = sum[j].to_f64();
            let offset = (pivot[j].to_f64() - bases[j]) + sum * each;
            let own = square[j].to_f64() - sum * sum * each;
            let delta = offset - offsets[j];
            offsets[j] += delta * share;
            squares[j] += if own < 0.0 { 0.0 } else { own } + delta * delta * both;
            pivot[j] = E::Acc::from_f64(bases[j] + offsets[j]);
        }
    }
    /// Sums and squares of the rows' distances from the pivots.
    #[inline(always)]
    fn distances<'x>(&mut self, n: usize, rows: Range<usize>, row: &impl Fn(usize) -> &'x [E]) {
        self.sum[..n].fill(E::Acc::default());
        self.squares[..n].fill(E::Acc::default());
        let (pivot, sum, squares) = (&self.pivot, &mut self.sum, &mut self.squares);
        let (four, one) =
            (rows.start..rows.end - rows.len() % 4, rows.end - rows.len() % 4..rows.end);
        for r in four.step_by(4) {
            let [a, b, c, d] = &mut self.scratch;
            let rows = [
                E::widened(row(r), a),
                E::widened(row(r + 1), b),
                E::widened(row(r + 2), c),
                E::widened(row(r + 3), d),
            ];
            lanes::column_distances(rows, pivot, sum, squares);
        }
        for r in one {
            let x = E::widened(row(r), &mut self.scratch[0]);
            lanes::column_distances([x], pivot, sum, squares);
        }
    }
    /// Moves the pivots to the mean of the rows just summed.
    #[inline(always)]
    fn turn(&mut self, n: usize, rows: usize) {
        let each = E::Acc::from_f64(1.0 / rows as f64);
        for (pivot, sum) in self.pivot[..n].iter_mut().zip(&self.sum[..n]) {
            *pivot += *sum * each;
        }
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

/// Whether the tile's last row is shorter than the others.
#[inline(always)]
pub(super) fn has_short_row(plan: &Plan, tile: &Tile) -> bool {
    tile.rows.end == plan.rows && plan.last_row() < plan.width
}

/// What the channels of some memory come to: values of the first field, then of the next.
#[derive(Clone, Copy)]
pub(super) struct Merged<'a> {
    base: &'a [f64],
    offset: &'a [f64],
    squares: &'a [f64],
    count: f64,
}

impl<'a> Merged<'a> {
    /// Values that a channel takes.
    pub const LEN: usize = 3;
    /// Those that [`merge`] has written.
    #[inline(always)]
    pub fn new(kept: &'a [f64], shape: &Shape) -> Self {
        let (base, rest) = kept.split_at(kept.len() / Self::LEN);
        let (offset, squares) = rest.split_at(base.len());
        Self { base, offset, squares, count: shape.per_channel() as f64 }
    }
    /// Those of some of them.
    #[inline(always)]
    pub fn range(self, at: Range<usize>) -> Self {
        let (base, offset) = (&self.base[at.clone()], &self.offset[at.clone()]);
        Self { base, offset, squares: &self.squares[at], count: self.count }
    }
    /// The moments of the `k`th.
    #[inline(always)]
    pub fn get(&self, k: usize) -> Moments {
        let Self { base, offset, squares, count } = *self;
        Moments { count, base: base[k], offset: offset[k], squares: squares[k] }
    }
}

/// Merges the slots of all tiles of `block`, which are overwritten, into `kept`: see [`Merged`].
#[inline(always)]
pub(super) fn merge<E: Element>(
    shape: &Shape,
    plan: &Plan,
    block: usize,
    x: &[E],
    slots: &mut [f64],
    kept: &mut [f64],
) {
    let channels = plan.channels(block);
    let n = channels.len();
    let (bases, rest) = kept.split_at_mut(kept.len() / Merged::LEN);
    let (into_offsets, into_squares) = rest.split_at_mut(bases.len());
    for (base_of, c) in bases[..n].iter_mut().zip(channels.clone()) {
        *base_of = base(plan, x, c);
    }
    let slot_len = slot_len(plan);
    let (first, others) = slots.split_at_mut(slot_len);
    let (offsets, squares) = first.split_at_mut(slot_len / 2);
    let tile = |k: usize| plan.tile(block * plan.tiles_per_block() + k);
    // Of a shorter last row, some columns have one more value than the others.
    let longer = match plan.long_runs {
        true => offsets.len(),
        false if plan.last_row() < plan.width => plan.last_row(),
        false => offsets.len(),
    };
    let mut before = count_of(plan, &tile(0));
    for (k, slot) in others.chunks(slot_len).enumerate() {
        let (offset, square) = slot.split_at(slot_len / 2);
        let tile = tile(k + 1);
        let count = count_of(plan, &tile);
        let short = f64::from(has_short_row(plan, &tile));
        let (a, b) = offsets.split_at_mut(longer);
        let (c, d) = squares.split_at_mut(longer);
        chan(before, (a, c), count, (&offset[..longer], &square[..longer]));
        chan(before, (b, d), count - short, (&offset[longer..], &square[longer..]));
        before += count;
    }
    if plan.is_joined() {
        let (row, mut before) = (plan.row(), before);
        let each = before;
        let (offsets, more_offsets) = offsets.split_at_mut(row);
        let (squares, more_squares) = squares.split_at_mut(row);
        let more = more_offsets.chunks(row).zip(more_squares.chunks(row));
        for (k, (offset, square)) in more.enumerate() {
            let count = if (k + 1) * row < longer { each } else { each - 1.0 };
            chan(before, (&mut *offsets, &mut *squares), count, (offset, square));
            before += count;
        }
    }
    if plan.long_runs || plan.inner() == 1 {
        into_offsets[..n].copy_from_slice(&offsets[..n]);
        into_squares[..n].copy_from_slice(&squares[..n]);
    } else {
        let (inner, each) = (plan.inner(), shape.per_channel() as f64 / plan.inner() as f64);
        let columns = offsets.chunks(inner).zip(squares.chunks(inner));
        for (k, (offset, square)) in columns.take(n).enumerate() {
            let mean = lanes::total(offset, |v| v) / inner as f64;
            let between = lanes::total(offset, |v| (v - mean) * (v - mean));
            into_offsets[k] = mean;
            into_squares[k] = lanes::total(square, |v| v) + each * between;
        }
    }
    for (k, c) in channels.enumerate() {
        if !into_squares[k].is_finite() {
            let Moments { base, offset, squares, .. } = wide_moments(shape, c, x);
            (bases[k], into_offsets[k], into_squares[k]) = (base, offset, squares);
        }
    }
}

/// Values of every channel in a tile, or of every column: of the longer ones.
#[inline(always)]
fn count_of(plan: &Plan, tile: &Tile) -> f64 {
    let each = if plan.long_runs { plan.inner().min(tile.cols.len()) } else { 1 };
    (tile.rows.len() * each) as f64
}

/// Chan's formula for slices of equal counts.
#[inline(always)]
fn chan(
    before: f64,
    (offsets, squares): (&mut [f64], &mut [f64]),
    count: f64,
    (offset, square): (&[f64], &[f64]),
) {
    if count == 0.0 {
        return;
    }
    let n = offsets.len();
    let (squares, offset, square) = (&mut squares[..n], &offset[..n], &square[..n]);
    let (share, both) = (count / (before + count), before * count / (before + count));
    for j in 0..n {
        let delta = offset[j] - offsets[j];
        offsets[j] += delta * share;
        squares[j] += square[j] + delta * delta * both;
    }
}
