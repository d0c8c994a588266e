//! New memory that holds anything, for what writes all of it before anything reads it.
use super::host::reserved;
use crate::{Plain, Result};

/// Bytes from which on large pages are asked for.
const LARGE: usize = 4 << 20;

/// `len` values, whichever; in builds with debug assertions all bits are 1, which is NaN, so that tests see who
/// reads what nobody wrote.
///
/// Zeros would be written by the allocator first, where it has the memory already; and where it has not, a
/// tensor of 100 MB would be handed over by the system in 25,000 pages of 4 KiB, each with an interruption of its
/// own: more than half of the time of a forward into new memory.
pub(super) fn unwritten<T: Plain>(len: usize) -> Result<Vec<T>> {
    let mut memory = reserved::<T>(len)?;
    let start = memory.as_mut_ptr();
    let bytes = len * size_of::<T>(); // no more than isize::MAX: it is reserved
    if bytes >= LARGE {
        ask_for_large_pages(start.addr(), bytes);
    }
    let known = cfg!(any(debug_assertions, miri));
    // SAFETY: there is room for `len` values.
    let is_anything = !known && unsafe { frozen(start) };
    if !is_anything {
        // SAFETY: the same.
        unsafe { start.write_bytes(if known { 0xff } else { 0 }, len) };
    }
    // SAFETY: there is room; the values are written above, or by what `frozen` stands for; every bit pattern is a
    // value of a `Plain` type.
    unsafe { memory.set_len(len) };
    Ok(memory)
}

/// Has the compiler take memory as written, with values that it knows nothing of. False where it cannot.
///
/// Assembly may write anything that it can reach, so that after it reading is no more than reading what it wrote.
///
/// # Safety
/// Whatever is reached from `start` may be overwritten.
unsafe fn frozen<T>(start: *mut T) -> bool {
    #[cfg(all(any(target_arch = "x86_64", target_arch = "aarch64"), not(miri)))]
    {
        // SAFETY: there are no instructions.
        unsafe { std::arch::asm!("/* {0} */", in(reg) start, options(nostack, preserves_flags)) };
        true
    }
    #[cfg(not(all(any(target_arch = "x86_64", target_arch = "aarch64"), not(miri))))]
    {
        let _ = start;
        false
    }
}

/// Asks for pages of 2 MiB where memory is nobody's yet, as far as it covers such pages. A request: what comes of it
/// is the system's to say.
fn ask_for_large_pages(start: usize, bytes: usize) {
    #[cfg(all(target_os = "linux", not(miri)))]
    {
        const PAGE: usize = 2 << 20;
        let (first, end) = (start.next_multiple_of(PAGE), (start + bytes) / PAGE * PAGE);
        if first < end {
            let at = std::ptr::without_provenance_mut(first);
            // SAFETY: the range is within the allocation; its contents stay.
            unsafe { libc::madvise(at, end - first, libc::MADV_HUGEPAGE) };
        }
    }
    #[cfg(not(all(target_os = "linux", not(miri))))]
    let _ = (start, bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_every_size() {
        for len in [0, 1, 1000, LARGE / 4 - 1, LARGE / 4, LARGE, (LARGE / 4) * 9 + 3] {
            let mut memory = unwritten::<f32>(len).unwrap();
            assert_eq!(memory.len(), len);
            assert!(memory.iter().all(|value| value.is_nan()));
            memory.fill(1.0);
            assert_eq!(memory.iter().filter(|value| **value == 1.0).count(), len);
        }
        assert!(unwritten::<u8>(isize::MAX as usize).is_err());
        assert!(unwritten::<f64>(usize::MAX).is_err());
    }
}
