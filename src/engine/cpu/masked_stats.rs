//! The first pass of a training forward with a mask: mean and variance of the values that count.
//!
//! What [`stats`](super::stats) does, with a number of values for every segment and column. Blocks of which all
//! values count are read as they are, those of which none does are not read, and in others what does not count has
//! a distance of 0.
use super::kernels::masked::{self, guess_columns, merge_columns};
use super::kernels::moments::Columns;
use super::kernels::sums::{self, Lanes, Rows, STRIP_ROWS};
use super::masked::{Counts, Keep, Masked, number};
use super::moments::{Merged, Moments, small_squares, wide_moments_of};
use super::plan::{Plan, Tile};
use super::simd::{BLOCK, GROUP, Simd};
use super::tiles::clipped;
use crate::engine::{OneValue, Running};
use crate::{AllMasked, Element, Host, Real, Shape};
use std::ops::Range;

/// As in [`stats`](super::stats).
const SEGMENT: usize = 4096;
const FIRST_VALUES: usize = SEGMENT / 4;
const FIRST_ROWS: usize = STRIP_ROWS / 4;
/// Rows that are taken together where some of their values count: sums in memory cost as much as the
/// arithmetic of one.
const TOGETHER: usize = 4;
const ONES: [u8; BLOCK] = [1; BLOCK];

/// Offsets of the mean, sums of squares and numbers of values of a tile's channels, or of its columns where runs
/// are short: a third of `slot` each.
pub(super) fn moments<E: Element>(
    simd: Simd,
    plan: &Plan,
    tile: &Tile,
    (x, mask): (&[E], &Masked<'_>),
    slot: &mut [f64],
) {
    slot.fill(0.0);
    let third = slot.len() / 3;
    let (offsets, rest) = slot.split_at_mut(third);
    let (squares, totals) = rest.split_at_mut(third);
    if !plan.long_runs {
        let to = [offsets, squares, totals];
        return columns(&mut Strip::new(simd, plan, x, mask), tile, to);
    }
    let run = plan.inner().min(tile.cols.len());
    let mut segment = Segment::new(simd, plan, x, mask);
    for (k, start) in tile.cols.clone().step_by(run).enumerate() {
        let cols = start..(start + run).min(tile.cols.end);
        let base = mask.base(start / plan.inner());
        let m = segment.channel(base, tile.rows.clone(), &cols);
        (offsets[k], squares[k], totals[k]) = (m.offset, m.squares, m.count);
    }
}

/// Sums over some values of a channel.
struct Segment<'a, E: Element> {
    simd: Simd,
    plan: &'a Plan,
    x: &'a [E],
    mask: &'a Masked<'a>,
    pivot: E::Acc,
    sum: Lanes<E::Acc>,
    squares: Lanes<E::Acc>,
    /// Those of blocks of which some values count.
    some: [[E::Acc; GROUP]; 2],
    count: f64,
    counts: Counts,
}

impl<'a, E: Element> Segment<'a, E> {
    fn new(simd: Simd, plan: &'a Plan, x: &'a [E], mask: &'a Masked<'a>) -> Self {
        let (sum, squares) = (Lanes::new(), Lanes::new());
        let (pivot, some) = (E::Acc::default(), [[E::Acc::default(); GROUP]; 2]);
        let (count, counts) = (0.0, Counts::new());
        Self { simd, plan, x, mask, pivot, sum, squares, some, count, counts }
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
                } else if !guessed && self.count > 0.0 {
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
        let Self { simd, plan, mask, pivot, .. } = *self;
        let x = &self.x[clipped(row, cols.clone(), plan.width, plan.len())];
        let to = (&mut self.sum, &mut self.squares);
        match mask.keep(plan, row, &cols, &mut self.counts) {
            Keep::None => {}
            Keep::All => {
                sums::distances(simd, x, pivot, to);
                self.count += x.len() as f64;
            }
            Keep::Some(counts) => {
                masked::distances(simd, x, counts, pivot, self.some.each_mut());
                self.count += number(counts) as f64;
            }
        }
        x.len()
    }
    /// What has been added since the last time.
    fn close(&mut self, base: f64) -> Moments {
        let [sum, squares] = std::mem::take(&mut self.some);
        let [some, some_squares] =
            [sum, squares].map(|lanes| lanes.iter().map(|v| v.to_f64()).sum::<f64>());
        let sum = std::mem::replace(&mut self.sum, Lanes::new()).total() + some;
        let squares = std::mem::replace(&mut self.squares, Lanes::new()).total() + some_squares;
        let count = std::mem::take(&mut self.count);
        if count == 0.0 {
            return Moments { base, ..Moments::default() };
        }
        let squares = squares - sum * sum / count;
        let squares = if squares < 0.0 { 0.0 } else { squares }; // NaN stays
        let offset = (self.pivot.to_f64() - base) + sum / count;
        Moments { count, base, offset, squares }
    }
}

/// What the moments of a strip of columns are made with.
struct Strip<'a, E: Element> {
    simd: Simd,
    plan: &'a Plan,
    x: &'a [E],
    mask: &'a Masked<'a>,
    pivot: [E::Acc; BLOCK],
    sum: [E::Acc; BLOCK],
    squares: [E::Acc; BLOCK],
    count: [E::Acc; BLOCK],
    bases: [f64; BLOCK],
    /// Of rows that are taken together.
    counts: [Counts; TOGETHER],
}

/// The same for every column of a tile, rows of a strip at a time.
fn columns<E: Element>(
    strip: &mut Strip<'_, E>,
    tile: &Tile,
    [offsets, squares, totals]: [&mut [f64]; 3],
) {
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
                let Strip { simd, pivot, sum, count, .. } = &mut *strip;
                guess_columns(*simd, &mut pivot[..cols.len()], sum, count);
            }
            strip.distances(tile, rows, &cols);
            let Strip { simd, pivot, sum, squares: square, count, bases, .. } = &mut *strip;
            let from = Columns { sums: sum, squares: square, bases };
            let to = [&mut *offsets, &mut *squares, &mut *totals];
            merge_columns(*simd, count, &from, pivot, to);
        }
    }
}

impl<'a, E: Element> Strip<'a, E> {
    fn new(simd: Simd, plan: &'a Plan, x: &'a [E], mask: &'a Masked<'a>) -> Self {
        let zeros = [E::Acc::default(); BLOCK];
        Self {
            simd,
            plan,
            x,
            mask,
            pivot: zeros,
            sum: zeros,
            squares: zeros,
            count: zeros,
            bases: [0.0; BLOCK],
            counts: [(); TOGETHER].map(|()| Counts::new()),
        }
    }
    /// Turns to other columns.
    fn start(&mut self, cols: &Range<usize>) {
        let channels = self.plan.channels_in(cols);
        let mut own = [0.0; BLOCK];
        let own = &mut own[..channels.len()];
        own.iter_mut().zip(channels).for_each(|(own, c)| *own = self.mask.base(c));
        self.plan.expand(cols, own, &mut self.bases);
        let pivots = self.pivot.iter_mut().zip(&self.bases);
        pivots.for_each(|(pivot, base)| *pivot = E::Acc::from_f64(*base));
    }
    /// Sums and squares of distances from the pivots, and numbers of values, of some rows.
    fn distances(&mut self, tile: &Tile, rows: Range<usize>, cols: &Range<usize>) {
        let n = cols.len();
        let Self { simd, plan, x, mask, .. } = *self;
        for sums in [&mut self.sum, &mut self.squares, &mut self.count] {
            sums[..n].fill(E::Acc::default());
        }
        let (mut whole, mut whole_count) = (Rows::new(), 0.0);
        for first in rows.clone().step_by(TOGETHER) {
            let (mut some, mut several) = ([(&x[..0], &ONES[..0]); TOGETHER], 0);
            let to = [&mut self.sum, &mut self.squares, &mut self.count];
            let pivot = &self.pivot;
            for (row, counts) in (first..rows.end).zip(&mut self.counts) {
                let x = &x[clipped(row, cols.clone(), plan.width, x.len())];
                let one = match mask.keep(plan, row, cols, counts) {
                    Keep::None => continue,
                    Keep::All if x.len() == n => {
                        let distance = tile.ahead(row, cols, plan.width);
                        whole.push([x], [x.as_ptr().wrapping_offset(distance)]);
                        whole_count += 1.0;
                        continue;
                    }
                    Keep::All => (x, &ONES[..x.len()]),
                    Keep::Some(counts) => (x, counts),
                };
                some[several] = one;
                several += 1;
            }
            let [sum, squares, count] = to;
            // A shorter last row goes alone.
            if several == TOGETHER && some.iter().all(|(x, _)| x.len() == n) {
                masked::column_distances(simd, some, pivot, [sum, squares, count]);
            } else {
                for one in &some[..several] {
                    let to = [&mut *sum, &mut *squares, &mut *count];
                    masked::column_distances(simd, [*one], pivot, to);
                }
            }
        }
        if whole.len() > 0 {
            let to = (&mut self.sum, &mut self.squares);
            sums::column_distances(simd, &whole, &self.pivot, to);
            let more = E::Acc::from_f64(whole_count);
            self.count[..n].iter_mut().for_each(|count| *count += more);
        }
    }
}

/// Merges the slots of all tiles of `block` into `merged`, mean and squares by the mask's own count: see
/// [`Merged`].
pub(super) fn merge<E: Element>(
    (shape, plan): (&Shape, &Plan),
    block: usize,
    (x, mask, eps): (&[E], &Masked<'_>, f64),
    slots: &[f64],
    merged: &mut [f64],
) {
    let channels = plan.channels(block);
    let (bases, rest) = merged.split_at_mut(merged.len() / Merged::FIELDS);
    let (offsets, rest) = rest.split_at_mut(bases.len());
    let (squares, invstds) = rest.split_at_mut(bases.len());
    let (has_small_eps, small_var) = small_squares::<E::Acc>(eps);
    for (k, c) in channels.enumerate() {
        let (base, count) = (mask.base(c), mask.count(c));
        if count == 0.0 {
            let value = if mask.all_masked == AllMasked::Nan { f64::NAN } else { 0.0 };
            (bases[k], offsets[k], squares[k]) = (0.0, value, value);
            invstds[k] = 1.0 / (value + eps).sqrt();
            continue;
        }
        let mut all = Moments { base, ..Moments::default() };
        for slot in slots.chunks(plan.slot_len() / 2 * 3) {
            let (offset, rest) = slot.split_at(slot.len() / 3);
            let (square, total) = rest.split_at(offset.len());
            let mut merge = |j: usize| {
                let (offset, squares, count) = (offset[j], square[j], total[j]);
                all.append(Moments { count, base, offset, squares });
            };
            if plan.long_runs {
                merge(k);
                continue;
            }
            // Where rows are joined a channel's columns come more than once.
            for row in (0..offset.len()).step_by(plan.row()) {
                let start = row + k * plan.inner();
                (start..(start + plan.inner()).min(offset.len())).for_each(&mut merge);
            }
        }
        let mut std = None;
        let is_small = has_small_eps && all.squares < count * small_var;
        if is_small || !all.squares.is_finite() {
            let from = if is_small { base } else { 0.0 };
            let values = || shape.channel(c).filter(|&i| mask.keeps(i));
            let values = || values().map(|i| x[i].widen().to_f64());
            let (wide, of_all) = wide_moments_of(values, count, from);
            (all, std) = (wide, Some(of_all));
        }
        let n = mask.divisor(c);
        let less = all.mean() * mask.share(c);
        let more = if less == 0.0 { 0.0 } else { count * less * less };
        (bases[k], offsets[k], squares[k]) = (all.base, all.offset - less, all.squares + more);
        invstds[k] = match std {
            Some(std) => {
                let std = std * (count / n).sqrt();
                1.0 / f64::hypot(f64::hypot(std, less * (count / n).sqrt()), eps.sqrt())
            }
            None => 1.0 / (squares[k] / n + eps).sqrt(),
        };
    }
}

/// Moves the running statistics, if there are any, by what [`merge`] has written.
pub(super) fn update<P: Real>(
    running: Option<&mut Running<'_, Host, P>>,
    channels: Range<usize>,
    merged: &Merged<'_>,
    mask: &Masked<'_>,
    one_value: OneValue,
) {
    let Some(running) = running else { return };
    for (k, c) in channels.enumerate() {
        let (mean, squares) = (merged.base[k] + merged.offset[k], merged.squares[k]);
        let rules = (one_value, mask.all_masked);
        let var_over = |over: f64| squares / mask.over(over);
        running.update_masked(c, mask.count(c), mean, var_over, rules);
    }
}
