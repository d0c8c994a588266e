//! A stand-in for cuBLAS on any CUDA driver, for tests: the matrix products of cudarc's safe API, computed in f64, with
//! arguments refused as NVIDIA's documentation says. What passes with it is plumbing; it never says that cuBLAS conforms.
//!
//! ```no_run
//! softcuda::install()?;
//! let cublas = softcublas::install()?;
//! // ... cudarc::cublas::CudaBlas::new(stream), as on any machine ...
//! assert_eq!(cublas.refusals(), [""; 0]);
//! # Ok::<_, softcublas::InstallError>(())
//! ```
//!
//! Unlike cuBLAS: device pointer mode can be set, and products are refused in it.

#[allow(unsafe_code, non_snake_case, clippy::too_many_arguments)]
mod entry;
mod gemm;
mod handle;
mod status;

pub use entry::control::{install, install_without};
pub use softlibrary::{Control, InstallError};
