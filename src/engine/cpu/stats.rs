//! Step 1 of the training forward: mean and variance of every channel.
//!
//! Values are read once, a segment at a time, as distances from a pivot: the mean of what came
//! before, and of a quarter of the first segment's own values. What a pivot is away from the mean,
//! those values and the merging count as variance, too, so that the squares lose two bits at most
//! where they are taken from it. So the error does not grow with the mean, and a constant channel
//! has exactly its mean and variance 0. Segments, tiles and columns are merged by Chan's formula in
//! f64, as distances from the channel's first value.
use super::lanes::{self, BLOCK, Lanes};
use super::moments::{Moments, base, base_from};
use super::plan::{Plan, Tile};
use super::simd::Simd;
use super::store::prefetch;
use super::tiles::clipped;
use crate::{Element, Real};
use std::ops::Range;

/// Values of a segment of long runs.
const SEGMENT: usize = 4096;
/// Rows of a segment of short runs; its columns are a [`BLOCK`].
const STRIP_ROWS: usize = 32;
/// Of which the mean is the first pivot.
const FIRST_VALUES: usize = SEGMENT / 4;
const FIRST_ROWS: usize = STRIP_ROWS / 4;

/// Offsets of the mean (first half of `slot`) and sums of squares (second half) of a tile's
/// channels, or of its columns where runs are short.
#[inline(always)]
pub(super) fn moments<E: Element>(simd: Simd, plan: &Plan, tile: &Tile, x: &[E], slot: &mut [f64]) {
    let half = slot.len() / 2;
    let (offsets, squares) = slot.split_at_mut(half);
    if !plan.long_runs {
        return columns(simd, plan, tile, x, offsets, squares);
    }
    let run = plan.inner().min(tile.cols.len());
    for (k, start) in tile.cols.clone().step_by(run).enumerate() {
        let at = |row: usize| row * plan.width + start;
        let base = base(plan, x, start / plan.inner());
        let m = channel(simd, base, tile.rows.len(), |r| &x[at(tile.rows.start + r)..][..run]);
        (offsets[k], squares[k]) = (m.offset, m.squares);
    }
}

/// Moments of `runs` slices of equal length.
#[inline(always)]
fn channel<'x, E: Element>(
    simd: Simd,
    base: f64,
    runs: usize,
    run: impl Fn(usize) -> &'x [E],
) -> Moments {
    let len = run(0).len();
    let together = (SEGMENT / len).max(1);
    let first = run(0)[0].widen();
    let few = match len >= SEGMENT {
        true => segment(simd, base, first, 1, |_| &run(0)[..FIRST_VALUES]),
        false => segment(simd, base, first, together.min(runs).div_ceil(4), &run),
    };
    let mut all = Moments { base, offset: few.offset, ..Moments::default() };
    let pivot = |all: &Moments| E::Acc::from_f64(all.mean());
    if len >= SEGMENT {
        for r in 0..runs {
            for part in run(r).chunks(SEGMENT) {
                all.append(segment(simd, base, pivot(&all), 1, |_| part));
            }
        }
    } else {
        for first in (0..runs).step_by(together) {
            let runs = together.min(runs - first);
            all.append(segment(simd, base, pivot(&all), runs, |r| run(first + r)));
        }
    }
    all
}

#[inline(always)]
fn segment<'x, E: Element>(
    simd: Simd,
    base: f64,
    pivot: E::Acc,
    runs: usize,
    run: impl Fn(usize) -> &'x [E],
) -> Moments {
    let (mut sum, mut squares) = (Lanes::new(), Lanes::new());
    let mut count = 0;
    for r in 0..runs {
        count += run(r).len();
        lanes::distances(simd, run(r), pivot, &mut sum, &mut squares);
    }
    let (count, sum) = (count as f64, sum.total());
    let squares = squares.total() - sum * sum / count;
    let squares = if squares < 0.0 { 0.0 } else { squares }; // NaN stays
    Moments { count, base, offset: (pivot.to_f64() - base) + sum / count, squares }
}

/// The same for every column of a tile, rows of a strip at a time.
#[inline(always)]
fn columns<E: Element>(
    simd: Simd,
    plan: &Plan,
    tile: &Tile,
    x: &[E],
    offsets: &mut [f64],
    squares: &mut [f64],
) {
    let full = tile.rows.len() - usize::from(plan.has_short_row(tile));
    let mut strip = Strip::<E>::new(simd);
    for start in tile.cols.clone().step_by(BLOCK) {
        let cols = start..(start + BLOCK).min(tile.cols.end);
        let here = start - tile.cols.start..cols.end - tile.cols.start;
        let (offsets, squares) = (&mut offsets[here.clone()], &mut squares[here]);
        strip.start(plan, &cols, x);
        let row = |r: usize| &x[r * plan.width + start..][..cols.len()];
        let ahead = |r: usize| {
            let (row, cols) = tile.ahead(r, &cols);
            &x[clipped(row, cols, plan.width, x.len())]
        };
        for first in (tile.rows.start..tile.rows.start + full).step_by(STRIP_ROWS) {
            let rows = first..(first + STRIP_ROWS).min(tile.rows.start + full);
            strip.add(first - tile.rows.start, rows, row, ahead, offsets, squares);
        }
        if full < tile.rows.len() {
            // The shorter last row has one more value for some of the columns.
            let last = tile.rows.end - 1;
            let values = &x[clipped(last, cols.clone(), plan.width, x.len())];
            let n = values.len();
            let (offsets, squares) = (&mut offsets[..n], &mut squares[..n]);
            strip.add(full, last..last + 1, |_| values, ahead, offsets, squares);
        }
    }
}

/// What the moments of a strip of columns are made with.
struct Strip<E: Element> {
    simd: Simd,
    pivot: [E::Acc; BLOCK],
    sum: [E::Acc; BLOCK],
    squares: [E::Acc; BLOCK],
    bases: [f64; BLOCK],
    own_bases: [f64; BLOCK],
}

impl<E: Element> Strip<E> {
    #[inline(always)]
    fn new(simd: Simd) -> Self {
        let zeros = [E::Acc::default(); BLOCK];
        let (bases, own_bases) = ([0.0; BLOCK], [0.0; BLOCK]);
        Self { simd, pivot: zeros, sum: zeros, squares: zeros, bases, own_bases }
    }
    /// Turns to other columns.
    #[inline(always)]
    fn start(&mut self, plan: &Plan, cols: &Range<usize>, x: &[E]) {
        let channels = plan.channels_in(cols);
        let own = &mut self.own_bases[..channels.len()];
        let x = &x[channels.start * plan.inner()..];
        match plan.inner() {
            1 => own.iter_mut().zip(x).for_each(|(base, x)| *base = base_from(*x)),
            inner => {
                let firsts = x.iter().step_by(inner);
                own.iter_mut().zip(firsts).for_each(|(base, x)| *base = base_from(*x));
            }
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
        ahead: impl Fn(usize) -> &'x [E],
        offsets: &mut [f64],
        squares: &mut [f64],
    ) {
        let n = offsets.len();
        let squares = &mut squares[..n];
        let count = rows.len() as f64;
        if before == 0 {
            let first = row(rows.start).iter();
            self.pivot[..n].iter_mut().zip(first).for_each(|(pivot, x)| *pivot = x.widen());
            let few = rows.start..rows.end.min(rows.start + FIRST_ROWS);
            self.distances(n, few.clone(), &row, &ahead);
            let each = E::Acc::from_f64(1.0 / few.len() as f64);
            for (pivot, sum) in self.pivot[..n].iter_mut().zip(&self.sum[..n]) {
                *pivot += *sum * each;
            }
        }
        self.distances(n, rows.clone(), &row, &ahead);
        let each = 1.0 / count;
        let (pivot, bases) = (&mut self.pivot[..n], &self.bases[..n]);
        let (sums, products) = (&self.sum[..n], &self.squares[..n]);
        if before == 0 {
            for j in 0..n {
                let sum = sums[j].to_f64();
                let own = products[j].to_f64() - sum * sum * each;
                offsets[j] = (pivot[j].to_f64() - bases[j]) + sum * each;
                squares[j] = if own < 0.0 { 0.0 } else { own };
                pivot[j] = E::Acc::from_f64(bases[j] + offsets[j]);
            }
            return;
        }
        let before = before as f64;
        let (share, both) = (count / (before + count), before * count / (before + count));
        for j in 0..n {
            let sum = sums[j].to_f64();
            let offset = (pivot[j].to_f64() - bases[j]) + sum * each;
            let own = products[j].to_f64() - sum * sum * each;
            let delta = offset - offsets[j];
            offsets[j] += delta * share;
            squares[j] += if own < 0.0 { 0.0 } else { own } + delta * delta * both;
            pivot[j] = E::Acc::from_f64(bases[j] + offsets[j]);
        }
    }
    /// Sums and squares of the rows' distances from the pivots.
    #[inline(always)]
    fn distances<'x>(
        &mut self,
        n: usize,
        rows: Range<usize>,
        row: &impl Fn(usize) -> &'x [E],
        ahead: &impl Fn(usize) -> &'x [E],
    ) {
        self.sum[..n].fill(E::Acc::default());
        self.squares[..n].fill(E::Acc::default());
        let (pivot, sum, squares) = (&self.pivot, &mut self.sum, &mut self.squares);
        let (four, one) =
            (rows.start..rows.end - rows.len() % 4, rows.end - rows.len() % 4..rows.end);
        for r in four.step_by(4) {
            let rows = [row(r), row(r + 1), row(r + 2), row(r + 3)];
            let ahead = [0, 1, 2, 3].map(
                #[inline(always)]
                |k| ahead(r + k),
            );
            lanes::column_distances(
                self.simd,
                rows,
                pivot,
                sum,
                squares,
                #[inline(always)]
                |j| ahead.iter().for_each(|row| prefetch(row, j)),
            );
        }
        for r in one {
            lanes::column_distances(self.simd, [row(r)], pivot, sum, squares, |_| ());
        }
    }
}
