//! Masks where only a device has them: bytes that no host has looked through, at any address, and what it costs.
use crate::counts;
use crate::support::cuda::{SPLIT, on_device};
use crate::support::run::{
    self, Epilogue, Inputs, Masked, Mode, Outcome, SavedOn, Want, same_bits,
};
use batchnorm::cudarc::driver::CudaSlice;
use batchnorm::{
    Activation, AllMasked, Backward, Cuda, DType, Device, Element, Engine, Family, ForwardTrain,
    Memory, Op, Request, Saved, Shape, Tuning,
};
use half::f16;

fn masked(shape: &Shape, last: Option<usize>, counts: u8) -> Masked {
    let len = last.map_or(shape.per_channel(), |last| shape.len() / last);
    // Pieces of some and of many places that count, and of some that do not.
    let places = (0..len).map(|i| if i % 7 < 4 || i % 50 > 30 { counts } else { 0 }).collect();
    Masked { places, last, count_eps: 1e-7, all_masked: AllMasked::Keep }
}

/// Shapes whose places lie in every way: a byte for a vector, a row of bytes for one, and bytes apart; vectors of one
/// element.
fn shapes() -> Vec<(Shape, Option<usize>)> {
    let of = |dims: &[usize], last| (Shape::new(dims, 1).unwrap(), last);
    vec![
        of(&[600, 32], None),
        of(&[9, 8, 160], None),
        of(&[30, 16, 7], None),
        of(&[30, 5, 7], None),
        of(&[9, 8, 160], Some(160)),
        of(&[9, 8, 160], Some(80)),
        of(&[9, 8, 160], Some(5)),
        of(&[9, 8, 160], Some(1)),
        of(&[30, 16, 7], Some(7)),
        of(&[600, 32], Some(1)),
        // Channels on two axes: places of one vector, of two, of a part of one, and across them.
        of(&[600, 32], Some(8)),
        of(&[600, 32], Some(2)),
        of(&[60, 33], Some(11)),
        of(&[300, 12], Some(6)),
    ]
}

/// The bits that a step writes, by places `late` bytes behind the start of their memory.
fn step<E: Element>(engine: &Cuda, inputs: &Inputs<E>, places: &[u8], late: usize) -> Vec<u64> {
    let (on, shape) = (engine.memory(), inputs.shape);
    let mask = inputs.mask.as_ref().unwrap();
    let mut bytes = vec![0; late];
    bytes.extend_from_slice(places);
    let bytes = on.upload(&bytes).unwrap();
    let [x, grad_y] = [&inputs.x, &inputs.grad_y].map(|values| on.upload(values).unwrap());
    let [mut y, mut grad_x]: [CudaSlice<E>; 2] = [0; 2].map(|_| on.zeros(shape.len()).unwrap());
    let mut saved = Saved::<Device, E::Acc>::new();
    let forward = ForwardTrain::<Device, E>::new(x.as_view(), y.as_view_mut())
        .activation(Activation::Relu)
        .mask(mask.mask::<Device>(bytes.slice(late..)))
        .saved(&mut saved);
    engine.forward_train(&shape, forward).unwrap();
    let backward = Backward::<Device, E>::new(&saved, x.as_view(), grad_y.as_view())
        .grad_x(grad_x.as_view_mut())
        .mask(bytes.slice(late..));
    engine.backward(&shape, backward).unwrap();
    let values = [y, grad_x].map(|tensor| run::widen(&on.download(tensor.as_view()).unwrap()));
    values.iter().flatten().map(|value| value.to_bits()).collect()
}

#[test]
fn all_bytes_but_0_count_and_places_start_anywhere() {
    fn everywhere<E: Element>(engine: &Cuda) {
        for (shape, last) in shapes() {
            let mut inputs = Inputs::<E>::new(&shape, Epilogue::PLAIN, 3);
            let one = masked(&shape, last, 1);
            let places = one.places.clone();
            inputs.mask = Some(one);
            let right = step(engine, &inputs, &places, 0);
            for late in 1..=4 {
                let got = step(engine, &inputs, &places, late);
                assert!(got == right, "{} {shape}, {last:?}: {late}", E::DTYPE);
            }
            for counts in [2, 0x80, 0xff] {
                let places = masked(&shape, last, counts).places;
                let got = step(engine, &inputs, &places, 0);
                assert!(got == right, "{} {shape}, {last:?}: {counts}", E::DTYPE);
            }
        }
    }
    let softcuda = softcuda::install().unwrap();
    let device = softcuda.exclusive(softcuda::ordinal("sm_75").unwrap());
    let engine = on_device(device.ordinal()).unwrap();
    everywhere::<f32>(&engine);
    everywhere::<f16>(&engine);
    everywhere::<f64>(&engine);
    engine.stream().synchronize().unwrap();
    assert_eq!(device.faults(), [""; 0]);
}

/// The same bits in whatever order blocks go.
#[test]
fn a_step_is_repeatable() {
    let softcuda = softcuda::install().unwrap();
    let device = softcuda.exclusive(softcuda::ordinal("sm_80").unwrap());
    let engine = on_device(device.ordinal()).unwrap();
    for (shape, last) in shapes() {
        let mut inputs = Inputs::<f32>::new(&shape, Epilogue::FULL, 4);
        inputs.mask = Some(masked(&shape, last, 1));
        let mut all = [1, 2, 3].map(|seed| {
            device.set_seed(seed);
            let mut saved = SavedOn::<Cuda, f32>::new();
            let mode = Mode::Train(Some(0.1));
            let forward = run::forward(&engine, &inputs, mode, Some(&mut saved)).unwrap();
            let want = Want { sums: false, ..Want::all(Epilogue::FULL) };
            [forward, run::backward(&engine, &inputs, want, &saved, None).unwrap()]
        });
        let right: [Outcome; 2] = std::mem::take(&mut all[0]);
        for got in &all[1..] {
            assert!(right.iter().zip(got).all(|(a, b)| same_bits(a, b)), "{shape}, {last:?}");
        }
    }
    assert_eq!(device.faults(), [""; 0]);
}

#[test]
fn explain_names_the_kernels() {
    let engine = on_device(softcuda::install().map(|_| 0).unwrap()).unwrap();
    let shape = Shape::new(&[64, 32], 1).unwrap();
    let says = |op| engine.explain(&shape, Request::new(op, DType::F16).mask(true)).unwrap();
    let forward = says(Op::ForwardTrain);
    assert!(forward.starts_with("cuda: masked_stats, masked_finalize, apply; "), "{forward}");
    let (backward, kernels) =
        (says(Op::Backward), "backward_sums, backward_finalize, masked_backward_apply");
    assert!(backward.starts_with("cuda: masked_backward_resident; "), "{backward}");
    assert!(backward.contains(&format!("bytes: {kernels}; ")), "{backward}");
}

/// Bytes read and written by a step and its backward, in units of the tensor.
fn traffic<E: Element>(
    device: &softcuda::Device,
    tuning: Tuning,
    inputs: &Inputs<E>,
    case: &str,
) -> f64 {
    let engine = on_device(device.ordinal()).unwrap().tuned(tuning);
    device.reset();
    let mut saved = SavedOn::<Cuda, E>::new();
    run::forward(&engine, inputs, Mode::Train(Some(0.1)), Some(&mut saved)).unwrap();
    let want = Want { sums: false, ..Want::all(inputs.epilogue) };
    run::backward(&engine, inputs, want, &saved, None).unwrap();
    assert_eq!(device.faults(), [""; 0]);
    let launches = device.launches();
    if inputs.mask.is_some() {
        counts::check(case, &launches);
    }
    let bytes = launches.iter().map(|l| l.counts.global_loads.bytes + l.counts.global_stores.bytes);
    bytes.sum::<u64>() as f64 / (inputs.x.len() * size_of::<E>()) as f64
}

/// A plain step by the same family reads six times and writes twice. A mask adds a byte for each element, twice, at
/// most: where its places are shared by all channels of a row, next to nothing.
#[test]
fn the_traffic_of_a_mask_is_its_bytes() {
    fn costs<E: Element>(device: &softcuda::Device, dims: &[usize], last: Option<usize>, bar: f64) {
        let shape = Shape::new(dims, 1).unwrap();
        let epilogue = Epilogue { activation: Activation::Relu, ..Epilogue::PLAIN };
        let mut inputs = Inputs::<E>::new(&shape, epilogue, 3);
        let plain = traffic(device, SPLIT, &inputs, "");
        inputs.mask = Some(masked(&shape, last, 1));
        let case = format!("{} {dims:?} Train step, masked, without {last:?}", E::DTYPE);
        let with = traffic(device, SPLIT, &inputs, &case);
        assert!(with <= bar * plain, "{case}: {with}, without a mask {plain}");
        assert!(with >= 8.0, "{case}: {with} is too little");
    }
    let softcuda = softcuda::install().unwrap();
    let device = softcuda.exclusive(softcuda::ordinal("sm_75").unwrap());
    costs::<f32>(&device, &[8192, 128], None, 1.05);
    costs::<f16>(&device, &[8192, 128], None, 1.05);
    costs::<f32>(&device, &[16, 16, 4096], None, 1.08);
    costs::<f16>(&device, &[16, 16, 4096], None, 1.15);
    costs::<f16>(&device, &[16, 16, 4096], Some(64), 1.08);
    costs::<f32>(&device, &[256, 64, 49], None, 1.1);
    costs::<f16>(&device, &[256, 64, 49], None, 1.2);
    // No step of f64 is in one launch: with a mask it is as many as without.
    costs::<f64>(&device, &[4096, 64], None, 1.05);
}

/// The backward is one launch where the plain one is, and reads nothing more than the mask: a plain step of two launches
/// reads three times and writes twice, one by a mask reads the batch once more.
#[test]
fn the_traffic_of_a_masked_step_is_half_a_plain_one_more_at_most() {
    fn costs<E: Element>(dims: &[usize], last: Option<usize>, epilogue: Epilogue) {
        let softcuda = softcuda::install().unwrap();
        let device = softcuda.exclusive(softcuda::ordinal("sm_90").unwrap());
        let shape = Shape::new(dims, 1).unwrap();
        let resident = Tuning::new(Family::Resident { blocks: None });
        let mut inputs = Inputs::<E>::new(&shape, epilogue, 3);
        let plain = traffic(&device, resident, &inputs, "");
        inputs.mask = Some(masked(&shape, last, 1));
        let (dtype, activation) = (E::DTYPE, epilogue.activation);
        let residual = if epilogue.residual { "+residual" } else { "" };
        let case = format!(
            "{dtype} {dims:?} {activation}{residual} Train step, masked, without {last:?}, resident"
        );
        let with = traffic(&device, resident, &inputs, &case);
        assert!(with <= 1.5 * plain, "{case}: {with}, without a mask {plain}");
        let launches = device.launches();
        let last = launches.last().map(|launch| launch.kernel.clone()).unwrap_or_default();
        assert!(
            launches.len() == 4 && last.starts_with("masked_backward_resident_"),
            "{case}: {last}"
        );
    }
    let relu = Epilogue { activation: Activation::Relu, ..Epilogue::PLAIN };
    let silu = Epilogue { activation: Activation::Silu, ..Epilogue::PLAIN };
    for epilogue in [relu, silu, Epilogue::FULL] {
        costs::<f16>(&[8192, 128], None, epilogue);
        costs::<f32>(&[256, 64, 49], None, epilogue);
    }
    costs::<f32>(&[8192, 128], None, relu);
    costs::<f16>(&[16, 16, 4096], None, relu);
    costs::<f16>(&[16, 16, 4096], Some(64), relu);
    costs::<f16>(&[256, 64, 49], None, relu);
}
