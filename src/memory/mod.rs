//! Where numbers live, and how an operation borrows them.
use crate::{Plain, Result};
use std::ops::Range;

#[cfg(feature = "cuda")]
#[allow(unsafe_code)]
mod cuda;
mod host;
#[cfg(feature = "cuda")]
#[allow(unsafe_code)]
mod raw;
#[allow(unsafe_code)]
mod unwritten;

#[cfg(feature = "cuda")]
pub use cuda::Device;
#[cfg(feature = "cuda")]
pub(crate) use cuda::{new_stream, refused, thread_of, wait_for_readers};
pub use host::Host;
pub(crate) use host::filled;
#[cfg(feature = "cuda")]
pub use raw::{RawView, RawViewMut};

/// A place where numbers live. Engines on the same memory take the same arguments.
///
/// | | [`Host`] | `Device`, by feature `cuda` |
/// |---|---|---|
/// | [`Buf<T>`](Self::Buf), owned | `Vec<T>` | `CudaSlice<T>` |
/// | [`View<'a, T>`](Self::View), borrowed | `&'a [T]` | `CudaView<'a, T>` |
/// | [`ViewMut<'a, T>`](Self::ViewMut), mutably borrowed | `&'a mut [T]` | `CudaViewMut<'a, T>` |
/// | of another library, by its address | [`std::slice::from_raw_parts`] | `Device::view_raw` |
///
/// With a concrete memory the functions without `self` are never called: write `&x`, `&mut y`,
/// `&x[a..b]`. They serve code that is generic over the memory.
///
/// # Generic code
/// To the compiler a `M::View<'long, T>` is no `M::View<'short, T>`, as `&'long [T]` is a `&'short [T]`: the
/// lifetime of a view is changed by [`reborrow`](Self::reborrow), not by itself. So that little of that is
/// written:
///
/// - take views by one lifetime, `'a`, where they go into one struct of arguments;
/// - keep buffers, and make a view where it is used ([`view`](Self::view), [`view_mut`](Self::view_mut));
/// - to make a call twice, reborrow its arguments as a whole, as
///   [`ForwardTrain::reborrow`](crate::ForwardTrain::reborrow) does, and not each of them.
///
/// ```
/// use batchnorm::{Engine, ForwardTrain, Memory, Result, Shape};
///
/// /// Normalizes by the first engine, or by the second where the first fails.
/// fn either<'a, M: Memory, A: Engine<Memory = M>, B: Engine<Memory = M>>(
///     (first, second): (&A, &B),
///     shape: &Shape,
///     x: M::View<'a, f32>,
///     weight: &'a M::Buf<f32>,
///     y: M::ViewMut<'a, f32>,
/// ) -> Result<()> {
///     let mut args = ForwardTrain::<M, f32>::new(x, y).weight(M::view(weight));
///     first.forward_train(shape, args.reborrow()).or_else(|_| second.forward_train(shape, args))
/// }
/// # use batchnorm::{Cpu, Reference};
/// # let (shape, x, mut y) = (Shape::new(&[2, 1], 1)?, [1.0, 3.0], [0.0; 2]);
/// # either((&Cpu::default(), &Reference), &shape, &x, &vec![2.0], &mut y)?;
/// # assert!((y[1] - 2.0).abs() < 1e-4);
/// # Ok::<(), batchnorm::Error>(())
/// ```
///
/// The trait is sealed: engines know what their memory is.
pub trait Memory: sealed::Sealed + Clone + Send + Sync + 'static {
    /// Owned memory.
    type Buf<T: Plain>: Send + Sync + 'static;
    /// Borrowed memory, any offset.
    type View<'a, T: Plain>;
    /// Mutably borrowed memory, any offset.
    type ViewMut<'a, T: Plain>;

    /// New memory, all zero.
    fn zeros<T: Plain>(&self, len: usize) -> Result<Self::Buf<T>>;
    /// New memory for what writes all of it before anything reads it: it holds anything.
    fn unwritten<T: Plain>(&self, len: usize) -> Result<Self::Buf<T>>;
    /// Borrows a part of a buffer; none where it has no such elements.
    #[doc(hidden)]
    fn part<T: Plain>(buf: &Self::Buf<T>, range: Range<usize>) -> Option<Self::View<'_, T>>;
    /// Whether operations reach memory by addresses alone, so that one allocation may hold values of several
    /// types.
    #[doc(hidden)]
    const BY_ADDRESS: bool;
    /// New memory with a copy of `host`.
    fn upload<T: Plain>(&self, host: &[T]) -> Result<Self::Buf<T>>;
    /// Copies `host` into memory that exists. The lengths must be equal. Refused while a graph is
    /// captured, which could not read the host's memory when it is replayed.
    fn write<T: Plain>(&self, host: &[T], to: Self::ViewMut<'_, T>) -> Result<()>;
    /// Sets memory that exists to zeros. A graph may be captured meanwhile, and does it then.
    fn zero<T: Plain>(&self, to: Self::ViewMut<'_, T>) -> Result<()>;
    /// Copies memory that exists, of the same length, in the same place. A graph may be captured meanwhile, and does
    /// it then.
    fn copy<T: Plain>(&self, from: Self::View<'_, T>, to: Self::ViewMut<'_, T>) -> Result<()>;
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
    /// A part of a view; none where it has no such elements.
    fn slice<'b, T: Plain>(
        view: &'b Self::View<'_, T>,
        range: Range<usize>,
    ) -> Option<Self::View<'b, T>>;
    /// A part of a mutable view; none where it has no such elements.
    fn slice_mut<'b, T: Plain>(
        view: &'b mut Self::ViewMut<'_, T>,
        range: Range<usize>,
    ) -> Option<Self::ViewMut<'b, T>>;
    /// The elements before `mid` and those from there on; none where it has fewer.
    #[allow(clippy::type_complexity)] // two views
    fn split_at_mut<'b, T: Plain>(
        view: &'b mut Self::ViewMut<'_, T>,
        mid: usize,
    ) -> Option<(Self::ViewMut<'b, T>, Self::ViewMut<'b, T>)>;
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
    /// The first byte above 1, and its index, where the host can look at once.
    #[doc(hidden)]
    fn first_above_1(_: &Self::View<'_, u8>) -> Option<(usize, u8)> {
        None
    }
    /// Whether work is recorded for later, into a CUDA graph, instead of being done.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device).
    fn is_capturing(&self) -> Result<bool> {
        Ok(false)
    }
}

mod sealed {
    /// The places that there are.
    pub trait Sealed {}
    impl Sealed for super::Host {}
    #[cfg(feature = "cuda")]
    impl Sealed for super::Device {}
}
