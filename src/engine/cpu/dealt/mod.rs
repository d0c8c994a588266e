//! Groups of rows at equal distances, behind whose channels other axes lie ([dealt](Shape::dealt) shapes), each a batch
//! of its own: a thread takes a group through both passes, so that the second finds in cache what the first has read.
//!
//! ```text
//! for every unit     its sums                        a unit: a row of the batch, a tensor of its own where it lies;
//! merge              coefficients of the group       or, of short rows, several of them side by side elsewhere
//! for every unit     write
//! ```
//!
//! Of groups that are too few or too large, a task takes a share of the units through a pass, and merging comes between:
//! how many shares there are follows from the shape alone, so results do not depend on the number of threads.
use super::kernels::sums::STRIP_ROWS;
use super::plan::Plan;
use super::policy::{ENOUGH_TASKS, SMALL, TASK};
use super::tiles::numbers_mut;
use crate::{Element, Error, Shape};
use std::ops::Range;

mod backward;
mod double_backward;
mod forward;

pub(super) use backward::backward;
pub(super) use double_backward::double_backward;
pub(super) use forward::forward_train;

/// Elements of a unit at least, where it takes several rows: what a pass does once for each channel is little then.
const UNIT: usize = 4 << 10;
/// A group of more elements is more than a thread's, however many there are.
const MOST: usize = 16 * TASK;

/// How a dealt tensor is cut: a pure function of its shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cut {
    all: Shape,
    groups: usize,
    /// Rows of a group, of a share of it, which has whole units, and of a unit; the last ones may have fewer.
    rows: usize,
    share: usize,
    unit: usize,
}

impl Cut {
    fn new(shape: &Shape) -> Self {
        let (groups, positions) = shape.dealt().map_or((1, 1), |of| (of.groups, of.positions));
        let rows = shape.batch();
        let row = shape.of_dealt_rows(1).len().max(1);
        // As many rows of a value per channel as a loop sums at once.
        let few = STRIP_ROWS.div_ceil(positions.max(1)).max(UNIT.div_ceil(row));
        let unit = few.min(TASK / row).clamp(1, rows.max(1));
        let units = rows.div_ceil(unit);
        let of_size = (rows * row).div_ceil(MOST);
        let of_number = if shape.len() <= SMALL { 1 } else { ENOUGH_TASKS.div_ceil(2 * groups) };
        let shares = of_size.max(of_number).clamp(1, units.max(1));
        Self { all: *shape, groups, rows, share: units.div_ceil(shares) * unit, unit }
    }
    /// So many rows of a group.
    fn shape(&self, rows: usize) -> Shape {
        self.all.of_dealt_rows(rows)
    }
    fn channels(&self) -> usize {
        self.all.channels() / self.groups
    }
    /// Those of a group.
    fn channels_of(&self, group: usize) -> Range<usize> {
        group * self.channels()..(group + 1) * self.channels()
    }
    /// Shares of a group.
    fn shares(&self) -> usize {
        self.rows.div_ceil(self.share)
    }
    /// The rows of a share.
    fn share(&self, number: usize) -> Range<usize> {
        number * self.share..self.rows.min((number + 1) * self.share)
    }
    /// The units of some rows.
    fn units(&self, rows: Range<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
        let unit = self.unit;
        rows.clone().step_by(unit).map(move |from| from..rows.end.min(from + unit))
    }
    /// Tasks that a thread takes at a time.
    fn together(&self) -> usize {
        (TASK / 4 / self.shape(self.share).len().max(1)).max(1)
    }
    /// Values of f64 for `tensors` units, where these have several rows.
    fn side_len<E>(&self, tensors: usize) -> usize {
        let len = if self.unit > 1 { self.shape(self.unit).len() } else { 0 };
        (tensors * len * size_of::<E>()).div_ceil(size_of::<f64>())
    }
    /// Memory of that size, for each tensor its unit.
    fn sides<'w, E: Element, const N: usize>(&self, memory: &'w mut [f64]) -> [&'w mut [E]; N] {
        let len = if self.unit > 1 { self.shape(self.unit).len() } else { 0 };
        super::table::split_mut(numbers_mut(memory), len)
    }
    /// Bytes of a mask of a unit of so many rows.
    fn mask_of(&self, rows: usize) -> usize {
        Plan::new(&self.shape(rows), 1, 1).mask_len()
    }
    /// Bytes of the masks of so many rows, unit after unit.
    fn masks_of(&self, rows: usize) -> usize {
        let last = rows % self.unit;
        let of_last = if last > 0 { self.mask_of(last) } else { 0 };
        rows / self.unit * self.mask_of(self.unit) + of_last
    }
}

/// Bytes of the masks of a dealt tensor: those of a group's units one after the other, group by group.
pub(super) fn mask_len(shape: &Shape) -> usize {
    let cut = Cut::new(shape);
    cut.groups * cut.masks_of(cut.rows)
}

/// A dealt tensor that is read.
#[derive(Clone, Copy)]
struct Rows<'a, E> {
    all: &'a [E],
    groups: usize,
    len: usize,
}

impl<'a, E: Element> Rows<'a, E> {
    fn new(cut: &Cut, all: &'a [E]) -> Self {
        Self { all, groups: cut.groups, len: cut.shape(1).len() }
    }
    /// A row of a group.
    fn row(&self, group: usize, number: usize) -> &'a [E] {
        &self.all[(number * self.groups + group) * self.len..][..self.len]
    }
    /// Some rows of a group in one piece: where it lies, or copied to `side`.
    fn unit<'s>(&self, group: usize, rows: Range<usize>, side: &'s mut [E]) -> &'s [E]
    where
        'a: 's,
    {
        if rows.len() == 1 {
            return self.row(group, rows.start);
        }
        let side = &mut side[..rows.len() * self.len];
        for (to, row) in side.chunks_exact_mut(self.len).zip(rows) {
            to.copy_from_slice(self.row(group, row));
        }
        side
    }
}

/// The rows of a share in a dealt tensor that is written.
struct RowsMut<'a, E>(Vec<&'a mut [E]>);

impl<'a, E: Element> RowsMut<'a, E> {
    /// Those of every share, group by group.
    fn deal(cut: &Cut, all: &'a mut [E]) -> impl Iterator<Item = Self> + use<'a, E> {
        let (shares, share, groups) = (cut.shares(), cut.share, cut.groups);
        let none = || Self(Vec::with_capacity(share));
        let mut dealt: Vec<Self> = (0..groups * shares).map(|_| none()).collect();
        for (i, row) in all.chunks_exact_mut(cut.shape(1).len().max(1)).enumerate() {
            let (group, number) = (i % groups, i / groups);
            dealt[group * shares + number / share].0.push(row);
        }
        dealt.into_iter()
    }
    /// The same of a tensor that may be absent.
    fn deal_some(
        cut: &Cut,
        all: Option<&'a mut [E]>,
    ) -> impl Iterator<Item = Option<Self>> + use<'a, E> {
        let mut dealt = all.map(|all| Self::deal(cut, all));
        std::iter::from_fn(move || Some(dealt.as_mut().and_then(Iterator::next)))
    }
    /// What is there of some rows, by their numbers in the share, in one piece: where it lies, or copied to `side`.
    fn unit<'s>(&'s self, rows: Range<usize>, side: &'s mut [E]) -> &'s [E] {
        if let [row] = &self.0[rows.clone()] {
            return row;
        }
        self.copy(rows, side)
    }
    fn copy<'s>(&self, rows: Range<usize>, side: &'s mut [E]) -> &'s mut [E] {
        let mut done = 0;
        for row in &self.0[rows] {
            side[done..done + row.len()].copy_from_slice(row);
            done += row.len();
        }
        &mut side[..done]
    }
    /// Some rows in one piece to write: where they lie, or `side`, which goes there by [`end`](Self::end). `holds` says
    /// that it is read first.
    fn begin<'s>(&'s mut self, rows: Range<usize>, side: &'s mut [E], holds: bool) -> &'s mut [E] {
        if rows.len() == 1 {
            return self.0[rows.start];
        }
        if holds {
            return self.copy(rows, side);
        }
        let len = self.0[rows].iter().map(|row| row.len()).sum();
        &mut side[..len]
    }
    fn end(&mut self, rows: Range<usize>, side: &[E]) {
        if rows.len() == 1 {
            return;
        }
        let mut done = 0;
        for row in &mut self.0[rows] {
            row.copy_from_slice(&side[done..done + row.len()]);
            done += row.len();
        }
    }
}

/// The first `len` of what is left, if it is there.
fn take<'a, T>(rest: &mut Option<&'a mut [T]>, len: usize) -> Option<&'a mut [T]> {
    let (these, others) = rest.take()?.split_at_mut(len);
    *rest = Some(others);
    Some(these)
}

/// What is not asked for by such a shape.
fn refused(what: &str) -> Error {
    let reason = format!("of rows that are dealt out to groups: expected no {what}, got one");
    Error::Unsupported { engine: "cpu", reason }
}
