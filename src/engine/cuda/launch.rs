//! One function for each kernel, arguments in the kernel's order. `kernels/README.md` describes them.
//!
//! What makes a launch sound is checked before it: a [`Ptr`] comes from a view of this context or
//! from the workspace, `check` of the arguments has compared every length with the shape, and the
//! plan that `geometry` and `merge` come from covers exactly the elements of that shape.
use super::arguments::{
    Act, AnyActivation, Channels, Given, Gradients, Group, Merge, Outputs, Tensors,
};
use super::masked::{Places, Shares};
use super::module::{Activated, Kernels, Modules, Tiled};
use super::plan::{Geometry, Plan};
use super::resident::Resident;
use super::update::Update;
use crate::engine::Activation;
use crate::engine::pointers::Ptr;
use crate::memory::refused;
use crate::{DType, Element, Result};
use cudarc::driver::sys::CUstream;
use cudarc::driver::{CudaFunction, CudaStream, result};
use std::cell::Cell;
use std::ffi::c_void;
use std::sync::Arc;

/// The addresses of a kernel's arguments, which the driver copies while it launches.
macro_rules! arguments {
    ($($argument:expr),* $(,)?) => {
        &mut [$((&raw const $argument).cast_mut().cast::<std::ffi::c_void>()),*]
    };
}

mod double_backward;
mod layer_norm;
mod masked;

pub(super) use double_backward::{
    Counting, Cut, DoubleLauncher, Follows, Parameters, Reads, Writes,
};
pub(super) use layer_norm::{LayerNorm, RowLauncher, Rows};

/// The kernels of one type of elements, on a stream. Those of the split family are loaded by the first
/// launch of one, so that a step in one launch never waits for a compiler to make them.
pub(super) struct Launcher<'a> {
    pub modules: &'a Modules,
    pub dtype: DType,
    pub activation: Activation,
    pub stream: Bound<'a>,
}

/// A stream whose context becomes current on this thread with the first launch of an operation, and stays
/// so for the others.
pub(super) struct Bound<'a> {
    stream: &'a CudaStream,
    is_bound: Cell<bool>,
}

impl<'a> Bound<'a> {
    pub fn new(stream: &'a CudaStream) -> Self {
        Self { stream, is_bound: Cell::new(false) }
    }
    fn raw(&self) -> Result<CUstream> {
        if !self.is_bound.get() {
            self.stream.context().bind_to_thread().map_err(refused("cuCtxSetCurrent"))?;
            self.is_bound.set(true);
        }
        Ok(self.stream.cu_stream())
    }
}

const CALL: &str = "cuLaunchKernel";

/// For one thread per channel, or one warp.
const BLOCK: u32 = 128;
const WARPS: u32 = BLOCK / 32;

/// Launches a kernel: the functions below, and those of the modules of this one, alone call it.
fn submit(
    stream: &Bound<'_>,
    kernel: &CudaFunction,
    grid: u32,
    block: u32,
    arguments: &mut [*mut c_void],
) -> Result<()> {
    let (function, stream) = (kernel.cu_function(), stream.raw()?);
    // SAFETY: those functions give each kernel the arguments it declares, in its order, and they outlive
    // the call. What they point to is as the head of this file says.
    let launched = unsafe {
        result::launch_kernel(function, (grid, 1, 1), (block, 1, 1), 0, stream, arguments)
    };
    launched.map_err(refused(CALL))
}

impl Launcher<'_> {
    fn kernels(&self) -> Result<Arc<Kernels>> {
        self.modules.kernels(self.dtype)
    }
    fn activated(&self) -> Result<Arc<Activated>> {
        self.modules.activated(self.dtype, self.activation)
    }

    fn submit(
        &self,
        kernel: &CudaFunction,
        grid: u32,
        block: u32,
        arguments: &mut [*mut c_void],
    ) -> Result<()> {
        submit(&self.stream, kernel, grid, block, arguments)
    }

    fn tiles(&self, kernel: &Tiled, plan: &Plan, arguments: &mut [*mut c_void]) -> Result<()> {
        if plan.blocks == 0 {
            return Ok(());
        }
        let kernel = if plan.lanes > 1 { &kernel.vectors } else { &kernel.scalars };
        self.submit(kernel, plan.blocks, plan.geometry.threads.next_multiple_of(32), arguments)
    }

    pub fn stats<E: Element>(&self, plan: &Plan, x: Ptr<E>, partials: Ptr<f64>) -> Result<()> {
        let geometry = aligned(plan, &[x]);
        self.tiles(&self.kernels()?.stats, plan, arguments![geometry, x, partials])
    }

    pub fn stats_finalize<E: Element>(
        &self,
        plan: &Plan,
        outputs: Outputs<E::Acc>,
        x: Ptr<E>,
        partials: Ptr<f64>,
    ) -> Result<()> {
        let (merge, grid) = (Merge::from(plan), plan.geometry.channels.div_ceil(WARPS));
        let arguments = arguments![merge, outputs, x, partials];
        self.submit(&self.kernels()?.stats_finalize, grid, BLOCK, arguments)
    }

    pub fn eval<A>(
        &self,
        channels: u32,
        given: Given<A>,
        weight: Ptr<A>,
        bias: Ptr<A>,
    ) -> Result<()> {
        let arguments = arguments![channels, given, weight, bias];
        self.submit(&self.kernels()?.eval, channels.div_ceil(BLOCK), BLOCK, arguments)
    }

    #[allow(clippy::too_many_arguments)] // the kernel has them
    pub fn apply<E: Element>(
        &self,
        plan: &Plan,
        channels: Channels<E::Acc>,
        given: Given<E::Acc>,
        x: Ptr<E>,
        residual: Ptr<E>,
        y: Ptr<E>,
        mask: Ptr<u8>,
        act: Act<E::Acc>,
    ) -> Result<()> {
        let geometry = aligned(plan, &[x, residual, y]);
        let activated = self.activated()?;
        let kernel = &activated.apply;
        macro_rules! with {
            ($act:ident) => {
                self.tiles(
                    kernel,
                    plan,
                    arguments![geometry, channels, given, x, residual, y, mask, $act],
                )
            };
        }
        match act {
            Act::Plain(relu) => with!(relu),
            Act::Any(any) => with!(any),
        }
    }

    pub fn backward_sums<E: Element>(
        &self,
        plan: &Plan,
        channels: Channels<E::Acc>,
        tensors: Tensors<E>,
        partials: Ptr<f64>,
    ) -> Result<()> {
        let geometry = aligned(plan, &tensors.all());
        let Tensors { x, grad_y, mask, residual, grad_x, grad_residual, .. } = tensors;
        let source = tensors.source.code();
        macro_rules! with {
            ($($act:ident),*) => {
                arguments![
                    geometry, channels, x, grad_y, mask, source, $($act,)* partials, grad_x,
                    grad_residual
                ]
            };
        }
        let activated = self.activated()?;
        let kernel = &activated.backward_sums;
        match tensors.act {
            Act::Plain(_) => self.tiles(kernel, plan, with!()),
            Act::Any(any) => self.tiles(kernel, plan, with!(residual, any)),
        }
    }

    pub fn backward_finalize<E: Element>(
        &self,
        plan: &Plan,
        channels: Channels<E::Acc>,
        tensors: Tensors<E>,
        gradients: Gradients<E::Acc>,
        accumulate: bool,
        partials: Ptr<f64>,
    ) -> Result<()> {
        let (merge, accumulate) = (Merge::from(plan), u32::from(accumulate));
        let Tensors { x, grad_y, mask, residual, .. } = tensors;
        let source = tensors.source.code();
        macro_rules! with {
            ($($act:ident),*) => {
                arguments![
                    merge, channels, x, grad_y, mask, source, $($act,)* gradients, accumulate, partials
                ]
            };
        }
        let activated = self.activated()?;
        let kernel = &activated.backward_finalize;
        let grid = plan.geometry.channels.div_ceil(WARPS);
        match tensors.act {
            Act::Plain(_) => self.submit(kernel, grid, BLOCK, with!()),
            Act::Any(any) => self.submit(kernel, grid, BLOCK, with!(residual, any)),
        }
    }

    pub fn backward_apply<E: Element>(
        &self,
        plan: &Plan,
        channels: Channels<E::Acc>,
        tensors: Tensors<E>,
        coefs: Ptr<E::Acc>,
    ) -> Result<()> {
        let geometry = aligned(plan, &tensors.all());
        let Tensors { x, grad_y, mask, residual, grad_x, grad_residual, .. } = tensors;
        let source = tensors.source.code();
        macro_rules! with {
            ($($act:ident),*) => {
                arguments![
                    geometry, channels, x, grad_y, mask, source, $($act,)* coefs, grad_x, grad_residual
                ]
            };
        }
        let activated = self.activated()?;
        let kernel = &activated.backward_apply;
        match tensors.act {
            Act::Plain(_) => self.tiles(kernel, plan, with!()),
            Act::Any(any) => self.tiles(kernel, plan, with!(residual, any)),
        }
    }

    /// All blocks of a grid, which wait for each other where groups have several.
    fn groups(
        &self,
        kernel: &CudaFunction,
        plan: &Resident,
        arguments: &mut [*mut c_void],
    ) -> Result<()> {
        let (function, stream) = (kernel.cu_function(), self.stream.raw()?);
        let (grid, block) =
            ((plan.grid(), 1, 1), (plan.geometry.threads.next_multiple_of(32), 1, 1));
        if plan.blocks == 1 {
            // SAFETY: as in `submit`.
            let launched = unsafe {
                result::launch_kernel(function, grid, block, plan.shared, stream, arguments)
            };
            return launched.map_err(refused(CALL));
        }
        // SAFETY: as in `submit`; and the driver refuses a grid whose blocks do not all run at once.
        let launched = unsafe {
            result::launch_cooperative_kernel(function, grid, block, plan.shared, stream, arguments)
        };
        launched.map_err(refused("cuLaunchCooperativeKernel"))
    }

    #[allow(clippy::too_many_arguments)] // the kernel has them
    pub fn forward_resident<E: Element>(
        &self,
        kernel: &CudaFunction,
        plan: &Resident,
        group: Group,
        outputs: Outputs<E::Acc>,
        x: Ptr<E>,
        residual: Ptr<E>,
        y: Ptr<E>,
        mask: Ptr<u8>,
        act: Act<E::Acc>,
    ) -> Result<()> {
        let (geometry, count) = (plan.geometry, plan.count);
        macro_rules! with {
            ($act:ident) => {
                arguments![geometry, group, outputs, count, x, residual, y, mask, $act]
            };
        }
        match act {
            Act::Plain(relu) => self.groups(kernel, plan, with!(relu)),
            Act::Any(any) => self.groups(kernel, plan, with!(any)),
        }
    }

    /// All of a backward, in one launch; `masked` after a forward by a mask, whose kernel serves any activation.
    #[allow(clippy::too_many_arguments)] // the kernel has them
    pub fn backward_resident<E: Element>(
        &self,
        kernel: &CudaFunction,
        plan: &Resident,
        group: Group,
        channels: Channels<E::Acc>,
        gradients: Gradients<E::Acc>,
        tensors: Tensors<E>,
        accumulate: bool,
        masked: Option<(Places, Shares<E::Acc>)>,
    ) -> Result<()> {
        let (geometry, count, accumulate) = (plan.geometry, plan.count, u32::from(accumulate));
        let Tensors { x, grad_y, mask, residual, grad_x, grad_residual, .. } = tensors;
        let source = tensors.source.code();
        macro_rules! with {
            ([$($act:ident),*] $($more:ident),*) => {
                arguments![
                    geometry, group, channels, gradients, count, x, grad_y, mask, source, $($act,)*
                    accumulate, grad_x, grad_residual, $($more),*
                ]
            };
        }
        if let Some((places, shares)) = masked {
            let any = AnyActivation::<E::Acc>::new(self.activation);
            return self.groups(kernel, plan, with!([residual, any] places, shares));
        }
        match tensors.act {
            Act::Plain(_) => self.groups(kernel, plan, with!([])),
            Act::Any(any) => self.groups(kernel, plan, with!([residual, any])),
        }
    }

    pub fn merge_stats<A>(
        &self,
        channels: u32,
        parts: u32,
        records: Ptr<f64>,
        running: Update<A>,
        merged: Ptr<f64>,
    ) -> Result<()> {
        let arguments = arguments![channels, parts, records, running, merged];
        self.submit(self.kernels()?.merge_stats()?, channels.div_ceil(BLOCK), BLOCK, arguments)
    }
}

/// The plan's geometry, for these tensors.
fn aligned<E>(plan: &Plan, tensors: &[Ptr<E>]) -> Geometry {
    let aligned = tensors.iter().all(|tensor| tensor.is_aligned());
    Geometry { aligned: aligned.into(), ..plan.geometry }
}
