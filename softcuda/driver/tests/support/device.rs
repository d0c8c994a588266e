//! A device, and the kernels that suit it.
use super::element::Word;
use cudarc::driver::{
    CudaContext, CudaFunction, CudaModule, CudaSlice, CudaStream, DriverError, LaunchConfig,
};
use cudarc::nvrtc::Ptx;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

/// A device.
pub struct Device {
    pub context: Arc<CudaContext>,
    pub stream: Arc<CudaStream>,
    /// Its compute capability: 90 for 9.0.
    pub capability: i32,
    modules: Mutex<HashMap<String, Arc<CudaModule>>>,
}

impl Device {
    pub fn new(ordinal: usize) -> Result<Self, DriverError> {
        let context = CudaContext::new(ordinal)?;
        let (major, minor) = context.compute_capability()?;
        let stream = context.default_stream();
        Ok(Self { context, stream, capability: 10 * major + minor, modules: Mutex::default() })
    }

    /// A kernel of `softcuda/kernels/SOURCE.cu`, of the highest target that this device takes.
    pub fn kernel(&self, source: &str, name: &str) -> Result<CudaFunction, DriverError> {
        let mut modules = self.modules.lock().unwrap();
        if !modules.contains_key(source) {
            let ptx = softcuda_kernels::ptx(source, self.capability.cast_unsigned());
            modules.insert(source.to_owned(), self.context.load_module(Ptx::from_src(ptx))?);
        }
        modules[source].load_function(name)
    }

    pub fn upload<T: Word>(&self, values: &[T]) -> Result<CudaSlice<T>, DriverError> {
        self.stream.clone_htod(values)
    }

    pub fn download<T: Word>(&self, values: &CudaSlice<T>) -> Result<Vec<T>, DriverError> {
        self.stream.clone_dtoh(values)
    }

    pub fn zeros<T: Word>(&self, len: usize) -> Result<CudaSlice<T>, DriverError> {
        self.stream.alloc_zeros(len)
    }

    /// Memory that nothing has been written to: a kernel that leaves a part of it so is found out when it is read.
    pub fn unwritten<T: Word>(&self, len: usize) -> Result<CudaSlice<T>, DriverError> {
        // SAFETY: any bits are a value of these types.
        unsafe { self.stream.alloc(len) }
    }
}

/// Blocks of `threads` in a row.
pub fn blocks(blocks: usize, threads: usize) -> LaunchConfig {
    LaunchConfig {
        grid_dim: (blocks as u32, 1, 1),
        block_dim: (threads as u32, 1, 1),
        shared_mem_bytes: 0,
    }
}

/// How many devices there are; `None` where there is no driver to ask. cudarc panics then, so this looks first.
pub fn count() -> Option<usize> {
    let names = ["libcuda.so", "libcuda.so.1"];
    // SAFETY: loading a CUDA driver runs nothing but its own initialisation.
    let driver = names.iter().find_map(|name| unsafe { libloading::Library::new(*name) }.ok())?;
    let count = CudaContext::device_count().ok()?;
    drop(driver);
    usize::try_from(count).ok()
}
