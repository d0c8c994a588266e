//! One function for each kernel, arguments in the kernel's order. `kernels/README.md` describes them.
//!
//! What makes a launch sound is checked before it: a [`Ptr`] comes from a view of this context or
//! from the workspace, `check` of the arguments has compared every length with the shape, and the
//! plan that `geometry` and `merge` come from covers exactly the elements of that shape.
use super::module::{Activated, Kernels, ResidentKernels, Tiled, is_any};
use super::plan::{Geometry, Plan};
use super::resident::Resident;
use super::update::Update;
use crate::engine::pointers::Ptr;
use crate::engine::{Activation, Derivative};
use crate::memory::refused;
use crate::{Element, Real, Result};
use cudarc::driver::{CudaFunction, CudaStream, result};
use std::ffi::c_void;

/// What normalizes: one value for each channel.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Channels<A> {
    pub mean: Ptr<A>,
    pub mean_rest: Ptr<A>,
    pub invstd: Ptr<A>,
    pub weight: Ptr<A>,
    pub bias: Ptr<A>,
}

/// How the partial results of a channel make it up.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Merge {
    count: u64,
    tile_count: u64,
    tiles: u32,
    channels: u32,
    inner: u64,
    lanes: u32,
    reserved: u32,
}

impl From<&Plan> for Merge {
    fn from(plan: &Plan) -> Self {
        let &Plan { geometry, count, tile_count, tiles, lanes, .. } = plan;
        let Geometry { channels, inner, .. } = geometry;
        Self { count, tile_count, tiles, channels, inner, lanes, reserved: 0 }
    }
}

/// What the statistics are written to.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Outputs<A> {
    pub eps: f64,
    pub running: Update<A>,
    pub mean: Ptr<A>,
    pub mean_rest: Ptr<A>,
    pub invstd: Ptr<A>,
    pub record: Ptr<f64>,
    pub nonfinite: Ptr<u32>,
    /// What is applied, and where a backward finds it.
    pub weight: Ptr<A>,
    pub bias: Ptr<A>,
    pub saved_weight: Ptr<A>,
    pub saved_bias: Ptr<A>,
}

impl<A: Real> Outputs<A> {
    /// Nothing is written yet.
    pub fn new(eps: f64, nonfinite: Ptr<u32>) -> Self {
        let none = Ptr::NULL;
        Self {
            eps,
            running: Update::NONE,
            mean: none,
            mean_rest: none,
            invstd: none,
            record: Ptr::NULL,
            nonfinite,
            weight: none,
            bias: none,
            saved_weight: none,
            saved_bias: none,
        }
    }
}

/// What the sums of a backward are written to.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Gradients<A> {
    pub total_sums: Ptr<A>,
    pub grad_weight: Ptr<A>,
    pub grad_bias: Ptr<A>,
    pub sums: Ptr<A>,
    pub coefs: Ptr<A>,
    pub nonfinite: Ptr<u32>,
}

/// The tensors of a backward.
#[derive(Clone, Copy)]
pub(super) struct Tensors<E: Element> {
    pub x: Ptr<E>,
    pub grad_y: Ptr<E>,
    pub mask: Ptr<u8>,
    /// What derivatives are taken from.
    pub source: Derivative,
    /// Null unless that is the residual.
    pub residual: Ptr<E>,
    pub act: Act<E::Acc>,
    pub grad_x: Ptr<E>,
    pub grad_residual: Ptr<E>,
}

/// What follows the normalization, as kernels take it.
#[derive(Clone, Copy)]
pub(super) enum Act<A> {
    /// Whether it is a ReLU.
    Plain(u32),
    Any(AnyActivation<A>),
}

/// Any activation, for kernels that take any.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct AnyActivation<A> {
    activation: u32,
    slope: A,
}

impl<A: Real> Act<A> {
    pub fn new(activation: Activation) -> Self {
        if !is_any(activation) {
            return Self::Plain((activation == Activation::Relu).into());
        }
        let slope = A::from_f64(activation.negative_slope());
        Self::Any(AnyActivation { activation: activation.code(), slope })
    }
}

/// The blocks that share a slice, and where they tell each other what they found.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Group {
    blocks: u32,
    kept: u32,
    partials: Ptr<f64>,
    words: Ptr<u32>,
}

impl Group {
    pub fn new(plan: &Resident, partials: Ptr<f64>, words: Ptr<u32>) -> Self {
        let &Resident { blocks, kept, .. } = plan;
        match blocks {
            1 => Self { blocks, kept, partials: Ptr::NULL, words: Ptr::NULL },
            _ => Self { blocks, kept, partials, words },
        }
    }
}

/// The addresses of a kernel's arguments, which the driver copies while it launches.
macro_rules! arguments {
    ($($argument:expr),* $(,)?) => {
        &mut [$((&raw const $argument).cast_mut().cast::<std::ffi::c_void>()),*]
    };
}

mod layer_norm;

pub(super) use layer_norm::{LayerNorm, RowLauncher, Rows};

/// The kernels of one type of elements, on a stream.
pub(super) struct Launcher<'a> {
    pub kernels: &'a Kernels,
    pub activated: &'a Activated,
    pub stream: &'a CudaStream,
}

const CALL: &str = "cuLaunchKernel";

/// For one thread per channel, or one warp.
const BLOCK: u32 = 128;
const WARPS: u32 = BLOCK / 32;

/// Launches a kernel: the functions below, and those of `layer_norm`, alone call it.
fn submit(
    stream: &CudaStream,
    kernel: &CudaFunction,
    grid: u32,
    block: u32,
    arguments: &mut [*mut c_void],
) -> Result<()> {
    stream.context().bind_to_thread().map_err(refused("cuCtxSetCurrent"))?;
    let (function, stream) = (kernel.cu_function(), stream.cu_stream());
    // SAFETY: those functions give each kernel the arguments it declares, in its order, and they outlive
    // the call. What they point to is as the head of this file says.
    let launched = unsafe {
        result::launch_kernel(function, (grid, 1, 1), (block, 1, 1), 0, stream, arguments)
    };
    launched.map_err(refused(CALL))
}

impl Launcher<'_> {
    fn submit(
        &self,
        kernel: &CudaFunction,
        grid: u32,
        block: u32,
        arguments: &mut [*mut c_void],
    ) -> Result<()> {
        submit(self.stream, kernel, grid, block, arguments)
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
        self.tiles(&self.kernels.stats, plan, arguments![geometry, x, partials])
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
        self.submit(&self.kernels.stats_finalize, grid, BLOCK, arguments)
    }

    pub fn eval<A>(
        &self,
        channels: u32,
        mean: Ptr<A>,
        var: Ptr<A>,
        record: Ptr<f64>,
        outputs: Outputs<A>,
    ) -> Result<()> {
        let arguments = arguments![channels, mean, var, record, outputs];
        self.submit(&self.kernels.eval, channels.div_ceil(BLOCK), BLOCK, arguments)
    }

    #[allow(clippy::too_many_arguments)] // the kernel has them
    pub fn apply<E: Element>(
        &self,
        plan: &Plan,
        channels: Channels<E::Acc>,
        x: Ptr<E>,
        residual: Ptr<E>,
        y: Ptr<E>,
        mask: Ptr<u8>,
        act: Act<E::Acc>,
    ) -> Result<()> {
        let geometry = aligned(plan, &[x, residual, y]);
        let kernel = &self.activated.apply;
        macro_rules! with {
            ($act:ident) => {
                self.tiles(kernel, plan, arguments![geometry, channels, x, residual, y, mask, $act])
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
        let kernel = &self.activated.backward_sums;
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
        let kernel = &self.activated.backward_finalize;
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
        let kernel = &self.activated.backward_apply;
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
        self.stream.context().bind_to_thread().map_err(refused("cuCtxSetCurrent"))?;
        let (function, stream) = (kernel.cu_function(), self.stream.cu_stream());
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
        kernels: &ResidentKernels,
        plan: &Resident,
        group: Group,
        outputs: Outputs<E::Acc>,
        x: Ptr<E>,
        residual: Ptr<E>,
        y: Ptr<E>,
        mask: Ptr<u8>,
        act: Act<E::Acc>,
    ) -> Result<()> {
        let (geometry, count, kernel) = (plan.geometry, plan.count, &kernels.forward);
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

    #[allow(clippy::too_many_arguments)] // the kernel has them
    pub fn backward_resident<E: Element>(
        &self,
        kernels: &ResidentKernels,
        plan: &Resident,
        group: Group,
        channels: Channels<E::Acc>,
        gradients: Gradients<E::Acc>,
        tensors: Tensors<E>,
        accumulate: bool,
    ) -> Result<()> {
        let (geometry, count, accumulate) = (plan.geometry, plan.count, u32::from(accumulate));
        let Tensors { x, grad_y, mask, residual, grad_x, grad_residual, .. } = tensors;
        let source = tensors.source.code();
        macro_rules! with {
            ($($act:ident),*) => {
                arguments![
                    geometry, group, channels, gradients, count, x, grad_y, mask, source, $($act,)*
                    accumulate, grad_x, grad_residual
                ]
            };
        }
        match tensors.act {
            Act::Plain(_) => self.groups(&kernels.backward, plan, with!()),
            Act::Any(any) => self.groups(&kernels.backward, plan, with!(residual, any)),
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
        self.submit(self.kernels.merge_stats()?, channels.div_ceil(BLOCK), BLOCK, arguments)
    }
}

impl<E: Element> Tensors<E> {
    fn all(&self) -> [Ptr<E>; 5] {
        [self.x, self.grad_y, self.residual, self.grad_x, self.grad_residual]
    }
    /// Whether each starts at a multiple of 16 bytes.
    pub fn are_aligned(&self) -> bool {
        self.all().iter().all(|tensor| tensor.is_aligned())
    }
}

/// The plan's geometry, for these tensors.
fn aligned<E>(plan: &Plan, tensors: &[Ptr<E>]) -> Geometry {
    let aligned = tensors.iter().all(|tensor| tensor.is_aligned());
    Geometry { aligned: aligned.into(), ..plan.geometry }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::offset_of;

    /// `kernels/layout.cuh` has the same lines, which the kernels' compiler checks.
    #[test]
    fn arguments_lie_as_the_kernels_declare_them() {
        let mut lines = Vec::new();
        macro_rules! layout {
            ($($name:literal: $t:ty { $($field:ident),* })*) => {$(
                lines.push(format!("SIZE({}, {});", $name, size_of::<$t>()));
                $(lines.push(format!(
                    "FIELD({}, {}, {});", $name, stringify!($field), offset_of!($t, $field)
                ));)*
            )*};
        }
        layout! {
            "Geometry": Geometry { vectors, tile, row, width, inner, slices, slice_channels, channels, threads, aligned, reserved }
            "Channels<float>": Channels<f32> { mean, mean_rest, invstd, weight, bias }
            "Merge": Merge { count, tile_count, tiles, channels, inner, lanes, reserved }
            "Running<float>": Update<f32> { factor, var_factor, mean, var, skipped, rules, reserved }
            "Outputs<float>": Outputs<f32> { eps, running, mean, mean_rest, invstd, record, nonfinite, weight, bias, saved_weight, saved_bias }
            "Gradients<float>": Gradients<f32> { total_sums, grad_weight, grad_bias, sums, coefs, nonfinite }
            "Group": Group { blocks, kept, partials, words }
            "AnyActivation<float>": AnyActivation<f32> { activation, slope }
            "AnyActivation<double>": AnyActivation<f64> { activation, slope }
        }
        let text = include_str!("../../../kernels/layout.cuh");
        let declared = |line: &&str| line.starts_with("SIZE(") || line.starts_with("FIELD(");
        assert_eq!(lines, text.lines().filter(declared).collect::<Vec<_>>());
        assert_eq!(size_of::<Ptr<f64>>(), 8);
    }
}
