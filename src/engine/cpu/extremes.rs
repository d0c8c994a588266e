//! Channels whose numbers leave the range of their type on the way from x to y: means, deviations or
//! scales that are huge or tiny. The loops have left infinities or too few digits there; here their
//! elements are computed again, one at a time in f64, by distances that a power of two has brought to
//! unit size. There is none in training that goes well.
use super::grad::Gate;
use super::plan::Plan;
use super::simd::vectorized;
use super::table::Parameters;
use crate::engine::saved::Buffers;
use crate::{DType, Element, Host, Real, Shape};
use std::ops::Range;

/// A channel of that kind.
#[derive(Debug, Clone, Copy)]
pub(super) struct Extreme {
    pub c: usize,
    /// invstd is this, 1 at most, times `factor`.
    power: f64,
    factor: f64,
    /// Multiplied by that power.
    mean: f64,
    rest: f64,
    weight: f64,
    bias: f64,
}

/// Whether the loops cannot be trusted with a channel. Statistics and weights that are not finite, and an
/// invstd of 0, spoil it either way.
#[inline(always)]
pub(super) fn is_extreme<A: Real>(mean: f64, invstd: f64, weight: f64) -> bool {
    let two = |exponent: i64| f64::from_bits(((1023 + exponent) as u64) << 52);
    let (invstds, means, scales, least) = match A::DTYPE {
        DType::F64 => (two(400), two(960), two(1000), two(-960)),
        _ => (two(33), two(100), two(120), two(-100)),
    };
    let counts = (invstd > 0.0) & (invstd < f64::INFINITY) & (mean.abs() < f64::INFINITY);
    let counts = counts & (weight.abs() < f64::INFINITY);
    let (weight, scale) = (weight.abs(), (weight * invstd).abs());
    let far = (mean.abs() > means) | (scale > scales) | ((scale < least) & (weight >= least));
    counts & (far | (invstd < 1.0 / invstds) | (invstd > invstds))
}

impl Extreme {
    fn new<A: Real>(c: usize, (mean, rest, invstd): (A, A, A), by: Parameters<'_, A>) -> Self {
        const EXPONENT: u64 = 0x7ff << 52;
        let invstd = invstd.to_f64();
        let power = f64::from_bits(invstd.to_bits() & EXPONENT);
        // 1 for infinity and NaN, too.
        let power = if power < 1.0 { power.max(f64::MIN_POSITIVE) } else { 1.0 };
        let at = |of: Option<&[A]>, absent| of.map_or(absent, |of| of[c].to_f64());
        Self {
            c,
            power,
            factor: invstd / power,
            mean: mean.to_f64() * power,
            rest: rest.to_f64() * power,
            weight: at(by.weight, 1.0),
            bias: at(by.bias, 0.0),
        }
    }
    /// Those among some channels: `quick` gives mean and invstd of the `k`th, `of` the mean rounded,
    /// what that left, and invstd.
    #[inline(always)]
    pub fn among<A: Real>(
        channels: Range<usize>,
        by: Parameters<'_, A>,
        quick: impl Fn(usize) -> (f64, f64),
        of: impl Fn(usize) -> (A, A, A),
    ) -> Vec<Self> {
        let (n, weight) = (channels.len(), by.weight.map(|weight| &weight[channels.clone()]));
        let is_extreme = |k: usize| {
            let (mean, invstd) = quick(k);
            is_extreme::<A>(mean, invstd, weight.map_or(1.0, |weight| weight[k].to_f64()))
        };
        // Without a branch first: the loop is as wide as vectors are.
        if !(0..n).fold(false, |any, k| any | is_extreme(k)) {
            return vec![];
        }
        let them = (0..n).filter(|&k| is_extreme(k));
        them.map(|k| Self::new(channels.start + k, of(k), by)).collect()
    }
    /// Those of a forward.
    pub fn of_saved<A: Real>(saved: &Buffers<Host, A>) -> Vec<Self> {
        let n = saved.mean.len();
        let (mean, rest, invstd) = (&saved.mean[..n], &saved.mean_rest[..n], &saved.invstd[..n]);
        vectorized(
            #[inline(always)]
            |_| {
                Self::among(
                    0..n,
                    Parameters::saved(saved),
                    #[inline(always)]
                    |c| (mean[c].to_f64(), invstd[c].to_f64()),
                    |c| (mean[c], rest[c], invstd[c]),
                )
            },
        )
    }

    /// Any channel, as if it were one.
    pub fn of_channel<A: Real>(saved: &Buffers<Host, A>, c: usize) -> Self {
        let statistics = (saved.mean[c], saved.mean_rest[c], saved.invstd[c]);
        Self::new(c, statistics, Parameters::saved(saved))
    }

    /// `(x - mean) * invstd`.
    pub fn xhat(&self, x: f64) -> f64 {
        (x * self.power - self.mean - self.rest) * self.factor
    }
    pub fn normalize<A: Real>(&self, x: A) -> A {
        A::from_f64(self.weight * self.xhat(x.to_f64()) + self.bias)
    }
    /// The gradient of x: `through` are the means of `g` and of `g * xhat`, where it flows through
    /// statistics.
    fn gradient(&self, x: f64, g: f64, through: Option<(f64, f64)>) -> f64 {
        let g = through.map_or(g, |(mean_g, slope)| g - mean_g - self.xhat(x) * slope);
        g * (self.power * self.factor) * self.weight
    }
}

/// The elements of such channels in a tensor that will be overwritten.
pub(super) fn held<E: Element>(extremes: &[Extreme], shape: &Shape, tensor: &[E]) -> Vec<Vec<E>> {
    extremes.iter().map(|e| shape.channel(e.c).map(|i| tensor[i]).collect()).collect()
}

/// What a forward reads of them; `x` in the order of their elements.
pub(super) struct Forward<'a, E> {
    pub shape: &'a Shape,
    pub plan: &'a Plan,
    pub x: Vec<Vec<E>>,
    pub residual: Option<&'a [E]>,
    pub relu: bool,
}

impl<E: Element> Forward<'_, E> {
    /// Writes y, and the mask where there is one.
    pub fn write(&self, extremes: &[Extreme], y: &mut [E], mut mask: Option<&mut [u8]>) {
        for (e, x) in extremes.iter().zip(&self.x) {
            for (i, x) in self.shape.channel(e.c).zip(x) {
                let mut value: E::Acc = e.normalize(x.widen());
                if let Some(residual) = self.residual {
                    value += residual[i].widen();
                }
                let is_stopped = self.relu && value <= E::Acc::default();
                y[i] = if is_stopped { E::default() } else { E::narrow(value) };
                if let Some(mask) = &mut mask {
                    let width = self.plan.width;
                    let (byte, bit) = self.plan.mask_bit(i / width, i % width);
                    let is_stopped = value <= E::ROUNDS_TO_ZERO; // NaN passes
                    mask[byte] = mask[byte] & !(1 << bit) | u8::from(!is_stopped) << bit;
                }
            }
        }
    }
}

/// What a backward reads of them; `grad_y` in the order of their elements.
pub(super) struct Backward<'a, E> {
    pub shape: &'a Shape,
    pub plan: &'a Plan,
    pub x: &'a [E],
    pub gate: Gate<'a>,
    pub grad_y: Vec<Vec<E>>,
}

impl<E: Element> Backward<'_, E> {
    /// Writes the gradients that there are of the `k`th; `through` as in [`Extreme::gradient`].
    pub fn write(
        &self,
        e: &Extreme,
        k: usize,
        through: Option<(f64, f64)>,
        (mut grad_x, mut grad_residual): (Option<&mut [E]>, Option<&mut [E]>),
    ) {
        for (i, &g) in self.shape.channel(e.c).zip(&self.grad_y[k]) {
            let (x, width) = (self.x[i].widen(), self.plan.width);
            let is_stopped = match self.gate {
                Gate::Recompute => e.normalize(x) <= E::ROUNDS_TO_ZERO,
                gate => gate.is_masked(self.plan, i / width, i % width),
            };
            let g = if is_stopped { E::default() } else { g };
            if let Some(grad_residual) = &mut grad_residual {
                grad_residual[i] = g;
            }
            if let Some(grad_x) = &mut grad_x {
                let gradient = e.gradient(x.to_f64(), g.widen().to_f64(), through);
                grad_x[i] = E::narrow(E::Acc::from_f64(gradient));
            }
        }
    }
}
