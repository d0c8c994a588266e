//! Statistics of the values that count, by the definition.
use super::{Moments, Statistics64, or_zero, wide};
use crate::engine::ops::MaskRules;
use crate::engine::places::Places;
use crate::{AllMasked, Element, Host, Mask, Result, Shape};

/// A mask of a tensor.
pub(super) struct Masked<'a> {
    pub rules: MaskRules,
    places: Places,
    counts: &'a [u8],
}

impl<'a> Masked<'a> {
    pub fn new(shape: &Shape, mask: &Mask<'a, Host>) -> Result<Self> {
        Self::with_rules(shape, mask.rules(), mask.places)
    }
    pub fn with_rules(shape: &Shape, rules: MaskRules, counts: &'a [u8]) -> Result<Self> {
        Ok(Self { rules, places: Places::new(shape, rules.last)?, counts })
    }
    pub fn keeps(&self, i: usize) -> bool {
        self.counts[self.places.of(i)] != 0
    }
    /// How many values of a channel count.
    pub fn count(&self, shape: &Shape, c: usize) -> f64 {
        shape.channel(c).filter(|&i| self.keeps(i)).count() as f64
    }

    /// What channel c is normalized by, how many of its values count, and their variance over a divisor, one
    /// that is a whole number.
    pub fn statistics<E: Element>(
        &self,
        shape: &Shape,
        c: usize,
        x: &[E],
        eps: f64,
    ) -> (Statistics64, f64, impl FnOnce(f64) -> f64) {
        let MaskRules { count_eps, all_masked, .. } = self.rules;
        let count = self.count(shape, c);
        let xs = shape.channel(c).filter(|&i| self.keeps(i)).map(|i| wide(x[i]));
        let Moments { mean, rest, var, unit } = Moments::of(xs, count as usize);
        // The exact mean is as far from what a larger count makes of it as this.
        let share = if count_eps > 0.0 { count_eps / (count + count_eps) } else { 0.0 };
        let less = (mean + rest) * share;
        let squares = count * (var + (less / unit).powi(2));
        let n = if count > 0.0 { count + count_eps } else { 1.0 };
        let (mut mean, mut rest) = (mean, rest);
        if share > 0.0 {
            let exact = mean;
            mean = exact + (rest - less);
            rest = or_zero(exact - mean + (rest - less));
        }
        let mut by = Statistics64 {
            mean,
            rest,
            var: squares / n * unit * unit,
            invstd: 1.0 / f64::hypot((squares / n).sqrt() * unit, eps.sqrt()),
        };
        if count == 0.0 && all_masked == AllMasked::Nan {
            by = Statistics64 { mean: f64::NAN, rest: 0.0, var: f64::NAN, invstd: f64::NAN };
        }
        (by, count, move |over| squares / (over + count_eps) * unit * unit)
    }

    /// What flows through the statistics to the value at `i`, of so many that count: `grad_x` is `g - first - xhat * second`, scaled. Nothing
    /// where it does not count.
    pub fn through(
        &self,
        i: usize,
        count: f64,
        by: Statistics64,
        (sum_g, sum_g_xhat): (f64, f64),
    ) -> Option<(f64, f64)> {
        if !self.keeps(i) {
            return None;
        }
        let eps = self.rules.count_eps;
        let n = count + eps;
        let second = sum_g_xhat / n;
        let less = if eps > 0.0 { second * by.invstd * (by.mean + by.rest) * eps / n } else { 0.0 };
        Some((sum_g / n - less, second))
    }
}

/// Means, their rests, biased variances and numbers of the values that count, length 4C.
pub(super) fn stats<E: Element>(
    shape: &Shape,
    x: &[E],
    mask: &Mask<'_, Host>,
    all: &mut [f64],
) -> Result<()> {
    let rules = MaskRules { count_eps: 0.0, all_masked: AllMasked::Keep, ..mask.rules() };
    let mask = Masked::with_rules(shape, rules, mask.places)?;
    let channels = shape.channels();
    for c in 0..channels {
        let (by, count, _) = mask.statistics(shape, c, x, 1.0); // no invstd is wanted
        for (k, value) in [by.mean, by.rest, by.var, count].into_iter().enumerate() {
            all[k * channels + c] = value;
        }
    }
    Ok(())
}
