//! Which values of a batch count.
use super::{AllMasked, Argument, Check, Role, Visitor};
use crate::engine::places::Places;
use crate::{Error, Memory, Result, Shape};
use std::ops::Range;

/// Which values of a batch count for its statistics, such as those that are no padding: Keras' and Flax'
/// `mask`.
///
/// One byte per place, 1 where the values count and 0 where they do not: the size of a `bool`. With k a
/// value's 1 or 0, and n of a channel `sum(k) + count_eps`, mean and variance are `sum(k * x) / n` and
/// `sum(k * (x - mean)^2) / n`. **All** values are normalized by them, and pass gradients; the gradient that
/// flows back through the statistics reaches those that count. What does not count is not looked at for
/// statistics, so that infinities and NaN there stay where they are.
///
/// ```
/// # use batchnorm::{Cpu, Engine, ForwardTrain, Host, Mask, Saved, Shape};
/// let shape = Shape::new(&[2, 3, 1], 2)?; // two sequences of three steps, one channel
/// let (x, padded) = ([1f32, 3.0, 0.0, 1.0, 3.0, 5.0], [1u8, 1, 0, 1, 1, 1]);
/// let (mut y, mut saved) = ([0.0; 6], Saved::new());
/// let args = ForwardTrain::<Host, f32>::new(&x, &mut y).mask(Mask::<Host>::new(&padded));
/// let args = args.saved(&mut saved);
/// Cpu::default().forward_train(&shape, args)?;
/// assert_eq!(saved.mean().unwrap(), [13.0 / 5.0]);
/// # Ok::<(), batchnorm::Error>(())
/// ```
#[non_exhaustive]
pub struct Mask<'a, M: Memory> {
    /// Length N / C: a place for every position, in the order of memory. Without the last axis of length L
    /// instead of the channels, N / L. Ordinary memory is looked through for other values than 0 and 1; on a
    /// device all but 0 count.
    pub places: M::View<'a, u8>,
    /// The length of the tensor's last axis, where that is the one without which the mask is, whatever the
    /// channels are: Keras 3.
    pub last: Option<usize>,
    /// Added to the number of values that count, which divides: from 0 on.
    pub count_eps: f64,
    /// What a channel is of which no value counts.
    pub all_masked: AllMasked,
}

/// A [`Mask`] without its places.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MaskRules {
    pub last: Option<usize>,
    pub count_eps: f64,
    pub all_masked: AllMasked,
}

/// Keras' `backend.epsilon()`.
const KERAS_EPSILON: f64 = 1e-7;

impl<'a, M: Memory> Mask<'a, M> {
    /// Of the tensor's shape without its channels (length N / C); values are counted exactly, and running
    /// statistics stay where none counts.
    pub fn new(places: M::View<'a, u8>) -> Self {
        Self { places, last: None, count_eps: 0.0, all_masked: AllMasked::default() }
    }
    /// Keras 3's: of the tensor's shape without its last axis, of this length, whichever axis the channels
    /// are. 1e-7 is added to the number of values, and where none counts running statistics decay to 0.
    pub fn keras(places: M::View<'a, u8>, last: usize) -> Self {
        let mask = Self::new(places).without_last(last);
        mask.count_eps(KERAS_EPSILON).all_masked(AllMasked::Zero)
    }
    /// Of the tensor's shape without its last axis, of this length, instead of its channels: which are the
    /// same where channels are the last axis.
    pub fn without_last(self, last: usize) -> Self {
        Self { last: Some(last), ..self }
    }
    /// With this added to the number of values.
    pub fn count_eps(self, count_eps: f64) -> Self {
        Self { count_eps, ..self }
    }
    /// With this rule for a channel without a value that counts.
    pub fn all_masked(self, all_masked: AllMasked) -> Self {
        Self { all_masked, ..self }
    }
    /// The places that f32 numbers say, 1 where values count and 0 where they do not, in memory of their own. On a
    /// device they go through the host.
    ///
    /// ```
    /// # use batchnorm::{Host, Mask};
    /// assert_eq!(Mask::places_of(&Host, &[1.0, 0.0, 1.0])?, [1, 0, 1]);
    /// # Ok::<(), batchnorm::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Invalid`] for another number, NaN among them; the memory's own.
    pub fn places_of(memory: &M, numbers: M::View<'_, f32>) -> Result<M::Buf<u8>> {
        let numbers = memory.download(numbers)?;
        let place = |(at, number): (usize, f32)| match number {
            0.0 => Ok(0u8),
            1.0 => Ok(1),
            _ => {
                let reason = format!("expected 0 or 1 at every place, got {number} at place {at}");
                Err(Error::invalid("mask", reason))
            }
        };
        let places: Vec<u8> = numbers.into_iter().enumerate().map(place).collect::<Result<_>>()?;
        memory.upload(&places)
    }
    /// The same for a shorter time.
    pub fn reborrow(&self) -> Mask<'_, M> {
        let Self { places, last, count_eps, all_masked } = self;
        Mask {
            places: M::reborrow(places),
            last: *last,
            count_eps: *count_eps,
            all_masked: *all_masked,
        }
    }
    /// The mask of these elements, of so many channels, of which each row has whole places.
    pub(crate) fn at(&self, elements: &Range<usize>, channels: usize) -> Result<Mask<'_, M>> {
        let Self { last, count_eps, all_masked, .. } = *self;
        let places = M::slice(&self.places, self.rules().places_of(elements, channels));
        let none = || Error::invalid("mask", "expected as many places as the shape has");
        Ok(Mask { places: places.ok_or_else(none)?, last, count_eps, all_masked })
    }
    pub(crate) fn rules(&self) -> MaskRules {
        let Self { last, count_eps, all_masked, .. } = *self;
        MaskRules { last, count_eps, all_masked }
    }

    pub(super) fn walk<V: Visitor<'a, M>>(&mut self, visitor: &mut V) -> Result<()> {
        visitor.read_bytes(self.rules().argument(), &mut self.places)
    }
    /// Refuses numbers and values without a meaning, once the lengths are known to be right.
    pub(super) fn check_values(&self, shape: &Shape) -> Result<()> {
        self.rules().check(shape)?;
        check_places::<M>(&self.places)
    }
}

impl MaskRules {
    /// How far the number that is added takes the mean towards 0, of values that come to these: their mean, what rounding
    /// it left, their biased variance and how many count; and the sum of squares about where the mean is then.
    pub fn less_and_squares(&self, [mean, rest, var, count]: [f64; 4]) -> (f64, f64) {
        let eps = self.count_eps;
        if eps == 0.0 || count == 0.0 {
            return (0.0, count * var);
        }
        let less = (mean + rest) * (eps / (count + eps));
        (less, count * (var + less * less))
    }
    /// Mean, what rounding it leaves and biased variance by these rules, of values that come to the same four.
    pub fn statistics(&self, of: [f64; 4]) -> [f64; 3] {
        let [mean, rest, _, count] = of;
        if count == 0.0 {
            let is_nan = self.all_masked == AllMasked::Nan;
            let value = if is_nan { f64::NAN } else { 0.0 };
            return [value, 0.0, value];
        }
        let (less, squares) = self.less_and_squares(of);
        let to = mean + (rest - less);
        let rest = mean - to + (rest - less);
        let rest = if rest.is_finite() { rest } else { 0.0 };
        [to, rest, squares / (count + self.count_eps)]
    }
    /// The number of values in a record of so many that count: where none does, statistics stay by it, or move as by a
    /// batch.
    pub fn recorded(&self, count: f64) -> f64 {
        match (count > 0.0, self.all_masked) {
            (true, _) => count,
            (false, AllMasked::Keep) => 0.0,
            (false, _) => 2.0,
        }
    }
    pub fn argument(self) -> Argument {
        Argument { name: "mask", role: self.last.map_or(Role::Positions, Role::WithoutLast) }
    }
    /// The places of so many channels' elements, of which each row has whole ones.
    pub fn places_of(self, elements: &Range<usize>, channels: usize) -> Range<usize> {
        let of = |end: usize| self.argument().role.len(end, channels);
        of(elements.start)..of(elements.end)
    }
    fn check(&self, shape: &Shape) -> Result<()> {
        Places::new(shape, self.last)?;
        let eps = self.count_eps;
        if !(eps >= 0.0 && eps.is_finite()) {
            let reason = format!("count_eps: expected a finite number from 0 on, got {eps}");
            return Err(Error::invalid("mask", reason));
        }
        Ok(())
    }
}

/// Refuses values beside 0 and 1, where they can be seen.
pub(super) fn check_places<M: Memory>(places: &M::View<'_, u8>) -> Result<()> {
    match M::first_above_1(places) {
        Some((at, value)) => {
            let reason = format!("expected 0 or 1 at every place, got {value} at place {at}");
            Err(Error::invalid("mask", reason))
        }
        None => Ok(()),
    }
}

impl<'m, M: Memory> Check<'m, M> {
    /// The same of bytes.
    pub(super) fn bytes(&self, argument: Argument, view: &M::View<'_, u8>) -> Result<()> {
        let Argument { name: what, role } = argument;
        let (expected, got) = (role.len(self.elements, self.channels), M::len(view));
        if got != expected {
            return Err(Error::Length { what, expected, got });
        }
        self.on.check_here(what, view)
    }
}
