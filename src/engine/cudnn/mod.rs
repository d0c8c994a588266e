//! NVIDIA's cuDNN: its batch normalization calls of before the graph API, which version 9 still
//! has.
//!
//! `limits` is what it is not asked for, `form` how a tensor is described to it, `raw` calls it,
//! `desk` is what the steps of a stream share, `launch` makes typed calls of `forward` and
//! `backward`.
use super::parameters::Parameters;
use super::per_stream::{OfStream, PerStream};
use super::{
    Backward, Constrain, DoubleBackward, Engine, ForwardEval, ForwardTrain, LayerNormBackward,
    LayerNormForward, MergeStats, Op, OptimizerStep, Regularize, Renormalize, RenormalizeBackward,
    Request, Stats,
};
use crate::memory::new_stream;
use crate::{DType, Device, Element, Error, Real, Result, Shape, library};
use cudarc::cudnn::sys::{cudnnErrQueryMode_t, cudnnStatus_t};
use cudarc::driver::CudaStream;
use desk::{Constants, Desk, Space};
use form::Form;
use limits::Ask;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

mod backward;
mod desk;
mod form;
mod forward;
#[allow(unsafe_code)]
mod launch;
mod limits;
#[allow(unsafe_code)]
mod raw;

const NAME: &str = "cudnn";

/// Batch normalization by NVIDIA's cuDNN, version 9, on one stream of a CUDA device.
///
/// It serves what cuDNN serves and refuses the rest with [`Error::Unsupported`], which names the
/// limit; [`Gpu`](crate::Gpu) serves everything. Beyond a limit are statistics without a
/// normalization, the backward of a backward, evaluation by a record of them, backward through frozen ones, evaluation with a ReLU,
/// a ReLU on anything but f16 with channels last, and a backward in place. A call that nobody has tried is made, and becomes
/// the same error where cuDNN refuses it.
///
/// cuDNN has no call for an optimizer's step, a regularizer or a constraint: those are kernels of ours.
///
/// Modes: per activation for N x C, persistent for channels last in training, spatial otherwise;
/// f64 is never persistent. Sums of the persistent mode may overflow where channels come first,
/// which it is asked for by [`Cudnn::persistent`] alone: [`Cudnn::take_overflow`] tells.
///
/// The mean is saved in f32 (f64 for f64), rounded: where it is thousands of deviations away from 0,
/// `grad_weight` errs by up to `|mean| * invstd * |sum(g)|` half units of f32, and `grad_x` with it.
/// Our kernels save what the rounding leaves.
///
/// An operation queues its work on the stream and returns. All engines of one stream share handle, descriptors
/// and workspace; a graph that was captured from a step stays valid while one of them lives, and a step
/// before the capture, or [`Engine::prepare`] and a [`Saved`](crate::Saved) that was used, makes
/// all memory. Of calls of the driver and of cudarc's events, what [`Cuda`](crate::Cuda) says holds here.
///
/// cuDNN reads a ReLU's output again in backward, and takes no bit mask in its place. So `Saved` keeps a copy of
/// y, a read and a write of the tensor more, unless the caller says that it keeps y itself
/// ([`ForwardTrain::y_is_kept`], of a layer [`forward_keeping_y`](crate::BatchNorm::forward_keeping_y)) and gives it to
/// the backward: a network whose next layer keeps its input has it anyway.
///
/// Training goes by `cudnnBatchNormalizationForwardTrainingEx` and `BackwardEx` whatever the dtype and layout,
/// as in PyTorch. cuDNN's graph API is not called. What its `NORM_FORWARD` and `NORM_BACKWARD` would add is the
/// mask of a ReLU as bits, so that y need not be kept, and a ReLU behind bf16; it costs a plan for every form that is
/// compiled at first use, and running statistics that are written beside the old ones instead of in their place.
/// Our kernels have that mask and all dtypes, and callers who keep y pay nothing for it here.
#[derive(Clone)]
pub struct Cudnn {
    memory: Device,
    shared: Arc<Shared>,
    persistent: bool,
}

/// What the engines of a stream share.
struct Shared {
    stream: Arc<CudaStream>,
    desk: Mutex<Desk>,
    parameters: Parameters,
}

impl OfStream for Shared {
    fn stream(&self) -> &CudaStream {
        &self.stream
    }
}

static SHARED: PerStream<Shared> = PerStream::new();

impl Cudnn {
    /// On a new stream of a device, by its ordinal.
    ///
    /// # Errors
    /// [`Error::Library`] where there is no CUDA driver or no cuDNN, [`Error::LibraryUnfit`] where
    /// it is not version 9, [`Error::Device`] where there is no such device.
    pub fn new(ordinal: usize) -> Result<Self> {
        Self::on_stream(new_stream(ordinal)?)
    }

    /// On this stream, sharing handle and workspace with every other engine that is there. A stream per thread is
    /// as for [`Cuda::on_stream`](crate::Cuda::on_stream).
    ///
    /// # Errors
    /// As [`Cudnn::new`].
    pub fn on_stream(stream: Arc<CudaStream>) -> Result<Self> {
        library::cudnn(raw::SYMBOLS)?;
        let make = || {
            let (desk, parameters) = (Mutex::new(Desk::new(&stream)?), Parameters::new(NAME));
            Ok(Shared { stream: stream.clone(), desk, parameters })
        };
        let shared = SHARED.get(&stream, make)?;
        Ok(Self { memory: Device::new(stream), shared, persistent: false })
    }

    /// The same, in the persistent mode where channels come first, too: it may be faster, and its
    /// sums may overflow.
    pub fn persistent(self) -> Self {
        Self { persistent: true, ..self }
    }

    /// The stream.
    pub fn stream(&self) -> &Arc<CudaStream> {
        self.memory.stream()
    }

    /// The version of the library, 92100 for 9.21.0.
    pub fn version(&self) -> usize {
        raw::version()
    }

    /// Whether sums of the persistent mode have overflowed since this last said so, by whichever engine of this
    /// stream. Steps do not ask; this waits for the stream.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn take_overflow(&self) -> Result<bool> {
        let found = self.query(cudnnErrQueryMode_t::CUDNN_ERRQUERY_BLOCKING)?;
        Ok(found == cudnnStatus_t::CUDNN_STATUS_RUNTIME_FP_OVERFLOW)
    }

    /// As [`Cudnn::take_overflow`] without waiting: `None` while the stream is at work.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn poll_overflow(&self) -> Result<Option<bool>> {
        let found = self.query(cudnnErrQueryMode_t::CUDNN_ERRQUERY_NONBLOCKING)?;
        Ok(match found {
            cudnnStatus_t::CUDNN_STATUS_RUNTIME_IN_PROGRESS => None,
            found => Some(found == cudnnStatus_t::CUDNN_STATUS_RUNTIME_FP_OVERFLOW),
        })
    }

    fn query(&self, mode: cudnnErrQueryMode_t) -> Result<cudnnStatus_t> {
        self.desk().handle.query_runtime_error(mode)
    }

    /// How it would serve a request: mode, operations, how the tensor is described, and what is
    /// unknown about it.
    ///
    /// # Errors
    /// As [`Engine::supports`].
    pub fn explain(&self, shape: &Shape, request: Request) -> Result<String> {
        if is_ours(request.op) {
            return Ok(format!("{NAME}: {:?} by a kernel of ours", request.op));
        }
        let form = Form::new(shape, request, self.persistent)?;
        let calls = match request.op {
            Op::ForwardEval => "ForwardInference",
            Op::Backward => "BackwardEx",
            _ => "ForwardTrainingEx",
        };
        let mut text = format!("{NAME}: cudnnBatchNormalization{calls}, {form}");
        for unknown in limits::unknown(&Ask { shape, request }) {
            text += &format!("; not known before the call: {unknown}");
        }
        Ok(text)
    }

    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.shared.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Constants where weight or bias is absent; none of their addresses is used where both are
    /// there.
    fn constants_for<A: Real>(
        &self,
        desk: &mut Desk,
        shape: &Shape,
        (weight, bias): (bool, bool),
    ) -> Result<Constants<A>> {
        let channels = if weight && bias { 0 } else { shape.channels() };
        desk.constants(&self.memory, channels)
    }
}

impl std::fmt::Debug for Cudnn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let stream = self.stream();
        f.debug_struct("Cudnn")
            .field("device", &stream.context().ordinal())
            .field("stream", &stream.cu_stream())
            .field("persistent", &self.persistent)
            .finish_non_exhaustive()
    }
}

impl Engine for Cudnn {
    type Memory = Device;

    fn name(&self) -> &'static str {
        NAME
    }
    fn memory(&self) -> &Device {
        &self.memory
    }
    fn supports(&self, shape: &Shape, request: Request) -> Result<()> {
        if is_ours(request.op) {
            return Ok(());
        }
        let form = Form::new(shape, request, self.persistent)?;
        self.desk().describe(&form).map(drop)
    }
    fn prepare(&self, shape: &Shape, request: Request) -> Result<()> {
        if is_ours(request.op) {
            return self.shared.parameters.load(self.stream());
        }
        let form = Form::new(shape, request, self.persistent)?;
        let mut desk = self.desk();
        let sizes = desk.describe(&form)?.sizes;
        desk.spaces(&self.memory, &sizes)?;
        match request.dtype {
            DType::F64 => desk.constants::<f64>(&self.memory, shape.channels()).map(drop),
            _ => desk.constants::<f32>(&self.memory, shape.channels()).map(drop),
        }
    }
    /// What cuDNN asks for; and y, which it wants again where a ReLU follows, unless the caller keeps it. 0 for
    /// what it does not serve.
    fn reserve_len(&self, shape: &Shape, request: Request) -> usize {
        let form = Form::new(shape, request, self.persistent);
        let kept = form.and_then(|form| {
            let sizes = self.desk().describe(&form)?.sizes;
            Ok(form.kept(&sizes, request.y_is_kept))
        });
        kept.unwrap_or(0)
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
        self.launch_forward_eval(shape, args)
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
        Err(no_call(args.request()?, shape))
    }

    fn stats<E: Element>(&self, shape: &Shape, mut args: Stats<'_, Device, E>) -> Result<()> {
        args.check(&self.memory, shape)?;
        Err(no_call(args.request(), shape))
    }

    fn merge_stats<P: Real>(&self, mut args: MergeStats<'_, Device, P>) -> Result<()> {
        let shape = Shape::new(&[1, args.check(&self.memory)?], 1)?;
        Err(no_call(args.request(), &shape))
    }

    fn layer_norm<E: Element>(
        &self,
        shape: &Shape,
        mut args: LayerNormForward<'_, Device, E>,
    ) -> Result<()> {
        args.check(&self.memory, shape)?;
        Err(no_call(args.request(), shape))
    }

    fn layer_norm_backward<E: Element>(
        &self,
        shape: &Shape,
        mut args: LayerNormBackward<'_, Device, E>,
    ) -> Result<()> {
        args.check(self, shape)?;
        Err(no_call(args.request(), shape))
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
}

/// Whether an operation is a kernel of ours, which serves every parameter.
const fn is_ours(op: Op) -> bool {
    super::cuda::is_of_parameters(op)
}

/// The limit that forbids an operation.
fn no_call(request: Request, shape: &Shape) -> Error {
    let refused = limits::check(&Ask { shape, request }).err();
    let op = request.op;
    refused.unwrap_or_else(|| Error::invalid("op", format!("expected a limit for {op:?}")))
}
