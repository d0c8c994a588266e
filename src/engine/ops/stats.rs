//! Statistics of a part of a batch.
use super::{Arguments, Check, Mask, Op, Request, Visitor, record, tensor};
use crate::{Element, Error, Memory, Result, Shape};

/// Arguments of [`Engine::stats`](crate::Engine::stats). N is the number of elements of the shape, C its
/// channels, m the values per channel.
///
/// ```
/// # use batchnorm::{Cpu, Engine, Host, Shape, Stats};
/// let (shape, x) = (Shape::new(&[4, 1], 1)?, [1f32, 2.0, 3.0, 4.0]);
/// let mut record = [0.0; 4];
/// Cpu::default().stats(&shape, Stats::<Host, f32>::new(&x, &mut record))?;
/// assert_eq!(record, [2.5, 0.0, 1.25, 4.0]);
/// # Ok::<(), batchnorm::Error>(())
/// ```
#[non_exhaustive]
pub struct Stats<'a, M: Memory, E: Element> {
    /// Length N.
    pub x: M::View<'a, E>,
    /// Length 3C + 1: every channel's mean, what rounding it left, every channel's biased variance, m.
    /// One record to all-gather.
    ///
    /// Variances below 1e-25 of x that is not f64, which only an eps below 1e-30 sees, may have lost
    /// digits; the variance of deviations beyond 1e154 (f64) is infinite.
    pub record: M::ViewMut<'a, f64>,
    /// Which values count; all if absent. Mean and variance are then those that a training forward by this mask
    /// normalizes by, and m is how many values of a channel count: the same for every channel, so that a mask without
    /// another last axis than the channels' is refused. Where none counts, m is 0 by
    /// [`AllMasked::Keep`](crate::AllMasked::Keep); by the other rules mean and variance are 0 or NaN and m is 2, as of
    /// a batch by which statistics move.
    pub mask: Option<Mask<'a, M>>,
}

impl<'a, M: Memory, E: Element> Stats<'a, M, E> {
    /// Of `x` (length N) into `record` (length 3C + 1).
    pub fn new(x: M::View<'a, E>, record: M::ViewMut<'a, f64>) -> Self {
        Self { x, record, mask: None }
    }
    /// Of the values that count for this mask alone.
    pub fn mask(self, mask: Mask<'a, M>) -> Self {
        Self { mask: Some(mask), ..self }
    }
    /// What is asked of an engine.
    pub fn request(&self) -> Request {
        Request::new(Op::Stats, E::DTYPE).mask(self.mask.is_some())
    }
    /// The same for a shorter time.
    pub fn reborrow(&mut self) -> Stats<'_, M, E> {
        let Self { x, record, mask } = self;
        let mask = mask.as_ref().map(Mask::reborrow);
        Stats { x: M::reborrow(x), record: M::reborrow_mut(record), mask }
    }
    /// The check every engine makes first, for the memory that it works on.
    pub(in crate::engine) fn check(&mut self, on: &M, shape: &Shape) -> Result<()> {
        self.walk(&mut Check::new(on, shape))?;
        let Some(mask) = &self.mask else { return Ok(()) };
        mask.check_values(shape)?;
        match mask.last {
            Some(last) if shape.inner() > 1 || last != shape.channels() => {
                let reason = format!(
                    "of a record: expected one of positions, of which every channel has as many values, got one \
                     without a last axis of {last} that is not the channels'"
                );
                Err(Error::invalid("mask", reason))
            }
            _ => Ok(()),
        }
    }
}

impl<'a, M: Memory, E: Element> Arguments<'a, M> for Stats<'a, M, E> {
    #[inline]
    fn walk<V: Visitor<'a, M>>(&mut self, visitor: &mut V) -> Result<()> {
        let Self { x, record: to, mask } = self;
        visitor.read(tensor("x"), x)?;
        mask.as_mut().map_or(Ok(()), |mask| mask.walk(visitor))?;
        visitor.write(record("record"), to)
    }
}
