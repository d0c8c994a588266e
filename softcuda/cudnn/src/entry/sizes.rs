//! How much workspace and reserve space the calls need.

use std::ffi::c_uint;

use super::{activation, put, tensor};
use crate::{
    handle::on_handle,
    norm::{Backward, Mode, Normalization, Ops, Training, ops},
    status::{Refusal, Status},
    tensor::Tensor,
};

/// Descriptors beside x by name; a null one is left out where the operation does not need it.
fn others(
    descriptors: &[(&'static str, usize)],
    is_needed: impl Fn(&str) -> bool,
) -> Result<Vec<(&'static str, Tensor)>, Refusal> {
    let needed = descriptors.iter().filter(|(name, _)| is_needed(name));
    needed.map(|(name, descriptor)| Ok((*name, tensor(name, *descriptor)?))).collect()
}

fn checked(
    mode: c_uint,
    ops: Ops,
    x: usize,
    others: &[(&'static str, Tensor)],
    parameters: usize,
    activation_descriptor: usize,
) -> Result<Normalization, Refusal> {
    let others: Vec<_> = others.iter().map(|(name, tensor)| (*name, tensor)).collect();
    Normalization::new(
        Mode::from_number(mode)?,
        ops,
        &tensor("x", x)?,
        &others,
        &tensor("the parameters", parameters)?,
        activation(activation_descriptor)?,
    )
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cudnnGetBatchNormalizationForwardTrainingExWorkspaceSize(
    handle: usize,
    mode: c_uint,
    operations: c_uint,
    x: usize,
    z: usize,
    y: usize,
    parameters: usize,
    activation: usize,
    out: *mut usize,
) -> Status {
    on_handle("cudnnGetBatchNormalizationForwardTrainingExWorkspaceSize", handle, |_| {
        let ops = ops(operations)?;
        let is_needed = |name: &str| name != "z" || ops == Ops::AddActivation;
        let others = others(&[("y", y), ("z", z)], is_needed)?;
        let norm = checked(mode, ops, x, &others, parameters, activation)?;
        let tensors: Vec<_> = others.iter().map(|(_, tensor)| tensor).collect();
        // SAFETY: the caller's pointer, as the documentation demands.
        unsafe { put(out, Training::workspace_bytes(&norm, &tensors)) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cudnnGetBatchNormalizationBackwardExWorkspaceSize(
    handle: usize,
    mode: c_uint,
    operations: c_uint,
    x: usize,
    y: usize,
    dy: usize,
    dz: usize,
    dx: usize,
    parameters: usize,
    activation: usize,
    out: *mut usize,
) -> Status {
    on_handle("cudnnGetBatchNormalizationBackwardExWorkspaceSize", handle, |_| {
        let ops = ops(operations)?;
        let is_needed = |name: &str| match name {
            "y" => ops != Ops::Nothing,
            "dz" => ops == Ops::AddActivation,
            _ => true,
        };
        let others = others(&[("y", y), ("dy", dy), ("dz", dz), ("dx", dx)], is_needed)?;
        let norm = checked(mode, ops, x, &others, parameters, activation)?;
        let tensors: Vec<_> = others.iter().map(|(_, tensor)| tensor).collect();
        // SAFETY: the caller's pointer, as the documentation demands.
        unsafe { put(out, Backward::workspace_bytes(&norm, &tensors)) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cudnnGetBatchNormalizationTrainingExReserveSpaceSize(
    handle: usize,
    mode: c_uint,
    operations: c_uint,
    activation_descriptor: usize,
    x: usize,
    out: *mut usize,
) -> Status {
    on_handle("cudnnGetBatchNormalizationTrainingExReserveSpaceSize", handle, |_| {
        let (mode, x) = (Mode::from_number(mode)?, tensor("x", x)?);
        let parameters = x.derived(mode == Mode::PerActivation)?;
        let activation = activation(activation_descriptor)?;
        let ops = ops(operations)?;
        let norm = Normalization::new(mode, ops, &x, &[], &parameters, activation)?;
        // SAFETY: the caller's pointer, as the documentation demands.
        unsafe { put(out, Training::reserve_bytes(&norm)) }
    })
}
