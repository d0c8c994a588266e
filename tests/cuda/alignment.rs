//! Tensors that do not start at a multiple of 16 bytes: no kernel that reads 16 bytes at once takes
//! them, and the results are as near as those of another family. Nor does it matter of any other
//! argument where it starts.
use crate::support::cuda::{SPLIT, on_device, resident};
use crate::support::late::serves_arguments_that_start_anywhere;
use approx::abs_diff_eq;
use batchnorm::cudarc::driver::CudaSlice;
use batchnorm::{Activation, Backward, Cuda, Device, Engine, ForwardTrain, Memory, Saved, Shape};

/// The tensors of a step by number.
const NAMES: [&str; 6] = ["x", "residual", "y", "grad_y", "grad_x", "grad_residual"];

/// A forward and its backward with one tensor, if any, an element behind an aligned address; what
/// they wrote, and the kernels of each.
fn step(
    engine: &Cuda,
    device: &softcuda::Device,
    late: Option<usize>,
) -> (Vec<Vec<f32>>, [String; 2]) {
    let shape = Shape::new(&[6, 4, 80], 1).unwrap();
    let (n, on) = (shape.len(), engine.memory());
    let lead = |tensor| usize::from(late == Some(tensor));
    let make = |tensor: usize| {
        let value = |i: usize| ((i * 37 + tensor * 101) % 97) as f32 / 31.0 - 1.0;
        let values: Vec<f32> = (0..n + 1).map(|i| value(i + 1 - lead(tensor))).collect();
        on.upload(&values).unwrap()
    };
    let [x, residual, mut y, grad_y, mut grad_x, mut grad_residual]: [CudaSlice<f32>; 6] =
        [0, 1, 2, 3, 4, 5].map(make);
    let range = |tensor| lead(tensor)..lead(tensor) + n;
    let kernels = || {
        engine.stream().synchronize().unwrap();
        let names: Vec<String> = device.launches().into_iter().map(|l| l.kernel).collect();
        device.reset();
        names.join(" ")
    };
    let mut saved = Saved::<Device, f32>::new();
    device.reset();
    let forward = ForwardTrain::<Device, f32>::new(x.slice(range(0)), y.slice_mut(range(2)))
        .residual(residual.slice(range(1)))
        .activation(Activation::Relu)
        .saved(&mut saved);
    engine.forward_train(&shape, forward).unwrap();
    let of_forward = kernels();
    let backward = Backward::<Device, f32>::new(&saved, x.slice(range(0)), grad_y.slice(range(3)))
        .grad_x(grad_x.slice_mut(range(4)))
        .grad_residual(grad_residual.slice_mut(range(5)));
    engine.backward(&shape, backward).unwrap();
    let of_backward = kernels();
    let written = [(&y, 2), (&grad_x, 4), (&grad_residual, 5)];
    let written = written.map(|(tensor, k)| on.download(tensor.slice(range(k))).unwrap());
    (written.into(), [of_forward, of_backward])
}

#[test]
fn tensors_that_are_not_aligned_go_by_the_split_family() {
    let softcuda = softcuda::install().unwrap();
    let device = softcuda.exclusive(softcuda::ordinal("sm_80").unwrap());
    let engine = on_device(device.ordinal()).unwrap().tuned(resident(0));
    let (right, [forward, backward]) = step(&engine, &device, None);
    assert_eq!([&forward[..], &backward], ["forward_resident_f32", "backward_resident_f32"]);
    for (late, name) in NAMES.iter().enumerate() {
        let (got, [forward, backward]) = step(&engine, &device, Some(late));
        let resident = [forward, backward].map(|kernels| kernels.contains("_resident_"));
        assert_eq!(resident, [late > 2, (1..=2).contains(&late)], "{name}");
        for (got, right) in got.iter().flatten().zip(right.iter().flatten()) {
            assert!(abs_diff_eq!(got, right, epsilon = 1e-5), "{name}: {got}, expected {right}");
        }
        assert_eq!(device.faults(), [""; 0], "{name}");
    }
}

#[test]
fn every_argument_may_start_anywhere() {
    let softcuda = softcuda::install().unwrap();
    let device = softcuda.exclusive(softcuda::ordinal("sm_80").unwrap());
    let engine = on_device(device.ordinal()).unwrap();
    for tuning in [SPLIT, resident(0)] {
        serves_arguments_that_start_anywhere(&engine.tuned(tuning));
    }
    engine.stream().synchronize().unwrap();
    assert_eq!(device.faults(), [""; 0]);
}
