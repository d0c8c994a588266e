//! Ghost batches of rows of a value per channel in one call: a task takes some channels through all groups, one after
//! the other, with running statistics and gradients of parameters as each group leaves them to the next. What a
//! strip of a group does not serve, as some number of it leaves the range of its type, takes the way of every batch,
//! a group of channels at a time. By a mask the rows of a group are put in an order once, those that count before the
//! others, and no strip asks the mask.
use super::Cpu;
use super::kernels::ghost::{Counted, Group, MOST_ROWS, NARROW, Rows, Strip, WIDE};
use super::plan::Plan;
use super::policy::SMALL;
use super::simd::{GROUP, LINE, to_line};
use super::tiles::numbers_mut;
use crate::engine::{Derivative, GroupRows, Request};
use crate::{Activation, Error, Real, Result, Shape};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

mod backward;
mod forward;

pub(super) use backward::backward;
pub(super) use forward::forward_train;

/// Whether a forward and its backward of such groups are one call here.
pub(super) fn takes(shape: &Shape, groups: GroupRows, request: Request) -> bool {
    let is_plain = match request.activation.derivative_from(request.residual) {
        Derivative::One => true,
        Derivative::FromX => request.activation == Activation::Relu,
        _ => false,
    };
    let positions = shape.outer() / shape.batch().max(1);
    let last = shape.batch() - (groups.count - 1) * groups.size;
    let is_apart = groups.is_strided && positions > 1;
    let [least, most] = [last.min(groups.size), groups.size].map(|rows| rows * positions);
    let is_served = shape.inner() == 1 && shape.channels() >= GROUP && !is_apart;
    is_plain && is_served && least >= 2 && most <= MOST_ROWS
}

/// The rows of group `k`.
fn rows_of(shape: &Shape, groups: GroupRows, k: usize) -> Rows {
    let (batch, GroupRows { size, count, is_strided }) = (shape.batch(), groups);
    if is_strided {
        return Rows { first: k, step: count, count: size, next: 1 };
    }
    let positions = shape.outer() / batch.max(1);
    let rows = size.min(batch - k * size) * positions;
    Rows { first: k * size * positions, step: 1, count: rows, next: rows }
}

/// A tile of some channels for each thread, a cache line of them at least. No result depends on how they are cut.
fn plan<E>(shape: &Shape) -> Plan {
    let threads = if shape.len() <= SMALL { 1 } else { rayon::current_num_threads() };
    let (all, unit) = (shape.channels(), GROUP.max(LINE / size_of::<E>()));
    let mut block = all.div_ceil(threads).next_multiple_of(unit);
    while block < all && (1..GROUP).contains(&(all % block)) {
        block += unit;
    }
    Plan::by_channels(shape, block.min(all))
}

/// What takes strips of a group of rows through all steps.
trait TakesStrips {
    /// A strip of `G` groups of channels of group `k`, whose values start at `place` among those of [`Strips`], and
    /// whose columns at `column`.
    fn strip<R: Group, const G: usize>(
        &mut self,
        k: usize,
        rows: R,
        place: usize,
        column: usize,
    ) -> Result<()>;
}

/// Takes some columns of all groups, group by group, of which those rows count that the places say, if there are some.
fn for_each_strip(
    (shape, groups, places): (&Shape, GroupRows, Option<&[u8]>),
    cols: &Range<usize>,
    task: &mut impl TakesStrips,
) -> Result<()> {
    for k in 0..groups.count {
        let rows = rows_of(shape, groups, k);
        match places {
            None => each_of_group(k, rows, cols, task)?,
            Some(places) => each_of_group(k, &Counted::new(rows, places), cols, task)?,
        }
    }
    Ok(())
}

fn each_of_group(
    k: usize,
    rows: impl Group,
    cols: &Range<usize>,
    task: &mut impl TakesStrips,
) -> Result<()> {
    let strips = Strips::new(cols.len());
    for (place, channel) in strips.wide() {
        task.strip::<_, WIDE>(k, rows, place, cols.start + channel)?;
    }
    for (place, channel) in strips.narrow() {
        task.strip::<_, NARROW>(k, rows, place, cols.start + channel)?;
    }
    for (place, channel) in strips.ones() {
        task.strip::<_, 1>(k, rows, place, cols.start + channel)?;
    }
    Ok(())
}

/// How a task's channels are cut into strips: wide ones, a narrow one, and groups, the last of which overlaps what is
/// before it where vectors do not divide the channels.
#[derive(Clone, Copy)]
struct Strips {
    channels: usize,
}

impl Strips {
    const WIDE: usize = WIDE * GROUP;
    const NARROW: usize = NARROW * GROUP;

    /// Of a group of channels at least.
    fn new(channels: usize) -> Self {
        Self { channels }
    }
    /// Values of all strips, where every one has its own.
    fn len(self) -> usize {
        self.channels.next_multiple_of(GROUP)
    }
    /// Where strips start among those values, and their first channels: the wide ones.
    fn wide(self) -> impl Iterator<Item = (usize, usize)> {
        (0..self.channels / Self::WIDE).map(|k| (k * Self::WIDE, k * Self::WIDE))
    }
    /// The narrow ones.
    fn narrow(self) -> impl Iterator<Item = (usize, usize)> {
        let start = self.channels / Self::WIDE * Self::WIDE;
        (start + Self::NARROW <= self.channels).then_some((start, start)).into_iter()
    }
    /// Those of a group.
    fn ones(self) -> impl Iterator<Item = (usize, usize)> {
        let (start, last) = (self.channels / Self::NARROW * Self::NARROW, self.channels - GROUP);
        (start..self.channels).step_by(GROUP).map(move |at| (at, at.min(last)))
    }
    /// Takes a value of every channel.
    fn gather<A: Real, B: Real>(self, from: &[A], to: &mut [B]) {
        self.copy(|place, channel| {
            let from = from[channel..channel + GROUP].iter();
            let to = to[place..place + GROUP].iter_mut();
            to.zip(from).for_each(|(to, v)| *to = B::from_f64(v.to_f64()));
        });
    }
    /// Gives them back.
    fn scatter<A: Real, B: Real>(self, from: &[A], to: &mut [B]) {
        self.copy(|place, channel| {
            let from = from[place..place + GROUP].iter();
            let to = to[channel..channel + GROUP].iter_mut();
            to.zip(from).for_each(|(to, v)| *to = B::from_f64(v.to_f64()));
        });
    }
    fn copy(self, mut copy: impl FnMut(usize, usize)) {
        let last = self.channels - GROUP;
        (0..self.channels).step_by(GROUP).for_each(|at| copy(at, at.min(last)));
    }
}

/// Memory of a task: rows of strips, of so many tensors, and as many arrays of its channels as it is said.
struct Memory<'w> {
    rows: &'w mut [f64],
    arrays: &'w mut [f64],
}

impl<'w> Memory<'w> {
    /// Values of the memory.
    fn len(plan: &Plan, tensors: usize, arrays: usize) -> usize {
        let channels = plan.block.next_multiple_of(GROUP);
        LINE / size_of::<f64>() + tensors * Self::ROWS + arrays * channels
    }
    /// Values of rows.
    const ROWS: usize = MOST_ROWS * Strips::WIDE;

    /// From where a cache line starts.
    fn new(work: &'w mut [f64], tensors: usize) -> Self {
        let start = to_line(work);
        let (rows, arrays) = work[start..].split_at_mut(tensors * Self::ROWS);
        Self { rows, arrays }
    }
}

/// Rows of strips of `G` groups.
fn strips<A: Real, const G: usize>(rows: &mut [f64]) -> &mut [Strip<A, G>] {
    numbers_mut(rows).as_chunks_mut().0.as_chunks_mut().0
}

/// Places of some rows, as a mask of them alone has them.
fn places_of(places: &[u8], rows: Rows) -> Vec<u8> {
    rows.each().map(|row| places[row]).collect()
}

/// The elements of some columns of some rows of a tensor of rows of `width`.
fn elements<E: Copy>(from: &[E], width: usize, rows: Rows, cols: &Range<usize>) -> Vec<E> {
    let row = |row: usize| &from[row * width..][cols.clone()];
    rows.each().flat_map(row).copied().collect()
}

/// The first failure of tasks.
#[derive(Default)]
struct Failure(Mutex<Option<Error>>);

impl Failure {
    fn note(&self, result: Result<()>) {
        if let Err(error) = result {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        }
    }
    fn result(self) -> Result<()> {
        self.0.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }
}
