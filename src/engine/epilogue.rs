//! What follows the normalization: `y = activation(z)`, `z = weight * xhat + bias (+ residual)`. Here,
//! once, stand the activations, their values and derivatives, and what a backward needs of each.
use crate::{Element, Error, Real, Result};
use std::fmt;
use std::hash::{Hash, Hasher};

/// What follows `z = weight * xhat + bias (+ residual)`; names, values and derivatives are PyTorch's.
///
/// | | value | derivative |
/// |---|---|---|
/// | `Identity` | `z` | 1 |
/// | `Relu` | `max(z, 0)` | 0 where `z <= 0`, else 1, of NaN too |
/// | `LeakyRelu` | `z` where `z > 0`, else `negative_slope * z` | 1 where `z > 0`, else `negative_slope` |
/// | `Relu6` | `min(max(z, 0), 6)` | 0 where `z <= 0` or `z >= 6`, else 1, of NaN too |
/// | `Silu` | `z * s`, `s = 1 / (1 + exp(-z))` | `s * (1 + z * (1 - s))` |
/// | `HardSwish` | `z * min(max(z + 3, 0), 6) / 6` | 0 where `z <= -3`, `z / 3 + 1 / 2` where `z < 3`, else 1 |
/// | `Gelu` | `z * p`, `p = (1 + erf(z / sqrt(2))) / 2` | `p + z * exp(-z * z / 2) / sqrt(2 * pi)` |
///
/// NaN stays NaN, and a zero keeps its sign, as on PyTorch's CPU: ReLU of -0 is -0. At a kink it is z as a
/// number of the tensor's type that decides, as it does where the normalization and the activation are
/// two steps.
#[derive(Debug, Clone, Copy, Default)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "snake_case", deny_unknown_fields)
)]
#[non_exhaustive]
pub enum Activation {
    /// Nothing.
    #[default]
    Identity,
    /// `F.relu`.
    Relu,
    /// `F.leaky_relu`.
    LeakyRelu {
        /// Finite; 0.01 in PyTorch where none is given.
        negative_slope: f64,
    },
    /// `F.relu6`.
    Relu6,
    /// `F.silu`, or swish.
    Silu,
    /// `F.hardswish`.
    #[cfg_attr(feature = "serde", serde(rename = "hardswish"))]
    HardSwish,
    /// `F.gelu` with `approximate="none"`: by the error function.
    Gelu,
}

/// What a backward takes the derivative of an activation from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Derivative {
    /// It is 1 everywhere.
    One,
    /// z, computed again from x.
    FromX,
    /// One bit per element that the forward saves: whether it is 1. With a residual z would take two
    /// tensors to compute.
    FromMask,
    /// z, computed again from x and the residual: a bit is not enough.
    FromResidual,
}

impl Derivative {
    /// The number that kernels know it by.
    #[cfg(feature = "cuda")]
    pub(crate) const fn code(self) -> u32 {
        match self {
            Self::One => 0,
            Self::FromX => 1,
            Self::FromMask => 2,
            Self::FromResidual => 3,
        }
    }
}

impl Activation {
    /// One of each, leaky ReLU with PyTorch's slope.
    pub const ALL: [Self; 7] = [
        Self::Identity,
        Self::Relu,
        Self::LeakyRelu { negative_slope: 0.01 },
        Self::Relu6,
        Self::Silu,
        Self::HardSwish,
        Self::Gelu,
    ];

    /// As PyTorch's function: `identity`, `relu`, `leaky_relu`, `relu6`, `silu`, `hardswish`, `gelu`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Relu => "relu",
            Self::LeakyRelu { .. } => "leaky_relu",
            Self::Relu6 => "relu6",
            Self::Silu => "silu",
            Self::HardSwish => "hardswish",
            Self::Gelu => "gelu",
        }
    }

    /// What a backward takes the derivative from.
    pub const fn derivative_from(self, residual: bool) -> Derivative {
        match (self, residual) {
            (Self::Identity, _) => Derivative::One,
            (_, false) => Derivative::FromX,
            (Self::Relu | Self::LeakyRelu { .. } | Self::Relu6, true) => Derivative::FromMask,
            (Self::Silu | Self::HardSwish | Self::Gelu, true) => Derivative::FromResidual,
        }
    }

    /// The activation of `z`.
    pub fn value(self, z: f64) -> f64 {
        match self {
            Self::Identity => z,
            Self::Relu => {
                if z < 0.0 {
                    0.0
                } else {
                    z
                }
            }
            Self::LeakyRelu { negative_slope } => {
                if z > 0.0 {
                    z
                } else {
                    negative_slope * z
                }
            }
            // `clamp` keeps NaN, and the sign of a zero.
            Self::Relu6 => z.clamp(0.0, 6.0),
            Self::Silu => z / (1.0 + (-z).exp()),
            Self::HardSwish => z * (z + 3.0).clamp(0.0, 6.0) / 6.0,
            Self::Gelu => z * normal_cdf(z),
        }
    }

    /// Its derivative for a tensor of `E`, which decides at the kinks.
    pub fn derivative<E: Element>(self, z: f64) -> f64 {
        match self {
            Self::Identity => 1.0,
            Self::Relu | Self::LeakyRelu { .. } | Self::Relu6 => {
                if self.is_one::<E>(z) {
                    1.0
                } else {
                    self.negative_slope()
                }
            }
            Self::Silu => {
                let s = 1.0 / (1.0 + (-z).exp());
                s * (1.0 + z * (1.0 - s))
            }
            Self::HardSwish => match rounded::<E>(z) {
                decides if decides <= -3.0 => 0.0,
                decides if decides < 3.0 => z / 3.0 + 0.5,
                _ => 1.0,
            },
            Self::Gelu => normal_cdf(z) + z * (-0.5 * z * z).exp() * INV_SQRT_2PI,
        }
    }

    /// The derivative of [`derivative`](Self::derivative) for a tensor of `E`: 0 for all but SiLU, hard-swish and
    /// GELU. At a kink it is that of the side which the derivative is taken from.
    pub fn second_derivative<E: Element>(self, z: f64) -> f64 {
        match self {
            Self::Identity | Self::Relu | Self::LeakyRelu { .. } | Self::Relu6 => 0.0,
            Self::Silu => {
                let s = 1.0 / (1.0 + (-z).exp());
                let rest = 1.0 / (1.0 + z.exp());
                s * rest * (2.0 + z * (rest - s))
            }
            Self::HardSwish => {
                let decides = rounded::<E>(z);
                if decides <= -3.0 || decides >= 3.0 { 0.0 } else { 1.0 / 3.0 }
            }
            Self::Gelu => {
                let z = z.clamp(-50.0, 50.0); // beyond which it is 0
                (2.0 - z * z) * (-0.5 * z * z).exp() * INV_SQRT_2PI
            }
        }
    }

    /// Whether its derivative changes other than at kinks.
    pub(crate) const fn is_curved(self) -> bool {
        matches!(self, Self::Silu | Self::HardSwish | Self::Gelu)
    }

    /// Whether the derivative of one that is 1 or [`negative_slope`](Self::negative_slope) is 1: the bit
    /// that a mask holds.
    pub(crate) fn is_one<E: Element>(self, z: f64) -> bool {
        let z = rounded::<E>(z);
        match self {
            Self::LeakyRelu { .. } => z > 0.0,
            Self::Relu6 => z.is_nan() || z > 0.0 && z < 6.0,
            _ => z.is_nan() || z > 0.0,
        }
    }

    /// The derivative where a mask has no 1.
    pub(crate) const fn negative_slope(self) -> f64 {
        match self {
            Self::LeakyRelu { negative_slope } => negative_slope,
            _ => 0.0,
        }
    }

    /// The number that kernels know it by.
    #[cfg(feature = "cuda")]
    pub(crate) const fn code(self) -> u32 {
        match self {
            Self::Identity => 0,
            Self::Relu => 1,
            Self::LeakyRelu { .. } => 2,
            Self::Relu6 => 3,
            Self::Silu => 4,
            Self::HardSwish => 5,
            Self::Gelu => 6,
        }
    }

    /// Refuses numbers that have no meaning.
    pub(crate) fn check(self) -> Result<()> {
        let slope = self.negative_slope();
        if slope.is_finite() {
            return Ok(());
        }
        Err(Error::invalid("negative_slope", format!("expected a finite number, got {slope}")))
    }

    /// The slope as a number of which there is one only for each that compares equal.
    fn key(self) -> (&'static str, u64) {
        (self.name(), (self.negative_slope() + 0.0).to_bits())
    }
}

/// What decides at kinks: z in the type that it would be stored in.
fn rounded<E: Element>(z: f64) -> f64 {
    E::narrow(E::Acc::from_f64(z)).widen().to_f64()
}

const INV_SQRT_2PI: f64 = 0.398_942_280_401_432_7;

/// `(1 + erf(z / sqrt(2))) / 2`, without the cancellation of that for negative z.
fn normal_cdf(z: f64) -> f64 {
    0.5 * libm::erfc(-z * std::f64::consts::FRAC_1_SQRT_2)
}

impl PartialEq for Activation {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}
impl Eq for Activation {}
impl Hash for Activation {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key().hash(state);
    }
}

/// `relu`, or `leaky_relu(0.2)`.
impl fmt::Display for Activation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        match self {
            Self::LeakyRelu { negative_slope } => write!(f, "({negative_slope})"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
#[path = "epilogue_tests.rs"]
mod tests;
