//! Which vector instructions the engine computes with: the widest that the machine has, or fewer by
//! the environment or by name.
use super::Simd;
use crate::{Error, Result};
use std::str::FromStr;
use std::sync::OnceLock;

/// The environment variable that chooses a level. It is read once, by the first operation.
const VARIABLE: &str = "BATCHNORM_SIMD";

/// The vector instructions that a [`Cpu`](crate::Cpu) computes with. Results are the same bits on
/// every level; only the speed differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum SimdLevel {
    /// What every processor of the architecture that the program is compiled for has.
    Baseline,
    /// AVX2 and F16C.
    Avx2,
    /// AVX-512 F, VL, BW and DQ beside those.
    Avx512,
}

impl SimdLevel {
    const ALL: [Self; 3] = [Self::Baseline, Self::Avx2, Self::Avx512];

    /// The levels that this machine has, narrowest first: [`SimdLevel::Baseline`] and, on x86-64, those
    /// of AVX2 and AVX-512.
    pub fn available() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|level| Simd::new(*level).is_some())
    }
}

/// `baseline`, `avx2`, `avx512`.
impl std::fmt::Display for SimdLevel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Baseline => "baseline",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        })
    }
}

/// From the name that [`Display`](std::fmt::Display) writes.
impl FromStr for SimdLevel {
    type Err = Error;
    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|level| level.to_string() == name).ok_or_else(|| {
            let reason = format!("expected baseline, avx2 or avx512, got {name:?}");
            Error::invalid("simd level", reason)
        })
    }
}

impl Simd {
    /// The instructions of a level.
    ///
    /// # Errors
    /// A level that this machine lacks.
    pub fn of_level(level: SimdLevel) -> Result<Self> {
        Self::new(level).ok_or_else(|| Error::Unsupported {
            engine: "cpu",
            reason: format!(
                "{level} instructions: this machine has {} at most",
                Self::widest().level()
            ),
        })
    }
    /// The instructions that the environment asks for; the widest of this machine if it asks for none.
    ///
    /// # Errors
    /// A level that is unknown, or that this machine lacks.
    pub fn of_environment() -> Result<Self> {
        static CHOSEN: OnceLock<Result<Simd>> = OnceLock::new();
        CHOSEN.get_or_init(|| of_variable(std::env::var_os(VARIABLE).as_deref())).clone()
    }
}

fn of_variable(value: Option<&std::ffi::OsStr>) -> Result<Simd> {
    let Some(value) = value else { return Ok(Simd::widest()) };
    let simd = value.to_string_lossy().parse().and_then(Simd::of_level);
    simd.map_err(|error| Error::invalid(VARIABLE, error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_have_names() {
        for level in SimdLevel::ALL {
            assert_eq!(level.to_string().parse(), Ok(level));
        }
        let widest = SimdLevel::available().last();
        assert_eq!(widest, Some(Simd::widest().level()));
    }

    #[test]
    fn the_variable_chooses() {
        let of = |value: &str| of_variable(Some(value.as_ref())).map(Simd::level);
        assert_eq!(of_variable(None).map(Simd::level), Ok(Simd::widest().level()));
        for level in SimdLevel::ALL {
            let got = of(&level.to_string());
            match SimdLevel::available().any(|one| one == level) {
                true => assert_eq!(got, Ok(level)),
                false => assert!(got.unwrap_err().to_string().contains("this machine has")),
            }
        }
        for wrong in ["", "AVX2", "sse2", "avx2 "] {
            let message = of(wrong).unwrap_err().to_string();
            assert!(message.starts_with("BATCHNORM_SIMD: "), "{message}");
            assert!(message.contains(&format!("got {wrong:?}")), "{message}");
        }
    }
}
