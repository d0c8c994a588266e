//! Memory of the host that queued work reads or writes later.

/// Bytes of host memory. Whoever makes one vouches for them until the work that holds it has run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostRange {
    address: usize,
    bytes: usize,
}

impl HostRange {
    /// # Safety
    /// `bytes` bytes at `address` must be valid, for reading or for writing as the work does, until it has run.
    pub unsafe fn new(address: *const u8, bytes: usize) -> Self {
        Self { address: address.expose_provenance(), bytes }
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether it shares a byte with `bytes` bytes at `address`.
    pub fn touches(&self, address: usize, bytes: usize) -> bool {
        self.address < address + bytes && address < self.address + self.bytes
    }

    pub fn read(&self) -> Vec<u8> {
        let mut copy = vec![0; self.bytes];
        if self.bytes > 0 {
            let source = std::ptr::with_exposed_provenance::<u8>(self.address);
            // SAFETY: valid for reads of that many bytes, by the contract of `new`; the copy is fresh memory.
            unsafe { std::ptr::copy_nonoverlapping(source, copy.as_mut_ptr(), self.bytes) };
        }
        copy
    }

    /// Writes `data`, of this length.
    pub fn write(&self, data: &[u8]) {
        assert_eq!(data.len(), self.bytes);
        if self.bytes > 0 {
            let target = std::ptr::with_exposed_provenance_mut::<u8>(self.address);
            // SAFETY: valid for writes of that many bytes, by the contract of `new`; `data` is memory of this crate.
            unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), target, self.bytes) };
        }
    }
}

/// A function of the host and what it is called with.
#[derive(Clone, Debug)]
pub struct Callback {
    function: unsafe extern "C" fn(*mut std::ffi::c_void),
    data: usize,
}

impl Callback {
    /// # Safety
    /// Calling `function` with `data`, once for each time that the work runs and on another thread, must be sound.
    pub unsafe fn new(
        function: unsafe extern "C" fn(*mut std::ffi::c_void),
        data: *mut std::ffi::c_void,
    ) -> Self {
        Self { function, data: data.expose_provenance() }
    }

    pub fn call(&self) {
        // SAFETY: by the contract of `new`.
        unsafe { (self.function)(std::ptr::with_exposed_provenance_mut(self.data)) }
    }
}

/// Page-locked memory of the host: the device may copy from and to it while the host does other things.
#[derive(Debug)]
pub struct Pinned {
    address: usize,
    layout: std::alloc::Layout,
}

impl Pinned {
    /// `bytes` bytes, not 0, zeroed and aligned as a page; `None` where the host has no more.
    pub fn new(bytes: usize) -> Option<Self> {
        let layout = std::alloc::Layout::from_size_align(bytes, 4096).ok()?;
        if bytes == 0 {
            return None;
        }
        // SAFETY: the layout is not empty.
        let pointer = unsafe { std::alloc::alloc_zeroed(layout) };
        (!pointer.is_null()).then(|| Self { address: pointer.expose_provenance(), layout })
    }

    pub fn address(&self) -> usize {
        self.address
    }

    pub fn bytes(&self) -> usize {
        self.layout.size()
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: allocated by `new` with this layout, and freed here only.
        unsafe {
            std::alloc::dealloc(std::ptr::with_exposed_provenance_mut(self.address), self.layout)
        }
    }
}
