//! What is asked of an engine, without the data.
use super::{EmptyBatch, NonFinite, Variance};
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
    /// How running statistics move; absent where there are none.
    pub running: Option<RunningRules>,
    /// Of a forward: whether it saves something for a backward.
    pub saves: bool,
    /// Of a forward that saves something, and of its backward: whether the caller keeps y between them, as
    /// [`ForwardTrain::y_is_kept`](crate::ForwardTrain::y_is_kept) says.
    pub y_is_kept: bool,
    /// Of a training forward, of its backward, and of [`Op::Stats`]: whether some values do not count for the statistics.
    pub mask: bool,
    /// Of [`Op::ForwardEval`]: whether the statistics are a record.
    pub by_record: bool,
    /// Of a backward, the double one too: whether the gradient of x is asked for.
    pub grad_x: bool,
    /// Of a backward with a residual, the double one too: whether the gradient of that is asked for.
    pub grad_residual: bool,
    /// Of a backward: whether it is that of a part of a batch, with sums to write or to take.
    pub sums: bool,
}

/// How a request moves running statistics: what [`Running`](crate::Running) says, without the numbers.
/// The default is PyTorch's.
///
/// ```
/// # use batchnorm::{Cpu, DType, Engine, Op, Request, RunningRules, Shape, Variance};
/// let rules = RunningRules::default().variance(Variance::Biased);
/// let request = Request::new(Op::ForwardTrain, DType::F32).running(rules);
/// assert!(Cpu::default().supports(&Shape::new(&[8, 3], 1)?, request).is_ok());
/// # Ok::<(), batchnorm::Error>(())
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct RunningRules {
    /// Which variance of the batch goes in.
    pub variance: Variance,
    /// What a batch without values does.
    pub empty_batch: EmptyBatch,
    /// What statistics that are not finite do.
    pub non_finite: NonFinite,
    /// Whether mean and variance have weights of their own.
    pub separate_factors: bool,
    /// Whether each channel has a weight of its own: an average without the updates it has skipped.
    pub factor_per_channel: bool,
}

impl RunningRules {
    /// The same with this variance.
    pub const fn variance(self, variance: Variance) -> Self {
        Self { variance, ..self }
    }
    /// The same with this rule for a batch without values.
    pub const fn empty_batch(self, empty_batch: EmptyBatch) -> Self {
        Self { empty_batch, ..self }
    }
    /// The same with this rule for statistics that are not finite.
    pub const fn non_finite(self, non_finite: NonFinite) -> Self {
        Self { non_finite, ..self }
    }
    /// The same with weights of their own for mean and variance, or with one.
    pub const fn separate_factors(self, separate_factors: bool) -> Self {
        Self { separate_factors, ..self }
    }
    /// The same with a weight of its own for each channel, or with one.
    pub const fn factor_per_channel(self, factor_per_channel: bool) -> Self {
        Self { factor_per_channel, ..self }
    }
}

impl Request {
    /// An operation without activation or residual, not in place, on a whole batch: a forward without
    /// running statistics that saves nothing, a backward for every gradient.
    pub const fn new(op: Op, dtype: DType) -> Self {
        Self {
            op,
            dtype,
            activation: Activation::Identity,
            residual: false,
            in_place: false,
            running: None,
            saves: false,
            y_is_kept: false,
            mask: false,
            by_record: false,
            grad_x: true,
            grad_residual: true,
            sums: false,
        }
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
    /// The same with running statistics that move like this.
    pub const fn running(self, rules: RunningRules) -> Self {
        Self { running: Some(rules), ..self }
    }
    /// The same of a forward that saves something for a backward, or nothing.
    pub const fn saves(self, saves: bool) -> Self {
        Self { saves, ..self }
    }
    /// The same where the caller keeps y, or does not.
    pub const fn y_is_kept(self, y_is_kept: bool) -> Self {
        Self { y_is_kept, ..self }
    }
    /// The same with a mask, or without one.
    pub const fn mask(self, mask: bool) -> Self {
        Self { mask, ..self }
    }
    /// The same by a record of statistics, or by a mean and a variance.
    pub const fn by_record(self, by_record: bool) -> Self {
        Self { by_record, ..self }
    }
    /// The same with a gradient of x, or without one.
    pub const fn grad_x(self, grad_x: bool) -> Self {
        Self { grad_x, ..self }
    }
    /// The same with a gradient of the residual, or without one.
    pub const fn grad_residual(self, grad_residual: bool) -> Self {
        Self { grad_residual, ..self }
    }
    /// The same of a part of a batch, with sums, or of a whole one.
    pub const fn sums(self, sums: bool) -> Self {
        Self { sums, ..self }
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
    /// [`Engine::double_backward`](crate::Engine::double_backward), through whichever statistics.
    DoubleBackward,
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
    /// [`Engine::renormalize`](crate::Engine::renormalize).
    Renormalize,
    /// [`Engine::renormalize_backward`](crate::Engine::renormalize_backward).
    RenormalizeBackward,
}
