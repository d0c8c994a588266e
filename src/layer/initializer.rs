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
mod tests {
    use super::*;

    fn values(initializer: Initializer, channels: usize) -> Vec<f64> {
        initializer.values(channels).unwrap().collect()
    }
    fn moments(values: &[f64]) -> (f64, f64) {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        (mean, values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n)
    }

    #[test]
    fn every_name_has_the_spread_of_its_system() {
        // Variance at C channels: limit^2 / 3 of uniform ones.
        const C: usize = 40_000;
        let root = (C as f64).sqrt();
        for (name, variance) in [
            ("zero", 0.0),
            ("one", 0.0),
            ("uniform", 0.05 * 0.05 / 3.0),
            ("normal", 0.05 * 0.05),
            ("lecun_uniform", 3.0 / root / 3.0),
            ("glorot_uniform", 3.0 / root / 3.0),
            ("glorot_normal", 1.0 / root),
            ("he_uniform", 6.0 / root / 3.0),
            ("he_normal", 2.0 / root),
        ] {
            assert!(KERAS1.contains(&name));
            let (mean, var) = moments(&values(Initializer::keras1(name, 5).unwrap(), C));
            let expected = if name == "one" { 1.0 } else { 0.0 };
            assert!(
                (mean - expected).abs() <= 4.0 * (variance / C as f64).sqrt(),
                "{name}: {mean}"
            );
            assert!((var - variance).abs() <= 0.03 * variance, "{name}: {var}, not {variance}");
        }
        let narrow = values(Initializer::matlab("narrow-normal", 5).unwrap(), C);
        assert!((moments(&narrow).1 / 1e-4 - 1.0).abs() < 0.03);
        for (name, value) in [("zeros", 0.0), ("ones", 1.0)] {
            assert_eq!(values(Initializer::matlab(name, 5).unwrap(), 3), [value; 3]);
        }
    }

    #[test]
    fn uniform_ones_stay_within_their_limit_and_reach_it() {
        let limit = |values: Vec<f64>| values.into_iter().fold(0.0, |max: f64, v| max.max(v.abs()));
        for (name, expected) in [("glorot_uniform", 3.0), ("he_uniform", 6.0)] {
            let expected = f64::sqrt(expected / 100.0);
            let reached = limit(values(Initializer::keras1(name, 1).unwrap(), 10_000));
            assert!(reached <= expected && reached > 0.999 * expected, "{name}: {reached}");
        }
    }

    #[test]
    fn a_seed_is_what_decides() {
        let of = |seed| values(Initializer::keras1("he_normal", seed).unwrap(), 9);
        assert_eq!(of(3), of(3));
        assert_ne!(of(3), of(4));
        let first = values(Initializer::Uniform { low: 0.0, high: 1.0, seed: 0 }, 1);
        // SplitMix64 of seed 0 begins with e220a8397b1dcdaf.
        assert_eq!(first, [(0xe220_a839_7b1d_cdaf_u64 >> 11) as f64 / 2f64.powi(53)]);
    }

    #[test]
    fn what_has_no_meaning_is_refused_with_both_sides() {
        let error = |e: Result<Initializer>| e.unwrap_err().to_string();
        assert_eq!(
            error(Initializer::keras1("zeros", 0)),
            "initializer: expected one of zero, one, uniform, normal, lecun_uniform, \
             glorot_uniform, glorot_normal, he_uniform, he_normal, got \"zeros\""
        );
        assert!(error(Initializer::keras1("identity", 0)).contains("matrices"));
        assert_eq!(
            error(Initializer::matlab("glorot", 0)),
            "initializer: expected one of zeros, ones, narrow-normal, got \"glorot\""
        );
        let seed = 0;
        for (bad, said) in [
            (Initializer::Constant(f64::NAN), "initializer: expected finite numbers, got NaN"),
            (
                Initializer::Uniform { low: 1.0, high: 0.0, seed },
                "initializer: expected low <= high, got 1 and 0",
            ),
            (
                Initializer::Normal { mean: 0.0, std: -1.0, seed },
                "std: expected a finite number from 0 on, got -1",
            ),
            (
                Initializer::FanNormal { gain: f64::INFINITY, seed },
                "gain: expected a finite number from 0 on, got inf",
            ),
        ] {
            assert_eq!(bad.values(3).err().unwrap().to_string(), said);
        }
    }
}
