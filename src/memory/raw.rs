//! A device's memory that something else than cudarc has allocated.
use super::{Device, refused};
use crate::{Error, Plain, Result};
use cudarc::driver::sys::CUdeviceptr;
use cudarc::driver::{CudaSlice, CudaView, CudaViewMut};
use std::marker::PhantomData;
use std::mem::ManuallyDrop;

/// A slice of cudarc's over memory that is not its own: it ends without freeing it.
#[derive(Debug)]
struct Lent<T: Plain>(ManuallyDrop<CudaSlice<T>>);

impl<T: Plain> Drop for Lent<T> {
    fn drop(&mut self) {
        // SAFETY: nothing takes it out but this, once.
        let slice = unsafe { ManuallyDrop::take(&mut self.0) };
        // Has the stream wait for who used it on others, and gives up the events, but no memory.
        slice.leak();
    }
}

/// Elements of a device's memory that somebody else owns, to read: what [`Device::view_raw`] makes.
///
/// [`as_view`](Self::as_view) is the argument of an operation. Nothing is freed when this is dropped; the stream of
/// its [`Device`] waits then for other streams on which engines have read it.
#[derive(Debug)]
pub struct RawView<'a, T: Plain> {
    slice: Lent<T>,
    memory: PhantomData<&'a [T]>,
}

impl<T: Plain> RawView<'_, T> {
    /// All of it.
    pub fn as_view(&self) -> CudaView<'_, T> {
        self.slice.0.as_view()
    }
}

/// Elements of a device's memory that somebody else owns, to read and write: what [`Device::view_raw_mut`] makes.
///
/// [`as_view_mut`](Self::as_view_mut) is the argument of an operation. Nothing is freed when this is dropped; the
/// stream of its [`Device`] waits then for other streams on which engines have used it.
#[derive(Debug)]
pub struct RawViewMut<'a, T: Plain> {
    slice: Lent<T>,
    memory: PhantomData<&'a mut [T]>,
}

impl<T: Plain> RawViewMut<'_, T> {
    /// All of it, to read.
    pub fn as_view(&self) -> CudaView<'_, T> {
        self.slice.0.as_view()
    }
    /// All of it, to write.
    pub fn as_view_mut(&mut self) -> CudaViewMut<'_, T> {
        self.slice.0.as_view_mut()
    }
}

impl Device {
    /// Views `len` elements from `address` on, which another library has allocated: `torch`'s `data_ptr()`, a
    /// DLPack tensor's data, memory of `cuMemAlloc`. Nothing is copied, and the memory stays its owner's. What cudarc
    /// has allocated needs none of this: its `CudaSlice`s are the library's own memory; and ordinary memory is a
    /// `&[T]`, by [`std::slice::from_raw_parts`] where there is an address alone.
    ///
    /// The view is ordered as a slice that was allocated on this device's stream: an engine on another stream
    /// waits for those that wrote it, as long as they had it by this view, and cudarc's event tracking is on where
    /// the view is made (it costs two events; `CudaContext::disable_event_tracking` switches it off). The owner's own
    /// work is not known here: see below.
    ///
    /// # Safety
    /// As long as the view lives, and until all work that was queued with it is done:
    ///
    /// - from `address` on there are `len` values of `T` in the memory of this device's context, and they stay;
    /// - nobody writes them: not the host, no other stream, and no mutable view, that of another argument among them;
    /// - work on other streams that has written them has been waited for by this device's stream
    ///   (`stream.wait`, `stream.join`, `cuStreamWaitEvent`) before an operation is given the view, and who writes or
    ///   frees them afterwards waits for this stream.
    ///
    /// # Errors
    /// [`Error::Invalid`] where there are elements at address 0, at one that is no multiple of `T`'s size, or beyond
    /// the last address; where another thread has made the device of a stream per thread. [`Error::Device`].
    ///
    /// ```no_run
    /// # use batchnorm::{Cuda, Device, Engine, ForwardTrain, Shape};
    /// # fn main() -> batchnorm::Result<()> {
    /// # let (x_address, y_address, stream) = (0u64, 0u64, Cuda::new(0)?.stream().clone());
    /// let engine = Cuda::on_stream(stream)?; // that on which the other library works
    /// let shape = Shape::new(&[8, 64, 14, 14], 1)?;
    /// // SAFETY: the other library keeps both tensors, apart, and writes them on the same stream alone.
    /// let (x, mut y) = unsafe {
    ///     let on = engine.memory();
    ///     (on.view_raw::<f32>(x_address, shape.len())?, on.view_raw_mut(y_address, shape.len())?)
    /// };
    /// let args = ForwardTrain::<Device, f32>::new(x.as_view(), y.as_view_mut());
    /// engine.forward_train(&shape, args)?;
    /// # Ok(())
    /// # }
    /// ```
    pub unsafe fn view_raw<'a, T: Plain>(
        &self,
        address: CUdeviceptr,
        len: usize,
    ) -> Result<RawView<'a, T>> {
        // SAFETY: that of the caller.
        let slice = unsafe { self.lent(address, len) }?;
        Ok(RawView { slice, memory: PhantomData })
    }

    /// Views `len` elements from `address` on, to write: as [`view_raw`](Self::view_raw).
    ///
    /// # Safety
    /// As there, and as long as the view lives, and until all work that was queued with it is done, nobody reads or
    /// writes them but by this view: x and y in one place are two views of it, which they must not be, but one of an
    /// operation in place ([`ForwardEval::in_place`](crate::ForwardEval::in_place),
    /// [`Backward::in_place`](crate::Backward::in_place)).
    ///
    /// # Errors
    /// As there.
    pub unsafe fn view_raw_mut<'a, T: Plain>(
        &self,
        address: CUdeviceptr,
        len: usize,
    ) -> Result<RawViewMut<'a, T>> {
        // SAFETY: that of the caller.
        let slice = unsafe { self.lent(address, len) }?;
        Ok(RawViewMut { slice, memory: PhantomData })
    }

    /// # Safety
    /// That of [`view_raw`](Self::view_raw), and of a mutable view where one is made of it.
    unsafe fn lent<T: Plain>(&self, address: CUdeviceptr, len: usize) -> Result<Lent<T>> {
        self.check_thread()?;
        check_address::<T>(address, len)?;
        let context = self.stream().context();
        if context.is_event_tracking() {
            // That of the slice would panic where the driver makes none.
            context.new_event(None).map_err(refused("cuEventCreate"))?;
        }
        // SAFETY: the caller has the memory, of `T`s.
        let slice = unsafe { self.stream().upgrade_device_ptr(address, len) };
        Ok(Lent(ManuallyDrop::new(slice)))
    }
}

/// Refuses elements that cannot be there.
fn check_address<T>(address: CUdeviceptr, len: usize) -> Result<()> {
    let (size, align) = (size_of::<T>() as u64, align_of::<T>() as u64);
    let expected = if len > 0 && address == 0 {
        "an address of the device".to_string()
    } else if !address.is_multiple_of(align) {
        format!("a multiple of {align}")
    } else if (len as u64).checked_mul(size).and_then(|bytes| address.checked_add(bytes)).is_none()
    {
        "one behind which they end".to_string()
    } else {
        return Ok(());
    };
    let reason =
        format!("expected {expected}, got {address:#x} for {len} elements of {size} bytes");
    Err(Error::invalid("address", reason))
}
