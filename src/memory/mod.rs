//! Where numbers live, and how an operation borrows them.
use crate::{Plain, Result};

#[cfg(feature = "cuda")]
#[allow(unsafe_code)]
mod cuda;
mod host;

#[cfg(feature = "cuda")]
pub use cuda::Device;
#[cfg(feature = "cuda")]
pub(crate) use cuda::{check_stream, new_stream, refused, wait_for_readers};
pub use host::Host;
pub(crate) use host::filled;

/// A place where numbers live. Engines on the same memory take the same arguments.
///
/// | | [`Host`] | `Device`, by feature `cuda` |
/// |---|---|---|
/// | [`Buf<T>`](Self::Buf), owned | `Vec<T>` | `CudaSlice<T>` |
/// | [`View<'a, T>`](Self::View), borrowed | `&'a [T]` | `CudaView<'a, T>` |
/// | [`ViewMut<'a, T>`](Self::ViewMut), mutably borrowed | `&'a mut [T]` | `CudaViewMut<'a, T>` |
///
/// With a concrete memory the functions without `self` are never called: write `&x`, `&mut y`,
/// `&x[a..b]`. They serve code that is generic over the memory.
pub trait Memory: Clone + Send + Sync + 'static {
    /// Owned memory.
    type Buf<T: Plain>: Send + Sync + 'static;
    /// Borrowed memory, any offset.
    type View<'a, T: Plain>;
    /// Mutably borrowed memory, any offset.
    type ViewMut<'a, T: Plain>;

    /// New memory, all zero.
    fn zeros<T: Plain>(&self, len: usize) -> Result<Self::Buf<T>>;
    /// New memory with a copy of `host`.
    fn upload<T: Plain>(&self, host: &[T]) -> Result<Self::Buf<T>>;
    /// Copies `host` into memory that exists. The lengths must be equal. Refused while a graph is
    /// captured, which could not read the host's memory when it is replayed.
    fn write<T: Plain>(&self, host: &[T], to: Self::ViewMut<'_, T>) -> Result<()>;
    /// Sets memory that exists to zeros. A graph may be captured meanwhile, and does it then.
    fn zero<T: Plain>(&self, to: Self::ViewMut<'_, T>) -> Result<()>;
    /// A copy on the host; waits for the work that writes it.
    fn download<T: Plain>(&self, view: Self::View<'_, T>) -> Result<Vec<T>>;

    /// Borrows a whole buffer.
    fn view<T: Plain>(buf: &Self::Buf<T>) -> Self::View<'_, T>;
    /// Mutably borrows a whole buffer.
    fn view_mut<T: Plain>(buf: &mut Self::Buf<T>) -> Self::ViewMut<'_, T>;
    /// The same view again, for a shorter time.
    fn reborrow<'b, T: Plain>(view: &'b Self::View<'_, T>) -> Self::View<'b, T>;
    /// The same mutable view again, for a shorter time.
    fn reborrow_mut<'b, T: Plain>(view: &'b mut Self::ViewMut<'_, T>) -> Self::ViewMut<'b, T>;
    /// A mutable view, to read for a while.
    fn as_view<'b, T: Plain>(view: &'b Self::ViewMut<'_, T>) -> Self::View<'b, T>;
    /// Number of elements.
    fn len<T: Plain>(view: &Self::View<'_, T>) -> usize;

    /// Refuses a view of another place, such as another device's memory: its address means nothing
    /// here. `what` names it in the error. All ordinary memory is one place.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid) that names both places.
    fn check_here<T: Plain>(&self, what: &'static str, view: &Self::View<'_, T>) -> Result<()> {
        let _ = (what, view);
        Ok(())
    }
    /// Whether work is recorded for later, into a CUDA graph, instead of being done.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device).
    fn is_capturing(&self) -> Result<bool> {
        Ok(false)
    }
}
