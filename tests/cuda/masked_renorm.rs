//! Renormalization by the values that count: nothing is read back, so that a graph holds it.
use crate::graphs::{MODE, capturable, values};
use batchnorm::cudarc::driver::CudaSlice;
use batchnorm::cudarc::driver::sys::CUgraphInstantiate_flags;
use batchnorm::{
    Activation, BatchNorm, Config, Cuda, Device, Engine, Family, Host, Input, Mask, Memory,
    Reference, Renorm, Saved, Shape, Tuning,
};

const PLACES: [usize; 2] = [7, 3];

/// A step by a mask, or without one; gradients of x come with y.
fn step(
    bn: &mut BatchNorm<f32, Cuda>,
    saved: &mut Saved<Device, f32>,
    shape: &Shape,
    [x, grad_y]: [&CudaSlice<f32>; 2],
    places: Option<&CudaSlice<u8>>,
    [y, grad_x]: [&mut CudaSlice<f32>; 2],
) {
    let to = Some(grad_x.as_view_mut());
    let by = Input::View(grad_y.as_view());
    let Some(places) = places else {
        bn.forward_into(shape, x.as_view(), None, y.as_view_mut(), saved).unwrap();
        return bn.backward_into(saved, x.as_view(), None, by, to, None).unwrap();
    };
    let mask = Mask::<Device>::new(places.as_view()).count_eps(1e-7);
    bn.forward_masked_into(shape, x.as_view(), None, mask, y.as_view_mut(), saved).unwrap();
    bn.backward_masked_into(saved, x.as_view(), None, places.as_view(), by, to, None).unwrap();
}

#[test]
fn a_graph_renormalizes_by_a_mask() {
    let softcuda = softcuda::install().unwrap();
    let device = softcuda.exclusive(softcuda::ordinal("sm_90").unwrap());
    let engine = capturable(device.ordinal());
    let on = engine.memory();
    let config = Config::keras().activation(Activation::Relu).renorm(Renorm::keras());
    let shape = Shape::new(&[40, 6, 16], 1).unwrap();
    let bytes: Vec<u8> =
        (0..shape.per_channel()).map(|i| u8::from(i % PLACES[0] > PLACES[1] - 2)).collect();
    let places = on.upload(&bytes).unwrap();
    let mut x = on.upload(&values(shape.len(), 3)).unwrap();
    let grad_y = on.upload(&values(shape.len(), 4)).unwrap();
    let mut both = [0, 1].map(|_| {
        let zeros = || on.zeros::<f32>(shape.len()).unwrap();
        let bn = BatchNorm::<f32, Cuda>::new(&engine, 6, config).unwrap();
        (bn, Saved::new(), zeros(), zeros())
    });
    type Layer = (BatchNorm<f32, Cuda>, Saved<Device, f32>, CudaSlice<f32>, CudaSlice<f32>);
    let one = |x: &CudaSlice<f32>, (bn, saved, y, grad_x): &mut Layer| {
        step(bn, saved, &shape, [x, &grad_y], Some(&places), [y, grad_x]);
    };
    let mut right = BatchNorm::<f32, Reference>::new(&Reference, 6, config).unwrap();
    let mut expected = |seed: usize| -> Vec<Vec<f32>> {
        let (x, grad_y) = (values(shape.len(), seed), values(shape.len(), 4));
        let mask = Mask::<Host>::new(&bytes).count_eps(1e-7);
        let (y, saved) = right.forward_masked(&shape, &x, mask).unwrap();
        let grad_x = right.backward_masked(&saved, &x, &bytes, &grad_y).unwrap();
        let running = right.running().unwrap();
        let stddev = running.renorm.as_ref().unwrap().moving_stddev.clone();
        vec![y, grad_x, running.mean.clone(), stddev]
    };
    let of = |(bn, _, y, grad_x): &Layer| {
        let running = bn.running().unwrap();
        let stddev = &running.renorm.as_ref().unwrap().moving_stddev;
        let all = [y, grad_x, &running.mean, stddev];
        all.map(|buf| on.download(buf.as_view()).unwrap()).to_vec()
    };
    let [replayed, direct] = &mut both;
    one(&x, replayed);
    one(&x, direct);
    expected(3);
    let stream = engine.stream().clone();
    stream.synchronize().unwrap();
    stream.begin_capture(MODE).unwrap();
    one(&x, replayed);
    let graph = stream.end_capture(CUgraphInstantiate_flags(0)).unwrap().unwrap();
    for seed in 5..8 {
        on.write(&values(shape.len(), seed), x.as_view_mut()).unwrap();
        graph.launch().unwrap();
        one(&x, direct);
        let got = of(replayed);
        assert_eq!(got, of(direct), "{seed}");
        for (k, (got, right)) in got.iter().zip(&expected(seed)).enumerate() {
            let near = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-4 * b.abs().max(1.0);
            assert!(got.iter().zip(right).all(near), "{seed}: {k}");
        }
    }
    assert_eq!(device.faults(), [""; 0]);
}

/// One reading for the record, one for the forward's own statistics, and the mask's bytes.
#[test]
fn a_masked_and_renormalized_step_takes_half_a_plain_one_more_at_most() {
    let softcuda = softcuda::install().unwrap();
    let device = softcuda.exclusive(softcuda::ordinal("sm_90").unwrap());
    let engine = capturable(device.ordinal()).tuned(Tuning::new(Family::Resident { blocks: None }));
    let on = engine.memory();
    let shape = Shape::new(&[8192, 128], 1).unwrap();
    let config = Config::default().activation(Activation::Relu);
    let bytes: Vec<u8> = (0..8192).map(|i| u8::from(i % PLACES[0] > PLACES[1])).collect();
    let places = on.upload(&bytes).unwrap();
    let [x, grad_y] = [3, 4].map(|seed| on.upload(&values(shape.len(), seed)).unwrap());
    let moved = |config: Config, places: Option<&CudaSlice<u8>>| -> f64 {
        let mut bn = BatchNorm::<f32, Cuda>::new(&engine, 128, config).unwrap();
        let [mut y, mut grad_x] = [0; 2].map(|_| on.zeros::<f32>(shape.len()).unwrap());
        device.reset();
        step(&mut bn, &mut Saved::new(), &shape, [&x, &grad_y], places, [&mut y, &mut grad_x]);
        engine.stream().synchronize().unwrap();
        let of =
            |l: &softcuda::LaunchReport| l.counts.global_loads.bytes + l.counts.global_stores.bytes;
        device.launches().iter().map(of).sum::<u64>() as f64
    };
    let plain = moved(config, None);
    let got = moved(config.renorm(Renorm::keras()), Some(&places));
    assert!(got <= 1.5 * plain, "{got}, plain {plain}");
    assert!(got >= 1.3 * plain, "{got} is too little, plain {plain}");
    assert_eq!(device.faults(), [""; 0]);
}
