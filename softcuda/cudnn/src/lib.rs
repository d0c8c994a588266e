//! A stand-in for cuDNN on any CUDA driver, for tests: handles, descriptors and batch normalization, computed in f64,
//! with arguments refused as NVIDIA's documentation and headers say. What passes with it is plumbing; it never says that
//! cuDNN conforms.
//!
//! ```no_run
//! softcuda::install()?;
//! let cudnn = softcudnn::install()?;
//! // ... cudarc::cudnn, as on any machine ...
//! assert_eq!(cudnn.refusals(), [""; 0]);
//! # Ok::<_, softcudnn::InstallError>(())
//! ```
//!
//! Unlike cuDNN, which takes more: tensors lie as NCHW or NHWC without gaps; a call with an activation has alpha 1 and
//! beta 0, and the y that its forward wrote; the factor of running statistics is in 0 to 1; no two threads are in a call
//! with one handle. What cuDNN documents for half precision alone is refused in the other types.

#[allow(unsafe_code, non_snake_case, clippy::too_many_arguments)]
mod entry;
mod handle;
mod norm;
mod status;
mod tensor;

pub use entry::control::{install, install_without};
pub use softlibrary::{Control, InstallError};
