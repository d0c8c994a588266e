//! Backward calls.

use std::ffi::{c_double, c_uint, c_void};

use super::{activation, operand, optional, scalars, tensor};
use crate::{
    handle::on_handle,
    norm::{Backward, Mode, Space, ops},
    status::Status,
};

#[unsafe(no_mangle)]
unsafe extern "C" fn cudnnBatchNormalizationBackward(
    handle: usize,
    mode: c_uint,
    alpha_data: *const c_void,
    beta_data: *const c_void,
    alpha_parameters: *const c_void,
    beta_parameters: *const c_void,
    x_descriptor: usize,
    x: u64,
    dy_descriptor: usize,
    dy: u64,
    dx_descriptor: usize,
    dx: u64,
    parameters: usize,
    scale: u64,
    dscale: u64,
    dbias: u64,
    epsilon: c_double,
    saved_mean: u64,
    saved_inverse_variance: u64,
) -> Status {
    on_handle("cudnnBatchNormalizationBackward", handle, |handle| {
        let x = operand("x", x_descriptor, x)?;
        // SAFETY: the caller's pointers, as the documentation demands.
        let (data, gradients) = unsafe {
            (
                scalars(&x.tensor, [alpha_data, beta_data])?,
                scalars(&x.tensor, [alpha_parameters, beta_parameters])?,
            )
        };
        let backward = Backward {
            mode: Mode::from_number(mode)?,
            ops: ops(0)?,
            data,
            gradients,
            x,
            y: None,
            dy: operand("dy", dy_descriptor, dy)?,
            dz: None,
            dx: operand("dx", dx_descriptor, dx)?,
            parameters: tensor("the parameters", parameters)?,
            scale,
            bias: 0,
            dscale,
            dbias,
            epsilon,
            saved: [saved_mean, saved_inverse_variance],
            activation: None,
            workspace: Space::default(),
            reserve: Space::default(),
        };
        backward.queue(handle)
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cudnnBatchNormalizationBackwardEx(
    handle: usize,
    mode: c_uint,
    operations: c_uint,
    alpha_data: *const c_void,
    beta_data: *const c_void,
    alpha_parameters: *const c_void,
    beta_parameters: *const c_void,
    x_descriptor: usize,
    x: u64,
    y_descriptor: usize,
    y: u64,
    dy_descriptor: usize,
    dy: u64,
    dz_descriptor: usize,
    dz: u64,
    dx_descriptor: usize,
    dx: u64,
    parameters: usize,
    scale: u64,
    bias: u64,
    dscale: u64,
    dbias: u64,
    epsilon: c_double,
    saved_mean: u64,
    saved_inverse_variance: u64,
    activation_descriptor: usize,
    workspace: u64,
    workspace_bytes: usize,
    reserve: u64,
    reserve_bytes: usize,
) -> Status {
    on_handle("cudnnBatchNormalizationBackwardEx", handle, |handle| {
        let x = operand("x", x_descriptor, x)?;
        // SAFETY: the caller's pointers, as the documentation demands.
        let (data, gradients) = unsafe {
            (
                scalars(&x.tensor, [alpha_data, beta_data])?,
                scalars(&x.tensor, [alpha_parameters, beta_parameters])?,
            )
        };
        let backward = Backward {
            mode: Mode::from_number(mode)?,
            ops: ops(operations)?,
            data,
            gradients,
            x,
            y: optional("y", y_descriptor, y)?,
            dy: operand("dy", dy_descriptor, dy)?,
            dz: optional("dz", dz_descriptor, dz)?,
            dx: operand("dx", dx_descriptor, dx)?,
            parameters: tensor("the parameters", parameters)?,
            scale,
            bias,
            dscale,
            dbias,
            epsilon,
            saved: [saved_mean, saved_inverse_variance],
            activation: activation(activation_descriptor)?,
            workspace: Space { address: workspace, bytes: workspace_bytes },
            reserve: Space { address: reserve, bytes: reserve_bytes },
        };
        backward.queue(handle)
    })
}
