//! Memory that starts at a cache line, as PyTorch's, JAX's and oneDNN's own does: a `Vec` of the system's allocator lies 16
//! bytes behind one where it is large, and vectors that straddle two lines take up to a sixth longer in cache.
use std::alloc::{GlobalAlloc, Layout, System};

/// The system's allocator, but for what may be a tensor.
struct Aligned;

#[global_allocator]
static ALLOCATOR: Aligned = Aligned;

/// Bytes of a cache line, and from how many on memory starts at one.
const LINE: usize = 64;
const TENSOR: usize = 4 << 10;

fn aligned(layout: Layout) -> Layout {
    match layout.size() >= TENSOR {
        true => layout.align_to(LINE).unwrap_or(layout),
        false => layout,
    }
}

// SAFETY: the system's, for a layout of the same size and at least that alignment, which is the same whenever it is
// asked for; `realloc` is the default, which moves by these.
unsafe impl GlobalAlloc for Aligned {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: what the caller promised, but for the alignment.
        unsafe { System.alloc(aligned(layout)) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(aligned(layout)) }
    }
    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: `alloc` has taken the same layout for it.
        unsafe { System.dealloc(memory, aligned(layout)) }
    }
}
