//! The first pass of the training forward: mean and variance of every channel.
//!
//! Values are read once, a segment at a time, as distances from a pivot: the mean of what came
//! before, and of a quarter of the first segment's own values. The distance of a pivot from the mean
//! counts as variance, too, for those values and in merging, so that the squares lose two bits at most
//! where they are taken from it. So the error does not grow with the mean, and a constant channel
//! has exactly its mean and variance 0. Segments, tiles and columns are merged by Chan's formula in
//! f64, as distances from the channel's first value.
use super::Cpu;
use super::few_runs;
use super::kernels::columns::{Rows, column_distances};
use super::kernels::convert::{finite_f64, widen};
use super::kernels::moments::{self as merging, Columns};
use super::kernels::narrow::{self, Narrow};
use super::kernels::sums::{self, Lanes, STRIP_ROWS};
use super::masked_stats;
use super::moments::{self, Merged, Moments, base};
use super::plan::{Plan, Tile};
use super::policy::AHEAD;
use super::ranges::ChannelRanges;
use super::simd::{BLOCK, Simd};
use super::slots::{Sums, scratch_len};
use super::table::split_mut;
use super::tiles::by_range::{ByRange, Channels, for_each_range};
use super::tiles::{self, Slots, clipped, for_each_tile};
use crate::engine::Stats;
use crate::{Element, Host, Real, Result, Shape};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// Values of a segment of long runs. A segment of short runs is a [`BLOCK`] of columns of
/// [`STRIP_ROWS`] rows.
const SEGMENT: usize = 4096;
/// Values whose mean is the first pivot.
const FIRST_VALUES: usize = SEGMENT / 4;
const FIRST_ROWS: usize = STRIP_ROWS / 4;

/// A record of every channel's moments.
pub(super) fn stats<E: Element>(
    cpu: &Cpu,
    shape: &Shape,
    mut args: Stats<'_, Host, E>,
) -> Result<()> {
    args.check(&Host, shape)?;
    let simd = cpu.simd()?;
    let (x, record, channels) = (args.x, args.record, shape.channels());
    if let Some(mask) = &args.mask {
        return masked_stats::record(cpu, shape, x, mask, record);
    }
    record[3 * channels] = shape.per_channel() as f64;
    if shape.is_empty() {
        record[..3 * channels].fill(0.0);
        return Ok(());
    }
    let mut fields: [_; 3] = split_mut::<_, 3>(record, channels).map(Channels::new);
    let plan = &Plan::new(shape, size_of::<E>(), 1);
    let reduce = |tile: &Tile, slot: &mut [f64]| moments(simd, plan, tile, x, slot);
    by_range(cpu, plan, reduce, &mut fields, |summed, sums, work, mut record| {
        moments::merge(simd, (shape, summed), sums, (x, 0.0), work);
        let merged = Merged::new(work, shape);
        (0..merged.base.len()).for_each(|k| merged.get(k).write(&mut record, k));
    });
    Ok(())
}

/// Bases, offsets and sums of squares of a tensor's channels, of which some may have left the range of a type: see
/// [`Merged`]. By one thread, in the memory of a `strip`.
pub(super) fn of_part<E: Element>(
    (cpu, strip): (&Cpu, &mut Strip<E>),
    shape: &Shape,
    x: &[E],
    to: [&mut [f64]; 3],
) {
    let plan = &Plan::new(shape, size_of::<E>(), 1);
    let (simd, strip) = (strip.simd, &Mutex::new(strip));
    let reduce = |tile: &Tile, slot: &mut [f64]| {
        if plan.long_runs {
            return moments(simd, plan, tile, x, slot);
        }
        let mut strip = strip.lock().unwrap_or_else(PoisonError::into_inner);
        of_columns(&mut strip, plan, tile, x, slot.split_at_mut(slot.len() / 2));
    };
    by_range(cpu, plan, reduce, &mut to.map(Channels::new), |summed, sums, _, to| {
        moments::merge_sums(simd, summed, sums, x, to);
    });
}

/// Makes the sums of every range of channels, and hands them on: by which plan, with memory for [`Merged`] ones, and with
/// its part of `results`.
fn by_range<R: ByRange>(
    cpu: &Cpu,
    plan: &Plan,
    reduce: impl Fn(&Tile, &mut [f64]) + Sync,
    results: &mut R,
    merge: impl Fn(&Plan, Sums<'_>, &mut [f64], R::Part<'_>) + Sync,
) {
    let (summed, channels) = (&plan.narrow(), plan.all_channels());
    let (slot_len, each) = (summed.slot_len(), Merged::FIELDS + scratch_len(summed, 2));
    let slots_len = plan.tiles() * slot_len;
    cpu.with_workspace(slots_len + channels * each, |workspace| {
        let ranges = ChannelRanges::new(summed, workspace.len());
        let (slots, work) = workspace.split_at_mut(slots_len);
        for_each_tile(plan, false, &mut Slots::new(slots, slot_len), |tile, slot| {
            reduce(&tile, slot);
        });
        let mut parts = (results, Channels::several(work, each));
        for_each_range(&ranges, &mut parts, |i, (results, work)| {
            let merged_len = ranges.channels(i).len() * Merged::FIELDS;
            let (merged, scratch) = work.split_at_mut(merged_len);
            let sums = Sums::of_range(&ranges, i, (slots, slot_len), scratch);
            merge(summed, sums, merged, results);
        });
    });
}

/// Offsets of the mean (first half of `slot`) and sums of squares (second half) of a tile's
/// channels, or of its columns where runs are short.
pub(super) fn moments<E: Element>(simd: Simd, plan: &Plan, tile: &Tile, x: &[E], slot: &mut [f64]) {
    let half = slot.len() / 2;
    let (offsets, squares) = slot.split_at_mut(half);
    if plan.by_run && !plan.long_runs {
        return few_runs::moments(simd, plan, tile, x, (offsets, squares));
    }
    if !plan.long_runs {
        return of_columns(&mut Strip::new(simd), plan, tile, x, (offsets, squares));
    }
    let run = plan.inner().min(tile.cols.len());
    for (k, start) in tile.cols.clone().step_by(run).enumerate() {
        let at = |row: usize| row * plan.width + start;
        let base = base(plan, x, start / plan.inner());
        let rows = tile.rows.len();
        let run_of = |r: usize| &x[at(tile.rows.start + r)..][..run];
        // The same run of the next row, far away, where nothing would have been fetched before the loop gets
        // there (a fifth of a forward); of the last row, the next run of the first.
        let ahead = |r: usize| match r + 1 < rows {
            true => run_of(r).as_ptr().wrapping_add(plan.width),
            false => run_of(0).as_ptr().wrapping_add(run),
        };
        let m = channel(simd, base, rows, run_of, ahead);
        (offsets[k], squares[k]) = (m.offset, m.squares);
    }
}

/// The same of short runs, by columns.
fn of_columns<E: Element>(
    strip: &mut Strip<E>,
    plan: &Plan,
    tile: &Tile,
    x: &[E],
    to: OfColumns<'_>,
) {
    let narrow = plan.narrow().width;
    match narrow < plan.width {
        true => joined(strip, plan, tile, x, to, narrow),
        false => columns(strip, plan, tile, x, to),
    }
}

/// Moments of `runs` slices of equal length.
fn channel<'x, E: Element>(
    simd: Simd,
    base: f64,
    runs: usize,
    run: impl Fn(usize) -> &'x [E],
    ahead: impl Fn(usize) -> *const E,
) -> Moments {
    let len = run(0).len();
    let together = (SEGMENT / len).max(1);
    let first = run(0)[0].widen();
    let with_ahead = |r: usize| (run(r), ahead(r));
    let few = match len >= SEGMENT {
        true => segment(simd, base, first, 0..1, |_| (&run(0)[..FIRST_VALUES], run(0).as_ptr())),
        false => segment(simd, base, first, 0..together.min(runs).div_ceil(4), with_ahead),
    };
    let mut all = Moments { base, offset: few.offset, ..Moments::default() };
    let pivot = |all: &Moments| E::Acc::from_f64(all.mean());
    if len >= SEGMENT {
        for r in 0..runs {
            for part in run(r).chunks(SEGMENT) {
                all.append(segment(simd, base, pivot(&all), 0..1, |_| {
                    (part, part.as_ptr().wrapping_add(SEGMENT))
                }));
            }
        }
    } else {
        for first in (0..runs).step_by(together) {
            let some = first..runs.min(first + together);
            all.append(segment(simd, base, pivot(&all), some, with_ahead));
        }
    }
    all
}

fn segment<'x, E: Element>(
    simd: Simd,
    base: f64,
    pivot: E::Acc,
    runs: Range<usize>,
    run: impl Fn(usize) -> (&'x [E], *const E),
) -> Moments {
    let (mut sum, mut squares) = (Lanes::new(), Lanes::new());
    let count = (runs.len() * run(runs.start).0.len()) as f64;
    for r in runs {
        sums::distances(simd, run(r), pivot, (&mut sum, &mut squares));
    }
    let sum = sum.total();
    let squares = squares.total() - sum * sum / count;
    let squares = if squares < 0.0 { 0.0 } else { squares }; // NaN stays
    Moments { count, base, offset: (pivot.to_f64() - base) + sum / count, squares }
}

/// Offsets and sums of squares of columns.
pub(super) type OfColumns<'a> = (&'a mut [f64], &'a mut [f64]);

/// The same for every column of a tile, rows of a strip at a time.
fn columns<'x, E: Element>(
    strip: &mut Strip<E>,
    plan: &Plan,
    tile: &Tile,
    x: &'x [E],
    (offsets, squares): OfColumns<'_>,
) {
    let full = tile.rows.end - usize::from(plan.has_short_row(tile));
    let mut rows = Rows::new();
    for start in tile.cols.clone().step_by(BLOCK) {
        let cols = start..(start + BLOCK).min(tile.cols.end);
        let here = start - tile.cols.start..cols.end - tile.cols.start;
        let (offsets, squares) = (&mut offsets[here.clone()], &mut squares[here]);
        let is_near = strip.start(plan, &cols, x);
        let row = |row: usize, cols| &x[clipped(row, cols, plan.width, x.len())];
        let take = |rows: &mut Rows<'x, E, 1>, some: Range<usize>| {
            rows.clear();
            for r in some {
                let x = row(r, cols.clone());
                let distance = tile.ahead(r, &cols, plan.width);
                rows.push([x], [x.as_ptr().wrapping_offset(distance)]);
            }
        };
        for first in (tile.rows.start..full).step_by(STRIP_ROWS) {
            let end = (first + STRIP_ROWS).min(full);
            if first == tile.rows.start && !is_near {
                take(&mut rows, first..end.min(first + FIRST_ROWS));
                strip.guess(&rows);
            }
            take(&mut rows, first..end);
            strip.add(first - tile.rows.start, &rows, (offsets, squares));
        }
        if full < tile.rows.end {
            // The shorter last row has one more value for some of the columns.
            take(&mut rows, full..tile.rows.end);
            let n = rows.columns();
            if full == tile.rows.start && !is_near {
                strip.guess(&rows);
            }
            let to = (&mut offsets[..n], &mut squares[..n]);
            strip.add(full - tile.rows.start, &rows, to);
        }
    }
}

/// The same of joined rows by their first `columns`, after which channels repeat: everything is read in the order of
/// memory.
fn joined<E: Element>(
    strip: &mut Strip<E>,
    plan: &Plan,
    tile: &Tile,
    x: &[E],
    (offsets, squares): OfColumns<'_>,
    columns: usize,
) {
    let is_near = strip.start(plan, &(0..columns), x);
    let x = &x[tiles::of_rows(&tile.rows, plan.width, x.len())];
    let narrow = |x| Narrow { tensors: [x], columns, ahead: AHEAD * plan.width };
    for (k, x) in x.chunks(STRIP_ROWS * columns).enumerate() {
        let n = x.len() - x.len() % columns;
        let (x, last) = x.split_at(n);
        let before = k * STRIP_ROWS;
        if n > 0 {
            if k == 0 && !is_near {
                strip.guess_narrow(narrow(&x[..n.min(FIRST_ROWS * columns)]));
            }
            strip.add_narrow(before, narrow(x), (&mut *offsets, &mut *squares));
        }
        // A shorter last row goes alone.
        if !last.is_empty() {
            let mut rows = Rows::new();
            rows.push([last], [std::ptr::null()]);
            if k == 0 && n == 0 && !is_near {
                strip.guess(&rows);
            }
            let to = (&mut offsets[..last.len()], &mut squares[..last.len()]);
            strip.add(before + n / columns, &rows, to);
        }
    }
}

/// What the moments of a strip of columns are made with.
pub(super) struct Strip<E: Element> {
    simd: Simd,
    pivot: [E::Acc; BLOCK],
    sum: [E::Acc; BLOCK],
    squares: [E::Acc; BLOCK],
    bases: [f64; BLOCK],
    own_bases: [f64; BLOCK],
    /// The columns it has turned to last, whose pivots are their means.
    near: Option<Range<usize>>,
}

impl<E: Element> Strip<E> {
    pub fn new(simd: Simd) -> Self {
        let zeros = [E::Acc::default(); BLOCK];
        let (bases, own_bases) = ([0.0; BLOCK], [0.0; BLOCK]);
        Self { simd, pivot: zeros, sum: zeros, squares: zeros, bases, own_bases, near: None }
    }
    /// Turns to other columns, or to another part of the same ones: whether the pivots are the means of the part before it
    /// then. In squares a part's mean is four times as far from the last one's, on average, as from that of all, or less:
    /// here, too, two bits are lost at most.
    fn start(&mut self, plan: &Plan, cols: &Range<usize>, x: &[E]) -> bool {
        let channels = plan.channels_in(cols);
        let own = &mut self.own_bases[..channels.len()];
        finite_f64(self.simd, &x[channels.start * plan.inner()..], plan.inner(), own);
        plan.expand(cols, &self.own_bases, &mut self.bases);
        self.near.replace(cols.clone()).as_ref() == Some(cols)
    }
    /// The same; means are counted from what is given for every channel.
    pub fn start_from(&mut self, plan: &Plan, cols: &Range<usize>, base: impl Fn(usize) -> f64) {
        let channels = plan.channels_in(cols);
        self.own_bases.iter_mut().zip(channels).for_each(|(own, c)| *own = base(c));
        plan.expand(cols, &self.own_bases, &mut self.bases);
    }
    /// Sets the pivots to the mean of some rows.
    pub fn guess(&mut self, few: &Rows<'_, E, 1>) {
        widen(self.simd, few.first()[0], &mut self.pivot[..few.columns()]);
        self.distances(few);
        self.guessed(few.columns(), few.len());
    }
    fn guess_narrow(&mut self, few: Narrow<'_, E, 1>) {
        let Narrow { tensors: [x], columns, .. } = few;
        widen(self.simd, &x[..columns], &mut self.pivot[..columns]);
        self.narrow_distances(few);
        self.guessed(columns, x.len() / columns);
    }
    /// Adds to the pivots of `n` columns what the sums over some rows say.
    fn guessed(&mut self, n: usize, rows: usize) {
        let each = E::Acc::from_f64(1.0 / rows as f64);
        merging::add_share(self.simd, &mut self.pivot[..n], &self.sum[..n], each);
    }
    /// Merges rows into columns of which `before` rows have been merged.
    pub fn add(&mut self, before: usize, rows: &Rows<'_, E, 1>, to: OfColumns<'_>) {
        self.distances(rows);
        self.merge(before, rows.len(), to);
    }
    fn add_narrow(&mut self, before: usize, rows: Narrow<'_, E, 1>, to: OfColumns<'_>) {
        self.narrow_distances(rows);
        self.merge(before, rows.tensors[0].len() / rows.columns, to);
    }
    fn merge(&mut self, before: usize, count: usize, to: OfColumns<'_>) {
        let Self { simd, pivot, sum, squares, bases, .. } = self;
        let from = Columns { sums: sum, squares, bases };
        merging::merge_columns(*simd, before as f64, count as f64, &from, pivot, to);
    }
    /// Sums and squares of the rows' distances from the pivots.
    fn distances(&mut self, rows: &Rows<'_, E, 1>) {
        let to = (&mut self.sum, &mut self.squares);
        column_distances(self.simd, (rows, true), &self.pivot, to);
    }
    fn narrow_distances(&mut self, rows: Narrow<'_, E, 1>) {
        narrow::distances(self.simd, rows, &self.pivot, (&mut self.sum, &mut self.squares));
    }
}
