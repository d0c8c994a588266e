//! What cuDNN makes and destroys.
use super::{call, sys};
use crate::Result;
use crate::memory::refused;
use cudarc::driver::{CudaContext, CudaStream};
use std::ffi::{c_int, c_void};
use std::ptr::{null_mut, with_exposed_provenance_mut};
use std::sync::Arc;

/// A handle that works on one stream.
#[derive(Debug)]
pub struct Handle {
    raw: sys::cudnnHandle_t,
    /// Both outlive it.
    stream: Arc<CudaStream>,
}

// SAFETY: cuDNN takes a handle from any thread, if from one at a time: none is given away but with
// `&mut`, and this is not `Sync`.
unsafe impl Send for Handle {}

impl Handle {
    /// A handle of the stream's device.
    pub fn new(stream: &Arc<CudaStream>) -> Result<Self> {
        bind(stream.context())?;
        let mut raw = null_mut();
        // SAFETY: the handle can be written, and is one when the first call has succeeded.
        unsafe {
            call!(cudnnCreate(&mut raw))?;
            let this = Self { raw, stream: stream.clone() };
            call!(cudnnSetStream(raw, stream.cu_stream().cast()))?;
            Ok(this)
        }
    }
    pub fn stream(&self) -> &CudaStream {
        &self.stream
    }
    /// The handle, with its context current on this thread: to be used before another call takes
    /// either.
    pub fn raw(&mut self) -> Result<sys::cudnnHandle_t> {
        bind(self.stream.context())?;
        Ok(self.raw)
    }
    /// What kernels have found out since the last query; waits for the stream if `mode` says so.
    pub fn query_runtime_error(
        &mut self,
        mode: sys::cudnnErrQueryMode_t,
    ) -> Result<sys::cudnnStatus_t> {
        let (raw, mut found) = (self.raw()?, sys::cudnnStatus_t::CUDNN_STATUS_SUCCESS);
        // SAFETY: the handle lives, and the status can be written.
        unsafe { call!(cudnnQueryRuntimeError(raw, &mut found, mode, null_mut())) }?;
        Ok(found)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // A context that is lost takes the handle with it: there is nobody to tell.
        let _ = bind(self.stream.context());
        // SAFETY: it was made by `new`, and is destroyed here alone.
        let _ = unsafe { call!(cudnnDestroy(self.raw)) };
    }
}

fn bind(context: &Arc<CudaContext>) -> Result<()> {
    context.bind_to_thread().map_err(refused("cuCtxSetCurrent"))
}

/// How a tensor lies in memory.
#[derive(Debug)]
pub struct TensorDescriptor(sys::cudnnTensorDescriptor_t);

// SAFETY: it belongs to no thread; nothing changes it but with `&mut`.
unsafe impl Send for TensorDescriptor {}

impl TensorDescriptor {
    pub fn new() -> Result<Self> {
        let mut raw = null_mut();
        // SAFETY: the descriptor can be written.
        unsafe { call!(cudnnCreateTensorDescriptor(&mut raw)) }?;
        Ok(Self(raw))
    }
    pub fn set<const N: usize>(
        &mut self,
        data_type: sys::cudnnDataType_t,
        dims: &[c_int; N],
        strides: &[c_int; N],
    ) -> Result<()> {
        let (rank, dims, strides) = (N as c_int, dims.as_ptr(), strides.as_ptr());
        // SAFETY: the descriptor lives; there are as many dimensions and strides as it says.
        unsafe { call!(cudnnSetTensorNdDescriptor(self.0, data_type, rank, dims, strides)) }
    }
    /// Becomes that of scale, bias and statistics for tensors like x.
    pub fn derive(&mut self, x: &Self, mode: sys::cudnnBatchNormMode_t) -> Result<()> {
        // SAFETY: both descriptors live.
        unsafe { call!(cudnnDeriveBNTensorDescriptor(self.0, x.0, mode)) }
    }
    pub fn raw(&self) -> sys::cudnnTensorDescriptor_t {
        self.0
    }
}

impl Drop for TensorDescriptor {
    fn drop(&mut self) {
        // SAFETY: it was made by `new`, and is destroyed here alone.
        let _ = unsafe { call!(cudnnDestroyTensorDescriptor(self.0)) };
    }
}

/// Which activation follows.
#[derive(Debug)]
pub struct ActivationDescriptor(sys::cudnnActivationDescriptor_t);

// SAFETY: it belongs to no thread; nothing changes it once it is made.
unsafe impl Send for ActivationDescriptor {}

impl ActivationDescriptor {
    pub fn new(
        mode: sys::cudnnActivationMode_t,
        nan: sys::cudnnNanPropagation_t,
        coefficient: f64,
    ) -> Result<Self> {
        let mut raw = null_mut();
        // SAFETY: the descriptor can be written, and is one when the first call has succeeded.
        unsafe {
            call!(cudnnCreateActivationDescriptor(&mut raw))?;
            let this = Self(raw);
            call!(cudnnSetActivationDescriptor(raw, mode, nan, coefficient))?;
            Ok(this)
        }
    }
    pub fn raw(&self) -> sys::cudnnActivationDescriptor_t {
        self.0
    }
}

impl Drop for ActivationDescriptor {
    fn drop(&mut self) {
        // SAFETY: it was made by `new`, and is destroyed here alone.
        let _ = unsafe { call!(cudnnDestroyActivationDescriptor(self.0)) };
    }
}

/// An address on the device; null for 0.
pub fn device_pointer(address: u64) -> *mut c_void {
    with_exposed_provenance_mut(address as usize)
}
