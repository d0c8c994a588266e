use super::Memory;
use super::host::filled;
use crate::{Error, Plain, Result, library};
use cudarc::driver::sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
use cudarc::driver::sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
use cudarc::driver::{
    CudaContext, CudaSlice, CudaStream, CudaView, CudaViewMut, DevicePtr, DeviceSlice, DriverError,
    SyncOnDrop, result,
};
use std::ops::Range;
use std::sync::Arc;
use std::thread::{self, ThreadId};

/// Memory of a CUDA device, made and copied on one stream: `CudaSlice<T>`, `CudaView<T>`, `CudaViewMut<T>`.
#[derive(Debug, Clone)]
pub struct Device {
    stream: Arc<CudaStream>,
    /// See [`thread_of`].
    thread: Option<ThreadId>,
}

impl Device {
    /// Memory of this stream's device; where the handle means a stream per thread, of this thread's.
    pub fn new(stream: Arc<CudaStream>) -> Self {
        let thread = thread_of(&stream);
        Self { stream, thread }
    }
    /// The stream.
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// Refuses another thread than the one whose stream this is.
    pub(super) fn check_thread(&self) -> Result<()> {
        let Some(expected) = self.thread else { return Ok(()) };
        let got = thread::current().id();
        if got == expected {
            return Ok(());
        }
        let reason = format!(
            "expected the thread of this engine's stream per thread, {expected:?}, got {got:?}: make an engine for \
             each thread"
        );
        Err(Error::invalid("stream", reason))
    }

    /// Refuses copies between the host and the device while a graph is captured.
    fn check_copies(&self) -> Result<()> {
        if !self.is_capturing()? {
            return Ok(());
        }
        let reason = "expected no copy from or to the host: a graph would not do it, or do it with \
                      memory that is no longer there";
        Err(Error::invalid("capture", reason))
    }

    /// Memory that holds anything; whoever reads it writes it before.
    pub(crate) fn uninitialized<T: Plain>(&self, len: usize) -> Result<CudaSlice<T>> {
        const CALL: &str = "cuMemAlloc";
        self.check_thread()?;
        if len.checked_mul(size_of::<T>()).is_none() {
            return Err(Error::OutOfMemory { len, size: size_of::<T>() });
        }
        if self.is_capturing()? {
            let reason = "expected memory that exists, as a step before or `prepare` makes it: \
                          a graph would not keep what is made while it is captured";
            return Err(Error::invalid("capture", reason));
        }
        // SAFETY: every bit pattern is a value of a `Plain` type.
        let slice = unsafe { self.stream.alloc(len.max(1)) }.map_err(refused(CALL))?;
        if len > 0 {
            return Ok(slice);
        }
        // Not every driver allocates nothing.
        // SAFETY: the allocation is live, nobody else has it, and it is long enough for nothing.
        Ok(unsafe { self.stream.upgrade_device_ptr(slice.leak(), 0) })
    }
}

/// The thread whose stream this is, where the handle means another one in every thread: what is made for it here, a
/// workspace above all, is for that thread alone.
pub(crate) fn thread_of(stream: &CudaStream) -> Option<ThreadId> {
    (stream.cu_stream().addr() == PER_THREAD).then(|| thread::current().id())
}
/// `CU_STREAM_PER_THREAD` of cuda.h.
const PER_THREAD: usize = 2;

/// A new stream of a device. Never the default one: with several devices, which context that means
/// depends on the thread.
pub(crate) fn new_stream(ordinal: usize) -> Result<Arc<CudaStream>> {
    library::driver()?;
    let context = CudaContext::new(ordinal).map_err(refused("cuDevicePrimaryCtxRetain"))?;
    context.new_stream().map_err(refused("cuStreamCreate"))
}

/// Has the stream wait for those who have read an argument, too. cudarc keeps one event for all readers
/// of a slice, so that the next one's stands for those before it: a writer, or the slice's end, would
/// wait for the last alone.
///
/// A wait that fails needs no attention, as for the waits of cudarc: the call that follows says so.
pub(crate) fn wait_for_readers(used: &SyncOnDrop<'_>, stream: &CudaStream) {
    let SyncOnDrop::Record(Some((last, _))) = used else { return };
    if stream.context().is_managing_stream_synchronization() {
        let (flags, stream_of) = (CU_EVENT_WAIT_DEFAULT, stream.cu_stream());
        // SAFETY: both live; the call that gave `used` has made the context of both current.
        let waits = unsafe { result::stream::wait_event(stream_of, last.cu_event(), flags) };
        stream.context().record_err(waits);
    }
}

/// What becomes of a driver's refusal of this call.
pub(crate) fn refused(call: &'static str) -> impl Fn(DriverError) -> Error {
    move |error| {
        let text = error.error_string().map(|text| text.to_string_lossy().into_owned());
        let reason = format!("{:?}, {}", error.0, text.unwrap_or_default());
        Error::device(call, error.0 as u32, reason, error)
    }
}

impl Memory for Device {
    type Buf<T: Plain> = CudaSlice<T>;
    type View<'a, T: Plain> = CudaView<'a, T>;
    type ViewMut<'a, T: Plain> = CudaViewMut<'a, T>;

    const BY_ADDRESS: bool = true;

    fn unwritten<T: Plain>(&self, len: usize) -> Result<CudaSlice<T>> {
        self.uninitialized(len)
    }
    fn part<T: Plain>(buf: &CudaSlice<T>, range: Range<usize>) -> Option<CudaView<'_, T>> {
        buf.try_slice(range)
    }
    fn zeros<T: Plain>(&self, len: usize) -> Result<CudaSlice<T>> {
        let mut slice = self.uninitialized(len)?;
        if len > 0 {
            self.stream.memset_zeros(&mut slice).map_err(refused("cuMemsetD8Async"))?;
        }
        Ok(slice)
    }
    fn upload<T: Plain>(&self, host: &[T]) -> Result<CudaSlice<T>> {
        let mut slice = self.uninitialized(host.len())?;
        self.write(host, slice.as_view_mut())?;
        Ok(slice)
    }
    fn write<T: Plain>(&self, host: &[T], mut to: CudaViewMut<'_, T>) -> Result<()> {
        if host.len() != to.len() {
            return Err(Error::Length { what: "host", expected: to.len(), got: host.len() });
        }
        self.check_here("to", &to.as_view())?;
        if host.is_empty() {
            return Ok(());
        }
        self.check_copies()?;
        self.stream.memcpy_htod(host, &mut to).map_err(refused("cuMemcpyHtoDAsync"))
    }
    fn zero<T: Plain>(&self, mut to: CudaViewMut<'_, T>) -> Result<()> {
        self.check_here("to", &to.as_view())?;
        if to.is_empty() {
            return Ok(());
        }
        self.stream.memset_zeros(&mut to).map_err(refused("cuMemsetD8Async"))
    }
    fn copy<T: Plain>(&self, from: CudaView<'_, T>, mut to: CudaViewMut<'_, T>) -> Result<()> {
        if from.len() != to.len() {
            return Err(Error::Length { what: "from", expected: to.len(), got: from.len() });
        }
        self.check_here("from", &from)?;
        self.check_here("to", &to.as_view())?;
        if from.is_empty() {
            return Ok(());
        }
        self.stream.memcpy_dtod(&from, &mut to).map_err(refused("cuMemcpyDtoDAsync"))
    }
    fn download<T: Plain>(&self, view: CudaView<'_, T>) -> Result<Vec<T>> {
        self.check_here("view", &view)?;
        self.check_copies()?;
        let mut host = filled(view.len(), T::default())?;
        if !host.is_empty() {
            wait_for_readers(&view.device_ptr(&self.stream).1, &self.stream);
            let copied = self.stream.memcpy_dtoh(&view, &mut host);
            copied.map_err(refused("cuMemcpyDtoHAsync"))?;
        }
        self.stream.synchronize().map_err(refused("cuStreamSynchronize"))?;
        Ok(host)
    }

    fn view<T: Plain>(buf: &CudaSlice<T>) -> CudaView<'_, T> {
        buf.as_view()
    }
    fn view_mut<T: Plain>(buf: &mut CudaSlice<T>) -> CudaViewMut<'_, T> {
        buf.as_view_mut()
    }
    fn reborrow<'b, T: Plain>(view: &'b CudaView<'_, T>) -> CudaView<'b, T> {
        view.slice(..)
    }
    fn reborrow_mut<'b, T: Plain>(view: &'b mut CudaViewMut<'_, T>) -> CudaViewMut<'b, T> {
        view.slice_mut(..)
    }
    fn as_view<'b, T: Plain>(view: &'b CudaViewMut<'_, T>) -> CudaView<'b, T> {
        view.as_view()
    }
    fn slice<'b, T: Plain>(
        view: &'b CudaView<'_, T>,
        range: Range<usize>,
    ) -> Option<CudaView<'b, T>> {
        view.try_slice(range)
    }
    fn slice_mut<'b, T: Plain>(
        view: &'b mut CudaViewMut<'_, T>,
        range: Range<usize>,
    ) -> Option<CudaViewMut<'b, T>> {
        view.try_slice_mut(range)
    }
    fn split_at_mut<'b, T: Plain>(
        view: &'b mut CudaViewMut<'_, T>,
        mid: usize,
    ) -> Option<(CudaViewMut<'b, T>, CudaViewMut<'b, T>)> {
        view.try_split_at_mut(mid)
    }
    fn len<T: Plain>(view: &CudaView<'_, T>) -> usize {
        view.len()
    }

    fn check_here<T: Plain>(&self, what: &'static str, view: &CudaView<'_, T>) -> Result<()> {
        self.check_thread()?;
        let (here, there) = (self.stream.context(), view.stream().context());
        if Arc::ptr_eq(here, there) || here == there {
            return Ok(());
        }
        let reason = format!(
            "expected memory of this engine's context on device {}, got another's, on device {}",
            here.ordinal(),
            there.ordinal()
        );
        Err(Error::invalid(what, reason))
    }
    fn is_capturing(&self) -> Result<bool> {
        let status = self.stream.capture_status().map_err(refused("cuStreamIsCapturing"))?;
        Ok(status != CU_STREAM_CAPTURE_STATUS_NONE)
    }
}
