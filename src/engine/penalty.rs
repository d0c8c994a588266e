//! What holds a parameter in bounds: a regularizer, a constraint.
use super::optimizer::check_from_0;
use crate::{Error, Result};

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
