//! Forward calls.

use std::ffi::{c_double, c_uint, c_void};

use super::{activation, operand, optional, scalars, tensor};
use crate::{
    handle::on_handle,
    norm::{Inference, Mode, Space, Training, ops},
    status::Status,
};

#[unsafe(no_mangle)]
unsafe extern "C" fn cudnnBatchNormalizationForwardInference(
    handle: usize,
    mode: c_uint,
    alpha: *const c_void,
    beta: *const c_void,
    x_descriptor: usize,
    x: u64,
    y_descriptor: usize,
    y: u64,
    parameters: usize,
    scale: u64,
    bias: u64,
    mean: u64,
    variance: u64,
    epsilon: c_double,
) -> Status {
    on_handle("cudnnBatchNormalizationForwardInference", handle, |handle| {
        let x = operand("x", x_descriptor, x)?;
        // SAFETY: the caller's pointers, as the documentation demands.
        let blend = unsafe { scalars(&x.tensor, [alpha, beta]) }?;
        let inference = Inference {
            mode: Mode::from_number(mode)?,
            blend,
            x,
            y: operand("y", y_descriptor, y)?,
            parameters: tensor("the parameters", parameters)?,
            values: [scale, bias, mean, variance],
            epsilon,
        };
        inference.queue(handle)
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cudnnBatchNormalizationForwardTraining(
    handle: usize,
    mode: c_uint,
    alpha: *const c_void,
    beta: *const c_void,
    x_descriptor: usize,
    x: u64,
    y_descriptor: usize,
    y: u64,
    parameters: usize,
    scale: u64,
    bias: u64,
    factor: c_double,
    running_mean: u64,
    running_variance: u64,
    epsilon: c_double,
    saved_mean: u64,
    saved_inverse_variance: u64,
) -> Status {
    on_handle("cudnnBatchNormalizationForwardTraining", handle, |handle| {
        let x = operand("x", x_descriptor, x)?;
        // SAFETY: the caller's pointers, as the documentation demands.
        let blend = unsafe { scalars(&x.tensor, [alpha, beta]) }?;
        let training = Training {
            mode: Mode::from_number(mode)?,
            ops: ops(0)?,
            blend,
            x,
            z: None,
            y: operand("y", y_descriptor, y)?,
            parameters: tensor("the parameters", parameters)?,
            scale,
            bias,
            factor,
            running: [running_mean, running_variance],
            epsilon,
            saved: [saved_mean, saved_inverse_variance],
            activation: None,
            workspace: Space::default(),
            reserve: Space::default(),
        };
        training.queue(handle)
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cudnnBatchNormalizationForwardTrainingEx(
    handle: usize,
    mode: c_uint,
    operations: c_uint,
    alpha: *const c_void,
    beta: *const c_void,
    x_descriptor: usize,
    x: u64,
    z_descriptor: usize,
    z: u64,
    y_descriptor: usize,
    y: u64,
    parameters: usize,
    scale: u64,
    bias: u64,
    factor: c_double,
    running_mean: u64,
    running_variance: u64,
    epsilon: c_double,
    saved_mean: u64,
    saved_inverse_variance: u64,
    activation_descriptor: usize,
    workspace: u64,
    workspace_bytes: usize,
    reserve: u64,
    reserve_bytes: usize,
) -> Status {
    on_handle("cudnnBatchNormalizationForwardTrainingEx", handle, |handle| {
        let x = operand("x", x_descriptor, x)?;
        // SAFETY: the caller's pointers, as the documentation demands.
        let blend = unsafe { scalars(&x.tensor, [alpha, beta]) }?;
        let training = Training {
            mode: Mode::from_number(mode)?,
            ops: ops(operations)?,
            blend,
            x,
            z: optional("z", z_descriptor, z)?,
            y: operand("y", y_descriptor, y)?,
            parameters: tensor("the parameters", parameters)?,
            scale,
            bias,
            factor,
            running: [running_mean, running_variance],
            epsilon,
            saved: [saved_mean, saved_inverse_variance],
            activation: activation(activation_descriptor)?,
            workspace: Space { address: workspace, bytes: workspace_bytes },
            reserve: Space { address: reserve, bytes: reserve_bytes },
        };
        training.queue(handle)
    })
}
