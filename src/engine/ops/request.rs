//! What is asked of an engine, without the data.
use crate::{Activation, DType};

/// What is asked of an engine, without the data: of [`Engine::supports`](crate::Engine::supports) and
/// its like. Arguments say it of themselves, as
/// [`ForwardTrain::request`](crate::ForwardTrain::request) does.
///
/// ```
/// # use batchnorm::{Activation, Cpu, DType, Engine, Op, Request, Shape};
/// let request = Request::new(Op::ForwardTrain, DType::F16).activation(Activation::Relu);
/// assert_eq!((request.residual, request.in_place), (false, false));
/// assert!(Cpu::default().supports(&Shape::new(&[8, 3], 1)?, request).is_ok());
/// # Ok::<(), batchnorm::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Request {
    /// Which operation.
    pub op: Op,
    /// The type of x and y.
    pub dtype: DType,
    /// What follows the normalization.
    pub activation: Activation,
    /// Whether a residual is added before the activation.
    pub residual: bool,
    /// Whether the output overwrites the input.
    pub in_place: bool,
}

impl Request {
    /// An operation without activation or residual, not in place.
    pub const fn new(op: Op, dtype: DType) -> Self {
        let activation = Activation::Identity;
        Self { op, dtype, activation, residual: false, in_place: false }
    }
    /// The same of another operation.
    pub const fn op(self, op: Op) -> Self {
        Self { op, ..self }
    }
    /// The same for tensors of another type.
    pub const fn dtype(self, dtype: DType) -> Self {
        Self { dtype, ..self }
    }
    /// The same with this activation.
    pub const fn activation(self, activation: Activation) -> Self {
        Self { activation, ..self }
    }
    /// The same with a residual, or without one.
    pub const fn residual(self, residual: bool) -> Self {
        Self { residual, ..self }
    }
    /// The same in place, or apart.
    pub const fn in_place(self, in_place: bool) -> Self {
        Self { in_place, ..self }
    }
}

/// The operations by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Op {
    /// [`Engine::forward_train`](crate::Engine::forward_train).
    ForwardTrain,
    /// [`Engine::forward_eval`](crate::Engine::forward_eval).
    ForwardEval,
    /// [`Engine::backward`](crate::Engine::backward) through batch statistics.
    Backward,
    /// [`Engine::backward`](crate::Engine::backward) through frozen statistics.
    BackwardEval,
    /// [`Engine::stats`](crate::Engine::stats).
    Stats,
    /// [`Engine::merge_stats`](crate::Engine::merge_stats).
    MergeStats,
    /// [`Engine::layer_norm`](crate::Engine::layer_norm).
    LayerNorm,
    /// [`Engine::layer_norm_backward`](crate::Engine::layer_norm_backward).
    LayerNormBackward,
    /// [`Engine::optimizer_step`](crate::Engine::optimizer_step).
    OptimizerStep,
    /// [`Engine::regularize`](crate::Engine::regularize).
    Regularize,
    /// [`Engine::constrain`](crate::Engine::constrain).
    Constrain,
}
