//! Times on a CUDA device: between two events on the engine's stream, with nothing of the operation
//! in the cache.
use super::Case;
use super::floor::Floor;
use super::job::Timed;
use anyhow::Result;
#[cfg(feature = "cudnn")]
use batchnorm::Cudnn;
use batchnorm::cudarc::driver::sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE;
use batchnorm::cudarc::driver::sys::CUevent_flags::CU_EVENT_DEFAULT;
use batchnorm::cudarc::driver::{CudaSlice, CudaStream};
use batchnorm::{Cuda, Engine, Memory};
use std::sync::Arc;

impl Timed for Cuda {
    fn describe(&self) -> String {
        format!("cuda {}", device(self.stream()))
    }
    fn threads(&self) -> usize {
        0
    }
    fn explain(&self, case: &Case) -> Result<String> {
        Ok(Cuda::explain(self, &case.shape()?, case.request())?)
    }
    fn time(&self, operation: impl FnOnce() -> Result<()>) -> Result<f64> {
        time(self.stream(), operation)
    }
    fn floor(&self, case: &Case) -> Result<Box<dyn Floor>> {
        Ok(Box::new(DeviceCopy::new(self, self.stream(), case)?))
    }
}

/// NVIDIA's library by our calls: what it refuses is an error of the case.
#[cfg(feature = "cudnn")]
impl Timed for Cudnn {
    fn describe(&self) -> String {
        format!("cudnn {} {}", self.version(), device(self.stream()))
    }
    fn threads(&self) -> usize {
        0
    }
    fn explain(&self, case: &Case) -> Result<String> {
        Ok(Cudnn::explain(self, &case.shape()?, case.request())?)
    }
    fn time(&self, operation: impl FnOnce() -> Result<()>) -> Result<f64> {
        time(self.stream(), operation)
    }
    fn floor(&self, case: &Case) -> Result<Box<dyn Floor>> {
        Ok(Box::new(DeviceCopy::new(self, self.stream(), case)?))
    }
}

fn device(stream: &CudaStream) -> String {
    stream.context().name().unwrap_or_else(|error| error.to_string())
}

fn time(stream: &Arc<CudaStream>, operation: impl FnOnce() -> Result<()>) -> Result<f64> {
    let cache = stream.context().attribute(CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?;
    // Written, it takes the place of what the last run has left there.
    let _others = stream.alloc_zeros::<u8>(2 * usize::try_from(cache)?.max(1 << 20))?;
    let start = stream.record_event(Some(CU_EVENT_DEFAULT))?;
    operation()?;
    let end = stream.record_event(Some(CU_EVENT_DEFAULT))?;
    Ok(f64::from(start.elapsed_ms(&end)?) * 1e-3)
}

/// A copy that reads and writes as many bytes together as an operation must.
struct DeviceCopy {
    stream: Arc<CudaStream>,
    from: CudaSlice<u8>,
    to: CudaSlice<u8>,
}

impl DeviceCopy {
    fn new<G>(engine: &G, stream: &Arc<CudaStream>, case: &Case) -> Result<Self>
    where
        G: Engine<Memory = batchnorm::Device>,
    {
        let (memory, half) = (engine.memory(), case.least_traffic() / 2);
        Ok(Self { stream: stream.clone(), from: memory.zeros(half)?, to: memory.zeros(half)? })
    }
}

impl Floor for DeviceCopy {
    fn time(&mut self) -> Result<f64> {
        let Self { stream, from, to } = self;
        time(stream, || Ok(stream.memcpy_dtod(from, to)?))
    }
    fn what(&self) -> &'static str {
        "copy on the device"
    }
}
