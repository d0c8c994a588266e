//! The same of steps of a layer: optimizers, lists of inputs, double backwards, populations.
use crate::graphs::{MODE, capturable, values};
use batchnorm::cudarc::driver::CudaSlice;
use batchnorm::cudarc::driver::sys::CUgraphInstantiate_flags;
use batchnorm::{
    Activation, Algorithm, BatchNorm, Config, Constraint, Cuda, Device, DoubleBackward, Engine,
    Error, Memory, Optimizer, Part, PartGradients, PopulationRule, PopulationStatistics,
    Regularizer, Saved, SavedParts, Shape,
};

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
