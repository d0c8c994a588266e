//! Batch renormalization, channel by channel: what brings a batch's statistics to those that were kept.
use super::{EmptyBatch, OneValue};
use crate::{Error, Real, Result};

/// How far batch renormalization may bring a batch's statistics to the kept ones; without bounds all the way.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(default, deny_unknown_fields)
)]
#[non_exhaustive]
pub struct RenormClip {
    /// The least ratio r of the deviations, 0 to 1: Keras' `rmin`.
    pub r_min: Option<f64>,
    /// The greatest, 1 or more: Keras' `rmax`.
    pub r_max: Option<f64>,
    /// The greatest distance d of the means, in kept deviations, 0 or more: Keras' `dmax`.
    pub d_max: Option<f64>,
}

impl RenormClip {
    /// No bounds.
    pub const NONE: Self = Self { r_min: None, r_max: None, d_max: None };
    /// The paper's: r from `1 / r_max` to `r_max`, d from `-d_max` to `d_max`. 1 and 0 are where its schedule
    /// starts, plain batch normalization; it ends at 3 and 5.
    pub const fn paper(r_max: f64, d_max: f64) -> Self {
        Self { r_min: Some(1.0 / r_max), r_max: Some(r_max), d_max: Some(d_max) }
    }
    /// With this least ratio.
    pub const fn r_min(self, r_min: f64) -> Self {
        Self { r_min: Some(r_min), ..self }
    }
    /// With this greatest ratio.
    pub const fn r_max(self, r_max: f64) -> Self {
        Self { r_max: Some(r_max), ..self }
    }
    /// With this greatest distance.
    pub const fn d_max(self, d_max: f64) -> Self {
        Self { d_max: Some(d_max), ..self }
    }

    /// Refuses bounds beyond that of plain batch normalization, where r is 1 and d is 0; NaN among them.
    pub(crate) fn check(&self) -> Result<()> {
        let refused = |what, expected: &str, got: f64| {
            Err(Error::invalid(what, format!("expected {expected}, got {got}")))
        };
        match *self {
            Self { r_max: Some(got), .. } if got.is_nan() || got < 1.0 => {
                refused("r_max", "at least 1", got)
            }
            Self { r_min: Some(got), .. } if !(0.0..=1.0).contains(&got) => {
                refused("r_min", "0 to 1", got)
            }
            Self { d_max: Some(got), .. } if got.is_nan() || got < 0.0 => {
                refused("d_max", "at least 0", got)
            }
            _ => Ok(()),
        }
    }

    /// r and d of a batch by its mean and deviation, and the kept ones. NaN stays.
    pub(super) fn factors(&self, batch: Moments, kept: Moments, eps: f64) -> (f64, f64) {
        let least = eps.sqrt();
        let by = if kept.stddev < least { least } else { kept.stddev };
        let within = |value: f64, min: Option<f64>, max: Option<f64>| match (min, max) {
            (Some(min), _) if value < min => min,
            (_, Some(max)) if value > max => max,
            _ => value,
        };
        let r = within(batch.stddev / by, self.r_min, self.r_max);
        let d = within((batch.mean - kept.mean) / by, self.d_max.map(|max| -max), self.d_max);
        (r, d)
    }
}

/// Mean, and standard deviation with eps within the root.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moments {
    pub mean: f64,
    pub stddev: f64,
}

/// What a batch of so many values per channel does to kept statistics.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    pub count: f64,
    pub one_value: OneValue,
    pub empty_batch: EmptyBatch,
}

impl Rules {
    /// The moments that go in, and whether the mean and the deviation move.
    pub fn moved(&self, batch: Moments) -> (Moments, [bool; 2]) {
        match (self.count == 0.0, self.empty_batch) {
            (true, EmptyBatch::Keep) => (batch, [false; 2]),
            (true, EmptyBatch::Nan) => (Moments { mean: f64::NAN, stddev: f64::NAN }, [true; 2]),
            (false, _) => {
                let keeps = self.count == 1.0 && self.one_value == OneValue::KeepVariance;
                (batch, [true, !keeps])
            }
        }
    }
}

/// `(1 - factor) * old + factor * new`; a factor of 1 replaces what is not finite, too.
pub(super) fn blend<P: Real>(old: P, new: f64, factor: f64) -> f64 {
    if factor == 1.0 { new } else { (1.0 - factor) * old.to_f64() + factor * new }
}
