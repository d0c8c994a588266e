//! One enum; each variant says what was expected and what came.
use burn::tensor::DType;

/// Short for a result with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Why a layer did not run. Arguments are checked before anything is computed: after any of these errors
/// running statistics are as they were.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A tensor has another shape than the layer, or the tensor beside it, asks for.
    #[error("batch norm: expected {what} of shape {expected}, got {got:?}")]
    Shape {
        /// The tensor's name.
        what: &'static str,
        /// The shape that would be right.
        expected: String,
        /// The one that came.
        got: Vec<usize>,
    },
    /// A tensor is of a type that it cannot be of here.
    #[error("batch norm: expected {what} of {expected}, got {got:?}")]
    DType {
        /// The tensor's name.
        what: &'static str,
        /// The types that would be right.
        expected: String,
        /// The one that came.
        got: DType,
    },
    /// A tensor lies on a device that is none of Flex, or keeps another plan for its gradients than the tensors
    /// beside it.
    #[error("batch norm: expected {what} on {expected}, got it on {got}")]
    Device {
        /// The tensor's name.
        what: &'static str,
        /// The device that would be right.
        expected: String,
        /// The one that came.
        got: String,
    },
    /// A number of a configuration that has no meaning.
    #[error("batch norm: expected {what} to be {expected}, got {got}")]
    Config {
        /// The field's name.
        what: &'static str,
        /// What would be right.
        expected: &'static str,
        /// What came.
        got: f64,
    },
    /// What the engine refuses: epsilon, momentum, lengths of parameters, one value per channel, no memory.
    #[error("batch norm: {0}")]
    Engine(#[from] batchnorm::Error),
}
