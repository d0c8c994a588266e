//! A stand-in for NCCL on any CUDA driver, for tests: communicators whose ranks are threads of one process, each with a
//! device of its own, gathers and sums, computed in f64. What passes with it is plumbing: order, sizes, streams, waits and
//! the paths of errors; it never says that NCCL conforms, nor how it fails.
//!
//! ```no_run
//! softcuda::install()?;
//! let nccl = softnccl::install()?;
//! // ... NCCL's calls, by whoever asks the loader for libnccl.so.2 ...
//! assert_eq!((nccl.refusals(), nccl.faults()), (vec![], vec![]));
//! # Ok::<_, softnccl::InstallError>(())
//! ```
//!
//! A collective is work of its stream that waits for its peers, as NCCL's kernels do: ranks of which one is missing, or
//! makes another call, wait until they are aborted, and a mismatch is a [fault](Control::faults). So graphs hold it.
//!
//! A call that a test [makes fail](Control::fail) answers that status; of `ncclCommGetAsyncError` it is the state of the
//! communicator that becomes it, for good.
//!
//! Stricter than NCCL: a call on a communicator whose last one is in progress, or whose state is an error, is refused; so
//! is the end of one that was neither finalized nor aborted.

#[allow(unsafe_code, non_snake_case)]
mod entry;
mod rank;
mod status;
mod world;

pub use entry::control::{install, install_without};
pub use softlibrary::{Control, InstallError};
