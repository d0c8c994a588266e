//! Both passes where no activation is curved: loops read the tensors and write the results.
use super::super::kernels::double_backward::{FIELDS, FORWARD, PLAIN};
use super::super::kernels::double_backward_plain::{self as kernel, COLUMNS, From, Many};
use super::super::kernels::double_backward_plain::{OfChannel, OfColumns, Passing, Runs};
use super::super::kernels::sums::{STRIP_ROWS, add_widened};
use super::super::plan::Tile;
use super::super::policy::AHEAD;
use super::super::simd::{GROUP, Scratch, Store};
use super::super::tiles::{Writer, clipped};
use super::coefs::Table;
use super::{SEGMENT, Tiles, Work};
use crate::{Element, Real};
use std::ops::Range;

/// Rows whose columns are summed at a time: sums in memory cost as much as the arithmetic of one row.
const TOGETHER: usize = 4;
/// Channels whose runs are taken at a time, as their sums and coefficients stay in the first cache.
const CHANNELS: usize = 32;

/// What a task reads in place of what is absent.
struct Zeros<E>(Vec<E>);

impl<E: Element> Zeros<E> {
    /// In place of columns of a tile.
    fn new(is_absent: bool, tile: &Tile) -> Self {
        Self(vec![E::default(); if is_absent { tile.cols.len().min(SEGMENT) } else { 0 }])
    }
    fn or<'s>(&'s self, tensor: Option<&'s [E]>, range: Range<usize>) -> &'s [E] {
        match tensor {
            Some(tensor) => &tensor[range],
            None => &self.0[..range.len()],
        }
    }
}

/// Columns of a row that hold the same part of the runs of some channels.
struct Piece {
    cols: Range<usize>,
    channels: Range<usize>,
    /// Of each run.
    len: usize,
}

impl<E: Element> Work<'_, E> {
    fn passing(&self) -> Passing<E::Acc> {
        self.read.passing(self.gate)
    }
    /// What the loops read of some columns of a row.
    fn from<'s>(&'s self, row: usize, cols: &Range<usize>, zeros: &'s Zeros<E>) -> From<'s, E> {
        let read = &self.read;
        let range = clipped(row, cols.clone(), read.plan.width, read.plan.len());
        let (bits, first_bit) = match read.mask {
            Some(mask) => {
                let (byte, bit) = read.plan.mask_bit(row, cols.start);
                (&mask[byte..], bit)
            }
            None => (&[][..], 0),
        };
        let (x, grad_y) = (&read.x[range.clone()], &read.grad_y[range.clone()]);
        From { x, grad_y, v: zeros.or(read.v_x, range), bits, first_bit }
    }
    /// The pieces of a tile's rows, of runs, in the order of memory: of some channels' runs, or of a part of one.
    fn pieces(&self, tile: &Tile) -> impl Iterator<Item = Piece> + use<E> {
        let (inner, Range { start, end }) = (self.read.plan.inner(), tile.cols.clone());
        let run = inner.min(end - start);
        let together = (SEGMENT / run).clamp(1, CHANNELS);
        let len = run.min(SEGMENT);
        (start..end).step_by(run * together).flat_map(move |first| {
            let last = end.min(first + run * together);
            // Of several runs all at once.
            let step = if together > 1 { run * together } else { len };
            (first..last).step_by(step).map(move |at| {
                let cols = at..last.min(at + step);
                let len = if together > 1 { run } else { cols.len() };
                Piece { channels: at / inner..(cols.end - 1) / inner + 1, len, cols }
            })
        })
    }

    /// Bits of a run of so many values, up to the next one's: long ones start at whole bytes.
    fn bits_of_run(&self, len: usize) -> usize {
        if self.read.plan.long_runs { len.next_multiple_of(8) } else { len }
    }

    /// The first pass over runs: the sums of a tile's channels. Where slots are by column, they stand in the first
    /// one of each.
    pub(super) fn sum_plain_runs(
        &self,
        tile: &Tile,
        table: &Table<'_, E::Acc>,
        slot: &mut [f64],
        part: usize,
    ) {
        let (read, passing) = (&self.read, self.passing());
        let zeros = Zeros::new(read.v_x.is_none(), tile);
        let (plan, none) = (read.plan, [[E::Acc::default(); GROUP]; PLAIN]);
        let mut lanes: [OfChannel<E::Acc>; CHANNELS] = [none; CHANNELS];
        for Piece { cols, channels, len } in self.pieces(tile) {
            let coefs = table.several::<CHANNELS>(channels.clone());
            let bits = self.bits_of_run(len);
            let runs = Runs { inner: len, bits, coefs: &coefs[..channels.len()] };
            let lanes = &mut lanes[..channels.len()];
            let place = |k: usize| match plan.long_runs {
                true => (cols.start - tile.cols.start) / plan.inner().min(tile.cols.len()) + k,
                false => cols.start - tile.cols.start + k * len,
            };
            let mut flush = |lanes: &mut [OfChannel<E::Acc>]| {
                for (k, sums) in lanes.iter_mut().enumerate() {
                    for (sum, lanes) in std::mem::replace(sums, none).iter().enumerate() {
                        let total: f64 = lanes.iter().map(|v| v.to_f64()).sum();
                        slot[sum * part + place(k)] += total;
                    }
                }
            };
            let mut count = 0;
            for row in tile.rows.clone() {
                if count + len > SEGMENT {
                    flush(lanes);
                    count = 0;
                }
                count += len;
                let from = self.from(row, &cols, &zeros);
                kernel::add_runs(read.simd, from, runs, &passing, lanes);
            }
            flush(lanes);
        }
    }
    /// The same by columns.
    pub(super) fn sum_plain_columns(
        &self,
        tile: &Tile,
        table: &Table<'_, E::Acc>,
        slot: &mut [f64],
        part: usize,
    ) {
        let (read, passing) = (&self.read, self.passing());
        let zeros = Zeros::new(read.v_x.is_none(), tile);
        let (simd, plan) = (read.simd, read.plan);
        let full = tile.rows.end - usize::from(plan.has_short_row(tile));
        let none = [E::Acc::default(); COLUMNS];
        let (mut sums, mut fields) = ([none; PLAIN], [none; FIELDS]);
        if let Some(period) = self.period() {
            return self.sum_joined(tile, table, slot, period);
        }
        for start in tile.cols.clone().step_by(COLUMNS) {
            let cols = start..(start + COLUMNS).min(tile.cols.end);
            table.expand(plan, &cols, FORWARD, &mut fields);
            let coefs = Many(&fields);
            let from =
                |row: usize| (self.from(row, &cols, &zeros), tile.ahead(row, &cols, plan.width));
            for first in tile.rows.clone().step_by(STRIP_ROWS) {
                let end = (first + STRIP_ROWS).min(tile.rows.end);
                let mut row = first;
                // A shorter last row goes alone.
                while row + TOGETHER <= end.min(full) {
                    let rows = [from(row), from(row + 1), from(row + 2), from(row + 3)];
                    kernel::add_columns::<E, TOGETHER>(simd, &rows, coefs, &passing, &mut sums);
                    row += TOGETHER;
                }
                for row in row..end {
                    kernel::add_columns(simd, &[from(row)], coefs, &passing, &mut sums);
                }
                for (k, sums) in sums.iter_mut().enumerate() {
                    let to = &mut slot[k * part + start - tile.cols.start..][..cols.len()];
                    add_widened(simd, to, &sums[..cols.len()]);
                    sums[..cols.len()].fill(E::Acc::default());
                }
            }
        }
    }

    /// Columns after which coefficients repeat, as many as are taken at a time, where rows are joined.
    fn period(&self) -> Option<usize> {
        let plan = self.read.plan;
        let row = plan.row();
        (plan.is_joined() && row <= COLUMNS).then(|| COLUMNS.min(plan.width) / row * row)
    }
    /// The sums of columns of joined rows: what repeats is added to the first ones, in the order of memory.
    fn sum_joined(&self, tile: &Tile, table: &Table<'_, E::Acc>, slot: &mut [f64], period: usize) {
        let (read, passing) = (&self.read, self.passing());
        let zeros = Zeros::new(read.v_x.is_none(), tile);
        let (simd, plan) = (read.simd, read.plan);
        let part = plan.slot_len() / 2;
        let none = [E::Acc::default(); COLUMNS];
        let (mut sums, mut fields) = ([none; PLAIN], [none; FIELDS]);
        table.expand(plan, &(0..period), FORWARD, &mut fields);
        let ahead = (AHEAD * period).cast_signed();
        let pieces = tile.rows.clone().flat_map(|row| {
            tile.cols.clone().step_by(period).map(move |at| (row, at..(at + period)))
        });
        let pieces = pieces
            .map(|(row, cols)| self.from(row, &(cols.start..cols.end.min(tile.cols.end)), &zeros))
            .filter(|from| !from.x.is_empty());
        let mut flush = |sums: &mut [OfColumns<E::Acc>; PLAIN]| {
            for (k, sums) in sums.iter_mut().enumerate() {
                add_widened(simd, &mut slot[k * part..][..period], &sums[..period]);
                sums[..period].fill(E::Acc::default());
            }
        };
        let mut waiting = [(From::NONE, ahead); TOGETHER];
        let (mut some, mut count) = (0, 0);
        for from in pieces {
            count += 1;
            if from.x.len() < period {
                kernel::add_columns(simd, &[(from, ahead)], Many(&fields), &passing, &mut sums);
                continue;
            }
            waiting[some].0 = from;
            some += 1;
            if some == TOGETHER {
                kernel::add_columns(simd, &waiting, Many(&fields), &passing, &mut sums);
                some = 0;
                if count >= STRIP_ROWS {
                    flush(&mut sums);
                    count = 0;
                }
            }
        }
        for of in &waiting[..some] {
            let one = std::array::from_ref(of);
            kernel::add_columns(simd, one, Many(&fields), &passing, &mut sums);
        }
        flush(&mut sums);
    }

    /// The second pass.
    pub(super) fn write_plain(&self, tile: &Tile, to: Tiles<'_, E>, table: &Table<'_, E::Acc>) {
        let plan = self.read.plan;
        let [grad_y, x, residual] =
            [to.0, to.1, to.2].map(|to| to.map(|to| Writer::new(plan, to, self.tensors, false)));
        let passing = self.passing();
        let is_absent = self.read.v_x.is_none() || self.read.v_residual.is_none();
        let (zeros, unread) = (Zeros::new(is_absent, tile), [Scratch::new(), Scratch::new()]);
        let mut step = Write { work: self, passing, zeros, grad_y, x, residual, unread };
        if plan.has_runs() {
            for Piece { cols, channels, len } in self.pieces(tile) {
                let coefs = table.several::<CHANNELS>(channels.clone());
                let bits = self.bits_of_run(len);
                let runs = Runs { inner: len, bits, coefs: &coefs[..channels.len()] };
                for row in tile.rows.clone() {
                    step.piece(row, cols.clone(), |to| to.write_runs(self.read.simd, runs));
                }
            }
            return;
        }
        let mut fields = [[E::Acc::default(); COLUMNS]; FIELDS];
        if let Some(period) = self.period() {
            table.expand(plan, &(0..period), FIELDS, &mut fields);
            for row in tile.rows.clone() {
                let coefs = Many(&fields);
                step.piece(row, tile.cols.clone(), |to| {
                    to.write_columns(self.read.simd, coefs, period);
                });
            }
            return;
        }
        for start in tile.cols.clone().step_by(COLUMNS) {
            let cols = start..(start + COLUMNS).min(tile.cols.end);
            table.expand(plan, &cols, FIELDS, &mut fields);
            for row in tile.rows.clone() {
                let coefs = Many(&fields);
                step.piece(row, cols.clone(), |to| {
                    to.write_columns(self.read.simd, coefs, COLUMNS);
                });
            }
        }
    }
}

/// How a task writes.
struct Write<'w, 'a, 'p, E: Element> {
    work: &'w Work<'a, E>,
    passing: Passing<E::Acc>,
    zeros: Zeros<E>,
    grad_y: Option<Writer<'p, E>>,
    x: Option<Writer<'p, E>>,
    residual: Option<Writer<'p, E>>,
    /// For a result that nobody asks for.
    unread: [Scratch<E, SEGMENT>; 2],
}

impl<E: Element> Write<'_, '_, '_, E> {
    /// Lets `write` write columns of a row.
    #[inline(always)]
    fn piece(
        &mut self,
        row: usize,
        cols: Range<usize>,
        write: impl FnOnce(kernel::Results<'_, E>),
    ) {
        let Self { work, passing, zeros, grad_y, x, residual, unread } = self;
        let (simd, plan) = (work.read.simd, work.read.plan);
        let from = work.from(row, &cols, zeros);
        let range = clipped(row, cols.clone(), plan.width, plan.len());
        let r = zeros.or(work.read.v_residual, range);
        if let Some(residual) = residual {
            // Nothing is curved.
            residual.write(simd, row, cols.clone(), true, |_, to| to.fill(E::default()));
        }
        let [no_y, no_x] = unread;
        let n = from.x.len();
        let to_y = match grad_y {
            Some(to) => to.lines(simd, row, cols.clone()),
            None => (Store::to_cache(simd), no_y.values(n)),
        };
        let to_x = match x {
            Some(to) => to.lines(simd, row, cols),
            None => (Store::to_cache(simd), no_x.values(n)),
        };
        let (passing, batch) = (&*passing, work.batch);
        write(kernel::Results { from, r, passing, batch, to: [to_y, to_x] });
    }
}
