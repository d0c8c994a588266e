//! A captured step gives, at every launch, what the step gives.
use crate::support::cuda::{SPLIT, on_device, resident};
use approx::abs_diff_eq;
use batchnorm::cudarc::driver::CudaSlice;
use batchnorm::cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use batchnorm::{
    Activation, Algorithm, Backward, BatchNorm, Config, Constraint, Cuda, DType, Device,
    DoubleBackward, Engine, Error, ForwardTrain, Ghost, Input, Mask, Memory, Momentum, Op,
    Optimizer, Part, PartGradients, PopulationRule, PopulationStatistics, Regularizer, Renorm,
    Request, Result, Saved, SavedParts, Shape, Strict, Tuning,
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

/// The learning rate and the number of steps lie on the device: a step that is replayed is the next one,
/// by the rate that has been written since.
#[test]
fn a_captured_optimizer_goes_on_counting() {
    let softcuda = softcuda::install().unwrap();
    let device = softcuda.exclusive(softcuda::ordinal("sm_90").unwrap());
    let engine = capturable(device.ordinal());
    for algorithm in [
        Algorithm::sgd(0.9),
        Algorithm::keras_sgd(0.9),
        Algorithm::adam().amsgrad(true),
        Algorithm::adam_w(),
    ] {
        // More channels than a block has threads.
        let mut layers = [0, 1].map(|_| {
            let mut bn = BatchNorm::<f32, _>::new(&engine, 600, Config::default()).unwrap();
            for (seed, (_, param)) in bn.named_parameters_mut().enumerate() {
                param.set_grad(engine.memory().upload(&values(600, seed)).unwrap()).unwrap();
                param.constraint = Some(Constraint::MaxNorm(20.0));
                param.regularizer = Regularizer::new(0.0, 1e-3);
            }
            let optimizer = Optimizer::new(&bn, algorithm, 0.1).unwrap().weight_decay(0.1).unwrap();
            (bn, optimizer)
        });
        let [(replayed, optimizer), (right, by)] = &mut layers;
        let step = |bn: &mut BatchNorm<f32, Cuda>, by: &mut Optimizer<Device, f32>| {
            bn.regularize(None).unwrap();
            by.step(bn).unwrap();
        };
        step(replayed, optimizer);
        step(right, by);
        let stream = engine.stream().clone();
        stream.begin_capture(MODE).unwrap();
        step(replayed, optimizer);
        let error = optimizer.set_lr(0.5).unwrap_err();
        assert!(matches!(error, Error::Invalid { what: "capture", .. }), "{error}");
        assert_eq!(optimizer.lr(), 0.1);
        let graph = stream.end_capture(CUgraphInstantiate_flags(0)).unwrap().unwrap();
        for lr in [0.1, 0.1, 0.02, 0.5] {
            optimizer.set_lr(lr).unwrap();
            by.set_lr(lr).unwrap();
            graph.launch().unwrap();
            step(right, by);
            let of = |bn: &BatchNorm<f32, Cuda>| {
                let values = bn.named_parameters().map(|(_, param)| param.value.as_view());
                values.map(|v| engine.memory().download(v).unwrap()).collect::<Vec<_>>()
            };
            assert_eq!(of(replayed), of(right), "{algorithm:?}, {lr}");
        }
        assert_eq!(optimizer.state().unwrap(), by.state().unwrap());
        assert_eq!(optimizer.state().unwrap().weight.unwrap().steps, 5);
    }
    assert_eq!(device.faults(), [""; 0]);
}

/// A list of inputs, too: its second step makes no memory and copies nothing.
#[test]
fn a_list_of_inputs_is_captured_as_one_step() {
    let softcuda = softcuda::install().unwrap();
    let device = softcuda.exclusive(softcuda::ordinal("sm_90").unwrap());
    let engine = capturable(device.ordinal());
    let on = engine.memory();
    let shapes = [&[9, 6, 16][..], &[2, 6, 5]].map(|dims| Shape::new(dims, 1).unwrap());
    let config = Config::default().activation(Activation::Silu);
    let mut xs = shapes.map(|shape| on.upload(&values(shape.len(), 3)).unwrap());
    let grad_ys = shapes.map(|shape| on.upload(&values(shape.len(), 4)).unwrap());
    let mut lists = [0, 1].map(|_| {
        let zeros = || shapes.map(|shape| on.zeros::<f32>(shape.len()).unwrap());
        let bn = BatchNorm::<f32, Cuda>::new(&engine, 6, config).unwrap();
        (bn, SavedParts::new(), zeros(), zeros())
    });
    type List =
        (BatchNorm<f32, Cuda>, SavedParts<Device, f32>, [CudaSlice<f32>; 2], [CudaSlice<f32>; 2]);
    let step = |xs: &[CudaSlice<f32>; 2], (bn, saved, ys, grad_xs): &mut List| {
        let parts = shapes.iter().zip(xs).zip(ys).map(|((shape, x), y)| {
            Part::<Device, f32>::new(*shape, x.as_view(), y.as_view_mut()).residual(x.as_view())
        });
        bn.forward_parts_into(&mut parts.collect::<Vec<_>>(), saved).unwrap();
        let parts = xs.iter().zip(&grad_ys).zip(grad_xs).map(|((x, grad_y), grad_x)| {
            let part = PartGradients::<Device, f32>::new(x.as_view(), grad_y.as_view());
            part.residual(x.as_view()).grad_x(grad_x.as_view_mut())
        });
        bn.backward_parts_into(saved, &mut parts.collect::<Vec<_>>()).unwrap();
    };
    let [replayed, right] = &mut lists;
    step(&xs, replayed);
    step(&xs, right);
    let stream = engine.stream().clone();
    stream.synchronize().unwrap();
    stream.begin_capture(MODE).unwrap();
    step(&xs, replayed);
    let graph = stream.end_capture(CUgraphInstantiate_flags(0)).unwrap().unwrap();
    for seed in 5..8 {
        for (shape, x) in shapes.iter().zip(&mut xs) {
            on.write(&values(shape.len(), seed), x.as_view_mut()).unwrap();
        }
        graph.launch().unwrap();
        step(&xs, right);
        let of = |(bn, _, ys, grad_xs): &List| {
            let running = bn.running().unwrap();
            let all = ys.iter().chain(grad_xs).chain([&running.mean, &running.var]);
            let all = all.chain(bn.weight().unwrap().grad());
            all.map(|buf| on.download(buf.as_view()).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(of(replayed), of(right), "{seed}");
    }
    assert_eq!(device.faults(), [""; 0]);
}

/// Its second call makes no memory, either, and what a penalty leaves is added at every launch.
#[test]
fn a_double_backward_is_captured() {
    let softcuda = softcuda::install().unwrap();
    let device = softcuda.exclusive(softcuda::ordinal("sm_90").unwrap());
    let engine = capturable(device.ordinal());
    let (on, shape) = (engine.memory(), Shape::new(&[9, 6, 49], 1).unwrap());
    let config = Config::default().activation(Activation::Silu);
    let mut x = on.upload(&values(shape.len(), 1)).unwrap();
    let [grad_y, v_x] = [2, 3].map(|seed| on.upload(&values(shape.len(), seed)).unwrap());
    let mut layers = [0, 1].map(|_| {
        let zeros = || on.zeros::<f32>(shape.len()).unwrap();
        let bn = BatchNorm::<f32, Cuda>::new(&engine, 6, config).unwrap();
        (bn, Saved::new(), [(); 3].map(|()| zeros()))
    });
    type Layer = (BatchNorm<f32, Cuda>, Saved<Device, f32>, [CudaSlice<f32>; 3]);
    let step = |x: &CudaSlice<f32>, (bn, saved, [y, gg_grad_y, gg_x]): &mut Layer| {
        bn.forward_into(&shape, x.as_view(), None, y.as_view_mut(), saved).unwrap();
        let args = DoubleBackward::<Device, f32>::new(saved, x.as_view(), grad_y.as_view())
            .v_x(v_x.as_view())
            .gg_grad_y(gg_grad_y.as_view_mut())
            .gg_x(gg_x.as_view_mut());
        bn.double_backward_into(args).unwrap();
    };
    let [replayed, right] = &mut layers;
    step(&x, replayed);
    step(&x, right);
    let stream = engine.stream().clone();
    stream.synchronize().unwrap();
    stream.begin_capture(MODE).unwrap();
    step(&x, replayed);
    let graph = stream.end_capture(CUgraphInstantiate_flags(0)).unwrap().unwrap();
    for seed in 5..8 {
        on.write(&values(shape.len(), seed), x.as_view_mut()).unwrap();
        graph.launch().unwrap();
        step(&x, right);
        let of = |(bn, _, all): &Layer| {
            let grads = [bn.weight(), bn.bias()].map(|param| param.unwrap().grad().unwrap());
            let all = all.iter().chain(grads);
            all.map(|buf| on.download(buf.as_view()).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(of(replayed), of(right), "{seed}");
    }
    assert_eq!(device.faults(), [""; 0]);
}

/// What may be captured copies nothing from or to the host, and waits for nothing.
#[test]
fn batches_of_a_population_are_not_read_back() {
    let softcuda = softcuda::install().unwrap();
    let device = softcuda.exclusive(softcuda::ordinal("sm_90").unwrap());
    let engine = capturable(device.ordinal());
    let shape = Shape::new(&[9, 6, 16], 1).unwrap();
    let x = engine.memory().upload(&values(shape.len(), 1)).unwrap();
    for rule in [PopulationRule::Exact, PopulationRule::UpdateBn] {
        let mut population = PopulationStatistics::new(&engine, 6, rule).unwrap();
        population.add::<f32, Cuda>(&engine, &shape, x.as_view()).unwrap();
        let stream = engine.stream().clone();
        stream.synchronize().unwrap();
        stream.begin_capture(MODE).unwrap();
        for _ in 0..3 {
            population.add::<f32, Cuda>(&engine, &shape, x.as_view()).unwrap();
        }
        let error = population.finish().unwrap_err();
        assert!(matches!(error, Error::Invalid { what: "capture", .. }), "{error}");
        let graph = stream.end_capture(CUgraphInstantiate_flags(0)).unwrap().unwrap();
        graph.launch().unwrap();
        let found = population.finish().unwrap();
        assert_eq!((found.batches, found.values), (4, 4 * 9 * 16));
    }
    assert_eq!(device.faults(), [""; 0]);
}

/// Ghost batches, wherever their rows lie, and renormalization: their second step makes no memory either.
#[test]
fn groups_and_renormalized_batches_are_captured() {
    let softcuda = softcuda::install().unwrap();
    let device = softcuda.exclusive(softcuda::ordinal("sm_90").unwrap());
    let engine = capturable(device.ordinal());
    let on = engine.memory();
    let config = Config::default().activation(Activation::Silu);
    for (dims, axis, config) in [
        (&[8, 6, 16][..], 1, config.ghost(Ghost::consecutive(2))),
        (&[8, 6, 16], 1, config.ghost(Ghost::strided(4))),
        (&[8, 5, 6], 2, config.ghost(Ghost::strided(4))),
        (&[8, 6, 16], 1, config.renorm(Renorm::keras())),
        (&[8, 6, 16], 1, config.renorm(Renorm::paper(3.0, 5.0))),
    ] {
        let shape = Shape::new(dims, axis).unwrap();
        let mut x = on.upload(&values(shape.len(), 3)).unwrap();
        let grad_y = on.upload(&values(shape.len(), 4)).unwrap();
        let mut both = [0, 1].map(|_| {
            let zeros = || on.zeros::<f32>(shape.len()).unwrap();
            let bn = BatchNorm::<f32, Cuda>::new(&engine, 6, config).unwrap();
            (bn, Saved::new(), zeros(), zeros())
        });
        type Layer = (BatchNorm<f32, Cuda>, Saved<Device, f32>, CudaSlice<f32>, CudaSlice<f32>);
        let step = |x: &CudaSlice<f32>, (bn, saved, y, grad_x): &mut Layer| {
            bn.forward_into(&shape, x.as_view(), None, y.as_view_mut(), saved).unwrap();
            let (grad_y, to) = (Input::View(grad_y.as_view()), Some(grad_x.as_view_mut()));
            bn.backward_into(saved, x.as_view(), None, grad_y, to, None).unwrap();
        };
        let [replayed, right] = &mut both;
        step(&x, replayed);
        step(&x, right);
        let stream = engine.stream().clone();
        stream.synchronize().unwrap();
        stream.begin_capture(MODE).unwrap();
        step(&x, replayed);
        let graph = stream.end_capture(CUgraphInstantiate_flags(0)).unwrap().unwrap();
        for seed in 5..8 {
            on.write(&values(shape.len(), seed), x.as_view_mut()).unwrap();
            graph.launch().unwrap();
            step(&x, right);
            let of = |(bn, _, y, grad_x): &Layer| {
                let running = bn.running().unwrap();
                let all = [y, grad_x, &running.mean, &running.var].into_iter();
                let all = all.chain(bn.weight().unwrap().grad());
                let all = all.chain(running.renorm.as_ref().map(|kept| &kept.moving_stddev));
                all.map(|buf| on.download(buf.as_view()).unwrap()).collect::<Vec<_>>()
            };
            assert_eq!(of(replayed), of(right), "{dims:?}, {config}, {seed}");
        }
    }
    assert_eq!(device.faults(), [""; 0]);
}
