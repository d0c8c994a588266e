//! How a tensor is cut into tasks: a pure function of shape and element size.
//!
//! Never of the number of threads: a task's sums are added in an order of its own, so the same
//! tasks give the same bits on any machine.
use super::policy::{
    AHEAD, CACHED_BYTES, CLOSE_BYTES, ENOUGH_TASKS, FEW_ROWS, HALF_PAGE, LARGE_APART, LARGE_BYTES,
    LONG_ROW, LONG_RUN, OF_ROWS, PAGE, PART_ROW, RUN, SHORTER_RUN, SMALL, SUMMED_COLUMNS,
    SUMMED_ROWS, SUMMED_RUN, TASK, WHOLE_ROW,
};
use super::simd::{BLOCK, GROUP};
use crate::Shape;
use std::ops::Range;

/// Memory as rows of equal width, the last one possibly shorter, cut into tiles.
///
/// With long runs (NCHW) a row is one index of the outer axes, and a channel is a range of
/// columns. With short runs (NHWC, N x C) a row joins enough of the outer axes to be long, every
/// column belongs to one channel, and several columns may belong to the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Plan {
    shape: Shape,
    /// Columns of a row.
    pub width: usize,
    pub rows: usize,
    /// Whether a channel's columns are one long run.
    pub long_runs: bool,
    /// Whether sums, and so slots, are by channel, run by run, not by column: of long runs always.
    pub by_run: bool,
    /// Columns of a block: whole channels. The last block may have fewer.
    pub block: usize,
    /// Columns of a piece of a block; less than the block only where it is one channel's run.
    piece: usize,
    /// Rows of a tile.
    tile_rows: usize,
}

/// One task's part of the memory: some rows of some columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tile {
    pub index: usize,
    pub block: usize,
    pub rows: Range<usize>,
    pub cols: Range<usize>,
}

impl Tile {
    /// Number of elements, with those that a shorter last row lacks.
    pub fn len(&self) -> usize {
        self.rows.len() * self.cols.len()
    }
    /// How many elements later lies what a loop over strips of columns reads [`AHEAD`] rows later than
    /// `cols` of `row`: the next columns, where the rows end. It may be behind the end of a tensor.
    pub fn ahead(&self, row: usize, cols: &Range<usize>, width: usize) -> isize {
        let later = row + AHEAD;
        if later < self.rows.end {
            return (AHEAD * width).cast_signed();
        }
        let from_start = (later - self.rows.len()).min(self.rows.end - 1);
        (from_start * width + cols.len()).wrapping_sub(row * width).cast_signed()
    }
}

impl Plan {
    /// For an operation that reads `tensors` tensors of elements of `size` bytes twice.
    pub fn new(shape: &Shape, size: usize, tensors: usize) -> Self {
        let inner = shape.inner();
        let bytes = |elements: usize| elements.saturating_mul(size * tensors);
        let all = Self::uncut(shape);
        let Self { rows, width, .. } = all;
        let enough_tasks = (shape.len() / TASK).clamp(1, ENOUGH_TASKS);
        if all.is_small() {
            return all;
        }
        if all.long_runs {
            let channel = rows * inner;
            if bytes(channel) <= CACHED_BYTES && shape.channels() >= enough_tasks {
                // Neighbouring channels share cache lines: group them, as far as tasks remain.
                let most = shape.channels().div_ceil(enough_tasks);
                let group = (TASK / channel.max(1)).clamp(1, most);
                return all.cut(group * inner, group * inner, rows);
            }
            return all.cut(inner, TASK, TASK / inner.min(TASK));
        }
        let unit = all.unit();
        for (most, least) in [(CLOSE_BYTES, HALF_PAGE), (CACHED_BYTES, PAGE)] {
            let fits = most / (rows * size * tensors);
            let block = fits.min(width / enough_tasks) / unit * unit;
            if block > 0 && block * size >= least {
                return all.cut(block, block, rows);
            }
        }
        let block = all.part();
        let summed_rows = SUMMED_ROWS.min(rows.div_ceil(enough_tasks));
        all.cut(block, block, (TASK / block).max(summed_rows).max(rows.div_ceil(100)))
    }
    /// For an operation that reads every tensor once: tiles of neighbouring memory.
    pub fn once(shape: &Shape) -> Self {
        let all = Self::uncut(shape);
        if all.is_small() {
            return all;
        }
        // Of short runs as many as a task takes at all: several rows of fewer take a fifth longer.
        let block = match all.has_runs() && !all.long_runs {
            true => ((TASK / all.unit()).max(1) * all.unit()).min(all.width),
            false => all.part(),
        };
        let piece = if block == all.inner() { TASK } else { block };
        all.cut(block, piece, TASK / block.min(TASK))
    }
    /// The same tiles by shorter rows, where several are joined: as few columns as sums are kept of.
    pub fn narrow(&self) -> Self {
        let columns = match self.is_joined() {
            true => summed_columns(self.row()).filter(|c| self.width.is_multiple_of(*c)),
            false => None,
        };
        let Some(columns) = columns else { return *self };
        Self {
            width: columns,
            rows: self.len().div_ceil(columns),
            block: columns,
            piece: columns,
            tile_rows: self.tile_rows * (self.width / columns),
            ..*self
        }
    }
    /// Rows of a value per channel as they are, a tile for each so many channels.
    pub fn by_channels(shape: &Shape, channels: usize) -> Self {
        let (width, rows) = (shape.channels(), shape.outer());
        let all = Self { width, rows, long_runs: false, by_run: false, ..Self::uncut(shape) };
        all.cut(channels, channels, rows)
    }
    /// One tile of everything.
    fn uncut(shape: &Shape) -> Self {
        let row = shape.channels() * shape.inner();
        let is_few = shape.outer() <= OF_ROWS;
        let long_runs = shape.inner() >= if is_few { SHORTER_RUN } else { LONG_RUN };
        let join = match long_runs {
            true => 1,
            // Few rows are summed at once, and a ghost batch of them in registers: they stay as they are, but for
            // those that a vector is longer than.
            false if shape.outer() <= FEW_ROWS => GROUP.div_ceil(row.max(1)),
            false => match summed_columns(row) {
                Some(columns) => LONG_ROW / columns * (columns / row),
                None => LONG_ROW.div_ceil(row.max(1)),
            },
        };
        let join = join.clamp(1, shape.outer().max(1));
        let width = join * row;
        let rows = shape.len().div_ceil(width.max(1));
        Self {
            shape: *shape,
            width,
            rows,
            long_runs,
            by_run: long_runs,
            block: width.max(1),
            piece: width.max(1),
            tile_rows: rows.max(1),
        }
    }
    /// The same with sums by runs where rows are few, be the runs short.
    pub fn summing_runs(self) -> Self {
        let is_few = self.rows <= OF_ROWS && self.whole_channels() && !self.is_joined();
        let is_few = is_few && self.inner() >= SUMMED_RUN;
        Self { by_run: self.by_run || is_few, ..self }
    }
    fn cut(self, block: usize, piece: usize, tile_rows: usize) -> Self {
        let tile_rows = tile_rows.clamp(1, self.rows.max(1));
        Self { block, piece: piece.min(block), tile_rows, ..self }
    }
    /// A block of about [`PART_ROW`] columns, of long runs [`TASK`], or of the whole row where
    /// that is not much more.
    fn part(&self) -> usize {
        let (whole, part) = match self.long_runs {
            true => (TASK, TASK),
            false => (WHOLE_ROW, PART_ROW),
        };
        match self.width <= whole {
            true => self.width,
            false => (part / self.unit()).max(1) * self.unit(),
        }
    }
    /// Blocks must end at whole channels and at whole bytes of the mask; joined rows are one.
    fn unit(&self) -> usize {
        if self.long_runs {
            self.inner()
        } else if self.is_joined() {
            self.width
        } else {
            8 * self.inner()
        }
    }
    /// Whether elementwise steps take runs, of which tiles then have whole ones, or parts of one.
    pub fn has_runs(&self) -> bool {
        self.long_runs || self.inner() >= RUN && !self.is_joined()
    }
    /// Columns that an elementwise step takes at a time where it takes runs, of `most` columns: several
    /// runs, but whole bytes of the mask; or one, in blocks.
    pub fn piece_of_runs(&self, most: usize) -> usize {
        if self.long_runs {
            return self.inner();
        }
        let mut whole = self.inner();
        while !whole.is_multiple_of(8) {
            whole *= 2;
        }
        match most / whole {
            0 => most,
            runs => runs * whole,
        }
    }
    /// Whether a row has every channel more than once.
    pub fn is_joined(&self) -> bool {
        self.width > self.row()
    }
    /// Columns after which the channels repeat.
    pub fn row(&self) -> usize {
        self.shape.channels() * self.shape.inner()
    }
    /// Columns of the last row, which may be shorter where rows are joined.
    pub fn last_row(&self) -> usize {
        self.len() - self.rows.saturating_sub(1) * self.width
    }

    /// Values kept of a tile: two for each channel, or for each column where sums are by columns.
    pub fn slot_len(&self) -> usize {
        2 * if self.by_run { self.block_channels() } else { self.block }
    }
    /// Whether the last row of a tile is shorter than the others.
    pub fn has_short_row(&self, tile: &Tile) -> bool {
        tile.rows.end == self.rows && self.last_row() < self.width
    }

    /// Whether every tile holds its channels whole, so that one task can do all steps on them.
    pub fn whole_channels(&self) -> bool {
        self.tile_rows >= self.rows && self.piece == self.block
    }
    /// Whether an operation on so many tensors passes through more memory than the cache keeps until
    /// somebody reads what it writes.
    pub fn is_large(&self, size: usize, tensors: usize) -> bool {
        let long_rows = !self.has_runs() && self.width > 2 * BLOCK;
        let most = match long_rows || self.whole_channels() {
            true => LARGE_APART,
            false => LARGE_BYTES,
        };
        self.shape.len().saturating_mul(size * tensors) >= most
    }
    /// Whether there is too little to do to wake another thread.
    pub fn is_small(&self) -> bool {
        self.shape.len() <= SMALL
    }

    fn row_steps(&self) -> usize {
        self.rows.div_ceil(self.tile_rows)
    }
    fn pieces(&self) -> usize {
        self.block.div_ceil(self.piece)
    }
    /// Number of blocks of whole channels.
    pub fn blocks(&self) -> usize {
        self.width.div_ceil(self.block)
    }
    /// Number of tiles: those of block 0 first. An empty batch has none.
    pub fn tiles(&self) -> usize {
        self.blocks() * self.tiles_per_block()
    }
    /// Tiles of one block, by index from `block * tiles_per_block()` on.
    pub fn tiles_per_block(&self) -> usize {
        self.row_steps() * self.pieces()
    }
    /// Tile number `index`. All tiles together cover every element once.
    pub fn tile(&self, index: usize) -> Tile {
        let (block, within) = (index / self.tiles_per_block(), index % self.tiles_per_block());
        let (step, piece) = (within / self.pieces(), within % self.pieces());
        let start = block * self.block + piece * self.piece;
        let end = (start + self.piece).min((block + 1) * self.block).min(self.width);
        let rows = step * self.tile_rows..((step + 1) * self.tile_rows).min(self.rows);
        Tile { index, block, rows, cols: start..end }
    }

    /// Number of channels.
    pub fn all_channels(&self) -> usize {
        self.shape.channels()
    }
    /// Values of every channel in tile `within` of a block, or of every column: of the longer ones.
    pub fn count_in(&self, within: usize) -> usize {
        let start = within / self.pieces() * self.tile_rows;
        let rows = (start + self.tile_rows).min(self.rows) - start;
        let piece = within % self.pieces() * self.piece;
        rows * if self.by_run { self.piece.min(self.inner() - piece) } else { 1 }
    }
    /// Channels of a block; fewer in the last one.
    pub fn block_channels(&self) -> usize {
        (self.block / self.inner()).min(self.shape.channels())
    }
    /// The channels of `block`.
    pub fn channels(&self, block: usize) -> Range<usize> {
        let start = block * self.block_channels();
        start..(start + self.block_channels()).min(self.shape.channels())
    }
    /// The channels of columns, of which there are at least a row or which are inside one.
    pub fn channels_in(&self, cols: &Range<usize>) -> Range<usize> {
        if cols.len() >= self.row() {
            return 0..self.shape.channels();
        }
        let channel = |col: usize| col % self.row() / self.inner();
        channel(cols.start)..channel(cols.end - 1) + 1
    }
    /// Writes the value of its channel for every column; `values` are those of `channels_in`.
    pub fn expand<V: Copy>(&self, cols: &Range<usize>, values: &[V], out: &mut [V]) {
        let (channels, inner, row) = (self.channels_in(cols), self.inner(), self.row());
        let (n, period) = (cols.len(), cols.len().min(row));
        let (out, values) = (&mut out[..n], &values[..channels.len()]);
        let mut c = cols.start % row / inner - channels.start;
        if inner == 1 {
            let before = (values.len() - c).min(period);
            out[..before].copy_from_slice(&values[c..c + before]);
            out[before..period].copy_from_slice(&values[..period - before]);
        } else {
            let (mut done, mut len) = (0, inner - cols.start % inner);
            while done < period {
                let end = (done + len).min(period);
                out[done..end].fill(values[c]);
                (done, len, c) = (end, inner, (c + 1) % values.len());
            }
        }
        let mut done = period;
        while done < n {
            let more = done.min(n - done);
            out.copy_within(..more, done);
            done += more;
        }
    }
    /// Columns of a channel's run in one row; at least 1.
    pub fn inner(&self) -> usize {
        self.shape.inner().max(1)
    }
    /// Values of a channel.
    pub fn per_channel(&self) -> usize {
        self.shape.per_channel()
    }
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.len()
    }

    /// The same tiles of a bit mask, in bytes: every long run, else every row, starts at a whole
    /// byte, so that no byte has two writers.
    pub fn mask_width(&self) -> usize {
        match self.long_runs {
            true => self.shape.channels() * self.shape.inner().div_ceil(8),
            false => self.width.div_ceil(8),
        }
    }
    /// The mask's bytes of columns that start and end where tiles do.
    pub fn mask_cols(&self, cols: &Range<usize>) -> Range<usize> {
        let at = |col: usize| match self.long_runs {
            true => {
                let run = self.inner();
                col / run * run.div_ceil(8) + (col % run).div_ceil(8)
            }
            false => col.div_ceil(8),
        };
        at(cols.start)..at(cols.end)
    }
    /// Where the mask has the bit of a column of a row: its byte, and its place in that.
    pub fn mask_bit(&self, row: usize, col: usize) -> (usize, usize) {
        let (run, within) = match self.long_runs {
            true => (col / self.inner() * self.inner().div_ceil(8), col % self.inner()),
            false => (0, col),
        };
        (row * self.mask_width() + run + within / 8, within % 8)
    }
    /// Bytes of a mask.
    pub fn mask_len(&self) -> usize {
        self.rows * self.mask_width()
    }
}

/// As many columns of joined rows, each of `row` values, as sums are kept of: whole groups.
fn summed_columns(row: usize) -> Option<usize> {
    let most = SUMMED_COLUMNS / row.max(1);
    (1..=most)
        .rev()
        .map(|rows| rows * row)
        .find(|columns| *columns > 0 && columns.is_multiple_of(GROUP))
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
