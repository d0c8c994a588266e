//! Sums of long runs, a segment of a channel at a time.
use super::super::kernels::masked::{self, number};
use super::super::kernels::sums::{self, Lanes};
use super::super::masked::{Counts, Keep};
use super::super::moments::Moments;
use super::super::plan::Tile;
use super::super::simd::BLOCK;
use super::super::tiles::clipped;
use super::{Read, Sums, moments_about};
use crate::{Element, Real};
use std::ops::Range;

/// As in [`stats`](super::super::stats).
const SEGMENT: usize = 4096;
const FIRST_VALUES: usize = SEGMENT / 4;

/// [`Sums`] of a tile's channels.
pub(super) fn sums<E: Element>(
    read: Read<'_, E>,
    tile: &Tile,
    [offsets, squares, totals]: Sums<'_>,
) {
    let inner = read.plan.inner();
    let run = inner.min(tile.cols.len());
    let mut segment = Segment::new(read);
    for (k, start) in tile.cols.clone().step_by(run).enumerate() {
        let cols = start..(start + run).min(tile.cols.end);
        let base = read.mask.base(start / inner);
        let m = segment.channel(base, tile.rows.clone(), &cols);
        (offsets[k], squares[k], totals[k]) = (m.offset, m.squares, m.count);
    }
}

/// Sums over some values of a channel.
struct Segment<'a, E: Element> {
    read: Read<'a, E>,
    pivot: E::Acc,
    sum: Lanes<E::Acc>,
    squares: Lanes<E::Acc>,
    count: usize,
    counts: Counts,
}

impl<'a, E: Element> Segment<'a, E> {
    fn new(read: Read<'a, E>) -> Self {
        let (sum, squares) = (Lanes::new(), Lanes::new());
        let (pivot, counts) = (E::Acc::default(), Counts::new());
        Self { read, pivot, sum, squares, count: 0, counts }
    }
    /// Moments of the same columns, a channel's, of some rows.
    fn channel(&mut self, base: f64, rows: Range<usize>, cols: &Range<usize>) -> Moments {
        let mut all = Moments { base, ..Moments::default() };
        self.pivot = E::Acc::from_f64(base);
        let first = FIRST_VALUES.min((rows.len() * cols.len()).div_ceil(4));
        let (mut seen, mut guessed) = (0, false);
        'first: for row in rows.clone() {
            for start in cols.clone().step_by(BLOCK) {
                seen += self.add(row, start..(start + BLOCK).min(cols.end));
                if seen >= first {
                    break 'first;
                }
            }
        }
        let few = self.close(base);
        if few.count > 0.0 {
            self.pivot = E::Acc::from_f64(few.mean());
            guessed = true;
        }
        seen = 0;
        for row in rows {
            for start in cols.clone().step_by(BLOCK) {
                seen += self.add(row, start..(start + BLOCK).min(cols.end));
                if seen >= SEGMENT {
                    seen = 0;
                    self.append(&mut all);
                } else if !guessed && self.count > 0 {
                    // The first values that count came late: the pivot is the first of them.
                    guessed = true;
                    self.append(&mut all);
                    seen = 0;
                }
            }
        }
        self.append(&mut all);
        all
    }
    fn append(&mut self, all: &mut Moments) {
        let some = self.close(all.base);
        if some.count > 0.0 {
            all.append(some);
            self.pivot = E::Acc::from_f64(all.mean());
        }
    }
    /// Adds columns of a row; says how many values they are, whether they count or not.
    fn add(&mut self, row: usize, cols: Range<usize>) -> usize {
        let Self { read: Read { simd, plan, x, mask }, pivot, .. } = *self;
        let x = &x[clipped(row, cols.clone(), plan.width, plan.len())];
        let to = (&mut self.sum, &mut self.squares);
        let (counts, n) = match mask.of_run(plan, row, &cols) {
            Some(counted) => counted,
            None => match mask.keep(plan, row, &cols, &mut self.counts) {
                Keep::None => (&[][..], 0),
                Keep::All => (&[][..], x.len()),
                Keep::Some(counts) => (counts, number(simd, counts)),
            },
        };
        match n {
            0 => {}
            n if n == x.len() => sums::distances(simd, (x, x.as_ptr()), pivot, to),
            _ => masked::distances(simd, x, counts, pivot, to),
        }
        self.count += n;
        x.len()
    }
    /// What has been added since the last time.
    fn close(&mut self, base: f64) -> Moments {
        let [sum, squares] = [&mut self.sum, &mut self.squares]
            .map(|lanes| std::mem::replace(lanes, Lanes::new()).total());
        let count = std::mem::take(&mut self.count) as f64;
        moments_about(base, self.pivot.to_f64(), (sum, squares, count))
    }
}
