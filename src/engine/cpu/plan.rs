//! How a tensor is cut into tasks: a pure function of shape and element size.
//!
//! Never of the number of threads: a task's sums are added in an order of its own, so the same
//! tasks give the same bits on any machine.
use crate::Shape;
use std::ops::Range;

/// From this many values behind a channel on, a channel's run is long enough for vectors.
const LONG_RUN: usize = 32;
/// From this many on it is worth a loop of its own; shorter runs of several channels are taken
/// together, with coefficients for each column.
const LONE_RUN: usize = 256;
/// Rows of short channels are joined until a row has this many columns.
const LONG_ROW: usize = 512;
/// A task that keeps all of a channel works on at most this many bytes, so that its second pass
/// finds in cache what its first has read.
const CACHED_BYTES: usize = 4 << 20;
/// Fewer tasks than this are too few to keep the threads of a machine busy.
const ENOUGH_TASKS: usize = 8;
/// Elements that are worth a task of their own.
const TASK: usize = 64 << 10;
/// From here on a tensor is written past the cache.
const LARGE_BYTES: usize = 16 << 20;
/// Up to here, cutting is not worth a second pass over memory.
const SMALL: usize = 32 << 10;

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
    /// Whether a channel's columns are one long run, so that slots are by channel, not by column.
    pub long_runs: bool,
    /// Whether a run is long enough to be alone.
    pub lone_runs: bool,
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

impl Plan {
    /// For an operation that reads `tensors` tensors of elements of `size` bytes twice.
    pub fn new(shape: &Shape, size: usize, tensors: usize) -> Self {
        let (outer, channels, inner) = (shape.outer(), shape.channels(), shape.inner());
        let row = channels * inner;
        let bytes = |elements: usize| elements.saturating_mul(size * tensors);
        let small = shape.len() <= SMALL;
        if inner >= LONG_RUN {
            let plan = |group: usize, piece: usize, tile_rows: usize| Self {
                shape: *shape,
                width: row,
                rows: outer,
                long_runs: true,
                lone_runs: inner >= LONE_RUN,
                block: group * inner,
                piece,
                tile_rows,
            };
            let channel = outer * inner;
            // Blocks that end at whole bytes of the mask.
            let whole = |group: usize| match inner < LONE_RUN {
                true => group.next_multiple_of(8).min(channels),
                false => group,
            };
            if small || bytes(channel * whole(1)) <= CACHED_BYTES && channels >= ENOUGH_TASKS {
                // Neighbouring channels share cache lines: group them, as far as tasks remain.
                let group = (TASK / channel.max(1)).clamp(1, channels.div_ceil(ENOUGH_TASKS));
                let group = whole(group);
                return plan(group, group * inner, outer.max(1));
            }
            let group = whole(1);
            let piece = if inner > TASK { TASK } else { group * inner };
            return plan(group, piece, (TASK / piece).clamp(1, outer.max(1)));
        }
        let join = LONG_ROW.div_ceil(row.max(1)).min(outer.max(1));
        let width = join * row;
        let rows = shape.len().div_ceil(width.max(1));
        let plan = |block: usize, tile_rows: usize| Self {
            shape: *shape,
            width,
            rows,
            long_runs: false,
            lone_runs: false,
            block: block.max(1),
            piece: block.max(1),
            tile_rows: tile_rows.max(1),
        };
        if small {
            return plan(width, rows);
        }
        if join == 1 {
            // Blocks of whole channels and whole bytes of the mask, the widest that stay cached.
            for wide in [8, 4, 2, 1] {
                let block = 64 * wide * inner;
                if bytes(rows * block) <= CACHED_BYTES && row.div_ceil(block) >= ENOUGH_TASKS {
                    return plan(block, rows);
                }
            }
        }
        // At least a hundredth of the rows: sums of every tile are kept until they are merged.
        plan(width, (TASK / width).max(rows.div_ceil(100)))
    }

    /// Whether every tile holds its channels whole, so that one task can do all steps on them.
    pub fn whole_channels(&self) -> bool {
        self.tile_rows >= self.rows && self.piece == self.block
    }
    /// Whether a tensor written is too large to stay in cache until somebody reads it.
    pub fn is_large(&self, size: usize) -> bool {
        self.shape.len().saturating_mul(size) >= LARGE_BYTES
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

    /// Channels of a block; fewer in the last one.
    pub fn block_channels(&self) -> usize {
        if self.width == self.shape.channels() * self.shape.inner() {
            self.block / self.inner()
        } else {
            self.shape.channels() // joined rows: a block is the whole row
        }
    }
    /// The channels of `block`.
    pub fn channels(&self, block: usize) -> Range<usize> {
        let start = block * self.block_channels();
        start..(start + self.block_channels()).min(self.shape.channels())
    }
    /// The channel of a column.
    pub fn channel(&self, col: usize) -> usize {
        (col / self.inner()) % self.shape.channels()
    }
    /// The columns of channel `c` in a tile that holds all columns of its block.
    pub fn columns_of(&self, tile: &Tile, c: usize) -> impl Iterator<Item = usize> + use<> {
        let (inner, row) = (self.inner(), self.shape.channels() * self.inner());
        let cols = tile.cols.clone();
        (cols.start / row * row..cols.end)
            .step_by(row)
            .flat_map(move |row| row + c * inner..row + (c + 1) * inner)
            .filter(move |col| cols.contains(col))
    }
    fn inner(&self) -> usize {
        self.shape.inner().max(1)
    }
    /// Columns of a channel's run in one row.
    pub fn run(&self) -> usize {
        self.shape.inner()
    }
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.len()
    }

    /// The same tiles of a bit mask, in bytes: every lone run, else every row, starts at a whole
    /// byte, so that no byte has two writers.
    pub fn mask_width(&self) -> usize {
        match self.lone_runs {
            true => self.shape.channels() * self.shape.inner().div_ceil(8),
            false => self.width.div_ceil(8),
        }
    }
    /// The mask's bytes of columns that start and end where tiles do.
    pub fn mask_cols(&self, cols: &Range<usize>) -> Range<usize> {
        let at = |col: usize| match self.lone_runs {
            true => {
                let run = self.inner();
                col / run * run.div_ceil(8) + (col % run).div_ceil(8)
            }
            false => col.div_ceil(8),
        };
        at(cols.start)..at(cols.end)
    }
    /// Bytes of a mask.
    pub fn mask_len(&self) -> usize {
        self.rows * self.mask_width()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPES: &[(&[usize], usize)] = &[
        (&[7, 5], 1),
        (&[2, 3], 1),
        (&[1000, 3], 1),
        (&[100_003, 3], 1),
        (&[300, 700], 1),
        (&[3000, 2048], 1),
        (&[64, 33, 7], 1),
        (&[640, 129, 5], 1),
        (&[2, 40_000, 2], 1),
        (&[16, 64, 56 * 56], 1),
        (&[16, 64, 31], 1),
        (&[33, 65, 49], 1),
        (&[1, 1, 1_000_003], 1),
        (&[2, 3, 200_001], 1),
        (&[3, 1 << 20], 0),
        (&[32, 14, 14, 256], 3),
        (&[32, 7, 7, 1031], 3),
        (&[0, 5, 40], 1),
        (&[5, 4, 0], 1),
        (&[0, 4], 1),
        (&[17], 0),
    ];

    fn plans() -> impl Iterator<Item = Plan> {
        SHAPES.iter().flat_map(|(dims, axis)| {
            let shape = Shape::new(dims, *axis).unwrap();
            [(2, 1), (4, 1), (4, 2), (8, 2)].map(|(size, tensors)| Plan::new(&shape, size, tensors))
        })
    }

    #[test]
    fn tiles_cover_every_element_and_mask_byte_once() {
        for plan in plans() {
            let mut elements = vec![0u8; plan.rows * plan.width];
            let mut mask = vec![0u8; plan.mask_len()];
            for index in 0..plan.tiles() {
                let tile = plan.tile(index);
                assert!(tile.rows.end <= plan.rows && tile.cols.end <= plan.width, "{plan:?}");
                assert_eq!(tile.index, index);
                for row in tile.rows.clone() {
                    for count in &mut elements[row * plan.width..][tile.cols.clone()] {
                        *count += 1;
                    }
                    let bytes = plan.mask_cols(&tile.cols);
                    mask[row * plan.mask_width()..][bytes].iter_mut().for_each(|count| *count += 1);
                }
            }
            assert!(elements.len() - plan.len() < plan.width.max(1), "{plan:?}");
            assert!(elements.iter().all(|&count| count == 1), "{plan:?}");
            assert!(mask.iter().all(|&count| count == 1), "{plan:?}");
        }
    }

    #[test]
    fn blocks_hold_their_channels() {
        for plan in plans().filter(|plan| plan.tiles() > 0) {
            let mut seen = 0;
            for block in 0..plan.blocks() {
                assert_eq!(plan.channels(block).start, seen, "{plan:?}");
                seen = plan.channels(block).end;
                let tiles = plan.tiles_per_block();
                for tile in (block * tiles..(block + 1) * tiles).map(|index| plan.tile(index)) {
                    assert_eq!(tile.block, block);
                    for col in [tile.cols.start, tile.cols.end - 1] {
                        assert!(plan.channels(block).contains(&plan.channel(col)), "{plan:?}");
                    }
                }
            }
            assert_eq!(seen, plan.shape.channels(), "{plan:?}");
        }
    }

    #[test]
    fn columns_of_a_channel_are_its_columns() {
        for plan in plans().filter(|plan| plan.tiles() > 0 && !plan.long_runs) {
            let tile = plan.tile(plan.tiles() - 1);
            for c in plan.channels(tile.block).take(5) {
                let expected: Vec<_> =
                    tile.cols.clone().filter(|&col| plan.channel(col) == c).collect();
                assert_eq!(plan.columns_of(&tile, c).collect::<Vec<_>>(), expected, "{plan:?}");
            }
        }
    }
}
