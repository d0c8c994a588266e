//! The rules by which a parameter follows its gradient.
use crate::{Error, Result};

/// The rule by which a parameter follows its gradient: those of
/// [`torch.optim`](https://docs.pytorch.org/docs/stable/optim.html), of Keras and of MATLAB.
///
/// With gradient g, parameter w, learning rate lr and the weight decay d of
/// [`OptimizerStep`](crate::OptimizerStep), in step t from 1 on:
///
/// | | |
/// |---|---|
/// | [`Sgd`](Self::Sgd) | `g += d * w`; `b = g` in the first step, then `momentum * b + (1 - dampening) * g`; `w -= lr * b`, Nesterov: `w -= lr * (g + momentum * b)` |
/// | [`Adam`](Self::Adam) | `g += d * w`; `m = beta1 * m + (1 - beta1) * g`; `v = beta2 * v + (1 - beta2) * g * g`; `w -= lr / (1 - beta1^t) * m / (sqrt(v / (1 - beta2^t)) + eps)`; AMSGrad: the greatest v so far for v |
/// | [`AdamW`](Self::AdamW) | `w *= 1 - lr * d` first, and Adam without `d * w` |
/// | [`KerasSgd`](Self::KerasSgd) | `w *= 1 - lr * d`; `b = momentum * b - lr * g`; `w += b`, Nesterov: `w += momentum * b - lr * g` |
/// | [`KerasAdam`](Self::KerasAdam) | `w *= 1 - lr * d`; m and v as Adam; `w -= lr * sqrt(1 - beta2^t) / (1 - beta1^t) * m / (sqrt(v) + eps)` |
/// | [`MatlabSgdm`](Self::MatlabSgdm) | `g += d * w`; `b = momentum * b - lr * g`; `w += b` |
///
/// While the learning rate stays, Keras' and MATLAB's SGD without decay are torch's. Where it changes,
/// their momentum goes on at the rate of its own steps, torch's at the new one.
///
/// ```
/// # use batchnorm::Algorithm;
/// assert_eq!(Algorithm::adam().name(), "adam");
/// assert_eq!(Algorithm::sgd(0.9).buffers(), ["momentum_buffer"]);
/// assert_eq!(Algorithm::keras_adam().buffers(), ["momentum", "velocity"]);
/// assert!(Algorithm::MatlabSgdm { momentum: -0.5 }.check().is_err());
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
        /// AMSGrad: divides by the root of the greatest second moment so far.
        #[cfg_attr(feature = "serde", serde(default))]
        amsgrad: bool,
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
        /// As in [`Adam`](Self::Adam).
        #[cfg_attr(feature = "serde", serde(default))]
        amsgrad: bool,
    },
    /// SGD of Keras, any version: the learning rate is within the velocity. Weight decay is apart from
    /// the gradient, as Keras 3 has it. With a momentum of 0 it keeps nothing between steps.
    KerasSgd {
        /// The share of the velocity that stays: 0 or more.
        momentum: f64,
        /// Nesterov's momentum, in Keras' form.
        nesterov: bool,
    },
    /// Adam of Keras: eps is added to the root before its bias is corrected, so that it weighs more in
    /// the first steps. Weight decay is apart from the gradient.
    KerasAdam {
        /// As in [`Adam`](Self::Adam).
        beta1: f64,
        /// As in [`Adam`](Self::Adam).
        beta2: f64,
        /// As in [`Adam`](Self::Adam).
        eps: f64,
        /// As in [`Adam`](Self::Adam).
        #[cfg_attr(feature = "serde", serde(default))]
        amsgrad: bool,
    },
    /// SGD of MATLAB, `sgdm`: the last step times the momentum is taken again. Weight decay,
    /// `L2Regularization` there, is part of the gradient. With a momentum of 0 it keeps nothing.
    MatlabSgdm {
        /// The share of the last step that is taken again: 0 or more.
        momentum: f64,
    },
}

/// What an engine computes a step by: every algorithm is one of three loops and some switches.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Rule {
    pub family: Family,
    /// The momentum, or Adam's `beta1`.
    pub beta1: f64,
    /// The dampening, or Adam's `beta2`.
    pub beta2: f64,
    pub eps: f64,
    pub nesterov: bool,
    /// Weight decay shrinks the parameter instead of adding to the gradient.
    pub decay_apart: bool,
    pub amsgrad: bool,
    /// eps is added before the bias of the second moment is corrected.
    pub eps_first: bool,
}

/// Which loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    /// A buffer of gradients.
    Momentum,
    /// A buffer of steps.
    Velocity,
    Adam,
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
    /// Adam with betas 0.9 and 0.999 and eps 1e-8, without AMSGrad.
    pub const fn adam() -> Self {
        Self::Adam { beta1: 0.9, beta2: 0.999, eps: 1e-8, amsgrad: false }
    }
    /// AdamW with betas 0.9 and 0.999 and eps 1e-8, without AMSGrad.
    pub const fn adam_w() -> Self {
        Self::AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, amsgrad: false }
    }
    /// Keras' SGD with this momentum, not Nesterov's.
    pub const fn keras_sgd(momentum: f64) -> Self {
        Self::KerasSgd { momentum, nesterov: false }
    }
    /// Keras' Adam with betas 0.9 and 0.999 and eps 1e-7, without AMSGrad.
    pub const fn keras_adam() -> Self {
        Self::KerasAdam { beta1: 0.9, beta2: 0.999, eps: 1e-7, amsgrad: false }
    }
    /// The same with AMSGrad, or without; one that has no second moment stays as it is.
    pub const fn amsgrad(mut self, on: bool) -> Self {
        if let Self::Adam { amsgrad, .. }
        | Self::AdamW { amsgrad, .. }
        | Self::KerasAdam { amsgrad, .. } = &mut self
        {
            *amsgrad = on;
        }
        self
    }
    /// As it is written: `sgd`, `adam`, `adamw`, `keras_sgd`, `keras_adam` or `matlab_sgdm`.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Sgd { .. } => "sgd",
            Self::Adam { .. } => "adam",
            Self::AdamW { .. } => "adamw",
            Self::KerasSgd { .. } => "keras_sgd",
            Self::KerasAdam { .. } => "keras_adam",
            Self::MatlabSgdm { .. } => "matlab_sgdm",
        }
    }
    /// What it keeps of a parameter between steps, by the names of torch's state or of Keras' variables,
    /// in the order of [`OptimizerStep::first`](crate::OptimizerStep::first),
    /// [`second`](crate::OptimizerStep::second) and [`third`](crate::OptimizerStep::third). Each has the
    /// parameter's length.
    pub const fn buffers(&self) -> &'static [&'static str] {
        match self {
            Self::Sgd { momentum: 0.0, .. }
            | Self::KerasSgd { momentum: 0.0, .. }
            | Self::MatlabSgdm { momentum: 0.0 } => &[],
            Self::Sgd { .. } => &["momentum_buffer"],
            Self::KerasSgd { .. } => &["momentum"],
            Self::MatlabSgdm { .. } => &["velocity"],
            Self::Adam { amsgrad: false, .. } | Self::AdamW { amsgrad: false, .. } => {
                &["exp_avg", "exp_avg_sq"]
            }
            Self::Adam { .. } | Self::AdamW { .. } => &["exp_avg", "exp_avg_sq", "max_exp_avg_sq"],
            Self::KerasAdam { amsgrad: false, .. } => &["momentum", "velocity"],
            Self::KerasAdam { .. } => &["momentum", "velocity", "velocity_hat"],
        }
    }

    pub(super) const fn rule(self) -> Rule {
        let (family, nesterov) = match self {
            Self::Sgd { nesterov, .. } => (Family::Momentum, nesterov),
            Self::KerasSgd { nesterov, .. } => (Family::Velocity, nesterov),
            Self::MatlabSgdm { .. } => (Family::Velocity, false),
            Self::Adam { .. } | Self::AdamW { .. } | Self::KerasAdam { .. } => {
                (Family::Adam, false)
            }
        };
        let (beta1, beta2, eps, amsgrad) = match self {
            Self::Sgd { momentum, dampening, .. } => (momentum, dampening, 0.0, false),
            Self::KerasSgd { momentum, .. } | Self::MatlabSgdm { momentum } => {
                (momentum, 0.0, 0.0, false)
            }
            Self::Adam { beta1, beta2, eps, amsgrad }
            | Self::AdamW { beta1, beta2, eps, amsgrad }
            | Self::KerasAdam { beta1, beta2, eps, amsgrad } => (beta1, beta2, eps, amsgrad),
        };
        let eps_first = matches!(self, Self::KerasAdam { .. });
        let decay_apart = eps_first || matches!(self, Self::AdamW { .. } | Self::KerasSgd { .. });
        Rule { family, beta1, beta2, eps, nesterov, decay_apart, amsgrad, eps_first }
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
            Self::KerasSgd { momentum, .. } | Self::MatlabSgdm { momentum } => {
                check_from_0("momentum", momentum)
            }
            Self::Adam { beta1, beta2, eps, .. }
            | Self::AdamW { beta1, beta2, eps, .. }
            | Self::KerasAdam { beta1, beta2, eps, .. } => {
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

/// Refuses what is no finite number from 0 on.
pub(crate) fn check_from_0(what: &'static str, value: f64) -> Result<()> {
    if value >= 0.0 && value.is_finite() {
        return Ok(());
    }
    Err(Error::invalid(what, format!("expected a finite number from 0 on, got {value}")))
}
