//! Handles and descriptors that end with their scope.

use std::ptr;

use cudarc::{cudnn::sys::*, driver::CudaStream};

use super::{OK, Status};

/// A tensor descriptor.
pub struct Tensor(pub cudnnTensorDescriptor_t);

impl Tensor {
    pub fn new() -> Self {
        let mut this = ptr::null_mut();
        // SAFETY: `this` can be written.
        assert_eq!(unsafe { cudnnCreateTensorDescriptor(&mut this) }, OK);
        Self(this)
    }

    pub fn set(&self, data_type: cudnnDataType_t, dims: &[i32], strides: &[i32]) -> Status {
        assert_eq!(dims.len(), strides.len());
        let count = dims.len() as i32;
        // SAFETY: as many numbers as it says.
        unsafe {
            cudnnSetTensorNdDescriptor(self.0, data_type, count, dims.as_ptr(), strides.as_ptr())
        }
    }

    /// Type, dimensions and strides.
    pub fn get(&self) -> (cudnnDataType_t, Vec<i32>, Vec<i32>) {
        let (mut data_type, mut count) = (cudnnDataType_t::CUDNN_DATA_INT8, 0);
        let (mut dims, mut strides) = ([0; 8], [0; 8]);
        // SAFETY: there is room for 8 dimensions.
        let status = unsafe {
            cudnnGetTensorNdDescriptor(
                self.0,
                8,
                &mut data_type,
                &mut count,
                dims.as_mut_ptr(),
                strides.as_mut_ptr(),
            )
        };
        assert_eq!(status, OK);
        (data_type, dims[..count as usize].to_vec(), strides[..count as usize].to_vec())
    }
}

impl Drop for Tensor {
    fn drop(&mut self) {
        // SAFETY: created by `new`, and destroyed here only.
        assert_eq!(unsafe { cudnnDestroyTensorDescriptor(self.0) }, OK);
    }
}

/// An activation descriptor.
pub struct Activation(pub cudnnActivationDescriptor_t);

impl Activation {
    pub fn new(mode: cudnnActivationMode_t, nan: cudnnNanPropagation_t) -> Self {
        let mut this = ptr::null_mut();
        // SAFETY: `this` can be written, and is a descriptor then.
        unsafe {
            assert_eq!(cudnnCreateActivationDescriptor(&mut this), OK);
            assert_eq!(cudnnSetActivationDescriptor(this, mode, nan, 0.0), OK);
        }
        Self(this)
    }
}

impl Drop for Activation {
    fn drop(&mut self) {
        // SAFETY: created by `new`, and destroyed here only.
        assert_eq!(unsafe { cudnnDestroyActivationDescriptor(self.0) }, OK);
    }
}

/// A handle.
pub struct Handle(pub cudnnHandle_t);

impl Handle {
    pub fn new(stream: &CudaStream) -> Self {
        let mut this = ptr::null_mut();
        // SAFETY: `this` can be written, and is a handle then.
        unsafe {
            assert_eq!(cudnnCreate(&mut this), OK);
            assert_eq!(cudnnSetStream(this, stream.cu_stream().cast()), OK);
        }
        Self(this)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: created by `new`, and destroyed here only.
        assert_eq!(unsafe { cudnnDestroy(self.0) }, OK);
    }
}
