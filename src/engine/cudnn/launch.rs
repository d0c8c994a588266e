//! One function for each call, with arguments of their types, which it hands to cuDNN in the order of
//! NVIDIA's reference manual. `p` describes parameters, as `cudnnDeriveBNTensorDescriptor` makes it of x;
//! alpha and beta are f32 on the host, f64 for f64 tensors. Running and saved statistics may be null, both
//! of a pair; saved ones not in the persistent mode's backward.
//!
//! What makes a call sound is checked before it: a [`Ptr`] comes from a view of this context or
//! from the desk, `check` of the arguments has compared every length with the shape, the form
//! describes exactly the elements of that shape, and the descriptors are those of the form
//! ([`Desk::describe`]).
use super::desk::{Described, Desk, Sizes, Space};
use super::form::Form;
use super::raw::{self, call};
use crate::engine::pointers::Ptr;
use crate::memory::refused;
use crate::{Element, Real, Result};
use cudarc::cudnn::sys::cudnnTensorDescriptor_t;
use cudarc::driver::result;
use std::ffi::c_void;
use std::ptr::null_mut;

/// Of a forward by the batch's statistics. Pairs are there or null together.
#[derive(Debug)]
pub(super) struct Training<E: Element> {
    pub x: Ptr<E>,
    /// The residual, where the form adds one.
    pub z: Ptr<E>,
    pub y: Ptr<E>,
    pub scale: Ptr<E::Acc>,
    pub bias: Ptr<E::Acc>,
    pub factor: f64,
    pub running: [Ptr<E::Acc>; 2],
    pub eps: f64,
    pub saved: [Ptr<E::Acc>; 2],
    pub workspace: Space,
    pub reserve: Space,
}

/// Of a forward by statistics that are given.
#[derive(Debug)]
pub(super) struct Inference<E: Element> {
    pub x: Ptr<E>,
    pub y: Ptr<E>,
    pub scale: Ptr<E::Acc>,
    pub bias: Ptr<E::Acc>,
    pub mean: Ptr<E::Acc>,
    pub var: Ptr<E::Acc>,
    pub eps: f64,
}

/// Of a backward.
#[derive(Debug)]
pub(super) struct Gradients<E: Element> {
    pub x: Ptr<E>,
    /// The forward's, where the form has an activation.
    pub y: Ptr<E>,
    pub dy: Ptr<E>,
    /// The residual's gradient, where the form adds one.
    pub dz: Ptr<E>,
    pub dx: Ptr<E>,
    pub scale: Ptr<E::Acc>,
    pub bias: Ptr<E::Acc>,
    pub dscale: Ptr<E::Acc>,
    pub dbias: Ptr<E::Acc>,
    /// Adds to `dscale` and `dbias`.
    pub accumulate: bool,
    /// Any: the saved statistics have it in them.
    pub eps: f64,
    pub saved: [Ptr<E::Acc>; 2],
    pub workspace: Space,
    pub reserve: Space,
}

fn at<T>(pointer: Ptr<T>) -> *mut c_void {
    raw::device_pointer(pointer.address())
}

/// A host number behind a pointer.
fn host<A: Real>(value: &A) -> *const c_void {
    std::ptr::from_ref(value).cast()
}

fn some(descriptor: cudnnTensorDescriptor_t, is_there: bool) -> cudnnTensorDescriptor_t {
    if is_there { descriptor } else { null_mut() }
}

impl Desk {
    /// What the training calls need, by the descriptors of x and of the parameters.
    pub(super) fn sizes(
        &mut self,
        form: &Form,
        t: cudnnTensorDescriptor_t,
        p: cudnnTensorDescriptor_t,
    ) -> Result<Sizes> {
        let (handle, mode, ops) = (self.handle.raw()?, form.mode, form.ops);
        let act = self.activation.raw();
        let (z, y) = (some(t, form.adds()), some(t, form.activates()));
        let mut sizes = Sizes::default();
        let Sizes { forward, backward, reserve } = &mut sizes;
        // SAFETY: handle and descriptors live, the sizes can be written.
        unsafe {
            call!(cudnnGetBatchNormalizationForwardTrainingExWorkspaceSize(
                handle, mode, ops, t, z, t, p, act, forward
            ))?;
            call!(cudnnGetBatchNormalizationBackwardExWorkspaceSize(
                handle, mode, ops, t, y, t, z, t, p, act, backward
            ))?;
            call!(cudnnGetBatchNormalizationTrainingExReserveSpaceSize(
                handle, mode, ops, act, t, reserve
            ))?;
        }
        Ok(sizes)
    }

    pub(super) fn forward_train<E: Element>(
        &mut self,
        form: &Form,
        args: &Training<E>,
    ) -> Result<()> {
        let Described { tensor: t, parameters: p, .. } = self.describe(form)?;
        let (handle, mode, act) = (self.handle.raw()?, form.mode, self.activation.raw());
        let [one, zero] = [1.0, 0.0].map(E::Acc::from_f64);
        let (alpha, beta) = (host(&one), host(&zero));
        let [running_mean, running_var] = args.running.map(at);
        let [save_mean, save_inv_var] = args.saved.map(at);
        let (x, z, y, scale, bias) =
            (at(args.x), at(args.z), at(args.y), at(args.scale), at(args.bias));
        let Training { factor, eps, workspace, reserve, .. } = *args;
        // SAFETY: see the head of this file; the spaces are as large as they say.
        unsafe {
            call!(cudnnBatchNormalizationForwardTrainingEx(
                handle,
                mode,
                form.ops,
                alpha,
                beta,
                t,
                x,
                some(t, form.adds()),
                z,
                t,
                y,
                p,
                scale,
                bias,
                factor,
                running_mean,
                running_var,
                eps,
                save_mean,
                save_inv_var,
                act,
                at(workspace.at),
                workspace.bytes,
                at(reserve.at),
                reserve.bytes,
            ))
        }
    }

    /// Copies a tensor.
    pub(super) fn copy<T>(&self, from: Ptr<T>, to: Ptr<T>, len: usize) -> Result<()> {
        let (bytes, stream) = (len * size_of::<T>(), self.handle.stream().cu_stream());
        // SAFETY: both addresses are those of as many values, apart from each other; the call
        // before has made the context current.
        let copied =
            unsafe { result::memcpy_dtod_async(to.address(), from.address(), bytes, stream) };
        copied.map_err(refused("cuMemcpyDtoDAsync"))
    }

    pub(super) fn forward_eval<E: Element>(
        &mut self,
        form: &Form,
        args: &Inference<E>,
    ) -> Result<()> {
        let Described { tensor: t, parameters: p, .. } = self.describe(form)?;
        let (handle, mode) = (self.handle.raw()?, form.mode);
        let [one, zero] = [1.0, 0.0].map(E::Acc::from_f64);
        // SAFETY: see the head of this file.
        unsafe {
            call!(cudnnBatchNormalizationForwardInference(
                handle,
                mode,
                host(&one),
                host(&zero),
                t,
                at(args.x),
                t,
                at(args.y),
                p,
                at(args.scale),
                at(args.bias),
                at(args.mean),
                at(args.var),
                args.eps,
            ))
        }
    }

    pub(super) fn backward<E: Element>(&mut self, form: &Form, args: &Gradients<E>) -> Result<()> {
        let Described { tensor: t, parameters: p, .. } = self.describe(form)?;
        let (handle, mode, act) = (self.handle.raw()?, form.mode, self.activation.raw());
        let [one, zero] = [1.0, 0.0].map(E::Acc::from_f64);
        let (alpha, beta) = (host(&one), host(&zero));
        let beta_param = if args.accumulate { alpha } else { beta };
        let [mean, inv_var] = args.saved.map(at);
        let (x, y, dy) = (at(args.x), at(args.y), at(args.dy));
        let (dz, dx) = (at(args.dz), at(args.dx));
        let (scale, bias) = (at(args.scale), at(args.bias));
        let (dscale, dbias) = (at(args.dscale), at(args.dbias));
        let Gradients { eps, workspace, reserve, .. } = *args;
        let (y_desc, z_desc) = (some(t, form.activates()), some(t, form.adds()));
        // SAFETY: see the head of this file; the spaces are as large as they say.
        unsafe {
            call!(cudnnBatchNormalizationBackwardEx(
                handle,
                mode,
                form.ops,
                alpha,
                beta,
                alpha,
                beta_param,
                t,
                x,
                y_desc,
                y,
                t,
                dy,
                z_desc,
                dz,
                t,
                dx,
                p,
                scale,
                bias,
                dscale,
                dbias,
                eps,
                mean,
                inv_var,
                act,
                at(workspace.at),
                workspace.bytes,
                at(reserve.at),
                reserve.bytes,
            ))
        }
    }
}
