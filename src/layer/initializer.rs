//! Values that a vector of one number per channel starts from, by the names of Keras 1 and MATLAB.
use crate::engine::check_from_0;
use crate::{Error, Result};

/// What the values of a vector are before training. Random ones come from the seed alone: the same on
/// every machine and engine, though not those that another system draws from the same seed.
///
/// ```
/// # use batchnorm::{Initializer, BatchNorm, Config, Reference, Slot};
/// let mut bn = BatchNorm::<f32, _>::new(&Reference, 4, Config::default())?;
/// bn.initialize(Slot::Weight, &Initializer::keras1("glorot_uniform", 7)?)?;
/// bn.initialize_with(Slot::Bias, |channel| 0.1 * channel as f64)?;
/// assert!(bn.weight().unwrap().value.iter().all(|w| w.abs() < (3.0 / 4f32.sqrt()).sqrt()));
/// assert_eq!(bn.bias().unwrap().value[3], 0.3);
/// assert_eq!(
///     Initializer::keras1("orthogonal", 7).unwrap_err().to_string(),
///     "initializer: expected one for vectors, got orthogonal, which is for matrices",
/// );
/// # Ok::<(), batchnorm::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "snake_case", deny_unknown_fields)
)]
#[non_exhaustive]
pub enum Initializer {
    /// The same value everywhere.
    Constant(f64),
    /// From `low` to below `high`, all equally likely.
    Uniform {
        /// The least.
        low: f64,
        /// The end, not below `low`.
        high: f64,
        /// Of the random numbers.
        seed: u64,
    },
    /// Normally distributed.
    Normal {
        /// The mean.
        mean: f64,
        /// The standard deviation, 0 or more.
        std: f64,
        /// Of the random numbers.
        seed: u64,
    },
    /// Uniform to `sqrt(gain / sqrt(C))` on both sides of 0: Keras 1's Glorot (3), He (6) and LeCun (3),
    /// in which a vector of C values has the fan `sqrt(C)` both ways.
    FanUniform {
        /// The square of the limit at a fan of 1.
        gain: f64,
        /// Of the random numbers.
        seed: u64,
    },
    /// Normal with mean 0 and the standard deviation `sqrt(gain / sqrt(C))`: Keras 1's Glorot (1) and
    /// He (2).
    FanNormal {
        /// The variance at a fan of 1.
        gain: f64,
        /// Of the random numbers.
        seed: u64,
    },
}

/// Keras 1's names for vectors.
const KERAS1: [&str; 9] = [
    "zero",
    "one",
    "uniform",
    "normal",
    "lecun_uniform",
    "glorot_uniform",
    "glorot_normal",
    "he_uniform",
    "he_normal",
];
/// MATLAB's.
const MATLAB: [&str; 3] = ["zeros", "ones", "narrow-normal"];

impl Initializer {
    /// All 0.
    pub const ZEROS: Self = Self::Constant(0.0);
    /// All 1.
    pub const ONES: Self = Self::Constant(1.0);

    /// By the name that Keras 1 has for it, with its numbers: `zero`, `one`, `uniform` (-0.05 to 0.05),
    /// `normal` (0.05), `lecun_uniform`, `glorot_uniform`, `glorot_normal`, `he_uniform`, `he_normal`.
    ///
    /// # Errors
    /// [`Error::Invalid`] for `orthogonal` and `identity`, which are for matrices, and for other names.
    pub fn keras1(name: &str, seed: u64) -> Result<Self> {
        Ok(match name {
            "zero" => Self::ZEROS,
            "one" => Self::ONES,
            "uniform" => Self::Uniform { low: -0.05, high: 0.05, seed },
            "normal" => Self::Normal { mean: 0.0, std: 0.05, seed },
            "lecun_uniform" | "glorot_uniform" => Self::FanUniform { gain: 3.0, seed },
            "glorot_normal" => Self::FanNormal { gain: 1.0, seed },
            "he_uniform" => Self::FanUniform { gain: 6.0, seed },
            "he_normal" => Self::FanNormal { gain: 2.0, seed },
            "orthogonal" | "identity" => {
                let reason = format!("expected one for vectors, got {name}, which is for matrices");
                return Err(Error::invalid("initializer", reason));
            }
            _ => return Err(unknown(&KERAS1, name)),
        })
    }

    /// By the name that MATLAB has for it: `zeros`, `ones`, `narrow-normal` (mean 0, standard deviation
    /// 0.01).
    ///
    /// # Errors
    /// [`Error::Invalid`] for other names.
    pub fn matlab(name: &str, seed: u64) -> Result<Self> {
        Ok(match name {
            "zeros" => Self::ZEROS,
            "ones" => Self::ONES,
            "narrow-normal" => Self::Normal { mean: 0.0, std: 0.01, seed },
            _ => return Err(unknown(&MATLAB, name)),
        })
    }

    /// The values of a vector of so many channels.
    ///
    /// # Errors
    /// [`Error::Invalid`] where a number has no meaning, NaN among them.
    pub fn values(&self, channels: usize) -> Result<impl Iterator<Item = f64> + use<>> {
        self.check()?;
        let (this, root) = (*self, (channels as f64).sqrt());
        let mut random = Random(match this {
            Self::Constant(_) => 0,
            Self::Uniform { seed, .. } | Self::Normal { seed, .. } => seed,
            Self::FanUniform { seed, .. } | Self::FanNormal { seed, .. } => seed,
        });
        Ok((0..channels).map(move |_| match this {
            Self::Constant(value) => value,
            Self::Uniform { low, high, .. } => low + (high - low) * random.uniform(),
            Self::Normal { mean, std, .. } => mean + std * random.normal(),
            Self::FanUniform { gain, .. } => (gain / root).sqrt() * (2.0 * random.uniform() - 1.0),
            Self::FanNormal { gain, .. } => (gain / root).sqrt() * random.normal(),
        }))
    }

    fn check(&self) -> Result<()> {
        let finite = |value: f64| match value.is_finite() {
            true => Ok(()),
            false => {
                let reason = format!("expected finite numbers, got {value}");
                Err(Error::invalid("initializer", reason))
            }
        };
        match *self {
            Self::Constant(value) => finite(value),
            Self::Uniform { low, high, .. } => {
                [low, high].into_iter().try_for_each(finite)?;
                if low > high {
                    let reason = format!("expected low <= high, got {low} and {high}");
                    return Err(Error::invalid("initializer", reason));
                }
                Ok(())
            }
            Self::Normal { mean, std, .. } => {
                finite(mean)?;
                check_from_0("std", std)
            }
            Self::FanUniform { gain, .. } | Self::FanNormal { gain, .. } => {
                check_from_0("gain", gain)
            }
        }
    }
}

fn unknown(known: &[&str], name: &str) -> Error {
    let reason = format!("expected one of {}, got {name:?}", known.join(", "));
    Error::invalid("initializer", reason)
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }
    /// From 0 to below 1.
    fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 * 2f64.powi(-53)
    }
    /// By Box and Muller; functions of libm's, which are the same everywhere.
    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * libm::log(1.0 - self.uniform())).sqrt();
        radius * libm::cos(std::f64::consts::TAU * self.uniform())
    }
}

#[cfg(test)]
#[path = "initializer_tests.rs"]
mod tests;
