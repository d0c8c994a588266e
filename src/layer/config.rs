//! How a layer behaves, in PyTorch's words.
use std::fmt;

use super::{Ghost, Momentum, Renorm, RunningStats};
use crate::engine::check_eps;
use crate::{
    Activation, EmptyBatch, Error, Memory, NonFinite, OneValue, Real, Result, Running, Variance,
};

/// How a layer behaves; PyTorch's names and defaults. [`Config::keras`] and its like are
/// those of other systems, in a table there.
///
/// ```
/// # use batchnorm::{Activation, Config, Momentum};
/// let config = Config::default().momentum(Momentum::Cumulative);
/// assert_eq!((config.eps, config.activation), (1e-5, Activation::Identity));
/// assert_eq!(Config::default().momentum, Momentum::Exponential(0.1));
/// ```
///
/// With the feature `serde` it can be written and read, as can [`Momentum`] and [`Activation`]: a field
/// that is missing has its default, one that is unknown is an error. Numbers without a meaning are refused
/// by what makes a layer, [`BatchNorm::new`](crate::BatchNorm::new).
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(default, deny_unknown_fields)
)]
#[non_exhaustive]
pub struct Config {
    /// Added to the variance: finite, more than 0.
    pub eps: f64,
    /// How fast the running statistics follow.
    pub momentum: Momentum,
    /// What follows the normalization, and the residual if there is one.
    pub activation: Activation,
    /// Whether there is a weight, one number per channel that multiplies.
    pub weight: bool,
    /// Whether there is a bias, one number per channel that is added last.
    pub bias: bool,
    /// Whether running statistics are kept for evaluation. Without them evaluation normalizes by
    /// the batch, as training does.
    pub track_running_stats: bool,
    /// Which variance of a batch goes into the running one.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "is_default"))]
    pub variance: Variance,
    /// What a training batch with one value per channel is.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "is_default"))]
    pub one_value: OneValue,
    /// What a training batch without values does to the running statistics.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "is_default"))]
    pub empty_batch: EmptyBatch,
    /// What a training batch that is not finite does to the running statistics.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "is_default"))]
    pub non_finite: NonFinite,
    /// In which groups of rows a training batch is normalized; as one batch where there is none.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "is_default"))]
    pub ghost: Option<Ghost>,
    /// How a training batch is brought to the running statistics; not at all where there is none.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "is_default"))]
    pub renorm: Option<Renorm>,
}

/// What a file that was written before there was such a field does without.
#[cfg(feature = "serde")]
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Default for Config {
    fn default() -> Self {
        Self {
            eps: 1e-5,
            momentum: Momentum::Exponential(0.1),
            activation: Activation::Identity,
            weight: true,
            bias: true,
            track_running_stats: true,
            variance: Variance::Unbiased,
            one_value: OneValue::Refuse,
            empty_batch: EmptyBatch::Keep,
            non_finite: NonFinite::Propagate,
            ghost: None,
            renorm: None,
        }
    }
}

impl Config {
    /// With this eps.
    pub const fn eps(self, eps: f64) -> Self {
        Self { eps, ..self }
    }
    /// With this momentum.
    pub const fn momentum(self, momentum: Momentum) -> Self {
        Self { momentum, ..self }
    }
    /// With this activation.
    pub const fn activation(self, activation: Activation) -> Self {
        Self { activation, ..self }
    }
    /// With a weight, or without one.
    pub const fn weight(self, weight: bool) -> Self {
        Self { weight, ..self }
    }
    /// With a bias, or without one.
    pub const fn bias(self, bias: bool) -> Self {
        Self { bias, ..self }
    }
    /// With running statistics, or without them.
    pub const fn track_running_stats(self, track_running_stats: bool) -> Self {
        Self { track_running_stats, ..self }
    }
    /// With this variance in the running statistics.
    pub const fn variance(self, variance: Variance) -> Self {
        Self { variance, ..self }
    }
    /// With this rule for one value per channel.
    pub const fn one_value(self, one_value: OneValue) -> Self {
        Self { one_value, ..self }
    }
    /// With this rule for a batch without values.
    pub const fn empty_batch(self, empty_batch: EmptyBatch) -> Self {
        Self { empty_batch, ..self }
    }
    /// With this rule for a batch that is not finite.
    pub const fn non_finite(self, non_finite: NonFinite) -> Self {
        Self { non_finite, ..self }
    }
    /// With ghost batches.
    pub const fn ghost(self, ghost: Ghost) -> Self {
        Self { ghost: Some(ghost), ..self }
    }
    /// With batch renormalization.
    pub const fn renorm(self, renorm: Renorm) -> Self {
        Self { renorm: Some(renorm), ..self }
    }

    /// What the next batch moves, by these rules.
    pub(super) fn next<'a, M: Memory, P: Real>(
        &self,
        running: &'a mut RunningStats<M, P>,
    ) -> Running<'a, M, P> {
        let next = running.next(self.momentum).variance(self.variance);
        next.empty_batch(self.empty_batch).non_finite(self.non_finite)
    }

    /// Refuses numbers that have no meaning, NaN among them.
    pub(super) fn check<P: Real>(&self) -> Result<()> {
        check_eps::<P>(self.eps)?;
        self.activation.check()?;
        self.momentum.check()?;
        let is_debiased = matches!(self.momentum, Momentum::Debiased { .. });
        if is_debiased && self.non_finite == NonFinite::Skip {
            let reason = "expected propagate with a debiased momentum, whose weight is that of a number of \
                          batches, the same for all channels; got skip";
            return Err(Error::invalid("non_finite", reason));
        }
        self.ghost.map_or(Ok(()), |ghost| ghost.check(self))?;
        self.renorm.map_or(Ok(()), |renorm| renorm.check(self))
    }
}

/// As PyTorch prints what stands behind the number of channels.
impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "eps={}, momentum={}", Python(self.eps), self.momentum)?;
        write!(f, ", affine={}", Python(self.weight || self.bias))?;
        if self.weight != self.bias {
            // The one that is missing.
            f.write_str(if self.weight { ", bias=False" } else { ", weight=False" })?;
        }
        write!(f, ", track_running_stats={}", Python(self.track_running_stats))?;
        // What PyTorch does not have, where it is not as there.
        match self.activation {
            Activation::Identity => {}
            activation => write!(f, ", activation={activation}")?,
        }
        let of_running = [
            (self.variance != Variance::Unbiased).then_some("variance=biased"),
            match self.one_value {
                OneValue::Refuse => None,
                OneValue::ZeroVariance => Some("one_value=zero_variance"),
                OneValue::KeepVariance => Some("one_value=keep_variance"),
            },
            (self.empty_batch != EmptyBatch::Keep).then_some("empty_batch=nan"),
            (self.non_finite != NonFinite::Propagate).then_some("non_finite=skip"),
        ];
        of_running.into_iter().flatten().try_for_each(|rule| write!(f, ", {rule}"))?;
        self.ghost.map_or(Ok(()), |ghost| write!(f, ", ghost={ghost}"))?;
        self.renorm.map_or(Ok(()), |renorm| write!(f, ", renorm={renorm}"))
    }
}

/// A value as Python's `repr` prints it.
pub(super) struct Python<T>(pub T);

impl fmt::Display for Python<bool> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0 { "True" } else { "False" })
    }
}

impl fmt::Display for Python<f64> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.0;
        // Both languages print the fewest digits that read back the same, and turn to exponents
        // at the same sizes. Of two such numbers equally near, Rust takes the upper one and Python
        // the even one; rounding to a given number of digits takes the even one in Rust too.
        let shortest = format!("{value:e}");
        let (digits, exponent) = shortest.split_once('e').unwrap_or((&shortest, "0"));
        let precision = digits.len().saturating_sub("0.".len());
        let even = match exponent.parse::<isize>() {
            Ok(exponent @ -4..16) => {
                let decimals = precision.saturating_add_signed(-exponent).max(1);
                format!("{value:.decimals$}")
            }
            _ => format!("{value:.precision$e}"),
        };
        let text = if even.parse() == Ok(value) { even } else { format!("{value:?}") };
        // Python signs the exponent and gives it two digits.
        match text.split_once('e').map(|(digits, exponent)| (digits, exponent.parse::<i32>())) {
            Some((digits, Ok(exponent))) => write!(f, "{digits}e{exponent:+03}"),
            _ => f.write_str(&text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_print_as_in_python() {
        // Right side: repr() of CPython 3.
        for (value, repr) in [
            (1e-5, "1e-05"),
            (1e-3, "0.001"),
            (1e-12, "1e-12"),
            (0.1, "0.1"),
            (0.0, "0.0"),
            (1.0, "1.0"),
            (1e-4, "0.0001"),
            (9.999e-5, "9.999e-05"),
            (0.1 + 0.2, "0.30000000000000004"),
            (1.0 / 3.0, "0.3333333333333333"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e300, "1.5e+300"),
            (5e-324, "5e-324"),
            (f64::MAX, "1.7976931348623157e+308"),
            // Halfway between two shortest numbers: the even one, if it reads back.
            (2f64.powi(-25), "2.9802322387695312e-08"),
            (2f64.powi(-24), "5.960464477539063e-08"),
            (246298782844855.0 + 0.125, "246298782844855.12"),
        ] {
            assert_eq!(Python(value).to_string(), repr);
        }
    }
}
