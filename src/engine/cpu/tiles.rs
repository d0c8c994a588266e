//! Tasks that write disjoint tiles of the same memory, on all threads. What it
//! offers is safe.
use super::counted;
use super::plan::{Plan, Tile};
use super::shares::Shares;
use super::simd::{self, Scratch, Simd, Store, TWICE};
use crate::{Element, Plain, Real, Result};
use std::cell::Cell;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

pub(super) mod by_range;
mod team;

/// Runs `task` for every tile of the plan, each with its own part of `outputs`; on the pool's
/// threads unless there is too little to do. `newest_first` starts with the last tile, which is
/// what an earlier run over the same plan left in cache.
pub(super) fn for_each_tile<'o, O: Outputs>(
    plan: &Plan,
    newest_first: bool,
    outputs: &'o mut O,
    task: impl Fn(Tile, O::Part<'o>) + Sync,
) {
    outputs.check(plan);
    let tiles = plan.tiles();
    let outputs = &*outputs;
    in_parallel(tiles, plan.is_small(), newest_first, &|i| {
        let tile = plan.tile(if newest_first { tiles - 1 - i } else { i });
        // SAFETY: every index comes once, and `outputs.check` has found that the plan's tiles do
        // not share an element of it; it is mutably borrowed for 'o.
        let part = unsafe { outputs.part(plan, &tile) };
        task(tile, part);
        simd::fence(); // what the task has stored past the cache, if anything
    });
}

thread_local! {
    /// Whether this thread has a share of what all threads do, and does that by itself.
    static ALONE: Cell<bool> = const { Cell::new(false) };
}

/// Runs a task for every element of `calls`, some of them at a time on one thread, which runs the tiles of each
/// by itself; the first failure that is found.
pub(super) fn at_once<C: Send>(
    calls: &mut [C],
    together: usize,
    task: impl Fn(&mut C) -> Result<()> + Sync,
) -> Result<()> {
    let failure = Mutex::new(None);
    let shares = calls.chunks_mut(together.max(1)).map(Mutex::new);
    let shares: Vec<Mutex<&mut [C]>> = shares.collect();
    in_parallel(shares.len(), false, false, &|i| {
        let mut share = shares[i].lock().unwrap_or_else(PoisonError::into_inner);
        let before = ALONE.replace(true);
        let failed = share.iter_mut().find_map(|call| task(call).err());
        ALONE.set(before);
        if let Some(error) = failed {
            *failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        }
    });
    failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}

/// Runs a task for every number below `tasks`, once, in the order of [`Shares`]. No type's own: compiled once for all.
fn in_parallel(tasks: usize, is_small: bool, backwards: bool, task: &(dyn Fn(usize) + Sync)) {
    let threads = rayon::current_num_threads().min(tasks);
    if is_small || threads < 2 || ALONE.get() {
        return (0..tasks).for_each(|i| counted::task(i == 0, is_small, || task(i)));
    }
    let shares = Shares::new(tasks, threads, backwards);
    team::run(threads, &|thread| {
        let mut empty = 0;
        while let Some(i) = shares.next(thread, &mut empty) {
            task(i);
        }
    });
}

/// Lends `task` all of the memory at once, as the part of a tile that is everything.
pub(super) fn with_whole<O: Outputs, R>(
    plan: &Plan,
    outputs: &mut O,
    task: impl FnOnce(&O::Part<'_>) -> R,
) -> R {
    outputs.check(plan);
    let all = Tile { index: 0, block: 0, rows: 0..plan.rows, cols: 0..plan.width };
    // SAFETY: `outputs.check` has passed; there is no other part while `outputs` is mutably borrowed.
    task(&unsafe { outputs.part(plan, &all) })
}

/// Memory that is handed out tile by tile.
///
/// # Safety
/// After `check` has returned, parts of different tiles of the plan must not overlap, and those of any
/// tile lie in the memory.
pub(super) unsafe trait Outputs: Sync {
    /// One tile's part.
    type Part<'o>: Sync;
    /// Panics unless the memory has the plan's size: a fault of this engine, not of its user.
    fn check(&self, plan: &Plan);
    /// The part of `tile`.
    ///
    /// # Safety
    /// `check` has passed for this plan; `self` is mutably borrowed for `'o`, and in that time no other
    /// part of the same tile is asked for.
    unsafe fn part<'o>(&self, plan: &Plan, tile: &Tile) -> Self::Part<'o>;
}

/// A tensor of the plan's shape, or a mask of it.
pub(super) struct Elements<'a, T> {
    memory: Memory<'a, T>,
    mask: bool,
}

/// `len` values for every tile or, where tiles hold whole channels, for every block.
pub(super) struct Slots<'a> {
    memory: Memory<'a, f64>,
    len: usize,
}

/// So many rows of the plan's width, beside tensors of tiles that hold their channels whole: a value per group and
/// channel. A tile's part are its columns of all of them.
pub(super) struct Columns<'a, T> {
    memory: Memory<'a, T>,
    rows: usize,
}

struct Memory<'a, T> {
    start: *mut T,
    len: usize,
    borrow: PhantomData<&'a mut [T]>,
}
// SAFETY: it stands for a `&'a mut [T]` of which each thread gets parts that do not overlap.
unsafe impl<T: Send> Sync for Memory<'_, T> {}

impl<'a, T> Memory<'a, T> {
    fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), borrow: PhantomData }
    }
}

impl<'a, T: Send> Elements<'a, T> {
    pub fn new(tensor: &'a mut [T]) -> Self {
        Self { memory: Memory::new(tensor), mask: false }
    }
}
impl<'a> Elements<'a, u8> {
    pub fn mask(mask: &'a mut [u8]) -> Self {
        Self { memory: Memory::new(mask), mask: true }
    }
}
impl<'a, T: Send> Columns<'a, T> {
    pub fn new(array: &'a mut [T], rows: usize) -> Self {
        Self { memory: Memory::new(array), rows }
    }
}
impl<'a> Slots<'a> {
    pub fn new(slots: &'a mut [f64], len: usize) -> Self {
        Self { memory: Memory::new(slots), len }
    }
}

// SAFETY: `check` compares the size with the plan's; a tile's part is confined to its rows and
// columns by `TileMut`, and the plan's tiles are disjoint (tested in plan.rs), in the mask too:
// tiles meet at whole bytes only.
unsafe impl<T: Send + Sync + 'static> Outputs for Elements<'_, T> {
    type Part<'o> = TileMut<'o, T>;
    fn check(&self, plan: &Plan) {
        let expected = if self.mask { plan.mask_len() } else { plan.len() };
        assert_eq!(self.memory.len, expected, "elements of the plan");
    }
    unsafe fn part<'o>(&self, plan: &Plan, tile: &Tile) -> TileMut<'o, T> {
        let (width, cols) = match self.mask {
            true => (plan.mask_width(), plan.mask_cols(&tile.cols)),
            false => (plan.width, tile.cols.clone()),
        };
        let Memory { start, len, .. } = self.memory;
        TileMut { start, len, width, rows: tile.rows.clone(), cols, borrow: PhantomData }
    }
}

// SAFETY: `check` finds room for every tile; tile i has `len` values from `i * len` on.
unsafe impl Outputs for Slots<'_> {
    type Part<'o> = &'o mut [f64];
    fn check(&self, plan: &Plan) {
        assert!(self.memory.len >= plan.tiles() * self.len, "a slot for every tile");
    }
    unsafe fn part<'o>(&self, _: &Plan, tile: &Tile) -> &'o mut [f64] {
        // SAFETY: inside the memory (checked), and no other tile's.
        unsafe {
            let start = self.memory.start.add(tile.index * self.len);
            std::slice::from_raw_parts_mut(start, self.len)
        }
    }
}

// SAFETY: `check` finds the rows, and that no two tiles have a column in common; `TileMut` confines a part to its
// columns.
unsafe impl<T: Send + Sync + 'static> Outputs for Columns<'_, T> {
    type Part<'o> = TileMut<'o, T>;
    fn check(&self, plan: &Plan) {
        assert!(plan.whole_channels(), "tiles of whole channels");
        assert_eq!(Some(self.memory.len), self.rows.checked_mul(plan.width), "rows of the plan");
    }
    unsafe fn part<'o>(&self, plan: &Plan, tile: &Tile) -> TileMut<'o, T> {
        let Memory { start, len, .. } = self.memory;
        let (width, cols) = (plan.width, tile.cols.clone());
        TileMut { start, len, width, rows: 0..self.rows, cols, borrow: PhantomData }
    }
}

// SAFETY: as its content; nothing has no parts.
unsafe impl<O: Outputs> Outputs for Option<O> {
    type Part<'o> = Option<O::Part<'o>>;
    fn check(&self, plan: &Plan) {
        self.iter().for_each(|o| o.check(plan));
    }
    unsafe fn part<'o>(&self, plan: &Plan, tile: &Tile) -> Self::Part<'o> {
        // SAFETY: what the caller promised.
        self.as_ref().map(|o| unsafe { o.part(plan, tile) })
    }
}

// SAFETY: as what it borrows.
unsafe impl<O: Outputs> Outputs for &mut O {
    type Part<'o> = O::Part<'o>;
    fn check(&self, plan: &Plan) {
        (**self).check(plan);
    }
    unsafe fn part<'o>(&self, plan: &Plan, tile: &Tile) -> Self::Part<'o> {
        // SAFETY: what the caller promised.
        unsafe { (**self).part(plan, tile) }
    }
}

macro_rules! tuple {
    ($($name:ident $i:tt),+) => {
        // SAFETY: as its members, which are different memory: each was a `&mut`.
        unsafe impl<$($name: Outputs),+> Outputs for ($($name,)+) {
            type Part<'o> = ($($name::Part<'o>,)+);
            fn check(&self, plan: &Plan) {
                $(self.$i.check(plan);)+
            }
            unsafe fn part<'o>(&self, plan: &Plan, tile: &Tile) -> Self::Part<'o> {
                // SAFETY: what the caller promised.
                unsafe { ($(self.$i.part(plan, tile),)+) }
            }
        }
    };
}
tuple!(A 0, B 1);
tuple!(A 0, B 1, C 2);

/// Some columns of all rows of a tensor, to read and write.
pub(super) struct TileMut<'p, T> {
    start: *mut T,
    len: usize,
    width: usize,
    rows: Range<usize>,
    cols: Range<usize>,
    borrow: PhantomData<&'p mut [T]>,
}
// SAFETY: it stands for a `&'p mut [T]`; whoever shares it can only read.
unsafe impl<T: Sync> Sync for TileMut<'_, T> {}

impl<T> TileMut<'_, T> {
    fn range(&self, row: usize, cols: Range<usize>) -> Range<usize> {
        assert!(self.rows.contains(&row), "a row of the tile");
        assert!(self.cols.start <= cols.start && cols.end <= self.cols.end, "columns of the tile");
        clipped(row, cols, self.width, self.len)
    }
    /// Columns `cols` of `row`, less what a shorter last row lacks.
    pub fn row(&self, row: usize, cols: Range<usize>) -> &[T] {
        let range = self.range(row, cols);
        // SAFETY: inside the memory (clipped) and inside this tile's rows and columns (asserted), which
        // nobody else has; `self` is borrowed.
        unsafe { std::slice::from_raw_parts(self.start.add(range.start), range.len()) }
    }
    /// All of it, where it has whole rows.
    pub fn whole(&self) -> &[T] {
        assert!(self.cols == (0..self.width), "whole rows");
        let range = of_rows(&self.rows, self.width, self.len);
        // SAFETY: inside the memory and of this tile's rows alone, which have no other columns; `self` is borrowed.
        unsafe { std::slice::from_raw_parts(self.start.add(range.start), range.len()) }
    }
    /// Some of its rows, where it has whole ones, to write.
    pub fn whole_rows_mut(&mut self, rows: &Range<usize>) -> &mut [T] {
        assert!(self.cols == (0..self.width), "whole rows");
        assert!(self.rows.start <= rows.start && rows.end <= self.rows.end, "rows of the tile");
        let range = of_rows(rows, self.width, self.len);
        // SAFETY: as in `whole`; `self` is mutably borrowed.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
    /// As `row`, to write.
    pub fn row_mut(&mut self, row: usize, cols: Range<usize>) -> &mut [T] {
        let range = self.range(row, cols);
        // SAFETY: as in `row`; `self` is mutably borrowed.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}

/// How a task writes a tensor: past the cache, where that is too small for it.
pub(super) struct Writer<'p, E> {
    tile: TileMut<'p, E>,
    past_cache: bool,
    buffer: Scratch<E, TWICE>,
}

impl<'p, E: Element> Writer<'p, E> {
    /// `read` says that the task reads there, too, so that it is in cache anyway.
    #[inline(always)]
    pub fn new(plan: &Plan, tile: TileMut<'p, E>, tensors: usize, read: bool) -> Self {
        let past_cache = plan.is_large(size_of::<E>(), tensors) && !read;
        Self { tile, past_cache, buffer: Scratch::new() }
    }
    /// Values of the tile's first row until one starts a cache line.
    #[inline(always)]
    pub fn to_line(&self, tile: &Tile) -> usize {
        simd::to_line(self.tile.row(tile.rows.start, tile.cols.clone()))
    }
    /// What is there, if it was said that it would be read.
    #[inline(always)]
    pub fn held(&self, row: usize, cols: Range<usize>) -> &[E] {
        assert!(!self.past_cache, "what is written past the cache is not read");
        self.tile.row(row, cols)
    }
    /// Columns `cols` of `row`, and how they are to be written: as lines, each value once.
    #[inline(always)]
    pub fn lines(&mut self, simd: Simd, row: usize, cols: Range<usize>) -> (Store, &mut [E]) {
        (self.store(simd), self.tile.row_mut(row, cols))
    }
    /// Some rows of a tile that has whole ones, to be written in the same way.
    #[inline(always)]
    pub fn whole_rows(&mut self, simd: Simd, rows: Range<usize>) -> (Store, &mut [E]) {
        (self.store(simd), self.tile.whole_rows_mut(&rows))
    }
    #[inline(always)]
    fn store(&self, simd: Simd) -> Store {
        match self.past_cache {
            // SAFETY: nothing but this writer has the tile, it does not read what it writes so (see
            // `held`), and it lives within a task of `for_each_tile`, which fences.
            true => unsafe { Store::past_cache(simd) },
            false => Store::to_cache(simd),
        }
    }
    /// Lets `fill` write columns `cols` of `row`. What it does not write `as_lines`, or reads again,
    /// and is to go past the cache, waits in a buffer until it has done.
    #[inline(always)]
    pub fn write(
        &mut self,
        simd: Simd,
        row: usize,
        cols: Range<usize>,
        as_lines: bool,
        fill: impl FnOnce(Store, &mut [E]),
    ) {
        let buffered = self.past_cache && !as_lines;
        if !buffered {
            let (store, to) = self.lines(simd, row, cols);
            return fill(store, to);
        }
        let len = clipped(row, cols.clone(), self.tile.width, self.tile.len).len();
        fill(Store::to_cache(simd), self.buffer.values(len));
        let Self { tile, buffer, .. } = self;
        // SAFETY: as in `lines`.
        let past = unsafe { Store::past_cache(simd) };
        simd.vectorize(
            #[inline(always)]
            |simd| past.compiled_for(simd).copy(buffer.values(len), tile.row_mut(row, cols)),
        );
    }
}

/// Memory of f64 as numbers that are no larger.
#[inline(always)]
pub(super) fn numbers<A: Real>(memory: &[f64]) -> &[A] {
    // SAFETY: A is f32 or f64: any bits are one, and where an f64 may stand, it may.
    unsafe { memory.align_to().1 }
}
/// Memory of f64 as values of another type, to write.
#[inline(always)]
pub(super) fn numbers_mut<T: Plain>(memory: &mut [f64]) -> &mut [T] {
    // SAFETY: T is f16, bf16, f32, f64 or a byte: any bits are one, and where an f64 may stand, it may.
    unsafe { memory.align_to_mut().1 }
}

/// Where columns `cols` of `row` lie in memory of rows of `width` and `len` elements in all.
#[inline(always)]
pub(super) fn clipped(row: usize, cols: Range<usize>, width: usize, len: usize) -> Range<usize> {
    let start = row * width;
    (start + cols.start).min(len)..(start + cols.end).min(len)
}

/// Where whole rows lie in memory of `len` elements in all.
#[inline(always)]
pub(super) fn of_rows(rows: &Range<usize>, width: usize, len: usize) -> Range<usize> {
    let at = |row: usize| (row * width).min(len);
    at(rows.start)..at(rows.end)
}

#[cfg(test)]
#[path = "tiles_tests.rs"]
mod tests;
