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
use batchnorm::{Cuda, Engine, Memory, Shape, Stats};
use std::sync::{Arc, Mutex, PoisonError};

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
    Sweep::of(stream)?.run()?;
    let start = stream.record_event(Some(CU_EVENT_DEFAULT))?;
    operation()?;
    let end = stream.record_event(Some(CU_EVENT_DEFAULT))?;
    Ok(f64::from(start.elapsed_ms(&end)?) * 1e-3)
}

/// Takes the place of what the last run has left in the cache, by reading: what is written would be on
/// its way to memory while the next run is timed.
#[derive(Clone)]
struct Sweep {
    reader: Cuda,
    shape: Shape,
    read: Arc<CudaSlice<f32>>,
    record: Arc<Mutex<CudaSlice<f64>>>,
}

impl Sweep {
    /// That of the stream; the last one is kept.
    fn of(stream: &Arc<CudaStream>) -> Result<Self> {
        static LAST: Mutex<Option<Sweep>> = Mutex::new(None);
        let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sweep) = last.as_ref().filter(|last| last.reader.stream() == stream) {
            return Ok(sweep.clone());
        }
        let context = stream.context();
        // The tests' software device has no cache, and is slow to read.
        let twice = match context.name()?.starts_with("softcuda") {
            true => 1 << 10,
            false => 2 * context.attribute(CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?.max(1 << 20),
        };
        let rows = usize::try_from(twice)?.div_ceil(4 * Self::CHANNELS);
        let reader = Cuda::on_stream(stream.clone())?;
        let shape = Shape::new(&[rows, Self::CHANNELS], 1)?;
        let read = Arc::new(reader.memory().zeros(shape.len())?);
        let record = Arc::new(Mutex::new(reader.memory().zeros(3 * Self::CHANNELS + 1)?));
        Ok(last.insert(Self { reader, shape, read, record }).clone())
    }
    const CHANNELS: usize = 256;

    fn run(&self) -> Result<()> {
        let mut record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        let args = Stats::<batchnorm::Device, f32>::new(self.read.as_view(), record.as_view_mut());
        Ok(self.reader.stats(&self.shape, args)?)
    }
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
