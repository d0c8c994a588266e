//! Each system's defaults as a [`Config`], and what its stored numbers mean.
use super::{Config, Momentum};
use crate::{EmptyBatch, Error, OneValue, Result, Variance};

/// Other systems by their defaults. Each is a start: `Config::keras().eps(1e-5)`.
/// [`conventions`](crate::conventions) has every property of their layers.
///
/// | | eps | weight of the new value | running variance | one value per channel | empty batch |
/// |---|---|---|---|---|---|
/// | [`pytorch`](Self::pytorch) | 1e-5 | 0.1 | unbiased | error | statistics stay |
/// | [`keras`](Self::keras) (3) | 1e-3 | 1 - 0.99 | biased | y = bias, the variance decays | NaN |
/// | [`keras2_fused`](Self::keras2_fused) | 1e-3 | 1 - 0.99 | unbiased | the same | NaN |
/// | [`tensorflow`](Self::tensorflow) | 1e-3 | 1 - 0.99 | biased | the same | NaN |
/// | [`keras1`](Self::keras1) | by version | by version | biased | error: not known | statistics stay: not known |
/// | [`matlab`](Self::matlab) | 1e-5 | 0.1, 0.1 | biased: not documented | error: not known | statistics stay: not known |
/// | [`wolfram`](Self::wolfram) | 1e-3 | 1 - 0.9 | biased: not documented | error: not known | statistics stay: not known |
/// | [`onnx`](Self::onnx) | 1e-5 in f32 | 1 - 0.9 in f32 | biased | error: not known | statistics stay: not known |
/// | [`flax`](Self::flax) | 1e-5 | 1 - 0.99 | biased | y = bias, the variance decays | NaN |
/// | [`haiku`](Self::haiku) | 1e-5 | zero-debiased | biased | error: not known | statistics stay: not known |
/// | [`mxnet`](Self::mxnet) | 1e-5 | 1 - 0.9 | biased | y = bias, the variance decays | statistics stay: not known |
///
/// State moves between systems as it is: running statistics are numbers that inference reads alike everywhere. A
/// variance that was averaged without bias can not be made one with it, nor the other way round: each step
/// differed by m / (m - 1), and m is not stored. What changes is what future batches add.
impl Config {
    /// PyTorch's `BatchNorm1d` to `3d`; the same as the default.
    pub fn pytorch() -> Self {
        Self::default()
    }
    /// Keras 3's `BatchNormalization`, on every rank.
    pub fn keras() -> Self {
        Self::default()
            .eps(1e-3)
            .momentum(Momentum::keeping(0.99))
            .variance(Variance::Biased)
            .one_value(OneValue::ZeroVariance)
            .empty_batch(EmptyBatch::Nan)
    }
    /// Keras 2's `BatchNormalization` on TensorFlow where it is fused, on ranks 4 and 5: what images are.
    pub fn keras2_fused() -> Self {
        Self::keras().variance(Variance::Unbiased)
    }
    /// TensorFlow's layer where it is not fused, which is Keras 2's on ranks 2 and 3.
    pub fn tensorflow() -> Self {
        Self::keras()
    }
    /// Keras 1's `BatchNormalization` in mode 0. Mode 2 is the same with
    /// [`track_running_stats(false)`](Self::track_running_stats).
    ///
    /// Up to 1.0.5, and on Theano up to 1.0.7, eps was added to the deviation outside the root, up to 1.0.6
    /// inside as well. No layer trains by that here: a training forward differs from it by a factor of about
    /// `1 + eps / deviation`, 1e-6 for deviations of 1. A model from there is evaluated exactly, by
    /// [`Keras1Std::to_var`].
    pub fn keras1(version: Keras1) -> Self {
        let keep = match version {
            Keras1::V0_3 | Keras1::V1_0_5 | Keras1::V1_0_6 => 0.9,
            Keras1::V1_0_7 | Keras1::V1_0_8 | Keras1::V1_2 => 0.99,
        };
        let config = Self::default().eps(version.eps()).momentum(Momentum::keeping(keep));
        config.variance(Variance::Biased)
    }
    /// MATLAB's `batchNormalizationLayer` with `BatchNormalizationStatistics` "moving": MeanDecay and
    /// VarianceDecay are [`Momentum::Separate`].
    pub fn matlab() -> Self {
        let momentum = Momentum::Separate { mean: 0.1, var: 0.1 };
        Self::default().momentum(momentum).variance(Variance::Biased)
    }
    /// Wolfram's `BatchNormalizationLayer`. Its "Momentum" of 1 freezes the statistics:
    /// `Momentum::keeping(1.0)` likewise.
    pub fn wolfram() -> Self {
        let config = Self::default().eps(1e-3).momentum(Momentum::keeping(0.9));
        config.variance(Variance::Biased)
    }
    /// ONNX's `BatchNormalization` from opset 14 on with `training_mode`; its attributes are f32.
    pub fn onnx() -> Self {
        let config = Self::default().eps(1e-5f32.into()).momentum(Momentum::keeping(0.9f32.into()));
        config.variance(Variance::Biased)
    }
    /// Flax's `BatchNorm`, linen and NNX.
    pub fn flax() -> Self {
        Self::keras().eps(1e-5)
    }
    /// Haiku's `BatchNorm` by its `decay_rate`, at least 0 and less than 1, which has no default there.
    pub fn haiku(decay: f64) -> Self {
        let momentum = Momentum::Debiased { decay };
        Self::default().momentum(momentum).variance(Variance::Biased)
    }
    /// MXNet's Gluon `BatchNorm`. The operator's own defaults are an eps of 1e-3, and `fix_gamma`, which is
    /// [`weight(false)`](Self::weight). There the statistics move in the backward, here in the forward.
    pub fn mxnet() -> Self {
        let config = Self::default().momentum(Momentum::keeping(0.9)).variance(Variance::Biased);
        config.one_value(OneValue::ZeroVariance)
    }
}

/// A version of Keras 1, which changed eps, momentum and what it stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Keras1 {
    /// 0.3.3 to 1.0.4.
    V0_3,
    /// 1.0.5, which differs from those before it in mode 1 alone.
    V1_0_5,
    /// 1.0.6.
    V1_0_6,
    /// 1.0.7.
    V1_0_7,
    /// 1.0.8 to 1.1.2.
    V1_0_8,
    /// 1.2.0 to 1.2.2.
    V1_2,
}

impl Keras1 {
    /// Its default.
    pub(super) fn eps(self) -> f64 {
        match self {
            Self::V0_3 | Self::V1_0_5 | Self::V1_0_6 | Self::V1_0_7 => 1e-6,
            Self::V1_0_8 => 1e-5,
            Self::V1_2 => 1e-3,
        }
    }
    /// What such a version stored as `running_std` on TensorFlow, or on Theano.
    pub fn stored(self, on_theano: bool) -> Keras1Std {
        match (self, on_theano) {
            (Self::V0_3 | Self::V1_0_5, _) | (Self::V1_0_6, true) => Keras1Std::Deviation,
            (Self::V1_0_7, true) => Keras1Std::VarianceEpsOutside,
            _ => Keras1Std::Variance,
        }
    }
}

/// What Keras 1 stored as `running_std`, and how it normalized by it. A file does not tell: its version does,
/// by [`Keras1::stored`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Keras1Std {
    /// A deviation s, `sqrt(var + eps)`, to which eps was added again: `(x - mean) / (s + eps)`.
    Deviation,
    /// A variance v: `(x - mean) / sqrt(v + eps)`.
    Variance,
    /// A variance v: `(x - mean) / (sqrt(v) + eps)`.
    VarianceEpsOutside,
}

impl Keras1Std {
    /// The running variance by which a layer with an eps of `to_eps` evaluates as that model did with `eps`.
    ///
    /// ```
    /// # use batchnorm::Keras1Std;
    /// let var = Keras1Std::Deviation.to_var(2.0, 0.5, 0.25)?;
    /// assert_eq!((var + 0.25f64).sqrt(), 2.0 + 0.5);
    /// # Ok::<(), batchnorm::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Invalid`] where no variance from 0 on does: the old denominator is less than `sqrt(to_eps)`.
    pub fn to_var(self, stored: f64, eps: f64, to_eps: f64) -> Result<f64> {
        let var = match self {
            Self::Deviation => (stored + eps).powi(2) - to_eps,
            Self::Variance => stored + (eps - to_eps),
            Self::VarianceEpsOutside => (stored.sqrt() + eps).powi(2) - to_eps,
        };
        if var >= 0.0 {
            return Ok(var);
        }
        let reason = format!(
            "expected a denominator of at least sqrt({to_eps:e}), the new eps, got {stored:e} with an eps of {eps:e}"
        );
        Err(Error::invalid("running_std", reason))
    }
}
