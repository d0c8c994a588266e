//! How fast running statistics follow.
use std::fmt;

use super::config::Python;
use crate::engine::check_momentum;
use crate::{Error, Result};

/// The weight of a new batch in the running statistics.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "snake_case", deny_unknown_fields)
)]
#[non_exhaustive]
pub enum Momentum {
    /// Always this weight, 0 to 1: `running <- (1 - momentum) * running + momentum * batch`.
    ///
    /// The weight of the new value, as in PyTorch and MATLAB. Keras, Flax, ONNX, MXNet and Wolfram mean that
    /// of the old one: [`Momentum::keeping`].
    Exponential(f64),
    /// The same with a weight for each: MATLAB's MeanDecay and VarianceDecay.
    Separate {
        /// Weight of the new mean, 0 to 1.
        mean: f64,
        /// Weight of the new variance, 0 to 1.
        var: f64,
    },
    /// One over the number of batches, the new one included: the plain average of all of them.
    /// PyTorch's `momentum=None`.
    ///
    /// As in PyTorch an empty batch is one of them, and has no statistics: where it comes first, the
    /// next one has the weight 1/2, and the initial mean 0 and variance 1 keep a part for good.
    /// [`Momentum::Average`] does not count it. Refused while a CUDA graph is captured, whose replays
    /// would all have the weight of the first.
    Cumulative,
    /// As [`Momentum::Cumulative`], of the batches that had values: the counter does not rise with
    /// an empty one. PyTorch has no such mode; the state dict is the same.
    Average,
    /// Haiku's zero-debiased average: that of all batches, of which each weighs `decay` times what the next
    /// one weighs. The initial values have no part in it, and the first batch has the weight 1.
    ///
    /// Haiku keeps a hidden sum, `hidden <- decay * hidden + (1 - decay) * batch` from 0 on, and takes
    /// `hidden / (1 - decay^n)` after n batches. Here the average itself is kept, with the weight
    /// `(1 - decay) / (1 - decay^n)` for the n-th batch, which is the same number:
    /// [`bias_correction`](Self::bias_correction) leads from one to the other. The counter does not rise with an
    /// empty batch. Refused while a CUDA graph is captured, as [`Momentum::Cumulative`].
    Debiased {
        /// Haiku's `decay_rate`: at least 0, less than 1.
        decay: f64,
    },
}

impl Momentum {
    /// An exponential one by the weight of the old value, 0 to 1: what Keras, Flax, ONNX, MXNet and
    /// Wolfram call momentum. The new one weighs `1 - old` as f64 has it.
    ///
    /// ```
    /// # use batchnorm::Momentum;
    /// assert_eq!(Momentum::keeping(0.75), Momentum::Exponential(0.25));
    /// // ONNX has its attributes in f32: the value that a file says.
    /// assert_ne!(Momentum::keeping(0.9f32.into()), Momentum::keeping(0.9));
    /// ```
    pub fn keeping(old: f64) -> Self {
        Self::Exponential(1.0 - old)
    }

    /// The weights of the next batch in mean and variance, after so many batches.
    ///
    /// ```
    /// # use batchnorm::Momentum;
    /// assert_eq!(Momentum::Average.factors(3), (0.25, 0.25));
    /// assert_eq!(Momentum::Debiased { decay: 0.5 }.factors(1), (2.0 / 3.0, 2.0 / 3.0));
    /// ```
    pub fn factors(&self, batches: u64) -> (f64, f64) {
        let both = |factor| (factor, factor);
        match *self {
            Momentum::Exponential(factor) => both(factor),
            Momentum::Separate { mean, var } => (mean, var),
            // The new batch counts too: the first one replaces everything.
            Momentum::Cumulative | Momentum::Average => both(1.0 / (batches as f64 + 1.0)),
            Momentum::Debiased { decay } => {
                both((1.0 - decay) / self.bias_correction(batches.saturating_add(1)))
            }
        }
    }

    /// What Haiku divides its hidden sums by after so many batches, `1 - decay^batches`; 1 for the others,
    /// which have none. So state moves between the two without loss: Haiku's `average` is the running
    /// statistic, its `counter` the number of batches, its `hidden` the statistic times this.
    ///
    /// ```
    /// # use batchnorm::Momentum;
    /// assert_eq!(Momentum::Debiased { decay: 0.5 }.bias_correction(2), 0.75);
    /// ```
    pub fn bias_correction(&self, batches: u64) -> f64 {
        match *self {
            // Where decay is near 1 its powers are, too.
            Momentum::Debiased { decay } => -f64::exp_m1(batches as f64 * decay.ln()),
            _ => 1.0,
        }
    }

    /// Whether the weight changes with every batch.
    pub(super) fn counts(&self) -> bool {
        !matches!(self, Momentum::Exponential(_) | Momentum::Separate { .. })
    }
    /// Whether a batch without values is none.
    pub(super) fn leaves_out_empty(&self) -> bool {
        matches!(self, Momentum::Average | Momentum::Debiased { .. })
    }

    /// Refuses numbers that have no meaning, NaN among them.
    pub(super) fn check(&self) -> Result<()> {
        match *self {
            Momentum::Exponential(momentum) => check_momentum(momentum),
            Momentum::Separate { mean, var } => check_momentum(mean).and(check_momentum(var)),
            Momentum::Debiased { decay } if !(0.0..1.0).contains(&decay) => {
                let reason = format!("decay: expected at least 0 and less than 1, got {decay}");
                Err(Error::invalid("momentum", reason))
            }
            _ => Ok(()),
        }
    }
}

/// `0.1`, or `None` for an average of all batches, as PyTorch prints them; `(0.1, 0.25)` for mean and
/// variance, `debiased(0.9)` for Haiku's.
impl fmt::Display for Momentum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Momentum::Exponential(momentum) => Python(*momentum).fmt(f),
            Momentum::Separate { mean, var } => write!(f, "({}, {})", Python(*mean), Python(*var)),
            Momentum::Cumulative | Momentum::Average => f.write_str("None"),
            Momentum::Debiased { decay } => write!(f, "debiased({})", Python(*decay)),
        }
    }
}
