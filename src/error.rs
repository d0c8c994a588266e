//! One enum; each variant says what was expected and what came.
use std::sync::Arc;

/// Short for a result with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Why an operation did not run.
///
/// Arguments are checked before anything is computed: after any of these errors but
/// [`Error::Device`], and [`Error::Collective`] of a backward, outputs, parameters, gradients and running statistics are as they were.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument has the wrong number of elements.
    #[error("{what}: expected {expected} elements, got {got}")]
    Length {
        /// The argument's name.
        what: &'static str,
        /// What the shape asks for.
        expected: usize,
        /// What came.
        got: usize,
    },
    /// A value or a combination of arguments that has no meaning.
    #[error("{what}: {reason}")]
    Invalid {
        /// The argument's name.
        what: &'static str,
        /// What would be right, and what came.
        reason: String,
    },
    /// Batches that were not finite, of which running statistics took nothing: see
    /// [`BatchNorm::check_skipped_updates`](crate::BatchNorm::check_skipped_updates).
    #[error(
        "running statistics: expected finite batches, got {updates} updates that were not, in {channels} \
         channels, the first of them channel {first}"
    )]
    NonFinite {
        /// How many channels skipped an update.
        channels: usize,
        /// The first of them.
        first: usize,
        /// How many updates, of all channels together.
        updates: u64,
    },
    /// A [`LazyBatchNorm`](crate::LazyBatchNorm) that has no channels yet.
    #[error(
        "channels: expected a first input or a state dict, from which a lazy layer takes their number, got neither"
    )]
    Uninitialized,
    /// A [`Saved`](crate::Saved) that does not belong to this backward.
    #[error("saved: the forward had {what} {forward}, this backward has {backward}")]
    Saved {
        /// In what they differ.
        what: &'static str,
        /// What the forward recorded.
        forward: String,
        /// What the backward was called with.
        backward: String,
    },
    /// This engine cannot serve the request; another one may.
    #[error("{engine}: {reason}")]
    Unsupported {
        /// The engine's name.
        engine: &'static str,
        /// The limit that was hit.
        reason: String,
    },
    /// A shared library that an engine needs does not load.
    #[error("{library}: the loader finds none of {}; {reason}", searched.join(", "))]
    Library {
        /// What it is.
        library: &'static str,
        /// The names that were tried.
        searched: Vec<String>,
        /// Where they were looked for.
        reason: String,
    },
    /// A shared library that an engine needs is there, and does not do: it is too old, say.
    #[error("{library}: {reason}")]
    LibraryUnfit {
        /// What it is.
        library: &'static str,
        /// What was expected, and what it has.
        reason: String,
    },
    /// A device refused a call, or failed at it. What the operation was to write is undefined then:
    /// of several launches some may have been done, so that running statistics may hold the batch
    /// already, and gradients that add up may hold this backward's. Load or reset the statistics and
    /// drop the gradients (`zero_grad`) before the step is tried again.
    #[error("{call}: {reason}")]
    #[non_exhaustive]
    Device {
        /// What was called.
        call: &'static str,
        /// What it answered: a `CUresult` of the driver's, a `cudnnStatus_t` of cuDNN's.
        code: u32,
        /// What the code means.
        reason: String,
        /// The error of cudarc's that [`source`](std::error::Error::source) gives: a `DriverError`, or a
        /// `CudnnError`.
        source: Cause,
    },
    /// Ranks that have statistics in common could not agree on a call, or did not all make it: the ranks that
    /// were there get this error. Running statistics are as they were on all of them. Of a backward whose ranks
    /// agreed, and one of which was lost then, the gradients of weight and bias are undefined: drop them
    /// (`zero_grad`). On devices, where a step is queued once its ranks have agreed, all that it was to write is
    /// undefined where one was lost then, as after [`Error::Device`].
    #[error("{}{reason}", of_rank(*rank))]
    #[non_exhaustive]
    Collective {
        /// The rank at fault, where one is known.
        rank: Option<usize>,
        /// What was expected, and what came.
        reason: String,
    },
    /// The host has no room for a buffer, or it has more bytes than can be counted.
    #[error("memory: no room for {len} elements of {size} bytes")]
    OutOfMemory {
        /// Elements of the buffer.
        len: usize,
        /// Bytes of each.
        size: usize,
    },
    /// A state dict that cannot be read or written.
    #[cfg(feature = "safetensors")]
    #[error("state dict: {0}")]
    State(String),
    /// Entries of a state dict that are missing, unexpected or do not fit: all of them.
    #[cfg(feature = "safetensors")]
    #[error("state dict: {0}")]
    Load(crate::LoadReport),
}

/// The error of another crate that one of ours comes from. Two are equal where they say the same.
#[derive(Debug, Clone)]
pub struct Cause(Arc<dyn std::error::Error + Send + Sync>);

impl std::ops::Deref for Cause {
    type Target = dyn std::error::Error + Send + Sync;
    fn deref(&self) -> &Self::Target {
        &*self.0
    }
}
impl PartialEq for Cause {
    fn eq(&self, other: &Self) -> bool {
        self.0.to_string() == other.0.to_string()
    }
}

fn of_rank(rank: Option<usize>) -> String {
    rank.map_or_else(|| "ranks: ".into(), |rank| format!("rank {rank}: "))
}

impl Error {
    /// Of ranks that work together, for whoever implements [`Collective`](crate::Collective): the rank at
    /// fault, where one is known, and what was expected and came.
    pub fn collective(rank: Option<usize>, reason: impl Into<String>) -> Self {
        Error::Collective { rank, reason: reason.into() }
    }

    /// Whether memory ran out, the host's or a device's: less of it at a time may do.
    ///
    /// ```
    /// # use batchnorm::{Host, Memory};
    /// let error = Host.zeros::<f64>(usize::MAX / 16).unwrap_err();
    /// assert!(error.is_out_of_memory());
    /// ```
    pub fn is_out_of_memory(&self) -> bool {
        match self {
            Self::OutOfMemory { .. } => true,
            #[cfg(feature = "cuda")]
            Self::Device { source, .. } => says_out_of_memory(source),
            _ => false,
        }
    }

    /// What a device or its library answered to a call.
    #[cfg(feature = "cuda")]
    pub(crate) fn device(
        call: &'static str,
        code: u32,
        reason: String,
        source: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        Error::Device { call, code, reason, source: Cause(Arc::new(source)) }
    }

    pub(crate) fn invalid(what: &'static str, reason: impl Into<String>) -> Self {
        Error::Invalid { what, reason: reason.into() }
    }

    pub(crate) fn saved(
        what: &'static str,
        forward: impl std::fmt::Display,
        backward: impl std::fmt::Display,
    ) -> Self {
        Error::Saved { what, forward: forward.to_string(), backward: backward.to_string() }
    }
}

/// The codes by which the driver and cuDNN say so.
#[cfg(feature = "cuda")]
fn says_out_of_memory(cause: &Cause) -> bool {
    use cudarc::driver::{DriverError, sys::CUresult};
    #[cfg(feature = "cudnn")]
    if let Some(error) = cause.downcast_ref::<cudarc::cudnn::result::CudnnError>() {
        // CUDNN_STATUS_INTERNAL_ERROR_{HOST,DEVICE}_ALLOCATION_FAILED of version 9.
        return matches!(error.0 as u32, 4003 | 4004);
    }
    let driver = cause.downcast_ref::<DriverError>();
    driver.is_some_and(|error| error.0 == CUresult::CUDA_ERROR_OUT_OF_MEMORY)
}
