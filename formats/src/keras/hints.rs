//! What a file of Keras' does not say, and its reader has to.
use std::fmt;

use crate::{Array, Error, Result};

/// What a file does not say of a layer. Nothing, in most cases: each field says when it is needed.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Hints {
    /// Whether the layer has gamma and beta. Needed where three (or with `renorm`, six) variables have
    /// no names: in `.weights.h5`, and in the arrays of `get_weights()`. A `.keras` file says it.
    pub affine: Option<Affine>,
    /// What the variable `running_std` is: needed for every file of Keras 1, and no other.
    pub running_std: Option<RunningStd>,
}

/// Which of gamma and beta a layer has: Keras' `scale` and `center`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Affine {
    /// Whether it has gamma.
    pub scale: bool,
    /// Whether it has beta.
    pub center: bool,
}

/// What Keras 1 stored as `running_std`: that cannot be told by the file.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RunningStd {
    /// The variance, in spite of its name: Keras 1.0.7 to 1.2.2; 1.0.6 on TensorFlow.
    Variance,
    /// The variance and the layer's eps: Keras 1.2.0 to 1.2.2 on a Theano that has its own batch
    /// normalization.
    VariancePlusEps {
        /// The layer's `epsilon`, 1e-3 by default there.
        eps: f64,
    },
    /// A standard deviation s, whose layer computed `(x - mean) / (s + eps)`: Keras 0.3 to 1.0.5;
    /// 1.0.6 on Theano. A layer whose eps is `to_eps` computes the same of the variance
    /// `(s + eps)^2 - to_eps`.
    Deviation {
        /// The layer's `epsilon`, 1e-6 by default there.
        eps: f64,
        /// The eps of the layer that is to have it, which becomes [`LayerState::eps`].
        ///
        /// [`LayerState::eps`]: crate::LayerState::eps
        to_eps: f64,
    },
}

impl Hints {
    /// With gamma and beta, or without.
    pub const fn affine(self, scale: bool, center: bool) -> Self {
        Self { affine: Some(Affine { scale, center }), ..self }
    }
    /// Of a file of Keras 1.
    pub const fn keras1(self, running_std: RunningStd) -> Self {
        Self { running_std: Some(running_std), ..self }
    }

    pub(super) fn running_std(&self, name: &str) -> Result<RunningStd> {
        self.running_std.ok_or_else(|| Error::Ambiguous {
            name: name.into(),
            reason: "running_std is a variance or a deviation, by the version of Keras 1 that \
                     wrote it, and Hints::running_std has to say which"
                .into(),
        })
    }
}

impl RunningStd {
    /// The variance for what is stored.
    pub(super) fn variance(self, name: &str, stored: Array) -> Result<Array> {
        let (to, least): (&dyn Fn(f64) -> f64, f64) = match self {
            Self::Variance => return Ok(stored),
            Self::VariancePlusEps { eps } => (&move |v| v - eps, eps),
            Self::Deviation { eps, to_eps } => {
                (&move |s| (s + eps).powi(2) - to_eps, to_eps.sqrt() - eps)
            }
        };
        convert(name, stored, to, least)
    }

    /// What is stored for a variance.
    pub(super) fn std(self, name: &str, variance: Array) -> Result<Array> {
        let (to, least): (&dyn Fn(f64) -> f64, f64) = match self {
            Self::Variance => return Ok(variance),
            Self::VariancePlusEps { eps } => (&move |v| v + eps, 0.0),
            Self::Deviation { eps, to_eps } => {
                (&move |v| (v + to_eps).sqrt() - eps, eps.powi(2) - to_eps)
            }
        };
        convert(name, variance, to, least)
    }
}

/// Refuses what has no counterpart, as it would be negative; NaN stays.
fn convert(name: &str, array: Array, to: &dyn Fn(f64) -> f64, least: f64) -> Result<Array> {
    let values = array.values.iter().map(|&value| match to(value) {
        converted if converted < 0.0 => {
            Err(Error::mismatch(format!("{name}: running_std"), format!("at least {least}"), value))
        }
        converted => Ok(converted),
    });
    Ok(Array { values: values.collect::<Result<_>>()?, ..array })
}

/// `scale=True, center=False`
impl fmt::Display for Affine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let python = |is| if is { "True" } else { "False" };
        write!(f, "scale={}, center={}", python(self.scale), python(self.center))
    }
}
