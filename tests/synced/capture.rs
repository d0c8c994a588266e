//! A step of an engine of ranks on a device, and how it becomes a graph.
use crate::gate::capturing;
use crate::support::run::widen;
use batchnorm::cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use batchnorm::cudarc::driver::{CudaGraph, CudaSlice, CudaStream, DriverError};
use batchnorm::{
    Backward, Device, Element, Engine, ForwardTrain, Memory, Real, Result, Saved, Shape,
};
use std::sync::Arc;

/// What `step` returns, and the graph of what it has queued, while no engine is made.
pub fn captured<T>(
    stream: &Arc<CudaStream>,
    step: impl FnOnce() -> T,
) -> (T, std::result::Result<Option<CudaGraph>, DriverError>) {
    let _pass = capturing();
    let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    stream.begin_capture(mode).unwrap();
    let done = step();
    (done, stream.end_capture(CUgraphInstantiate_flags(0)))
}

/// The tensors of a training step, which a graph reads and writes where they lie.
pub struct Tensors<E: Element> {
    on: Device,
    shape: Shape,
    x: CudaSlice<E>,
    grad_y: CudaSlice<E>,
    y: CudaSlice<E>,
    grad_x: CudaSlice<E>,
    mean: CudaSlice<E::Acc>,
    var: CudaSlice<E::Acc>,
    saved: Saved<Device, E::Acc>,
}

impl<E: Element> Tensors<E> {
    /// Of so many rows of 5 channels, whose x is by `k`.
    pub fn new(on: &Device, rows: usize, k: usize) -> Self {
        let shape = Shape::new(&[rows, 5], 1).unwrap();
        let values = |k: usize| {
            let value = |i: usize| E::narrow(E::Acc::from_f64((i * k % 17) as f64 / 4.0));
            on.upload(&(0..shape.len()).map(value).collect::<Vec<E>>()).unwrap()
        };
        let [y, grad_x] = [0; 2].map(|_| on.zeros(shape.len()).unwrap());
        let [mean, var] = [0; 2].map(|_| on.zeros(5).unwrap());
        let (x, grad_y, saved) = (values(k), values(5), Saved::new());
        Self { on: on.clone(), shape, x, grad_y, y, grad_x, mean, var, saved }
    }
    /// Queues a forward, whose statistics replace the running ones, and its backward.
    pub fn step(&mut self, engine: &impl Engine<Memory = Device>) -> Result<()> {
        let args = ForwardTrain::<Device, E>::new(self.x.as_view(), self.y.as_view_mut())
            .running(self.mean.as_view_mut(), self.var.as_view_mut(), 1.0)
            .saved(&mut self.saved);
        engine.forward_train(&self.shape, args)?;
        let args = Backward::<Device, E>::new(&self.saved, self.x.as_view(), self.grad_y.as_view());
        engine.backward(&self.shape, args.grad_x(self.grad_x.as_view_mut()))
    }
    /// Takes its results away.
    pub fn clear(&mut self) {
        self.on.zero(self.mean.as_view_mut()).unwrap();
        self.on.zero(self.grad_x.as_view_mut()).unwrap();
    }
    /// The bits of the running statistics, and of the gradient of x.
    pub fn results(&self) -> ([Vec<u64>; 2], Vec<u64>) {
        let bits = |values: Vec<f64>| values.into_iter().map(f64::to_bits).collect::<Vec<u64>>();
        let of = |buf: &CudaSlice<E::Acc>| bits(widen(&self.on.download(buf.as_view()).unwrap()));
        let grad_x = self.on.download(self.grad_x.as_view()).unwrap();
        ([of(&self.mean), of(&self.var)], bits(widen(&grad_x)))
    }
}
