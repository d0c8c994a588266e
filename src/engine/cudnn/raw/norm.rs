//! Batch normalization: NVIDIA's calls in their own order, so that their reference manual describes
//! these functions. `param_desc` is what `cudnnDeriveBNTensorDescriptor` makes of x; alpha and beta
//! are f32 on the host, f64 for f64 tensors.
#![allow(clippy::too_many_arguments)]
use super::{call, sys};
use crate::Result;
use std::ffi::c_void;

/// Normalizes by the batch's statistics, and updates running ones. Running and saved statistics may
/// be null, both of a pair.
///
/// # Safety
/// The context of the handle is current; handle and descriptors live; the descriptors describe the
/// memory of the tensors, and memory lives until the stream has done the work.
pub unsafe fn batch_normalization_forward_training(
    handle: sys::cudnnHandle_t,
    mode: sys::cudnnBatchNormMode_t,
    alpha: *const c_void,
    beta: *const c_void,
    x_desc: sys::cudnnTensorDescriptor_t,
    x: *const c_void,
    y_desc: sys::cudnnTensorDescriptor_t,
    y: *mut c_void,
    param_desc: sys::cudnnTensorDescriptor_t,
    scale: *const c_void,
    bias: *const c_void,
    factor: f64,
    running_mean: *mut c_void,
    running_var: *mut c_void,
    epsilon: f64,
    save_mean: *mut c_void,
    save_inv_var: *mut c_void,
) -> Result<()> {
    // SAFETY: the caller's promise.
    unsafe {
        call!(cudnnBatchNormalizationForwardTraining(
            handle,
            mode,
            alpha,
            beta,
            x_desc,
            x,
            y_desc,
            y,
            param_desc,
            scale,
            bias,
            factor,
            running_mean,
            running_var,
            epsilon,
            save_mean,
            save_inv_var
        ))
    }
}

/// The same, with what may follow it: z is added where `ops` says so; workspace and reserve space
/// are as large as the queries say.
///
/// # Safety
/// The context of the handle is current; handle and descriptors live; the descriptors describe the
/// memory of the tensors, and memory lives until the stream has done the work.
pub unsafe fn batch_normalization_forward_training_ex(
    handle: sys::cudnnHandle_t,
    mode: sys::cudnnBatchNormMode_t,
    ops: sys::cudnnBatchNormOps_t,
    alpha: *const c_void,
    beta: *const c_void,
    x_desc: sys::cudnnTensorDescriptor_t,
    x: *const c_void,
    z_desc: sys::cudnnTensorDescriptor_t,
    z: *const c_void,
    y_desc: sys::cudnnTensorDescriptor_t,
    y: *mut c_void,
    param_desc: sys::cudnnTensorDescriptor_t,
    scale: *const c_void,
    bias: *const c_void,
    factor: f64,
    running_mean: *mut c_void,
    running_var: *mut c_void,
    epsilon: f64,
    save_mean: *mut c_void,
    save_inv_var: *mut c_void,
    activation: sys::cudnnActivationDescriptor_t,
    workspace: *mut c_void,
    workspace_size: usize,
    reserve: *mut c_void,
    reserve_size: usize,
) -> Result<()> {
    // SAFETY: the caller's promise.
    unsafe {
        call!(cudnnBatchNormalizationForwardTrainingEx(
            handle,
            mode,
            ops,
            alpha,
            beta,
            x_desc,
            x,
            z_desc,
            z,
            y_desc,
            y,
            param_desc,
            scale,
            bias,
            factor,
            running_mean,
            running_var,
            epsilon,
            save_mean,
            save_inv_var,
            activation,
            workspace,
            workspace_size,
            reserve,
            reserve_size
        ))
    }
}

/// Normalizes by statistics that are given.
///
/// # Safety
/// The context of the handle is current; handle and descriptors live; the descriptors describe the
/// memory of the tensors, and memory lives until the stream has done the work.
pub unsafe fn batch_normalization_forward_inference(
    handle: sys::cudnnHandle_t,
    mode: sys::cudnnBatchNormMode_t,
    alpha: *const c_void,
    beta: *const c_void,
    x_desc: sys::cudnnTensorDescriptor_t,
    x: *const c_void,
    y_desc: sys::cudnnTensorDescriptor_t,
    y: *mut c_void,
    param_desc: sys::cudnnTensorDescriptor_t,
    scale: *const c_void,
    bias: *const c_void,
    mean: *const c_void,
    var: *const c_void,
    epsilon: f64,
) -> Result<()> {
    // SAFETY: the caller's promise.
    unsafe {
        call!(cudnnBatchNormalizationForwardInference(
            handle, mode, alpha, beta, x_desc, x, y_desc, y, param_desc, scale, bias, mean, var,
            epsilon
        ))
    }
}

/// All three gradients. Saved statistics may be null, both, save in the persistent mode.
///
/// # Safety
/// The context of the handle is current; handle and descriptors live; the descriptors describe the
/// memory of the tensors, and memory lives until the stream has done the work.
pub unsafe fn batch_normalization_backward(
    handle: sys::cudnnHandle_t,
    mode: sys::cudnnBatchNormMode_t,
    alpha_data: *const c_void,
    beta_data: *const c_void,
    alpha_param: *const c_void,
    beta_param: *const c_void,
    x_desc: sys::cudnnTensorDescriptor_t,
    x: *const c_void,
    dy_desc: sys::cudnnTensorDescriptor_t,
    dy: *const c_void,
    dx_desc: sys::cudnnTensorDescriptor_t,
    dx: *mut c_void,
    param_desc: sys::cudnnTensorDescriptor_t,
    scale: *const c_void,
    dscale: *mut c_void,
    dbias: *mut c_void,
    epsilon: f64,
    saved_mean: *const c_void,
    saved_inv_var: *const c_void,
) -> Result<()> {
    // SAFETY: the caller's promise.
    unsafe {
        call!(cudnnBatchNormalizationBackward(
            handle,
            mode,
            alpha_data,
            beta_data,
            alpha_param,
            beta_param,
            x_desc,
            x,
            dy_desc,
            dy,
            dx_desc,
            dx,
            param_desc,
            scale,
            dscale,
            dbias,
            epsilon,
            saved_mean,
            saved_inv_var
        ))
    }
}

/// The same through what followed; y is that of the forward, the reserve space the one that it has
/// filled.
///
/// # Safety
/// The context of the handle is current; handle and descriptors live; the descriptors describe the
/// memory of the tensors, and memory lives until the stream has done the work.
pub unsafe fn batch_normalization_backward_ex(
    handle: sys::cudnnHandle_t,
    mode: sys::cudnnBatchNormMode_t,
    ops: sys::cudnnBatchNormOps_t,
    alpha_data: *const c_void,
    beta_data: *const c_void,
    alpha_param: *const c_void,
    beta_param: *const c_void,
    x_desc: sys::cudnnTensorDescriptor_t,
    x: *const c_void,
    y_desc: sys::cudnnTensorDescriptor_t,
    y: *const c_void,
    dy_desc: sys::cudnnTensorDescriptor_t,
    dy: *const c_void,
    dz_desc: sys::cudnnTensorDescriptor_t,
    dz: *mut c_void,
    dx_desc: sys::cudnnTensorDescriptor_t,
    dx: *mut c_void,
    param_desc: sys::cudnnTensorDescriptor_t,
    scale: *const c_void,
    bias: *const c_void,
    dscale: *mut c_void,
    dbias: *mut c_void,
    epsilon: f64,
    saved_mean: *const c_void,
    saved_inv_var: *const c_void,
    activation: sys::cudnnActivationDescriptor_t,
    workspace: *mut c_void,
    workspace_size: usize,
    reserve: *mut c_void,
    reserve_size: usize,
) -> Result<()> {
    // SAFETY: the caller's promise.
    unsafe {
        call!(cudnnBatchNormalizationBackwardEx(
            handle,
            mode,
            ops,
            alpha_data,
            beta_data,
            alpha_param,
            beta_param,
            x_desc,
            x,
            y_desc,
            y,
            dy_desc,
            dy,
            dz_desc,
            dz,
            dx_desc,
            dx,
            param_desc,
            scale,
            bias,
            dscale,
            dbias,
            epsilon,
            saved_mean,
            saved_inv_var,
            activation,
            workspace,
            workspace_size,
            reserve,
            reserve_size
        ))
    }
}

/// Bytes of workspace that the forward needs.
///
/// # Safety
/// Handle and descriptors live.
pub unsafe fn get_batch_normalization_forward_training_ex_workspace_size(
    handle: sys::cudnnHandle_t,
    mode: sys::cudnnBatchNormMode_t,
    ops: sys::cudnnBatchNormOps_t,
    x_desc: sys::cudnnTensorDescriptor_t,
    z_desc: sys::cudnnTensorDescriptor_t,
    y_desc: sys::cudnnTensorDescriptor_t,
    param_desc: sys::cudnnTensorDescriptor_t,
    activation: sys::cudnnActivationDescriptor_t,
) -> Result<usize> {
    let mut size = 0;
    // SAFETY: the caller's promise; the size can be written.
    unsafe {
        call!(cudnnGetBatchNormalizationForwardTrainingExWorkspaceSize(
            handle, mode, ops, x_desc, z_desc, y_desc, param_desc, activation, &mut size
        ))
    }?;
    Ok(size)
}

/// Bytes of workspace that the backward needs.
///
/// # Safety
/// Handle and descriptors live.
pub unsafe fn get_batch_normalization_backward_ex_workspace_size(
    handle: sys::cudnnHandle_t,
    mode: sys::cudnnBatchNormMode_t,
    ops: sys::cudnnBatchNormOps_t,
    x_desc: sys::cudnnTensorDescriptor_t,
    y_desc: sys::cudnnTensorDescriptor_t,
    dy_desc: sys::cudnnTensorDescriptor_t,
    dz_desc: sys::cudnnTensorDescriptor_t,
    dx_desc: sys::cudnnTensorDescriptor_t,
    param_desc: sys::cudnnTensorDescriptor_t,
    activation: sys::cudnnActivationDescriptor_t,
) -> Result<usize> {
    let mut size = 0;
    // SAFETY: the caller's promise; the size can be written.
    unsafe {
        call!(cudnnGetBatchNormalizationBackwardExWorkspaceSize(
            handle, mode, ops, x_desc, y_desc, dy_desc, dz_desc, dx_desc, param_desc, activation,
            &mut size
        ))
    }?;
    Ok(size)
}

/// Bytes that the forward leaves for the backward.
///
/// # Safety
/// Handle and descriptors live.
pub unsafe fn get_batch_normalization_training_ex_reserve_space_size(
    handle: sys::cudnnHandle_t,
    mode: sys::cudnnBatchNormMode_t,
    ops: sys::cudnnBatchNormOps_t,
    activation: sys::cudnnActivationDescriptor_t,
    x_desc: sys::cudnnTensorDescriptor_t,
) -> Result<usize> {
    let mut size = 0;
    // SAFETY: the caller's promise; the size can be written.
    unsafe {
        call!(cudnnGetBatchNormalizationTrainingExReserveSpaceSize(
            handle, mode, ops, activation, x_desc, &mut size
        ))
    }?;
    Ok(size)
}
