//! Channels whose numbers leave the range of their type on the way from x to y: means, deviations or
//! scales that are huge or tiny. The loops have left infinities or too few digits there; here their
//! elements are computed again, one at a time in f64, by distances that a power of two has brought to
//! unit size. There is none in training that goes well.
use super::gate::Gate;
use super::masked::Masked;
use super::plan::Plan;
use super::simd::Simd;
use super::table::{Parameters, Statistics};
use crate::engine::Activation;
use crate::engine::saved::{Buffers, ByChannel};
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

/// The power of two that a positive number is 1 to 2 times; 1 for what is no normal number.
pub(super) fn power_below(value: f64) -> f64 {
    const EXPONENT: u64 = 0x7ff << 52;
    if value.is_normal() { f64::from_bits(value.to_bits() & EXPONENT) } else { 1.0 }
}

/// What numbers of a channel are ordinary.
pub(super) struct Limits<A> {
    /// invstd is between this and its inverse.
    invstd: A,
    least_invstd: A,
    mean: A,
    /// Of `weight * invstd`.
    scale: A,
    /// Of the same, unless the weight itself is less.
    least_scale: A,
}

impl<A: Real> Limits<A> {
    #[inline(always)]
    pub fn new() -> Self {
        let two = |exponent: i64| A::from_f64(f64::from_bits(((1023 + exponent) as u64) << 52));
        let (invstd, mean, scale) = match A::DTYPE {
            DType::F64 => (400, 960, 1000),
            _ => (33, 100, 120),
        };
        Self {
            invstd: two(invstd),
            least_invstd: two(-invstd),
            mean: two(mean),
            scale: two(scale),
            least_scale: two(-mean),
        }
    }
    /// Whether the loops cannot be trusted with a channel. Without a branch: the loop around is as wide
    /// as vectors are.
    #[inline(always)]
    fn exclude(&self, mean: A, invstd: A, weight: A) -> bool {
        let zero = A::default();
        let beyond = |v: A, limit: A| (v > limit) | (v < zero - limit);
        let scale = weight * invstd;
        let few_digits = beyond(weight, self.least_scale) & !beyond(scale, self.least_scale);
        let of_invstd = (invstd > self.invstd) | (invstd < self.least_invstd);
        beyond(mean, self.mean) | beyond(scale, self.scale) | few_digits | of_invstd
    }
    /// Whether the loops can be trusted with a channel of this weight and scale, `weight * invstd`, none of which is
    /// NaN.
    #[inline(always)]
    pub fn include(&self, mean: A, invstd: A, (weight, scale): (A, A)) -> bool {
        let has_digits =
            Self::within(weight, self.least_scale) | !Self::within(scale, self.least_scale);
        let of_invstd = (invstd <= self.invstd) & (invstd >= self.least_invstd);
        Self::within(mean, self.mean) & Self::within(scale, self.scale) & has_digits & of_invstd
    }
    /// Whether a number is between a limit and its negative.
    #[inline(always)]
    pub fn within(v: A, limit: A) -> bool {
        (v <= limit) & (v >= A::default() - limit)
    }
    /// The largest finite number.
    #[inline(always)]
    pub fn most() -> A {
        A::from_f64(if A::DTYPE == DType::F64 { f64::MAX } else { f32::MAX.into() })
    }
    /// Whether it is extreme. Statistics and weights that are not finite, and an invstd of 0, spoil it
    /// either way.
    fn is_extreme(&self, mean: A, invstd: A, weight: A) -> bool {
        let finite = [mean, invstd, weight].iter().all(|v| v.to_f64().is_finite());
        finite && invstd > A::default() && self.exclude(mean, invstd, weight)
    }
}

impl Extreme {
    fn new<A: Real>(c: usize, (mean, rest, invstd): (A, A, A), by: Parameters<'_, A>) -> Self {
        let invstd = invstd.to_f64();
        let is_less = invstd < f64::MIN_POSITIVE;
        let power = if is_less { f64::MIN_POSITIVE } else { power_below(invstd).min(1.0) };
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
    /// Those among some channels, of which there are statistics.
    pub fn among<A: Real>(
        simd: Simd,
        channels: Range<usize>,
        by: Parameters<'_, A>,
        statistics: Statistics<'_, A>,
    ) -> Vec<Self> {
        let limits = Limits::new();
        let n = channels.len();
        let Statistics { mean, rest, invstd } = statistics;
        let (mean, invstd) = (&mean[..n], &invstd[..n]);
        let weights = by.weight.map(|weight| &weight[channels.clone()]);
        let any = simd.vectorize(
            #[inline(always)]
            |_| match weights {
                Some(weight) => (0..n).fold(
                    false,
                    #[inline(always)]
                    |any, k| any | limits.exclude(mean[k], invstd[k], weight[k]),
                ),
                None => (0..n).fold(
                    false,
                    #[inline(always)]
                    |any, k| any | limits.exclude(mean[k], invstd[k], A::from_f64(1.0)),
                ),
            },
        );
        if !any {
            return vec![];
        }
        let weight = |k: usize| weights.map_or(A::from_f64(1.0), |weight| weight[k]);
        let them = (0..n).filter(|&k| limits.is_extreme(mean[k], invstd[k], weight(k)));
        them.map(|k| Self::new(channels.start + k, (mean[k], rest[k], invstd[k]), by)).collect()
    }
    /// Those of a forward.
    pub fn of_saved<A: Real>(simd: Simd, saved: &Buffers<Host, A>) -> Vec<Self> {
        let channels = 0..saved.by_channel().mean.len();
        let statistics = Statistics::saved(saved, channels.clone());
        Self::among(simd, channels, Parameters::saved(saved), statistics)
    }

    /// Any channel, as if it were one.
    pub fn of_channel<A: Real>(saved: &Buffers<Host, A>, c: usize) -> Self {
        let ByChannel { mean, mean_rest, invstd, .. } = saved.by_channel();
        let statistics = (mean[c], mean_rest[c], invstd[c]);
        Self::new(c, statistics, Parameters::saved(saved))
    }

    /// `(x - mean) * invstd`.
    pub fn xhat(&self, x: f64) -> f64 {
        (x * self.power - self.mean - self.rest) * self.factor
    }
    /// `weight * xhat + bias`.
    pub fn normalize(&self, x: f64) -> f64 {
        self.weight * self.xhat(x) + self.bias
    }
    /// The gradient of x: `through` are the means of `g` and of `g * xhat`, where it flows through
    /// statistics.
    fn gradient(&self, x: f64, g: f64, through: Option<(f64, f64)>) -> f64 {
        let g = through.map_or(g, |(mean_g, slope)| g - mean_g - self.xhat(x) * slope);
        g * (self.power * self.factor) * self.weight
    }
}

/// The elements of such channels in a tensor that will be overwritten.
pub(super) fn elements<E: Element>(
    extremes: &[Extreme],
    shape: &Shape,
    tensor: &[E],
) -> Vec<Vec<E>> {
    extremes.iter().map(|e| shape.channel(e.c).map(|i| tensor[i]).collect()).collect()
}

/// What a forward reads of them; `x` in the order of their elements.
pub(super) struct Forward<'a, E> {
    pub shape: &'a Shape,
    pub plan: &'a Plan,
    pub x: Vec<Vec<E>>,
    pub residual: Option<&'a [E]>,
    pub activation: Activation,
}

impl<E: Element> Forward<'_, E> {
    /// Writes y, and the mask where there is one.
    pub fn write(&self, extremes: &[Extreme], y: &mut [E], mut mask: Option<&mut [u8]>) {
        for (e, x) in extremes.iter().zip(&self.x) {
            for (i, x) in self.shape.channel(e.c).zip(x) {
                let z = e.normalize(x.widen().to_f64());
                let z = self.residual.map_or(z, |r| z + r[i].widen().to_f64()); // none is not 0
                y[i] = E::narrow(E::Acc::from_f64(self.activation.value(z)));
                if let Some(mask) = &mut mask {
                    let width = self.plan.width;
                    let (byte, bit) = self.plan.mask_bit(i / width, i % width);
                    let is_one = u8::from(self.activation.is_one::<E>(z));
                    mask[byte] = mask[byte] & !(1 << bit) | is_one << bit;
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
    pub gate: Gate<'a, E>,
    pub grad_y: Vec<Vec<E>>,
    pub mask: Option<&'a Masked<'a>>,
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
        let narrow = |v: f64| E::narrow(E::Acc::from_f64(v));
        for (i, &g) in self.shape.channel(e.c).zip(&self.grad_y[k]) {
            let x = self.x[i].widen().to_f64();
            let g = self.gate.pass(self.plan, i, || e.normalize(x), g.widen().to_f64());
            if let Some(grad_residual) = &mut grad_residual {
                grad_residual[i] = narrow(g);
            }
            if let Some(grad_x) = &mut grad_x {
                let counts = self.mask.is_none_or(|mask| mask.keeps(i));
                grad_x[i] = narrow(e.gradient(x, g, through.filter(|_| counts)));
            }
        }
    }
}
