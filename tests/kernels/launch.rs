//! Devices, memory and launches: parameters as kernels/README.md lists them.
use batchnorm::Shape;
use cudarc::driver::sys::{CUdevice_attribute, CUfunction_attribute};
use cudarc::driver::{
    CudaContext, CudaModule, CudaSlice, CudaStream, DevicePtr, DeviceRepr, LaunchConfig,
    PushKernelArg, ValidAsZeroBits,
};
use cudarc::nvrtc::Ptx;
use softcuda::Exclusive;
use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use crate::ptx::ptx;

/// How a shape is cut.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    /// Elements of a vector.
    pub width: usize,
    /// Channels of a slice.
    pub channels: usize,
    pub threads: usize,
    /// Vectors of a tile.
    pub tile: usize,
    /// Elements between an aligned address and the tensors.
    pub lead: usize,
}

impl Layout {
    /// As many elements as 16 bytes hold.
    pub const VECTOR: usize = 0;

    pub fn of(width: usize, channels: usize, threads: usize, tile: usize) -> Self {
        Self { width, channels, threads, tile, lead: 0 }
    }

    pub fn width_of<E>(&self) -> usize {
        if self.width == Self::VECTOR { 16 / size_of::<E>() } else { self.width }
    }

    /// Vectors of a slice, over the whole batch; none if the shape cannot be cut so.
    pub fn vectors<E>(&self, shape: &Shape) -> Option<usize> {
        let (width, elements) = (self.width_of::<E>(), self.channels * shape.inner());
        let whole = elements.is_multiple_of(width)
            && (shape.channels() * shape.inner()).is_multiple_of(width);
        let fits = self.channels == 1 || self.threads.is_multiple_of((elements / width).max(1));
        (whole && fits).then(|| shape.len() / shape.channels() / shape.inner() * (elements / width))
    }

    pub fn tiles<E>(&self, shape: &Shape) -> usize {
        self.vectors::<E>(shape).unwrap().div_ceil(self.tile)
    }

    pub fn geometry<E>(&self, shape: &Shape) -> Geometry {
        let width = self.width_of::<E>();
        Geometry {
            vectors: self.vectors::<E>(shape).unwrap() as u64,
            tile: self.tile as u64,
            row: (shape.channels() * shape.inner() / width) as u64,
            width: (self.channels * shape.inner() / width) as u64,
            inner: shape.inner() as u64,
            slices: shape.channels().div_ceil(self.channels) as u32,
            slice_channels: self.channels as u32,
            channels: shape.channels() as u32,
            threads: self.threads as u32,
            aligned: u32::from((self.lead * size_of::<E>()).is_multiple_of(16)),
            positions: 1,
        }
    }
}

#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Geometry {
    pub vectors: u64,
    pub tile: u64,
    row: u64,
    pub width: u64,
    inner: u64,
    pub slices: u32,
    pub slice_channels: u32,
    channels: u32,
    pub threads: u32,
    aligned: u32,
    positions: u32,
}

/// Blocks, steps that are kept, groups that begin at once, nanoseconds until others do, and the addresses of partials
/// and words.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Group {
    pub blocks: u32,
    pub kept: u32,
    pub early: u32,
    pub late: u32,
    pub partials: u64,
    pub words: u64,
}

/// `mean`, `mean_rest`, `invstd`, `weight`, `bias`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Channels(pub [u64; 5]);

/// Pointers: `mean`, `var`, `record`, `saved_mean`, `saved_mean_rest`, `saved_invstd`, `saved_weight`,
/// `saved_bias`, `nonfinite`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Given {
    pub eps: f64,
    pub pointers: [u64; 9],
}

#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Merge {
    pub count: u64,
    pub tile_count: u64,
    pub channels: u64,
    pub inner: u64,
    pub together: u32,
    pub positions: u32,
    pub tiles: u32,
    pub lanes: u32,
}

/// Running statistics, and how a batch moves them.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Running {
    pub factor: f64,
    pub var_factor: f64,
    pub mean: u64,
    pub var: u64,
    pub skipped: u64,
    pub rules: u32,
    pub reserved: u32,
}

/// Pointers: `mean`, `mean_rest`, `invstd`, `record`, `nonfinite`, `weight`, `bias`, `saved_weight`,
/// `saved_bias`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Outputs {
    pub eps: f64,
    pub running: Running,
    pub pointers: [u64; 9],
}

/// `total_sums`, `grad_weight`, `grad_bias`, `sums`, `coefs`, `nonfinite`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Gradients(pub [u64; 6]);

/// An activation by its number, and the slope of a leaky ReLU.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct AnyActivation<A> {
    pub activation: u32,
    pub slope: A,
}

/// Rows of a tensor, and what they are divided by.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct LayerNorm {
    pub rows: u64,
    pub features: u64,
    pub eps: f64,
    pub rule: u32,
    pub team: u32,
}

/// `mean`, `mean_rest`, `std`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Rows(pub [u64; 3]);

/// The numbers of an optimizer's step.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct StepOptions {
    pub lr_factor: f64,
    pub weight_decay: f64,
    pub betas: [f64; 2],
    pub eps: f64,
    pub family: u32,
    pub switches: u32,
}

/// The norms that a constraint allows, and the share of the way there; or that values are not negative.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct NormOptions {
    pub norms: [f64; 2],
    pub rate: f64,
    pub non_negative: u32,
    pub reserved: u32,
}

// SAFETY: it has the layout of the kernels' structure; padding is not read.
unsafe impl DeviceRepr for AnyActivation<f32> {}
// SAFETY: as above.
unsafe impl DeviceRepr for AnyActivation<f64> {}
// SAFETY: they have the layout of the kernels' structures, and no padding.
unsafe impl DeviceRepr for Geometry {}
// SAFETY: as above.
unsafe impl DeviceRepr for Group {}
// SAFETY: as above.
unsafe impl DeviceRepr for Channels {}
// SAFETY: as above.
unsafe impl DeviceRepr for Given {}
// SAFETY: as above.
unsafe impl DeviceRepr for Merge {}
// SAFETY: as above.
unsafe impl DeviceRepr for Outputs {}
// SAFETY: as above.
unsafe impl DeviceRepr for Gradients {}
// SAFETY: as above.
unsafe impl DeviceRepr for LayerNorm {}
// SAFETY: as above.
unsafe impl DeviceRepr for Rows {}
// SAFETY: as above.
unsafe impl DeviceRepr for StepOptions {}
// SAFETY: as above.
unsafe impl DeviceRepr for NormOptions {}

/// One parameter.
#[derive(Debug, Clone, Copy)]
pub enum Arg {
    Geometry(Geometry),
    Group(Group),
    Channels(Channels),
    Given(Given),
    Merge(Merge),
    Outputs(Outputs),
    Gradients(Gradients),
    LayerNorm(LayerNorm),
    Rows(Rows),
    Step(StepOptions),
    Norms(NormOptions),
    Any32(AnyActivation<f32>),
    Any64(AnyActivation<f64>),
    Pointer(u64),
    U32(u32),
    U64(u64),
    F64(f64),
}

/// How a kernel is launched.
#[derive(Debug, Clone, Copy)]
pub struct Grid {
    pub blocks: usize,
    pub threads: u32,
    /// Bytes of dynamic shared memory.
    pub shared: u32,
    pub cooperative: bool,
}

impl Grid {
    pub fn of(blocks: usize, threads: u32) -> Self {
        Self { blocks, threads, shared: 0, cooperative: false }
    }
}

/// Elements in device memory, some way behind an aligned address.
pub struct Mem<T> {
    slice: CudaSlice<T>,
    lead: usize,
    pointer: u64,
}

impl<T> Mem<T> {
    pub fn ptr(&self) -> u64 {
        self.pointer
    }
}

/// A software device that no other test has.
pub struct Device {
    stream: Arc<CudaStream>,
    modules: RefCell<HashMap<String, Arc<CudaModule>>>,
    exclusive: Exclusive,
}

impl Device {
    pub fn new(profile: &str) -> Self {
        let softcuda = softcuda::install().unwrap();
        let exclusive = softcuda.exclusive(softcuda::ordinal(profile).unwrap());
        let stream = CudaContext::new(exclusive.ordinal()).unwrap().default_stream();
        Self { stream, modules: RefCell::default(), exclusive }
    }

    /// Another order of blocks and warps.
    pub fn set_seed(&self, seed: u64) {
        self.exclusive.set_seed(seed);
    }

    pub fn upload<T: DeviceRepr + ValidAsZeroBits + Clone>(
        &self,
        values: &[T],
        lead: usize,
    ) -> Mem<T> {
        let mut slice = self.stream.alloc_zeros::<T>(lead + values.len().max(1)).unwrap();
        if !values.is_empty() {
            let mut rest = slice.slice_mut(lead..lead + values.len());
            self.stream.memcpy_htod(values, &mut rest).unwrap();
        }
        self.mem(slice, lead)
    }

    /// Memory that nothing has been written to.
    pub fn unwritten<T: DeviceRepr>(&self, len: usize, lead: usize) -> Mem<T> {
        // SAFETY: the device tells what is read before it is written.
        let slice = unsafe { self.stream.alloc::<T>(lead + len) }.unwrap();
        self.mem(slice, lead)
    }

    fn mem<T>(&self, slice: CudaSlice<T>, lead: usize) -> Mem<T> {
        let pointer = slice.device_ptr(&self.stream).0 + (lead * size_of::<T>()) as u64;
        Mem { slice, lead, pointer }
    }

    pub fn download<T: DeviceRepr + Clone + Default>(&self, mem: &Mem<T>) -> Vec<T> {
        self.stream.clone_dtoh(&mem.slice.slice(mem.lead..)).unwrap()
    }

    /// Bytes of shared memory that a block may have.
    pub fn most_shared(&self) -> usize {
        let most = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
        self.stream.context().attribute(most).unwrap() as usize
    }

    /// Launches `kernel` of the module of this family and type of elements.
    pub fn launch(&self, module: &str, kernel: &str, grid: Grid, args: &[Arg]) {
        let mut modules = self.modules.borrow_mut();
        let module = modules.entry(module.to_owned()).or_insert_with(|| {
            let (major, minor) = self.stream.context().compute_capability().unwrap();
            let text = ptx(module, 10 * major + minor);
            self.stream.context().load_module(Ptx::from_src(text)).unwrap()
        });
        let function = module.load_function(kernel).unwrap();
        let most = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        function.set_attribute(most, grid.shared as i32).unwrap();
        let mut builder = self.stream.launch_builder(&function);
        for arg in args {
            match arg {
                Arg::Geometry(v) => builder.arg(v),
                Arg::Group(v) => builder.arg(v),
                Arg::Channels(v) => builder.arg(v),
                Arg::Given(v) => builder.arg(v),
                Arg::Merge(v) => builder.arg(v),
                Arg::Outputs(v) => builder.arg(v),
                Arg::Gradients(v) => builder.arg(v),
                Arg::LayerNorm(v) => builder.arg(v),
                Arg::Rows(v) => builder.arg(v),
                Arg::Step(v) => builder.arg(v),
                Arg::Norms(v) => builder.arg(v),
                Arg::Any32(v) => builder.arg(v),
                Arg::Any64(v) => builder.arg(v),
                Arg::Pointer(v) => builder.arg(v),
                Arg::U32(v) => builder.arg(v),
                Arg::U64(v) => builder.arg(v),
                Arg::F64(v) => builder.arg(v),
            };
        }
        let shape = LaunchConfig {
            grid_dim: (grid.blocks as u32, 1, 1),
            block_dim: (grid.threads, 1, 1),
            shared_mem_bytes: grid.shared,
        };
        // SAFETY: the parameters are those of kernels/README.md; the device tells of any other.
        let launched = unsafe {
            if grid.cooperative { builder.launch_cooperative(shape) } else { builder.launch(shape) }
        };
        launched.unwrap();
    }

    /// Bytes of global memory that the launches since the last call loaded and stored, up to the
    /// last kernel of the forward, and from there on.
    pub fn traffic(&self) -> [u64; 2] {
        self.stream.synchronize().unwrap();
        let launches = self.exclusive.launches();
        self.exclusive.reset();
        let backward = launches.iter().position(|l| l.kernel.starts_with("backward")).unwrap();
        let bytes = |from: &[softcuda::LaunchReport]| {
            from.iter().map(|l| l.counts.global_loads.bytes + l.counts.global_stores.bytes).sum()
        };
        [bytes(&launches[..backward]), bytes(&launches[backward..])]
    }

    /// Ends the context: no fault, and nothing refused.
    pub fn finish(self, what: &str) {
        self.stream.synchronize().unwrap();
        assert_eq!(self.exclusive.faults(), [""; 0], "{what}");
        assert_eq!(self.exclusive.refusals(), [""; 0], "{what}");
    }
}
