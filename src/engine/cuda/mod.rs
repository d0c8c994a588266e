//! Our own kernels on a CUDA device.
//!
//! `plan` decides how a tensor is cut, and `resident` whether and how it stays in shared memory
//! between two passes over it, as far as `tuning` leaves that to them. `module` loads the kernels that
//! `kernels/` holds, `launch` starts them, `forward` and `backward` are the order in which they follow
//! each other.
use super::check::{check_values_per_channel, total_count};
use super::ops::check_rows;
use super::pointers::{Pointers, Ptr};
use super::{
    Activation, Backward, Constrain, Derivative, DoubleBackward, Engine, ForwardEval, ForwardTrain,
    LayerNormBackward, LayerNormForward, Mask, MergeMasked, MergeStats, OneValue, Op,
    OptimizerStep, Regularize, Renormalize, RenormalizeBackward, Request, Stats,
};
use crate::memory::new_stream;
use crate::{DType, Device, Element, Memory, Real, Result, Shape};
use arguments::Group;
use cudarc::driver::{CudaFunction, CudaStream, CudaView, CudaViewMut};
use figures::Figures;
use launch::{Bound, Launcher};
use module::Variant;
use plan::Plan;
use resident::{Resident, Step};
use shared::Shared;
use std::sync::Arc;
use workspace::Layout;

pub use costs::Costs;
pub use tuning::{Family, Tuning};

mod arguments;
mod backward;
mod costs;
mod double_backward;
mod explain;
mod figures;
mod forward;
#[allow(unsafe_code)]
mod launch;
mod layer_norm;
mod masked;
mod module;
mod plan;
#[cfg(test)]
mod profiles;
mod refusals;
mod resident;
mod shared;
mod tuning;
mod update;
mod workspace;

const NAME: &str = "cuda";

/// Batch normalization by our own kernels, on one stream of a CUDA device of compute capability 7.5
/// or more. Only the driver is needed, no CUDA toolkit.
///
/// An operation queues its kernels on the stream and returns; arguments that other streams use are
/// waited for as cudarc does it, and those that other streams read: cudarc keeps one event for all
/// readers of a slice, so that the last one has to stand for all. Where something else than this crate
/// reads a slice last, on another stream, that stream is the caller's to order (`stream.join`) before
/// the slice is written or dropped. [`Engine::merge_stats`] alone may wait for the device, to read
/// counts: where the caller knows of less than two values, and no graph is captured.
///
/// Results are bit for bit repeatable on one device, and may differ in rounding between devices of
/// different size, or with other [`Costs`], unless [`Family::Split`] is asked for.
///
/// All engines of one stream share its workspace, be they clones or made apart by [`Cuda::on_stream`]: the
/// layers of a network need one between them, and the last engine drops it. Steps on a stream follow each
/// other, so that they can; several threads may queue theirs. The workspace never moves, so that a graph that
/// was captured from a step stays valid while an engine of the stream lives; a step before the capture, or
/// [`Engine::prepare`], makes all memory.
///
/// Where the driver refuses a training step in one launch, as it may under a debugger or with a part of a
/// device, the step takes several, and so do all engines of the context from then on: [`Cuda::explain`] says so. A graph
/// should be captured behind such a step, since some drivers refuse when it is instantiated.
///
/// Kernels are loaded by the first step that launches them, or by [`Engine::prepare`], for tensors that
/// start at a multiple of 16 bytes. The driver compiles their PTX then, once for each machine, user and
/// driver: ptxas, which is the same compiler, takes 0.7 to 1.0 CPU seconds on an AMD EPYC for a module
/// of no activation or a ReLU, 0.6 to 1.8 for one of any. A type of elements has two of each; a step in
/// one launch needs one. With the feature `cubins` machine code is loaded instead, which takes about
/// 20 ms to unpack; what a driver needs to load it, nobody has measured yet.
///
/// # Driver calls
/// Where cudarc tracks the uses of slices by events, as it does by default once a context has more than its
/// default stream, every argument costs two waits and a record, each with a call of its own for the context:
/// 40 to 50 calls of the driver around one or three launches. Without events a training step or an evaluation is its
/// launches and one call more. There are two ways to be without:
///
/// - An engine [on](Cuda::on_stream) `context.default_stream()`, while nobody has made another stream in that
///   context: cudarc tracks nothing then, and begins to, after a synchronization, with the first other
///   stream. That is safe. Graphs are not captured from that stream.
/// - `unsafe { context.disable_event_tracking() }`, before any slice is made. It holds for the whole context, and
///   then it is the caller who sees to it that no slice is used on a stream before the work on it that another
///   stream has queued is done (`stream.join` orders two streams), and that none is dropped before: it is freed
///   in the order of the stream that made it. Where one stream does everything, nothing is left to see to. The
///   engines' own memory is safe either way: each is used on its own stream alone.
///
/// ```no_run
/// # #![allow(unsafe_code)]
/// # use batchnorm::{Cuda, Result};
/// use batchnorm::cudarc::driver::CudaContext;
///
/// let context = CudaContext::new(0)?;
/// // SAFETY: all work of this context is on the one stream below.
/// unsafe { context.disable_event_tracking() };
/// let engine = Cuda::on_stream(context.new_stream()?)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Cuda {
    memory: Device,
    shared: Arc<Shared>,
    tuning: Tuning,
}

impl Cuda {
    /// On a new stream of a device, by its ordinal: an engine that shares with nobody. Clone it for every layer
    /// that is to run on that stream.
    ///
    /// # Errors
    /// [`Error::Library`](crate::Error::Library) where there is no CUDA driver,
    /// [`Error::Device`](crate::Error::Device) where there is no such device,
    /// [`Error::Unsupported`](crate::Error::Unsupported) where it is too old.
    pub fn new(ordinal: usize) -> Result<Self> {
        Self::on_stream(new_stream(ordinal)?)
    }

    /// On this stream, sharing the workspace with every other engine that is there. Where the handle means a stream
    /// per thread ([`CudaContext::per_thread_stream`](cudarc::driver::CudaContext::per_thread_stream), candle's
    /// default) the engine is this thread's: every other thread makes its own, and drops it there. Nothing orders the
    /// work of two threads then, since their streams look like one: memory goes from one to the other after a
    /// synchronization.
    ///
    /// # Errors
    /// As [`Cuda::new`]. Operations in another thread than that of a stream per thread are
    /// [`Error::Invalid`](crate::Error::Invalid).
    pub fn on_stream(stream: Arc<CudaStream>) -> Result<Self> {
        let shared = Shared::of(&stream)?;
        Ok(Self { memory: Device::new(stream), shared, tuning: Tuning::default() })
    }

    /// The same engine, choosing its kernels so: it shares stream and workspace with this one, and
    /// either takes what the other has saved.
    pub fn tuned(&self, tuning: Tuning) -> Self {
        Self { tuning, ..self.clone() }
    }

    /// The stream.
    pub fn stream(&self) -> &Arc<CudaStream> {
        self.memory.stream()
    }

    /// Whether any step since the last call found a mean, a variance or a sum of gradients that was
    /// not finite, by whichever engine of this stream. Waits for the stream.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device).
    pub fn take_nonfinite(&self) -> Result<bool> {
        self.shared.workspace.take_nonfinite(&self.memory)
    }

    fn cut(&self, shape: &Shape, dtype: DType) -> Result<Plan> {
        let alike = self.tuning.family == Family::Split;
        Plan::new(shape, dtype.size(), if alike { Figures::ANY } else { self.shared.figures })
    }

    /// How a step is done in one launch, if it is, and the kernel for that.
    fn resident(
        &self,
        shape: &Shape,
        dtype: DType,
        variant: Variant,
        step: Step,
    ) -> Result<Option<(Resident, CudaFunction)>> {
        let (Shared { figures, modules, plans, .. }, tuning) = (&*self.shared, self.tuning);
        let Some(allowed) = modules.refusals.allowed(figures) else { return Ok(None) };
        let make = || resident::plan(shape, dtype.size(), step, &allowed, &tuning);
        let key = (*shape, dtype, step, tuning, allowed.cooperative);
        let Some(plan) = plans.get(key, make) else { return Ok(None) };
        let kernels = modules.resident(dtype, variant, figures)?;
        Ok(kernels.and_then(|kernels| Some((plan, kernels.of(step)?.clone()))))
    }

    /// Launches with what the blocks of a group tell each other through. False where the driver refuses
    /// the launch: then nothing has run, and the step is to take several.
    fn in_one_launch(
        &self,
        plan: &Resident,
        partials: Ptr<f64>,
        launch: impl FnOnce(Group) -> Result<()>,
    ) -> Result<bool> {
        let Shared { workspace, modules, .. } = &*self.shared;
        match launch(Group::new(plan, partials, workspace.words(&self.memory)?)) {
            Ok(()) => Ok(true),
            Err(error) if modules.refusals.remember(plan, &error) => Ok(false),
            Err(error) => {
                workspace.spoil_words();
                Err(error)
            }
        }
    }

    fn plan<E: Element>(&self, shape: &Shape) -> Result<Plan> {
        self.cut(shape, E::DTYPE)
    }

    /// Kernels for elements of this type, on the engine's stream.
    fn launcher<E: Element>(&self, activation: Activation) -> Launcher<'_> {
        let modules = &self.shared.modules;
        Launcher { modules, dtype: E::DTYPE, activation, stream: Bound::new(self.stream()) }
    }
}

impl std::fmt::Debug for Cuda {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (stream, figures) = (self.stream(), self.shared.figures);
        let context = stream.context();
        f.debug_struct("Cuda")
            .field("device", &context.ordinal())
            .field("stream", &stream.cu_stream())
            .field("figures", &figures)
            .field("tuning", &self.tuning)
            .finish_non_exhaustive()
    }
}

impl Engine for Cuda {
    type Memory = Device;

    fn name(&self) -> &'static str {
        NAME
    }
    fn memory(&self) -> &Device {
        &self.memory
    }
    fn supports(&self, shape: &Shape, request: Request) -> Result<()> {
        match request.op {
            Op::LayerNorm | Op::LayerNormBackward => {
                check_rows(shape)?;
                layer_norm::check_features(shape)
            }
            _ => self.cut(shape, request.dtype).map(drop),
        }
    }
    fn takes_groups(&self, shape: &Shape, request: Request) -> bool {
        self.cut(shape, request.dtype).is_ok()
    }
    fn prepare(&self, shape: &Shape, request: Request) -> Result<()> {
        if matches!(request.op, Op::LayerNorm | Op::LayerNormBackward) {
            self.supports(shape, request)?;
            self.shared.modules.layer_norm(request.dtype)?;
            return self.shared.workspace.room(&self.memory, layer_norm::layout(shape)).map(drop);
        }
        let plan = self.cut(shape, request.dtype)?;
        let activation = request.activation;
        if request.op == Op::DoubleBackward {
            self.shared.modules.double_backward(request.dtype)?;
            let layout = double_backward::layout(shape, request.dtype);
            return self.shared.workspace.room(&self.memory, layout).map(drop);
        }
        if is_of_parameters(request.op) {
            return self.shared.parameters.load(self.stream());
        }
        let resident = match request.op {
            Op::ForwardTrain if !request.mask => Some(Step::Forward),
            Op::Backward => Some(Step::Backward),
            _ => None,
        };
        let variant = Variant::of(activation, request.mask);
        let resident = match resident {
            Some(step) => self.resident(shape, request.dtype, variant, step)?,
            None => None,
        };
        if resident.is_none() {
            self.shared.modules.kernels(request.dtype)?;
            self.shared.modules.activated(request.dtype, activation)?;
        }
        if request.mask {
            self.shared.modules.masked(request.dtype)?;
        }
        let layout = match request.dtype {
            DType::F64 => Layout::new::<f64>(&plan),
            _ => Layout::new::<f32>(&plan),
        };
        let layout = layout.or(resident.as_ref().map(|(plan, _)| plan));
        let layout = if request.mask { layout.counted() } else { layout };
        self.shared.workspace.room(&self.memory, layout).map(drop)
    }
    /// A bit per element, a byte per vector, where the derivative is taken from a mask; behind that the numbers
    /// of values that count, where not all do.
    fn reserve_len(&self, shape: &Shape, request: Request) -> usize {
        let bits = match request.activation.derivative_from(request.residual) {
            Derivative::FromMask => plan::mask_len(shape, request.dtype.size()),
            _ => 0,
        };
        if request.mask { masked::reserve_len(shape, bits) } else { bits }
    }

    fn forward_train<E: Element>(
        &self,
        shape: &Shape,
        mut args: ForwardTrain<'_, Device, E>,
    ) -> Result<()> {
        args.check(&self.memory, shape)?;
        self.launch_forward_train(shape, args)
    }

    fn forward_eval<E: Element>(
        &self,
        shape: &Shape,
        mut args: ForwardEval<'_, Device, E>,
    ) -> Result<()> {
        args.check(&self.memory, shape)?;
        self.launch_forward_eval(shape, args, true)
    }

    fn backward<E: Element>(&self, shape: &Shape, mut args: Backward<'_, Device, E>) -> Result<()> {
        args.check(self, shape)?;
        self.launch_backward(shape, args)
    }

    fn double_backward<E: Element>(
        &self,
        shape: &Shape,
        mut args: DoubleBackward<'_, Device, E>,
    ) -> Result<()> {
        args.check(self, shape)?;
        self.launch_double_backward(shape, args)
    }

    fn stats<E: Element>(&self, shape: &Shape, mut args: Stats<'_, Device, E>) -> Result<()> {
        args.check(&self.memory, shape)?;
        self.launch_stats(shape, args)
    }

    fn masked_stats<E: Element>(
        &self,
        shape: &Shape,
        x: CudaView<'_, E>,
        mask: Mask<'_, Device>,
        eps: f64,
        to: CudaViewMut<'_, f64>,
    ) -> Result<()> {
        self.launch_masked_stats(shape, x, mask, eps, to)
    }
    fn merge_masked<P: Real>(&self, args: MergeMasked<'_, Device, P>) -> Result<()> {
        self.launch_merge_masked(args)
    }

    fn merge_stats<P: Real>(&self, mut args: MergeStats<'_, Device, P>) -> Result<()> {
        let channels = args.check(&self.memory)?;
        let may_be_refused = args.one_value == OneValue::Refuse && args.known < 2;
        if may_be_refused && !self.memory.is_capturing()? {
            self.check_total(channels, &args)?;
        }
        self.launch_merge_stats(channels, args)
    }

    fn optimizer_step<P: Real>(&self, args: OptimizerStep<'_, Device, P>) -> Result<()> {
        self.shared.parameters.optimizer_step(&self.memory, args)
    }
    fn regularize<P: Real>(&self, args: Regularize<'_, Device, P>) -> Result<()> {
        self.shared.parameters.regularize(&self.memory, args)
    }
    fn renormalize<P: Real>(&self, args: Renormalize<'_, Device, P>) -> Result<()> {
        self.shared.parameters.renormalize(&self.memory, args)
    }
    fn renormalize_backward<P: Real>(
        &self,
        args: RenormalizeBackward<'_, Device, P>,
    ) -> Result<()> {
        self.shared.parameters.renormalize_backward(&self.memory, args)
    }
    fn constrain<P: Real>(&self, args: Constrain<'_, Device, P>) -> Result<()> {
        self.shared.parameters.constrain(&self.memory, args)
    }

    fn layer_norm<E: Element>(
        &self,
        shape: &Shape,
        mut args: LayerNormForward<'_, Device, E>,
    ) -> Result<()> {
        args.check(&self.memory, shape)?;
        self.rows(shape, args)
    }

    fn layer_norm_backward<E: Element>(
        &self,
        shape: &Shape,
        mut args: LayerNormBackward<'_, Device, E>,
    ) -> Result<()> {
        args.check(self, shape)?;
        self.row_gradients(shape, args)
    }
}

impl Cuda {
    /// Refuses one value per channel over all the parts: reads counts until there are more.
    fn check_total<P: Real>(
        &self,
        channels: usize,
        args: &MergeStats<'_, Device, P>,
    ) -> Result<()> {
        let (mut total, record) = (0.0, 3 * channels + 1);
        for end in (record..=args.records.len()).step_by(record) {
            let count = self.memory.download(args.records.slice(end - 1..end))?;
            total += total_count(count.into_iter().map(|count| (end / record - 1, count)))?;
            if total > 1.0 {
                return Ok(());
            }
        }
        check_values_per_channel("records", total as usize, args.one_value)
    }
}

/// Whether an operation is one on vectors of a value per channel, which have kernels of their own.
pub(super) const fn is_of_parameters(op: Op) -> bool {
    matches!(
        op,
        Op::OptimizerStep
            | Op::Regularize
            | Op::Constrain
            | Op::Renormalize
            | Op::RenormalizeBackward
    )
}
