//! Both passes where no activation is curved: loops read the tensors and write the results.
use super::super::kernels::double_backward::{FIELDS, FORWARD, PLAIN};
use super::super::kernels::double_backward_plain::{self as kernel, COLUMNS, From, Many};
use super::super::kernels::double_backward_plain::{OfChannel, OfColumns, Passing, Runs, Through};
use super::super::kernels::sums::{STRIP_ROWS, add_widened};
use super::super::plan::Tile;
use super::super::policy::AHEAD;
use super::super::simd::{GROUP, Scratch, Store};
use super::super::tiles::{Writer, clipped};
use super::bytes::{Bytes, Piece};
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

impl<E: Element> Work<'_, E> {
    fn passing(&self) -> Passing<E::Acc> {
        self.read.passing(self.gate)
    }
    /// What the loops read of some columns of a row, beside the bytes of a mask.
    fn from<'s>(
        &'s self,
        row: usize,
        cols: &Range<usize>,
        zeros: &'s Zeros<E>,
        counts: &'s [u8],
    ) -> From<'s, E> {
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
        From { x, grad_y, v: zeros.or(read.v_x, range), bits, first_bit, counts }
    }
    /// All that they read of columns of a row, of [`COLUMNS`] at most.
    fn columns_from<'s>(
        &'s self,
        row: usize,
        cols: &Range<usize>,
        zeros: &'s Zeros<E>,
        bytes: &'s mut Bytes,
    ) -> From<'s, E> {
        let counts = bytes.of_columns((self.read.places, self.read.plan), row, cols);
        self.from(row, cols, zeros, counts)
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

    /// The columns of a tile, as many as are taken at a time, each some inside of a row: where rows are joined their
    /// channels repeat in between.
    fn strips(&self, tile: &Tile) -> impl Iterator<Item = Range<usize>> + use<E> {
        let (row, Range { start, end }) = (self.read.plan.row(), tile.cols.clone());
        let strip = move |at: usize| at..end.min(at + COLUMNS).min(at / row * row + row);
        let starts = std::iter::successors(Some(start), move |at| Some(strip(*at).end));
        starts.take_while(move |at| *at < end).map(strip)
    }
    /// The runs of a piece.
    fn runs<'c>(
        &self,
        Piece { cols, channels, len }: &Piece,
        coefs: &'c [[E::Acc; FIELDS]; CHANNELS],
    ) -> Runs<'c, E::Acc> {
        let (plan, inner) = (self.read.plan, *len);
        // Long ones start at whole bytes.
        let bits = if plan.long_runs { inner.next_multiple_of(8) } else { inner };
        let of_first = cols.start..cols.start + inner;
        let mask = self.read.places.filter(|mask| mask.of_each_run(plan, 0, &of_first).is_none());
        let counts = if mask.is_some() { inner } else { 0 };
        Runs { inner, bits, counts, coefs: &coefs[..channels.len()] }
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
        let (zeros, mut bytes) = (Zeros::new(read.v_x.is_none(), tile), Bytes::new());
        let (plan, none) = (read.plan, [[E::Acc::default(); GROUP]; PLAIN]);
        let mut lanes: [OfChannel<E::Acc>; CHANNELS] = [none; CHANNELS];
        for piece in self.pieces(tile) {
            let coefs = table.several::<CHANNELS>(piece.channels.clone());
            let runs = self.runs(&piece, &coefs);
            let lanes = &mut lanes[..piece.channels.len()];
            let Piece { ref cols, len, .. } = piece;
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
                let counts = bytes.of_runs((read.places, plan), row, &piece);
                let from = self.from(row, cols, &zeros, counts);
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
        let mut bytes: [_; TOGETHER] = std::array::from_fn(|_| Bytes::new());
        let (simd, plan) = (read.simd, read.plan);
        let full = tile.rows.end - usize::from(plan.has_short_row(tile));
        let none = [E::Acc::default(); COLUMNS];
        let (mut sums, mut fields) = ([none; PLAIN], [none; FIELDS]);
        if let Some(period) = self.period() {
            return self.sum_joined(tile, table, slot, period);
        }
        for cols in self.strips(tile) {
            table.expand(plan, &cols, FORWARD, &mut fields);
            let coefs = Many(&fields);
            let ahead = |row: usize| tile.ahead(row, &cols, plan.width);
            for first in tile.rows.clone().step_by(STRIP_ROWS) {
                let end = (first + STRIP_ROWS).min(tile.rows.end);
                let mut row = first;
                // A shorter last row goes alone.
                while row + TOGETHER <= end.min(full) {
                    let [a, b, c, d] = &mut bytes;
                    let rows = [(row, a), (row + 1, b), (row + 2, c), (row + 3, d)];
                    let rows = rows.map(|(row, bytes)| {
                        (self.columns_from(row, &cols, &zeros, bytes), ahead(row))
                    });
                    kernel::add_columns::<E, TOGETHER>(simd, &rows, coefs, &passing, &mut sums);
                    row += TOGETHER;
                }
                for row in row..end {
                    let from = self.columns_from(row, &cols, &zeros, &mut bytes[0]);
                    let rows = [(from, ahead(row))];
                    kernel::add_columns(simd, &rows, coefs, &passing, &mut sums);
                }
                for (k, sums) in sums.iter_mut().enumerate() {
                    let to = &mut slot[k * part + cols.start - tile.cols.start..][..cols.len()];
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
            let of_row = clipped(row, tile.cols.clone(), plan.width, plan.len()).len();
            let end = tile.cols.start + of_row;
            let starts = (tile.cols.start..end).step_by(period);
            starts.map(move |at| (row, at..end.min(at + period)))
        });
        let mut flush = |sums: &mut [OfColumns<E::Acc>; PLAIN]| {
            for (k, sums) in sums.iter_mut().enumerate() {
                add_widened(simd, &mut slot[k * part..][..period], &sums[..period]);
                sums[..period].fill(E::Acc::default());
            }
        };
        let mut bytes: [_; TOGETHER] = std::array::from_fn(|_| Bytes::new());
        let mut waiting: [_; TOGETHER] = std::array::from_fn(|_| (0, 0..0));
        let (mut some, mut count) = (0, 0);
        for (row, cols) in pieces {
            count += 1;
            if cols.len() < period {
                let from = self.columns_from(row, &cols, &zeros, &mut bytes[0]);
                kernel::add_columns(simd, &[(from, ahead)], Many(&fields), &passing, &mut sums);
                continue;
            }
            waiting[some] = (row, cols);
            some += 1;
            if some == TOGETHER {
                let [a, b, c, d] = &mut bytes;
                let [of_a, of_b, of_c, of_d] = &waiting;
                let rows = [(of_a, a), (of_b, b), (of_c, c), (of_d, d)];
                let rows = rows.map(|((row, cols), bytes)| {
                    (self.columns_from(*row, cols, &zeros, bytes), ahead)
                });
                kernel::add_columns::<E, TOGETHER>(simd, &rows, Many(&fields), &passing, &mut sums);
                some = 0;
                if count >= STRIP_ROWS {
                    flush(&mut sums);
                    count = 0;
                }
            }
        }
        for (row, cols) in &waiting[..some] {
            let from = self.columns_from(*row, cols, &zeros, &mut bytes[0]);
            kernel::add_columns(simd, &[(from, ahead)], Many(&fields), &passing, &mut sums);
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
        // Through constants it matters to nothing what counts.
        let (mask, mut bytes) = (self.read.places.filter(|_| self.batch), Bytes::new());
        if plan.has_runs() {
            for piece in self.pieces(tile) {
                let coefs = table.several::<CHANNELS>(piece.channels.clone());
                let runs = self.runs(&piece, &coefs);
                for row in tile.rows.clone() {
                    let counts = bytes.of_runs((mask, plan), row, &piece);
                    let cols = piece.cols.clone();
                    step.piece(row, cols, counts, |to| to.write_runs(self.read.simd, runs));
                }
            }
            return;
        }
        let mut fields = [[E::Acc::default(); COLUMNS]; FIELDS];
        if let Some(period) = self.period() {
            table.expand(plan, &(0..period), FIELDS, &mut fields);
            let coefs = Many(&fields);
            // All of a row, or as much as bytes are brought together of.
            let most = if mask.is_some() { period } else { tile.cols.len() };
            for row in tile.rows.clone() {
                for start in tile.cols.clone().step_by(most) {
                    let cols = start..(start + most).min(tile.cols.end);
                    let counts = bytes.of_columns((mask, plan), row, &cols);
                    step.piece(row, cols, counts, |to| {
                        to.write_columns(self.read.simd, coefs, period);
                    });
                }
            }
            return;
        }
        for cols in self.strips(tile) {
            table.expand(plan, &cols, FIELDS, &mut fields);
            for row in tile.rows.clone() {
                let (coefs, counts) = (Many(&fields), bytes.of_columns((mask, plan), row, &cols));
                step.piece(row, cols.clone(), counts, |to| {
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
    /// Lets `write` write columns of a row, by the bytes of a mask where gradients flow through its statistics.
    #[inline(always)]
    fn piece(
        &mut self,
        row: usize,
        cols: Range<usize>,
        counts: &[u8],
        write: impl FnOnce(kernel::Results<'_, E>),
    ) {
        let Self { work, passing, zeros, grad_y, x, residual, unread } = self;
        let (simd, plan) = (work.read.simd, work.read.plan);
        let from = work.from(row, &cols, zeros, counts);
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
        let through = match (work.batch, work.read.places) {
            (false, _) => Through::Constants,
            (true, None) => Through::All,
            (true, Some(_)) => Through::Counted,
        };
        write(kernel::Results { from, r, passing, through, to: [to_y, to_x] });
    }
}
