//! What travels from a forward to its backward.
use super::Activation;
use super::ops::MaskRules;
use super::saved_counted::Counted;
use super::saved_groups::SavedGroups;
use crate::{DType, Error, Host, Memory, Real, Result, Shape};
#[cfg(feature = "cuda")]
use {crate::Device, cudarc::driver::CudaViewMut};

/// What a forward leaves for its backward: the statistics, weight and bias it used, what its ReLU
/// let through, and for which shape, dtype, epilogue and engine.
///
/// It belongs to the caller and is reusable: the first forward of a shape makes its buffers, later
/// ones write into them. Two forwards before a backward take one each. What changes between
/// forward and backward (weight and bias by an optimizer's step, running statistics) does not reach
/// into it; x alone is the caller's to keep.
pub struct Saved<M: Memory, P: Real> {
    pub(super) whole: SavedBuffers<Forward, Buffers<M, P>>,
    /// In place of the whole, if the last forward was one in groups.
    pub(super) groups: Option<Box<SavedGroups<M, P>>>,
    /// r and d of renormalization, length 2C; anything unless the last forward was one.
    factors: Option<M::Buf<P>>,
    is_renormalized: bool,
    /// Of a part of a batch by a mask; anything unless the last forward was one.
    pub(super) counted: Option<Counted<M>>,
}

/// What is inside of a [`Saved`], and of what other operations save: buffers, and by which forward they have
/// been filled, if one has filled them.
pub(super) struct SavedBuffers<F, B> {
    pub(super) forward: Option<F>,
    buffers: Option<B>,
}

/// The forward that filled a [`Saved`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Forward {
    pub shape: Shape,
    pub dtype: DType,
    pub activation: Activation,
    pub residual: bool,
    pub weight: bool,
    pub bias: bool,
    /// Whether the caller keeps y for the backward.
    pub y_is_kept: bool,
    /// Whether the statistics were the batch's own, so that gradients flow through them.
    pub batch_statistics: bool,
    /// Whether they were given, and are those of a batch of which other ranks have parts: gradients flow through
    /// them, by sums over all parts.
    pub synced: bool,
    /// The mask's rules, if some values did not count.
    pub mask: Option<MaskRules>,
    pub engine: &'static str,
}

/// One allocation: an array of each field of [`ByChannel`], and on a device the reserve behind them, so that a
/// launch has one argument to wait for and to record.
pub(crate) struct Buffers<M: Memory, P: Real> {
    values: M::Buf<P>,
    /// At least `Engine::reserve_len` bytes, in the engine's own format. None if that is 0, or where it lies
    /// behind the values.
    pub reserve: Option<M::Buf<u8>>,
    /// Whose they are.
    engine: &'static str,
    channels: usize,
    reserve_len: usize,
    /// Whether nothing has been written there.
    #[cfg(feature = "cudnn")]
    is_blank: bool,
}

/// What a forward saves of every channel: views of length C, or where they start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ByChannel<T> {
    pub mean: T,
    /// What rounding left of the mean. Without it a mean of 1e6 deviations would cost the gradients all but
    /// one or two digits; it goes into coefficients of the channel, so it costs the loops nothing.
    pub mean_rest: T,
    /// `1 / sqrt(var + eps)`.
    pub invstd: T,
    /// As in the forward, which an optimizer's step may have changed since; ones if absent.
    pub weight: T,
    /// Likewise; zeros if absent.
    pub bias: T,
}

/// Arrays of a [`ByChannel`].
const FIELDS: usize = 5;
/// The first of them are statistics.
pub(super) const STATISTICS: usize = 3;

impl<T> ByChannel<T> {
    fn new([mean, mean_rest, invstd, weight, bias]: [T; FIELDS]) -> Self {
        Self { mean, mean_rest, invstd, weight, bias }
    }
    #[cfg(feature = "cuda")]
    pub fn map<U>(self, f: impl FnMut(T) -> U) -> ByChannel<U> {
        let Self { mean, mean_rest, invstd, weight, bias } = self;
        ByChannel::new([mean, mean_rest, invstd, weight, bias].map(f))
    }
}

/// Elements from one array to the next: each starts at a multiple of 256 bytes, as an allocation would.
pub(super) fn stride(channels: usize) -> usize {
    channels.checked_next_multiple_of(64).unwrap_or(channels)
}

impl<M: Memory, P: Real> Buffers<M, P> {
    /// Zeros in ordinary memory; on a device they hold anything until a forward has filled them.
    fn new(memory: &M, channels: usize, reserve_len: usize, engine: &'static str) -> Result<Self> {
        let behind = if M::BY_ADDRESS { reserve_len.div_ceil(size_of::<P>()) } else { 0 };
        let len = stride(channels).saturating_mul(FIELDS).saturating_add(behind);
        let apart = reserve_len > 0 && !M::BY_ADDRESS;
        Ok(Self {
            values: memory.unwritten(len)?,
            reserve: apart.then(|| memory.unwritten(reserve_len)).transpose()?,
            engine,
            channels,
            reserve_len,
            #[cfg(feature = "cudnn")]
            is_blank: true,
        })
    }
    /// One of the arrays.
    fn array(&self, index: usize) -> Option<M::View<'_, P>> {
        let start = index * stride(self.channels);
        M::part(&self.values, start..start + self.channels)
    }
    /// Copies into one of the arrays, or sets it to zeros.
    pub fn set(&mut self, memory: &M, index: usize, from: Option<M::View<'_, P>>) -> Result<()> {
        self.set_part(memory, index, 0..self.channels, from)
    }
    /// The same of some channels.
    fn set_part(
        &mut self,
        memory: &M,
        index: usize,
        channels: std::ops::Range<usize>,
        from: Option<M::View<'_, P>>,
    ) -> Result<()> {
        let start = index * stride(self.channels);
        let mut all = M::view_mut(&mut self.values);
        let channels = start + channels.start..start + channels.end;
        let Some(to) = M::slice_mut(&mut all, channels) else { return Ok(()) };
        match from {
            Some(from) => memory.copy(from, to),
            None => memory.zero(to),
        }
    }
    /// Copies each of the arrays of some channels, that number `i` from the `from(i)`th value of the same one there on.
    pub(super) fn set_channels(
        &mut self,
        memory: &M,
        channels: &std::ops::Range<usize>,
        (there, from): (&Self, impl Fn(usize) -> usize),
    ) -> Result<()> {
        for index in 0..FIELDS {
            let start = index * stride(there.channels) + from(index);
            let part = M::part(&there.values, start..start + channels.len());
            self.set_part(memory, index, channels.clone(), part)?;
        }
        Ok(())
    }
    /// All of them, to ask where they are.
    pub fn all(&self) -> M::View<'_, P> {
        M::view(&self.values)
    }
}

impl<P: Real> Buffers<Host, P> {
    pub fn by_channel(&self) -> ByChannel<&[P]> {
        let at = |index| &self.values[index * stride(self.channels)..][..self.channels];
        ByChannel::new([0, 1, 2, 3, 4].map(at))
    }
    pub fn by_channel_mut(&mut self) -> ByChannel<&mut [P]> {
        self.with_reserve_mut().0
    }
    /// The same, and the reserve.
    pub fn with_reserve_mut(&mut self) -> (ByChannel<&mut [P]>, Option<&mut [u8]>) {
        let (stride, channels) = (stride(self.channels), self.channels);
        let mut rest = &mut self.values[..];
        let arrays = ByChannel::new([(); 5].map(|()| {
            let (array, behind) = std::mem::take(&mut rest).split_at_mut(stride);
            rest = behind;
            &mut array[..channels]
        }));
        (arrays, self.reserve.as_mut().map(|reserve| &mut reserve[..]))
    }
}

#[cfg(feature = "cuda")]
impl<P: Real> Buffers<Device, P> {
    pub fn all_mut(&mut self) -> CudaViewMut<'_, P> {
        self.values.as_view_mut()
    }
    /// Bytes before each of the arrays, and before the reserve.
    pub fn offsets(&self) -> (ByChannel<usize>, usize) {
        let of = |index: usize| index * stride(self.channels) * size_of::<P>();
        (ByChannel::new([0, 1, 2, 3, 4].map(of)), of(FIELDS))
    }
    /// Zeros where the rest of the mean is, for an engine that never writes it: once, when they are new.
    #[cfg(feature = "cudnn")]
    pub fn zero_rest(&mut self, memory: &Device) -> Result<()> {
        if self.is_blank {
            let start = stride(self.channels);
            memory.zero(self.values.slice_mut(start..start + self.channels))?;
            self.is_blank = false;
        }
        Ok(())
    }
    /// Bytes of the reserve.
    pub fn reserve_len(&self) -> usize {
        self.reserve_len
    }
}

/// What a forward is about to fill, and the mark that it did.
pub(crate) struct Opening<'s, F, B> {
    pub buffers: &'s mut B,
    pub mark: Mark<'s, F>,
}

/// An [`Opening`] of a [`Saved`].
pub(crate) type Opened<'s, M, P> = Opening<'s, Forward, Buffers<M, P>>;

/// What is noted once a forward has filled the buffers.
#[must_use = "without it a backward finds nothing saved"]
pub(crate) struct Mark<'s, F> {
    place: &'s mut Option<F>,
    forward: F,
}

impl<F> Mark<'_, F> {
    pub fn filled(self) {
        *self.place = Some(self.forward);
    }
}

impl<'s, F, B> Opening<'s, F, B> {
    /// For an engine that cannot fail any more.
    pub fn filled(self) -> &'s mut B {
        self.mark.filled();
        self.buffers
    }
}

impl<F, B> SavedBuffers<F, B> {
    /// No forward, nothing allocated.
    pub const NONE: Self = Self { forward: None, buffers: None };

    /// Nothing is saved until the next forward has filled them.
    pub fn clear(&mut self) {
        self.forward = None;
    }
    /// The forward that has filled them, if one has.
    pub fn forward(&self) -> Option<&F> {
        self.forward.as_ref()
    }
    /// The buffers that a forward has filled.
    pub fn filled(&self) -> Option<&B> {
        self.forward.as_ref().and(self.buffers.as_ref())
    }
    /// Buffers for a forward that is about to run, those of the last one if they `fit`. Until it says that they
    /// are filled, nothing is saved.
    pub fn open(
        &mut self,
        forward: F,
        fit: impl FnOnce(&B) -> bool,
        make: impl FnOnce() -> Result<B>,
    ) -> Result<Opening<'_, F, B>> {
        self.forward = None;
        let buffers = match self.buffers.take().filter(fit) {
            Some(buffers) => buffers,
            None => make()?,
        };
        let buffers = self.buffers.insert(buffers);
        Ok(Opening { buffers, mark: Mark { place: &mut self.forward, forward } })
    }
    /// What a forward left, if there was one.
    pub fn made(&self) -> Result<(&F, &B)> {
        let none = || Error::invalid("saved", "expected what a forward saved, got an empty one");
        self.forward.as_ref().zip(self.buffers.as_ref()).ok_or_else(none)
    }
}

impl<M: Memory, P: Real> Saved<M, P> {
    /// Nothing saved, nothing allocated.
    pub fn new() -> Self {
        let (whole, is_renormalized) = (SavedBuffers::NONE, false);
        Self { whole, groups: None, factors: None, is_renormalized, counted: None }
    }
    /// The shape of the forward; none before the first.
    pub fn shape(&self) -> Option<Shape> {
        self.forward().ok().map(|forward| forward.shape)
    }
    /// The mean that the forward subtracted, rounded to the parameters' type, length C; none where it was a
    /// forward in ghost batches, which subtracts several.
    pub fn mean(&self) -> Option<M::View<'_, P>> {
        self.whole.filled().and_then(|buffers| buffers.array(0))
    }
    /// What the forward multiplied by, `1 / sqrt(var + eps)`, length C; none as for [`mean`](Self::mean).
    pub fn invstd(&self) -> Option<M::View<'_, P>> {
        self.whole.filled().and_then(|buffers| buffers.array(2))
    }
    /// Whether the forward had a mask, which its backward then asks for again.
    pub fn is_masked(&self) -> Option<bool> {
        self.forward().ok().map(|forward| forward.mask.is_some())
    }
    /// Whether the statistics were frozen: a forward by running statistics.
    pub fn is_frozen(&self) -> Option<bool> {
        self.forward().ok().map(|forward| !forward.batch_statistics && !forward.synced)
    }
    /// Notes that the statistics which the last forward was given are those of all parts of its batch.
    pub(crate) fn set_synced(&mut self) {
        if let Some(forward) = &mut self.whole.forward {
            forward.synced = true;
        }
    }

    /// Buffers for a forward that is about to run. Until it says that they are filled, nothing is
    /// saved.
    pub(crate) fn open(
        &mut self,
        memory: &M,
        forward: Forward,
        reserve_len: usize,
    ) -> Result<Opened<'_, M, P>> {
        let channels = forward.shape.channels();
        self.open_of(memory, forward, channels, reserve_len)
    }
    /// The same for so many channels, those of all groups that are one call.
    pub(super) fn open_of(
        &mut self,
        memory: &M,
        forward: Forward,
        channels: usize,
        reserve_len: usize,
    ) -> Result<Opened<'_, M, P>> {
        let engine = forward.engine;
        // Buffers of another engine may hold what this one neither writes nor wants to find, and those
        // of another device are not to be written from here.
        let fit = |b: &Buffers<M, P>| {
            let here = memory.check_here("saved", &b.all()).is_ok();
            let alike = b.engine == engine && b.channels == channels;
            here && alike && b.reserve_len >= reserve_len
        };
        self.is_renormalized = false;
        if let Some(groups) = &mut self.groups {
            groups.clear();
        }
        self.whole.open(forward, fit, || Buffers::new(memory, channels, reserve_len, engine))
    }

    /// Nothing is saved until the next forward; the memory stays.
    pub(super) fn clear(&mut self) {
        self.is_renormalized = false;
        self.whole.clear();
    }
    /// Memory for r and d, that of the last forward with renormalization if it fits.
    pub(crate) fn take_factors(&mut self, memory: &M, channels: usize) -> Result<M::Buf<P>> {
        let len = channels.saturating_mul(2);
        let fits = |buf: &M::Buf<P>| {
            let view = M::view(buf);
            M::len(&view) == len && memory.check_here("saved", &view).is_ok()
        };
        self.factors.take().filter(fits).map_or_else(|| memory.zeros(len), Ok)
    }
    /// Notes that the forward which filled this was by the batch's own statistics, with these r and d, in a layer
    /// with these parameters.
    pub(crate) fn set_renormalized(&mut self, factors: M::Buf<P>, weight: bool, bias: bool) {
        if let Some(forward) = &mut self.whole.forward {
            let batch_statistics = !forward.synced;
            *forward = Forward { weight, bias, batch_statistics, ..*forward };
        }
        (self.factors, self.is_renormalized) = (Some(factors), true);
    }
    /// r and d, if the forward was one with renormalization.
    pub(crate) fn renormalized(&self) -> Option<&M::Buf<P>> {
        self.factors.as_ref().filter(|_| self.is_renormalized)
    }

    /// What a forward left, if there was one.
    pub(crate) fn made(&self) -> Result<(&Forward, &Buffers<M, P>)> {
        self.check_whole()?;
        self.whole.made()
    }
}

impl<M: Memory, P: Real> Default for Saved<M, P> {
    fn default() -> Self {
        Self::new()
    }
}

impl<M: Memory, P: Real> std::fmt::Debug for Saved<M, P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Saved").field("forward", &self.forward().ok()).finish_non_exhaustive()
    }
}

/// Refuses a backward that asks for another shape, dtype or engine than its forward had.
pub(super) fn check_source(
    then: (&Shape, DType, &'static str),
    now: (&Shape, DType, &'static str),
) -> Result<()> {
    if then.0 != now.0 {
        return Err(Error::saved("shape", then.0, now.0));
    }
    if then.1 != now.1 {
        return Err(Error::saved("dtype", then.1, now.1));
    }
    if then.2 != now.2 {
        return Err(Error::saved("engine", then.2, now.2));
    }
    Ok(())
}

/// Refuses another choice of weight and bias than the forward's.
pub(super) fn check_parameters(then: (bool, bool), now: (bool, bool)) -> Result<()> {
    let given = |there: bool| if there { "given" } else { "none" };
    for (what, then, now) in [("weight", then.0, now.0), ("bias", then.1, now.1)] {
        if then != now {
            return Err(Error::saved(what, given(then), given(now)));
        }
    }
    Ok(())
}

impl Forward {
    /// Refuses a backward that asks for another shape, dtype or engine.
    pub(crate) fn check(&self, shape: &Shape, dtype: DType, engine: &'static str) -> Result<()> {
        check_source((&self.shape, self.dtype, self.engine), (shape, dtype, engine))
    }
    /// Refuses a layer that has other parameters.
    pub(crate) fn check_parameters(&self, weight: bool, bias: bool) -> Result<()> {
        check_parameters((self.weight, self.bias), (weight, bias))
    }
}
