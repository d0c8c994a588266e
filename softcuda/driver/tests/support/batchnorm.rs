//! `softcuda/kernels/batchnorm.cu`.
use super::data::Random;
use super::device::{Device, blocks};
use super::element::Element;
use cudarc::driver::{CudaSlice, DevicePtr, DeviceRepr, DriverError, PushKernelArg};

/// A tensor of images x channels x plane.
#[derive(Clone, Copy, Debug)]
pub struct Dims {
    pub images: usize,
    pub channels: usize,
    pub plane: usize,
}

impl Dims {
    pub const fn new(images: usize, channels: usize, plane: usize) -> Self {
        Self { images, channels, plane }
    }
    pub fn len(self) -> usize {
        self.images * self.channels * self.plane
    }
    pub fn per_channel(self) -> usize {
        self.images * self.plane
    }
    pub fn channel_of(self, index: usize) -> usize {
        index / self.plane % self.channels
    }
}

pub const EPS: f64 = 1e-5;
pub const MOMENTUM: f64 = 0.1;

/// What a step starts from.
pub struct Inputs<T: Element> {
    pub dims: Dims,
    pub x: Vec<T>,
    pub grad_y: Vec<T>,
    pub weight: Vec<T::Acc>,
    pub bias: Vec<T::Acc>,
    pub running_mean: Vec<T::Acc>,
    pub running_var: Vec<T::Acc>,
}

impl<T: Element> Inputs<T> {
    /// Every channel with a mean and a deviation of its own.
    pub fn new(dims: Dims) -> Self {
        let mut random = Random::new(dims.len() as u64);
        let x = (0..dims.len()).map(|i| {
            let channel = dims.channel_of(i) as f64;
            T::narrow(channel - 2.0 + random.uniform() * (1.0 + channel / 4.0))
        });
        let x = x.collect();
        let grad_y = (0..dims.len()).map(|_| T::narrow(random.uniform() + 0.25)).collect();
        let mut parameters = |center: f64| -> Vec<T::Acc> {
            (0..dims.channels).map(|_| T::Acc::narrow(center + random.uniform() / 2.0)).collect()
        };
        let [weight, bias, running_mean, running_var] = [1.0, 0.0, 0.0, 1.0].map(&mut parameters);
        Self { dims, x, grad_y, weight, bias, running_mean, running_var }
    }
}

/// What `forward_*` computes.
pub struct Forward<T: Element> {
    pub y: Vec<T>,
    pub mean: Vec<T::Acc>,
    pub invstd: Vec<T::Acc>,
    pub running_mean: Vec<T::Acc>,
    pub running_var: Vec<T::Acc>,
}

/// What `backward_*` computes.
pub struct Backward<T: Element> {
    pub grad_x: Vec<T>,
    pub grad_weight: Vec<T::Acc>,
    pub grad_bias: Vec<T::Acc>,
}

const THREADS: usize = 256;

/// As in batchnorm.cu.
#[derive(Clone, Copy)]
#[repr(C)]
struct ForwardArgs<A> {
    x: u64,
    y: u64,
    weight: u64,
    bias: u64,
    running_mean: u64,
    running_var: u64,
    mean: u64,
    invstd: u64,
    eps: A,
    momentum: A,
    images: i32,
    channels: i32,
    plane: i32,
}
// SAFETY: it has the layout of the kernel's parameter, and no padding before its last field.
unsafe impl<A: Element> DeviceRepr for ForwardArgs<A> {}

/// As in batchnorm.cu.
#[derive(Clone, Copy)]
#[repr(C)]
struct BackwardArgs {
    x: u64,
    grad_y: u64,
    grad_x: u64,
    weight: u64,
    mean: u64,
    invstd: u64,
    grad_weight: u64,
    grad_bias: u64,
    images: i32,
    channels: i32,
    plane: i32,
}
// SAFETY: as above.
unsafe impl DeviceRepr for BackwardArgs {}

fn address<T>(device: &Device, slice: &CudaSlice<T>) -> u64 {
    slice.device_ptr(&device.stream).0
}

/// Runs `forward_*`: a block per channel.
pub fn forward<T: Element>(device: &Device, inputs: &Inputs<T>) -> Result<Forward<T>, DriverError> {
    let dims = inputs.dims;
    let (x, y) = (device.upload(&inputs.x)?, device.unwritten::<T>(dims.len())?);
    let (weight, bias) = (device.upload(&inputs.weight)?, device.upload(&inputs.bias)?);
    let running_mean = device.upload(&inputs.running_mean)?;
    let running_var = device.upload(&inputs.running_var)?;
    let mean = device.unwritten::<T::Acc>(dims.channels)?;
    let invstd = device.unwritten::<T::Acc>(dims.channels)?;
    let args = ForwardArgs {
        x: address(device, &x),
        y: address(device, &y),
        weight: address(device, &weight),
        bias: address(device, &bias),
        running_mean: address(device, &running_mean),
        running_var: address(device, &running_var),
        mean: address(device, &mean),
        invstd: address(device, &invstd),
        eps: T::Acc::narrow(EPS),
        momentum: T::Acc::narrow(MOMENTUM),
        images: dims.images as i32,
        channels: dims.channels as i32,
        plane: dims.plane as i32,
    };
    let kernel = device.kernel("batchnorm", &format!("forward_{}", T::NAME))?;
    let mut launch = device.stream.launch_builder(&kernel);
    // SAFETY: the buffers have the lengths that the kernel takes them to have, and live until after the last read.
    unsafe { launch.arg(&args).launch(blocks(dims.channels, THREADS)) }?;
    Ok(Forward {
        y: device.download(&y)?,
        mean: device.download(&mean)?,
        invstd: device.download(&invstd)?,
        running_mean: device.download(&running_mean)?,
        running_var: device.download(&running_var)?,
    })
}

/// Runs `backward_*` with those statistics: a block per channel.
pub fn backward<T: Element>(
    device: &Device,
    inputs: &Inputs<T>,
    mean: &[T::Acc],
    invstd: &[T::Acc],
) -> Result<Backward<T>, DriverError> {
    let dims = inputs.dims;
    let (x, grad_y) = (device.upload(&inputs.x)?, device.upload(&inputs.grad_y)?);
    let grad_x = device.unwritten::<T>(dims.len())?;
    let weight = device.upload(&inputs.weight)?;
    let (mean, invstd) = (device.upload(mean)?, device.upload(invstd)?);
    let grad_weight = device.unwritten::<T::Acc>(dims.channels)?;
    let grad_bias = device.unwritten::<T::Acc>(dims.channels)?;
    let args = BackwardArgs {
        x: address(device, &x),
        grad_y: address(device, &grad_y),
        grad_x: address(device, &grad_x),
        weight: address(device, &weight),
        mean: address(device, &mean),
        invstd: address(device, &invstd),
        grad_weight: address(device, &grad_weight),
        grad_bias: address(device, &grad_bias),
        images: dims.images as i32,
        channels: dims.channels as i32,
        plane: dims.plane as i32,
    };
    let kernel = device.kernel("batchnorm", &format!("backward_{}", T::NAME))?;
    let mut launch = device.stream.launch_builder(&kernel);
    // SAFETY: as above.
    unsafe { launch.arg(&args).launch(blocks(dims.channels, THREADS)) }?;
    Ok(Backward {
        grad_x: device.download(&grad_x)?,
        grad_weight: device.download(&grad_weight)?,
        grad_bias: device.download(&grad_bias)?,
    })
}

/// The most values that one thread of `forward_*` or `backward_*` adds up, and then the block: how deep its sums are.
pub fn depth<T: Element>(dims: Dims) -> usize {
    let vector = 16 / size_of::<T>();
    let per_plane = dims.plane.div_ceil(THREADS * vector) * vector + 2;
    dims.images * per_plane + 5 + THREADS / 32
}
