//! The kernels of `kernels/double_backward.cu`, as [`super`] has those of a step.
use super::super::arguments::Channels;
use super::super::module::DoubleBackwardKernels;
use super::super::plan::{dealt, folded, form, gcd};
use super::{Bound, submit};
use crate::engine::places::Places;
use crate::engine::pointers::Ptr;
use crate::{DType, Element, Result, Shape};

/// How the tensor is cut: a block takes a part of one channel where its runs are long, else of 64 columns.
/// The shape alone decides but for what is `aligned`, as it says in which order sums are made.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(in crate::engine::cuda) struct Cut {
    elements: u64,
    inner: u64,
    row: u64,
    width: u64,
    /// Vectors of a channel, or rows of columns, and those of a part.
    all: u64,
    chunk: u64,
    /// Of a run, or the rows of columns that lie together; from one of either to the next, and what rows leave of that.
    vectors: u64,
    step: u64,
    rest: u64,
    /// What a thread goes to its next vector: elements, and vectors or rows.
    next_at: u64,
    next_number: u64,
    channels: u32,
    chunks: u32,
    /// Tiles of 64 columns that take a row of them.
    tiles: u32,
    runs: u32,
    lanes: u32,
    aligned: u32,
    ragged: u32,
    /// Where rows are dealt out to groups: groups, each of which has columns of its own, and the channels of one.
    groups: u32,
    together: u32,
}

/// What is read; null where it is absent.
#[repr(C)]
#[derive(Clone, Copy)]
pub(in crate::engine::cuda) struct Reads<T> {
    pub x: Ptr<T>,
    pub grad_y: Ptr<T>,
    pub residual: Ptr<T>,
    pub v_x: Ptr<T>,
    pub v_residual: Ptr<T>,
    pub mask: Ptr<u8>,
    pub counting: Counting,
}

/// Which values count for a mask; all where it is null.
#[repr(C)]
#[derive(Clone, Copy)]
pub(in crate::engine::cuda) struct Counting {
    bytes: Ptr<u8>,
    /// Elements that have one place; 0 where every position has one, which all its channels share.
    each: u64,
    /// Of that, or of a row of all channels; and of a channel's elements in it.
    inverse: f64,
    inner_inverse: f64,
}

impl Counting {
    pub const ALL: Self = Self { bytes: Ptr::NULL, each: 0, inverse: 0.0, inner_inverse: 0.0 };
    /// By the bytes of these places of a tensor that is cut so.
    pub fn new(bytes: Ptr<u8>, places: Places, cut: &Cut) -> Self {
        let each = match places {
            Places::Neighbours(each) => each as u64,
            Places::Positions { .. } => 0,
        };
        let of = if each > 0 { each } else { cut.row };
        Self { bytes, each, inverse: 1.0 / of as f64, inner_inverse: 1.0 / cut.inner as f64 }
    }
}

/// What is written; null where it is not asked for.
#[repr(C)]
#[derive(Clone, Copy)]
pub(in crate::engine::cuda) struct Writes<T> {
    pub gg_grad_y: Ptr<T>,
    pub gg_x: Ptr<T>,
    pub gg_residual: Ptr<T>,
}

impl<T> Reads<T> {
    fn all(&self) -> [Ptr<T>; 5] {
        [self.x, self.grad_y, self.residual, self.v_x, self.v_residual]
    }
}
impl<T> Writes<T> {
    fn all(&self) -> [Ptr<T>; 3] {
        [self.gg_grad_y, self.gg_x, self.gg_residual]
    }
    pub fn any(&self) -> bool {
        self.all().iter().any(|to| !to.is_null())
    }
}

/// What follows the normalization, and what its derivatives are taken from.
#[repr(C)]
#[derive(Clone, Copy)]
pub(in crate::engine::cuda) struct Follows<A> {
    pub activation: u32,
    pub source: u32,
    pub slope: A,
}

/// What is given and written of every channel.
#[repr(C)]
#[derive(Clone, Copy)]
pub(in crate::engine::cuda) struct Parameters<A> {
    pub v_weight: Ptr<A>,
    pub v_bias: Ptr<A>,
    pub gg_weight: Ptr<A>,
    pub gg_bias: Ptr<A>,
    pub nonfinite: Ptr<u32>,
    pub accumulate: u32,
    pub batch: u32,
    /// Where the sums of a part of a batch go, and nothing else then; those of all parts. Either may be null.
    pub sums: Ptr<f64>,
    pub total: Ptr<f64>,
    /// Values of a channel in all parts, and by a mask how many of them count, and what is added to that.
    pub values: f64,
    pub counts: Ptr<f64>,
    pub count_eps: f64,
}

const BLOCK: u32 = 256;
/// Of the finalize kernel, for a channel whose partial sums are at most this many.
const WARP: u32 = 32;
const MANY_PARTIALS: u64 = 256;
/// Runs from here on are long: a warp reads whole sectors of them, and, where they are no whole vectors, at
/// most one in so many elements beside them.
const LONG: u64 = 32;
/// Columns of a block.
const COLUMNS: u64 = 64;
/// Vectors of a stage, which a block has in flight of each tensor.
const STAGE: u64 = 2 * BLOCK as u64;
/// Bytes of a column in a part, at least: partial sums take 80 beside them, of curved activations 192, and
/// eight tensors are moved.
const LEAST_BYTES: u64 = 1024;
/// With fewer blocks than this, parts of columns are half as large, so that a device has something to do.
const FEW: u64 = 128;
/// Blocks that keep any device busy: no more parts than give these.
const ENOUGH: u64 = 2048;
/// Coefficients that a channel has in `Made`.
const MADE: u64 = 7;

impl Cut {
    pub fn new(shape: &Shape, dtype: DType) -> Self {
        let (outer, channels, inner) = folded(shape);
        let (positions, together) = dealt(shape).unwrap_or((1, channels));
        let (elements, row) = (outer * channels * inner, (together * inner).max(1));
        let groups = (channels / together.max(1)).max(1);
        let size = dtype.size() as u64;
        let lanes = 16 / size;
        // What a run has before its first whole vector is a multiple of this; as many elements as that leaves
        // of a vector are read beside it.
        let common = gcd(inner, lanes);
        let long = inner >= LONG && (lanes - common) * LONG <= inner;
        let runs = long && shape.dealt().is_none();
        let width = match shape.dealt() {
            _ if runs => row,
            None => columns(row, lanes),
            Some(_) => columns_of_group(row, positions, lanes),
        };
        // A group has neighbouring rows at every position of its own, and then those of the others are in between.
        let (vectors, step) = match shape.dealt() {
            _ if runs => ((lanes - common + inner).div_ceil(lanes), row),
            None => (1, width),
            Some(_) => ((positions * row / width).max(1), groups * positions * row),
        };
        let vectors = vectors.max(1);
        // What a thread skips from one of its vectors to the next.
        let next = if runs { BLOCK.into() } else { u64::from(BLOCK) * lanes / COLUMNS };
        let (next_outer, next_number) = (next / vectors, next % vectors);
        let of_rows = if runs { 0 } else { width.min(step) };
        let tiles = width.div_ceil(COLUMNS);
        // What is cut, at least so many of it a part, blocks of a part, and what a stage takes of it.
        let (all, least, blocks, stage) = match runs {
            true => (outer * vectors, STAGE, channels, STAGE),
            false => {
                let rows = (elements / groups).div_ceil(width);
                let tiles = tiles * groups;
                let least = LEAST_BYTES / size;
                let least = if tiles * (rows / least) < FEW { least / 2 } else { least };
                (rows, least, tiles, STAGE * lanes / COLUMNS)
            }
        };
        let chunks = (all / least).min(ENOUGH.div_ceil(blocks.max(1))).max(1);
        let chunk = all.div_ceil(chunks).next_multiple_of(stage).max(1);
        Self {
            elements,
            inner: inner.max(1),
            row,
            width,
            all,
            chunk,
            vectors,
            step,
            rest: step - vectors * of_rows,
            next_at: next_outer * step + next_number * of_rows,
            next_number,
            channels: channels as u32,
            chunks: all.div_ceil(chunk) as u32,
            tiles: tiles as u32,
            runs: runs.into(),
            lanes: form(shape, size).0 as u32,
            aligned: 0,
            ragged: (runs && common < lanes).into(),
            groups: groups as u32,
            together: together.max(1) as u32,
        }
    }
    /// The same for tensors at these places.
    fn at<T>(self, tensors: impl IntoIterator<Item = Ptr<T>>) -> Self {
        let aligned = tensors.into_iter().all(|tensor| tensor.is_aligned());
        // Rows of a group may be no whole vectors.
        let whole = self.runs == 1 || self.width.is_multiple_of(16 / size_of::<T>() as u64);
        Self { aligned: (aligned && whole).into(), ..self }
    }
    /// Of a pass over the elements.
    fn blocks(&self) -> u64 {
        let parts = match self.runs {
            1 => u64::from(self.channels),
            _ => u64::from(self.tiles) * u64::from(self.groups),
        };
        parts * u64::from(self.chunks)
    }
    /// Columns of a channel.
    fn columns(&self) -> u64 {
        match self.runs {
            1 => 1,
            _ => self.width / self.row * self.inner,
        }
    }
    /// Bytes of the partial sums, `count` for each part of each channel or column.
    fn partials(&self, count: u32) -> u64 {
        let columns = self.width * u64::from(self.groups);
        let sets = if self.runs == 1 { self.channels.into() } else { columns };
        8 * sets * u64::from(self.chunks) * u64::from(count)
    }
    /// Bytes of them and of the coefficients behind them.
    pub fn room(&self) -> u64 {
        self.partials(sums(true)) + 8 * MADE * u64::from(self.channels)
    }
}

/// `12 parts of 256 channels`.
impl std::fmt::Display for Cut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { chunks, channels, width, .. } = self;
        match self.runs {
            1 => write!(f, "{chunks} parts of {channels} channels"),
            _ => write!(f, "{chunks} parts of {width} columns"),
        }
    }
}

/// Elements that are cut into columns together: rows of all channels, as many as make up whole vectors, and
/// few columns of the last block idle.
fn columns(row: u64, lanes: u64) -> u64 {
    let whole = row / gcd(row, lanes) * lanes;
    let least = COLUMNS.div_ceil(whole) * whole;
    // In eighths of what is needed.
    let taken = |width: &u64| width.next_multiple_of(COLUMNS) * 8 / width;
    (0..8).map(|more| least + more * whole).min_by_key(taken).unwrap_or(least)
}

/// The same of the rows of a group, of which so many are neighbours: as many as divide these, whole vectors if that
/// can be.
fn columns_of_group(row: u64, positions: u64, lanes: u64) -> u64 {
    let widths =
        (1..=COLUMNS.min(positions)).filter(|n| positions.is_multiple_of(*n)).map(|n| n * row);
    let idle = |width: &u64| width.next_multiple_of(COLUMNS) * 8 / width;
    widths.min_by_key(|width| (!width.is_multiple_of(lanes), idle(width))).unwrap_or(row)
}

/// Sums of a channel.
fn sums(curved: bool) -> u32 {
    if curved { 12 } else { 5 }
}

/// The kernels of one type of elements, on a stream.
pub(in crate::engine::cuda) struct DoubleLauncher<'a, A> {
    pub kernels: &'a DoubleBackwardKernels,
    pub stream: Bound<'a>,
    pub cut: Cut,
    pub by: Channels<A>,
    /// Whether the activation is.
    pub curved: bool,
    pub room: Ptr<f64>,
}

impl<A> DoubleLauncher<'_, A> {
    fn made(&self) -> Ptr<f64> {
        Ptr::at(self.room.address() + self.cut.partials(sums(true)))
    }
    /// The sums of the parts; nothing where there are no elements.
    pub fn sums<E: Element<Acc = A>>(&self, from: Reads<E>, follows: Follows<A>) -> Result<()> {
        let Self { cut, by, room, .. } = self;
        let kernel = &self.kernels.sums[usize::from(self.curved)];
        match cut.blocks() {
            0 => Ok(()),
            blocks => {
                let cut = cut.at(from.all());
                let arguments = arguments![cut, *by, from, follows, *room];
                submit(&self.stream, kernel, blocks as u32, BLOCK, arguments)
            }
        }
    }
    /// What they add up to, if they have been made, and the coefficients.
    pub fn finalize(&self, parameters: Parameters<A>, has_sums: bool) -> Result<()> {
        let Self { cut, by, room, .. } = self;
        let (partials, made) = (if has_sums { *room } else { Ptr::NULL }, self.made());
        let many = u64::from(cut.chunks) * cut.columns() > MANY_PARTIALS;
        let team = if many { BLOCK } else { WARP };
        let (count, grid) = (sums(self.curved), cut.channels.div_ceil(BLOCK / team));
        let arguments = arguments![*cut, *by, parameters, count, team, partials, made];
        submit(&self.stream, &self.kernels.finalize, grid, BLOCK, arguments)
    }
    pub fn apply<E: Element<Acc = A>>(
        &self,
        from: Reads<E>,
        follows: Follows<A>,
        batch: u32,
        to: Writes<E>,
    ) -> Result<()> {
        let (Self { cut, by, .. }, made) = (self, self.made());
        let kernel = &self.kernels.apply[usize::from(self.curved)];
        match cut.blocks() {
            0 => Ok(()),
            blocks => {
                let cut = cut.at(from.all().into_iter().chain(to.all()));
                let arguments = arguments![cut, *by, from, follows, batch, made, to];
                submit(&self.stream, kernel, blocks as u32, BLOCK, arguments)
            }
        }
    }
}

#[cfg(test)]
#[path = "double_backward_tests.rs"]
mod tests;
