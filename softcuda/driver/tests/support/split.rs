//! `softcuda/kernels/split_stats.cu`.
use super::batchnorm::Dims;
use super::device::Device;
use super::element::Element;
use cudarc::driver::{DriverError, LaunchConfig, PushKernelArg};

const THREADS: usize = 256;

/// What `split_stats_*` computes.
#[derive(PartialEq)]
pub struct Statistics {
    pub mean: Vec<f32>,
    pub var: Vec<f32>,
}

/// Mean and variance of every channel, by `splits` blocks each, twice: a second launch finds the tickets as the first
/// one left them.
pub fn statistics<T: Element<Acc = f32>>(
    device: &Device,
    x: &[T],
    dims: Dims,
    splits: usize,
) -> Result<[Statistics; 2], DriverError> {
    let x = device.upload(x)?;
    let mut parts = device.unwritten::<f32>(2 * dims.channels * splits)?;
    let mut tickets = device.zeros::<u32>(dims.channels)?;
    let kernel = device.kernel("split_stats", &format!("split_stats_{}", T::NAME))?;
    let (images, channels, plane) = (dims.images as i32, dims.channels as i32, dims.plane as i32);
    let config = LaunchConfig {
        grid_dim: (splits as u32, dims.channels as u32, 1),
        block_dim: (THREADS as u32, 1, 1),
        shared_mem_bytes: 0,
    };
    let mut run = || {
        let mut mean = device.unwritten::<f32>(dims.channels)?;
        let mut var = device.unwritten::<f32>(dims.channels)?;
        let mut launch = device.stream.launch_builder(&kernel);
        launch.arg(&x).arg(&mut parts).arg(&mut tickets).arg(&mut mean).arg(&mut var);
        launch.arg(&images).arg(&channels).arg(&plane);
        // SAFETY: the buffers have the lengths that the kernel takes them to have.
        unsafe { launch.launch(config) }?;
        Ok(Statistics { mean: device.download(&mean)?, var: device.download(&var)? })
    };
    Ok([run()?, run()?])
}
