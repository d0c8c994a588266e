//! Coefficients of channels, and how loops over elements get those of every position.
use super::lanes::{BLOCK, GROUP};
use crate::Real;
use std::sync::atomic::{Ordering, compiler_fence};

/// Runs from here on are worth to be brought to the start of a cache line.
const ALIGNED: usize = 128;
/// Bytes of a cache line.
pub(super) const LINE: usize = 64;

/// A channel's coefficients.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Coef<A> {
    pub mean: A,
    /// `weight * invstd`.
    pub scale: A,
    /// Less `scale` times what rounding left of the mean.
    pub bias: A,
    /// `sum(g) / m`, less `slope` times what rounding left of the mean.
    pub mean_g: A,
    /// `invstd^2 * sum(g * (x - mean)) / m`.
    pub slope: A,
}

impl<A: Real> Coef<A> {
    /// The one expression of forward, and of backward where it recomputes the ReLU: the same bits.
    #[inline(always)]
    pub fn normalize(self, x: A) -> A {
        (x - self.mean) * self.scale + self.bias
    }
}

/// Coefficients by position.
pub(super) trait At<A>: Copy {
    /// `out[i] = op(coefficients of i, x[i], other[i])`.
    fn map(self, x: &[A], other: &[A], out: &mut [A], op: impl Fn(Coef<A>, A, A) -> A + Copy);
}

/// The same everywhere.
#[derive(Clone, Copy)]
pub(super) struct Same<A>(pub Coef<A>);
impl<A: Real> At<A> for Same<A> {
    /// In groups of fixed length down to single values: what is left over of a short run would
    /// otherwise take as long as the run.
    #[inline(always)]
    fn map(self, x: &[A], other: &[A], out: &mut [A], op: impl Fn(Coef<A>, A, A) -> A + Copy) {
        let (x, other) = (&x[..out.len()], &other[..out.len()]);
        // Vectors that straddle cache lines cost up to a tenth of a long run.
        let head = if out.len() < ALIGNED { 0 } else { to_line(out) };
        let ((first, x), (first_other, other)) = (x.split_at(head), other.split_at(head));
        let (first_out, out) = out.split_at_mut(head);
        let (first, first_other, first_out) = self.groups::<4>(first, first_other, first_out, op);
        self.groups::<1>(first, first_other, first_out, op);
        let (x, other, out) = self.groups::<16>(x, other, out, op);
        let (x, other, out) = self.groups::<4>(x, other, out, op);
        self.groups::<1>(x, other, out, op);
    }
}
impl<A: Real> Same<A> {
    /// Takes as many whole groups of `N` as there are; returns the rest.
    #[inline(always)]
    fn groups<'a, const N: usize>(
        self,
        x: &'a [A],
        other: &'a [A],
        out: &'a mut [A],
        op: impl Fn(Coef<A>, A, A) -> A,
    ) -> (&'a [A], &'a [A], &'a mut [A]) {
        let ((xs, x), (others, other)) = (x.as_chunks::<N>(), other.as_chunks::<N>());
        let (outs, out) = out.as_chunks_mut::<N>();
        for ((x, other), out) in xs.iter().zip(others).zip(outs) {
            // All are read before one is written: the compiler need not ask whether they overlap.
            let (x, other, mut values) = (*x, *other, [A::default(); N]);
            for l in 0..N {
                values[l] = op(self.0, x[l], other[l]);
            }
            *out = values;
            // The group is a vector; several groups would become gathered ones.
            compiler_fence(Ordering::SeqCst);
        }
        (x, other, out)
    }
}

/// Those of the runs of several channels, one after the other.
#[derive(Clone, Copy)]
pub(super) struct Runs<'a, A> {
    pub strip: &'a Strip<A>,
    /// Values of a run.
    pub inner: usize,
    /// Position of the first value, from the start of the strip's first run on.
    pub start: usize,
}
impl<A: Real> At<A> for Runs<'_, A> {
    #[inline(always)]
    fn map(self, x: &[A], other: &[A], out: &mut [A], op: impl Fn(Coef<A>, A, A) -> A + Copy) {
        let Self { strip, inner, start } = self;
        let (mut channel, mut len) = (start / inner, inner - start % inner);
        let (mut done, n) = (0, out.len());
        while done < n {
            let run = done..(done + len).min(n);
            let out = &mut out[run.clone()];
            Same(strip.at(channel)).map(&x[run.clone()], &other[run.clone()], out, op);
            (done, len, channel) = (run.end, inner, channel + 1);
        }
    }
}

/// Those of a strip of columns, an array for each field, so that loops over columns become
/// vectors.
pub(super) struct Strip<A> {
    mean: [A; BLOCK],
    scale: [A; BLOCK],
    bias: [A; BLOCK],
    mean_g: [A; BLOCK],
    slope: [A; BLOCK],
}
impl<A: Real> Strip<A> {
    #[inline(always)]
    pub fn new() -> Self {
        let zeros = [A::default(); BLOCK];
        Self { mean: zeros, scale: zeros, bias: zeros, mean_g: zeros, slope: zeros }
    }
    /// Sets `mean`, `scale` and `bias` of the first `n`.
    #[inline(always)]
    pub fn fill(&mut self, n: usize, of: impl Fn(usize) -> (A, A, A)) {
        for i in 0..block_len(n) {
            (self.mean[i], self.scale[i], self.bias[i]) = of(i);
        }
    }
    /// Sets `mean_g` and `slope` of the first `n`.
    #[inline(always)]
    pub fn fill_gradient(&mut self, n: usize, of: impl Fn(usize) -> (A, A)) {
        for i in 0..block_len(n) {
            (self.mean_g[i], self.slope[i]) = of(i);
        }
    }
    /// Copies fields by `copy`: `mean_g` and `slope` only for a gradient.
    #[inline(always)]
    pub fn from(
        &mut self,
        other: &Self,
        gradient: bool,
        mut copy: impl FnMut(&[A; BLOCK], &mut [A; BLOCK]),
    ) {
        copy(&other.mean, &mut self.mean);
        copy(&other.scale, &mut self.scale);
        copy(&other.bias, &mut self.bias);
        if gradient {
            copy(&other.mean_g, &mut self.mean_g);
            copy(&other.slope, &mut self.slope);
        }
    }
}
impl<A: Real> At<A> for &Strip<A> {
    #[inline(always)]
    fn map(self, x: &[A], other: &[A], out: &mut [A], op: impl Fn(Coef<A>, A, A) -> A + Copy) {
        let n = block_len(out.len());
        let (x, other, out) = (&x[..n], &other[..n], &mut out[..n]);
        (0..n).for_each(|i| out[i] = op(self.at(i), x[i], other[i]));
    }
}
impl<A: Real> Strip<A> {
    /// The coefficients of the `i`th.
    #[inline(always)]
    pub fn at(&self, i: usize) -> Coef<A> {
        Coef {
            mean: self.mean[i],
            scale: self.scale[i],
            bias: self.bias[i],
            mean_g: self.mean_g[i],
            slope: self.slope[i],
        }
    }
    /// The forward's coefficients of the `i`th [`GROUP`], by position in it.
    #[inline(always)]
    pub fn group(&self, i: usize) -> impl Fn(usize) -> Coef<A> {
        let group = |field: &[A; BLOCK]| field.as_chunks::<GROUP>().0[i];
        let (mean, scale, bias) = (group(&self.mean), group(&self.scale), group(&self.bias));
        #[inline(always)]
        move |l| Coef { mean: mean[l], scale: scale[l], bias: bias[l], ..Coef::default() }
    }
}

/// Tells the compiler that no index passes the end of a strip.
#[inline(always)]
pub(super) fn block_len(n: usize) -> usize {
    assert!(n <= BLOCK);
    n
}

/// Values until one starts a cache line, if there are so many.
#[inline(always)]
pub(super) fn to_line<T>(values: &[T]) -> usize {
    values.as_ptr().align_offset(LINE).min(values.len())
}
