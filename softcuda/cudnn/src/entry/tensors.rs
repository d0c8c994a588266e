//! Tensor descriptors.

use std::ffi::{c_int, c_uint};

use super::{put, required, tensor};
use crate::{
    handle::{TENSORS, alone, call, found},
    norm::Mode,
    status::{Refusal, Status},
    tensor::{MAX_DIMS, Tensor},
};

#[unsafe(no_mangle)]
unsafe extern "C" fn cudnnCreateTensorDescriptor(out: *mut usize) -> Status {
    call("cudnnCreateTensorDescriptor", || {
        required(out, "the descriptor")?;
        // SAFETY: the caller's pointer, as the documentation demands.
        unsafe { put(out, TENSORS.insert(None)) }
    })
}

fn set(descriptor: usize, tensor: Result<Tensor, Refusal>) -> Result<(), Refusal> {
    let object = found(TENSORS.get(descriptor))?;
    *alone(&object)? = Some(tensor?);
    Ok(())
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cudnnSetTensorNdDescriptor(
    descriptor: usize,
    data_type: c_uint,
    count: c_int,
    dims: *const c_int,
    strides: *const c_int,
) -> Status {
    call("cudnnSetTensorNdDescriptor", || {
        required(dims, "dimA")?;
        required(strides, "strideA")?;
        let count = usize::try_from(count).unwrap_or(0);
        if count > MAX_DIMS {
            return Status::NOT_SUPPORTED.because(format!("{count} dimensions"));
        }
        // SAFETY: the caller's pointers, as the documentation demands.
        let (dims, strides) = unsafe {
            (std::slice::from_raw_parts(dims, count), std::slice::from_raw_parts(strides, count))
        };
        set(descriptor, Tensor::new(data_type, dims, strides))
    })
}

#[unsafe(no_mangle)]
extern "C" fn cudnnSetTensor4dDescriptor(
    descriptor: usize,
    format: c_uint,
    data_type: c_uint,
    n: c_int,
    c: c_int,
    h: c_int,
    w: c_int,
) -> Status {
    call("cudnnSetTensor4dDescriptor", || {
        let dims = [n, c, h, w];
        match format {
            0 => set(descriptor, Tensor::packed(data_type, &dims)),
            1 => set(descriptor, Tensor::channels_last(data_type, &dims)),
            _ => Status::BAD_PARAM.because(format!("format {format} is neither NCHW nor NHWC")),
        }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cudnnSetTensor4dDescriptorEx(
    descriptor: usize,
    data_type: c_uint,
    n: c_int,
    c: c_int,
    h: c_int,
    w: c_int,
    n_stride: c_int,
    c_stride: c_int,
    h_stride: c_int,
    w_stride: c_int,
) -> Status {
    call("cudnnSetTensor4dDescriptorEx", || {
        let strides = [n_stride, c_stride, h_stride, w_stride];
        set(descriptor, Tensor::new(data_type, &[n, c, h, w], &strides))
    })
}

/// As many dimensions as asked for, or as there are; a descriptor that has not been set has none.
#[unsafe(no_mangle)]
unsafe extern "C" fn cudnnGetTensorNdDescriptor(
    descriptor: usize,
    room: c_int,
    data_type: *mut c_uint,
    count: *mut c_int,
    dims: *mut c_int,
    strides: *mut c_int,
) -> Status {
    call("cudnnGetTensorNdDescriptor", || {
        let object = found(TENSORS.get(descriptor))?;
        let unset = || Tensor { data_type: 0, dims: Vec::new(), strides: Vec::new() };
        let this = alone(&object)?.clone().unwrap_or_else(unset);
        required(dims, "dimA")?;
        required(strides, "strideA")?;
        let given = this.dims.len().min(usize::try_from(room).unwrap_or(0));
        // SAFETY: the caller's pointers, as the documentation demands; no more than there is room for.
        unsafe {
            put(data_type, this.data_type)?;
            put(count, this.dims.len() as c_int)?;
            dims.copy_from_nonoverlapping(this.dims.as_ptr(), given);
            strides.copy_from_nonoverlapping(this.strides.as_ptr(), given);
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cudnnGetTensorSizeInBytes(descriptor: usize, out: *mut usize) -> Status {
    call("cudnnGetTensorSizeInBytes", || {
        let bytes = tensor("the tensor", descriptor)?.bytes();
        // SAFETY: the caller's pointer, as the documentation demands.
        unsafe { put(out, bytes) }
    })
}

/// Null is no error.
#[unsafe(no_mangle)]
extern "C" fn cudnnDestroyTensorDescriptor(descriptor: usize) -> Status {
    call("cudnnDestroyTensorDescriptor", || match descriptor {
        0 => Ok(()),
        _ => found(TENSORS.remove(descriptor)).map(drop),
    })
}

#[unsafe(no_mangle)]
extern "C" fn cudnnDeriveBNTensorDescriptor(derived: usize, x: usize, mode: c_uint) -> Status {
    call("cudnnDeriveBNTensorDescriptor", || {
        let mode = Mode::from_number(mode)?;
        set(derived, tensor("x", x)?.derived(mode == Mode::PerActivation))
    })
}
