//! Sums of rows of several short runs, which have the same positions: a strip of whole runs and some rows at a
//! time, column by column about a pivot of the channel, of which all columns are added up.
use super::super::kernels::columns::{self, Rows};
use super::super::kernels::masked::{self, Row, SomeRows, totals_of_runs};
use super::super::kernels::sums::STRIP_ROWS;
use super::super::masked::{Keep, Patterns};
use super::super::moments::Moments;
use super::super::plan::Tile;
use super::super::simd::{BLOCK, GROUP};
use super::super::tiles::clipped;
use super::{Read, Sums, moments_about};
use crate::{Element, Real};
use std::ops::Range;

/// Rows whose mean is the first pivot.
const FIRST_ROWS: usize = STRIP_ROWS / 4;
/// Runs of a strip at most.
const RUNS: usize = BLOCK / GROUP;

/// [`Sums`] of a tile's channels.
pub(super) fn sums<E: Element>(
    read: Read<'_, E>,
    patterns: &Patterns<'_>,
    tile: &Tile,
    [offsets, squares, totals]: Sums<'_>,
) {
    let inner = read.plan.inner();
    let most = BLOCK / inner;
    let mut strip = Strip::new(read);
    let (first, runs) = (tile.cols.start / inner, tile.cols.len() / inner);
    for start in (0..runs).step_by(most) {
        let some = start..(start + most).min(runs);
        let cols = (first + some.start) * inner..(first + some.end) * inner;
        let channels = first + some.start..first + some.end;
        let mut moments = [Moments::default(); RUNS];
        let moments = &mut moments[..some.len()];
        moments.iter_mut().zip(channels).for_each(|(m, c)| m.base = read.mask.base(c));
        strip.set_pivots(moments);
        for rows in tile.rows.clone().step_by(STRIP_ROWS) {
            let rows = rows..(rows + STRIP_ROWS).min(tile.rows.end);
            if rows.start == tile.rows.start {
                // Counted from the base alone, whatever they count for.
                let few = rows.start..rows.end.min(rows.start + FIRST_ROWS);
                let mut few_moments = [Moments::default(); RUNS];
                few_moments[..some.len()].copy_from_slice(moments);
                let few_moments = &mut few_moments[..some.len()];
                strip.add(tile, few, &cols, patterns, few_moments);
                strip.set_pivots(few_moments);
            }
            strip.add(tile, rows, &cols, patterns, moments);
            strip.set_pivots(moments);
        }
        for (k, m) in some.zip(moments) {
            (offsets[k], squares[k], totals[k]) = (m.offset, m.squares, m.count);
        }
    }
}

/// What the moments of a strip are made with.
struct Strip<'a, E: Element> {
    read: Read<'a, E>,
    /// Of every run, and of every column.
    pivots: [E::Acc; RUNS],
    pivot: [E::Acc; BLOCK],
    sum: [E::Acc; BLOCK],
    squares: [E::Acc; BLOCK],
}

impl<'a, E: Element> Strip<'a, E> {
    fn new(read: Read<'a, E>) -> Self {
        let zeros = [E::Acc::default(); BLOCK];
        let pivots = [E::Acc::default(); RUNS];
        Self { read, pivots, pivot: zeros, sum: zeros, squares: zeros }
    }
    /// Distances are taken from the means from now on; of no values, from the bases, or as before.
    fn set_pivots(&mut self, moments: &[Moments]) {
        let inner = self.read.plan.inner();
        let runs = self.pivot.chunks_mut(inner).zip(&mut self.pivots).zip(moments);
        for ((columns, pivot), m) in runs {
            *pivot = E::Acc::from_f64(m.mean());
            columns.fill(*pivot);
        }
    }
    /// Appends the moments of some rows.
    fn add(
        &mut self,
        tile: &Tile,
        rows: Range<usize>,
        cols: &Range<usize>,
        patterns: &Patterns<'_>,
        moments: &mut [Moments],
    ) {
        let Self { read: Read { simd, plan, x, .. }, pivots, pivot, sum, squares } = self;
        let n = cols.len();
        sum[..n].fill(E::Acc::default());
        squares[..n].fill(E::Acc::default());
        let (mut all, mut some, mut all_count) = (Rows::new(), SomeRows::new(), 0);
        for row in rows {
            let x = &x[clipped(row, cols.clone(), plan.width, plan.len())];
            let ahead = x.as_ptr().wrapping_offset(tile.ahead(row, cols, plan.width));
            match patterns.keep(row, cols) {
                Keep::None => continue,
                Keep::All => all.push([x], [ahead]),
                Keep::Some(counts) => some.push(Row { x, counts, ahead }),
            }
            all_count += patterns.count(row);
        }
        if all_count == 0 {
            return;
        }
        if all.len() > 0 {
            columns::column_distances(*simd, (&all, false), pivot, (&mut *sum, &mut *squares));
        }
        masked::column_distances(*simd, some.rows(), pivot, [&mut *sum, &mut *squares]);
        let (mut of_sum, mut of_squares) = ([0.0; RUNS], [0.0; RUNS]);
        totals_of_runs(*simd, &sum[..n], plan.inner(), &mut of_sum);
        totals_of_runs(*simd, &squares[..n], plan.inner(), &mut of_squares);
        for (k, m) in moments.iter_mut().enumerate() {
            let sums = (of_sum[k], of_squares[k], all_count as f64);
            m.append(moments_about(m.base, pivots[k].to_f64(), sums));
        }
    }
}
