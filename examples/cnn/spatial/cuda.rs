//! By the kernels of `examples/kernels/spatial.cu`.
use std::sync::Arc;

use anyhow::{Context, Result};
use batchnorm::Device;
use batchnorm::cudarc::driver::{
    CudaFunction, CudaStream, CudaView, CudaViewMut, DeviceRepr, PushKernelArg,
};

use super::super::backend::cuda::{load, threads};
use super::{Images, Layout, Spatial};

/// On a CUDA device, on the stream of its memory.
#[derive(Clone)]
pub struct CudaSpatial {
    stream: Arc<CudaStream>,
    kernels: Arc<Kernels>,
}

struct Kernels {
    im2col: CudaFunction,
    col2im: CudaFunction,
    mean_pool: CudaFunction,
    mean_pool_backward: CudaFunction,
}

/// A gzip file for each target that has instructions of its own, the newest first.
const PTX: &[(i32, &[u8])] = &[(75, include_bytes!("../../kernels/ptx/spatial.sm_75.ptx.gz"))];

/// `Images` of the kernels.
#[repr(C)]
#[derive(Clone, Copy)]
struct Argument {
    count: u32,
    channels: u32,
    height: u32,
    width: u32,
    channels_last: u32,
}

// SAFETY: the same five words there.
unsafe impl DeviceRepr for Argument {}

impl TryFrom<Images> for Argument {
    type Error = std::num::TryFromIntError;

    fn try_from(images: Images) -> Result<Self, Self::Error> {
        Ok(Self {
            count: images.count.try_into()?,
            // Of the windows, too.
            channels: u32::try_from(images.windows().channels).and(images.channels.try_into())?,
            height: images.height.try_into()?,
            width: images.width.try_into()?,
            channels_last: u32::from(images.layout == Layout::Nhwc),
        })
    }
}

impl CudaSpatial {
    /// In this memory, on its stream.
    pub fn new(memory: &Device) -> Result<Self> {
        let stream = memory.stream().clone();
        let module = load(&stream, PTX)?;
        let kernel = |name| module.load_function(name).context(name);
        let kernels = Kernels {
            im2col: kernel("im2col")?,
            col2im: kernel("col2im")?,
            mean_pool: kernel("mean_pool")?,
            mean_pool_backward: kernel("mean_pool_backward")?,
        };
        Ok(Self { stream, kernels: Arc::new(kernels) })
    }
}

// What makes a launch sound is checked before it: that each tensor is as long as the images that
// the kernel takes it for.
impl Spatial for CudaSpatial {
    type Memory = Device;

    fn im2col(
        &self,
        of: Images,
        x: CudaView<'_, f32>,
        mut columns: CudaViewMut<'_, f32>,
    ) -> Result<()> {
        of.check("im2col, x", x.len())?;
        of.windows().check("im2col, columns", columns.len())?;
        let (images, count) = (Argument::try_from(of)?, columns.len() as u64);
        let mut call = self.stream.launch_builder(&self.kernels.im2col);
        call.arg(&images).arg(&x).arg(&mut columns).arg(&count);
        // SAFETY: the kernel's arguments, of checked lengths.
        unsafe { call.launch(threads(count)?) }.context("im2col").map(drop)
    }

    fn col2im(
        &self,
        of: Images,
        grad_columns: CudaView<'_, f32>,
        accumulate: bool,
        mut grad_x: CudaViewMut<'_, f32>,
    ) -> Result<()> {
        of.windows().check("col2im, grad_columns", grad_columns.len())?;
        of.check("col2im, grad_x", grad_x.len())?;
        let (images, count) = (Argument::try_from(of)?, grad_x.len() as u64);
        let accumulate = u32::from(accumulate);
        let mut call = self.stream.launch_builder(&self.kernels.col2im);
        call.arg(&images).arg(&grad_columns).arg(&accumulate).arg(&mut grad_x).arg(&count);
        // SAFETY: the kernel's arguments, of checked lengths.
        unsafe { call.launch(threads(count)?) }.context("col2im").map(drop)
    }

    fn mean_pool(
        &self,
        of: Images,
        size: usize,
        x: CudaView<'_, f32>,
        mut y: CudaViewMut<'_, f32>,
    ) -> Result<()> {
        of.check_pool(size)?;
        of.check("mean_pool, x", x.len())?;
        of.pooled(size).check("mean_pool, y", y.len())?;
        let (images, side, count) = (Argument::try_from(of)?, size as u32, y.len() as u64);
        let mut call = self.stream.launch_builder(&self.kernels.mean_pool);
        call.arg(&images).arg(&side).arg(&x).arg(&mut y).arg(&count);
        // SAFETY: the kernel's arguments, of checked lengths; no square is larger than an image.
        unsafe { call.launch(threads(count)?) }.context("mean_pool").map(drop)
    }

    fn mean_pool_backward(
        &self,
        of: Images,
        size: usize,
        grad_y: CudaView<'_, f32>,
        mut grad_x: CudaViewMut<'_, f32>,
    ) -> Result<()> {
        of.check_pool(size)?;
        of.pooled(size).check("mean_pool_backward, grad_y", grad_y.len())?;
        of.check("mean_pool_backward, grad_x", grad_x.len())?;
        let (images, side, count) = (Argument::try_from(of)?, size as u32, grad_x.len() as u64);
        let mut call = self.stream.launch_builder(&self.kernels.mean_pool_backward);
        call.arg(&images).arg(&side).arg(&grad_y).arg(&mut grad_x).arg(&count);
        // SAFETY: the kernel's arguments, of checked lengths.
        unsafe { call.launch(threads(count)?) }.context("mean_pool_backward").map(drop)
    }
}
