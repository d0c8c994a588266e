//! What a file of Keras' does not say, and its reader has to.
use std::fmt;

use batchnorm::{Config, Keras1, Keras1Std};

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

/// What Keras 1 stored as `running_std`, which its files do not say, and for which eps it is to be
/// converted. What the two denominators are must be known: the file has no eps either.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RunningStd {
    /// A variance or a deviation.
    pub stored: Keras1Std,
    /// The eps of the layer that stored it. On a Theano that has its own batch normalization Keras 1.2
    /// stored the variance with eps in it already: that is a variance with an eps of 0.
    pub eps: f64,
    /// The eps of the layer that is to have the variance, which becomes
    /// [`LayerState::eps`](crate::LayerState::eps).
    pub to_eps: f64,
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
    /// As such a version stored it, on TensorFlow or on Theano, by a layer with its default eps; for a
    /// layer with the same.
    pub fn of(version: Keras1, on_theano: bool) -> Self {
        let eps = Config::keras1(version).eps;
        Self { stored: version.stored(on_theano), eps, to_eps: eps }
    }

    /// For a layer with this eps.
    pub const fn to_eps(self, to_eps: f64) -> Self {
        Self { to_eps, ..self }
    }

    /// The variances for what is stored.
    pub(super) fn variance(self, stored: Array) -> Result<Array> {
        let values = stored.values.iter().map(|&s| match s {
            // No number, and no error: a layer that diverged.
            s if s.is_nan() => Ok(s),
            s => self.stored.to_var(s, self.eps, self.to_eps),
        });
        Ok(Array { values: values.collect::<batchnorm::Result<_>>()?, ..stored })
    }

    /// What is stored for variances.
    pub(super) fn std(self, name: &str, variance: Array) -> Result<Array> {
        let Self { stored, eps, to_eps } = self;
        let values = variance.values.iter().map(|&var| {
            let deviation = (var + to_eps).sqrt() - eps;
            let value = match stored {
                Keras1Std::Deviation => deviation,
                Keras1Std::Variance => var - (eps - to_eps),
                Keras1Std::VarianceEpsOutside if deviation < 0.0 => deviation,
                Keras1Std::VarianceEpsOutside => deviation.powi(2),
                other => {
                    return Err(Error::unsupported("keras 1", format!("running_std: {other:?}")));
                }
            };
            if value < 0.0 {
                let expected = format!("a variance that {stored:?} with an eps of {eps} has");
                return Err(Error::mismatch(format!("{name}: running_var"), expected, var));
            }
            Ok(value)
        });
        Ok(Array { values: values.collect::<Result<_>>()?, ..variance })
    }
}

/// `scale=True, center=False`
impl fmt::Display for Affine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let python = |is| if is { "True" } else { "False" };
        write!(f, "scale={}, center={}", python(self.scale), python(self.center))
    }
}
