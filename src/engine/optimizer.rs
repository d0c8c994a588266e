//! What changes a parameter beside its gradient: an optimizer's rule, a regularizer, a constraint.
use crate::{Error, Result};

/// The rule by which a parameter follows its gradient, with the numbers of
/// [`torch.optim`](https://docs.pytorch.org/docs/stable/optim.html).
///
/// With gradient g, parameter w, learning rate lr and the weight decay d of
/// [`OptimizerStep`](crate::OptimizerStep), in step t from 1 on:
///
/// | | |
/// |---|---|
/// | [`Sgd`](Self::Sgd) | `g += d * w`; `b = g` in the first step, then `momentum * b + (1 - dampening) * g`; `w -= lr * b`, Nesterov: `w -= lr * (g + momentum * b)` |
/// | [`Adam`](Self::Adam) | `g += d * w`; `m = beta1 * m + (1 - beta1) * g`; `v = beta2 * v + (1 - beta2) * g * g`; `w -= lr / (1 - beta1^t) * m / (sqrt(v / (1 - beta2^t)) + eps)` |
/// | [`AdamW`](Self::AdamW) | `w *= 1 - lr * d` first, and Adam without `d * w` |
///
/// ```
/// # use batchnorm::Algorithm;
/// assert_eq!(Algorithm::adam(), Algorithm::Adam { beta1: 0.9, beta2: 0.999, eps: 1e-8 });
/// assert_eq!(Algorithm::sgd(0.9).buffers(), ["momentum_buffer"]);
/// assert!(Algorithm::Adam { beta1: 1.0, beta2: 0.999, eps: 1e-8 }.check().is_err());
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "snake_case", deny_unknown_fields)
)]
#[non_exhaustive]
pub enum Algorithm {
    /// Stochastic gradient descent. With a momentum of 0 it keeps nothing between steps.
    Sgd {
        /// The share of the buffer that stays: 0 or more.
        momentum: f64,
        /// What a new gradient's share in the buffer lacks of 1.
        dampening: f64,
        /// Nesterov's momentum; needs a momentum above 0 and no dampening.
        nesterov: bool,
    },
    /// Adam: weight decay is part of the gradient.
    Adam {
        /// The share of the first moment that stays: from 0 to below 1.
        beta1: f64,
        /// The share of the second moment that stays: from 0 to below 1.
        beta2: f64,
        /// Added to the root of the second moment: 0 or more.
        eps: f64,
    },
    /// Adam with weight decay apart from the gradient.
    #[cfg_attr(feature = "serde", serde(rename = "adamw"))]
    AdamW {
        /// As in [`Adam`](Self::Adam).
        beta1: f64,
        /// As in [`Adam`](Self::Adam).
        beta2: f64,
        /// As in [`Adam`](Self::Adam).
        eps: f64,
    },
}

impl Algorithm {
    /// SGD with this momentum, without dampening.
    pub const fn sgd(momentum: f64) -> Self {
        Self::Sgd { momentum, dampening: 0.0, nesterov: false }
    }
    /// SGD with Nesterov's momentum.
    pub const fn nesterov(momentum: f64) -> Self {
        Self::Sgd { momentum, dampening: 0.0, nesterov: true }
    }
    /// Adam with betas 0.9 and 0.999 and eps 1e-8.
    pub const fn adam() -> Self {
        Self::Adam { beta1: 0.9, beta2: 0.999, eps: 1e-8 }
    }
    /// AdamW with betas 0.9 and 0.999 and eps 1e-8.
    pub const fn adam_w() -> Self {
        Self::AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8 }
    }
    /// `sgd`, `adam` or `adamw`.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Sgd { .. } => "sgd",
            Self::Adam { .. } => "adam",
            Self::AdamW { .. } => "adamw",
        }
    }
    /// What it keeps of a parameter between steps, by the names of torch's state, in the order of
    /// [`OptimizerStep::first`](crate::OptimizerStep::first) and
    /// [`second`](crate::OptimizerStep::second). Each has the parameter's length.
    pub const fn buffers(&self) -> &'static [&'static str] {
        match self {
            Self::Sgd { momentum: 0.0, .. } => &[],
            Self::Sgd { .. } => &["momentum_buffer"],
            Self::Adam { .. } | Self::AdamW { .. } => &["exp_avg", "exp_avg_sq"],
        }
    }

    /// Refuses numbers that have no meaning, NaN among them.
    ///
    /// # Errors
    /// [`Error::Invalid`] names the number, what would do and what came.
    pub fn check(&self) -> Result<()> {
        match *self {
            Self::Sgd { momentum, dampening, nesterov } => {
                check_from_0("momentum", momentum)?;
                if !dampening.is_finite() {
                    let reason = format!("expected a finite number, got {dampening}");
                    return Err(Error::invalid("dampening", reason));
                }
                if nesterov && !(momentum > 0.0 && dampening == 0.0) {
                    let reason = format!(
                        "expected a momentum above 0 and no dampening, got momentum {momentum} and \
                         dampening {dampening}"
                    );
                    return Err(Error::invalid("nesterov", reason));
                }
                Ok(())
            }
            Self::Adam { beta1, beta2, eps } | Self::AdamW { beta1, beta2, eps } => {
                for (what, beta) in [("beta1", beta1), ("beta2", beta2)] {
                    if !(0.0..1.0).contains(&beta) {
                        let reason = format!("expected 0 to below 1, got {beta}");
                        return Err(Error::invalid(what, reason));
                    }
                }
                check_from_0("eps", eps)
            }
        }
    }
}

/// A penalty on a parameter: `l1 * sum(|w|) + l2 * sum(w^2)` is added to the loss, and so
/// `l1 * sign(w) + 2 * l2 * w` to the gradient, where the sign of 0 is 0.
///
/// ```
/// # use batchnorm::Regularizer;
/// assert_eq!(Regularizer::halved(0.0, 0.01), Regularizer::new(0.0, 0.005));
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(default, deny_unknown_fields)
)]
#[non_exhaustive]
pub struct Regularizer {
    /// Factor of the sum of absolute values: 0 or more.
    pub l1: f64,
    /// Factor of the sum of squares: 0 or more.
    pub l2: f64,
}

impl Regularizer {
    /// As Keras' `L1L2(l1, l2)`; its `L1` and `L2` have 0.01 by default, `L1L2` none.
    pub const fn new(l1: f64, l2: f64) -> Self {
        Self { l1, l2 }
    }
    /// By the halved rule, `l2 / 2 * sum(w^2)`, whose gradient is `l2 * w`: MATLAB's `L2Factor` times
    /// `L2Regularization`, and what PyTorch's weight decay comes to.
    pub const fn halved(l1: f64, l2: f64) -> Self {
        Self { l1, l2: l2 / 2.0 }
    }
    /// Whether it changes nothing.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
    /// Refuses factors below 0, infinite ones and NaN.
    ///
    /// # Errors
    /// [`Error::Invalid`] names the factor.
    pub fn check(&self) -> Result<()> {
        check_from_0("l1", self.l1)?;
        check_from_0("l2", self.l2)
    }
}

/// What the values of a parameter are held to after an optimizer's step: those of Keras. The norm is that
/// of the whole vector, `n = sqrt(sum(w^2))`, and where it is to be `to`, `w` becomes
/// `w * to / (n + 1e-7)`, as there.
///
/// ```
/// # use batchnorm::{Constrain, Constraint, Cpu, Engine, Host};
/// let mut weight = [3f32, -4.0];
/// Cpu::default().constrain(Constrain::<Host, f32>::new(&mut weight, Constraint::MaxNorm(1.0)))?;
/// assert!((weight[1] + 0.8).abs() < 1e-6);
/// # Ok::<(), batchnorm::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "snake_case", deny_unknown_fields)
)]
#[non_exhaustive]
pub enum Constraint {
    /// Values below 0 become 0: `NonNeg`.
    NonNegative,
    /// The norm is at most this, which is 0 or more: `MaxNorm`.
    MaxNorm(f64),
    /// The norm is 1: `UnitNorm`.
    UnitNorm,
    /// The norm goes to the nearest number from `min` to `max`, by a share `rate` of the way:
    /// `MinMaxNorm`.
    MinMaxNorm {
        /// 0 or more.
        min: f64,
        /// `min` or more.
        max: f64,
        /// 0 to 1.
        rate: f64,
    },
}

/// The norms that a constraint allows, and the share of the way that one goes there.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Norms {
    pub min: f64,
    pub max: f64,
    pub rate: f64,
}

impl Constraint {
    /// What is added to a norm before it divides: that of Keras.
    pub(super) const NORM_EPS: f64 = 1e-7;

    /// None where it is not about the norm.
    pub(super) const fn norms(self) -> Option<Norms> {
        match self {
            Self::NonNegative => None,
            Self::MaxNorm(max) => Some(Norms { min: 0.0, max, rate: 1.0 }),
            Self::UnitNorm => Some(Norms { min: 1.0, max: 1.0, rate: 1.0 }),
            Self::MinMaxNorm { min, max, rate } => Some(Norms { min, max, rate }),
        }
    }
    /// Refuses numbers that have no meaning, NaN among them.
    ///
    /// # Errors
    /// [`Error::Invalid`] with what would do and what came.
    pub fn check(&self) -> Result<()> {
        let Some(Norms { min, max, rate }) = self.norms() else { return Ok(()) };
        if !(min >= 0.0 && min <= max && max.is_finite() && (0.0..=1.0).contains(&rate)) {
            let reason = format!(
                "expected norms of 0 <= min <= max and a rate of 0 to 1, got min {min}, max {max} and \
                 rate {rate}"
            );
            return Err(Error::invalid("constraint", reason));
        }
        Ok(())
    }
}

/// Refuses what is no finite number from 0 on.
pub(crate) fn check_from_0(what: &'static str, value: f64) -> Result<()> {
    if value >= 0.0 && value.is_finite() {
        return Ok(());
    }
    Err(Error::invalid(what, format!("expected a finite number from 0 on, got {value}")))
}
