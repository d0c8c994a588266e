//! One enum; each variant says what was expected and what came.

/// Short for a result with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Why a file was not read or written.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The bytes are no such file: truncated, or damaged.
    #[error("{format}: {reason}")]
    Malformed {
        /// The format that was expected.
        format: &'static str,
        /// What was expected and what is there.
        reason: String,
    },
    /// A file of its format that this crate does not read or write.
    #[error("{format}: {reason}")]
    Unsupported {
        /// The format.
        format: &'static str,
        /// What it has, and what to do instead where something helps.
        reason: String,
    },
    /// The file has no layer of this name.
    #[error("no batch normalization {name:?}; there is {}", quoted(there))]
    NoLayer {
        /// What was asked for.
        name: String,
        /// The names that the file has.
        there: Vec<String>,
    },
    /// What is there is not what fits.
    #[error("{name}: expected {expected}, got {got}")]
    Mismatch {
        /// The layer, tensor or attribute.
        name: String,
        /// What would fit.
        expected: String,
        /// What came.
        got: String,
    },
    /// The file does not say what its numbers mean; an argument has to.
    #[error("{name}: {reason}")]
    Ambiguous {
        /// The layer.
        name: String,
        /// What is not known, and which argument says it.
        reason: String,
    },
    /// The library refused.
    #[error(transparent)]
    Layer(#[from] batchnorm::Error),
}

impl Error {
    pub(crate) fn malformed(format: &'static str, reason: impl ToString) -> Self {
        Self::Malformed { format, reason: reason.to_string() }
    }
    pub(crate) fn unsupported(format: &'static str, reason: impl ToString) -> Self {
        Self::Unsupported { format, reason: reason.to_string() }
    }
    pub(crate) fn mismatch(
        name: impl ToString,
        expected: impl ToString,
        got: impl ToString,
    ) -> Self {
        let (expected, got) = (expected.to_string(), got.to_string());
        Self::Mismatch { name: name.to_string(), expected, got }
    }
    pub(crate) fn no_layer<T: ToString>(name: &str, there: impl IntoIterator<Item = T>) -> Self {
        let there = there.into_iter().map(|name| name.to_string()).collect();
        Self::NoLayer { name: name.to_string(), there }
    }
}

/// `"bn1", "bn2"`; the first few of many.
fn quoted(names: &[String]) -> String {
    const MOST: usize = 20;
    let shown: Vec<_> = names.iter().take(MOST).map(|name| format!("{name:?}")).collect();
    match names.len() {
        0 => "none".into(),
        n if n > MOST => format!("{} and {} more", shown.join(", "), n - MOST),
        _ => shown.join(", "),
    }
}
