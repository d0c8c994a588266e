//! A stand-in for cuRAND's generators on any CUDA driver, for tests: initial values for a layer, uniform and normal, in the
//! order of a stream.
//!
//! ```no_run
//! softcuda::install()?;
//! let curand = softcurand::install()?;
//! // ... cudarc::curand::CudaRng::new(seed, stream), as on any machine ...
//! assert_eq!(curand.refusals(), [""; 0]);
//! # Ok::<_, softcurand::InstallError>(())
//! ```
//!
//! The numbers are not those of cuRAND: they come from another generator, SplitMix64, whatever kind is asked for. A seed and
//! an offset give the same numbers each time; their distribution is what is promised, and no more.

#[allow(unsafe_code, non_snake_case)]
mod entry;
mod generator;
mod status;

pub use entry::control::{install, install_without};
pub use softlibrary::{Control, InstallError};
