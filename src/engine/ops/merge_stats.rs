//! The statistics of all parts of a batch, from those of each.
use super::{Arguments, Check, OneValue, Op, Request, Running, Visitor, record, records};
use crate::{Error, Memory, Real, Result};

/// Arguments of [`Engine::merge_stats`](crate::Engine::merge_stats). C is the number of channels.
///
/// ```
/// # use batchnorm::{Cpu, Engine, Host, MergeStats};
/// // Two parts of one channel: mean, rest of the mean, variance, number of values.
/// let records = [2.5, 0.0, 1.25, 4.0, 1.0, 0.0, 0.0, 2.0];
/// let mut record = [0.0; 4];
/// Cpu::default().merge_stats(MergeStats::<Host, f32>::new(&records, &mut record))?;
/// assert_eq!((record[0], record[3]), (2.0, 6.0));
/// # Ok::<(), batchnorm::Error>(())
/// ```
#[non_exhaustive]
pub struct MergeStats<'a, M: Memory, P: Real> {
    /// The records of all parts, one after the other. A part may be empty. Counts that are no whole
    /// numbers from 0 on are refused. An engine on a device refuses only those that it reads back: none
    /// where the caller vouches for 2 values with `known`, otherwise those up to the second value.
    pub records: M::View<'a, f64>,
    /// How many values per channel the caller knows to be counted in the records, such as those of
    /// its own part; 0 where it knows of none. From 2 on an engine on a device need not read the
    /// counts back, for which it would wait.
    pub known: usize,
    /// What one value per channel over all the parts is.
    pub one_value: OneValue,
    /// Left alone if absent, or if all parts are empty unless [`Running::empty_batch`] says otherwise.
    pub running: Option<Running<'a, M, P>>,
    /// Length 3C + 1: the record of all parts together, for
    /// [`Statistics::Record`](crate::Statistics::Record), or to be merged with others.
    pub record: M::ViewMut<'a, f64>,
}

impl<'a, M: Memory, P: Real> MergeStats<'a, M, P> {
    /// Of `records` (length `k * (3C + 1)`) into `record` (length 3C + 1); no value is known to be
    /// counted, and there are no running statistics.
    pub fn new(records: M::View<'a, f64>, record: M::ViewMut<'a, f64>) -> Self {
        Self { records, known: 0, one_value: OneValue::Refuse, running: None, record }
    }
    /// So many values per channel are known to be counted.
    pub fn known(self, known: usize) -> Self {
        Self { known, ..self }
    }
    /// Takes one value per channel over all the parts like this, instead of refusing it: an engine on a
    /// device need not read the counts back then.
    pub fn one_value(self, one_value: OneValue) -> Self {
        Self { one_value, ..self }
    }
    /// Updates these running statistics, mean and variance of length C each; `factor` is the weight of
    /// the new value, 0 to 1. Those of a [`RunningStats`](crate::RunningStats) are assigned to the field.
    pub fn running(self, mean: M::ViewMut<'a, P>, var: M::ViewMut<'a, P>, factor: f64) -> Self {
        Self { running: Some(Running::new(mean, var, factor)), ..self }
    }
    /// What is asked of an engine.
    pub fn request(&self) -> Request {
        let running = self.running.as_ref().map(Running::rules);
        Request { running, ..Request::new(Op::MergeStats, P::DTYPE) }
    }
    /// The same for a shorter time.
    pub fn reborrow(&mut self) -> MergeStats<'_, M, P> {
        let Self { records, known, one_value, running, record } = self;
        MergeStats {
            records: M::reborrow(records),
            known: *known,
            one_value: *one_value,
            running: running.as_mut().map(Running::reborrow),
            record: M::reborrow_mut(record),
        }
    }
    /// The check every engine makes first, for the memory that it works on. What comes back is the
    /// number of channels.
    pub(in crate::engine) fn check(&mut self, on: &M) -> Result<usize> {
        let got = M::len(&M::as_view(&self.record));
        if got < 4 || got % 3 != 1 {
            let reason = format!("expected 3C + 1 elements for 1 channel or more, got {got}");
            return Err(Error::invalid("record", reason));
        }
        let channels = got / 3;
        self.walk(&mut Check { on, elements: 0, channels })?;
        Running::check_values(self.running.as_ref())?;
        Ok(channels)
    }
}

impl<'a, M: Memory, P: Real> Arguments<'a, M> for MergeStats<'a, M, P> {
    #[inline]
    fn walk<V: Visitor<'a, M>>(&mut self, visitor: &mut V) -> Result<()> {
        let Self { records: parts, known: _, one_value: _, running, record: to } = self;
        visitor.write(record("record"), to)?;
        visitor.read(records("records"), parts)?;
        running.as_mut().map_or(Ok(()), |running| running.walk(visitor))
    }
}
