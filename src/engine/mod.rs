//! Who computes: one trait, and the arguments of its operations.
use crate::{Element, Memory, Real, Result, Shape};

mod check;
pub(crate) mod counted_parts;
mod cpu;
#[cfg(any(feature = "cubins", all(test, feature = "cuda")))]
mod cubins; // in tests without the feature, too: they need no build of their own
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(feature = "cudnn")]
mod cudnn;
mod epilogue;
#[cfg(feature = "cudnn")]
mod gpu;
mod layer_norm;
mod ops;
mod optimizer;
#[cfg(feature = "cuda")]
#[allow(unsafe_code)]
mod parameters;
mod penalty;
#[cfg(feature = "cuda")]
mod per_stream;
mod places;
#[cfg(feature = "cuda")]
mod pointers;
#[cfg(feature = "cuda")]
mod ptx;
mod reference;
mod renorm;
mod saved;
mod saved_counted;
mod saved_given;
mod saved_groups;
mod synced;

pub(crate) use check::{check_eps, check_momentum, check_values_per_channel};
pub use counted_parts::MergeMasked;
pub use cpu::{Cpu, SimdLevel};
pub(crate) use cpu::{compiled::CpuOperations, kernels::math::Math};
#[cfg(feature = "cuda")]
pub use cuda::{Costs, Cuda, Family, Tuning};
#[cfg(feature = "cudnn")]
pub use cudnn::Cudnn;
pub use epilogue::{Activation, Derivative};
#[cfg(feature = "cudnn")]
pub use gpu::{Choice, Gpu, Rule};
pub use layer_norm::{EpsRule, LayerNormSaved};
pub(crate) use ops::MaskRules;
pub use ops::{
    AllMasked, Argument, Arguments, Backward, Constrain, DoubleBackward, EmptyBatch, ForwardEval,
    ForwardTrain, Input, LayerNormBackward, LayerNormForward, Mask, MergeStats, NonFinite,
    OneValue, Op, OptimizerStep, Regularize, RenormState, Renormalize, RenormalizeBackward,
    Request, Role, Running, RunningRules, Statistics, Stats, Variance, Visitor,
};
pub(crate) use ops::{DOUBLE_SUMS, rule};
pub use optimizer::Algorithm;
pub(crate) use optimizer::check_from_0;
pub use penalty::{Constraint, Regularizer};
pub(crate) use places::Places;
pub use reference::Reference;
pub use renorm::RenormClip;
pub use saved::Saved;
pub(crate) use saved_counted::Counted;
pub use saved_given::GivenStatistics;
pub use saved_groups::GroupRows;
pub(crate) use saved_groups::Grouping;
pub(crate) use synced::Call;
#[cfg(feature = "nccl")]
pub use synced::Nccl;
pub use synced::{Collective, Rank, Synced, Threads, Words};

/// An algorithm for batch normalization on one kind of memory. A cheap handle: clones share one
/// workspace.
///
/// The trait is sealed: an engine also fills and reads a [`Saved`], whose inside is this crate's own, so
/// that it, and operations, can change without breaking an engine elsewhere. What is generic over engines
/// takes `G: Engine`.
///
/// Every operation checks every argument before it writes anything. Once its [`Saved`] has been used
/// with a shape, none allocates anything of a tensor's size; [`Reference`] may.
pub trait Engine: sealed::Sealed + Clone + Send + Sync + 'static {
    /// Where its arguments lie.
    type Memory: Memory;

    /// For messages, and what a [`Saved`] remembers: `cpu`, `reference`, ...
    fn name(&self) -> &'static str;
    /// Makes and copies buffers for this engine.
    fn memory(&self) -> &Self::Memory;
    /// Whether it can serve such a request: a call of that [`Request`] is refused for the same reason,
    /// or for none. Engines that serve everything keep this default.
    ///
    /// # Errors
    /// [`Error::Unsupported`](crate::Error::Unsupported) says what the limit is;
    /// [`Error::Invalid`](crate::Error::Invalid) where the operation has no meaning for the shape.
    fn supports(&self, shape: &Shape, request: Request) -> Result<()> {
        match request.op {
            Op::LayerNorm | Op::LayerNormBackward => ops::check_rows(shape),
            _ => Ok(()),
        }
    }
    /// Makes the workspace for a request now instead of in its first step. Engines that need none,
    /// or whose first step makes it at little cost as [`Cpu`]'s does, keep this default: it asks
    /// [`Engine::supports`] and makes nothing.
    ///
    /// # Errors
    /// As [`Engine::supports`], or the memory's refusal.
    fn prepare(&self, shape: &Shape, request: Request) -> Result<()> {
        self.supports(shape, request)
    }
    /// Bytes that a forward puts aside in its [`Saved`] for the backward, beyond the statistics.
    fn reserve_len(&self, shape: &Shape, request: Request) -> usize;

    /// Whether it takes shapes whose rows are dealt out to groups, such as this one, for such a training forward and its
    /// backward: no other operation may be asked for by one.
    #[doc(hidden)]
    fn takes_groups(&self, shape: &Shape, request: Request) -> bool {
        let _ = (shape, request);
        false
    }
    /// How many ranks have the statistics of a training forward in common: 1, but for [`Synced`].
    #[doc(hidden)]
    fn ranks(&self) -> usize {
        1
    }
    /// Tells the other ranks, where there are some, that this one has refused the call which they make.
    #[doc(hidden)]
    fn decline(&self, op: Op) {
        let _ = op;
    }
    /// What the ranks have in common where a layer takes more than one call for it. Each begins with an exchange
    /// of what the ranks are about to do, `own` among it: where one has refused, none goes on. One rank alone goes on
    /// with its own.
    ///
    /// This one: the record of this rank's part of a batch (length 3C + 1) becomes that of all parts, of so many
    /// values per channel.
    #[doc(hidden)]
    fn merge_ranks(
        &self,
        call: Call,
        own: Result<usize>,
        record: <Self::Memory as Memory>::ViewMut<'_, f64>,
        one_value: OneValue,
    ) -> Result<usize> {
        let _ = (call, record, one_value);
        own
    }
    /// The record of the values that count for a mask in all parts, by the mask's rules (length 3C + 1).
    #[doc(hidden)]
    fn masked_record<E: Element>(
        &self,
        call: Call,
        shape: &Shape,
        args: Stats<'_, Self::Memory, E>,
        rules: (f64, OneValue),
    ) -> Result<()> {
        let _ = (call, rules);
        self.stats(shape, args)
    }
    /// The records of every rank's groups, by rank: of each so many, of which the first so many have a variance.
    /// `records` holds this rank's, one after the other, and may be made longer; `all` holds those of all, of each
    /// rank as many as of that which has the most.
    #[doc(hidden)]
    fn gather_ranks(
        &self,
        call: Call,
        own: Result<[usize; 2]>,
        records: &mut <Self::Memory as Memory>::Buf<f64>,
        all: &mut <Self::Memory as Memory>::Buf<f64>,
    ) -> Result<Vec<[usize; 2]>> {
        let _ = (call, records, all);
        Ok(vec![own?])
    }
    /// The sums of a backward (length 2C + 1) become those of all parts.
    #[doc(hidden)]
    fn reduce_ranks<P: Real>(
        &self,
        call: Call,
        own: Result<()>,
        sums: <Self::Memory as Memory>::ViewMut<'_, P>,
    ) -> Result<()> {
        let _ = (call, sums);
        own
    }
    /// What those values come to that count for a mask, of every channel: their means, what rounding left of those,
    /// biased variances and numbers, into memory of length 4C. For [`merge_masked`](Self::merge_masked).
    #[doc(hidden)]
    fn masked_stats<E: Element>(
        &self,
        shape: &Shape,
        x: <Self::Memory as Memory>::View<'_, E>,
        mask: Mask<'_, Self::Memory>,
        eps: f64,
        to: <Self::Memory as Memory>::ViewMut<'_, f64>,
    ) -> Result<()> {
        let _ = (shape, x, mask, eps, to);
        let reason = "statistics by themselves are those of all values: expected no mask, got one";
        Err(crate::Error::Unsupported { engine: self.name(), reason: reason.into() })
    }
    /// What the values that count in all parts of a batch come to, of which each has such numbers.
    #[doc(hidden)]
    fn merge_masked<P: Real>(&self, args: MergeMasked<'_, Self::Memory, P>) -> Result<()> {
        args.on_host(self.memory())
    }

    /// Normalizes by the batch's own statistics, and updates the running ones.
    ///
    /// # Errors
    /// A wrong length, eps or momentum factor, or one value per channel unless
    /// [`ForwardTrain::one_value`] says otherwise. An empty batch is none: y is empty, and the statistics
    /// stay unless [`Running::empty_batch`] says otherwise.
    fn forward_train<E: Element>(
        &self,
        shape: &Shape,
        args: ForwardTrain<'_, Self::Memory, E>,
    ) -> Result<()>;
    /// Normalizes by given statistics, such as running ones.
    ///
    /// # Errors
    /// A wrong length or eps.
    fn forward_eval<E: Element>(
        &self,
        shape: &Shape,
        args: ForwardEval<'_, Self::Memory, E>,
    ) -> Result<()>;
    /// The gradients asked for, through the statistics that the forward used.
    ///
    /// # Errors
    /// A wrong length, or a [`Saved`] of another shape, dtype, engine or epilogue.
    fn backward<E: Element>(
        &self,
        shape: &Shape,
        args: Backward<'_, Self::Memory, E>,
    ) -> Result<()>;
    /// Training forwards of groups of a batch's rows, which lie one after the other in `args`, as calls of
    /// [`forward_train`](Self::forward_train): each by its own statistics, into its own place of `saved`, and the
    /// running statistics moved by each in its turn, by its pair of `factors`, of the mean and of the variance. An
    /// engine may take several at once; the results are the same bits.
    #[doc(hidden)]
    fn forward_train_groups<E: Element>(
        &self,
        groups: &[Shape],
        args: ForwardTrain<'_, Self::Memory, E>,
        saved: &mut [Saved<Self::Memory, E::Acc>],
        factors: &[(f64, f64)],
    ) -> Result<()> {
        ops::groups::forward_train(self, groups, args, saved, factors)
    }
    /// The gradients asked for of such a forward, as calls of [`backward`](Self::backward): those of the
    /// parameters are summed over the groups.
    #[doc(hidden)]
    fn backward_groups<E: Element>(&self, args: Backward<'_, Self::Memory, E>) -> Result<()> {
        ops::groups::backward(self, args)
    }
    /// Whether it takes such groups of a batch of this shape in one
    /// [`forward_train_at_once`](Self::forward_train_at_once), and their backward in one, too. By a mask, if there is one,
    /// of which all channels of a position have a place and values are counted exactly.
    #[doc(hidden)]
    fn takes_groups_at_once(&self, shape: &Shape, groups: GroupRows, request: Request) -> bool {
        let _ = (shape, groups, request);
        false
    }
    /// Training forwards of groups of a batch's rows in one call, each by its own statistics, of which one `saved` of
    /// `args` keeps all. Running statistics are moved by each in its turn, by its pair of `factors`, of the mean and of
    /// the variance, or by the average of all groups where there is one pair alone.
    #[doc(hidden)]
    fn forward_train_at_once<E: Element>(
        &self,
        shape: &Shape,
        groups: GroupRows,
        args: ForwardTrain<'_, Self::Memory, E>,
        factors: &[(f64, f64)],
    ) -> Result<()> {
        let _ = (shape, args, factors);
        let reason = format!("expected groups one after the other, got {groups:?} in one call");
        Err(crate::Error::Unsupported { engine: self.name(), reason })
    }
    /// The gradients of a [`backward`](Self::backward), given those of its results: for losses that are made of
    /// gradients, such as a gradient penalty.
    ///
    /// # Errors
    /// As [`backward`](Self::backward).
    fn double_backward<E: Element>(
        &self,
        shape: &Shape,
        args: DoubleBackward<'_, Self::Memory, E>,
    ) -> Result<()>;
    /// Mean and variance of this part of a batch, in f64: one device's share of synchronized
    /// statistics.
    ///
    /// # Errors
    /// A wrong length.
    fn stats<E: Element>(&self, shape: &Shape, args: Stats<'_, Self::Memory, E>) -> Result<()>;
    /// Merges the records of all parts, for [`Engine::forward_eval`]; updates running statistics.
    ///
    /// # Errors
    /// A wrong length or momentum factor, or one value per channel over all the parts unless
    /// [`MergeStats::one_value`] says otherwise.
    fn merge_stats<P: Real>(&self, args: MergeStats<'_, Self::Memory, P>) -> Result<()>;
    /// Normalizes each row by its own mean and variance over the features: layer normalization, Keras 1's
    /// mode 1. A row with a value that is not finite is NaN, and no other.
    ///
    /// # Errors
    /// A wrong length or eps, or channels that are not the last axis. No rows are no error.
    fn layer_norm<E: Element>(
        &self,
        shape: &Shape,
        args: LayerNormForward<'_, Self::Memory, E>,
    ) -> Result<()>;
    /// The gradients asked for of [`layer_norm`](Self::layer_norm).
    ///
    /// # Errors
    /// A wrong length, or a [`LayerNormSaved`] of another shape, dtype or engine.
    fn layer_norm_backward<E: Element>(
        &self,
        shape: &Shape,
        args: LayerNormBackward<'_, Self::Memory, E>,
    ) -> Result<()>;

    /// What a batch is scaled and shifted by to be renormalized, and what is kept of it.
    ///
    /// # Errors
    /// A wrong length, eps, weight of a batch or bound.
    fn renormalize<P: Real>(&self, args: Renormalize<'_, Self::Memory, P>) -> Result<()>;
    /// The gradients of weight and bias behind [`renormalize`](Self::renormalize).
    ///
    /// # Errors
    /// A wrong length.
    fn renormalize_backward<P: Real>(
        &self,
        args: RenormalizeBackward<'_, Self::Memory, P>,
    ) -> Result<()>;

    /// A step of an optimizer on one parameter: in f64, rounded where it is stored.
    ///
    /// # Errors
    /// A wrong length, numbers of the algorithm or factors without a meaning, or a buffer that it needs
    /// and that is not there.
    fn optimizer_step<P: Real>(&self, args: OptimizerStep<'_, Self::Memory, P>) -> Result<()>;
    /// The loss of a parameter's regularizer, and its gradient.
    ///
    /// # Errors
    /// A wrong length, or a factor without a meaning.
    fn regularize<P: Real>(&self, args: Regularize<'_, Self::Memory, P>) -> Result<()>;
    /// Brings a parameter within its constraint.
    ///
    /// # Errors
    /// Numbers of the constraint without a meaning.
    fn constrain<P: Real>(&self, args: Constrain<'_, Self::Memory, P>) -> Result<()>;
}

mod sealed {
    /// The engines that there are.
    pub trait Sealed {}
    impl Sealed for super::Reference {}
    impl Sealed for super::Cpu {}
    impl<G, C> Sealed for super::Synced<G, C>
    where
        G: super::Engine,
        C: super::Collective<G::Memory>,
    {
    }
    #[cfg(feature = "cuda")]
    impl Sealed for super::Cuda {}
    #[cfg(feature = "cudnn")]
    impl Sealed for super::Cudnn {}
    #[cfg(feature = "cudnn")]
    impl Sealed for super::Gpu {}
}
