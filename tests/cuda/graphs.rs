//! A captured step gives, at every launch, what the step gives.
use crate::support::cuda::{SPLIT, on_device, resident};
use approx::abs_diff_eq;
use batchnorm::cudarc::driver::CudaSlice;
use batchnorm::cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use batchnorm::{
    Activation, Backward, BatchNorm, Config, Cuda, DType, Device, Engine, Error, ForwardTrain,
    Input, Mask, Memory, Momentum, Op, Request, Result, Saved, Shape, Strict, Tuning,
};

pub const MODE: CUstreamCaptureMode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;

/// The tensors of a step, which a graph reads and writes where they lie.
struct Tensors {
    shape: Shape,
    x: CudaSlice<f32>,
    grad_y: CudaSlice<f32>,
    running_mean: CudaSlice<f32>,
    running_var: CudaSlice<f32>,
    y: CudaSlice<f32>,
    grad_x: CudaSlice<f32>,
    grad_weight: CudaSlice<f32>,
    /// Of a mask, if there is one.
    places: Option<CudaSlice<u8>>,
    saved: Saved<batchnorm::Device, f32>,
}

pub fn values(len: usize, seed: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 37 + seed * 101) % 97) as f32 / 31.0 - 1.0).collect()
}

impl Tensors {
    fn new(engine: &Cuda) -> Result<Self> {
        let (on, shape) = (engine.memory(), Shape::new(&[9, 6, 160], 1)?);
        let (n, c) = (shape.len(), shape.channels());
        Ok(Self {
            shape,
            x: on.zeros(n)?,
            grad_y: on.upload(&values(n, 7))?,
            running_mean: on.zeros(c)?,
            running_var: on.zeros(c)?,
            y: on.zeros(n)?,
            grad_x: on.zeros(n)?,
            grad_weight: on.zeros(c)?,
            places: None,
            saved: Saved::new(),
        })
    }
    /// The same of a mask.
    fn masked(engine: &Cuda) -> Result<Self> {
        let tensors = Self::new(engine)?;
        let places: Vec<u8> =
            (0..tensors.shape.per_channel()).map(|i| u8::from(i % 160 < i / 10)).collect();
        Ok(Self { places: Some(engine.memory().upload(&places)?), ..tensors })
    }
    fn step(&mut self, engine: &Cuda) -> Result<()> {
        let running = [&mut self.running_mean, &mut self.running_var];
        let [mean, var] = running.map(CudaSlice::as_view_mut);
        let mut forward = ForwardTrain::<Device, _>::new(self.x.as_view(), self.y.as_view_mut())
            .activation(Activation::Relu)
            .running(mean, var, 0.25)
            .saved(&mut self.saved);
        forward.mask = self.places.as_ref().map(|places| Mask::new(places.as_view()));
        engine.forward_train(&self.shape, forward)?;
        let mut backward =
            Backward::<Device, _>::new(&self.saved, self.x.as_view(), self.grad_y.as_view())
                .grad_x(self.grad_x.as_view_mut())
                .grad_weight(self.grad_weight.as_view_mut());
        backward.mask = self.places.as_ref().map(CudaSlice::as_view);
        engine.backward(&self.shape, backward)
    }
    fn results(&self, engine: &Cuda) -> Result<Vec<Vec<f32>>> {
        let tensors = [&self.y, &self.grad_x, &self.grad_weight, &self.running_mean];
        tensors.into_iter().map(|t| engine.memory().download(t.as_view())).collect()
    }
}

/// An engine on a stream that can be captured, in a context where cudarc records no events, which a
/// graph must not wait for.
pub fn capturable(ordinal: usize) -> Cuda {
    let context = on_device(ordinal).unwrap().stream().context().clone();
    // SAFETY: everything here is on one stream.
    #[allow(unsafe_code)]
    unsafe {
        context.disable_event_tracking()
    };
    Cuda::on_stream(context.new_stream().unwrap()).unwrap()
}

#[test]
fn a_graph_replays_a_step() {
    let softcuda = softcuda::install().unwrap();
    let device = softcuda.exclusive(softcuda::ordinal("sm_90").unwrap());
    for (tuning, launches) in [(SPLIT, 6), (Tuning::default(), 2), (resident(2), 2)] {
        let engine = capturable(device.ordinal()).tuned(tuning);
        replays(&engine, Tensors::new);
        replays(&engine, Tensors::masked);
        device.reset();
        Tensors::new(&engine).unwrap().step(&engine).unwrap();
        engine.stream().synchronize().unwrap();
        let seen = device.launches();
        assert_eq!(seen.len(), launches, "{tuning:?}");
        assert_eq!(seen.iter().all(|launch| launch.cooperative), tuning == resident(2));
        assert_eq!(device.faults(), [""; 0]);
    }
}

fn replays(engine: &Cuda, make: fn(&Cuda) -> Result<Tensors>) {
    let mut replayed = make(engine).unwrap();
    replayed.step(engine).unwrap(); // makes all memory
    let stream = engine.stream().clone();
    stream.begin_capture(MODE).unwrap();
    replayed.step(engine).unwrap();
    let graph = stream.end_capture(CUgraphInstantiate_flags(0)).unwrap().unwrap();
    // A larger step in between makes a larger workspace: the graph keeps the one it has.
    let large = Shape::new(&[64, 64, 256], 1).unwrap();
    let request = Request::new(Op::ForwardTrain, DType::F64);
    engine.prepare(&large, request).unwrap();

    let mut right = make(engine).unwrap();
    right.step(engine).unwrap();
    for seed in 0..4 {
        let x = values(right.shape.len(), seed);
        engine.memory().write(&x, replayed.x.as_view_mut()).unwrap();
        engine.memory().write(&x, right.x.as_view_mut()).unwrap();
        graph.launch().unwrap();
        right.step(engine).unwrap();
        assert_eq!(replayed.results(engine).unwrap(), right.results(engine).unwrap());
    }
}

#[test]
fn memory_is_not_made_while_a_graph_is_captured() {
    let softcuda = softcuda::install().unwrap();
    let device = softcuda.exclusive(softcuda::ordinal("no pools").unwrap());
    let engine = capturable(device.ordinal());
    let mut tensors = Tensors::new(&engine).unwrap();
    let stream = engine.stream().clone();
    stream.synchronize().unwrap();
    stream.begin_capture(MODE).unwrap();
    let error = tensors.step(&engine).unwrap_err();
    assert!(matches!(error, Error::Invalid { what: "capture", .. }), "{error}");
    drop(stream.end_capture(CUgraphInstantiate_flags(0)).unwrap());
    tensors.step(&engine).unwrap();
    stream.synchronize().unwrap();
    assert_eq!(device.faults(), [""; 0]);
}

/// What a layer refuses while a graph is captured: an average, whose factor would be that of the
/// capture for ever, and copies from the host. The capture is not ruined by a refusal.
#[test]
fn a_capture_survives_what_it_cannot_hold() {
    let softcuda = softcuda::install().unwrap();
    let device = softcuda.exclusive(softcuda::ordinal("sm_90").unwrap());
    let engine = capturable(device.ordinal());
    let shape = Shape::new(&[9, 6, 16], 1).unwrap();
    let on = engine.memory().clone();
    let x = on.upload(&values(shape.len(), 1)).unwrap();
    let mut y = on.zeros::<f32>(shape.len()).unwrap();
    let mut grad_x = on.zeros::<f32>(shape.len()).unwrap();
    let separate = Momentum::Separate { mean: 0.1, var: 0.2 };
    let debiased = Momentum::Debiased { decay: 0.9 };
    let momenta =
        [Momentum::Cumulative, Momentum::Average, debiased, Momentum::Exponential(0.1), separate];
    for momentum in momenta {
        let config = Config::default().momentum(momentum);
        let mut bn = BatchNorm::<f32, _>::new(&engine, 6, config).unwrap();
        let mut saved = Saved::new();
        let mut step = |bn: &mut BatchNorm<f32, Cuda>, saved: &mut Saved<_, f32>| {
            bn.forward_into(&shape, x.as_view(), None, y.as_view_mut(), saved)
        };
        let mut back = |bn: &mut BatchNorm<f32, Cuda>, saved: &Saved<_, f32>| {
            let grad_x = Some(grad_x.as_view_mut());
            bn.backward_into(saved, x.as_view(), None, Input::View(x.as_view()), grad_x, None)
        };
        step(&mut bn, &mut saved).unwrap();
        bn.bias_mut().unwrap().requires_grad = false;
        back(&mut bn, &saved).unwrap();
        let alone = on.download(bn.weight().unwrap().grad().unwrap().as_view()).unwrap();
        let dict = bn.state_dict("").unwrap();
        let stream = engine.stream().clone();
        stream.begin_capture(MODE).unwrap();
        let refused = |result: Result<()>, what: &str| match result {
            Err(Error::Invalid { what: got, .. }) if got == what => {}
            other => panic!("{momentum:?}: {other:?}, not a refusal of {what}"),
        };
        refused(bn.reset_running_stats(), "capture");
        refused(bn.reset_parameters(), "capture");
        refused(bn.load_state_dict(&dict, "", Strict::Yes).map(drop), "capture");
        refused(bn.state_dict("").map(drop), "capture");
        refused(engine.take_nonfinite().map(drop), "capture");
        refused(on.write(&[0f32; 6], bn.running_mut().unwrap().mean.as_view_mut()), "capture");
        match momentum {
            Momentum::Exponential(_) | Momentum::Separate { .. } => {
                step(&mut bn, &mut saved).unwrap()
            }
            _ => refused(step(&mut bn, &mut saved), "momentum"),
        }
        // One parameter has a gradient and the other has none.
        bn.bias_mut().unwrap().requires_grad = true;
        back(&mut bn, &saved).unwrap();
        let graph = stream.end_capture(CUgraphInstantiate_flags(0)).unwrap().unwrap();
        graph.launch().unwrap();
        let grad = on.download(bn.weight().unwrap().grad().unwrap().as_view()).unwrap();
        let doubled: Vec<f32> = alone.iter().map(|grad| 2.0 * grad).collect();
        assert_eq!(grad, doubled, "{momentum:?}");
        let grad = on.download(bn.bias().unwrap().grad().unwrap().as_view()).unwrap();
        let sum: f32 = values(shape.len(), 1).iter().sum();
        assert!(abs_diff_eq!(grad.iter().sum::<f32>(), sum, epsilon = 1e-2), "{grad:?}, {sum}");
    }
    assert_eq!(device.faults(), [""; 0]);
}
