//! Our kernels or cuDNN, whichever is faster: per operation, dtype and shape, by a table.
use super::{
    Activation, Backward, Constrain, Cuda, Cudnn, DoubleBackward, Engine, ForwardEval,
    ForwardTrain, LayerNormBackward, LayerNormForward, Mask, MergeMasked, MergeStats, Op,
    OptimizerStep, Regularize, Renormalize, RenormalizeBackward, Request, Stats,
};
use crate::memory::new_stream;
use crate::{DType, Device, Element, Error, Real, Result, Shape};
use cudarc::driver::{CudaStream, CudaView, CudaViewMut};
use std::sync::Arc;

/// Which of the engines behind [`Gpu`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Choice {
    /// [`Cuda`]: our kernels, which serve everything.
    Cuda,
    /// [`Cudnn`], where it serves the request. Its gradients lose digits where a mean is thousands of
    /// deviations away from 0, as [`Cudnn`] says, and no shape tells: take it for data that is not so.
    Cudnn,
}

/// A line of the table: the first that fits a request decides.
///
/// ```
/// # use batchnorm::{Choice, DType, Rule};
/// // f16 of a million elements or more by cuDNN.
/// let rule = Rule::always(Choice::Cudnn).dtype(DType::F16).from(1 << 20);
/// # assert_eq!((rule.from, rule.to, rule.op), (1 << 20, usize::MAX, None));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Rule {
    /// [`Op::ForwardTrain`] or [`Op::ForwardEval`]; both if absent. A backward follows its forward,
    /// and only our kernels have the other operations.
    pub op: Option<Op>,
    /// Any if absent.
    pub dtype: Option<DType>,
    /// Whether channels are the last axis; either if absent.
    pub channels_last: Option<bool>,
    /// From how many elements on.
    pub from: usize,
    /// Up to how many elements, these included.
    pub to: usize,
    /// What serves it.
    pub take: Choice,
}

impl Rule {
    /// For whatever is asked.
    pub const fn always(take: Choice) -> Self {
        Self { op: None, dtype: None, channels_last: None, from: 0, to: usize::MAX, take }
    }
    /// For this operation alone.
    pub const fn op(self, op: Op) -> Self {
        Self { op: Some(op), ..self }
    }
    /// For this dtype alone.
    pub const fn dtype(self, dtype: DType) -> Self {
        Self { dtype: Some(dtype), ..self }
    }
    /// Where channels are the last axis, or where they are not.
    pub const fn channels_last(self, channels_last: bool) -> Self {
        Self { channels_last: Some(channels_last), ..self }
    }
    /// From so many elements on.
    pub const fn from(self, from: usize) -> Self {
        Self { from, ..self }
    }
    /// Up to so many elements, these included.
    pub const fn to(self, to: usize) -> Self {
        Self { to, ..self }
    }

    fn fits(&self, shape: &Shape, request: &Request) -> bool {
        self.op.is_none_or(|op| op == request.op)
            && self.dtype.is_none_or(|dtype| dtype == request.dtype)
            && self.channels_last.is_none_or(|last| last == (shape.inner() == 1))
            && (self.from..=self.to).contains(&shape.len())
    }
}

/// Where cuDNN has been measured to be faster than our kernels, each with the device and the date
/// of its record in `benches/record`. None has been yet: our kernels serve everything.
const MEASURED: &[Rule] = &[];

/// Batch normalization on a CUDA device by [`Cuda`] or [`Cudnn`], whichever a table of measurements
/// prefers. It serves everything, and works where there is no cuDNN: what cuDNN does not serve, our
/// kernels do.
///
/// A backward follows the engine that made its [`Saved`](crate::Saved). So that every gradient can
/// be had, cuDNN takes no training forward with a ReLU; after one without, our kernels give the
/// gradients that cuDNN does not. What is saved never decides. cuDNN is loaded where a rule takes
/// it; what it makes of special values is its own: it does not promise, as our kernels do, that a
/// constant channel gives exactly its bias.
///
/// Clones share everything; see [`Cuda`] for streams, graphs and workspaces.
#[derive(Debug, Clone)]
pub struct Gpu {
    cuda: Cuda,
    /// Or why there is none; absent where no rule takes it.
    cudnn: Option<std::result::Result<Cudnn, Error>>,
    rules: Arc<[Rule]>,
}

/// What serves a request, and why.
enum Pick<'a> {
    Cuda(String),
    Cudnn(&'a Cudnn, String),
}

impl Gpu {
    /// On a new stream of a device, by its ordinal.
    ///
    /// # Errors
    /// As [`Cuda::new`].
    pub fn new(ordinal: usize) -> Result<Self> {
        Self::on_stream(new_stream(ordinal)?)
    }

    /// On this stream.
    ///
    /// # Errors
    /// As [`Cuda::new`].
    pub fn on_stream(stream: Arc<CudaStream>) -> Result<Self> {
        let this = Self { cuda: Cuda::on_stream(stream)?, cudnn: None, rules: Arc::new([]) };
        Ok(this.with_rules(MEASURED))
    }

    /// The same by another table. Where no rule fits, our kernels serve.
    pub fn with_rules(mut self, rules: &[Rule]) -> Self {
        if self.cudnn.is_none() && rules.iter().any(|rule| rule.take == Choice::Cudnn) {
            self.cudnn = Some(Cudnn::on_stream(self.stream().clone()));
        }
        Self { rules: rules.into(), ..self }
    }

    /// The stream.
    pub fn stream(&self) -> &Arc<CudaStream> {
        self.cuda.stream()
    }
    /// Our kernels.
    pub fn cuda(&self) -> &Cuda {
        &self.cuda
    }
    /// cuDNN, if it is installed and a rule takes it.
    pub fn cudnn(&self) -> Option<&Cudnn> {
        self.cudnn.as_ref()?.as_ref().ok()
    }

    /// Which engine serves a request, how, and why that one.
    ///
    /// # Errors
    /// As [`Engine::supports`].
    pub fn explain(&self, shape: &Shape, request: Request) -> Result<String> {
        Ok(match self.pick(shape, request) {
            Pick::Cuda(why) => format!("{}; {why}", self.cuda.explain(shape, request)?),
            Pick::Cudnn(cudnn, why) => {
                format!("{}; {why}", cudnn.explain(shape, unsaved(request))?)
            }
        })
    }

    fn pick(&self, shape: &Shape, request: Request) -> Pick<'_> {
        match request.op {
            Op::ForwardTrain | Op::ForwardEval => {}
            Op::Backward => return Pick::Cuda("if our kernels ran the forward".into()),
            _ => return Pick::Cuda("cuDNN has no such call".into()),
        }
        if shape.dealt().is_some() {
            return Pick::Cuda("cuDNN has no tensor whose rows are dealt out to groups".into());
        }
        let fits = |(_, rule): &(usize, &Rule)| rule.fits(shape, &request);
        let Some((line, rule)) = self.rules.iter().enumerate().find(fits) else {
            return Pick::Cuda(
                "no rule fits, which is how it is until cuDNN measures faster".into(),
            );
        };
        let why = format!("by rule {line}");
        let cudnn = match (rule.take, &self.cudnn) {
            (Choice::Cudnn, Some(Ok(cudnn))) => cudnn,
            (Choice::Cudnn, Some(Err(error))) => {
                return Pick::Cuda(format!("{why} it would be cuDNN, but {error}"));
            }
            _ => return Pick::Cuda(why),
        };
        let gates = request.op == Op::ForwardTrain && request.activation != Activation::Identity;
        if gates {
            let reason = "cuDNN's backward through a ReLU gives not all gradients";
            return Pick::Cuda(format!("{why} it would be cuDNN, but {reason}"));
        }
        match cudnn.supports(shape, unsaved(request)) {
            Ok(()) => Pick::Cudnn(cudnn, why),
            Err(error) => Pick::Cuda(format!("{why} it would be cuDNN, but {error}")),
        }
    }
}

/// What cuDNN is asked for: what an evaluation saves, our kernels save.
fn unsaved(request: Request) -> Request {
    request.saves(request.saves && request.op != Op::ForwardEval)
}

/// `None` where the engine does not serve it, and nothing has been done.
fn served(done: Result<()>) -> Option<Result<()>> {
    match done {
        Err(Error::Unsupported { .. }) => None,
        done => Some(done),
    }
}

impl Engine for Gpu {
    type Memory = Device;

    fn name(&self) -> &'static str {
        "gpu"
    }
    fn memory(&self) -> &Device {
        self.cuda.memory()
    }
    fn supports(&self, shape: &Shape, request: Request) -> Result<()> {
        self.cuda.supports(shape, request)
    }
    fn takes_groups(&self, shape: &Shape, request: Request) -> bool {
        self.cuda.takes_groups(shape, request)
    }
    fn prepare(&self, shape: &Shape, request: Request) -> Result<()> {
        if let Pick::Cudnn(cudnn, _) = self.pick(shape, request) {
            cudnn.prepare(shape, unsaved(request))?;
        }
        self.cuda.prepare(shape, request)
    }
    /// The most that either engine puts aside.
    fn reserve_len(&self, shape: &Shape, request: Request) -> usize {
        let own = self.cuda.reserve_len(shape, request);
        match self.pick(shape, request) {
            Pick::Cuda(_) => own,
            Pick::Cudnn(cudnn, _) => own.max(cudnn.reserve_len(shape, unsaved(request))),
        }
    }

    fn forward_train<E: Element>(
        &self,
        shape: &Shape,
        mut args: ForwardTrain<'_, Device, E>,
    ) -> Result<()> {
        args.check(self.memory(), shape)?;
        if let Pick::Cudnn(cudnn, _) = self.pick(shape, args.request())
            && let Some(done) = served(cudnn.forward_train(shape, args.reborrow()))
        {
            return done;
        }
        self.cuda.forward_train(shape, args)
    }

    fn forward_eval<E: Element>(
        &self,
        shape: &Shape,
        mut args: ForwardEval<'_, Device, E>,
    ) -> Result<()> {
        args.check(self.memory(), shape)?;
        if let Pick::Cudnn(cudnn, _) = self.pick(shape, args.request()) {
            let unsaved = ForwardEval { saved: None, ..args.reborrow() };
            match served(cudnn.forward_eval(shape, unsaved)) {
                // The backward is ours.
                Some(Ok(())) if args.saved.is_some() => {
                    return self.cuda.launch_forward_eval(shape, args, false);
                }
                Some(done) => return done,
                None => {}
            }
        }
        self.cuda.forward_eval(shape, args)
    }

    fn backward<E: Element>(&self, shape: &Shape, mut args: Backward<'_, Device, E>) -> Result<()> {
        let (forward, _) = args.saved.made()?;
        let Some(cudnn) = self.cudnn().filter(|cudnn| cudnn.name() == forward.engine) else {
            return self.cuda.backward(shape, args);
        };
        args.check(cudnn, shape)?;
        let gates = forward.activation != Activation::Identity;
        match cudnn.backward(shape, args.reborrow()) {
            // Statistics and parameters alone are saved, which mean the same to both.
            Err(Error::Unsupported { .. }) if !gates => self.cuda.launch_backward(shape, args),
            done => done,
        }
    }

    fn double_backward<E: Element>(
        &self,
        shape: &Shape,
        mut args: DoubleBackward<'_, Device, E>,
    ) -> Result<()> {
        let (forward, _) = args.saved.made()?;
        let is_cudnn = self.cudnn().is_some_and(|cudnn| cudnn.name() == forward.engine);
        if !is_cudnn || forward.activation != Activation::Identity {
            return self.cuda.double_backward(shape, args);
        }
        // Statistics and parameters alone are saved, which mean the same to both.
        args.check_on(self.memory(), shape)?;
        self.cuda.launch_double_backward(shape, args)
    }

    fn stats<E: Element>(&self, shape: &Shape, args: Stats<'_, Device, E>) -> Result<()> {
        self.cuda.stats(shape, args)
    }

    fn masked_stats<E: Element>(
        &self,
        shape: &Shape,
        x: CudaView<'_, E>,
        mask: Mask<'_, Device>,
        eps: f64,
        to: CudaViewMut<'_, f64>,
    ) -> Result<()> {
        self.cuda.masked_stats(shape, x, mask, eps, to)
    }
    fn merge_masked<P: Real>(&self, args: MergeMasked<'_, Device, P>) -> Result<()> {
        self.cuda.merge_masked(args)
    }

    fn merge_stats<P: Real>(&self, args: MergeStats<'_, Device, P>) -> Result<()> {
        self.cuda.merge_stats(args)
    }

    fn layer_norm<E: Element>(
        &self,
        shape: &Shape,
        args: LayerNormForward<'_, Device, E>,
    ) -> Result<()> {
        self.cuda.layer_norm(shape, args)
    }

    fn layer_norm_backward<E: Element>(
        &self,
        shape: &Shape,
        args: LayerNormBackward<'_, Device, E>,
    ) -> Result<()> {
        self.cuda.layer_norm_backward(shape, args)
    }

    fn optimizer_step<P: Real>(&self, args: OptimizerStep<'_, Device, P>) -> Result<()> {
        self.cuda.optimizer_step(args)
    }
    fn regularize<P: Real>(&self, args: Regularize<'_, Device, P>) -> Result<()> {
        self.cuda.regularize(args)
    }
    fn renormalize<P: Real>(&self, args: Renormalize<'_, Device, P>) -> Result<()> {
        self.cuda.renormalize(args)
    }
    fn renormalize_backward<P: Real>(
        &self,
        args: RenormalizeBackward<'_, Device, P>,
    ) -> Result<()> {
        self.cuda.renormalize_backward(args)
    }
    fn constrain<P: Real>(&self, args: Constrain<'_, Device, P>) -> Result<()> {
        self.cuda.constrain(args)
    }
}
