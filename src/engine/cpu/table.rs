//! What a channel is normalized by: statistics and parameters, the coefficients that follow from
//! them, and those of a strip of columns, where loops find them in order.
use super::masked::Masked;
use super::plan::Plan;
use super::simd::{GROUP, ROOM, Simd};
use super::tiles::{numbers, numbers_mut};
use crate::engine::saved::{Buffers, ByChannel};
use crate::{Host, Real};
use std::ops::Range;

/// A channel's coefficients.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Coef<A> {
    pub mean: A,
    /// `weight * invstd`.
    pub scale: A,
    /// The bias, less `scale` times what rounding left of the mean.
    pub bias: A,
    /// `sum(g) / m`, less `slope` times what rounding left of the mean.
    pub mean_g: A,
    /// `invstd^2 * sum(g * (x - mean)) / m`.
    pub slope: A,
}

impl<A: Real> Coef<A> {
    /// The one expression of the forward, and of a backward that computes z again: the same bits.
    #[inline(always)]
    pub fn normalize(self, x: A) -> A {
        (x - self.mean) * self.scale + self.bias
    }
}

/// Weight and bias, ones and zeros where absent.
#[derive(Clone, Copy)]
pub(super) struct Parameters<'a, A> {
    pub weight: Option<&'a [A]>,
    pub bias: Option<&'a [A]>,
}

impl<'a, A: Real> Parameters<'a, A> {
    /// Those of a forward.
    pub fn saved(saved: &'a Buffers<Host, A>) -> Self {
        let ByChannel { weight, bias, .. } = saved.by_channel();
        Self { weight: Some(weight), bias: Some(bias) }
    }
    /// Keeps them for the backward.
    pub fn save(&self, saved: &mut Buffers<Host, A>) {
        let saved = saved.by_channel_mut();
        self.write(saved.weight, saved.bias);
    }
    /// The same, into arrays of these channels.
    pub fn write(&self, to_weight: &mut [A], to_bias: &mut [A]) {
        match self.weight {
            Some(weight) => to_weight.copy_from_slice(weight),
            None => to_weight.fill(A::from_f64(1.0)),
        }
        match self.bias {
            Some(bias) => to_bias.copy_from_slice(bias),
            None => to_bias.fill(A::default()),
        }
    }
    /// Those of some channels.
    pub fn of(self, channels: Range<usize>) -> Self {
        let part = |all: &'a [A]| &all[channels.clone()];
        Self { weight: self.weight.map(part), bias: self.bias.map(part) }
    }
}

/// What some channels are normalized by, in the type that is saved.
#[derive(Clone, Copy)]
pub(super) struct Statistics<'a, A> {
    pub mean: &'a [A],
    /// What rounding left of the mean.
    pub rest: &'a [A],
    /// `1 / sqrt(var + eps)`.
    pub invstd: &'a [A],
}

impl<'a, A: Real> Statistics<'a, A> {
    /// Arrays that they consist of.
    pub const FIELDS: usize = 3;
    /// What [`Statistics::split_mut`] has been given, of `n` channels.
    pub fn split(memory: &'a [f64], n: usize) -> Self {
        let [mean, rest, invstd] = split(numbers(memory), n);
        Self { mean, rest, invstd }
    }
    /// Mean, rest and invstd of `n` channels, to write.
    pub fn split_mut(memory: &'a mut [f64], n: usize) -> [&'a mut [A]; 3] {
        split_mut(numbers_mut(memory), n)
    }
    /// Those of a forward.
    pub fn saved(saved: &'a Buffers<Host, A>, channels: Range<usize>) -> Self {
        let ByChannel { mean, mean_rest, invstd, .. } = saved.by_channel();
        let [mean, rest, invstd] = [mean, mean_rest, invstd].map(|all| &all[channels.clone()]);
        Self { mean, rest, invstd }
    }
    /// Keeps those of `channels` for the backward.
    pub fn save(&self, saved: &mut Buffers<Host, A>, channels: Range<usize>) {
        let saved = saved.by_channel_mut();
        saved.mean[channels.clone()].copy_from_slice(self.mean);
        saved.mean_rest[channels.clone()].copy_from_slice(self.rest);
        saved.invstd[channels].copy_from_slice(self.invstd);
    }
}

pub(super) fn split<A, const N: usize>(mut rest: &[A], n: usize) -> [&[A]; N] {
    let mut fields = [&[][..]; N];
    for field in &mut fields {
        (*field, rest) = rest.split_at(n);
    }
    fields
}
pub(super) fn split_mut<A, const N: usize>(mut rest: &mut [A], n: usize) -> [&mut [A]; N] {
    [(); N].map(|()| {
        let (field, more) = std::mem::take(&mut rest).split_at_mut(n);
        rest = more;
        field
    })
}

/// `N` coefficients of some channels, an array for each: computed once for an operation, read by all of its tiles.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a, A, const N: usize> {
    /// The first channel.
    pub first: usize,
    pub fields: [&'a [A]; N],
}

/// The coefficients of some channels by the fields of [`Coef`], in its order.
pub(super) type Table<'a, A> = Fields<'a, A, FIELDS>;
pub(super) const FIELDS: usize = 5;

impl<'a, A: Real, const N: usize> Fields<'a, A, N> {
    /// Arrays that it consists of.
    pub const FIELDS: usize = N;
    /// What a [`FieldsMut`] of the same channels has written there.
    pub fn new(memory: &'a [f64], channels: Range<usize>) -> Self {
        Self { first: channels.start, fields: split(numbers(memory), channels.len()) }
    }
}

impl<'a, A: Real> Table<'a, A> {
    pub fn at(&self, channel: usize) -> Coef<A> {
        let [mean, scale, bias, mean_g, slope] = self.fields.map(|f| f[channel - self.first]);
        Coef { mean, scale, bias, mean_g, slope }
    }
    /// What the forward takes of some of the channels.
    pub fn normal(&self, channels: Range<usize>) -> Normal<'a, A> {
        let [mean, scale, bias, ..] = self.fields(channels);
        [mean, scale, bias]
    }
    /// Each field of some of the channels.
    fn fields(&self, channels: Range<usize>) -> [&'a [A]; FIELDS] {
        self.fields.map(|field| &field[channels.start - self.first..channels.end - self.first])
    }
}

/// Means, scales and biases of columns or channels.
pub(super) type Normal<'a, A> = [&'a [A]; 3];

/// [`Fields`] to write.
pub(super) struct FieldsMut<'a, A, const N: usize> {
    pub channels: Range<usize>,
    pub fields: [&'a mut [A]; N],
}

/// A [`Table`] to write.
pub(super) type TableMut<'a, A> = FieldsMut<'a, A, FIELDS>;

impl<'a, A: Real, const N: usize> FieldsMut<'a, A, N> {
    /// Those of these channels, which `memory` has room for.
    pub fn new(memory: &'a mut [f64], channels: Range<usize>) -> Self {
        let fields = split_mut(numbers_mut(memory), channels.len());
        Self { channels, fields }
    }
    /// Arrays of a value for each of these channels.
    pub fn of(channels: Range<usize>, fields: [&'a mut [A]; N]) -> Self {
        Self { channels, fields }
    }
    pub fn reborrow(&mut self) -> FieldsMut<'_, A, N> {
        let fields = self.fields.each_mut().map(|field| &mut **field);
        FieldsMut { channels: self.channels.clone(), fields }
    }
    /// To read what has been written.
    pub fn read(&self) -> Fields<'_, A, N> {
        let fields = self.fields.each_ref().map(|field| &**field);
        Fields { first: self.channels.start, fields }
    }
    /// The same, for as long as there are the arrays.
    pub fn into_read(self) -> Fields<'a, A, N> {
        Fields { first: self.channels.start, fields: self.fields.map(|field| &*field) }
    }
}

impl<A: Real> TableMut<'_, A> {
    /// Sets `mean`, `scale` and `bias`.
    pub fn forward(self, simd: Simd, by: Statistics<'_, A>, parameters: Parameters<'_, A>) {
        let Self { channels, fields: [mean, scale, bias, ..] } = self;
        let n = channels.len();
        let Parameters { weight, bias: given } = parameters.of(channels);
        mean.copy_from_slice(by.mean);
        match given {
            Some(given) => bias.copy_from_slice(given),
            None => bias.fill(A::default()),
        }
        scale.copy_from_slice(by.invstd);
        simd.vectorize(
            #[inline(always)]
            |_| {
                let (scale, bias, rest) = (&mut scale[..n], &mut bias[..n], &by.rest[..n]);
                if let Some(weight) = weight {
                    for (scale, weight) in scale.iter_mut().zip(weight) {
                        *scale = *weight * *scale;
                    }
                }
                for k in 0..n {
                    // A scale that is infinite times no rest would be NaN.
                    let less = bias[k] - rest[k] * scale[k];
                    bias[k] = if rest[k] == A::default() { bias[k] } else { less };
                }
            },
        );
    }
    /// Sets `mean_g` and `slope` by the sums of `g` and of `g * xhat` over `m` values.
    pub fn gradient<S: Real>(
        self,
        simd: Simd,
        by: Statistics<'_, A>,
        (sum, product): (&[S], &[S]),
        m: f64,
    ) {
        let Self { channels, fields: [.., mean_g, slope] } = self;
        let n = channels.len();
        simd.vectorize(
            #[inline(always)]
            |_| {
                let (mean_g, slope) = (&mut mean_g[..n], &mut slope[..n]);
                let (sum, product) = (&sum[..n], &product[..n]);
                let (rest, invstd) = (&by.rest[..n], &by.invstd[..n]);
                for k in 0..n {
                    let of_x = product[k].to_f64() / m * invstd[k].to_f64();
                    let less = finite(rest[k].to_f64() * of_x);
                    mean_g[k] = A::from_f64(sum[k].to_f64() / m - less);
                    slope[k] = A::from_f64(of_x);
                }
            },
        );
    }
}

impl<A: Real> TableMut<'_, A> {
    /// The same by a mask, of which channels may have different numbers of values.
    pub fn masked_gradient<B: Real>(
        self,
        by: Statistics<'_, A>,
        (sums, products): (&[B], &[B]),
        mask: &Masked<'_>,
    ) {
        let Self { channels, fields: [.., mean_g, slope] } = self;
        for (k, c) in channels.enumerate() {
            let n = mask.divisor(c);
            let of_x = products[k].to_f64() / n * by.invstd[k].to_f64();
            // The mean is not that of the values where more than these are counted.
            let (mean, rest) = (by.mean[k].to_f64(), by.rest[k].to_f64());
            let less = finite((rest + (mean + rest) * mask.share(c)) * of_x);
            mean_g[k] = A::from_f64(sums[k].to_f64() / n - less);
            slope[k] = A::from_f64(of_x);
        }
    }
}

/// A share of the rest of a rounded mean; nothing where it is not finite, for NaN would hide an
/// infinity.
#[inline(always)]
pub(super) fn finite(share: f64) -> f64 {
    if share.is_finite() { share } else { 0.0 }
}

/// The coefficients of a strip of columns, or of channels, an array for each field, so that loops over
/// columns become vectors. On the stack it is faster to look up than a table.
#[repr(align(64))] // a cache line
pub(super) struct Strip<A> {
    fields: [[A; PLACES]; FIELDS],
    /// Place of the first.
    first: usize,
}
/// Room after the alignment of the first, and for a whole group from the last on.
const PLACES: usize = ROOM + 2 * GROUP;

impl<A: Real> Strip<A> {
    pub fn new() -> Self {
        Self { fields: [[A::default(); PLACES]; FIELDS], first: 0 }
    }
    /// Before it is filled: places the coefficients so that those of column `head` start a cache
    /// line, as the values there do. Vectors that straddle two lines take twice as long to load.
    pub fn align(&mut self, head: usize) {
        self.first = head.next_multiple_of(GROUP) - head;
    }
    /// Sets those of columns: all fields, or what the forward takes.
    pub fn load(&mut self, plan: &Plan, cols: &Range<usize>, table: &Table<'_, A>, gradient: bool) {
        self.set(table.fields(plan.channels_in(cols)), gradient, |field, to| {
            plan.expand(cols, field, to);
        });
    }
    /// Sets those of channels.
    pub fn load_channels(&mut self, channels: Range<usize>, table: &Table<'_, A>, gradient: bool) {
        self.set(table.fields(channels), gradient, |field, to| {
            to[..field.len()].copy_from_slice(field);
        });
    }
    fn set(&mut self, fields: [&[A]; FIELDS], gradient: bool, copy: impl Fn(&[A], &mut [A])) {
        let most = if gradient { FIELDS } else { 3 };
        for (field, to) in fields.into_iter().zip(&mut self.fields).take(most) {
            copy(field, &mut to[self.first..]);
        }
    }
    /// The coefficients of the `i`th.
    #[inline(always)]
    pub fn at(&self, i: usize) -> Coef<A> {
        let place = self.first + i;
        let [mean, scale, bias, mean_g, slope] = &self.fields;
        Coef {
            mean: mean[place],
            scale: scale[place],
            bias: bias[place],
            mean_g: mean_g[place],
            slope: slope[place],
        }
    }
    /// What the forward takes of all.
    pub fn normal(&self) -> Normal<'_, A> {
        let [mean, scale, bias, ..] = &self.fields;
        [mean, scale, bias].map(|field| &field[self.first..])
    }
    /// The coefficients of whole groups of values from the `i`th on, by the number of the group.
    #[inline(always)]
    pub fn groups(&self, i: usize, count: usize) -> impl Fn(usize) -> [[A; GROUP]; FIELDS] {
        let places = self.first + i..self.first + i + count * GROUP;
        let [mean, scale, bias, mean_g, slope] = self.fields.each_ref().map(
            #[inline(always)]
            |field| field[places.clone()].as_chunks::<GROUP>().0,
        );
        #[inline(always)]
        move |i| [mean[i], scale[i], bias[i], mean_g[i], slope[i]]
    }
}

/// Coefficients of a group of values.
pub(super) trait Lanes<A> {
    fn at(&self, lane: usize) -> Coef<A>;
}
impl<A: Real> Lanes<A> for Coef<A> {
    #[inline(always)]
    fn at(&self, _: usize) -> Coef<A> {
        *self
    }
}
/// Of columns: what the forward takes.
impl<A: Real> Lanes<A> for [[A; GROUP]; 3] {
    #[inline(always)]
    fn at(&self, l: usize) -> Coef<A> {
        let [mean, scale, bias] = self;
        Coef { mean: mean[l], scale: scale[l], bias: bias[l], ..Coef::default() }
    }
}
/// The same of each field.
impl<A: Real> Lanes<A> for [[A; GROUP]; FIELDS] {
    #[inline(always)]
    fn at(&self, l: usize) -> Coef<A> {
        let [mean, scale, bias, mean_g, slope] = self;
        Coef { mean: mean[l], scale: scale[l], bias: bias[l], mean_g: mean_g[l], slope: slope[l] }
    }
}
