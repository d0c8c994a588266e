//! `softcuda/kernels/cooperative.cu`.
use super::batchnorm::EPS;
use super::device::Device;
use super::element::Element;
use cudarc::driver::{DriverError, LaunchConfig, PushKernelArg, sys};

pub const THREADS: usize = 256;

/// A launch over rows x channels.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub rows: usize,
    pub channels: usize,
    pub blocks: usize,
    /// Rows that a block keeps in shared memory, at most.
    pub tile_rows: usize,
}

impl Plan {
    /// Keeps all rows of every block in shared memory.
    pub fn resident<T: Element>(rows: usize, channels: usize, blocks: usize) -> Self {
        let step = Self::thread_rows::<T>(channels);
        let tile_rows = rows.div_ceil(blocks).next_multiple_of(step);
        Self { rows, channels, blocks, tile_rows }
    }

    /// Rows that the threads of a block span.
    pub fn thread_rows<T: Element>(channels: usize) -> usize {
        THREADS * 16 / size_of::<T>() / channels
    }

    /// Bytes of shared memory that a block needs.
    pub fn shared<T: Element>(&self) -> usize {
        let tile = self.tile_rows * self.channels * size_of::<T>();
        tile + 4 * (THREADS * 16 / size_of::<T>() + 2 * self.channels)
    }
}

/// What `normalize_grid_*` computes.
pub struct Normalized<T> {
    pub y: Vec<T>,
    pub mean: Vec<f32>,
    pub var: Vec<f32>,
}

/// Runs it `times` on the same buffers, and gives what the last run wrote.
pub fn normalize<T: Element<Acc = f32>>(
    device: &Device,
    plan: Plan,
    x: &[T],
    weight: &[f32],
    bias: &[f32],
    times: usize,
) -> Result<Normalized<T>, DriverError> {
    let Plan { rows, channels, blocks, tile_rows } = plan;
    let (x, mut y) = (device.upload(x)?, device.unwritten::<T>(rows * channels)?);
    let (weight, bias) = (device.upload(weight)?, device.upload(bias)?);
    let mut mean = device.unwritten::<f32>(channels)?;
    let mut var = device.unwritten::<f32>(channels)?;
    let mut partial = device.unwritten::<f32>(2 * blocks * channels)?;
    let mut barrier = device.zeros::<u32>(1)?;
    let kernel = device.kernel("cooperative", &format!("normalize_grid_{}", T::NAME))?;
    let shared = plan.shared::<T>() as u32;
    let most = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    kernel.set_attribute(most, shared as i32)?;
    let config = LaunchConfig {
        grid_dim: (blocks as u32, 1, 1),
        block_dim: (THREADS as u32, 1, 1),
        shared_mem_bytes: shared,
    };
    let (rows, channels, tile_rows, eps) =
        (rows as i32, channels as i32, tile_rows as i32, EPS as f32);
    for _ in 0..times {
        let mut launch = device.stream.launch_builder(&kernel);
        launch.arg(&x).arg(&mut y).arg(&weight).arg(&bias).arg(&mut mean).arg(&mut var);
        launch.arg(&mut partial).arg(&mut barrier);
        launch.arg(&rows).arg(&channels).arg(&tile_rows).arg(&eps);
        // SAFETY: the buffers have the lengths that the kernel takes them to have.
        unsafe { launch.launch_cooperative(config) }?;
    }
    Ok(Normalized {
        y: device.download(&y)?,
        mean: device.download(&mean)?,
        var: device.download(&var)?,
    })
}
