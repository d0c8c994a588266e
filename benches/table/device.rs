//! Times on a CUDA device: between two events on the engine's stream, with nothing of the operation
//! in the cache.
use super::Case;
use super::floor::Floor;
use super::job::Timed;
use anyhow::Result;
use batchnorm::cudarc::driver::CudaSlice;
use batchnorm::cudarc::driver::sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE;
use batchnorm::cudarc::driver::sys::CUevent_flags::CU_EVENT_DEFAULT;
use batchnorm::{Cuda, Engine, Memory};

impl Timed for Cuda {
    fn describe(&self) -> String {
        let name = self.stream().context().name();
        format!("cuda {}", name.unwrap_or_else(|error| error.to_string()))
    }

    fn explain(&self, case: &Case) -> Result<String> {
        Ok(Cuda::explain(self, &case.shape()?, case.request())?)
    }

    fn time(&self, operation: impl FnOnce() -> Result<()>) -> Result<f64> {
        let (stream, context) = (self.stream(), self.stream().context());
        let cache = context.attribute(CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?;
        // Written, it takes the place of what the last run has left there.
        let _others = stream.alloc_zeros::<u8>(2 * usize::try_from(cache)?.max(1 << 20))?;
        let start = stream.record_event(Some(CU_EVENT_DEFAULT))?;
        operation()?;
        let end = stream.record_event(Some(CU_EVENT_DEFAULT))?;
        Ok(f64::from(start.elapsed_ms(&end)?) * 1e-3)
    }

    fn floor(&self, case: &Case) -> Result<Box<dyn Floor>> {
        let half = case.least_traffic() / 2;
        let (from, to) = (self.memory().zeros(half)?, self.memory().zeros(half)?);
        Ok(Box::new(DeviceCopy { engine: self.clone(), from, to }))
    }
}

/// A copy that reads and writes as many bytes together as an operation must.
struct DeviceCopy {
    engine: Cuda,
    from: CudaSlice<u8>,
    to: CudaSlice<u8>,
}

impl Floor for DeviceCopy {
    fn time(&mut self) -> Result<f64> {
        let stream = self.engine.stream();
        self.engine.time(|| Ok(stream.memcpy_dtod(&self.from, &mut self.to)?))
    }
    fn what(&self) -> &'static str {
        "copy on the device"
    }
}
