//! Launches of kernels that work element by element.
use super::super::device::{Device, blocks};
use super::super::element::Word;
use cudarc::driver::{CudaSlice, DriverError, LaunchConfig, PushKernelArg};

/// A thread per element: `(inputs.., out, n)`, with `ops` values of output per element.
pub fn elementwise<T: Word, U: Word>(
    device: &Device,
    source: &str,
    kernel: &str,
    inputs: &[&[T]],
    ops: usize,
) -> Result<Vec<U>, DriverError> {
    let n = inputs[0].len();
    let config = blocks(n.div_ceil(128), 128);
    let mut outs = launch(device, (source, kernel), inputs, &[ops * n], config, &[n as i32])?;
    Ok(outs.remove(0))
}

/// `(inputs.., outs.., numbers..)`; every output has so many elements, not written yet.
pub fn launch<T: Word, U: Word>(
    device: &Device,
    (source, kernel): (&str, &str),
    inputs: &[&[T]],
    outs: &[usize],
    config: LaunchConfig,
    numbers: &[i32],
) -> Result<Vec<Vec<U>>, DriverError> {
    let outs: Result<Vec<_>, _> = outs.iter().map(|&len| device.unwritten::<U>(len)).collect();
    launch_onto(device, (source, kernel), inputs, outs?, config, numbers)
}

/// The same onto buffers that hold something.
pub fn launch_onto<T: Word, U: Word>(
    device: &Device,
    (source, kernel): (&str, &str),
    inputs: &[&[T]],
    mut outs: Vec<CudaSlice<U>>,
    config: LaunchConfig,
    numbers: &[i32],
) -> Result<Vec<Vec<U>>, DriverError> {
    let kernel = device.kernel(source, kernel)?;
    let inputs: Result<Vec<_>, _> = inputs.iter().map(|values| device.upload(values)).collect();
    let inputs = inputs?;
    let mut launch = device.stream.launch_builder(&kernel);
    for input in &inputs {
        launch.arg(input);
    }
    for out in &mut outs {
        launch.arg(out);
    }
    for number in numbers {
        launch.arg(number);
    }
    // SAFETY: the callers, all of them beside this file, give the buffers that the kernel's declaration asks for.
    unsafe { launch.launch(config) }?;
    outs.iter().map(|out| device.download(out)).collect()
}
