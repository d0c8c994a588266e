//! The coefficients of channels: computed once for an operation, read by all of its tiles.
use super::coefs::Coef;
use super::tiles::{numbers, numbers_mut};
use crate::engine::saved::Buffers;
use crate::{Host, Real};
use std::ops::Range;

/// Weight and bias, ones and zeros where absent.
#[derive(Clone, Copy)]
pub(super) struct Parameters<'a, A> {
    pub weight: Option<&'a [A]>,
    pub bias: Option<&'a [A]>,
}

impl<'a, A: Real> Parameters<'a, A> {
    /// Those of a forward.
    pub fn saved(saved: &'a Buffers<Host, A>) -> Self {
        Self { weight: Some(&saved.weight), bias: Some(&saved.bias) }
    }
    /// Keeps them for the backward.
    pub fn save(&self, saved: &mut Buffers<Host, A>) {
        match self.weight {
            Some(weight) => saved.weight.copy_from_slice(weight),
            None => saved.weight.fill(A::from_f64(1.0)),
        }
        match self.bias {
            Some(bias) => saved.bias.copy_from_slice(bias),
            None => saved.bias.fill(A::default()),
        }
    }
}

/// The coefficients of some channels, an array for each field of [`Coef`] in its order.
#[derive(Clone, Copy)]
pub(super) struct Table<'a, A> {
    /// The first channel.
    first: usize,
    fields: [&'a [A]; FIELDS],
}
const FIELDS: usize = 5;

impl<'a, A: Real> Table<'a, A> {
    /// Values of memory that a channel takes.
    pub const LEN: usize = FIELDS;
    /// What a [`TableMut`] of the same channels has written there.
    #[inline(always)]
    pub fn new(memory: &'a [f64], channels: Range<usize>) -> Self {
        let (mut rest, mut fields) = (numbers(memory), [&[][..]; FIELDS]);
        for field in &mut fields {
            (*field, rest) = rest.split_at(channels.len());
        }
        Self { first: channels.start, fields }
    }
    #[inline(always)]
    pub fn at(&self, channel: usize) -> Coef<A> {
        let i = channel - self.first;
        let [mean, scale, bias, mean_g, slope] = self.fields.map(
            #[inline(always)]
            |field| field[i],
        );
        Coef { mean, scale, bias, mean_g, slope }
    }
    /// Each field of some of the channels.
    #[inline(always)]
    pub fn fields(&self, channels: Range<usize>) -> [&'a [A]; FIELDS] {
        self.fields.map(
            #[inline(always)]
            |field| &field[channels.start - self.first..channels.end - self.first],
        )
    }
}

/// A [`Table`] to write.
pub(super) struct TableMut<'a, A> {
    channels: Range<usize>,
    fields: [&'a mut [A]; FIELDS],
}

impl<'a, A: Real> TableMut<'a, A> {
    #[inline(always)]
    pub fn new(memory: &'a mut [f64], channels: Range<usize>) -> Self {
        let (mut rest, mut fields) = (numbers_mut(memory), [(); FIELDS].map(|()| &mut [][..]));
        for field in &mut fields {
            (*field, rest) = rest.split_at_mut(channels.len());
        }
        Self { channels, fields }
    }
    /// Sets `mean`, `scale` and `bias`; `of` gives mean, what that leaves, and invstd of the `k`th
    /// channel.
    #[inline(always)]
    pub fn forward(self, parameters: Parameters<'_, A>, of: impl Fn(usize) -> (A, A, A)) {
        let Self { channels, fields: [mean, scale, bias, ..] } = self;
        let weight = parameters.weight.map(|weight| &weight[channels.clone()]);
        let given = parameters.bias.map(|bias| &bias[channels.clone()]);
        let n = channels.len();
        let (mean, scale, bias) = (&mut mean[..n], &mut scale[..n], &mut bias[..n]);
        for k in 0..n {
            let (mean_k, rest, invstd) = of(k);
            (mean[k], scale[k]) = (mean_k, weight.map_or(invstd, |weight| weight[k] * invstd));
            let given = given.map_or(A::default(), |bias| bias[k]);
            // A scale that is infinite times no rest would be NaN.
            bias[k] = if rest == A::default() { given } else { given - rest * scale[k] };
        }
    }
    /// Sets `mean_g` and `slope`, which `of` gives.
    #[inline(always)]
    pub fn gradient(self, of: impl Fn(usize) -> (A, A)) {
        let Self { channels, fields: [.., mean_g, slope] } = self;
        let n = channels.len();
        let (mean_g, slope) = (&mut mean_g[..n], &mut slope[..n]);
        for k in 0..n {
            (mean_g[k], slope[k]) = of(k);
        }
    }
}
