//! Sums of columns, a strip of them and some rows at a time.
use super::super::kernels::columns::{Rows, column_distances};
use super::super::kernels::masked::{self, Row, SomeRows, guess_columns, merge_columns};
use super::super::kernels::moments::Columns;
use super::super::kernels::sums::STRIP_ROWS;
use super::super::masked::{Counts, Keep};
use super::super::plan::Tile;
use super::super::policy::AHEAD;
use super::super::simd::BLOCK;
use super::super::stats;
use super::super::tiles::clipped;
use super::{Read, Sums};
use crate::{Element, Real};
use std::ops::Range;

/// As in [`stats`].
const FIRST_ROWS: usize = STRIP_ROWS / 4;
/// Rows of which the bytes are brought together at a time.
const TOGETHER: usize = 4;

/// Where all count.
static ONES: [u8; BLOCK] = [1; BLOCK];

/// [`Sums`] of a tile's columns where channels lie together, by a byte for each position: [`stats`]' own of the
/// positions that count. Where rows are joined, of as many columns as there are channels.
pub(super) fn sums_of_positions<E: Element>(
    read: Read<'_, E>,
    bytes: &[u8],
    tile: &Tile,
    [offsets, squares, totals]: Sums<'_>,
) {
    let Read { simd, plan, x, mask } = read;
    let (row, joined) = (plan.row(), plan.width / plan.row());
    let all_cols = tile.cols.start..tile.cols.end.min(row);
    let rows = tile.rows.start * joined..(tile.rows.end * joined).min(bytes.len());
    let mut strip = stats::Strip::new(simd);
    for start in all_cols.clone().step_by(BLOCK) {
        let cols = start..(start + BLOCK).min(all_cols.end);
        let here = start - all_cols.start..cols.end - all_cols.start;
        let (offsets, squares) = (&mut offsets[here.clone()], &mut squares[here.clone()]);
        strip.start_from(plan, &cols, |c| mask.base(c));
        let (mut some, mut before, mut guessed) = (Rows::new(), 0, false);
        for (at, byte) in rows.clone().zip(&bytes[rows.clone()]) {
            let x = &x[at * row + cols.start..at * row + cols.end];
            let ahead = match joined {
                1 => x.as_ptr().wrapping_offset(tile.ahead(at, &cols, row)),
                _ => x.as_ptr().wrapping_add(AHEAD * plan.width),
            };
            // No branch, for of some masks nobody can predict it.
            some.push_if(*byte != 0, [x], [ahead]);
            let is_last = at + 1 == rows.end;
            if !guessed && some.len() > 0 && (some.len() == FIRST_ROWS || is_last) {
                guessed = true;
                strip.guess(&some);
            }
            if some.len() == STRIP_ROWS || is_last && some.len() > 0 {
                strip.add(before, &some, (offsets, squares));
                before += some.len();
                some.clear();
            }
        }
        totals[here].fill(before as f64);
    }
}

/// The same of any columns.
pub(super) fn sums<E: Element>(
    read: Read<'_, E>,
    tile: &Tile,
    [offsets, squares, totals]: Sums<'_>,
) {
    let mut strip = Strip::new(read);
    for start in tile.cols.clone().step_by(BLOCK) {
        let cols = start..(start + BLOCK).min(tile.cols.end);
        let here = start - tile.cols.start..cols.end - tile.cols.start;
        let (offsets, squares) = (&mut offsets[here.clone()], &mut squares[here.clone()]);
        let totals = &mut totals[here];
        strip.start(&cols);
        for first in tile.rows.clone().step_by(STRIP_ROWS) {
            let rows = first..(first + STRIP_ROWS).min(tile.rows.end);
            if first == tile.rows.start {
                strip.distances(tile, first..rows.end.min(first + FIRST_ROWS), &cols);
                let Strip { pivot, sum, count, .. } = &mut strip;
                guess_columns(read.simd, &mut pivot[..cols.len()], sum, count);
            }
            strip.distances(tile, rows, &cols);
            let Strip { pivot, sum, squares: square, count, bases, .. } = &mut strip;
            let from = Columns { sums: sum, squares: square, bases };
            let to = [&mut *offsets, &mut *squares, &mut *totals];
            merge_columns(read.simd, count, &from, pivot, to);
        }
    }
}

/// What the moments of a strip of columns are made with.
struct Strip<'a, E: Element> {
    read: Read<'a, E>,
    pivot: [E::Acc; BLOCK],
    sum: [E::Acc; BLOCK],
    squares: [E::Acc; BLOCK],
    /// Of [`STRIP_ROWS`] rows at most.
    count: [u8; BLOCK],
    bases: [f64; BLOCK],
    counts: [Counts; TOGETHER],
}

impl<'a, E: Element> Strip<'a, E> {
    fn new(read: Read<'a, E>) -> Self {
        let zeros = [E::Acc::default(); BLOCK];
        Self {
            read,
            pivot: zeros,
            sum: zeros,
            squares: zeros,
            count: [0; BLOCK],
            bases: [0.0; BLOCK],
            counts: [(); TOGETHER].map(|()| Counts::new()),
        }
    }
    /// Turns to other columns.
    fn start(&mut self, cols: &Range<usize>) {
        let Read { plan, mask, .. } = self.read;
        let channels = plan.channels_in(cols);
        let mut own = [0.0; BLOCK];
        let own = &mut own[..channels.len()];
        own.iter_mut().zip(channels).for_each(|(own, c)| *own = mask.base(c));
        plan.expand(cols, own, &mut self.bases);
        let pivots = self.pivot.iter_mut().zip(&self.bases);
        pivots.for_each(|(pivot, base)| *pivot = E::Acc::from_f64(*base));
    }
    /// Sums and squares of distances from the pivots, and numbers of values, of some rows.
    fn distances(&mut self, tile: &Tile, rows: Range<usize>, cols: &Range<usize>) {
        let n = cols.len();
        let Self { read: Read { simd, plan, x, mask }, pivot, sum, squares, count, .. } = self;
        let simd = *simd;
        sum[..n].fill(E::Acc::default());
        squares[..n].fill(E::Acc::default());
        count[..n].fill(0);
        let mut whole = Rows::new();
        for first in rows.clone().step_by(TOGETHER) {
            let mut some = SomeRows::new();
            for (row, counts) in (first..rows.end).zip(&mut self.counts) {
                let x = &x[clipped(row, cols.clone(), plan.width, x.len())];
                let ahead = x.as_ptr().wrapping_offset(tile.ahead(row, cols, plan.width));
                let is_short = x.len() < n;
                let counts = match mask.keep(plan, row, cols, counts) {
                    Keep::None => continue,
                    Keep::All if !is_short => {
                        whole.push([x], [ahead]);
                        continue;
                    }
                    Keep::All => &ONES[..x.len()],
                    Keep::Some(counts) => counts,
                };
                let row = Row { x, counts, ahead };
                if is_short {
                    // The last row of all goes alone.
                    let sums = [&mut *sum, &mut *squares];
                    masked::counted_distances(simd, &[row], pivot, sums, count);
                } else {
                    some.push(row);
                }
            }
            let sums = [&mut *sum, &mut *squares];
            masked::counted_distances(simd, some.rows(), pivot, sums, count);
        }
        if whole.len() > 0 {
            column_distances(simd, (&whole, false), pivot, (&mut *sum, &mut *squares));
            let more = whole.len() as u8;
            count[..n].iter_mut().for_each(|count| *count += more);
        }
    }
}
