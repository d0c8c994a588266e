//! Addresses on the device, for as long as a step is being launched.
use super::saved::{Buffers, ByChannel};
use crate::memory::wait_for_readers;
use crate::{Device, Plain, Real};
use cudarc::driver::{CudaStream, CudaView, CudaViewMut, SyncOnDrop};
use std::marker::PhantomData;

/// Where some `T`s lie on the device; null where an argument is absent.
#[repr(transparent)]
#[derive(Debug)]
pub(super) struct Ptr<T> {
    address: u64,
    marker: PhantomData<*mut T>,
}

impl<T> Ptr<T> {
    pub const NULL: Self = Self { address: 0, marker: PhantomData };

    /// An address that the workspace or a view has.
    pub fn at(address: u64) -> Self {
        Self { address, marker: PhantomData }
    }
    pub fn address(self) -> u64 {
        self.address
    }
    pub fn is_null(self) -> bool {
        self.address == 0
    }
    /// Whether 16 bytes may be read at once; there is nothing to read at null.
    pub fn is_aligned(self) -> bool {
        self.address.is_multiple_of(16)
    }
}

impl<T> Clone for Ptr<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Ptr<T> {}

/// Makes a stream wait for whoever used the arguments before, on whatever stream, and, once it is
/// dropped, others for this stream: what cudarc does for arguments of its own launches.
///
/// A wait that fails needs no attention: its context or capture is lost then, and the launch that
/// follows says so.
pub(super) struct Pointers<'a> {
    stream: &'a CudaStream,
    uses: Vec<SyncOnDrop<'a>>,
}

impl<'a> Pointers<'a> {
    pub fn new(stream: &'a CudaStream) -> Self {
        Self { stream, uses: Vec::with_capacity(16) }
    }
    #[cfg(feature = "nccl")]
    pub fn stream(&self) -> &'a CudaStream {
        self.stream
    }
    pub fn read<T: Plain>(&mut self, view: CudaView<'a, T>) -> Ptr<T> {
        let (address, used) = view.view_ptr(self.stream);
        wait_for_readers(&used, self.stream);
        self.uses.push(used);
        Ptr::at(address)
    }
    pub fn read_some<T: Plain>(&mut self, view: Option<CudaView<'a, T>>) -> Ptr<T> {
        view.map_or(Ptr::NULL, |view| self.read(view))
    }
    pub fn write<T: Plain>(&mut self, view: CudaViewMut<'a, T>) -> Ptr<T> {
        let (address, used) = view.view_ptr_mut(self.stream);
        self.uses.push(used);
        Ptr::at(address)
    }
    pub fn write_some<T: Plain>(&mut self, view: Option<CudaViewMut<'a, T>>) -> Ptr<T> {
        view.map_or(Ptr::NULL, |view| self.write(view))
    }
}

/// Where a [`Saved`](crate::Saved) lies.
pub(super) struct SavedAt<P> {
    pub by_channel: ByChannel<Ptr<P>>,
    /// Null without any.
    pub reserve: Ptr<u8>,
}

impl<P: Real> SavedAt<P> {
    fn new(start: Ptr<P>, offsets: (ByChannel<usize>, usize), reserve_len: usize) -> Self {
        let (by_channel, reserve) = offsets;
        let reserve = start.address() + reserve as u64;
        Self {
            by_channel: by_channel.map(|offset| Ptr::at(start.address() + offset as u64)),
            reserve: if reserve_len > 0 { Ptr::at(reserve) } else { Ptr::NULL },
        }
    }
}

impl<'a> Pointers<'a> {
    /// All that a forward has saved: one argument.
    pub fn read_saved<P: Real>(&mut self, saved: &'a Buffers<Device, P>) -> SavedAt<P> {
        let (offsets, len) = (saved.offsets(), saved.reserve_len());
        SavedAt::new(self.read(saved.all()), offsets, len)
    }
    /// All that a forward saves.
    pub fn write_saved<P: Real>(&mut self, saved: &'a mut Buffers<Device, P>) -> SavedAt<P> {
        let (offsets, len) = (saved.offsets(), saved.reserve_len());
        SavedAt::new(self.write(saved.all_mut()), offsets, len)
    }
}

/// Asserts that structs which kernels take lie in memory as the lines of a source of the kernels say, which
/// their compiler checks.
#[cfg(test)]
macro_rules! assert_layout {
    ($text:expr; $($name:literal: $t:ty { $($field:ident),* })*) => {{
        let mut lines = Vec::new();
        $(
            lines.push(format!("SIZE({}, {});", $name, size_of::<$t>()));
            $(lines.push(format!(
                "FIELD({}, {}, {});", $name, stringify!($field), std::mem::offset_of!($t, $field)
            ));)*
        )*
        let declared = |line: &&str| line.starts_with("SIZE(") || line.starts_with("FIELD(");
        assert_eq!(lines, $text.lines().filter(declared).collect::<Vec<_>>());
    }};
}
#[cfg(test)]
pub(super) use assert_layout;
