//! Code compiled for the vector units of the machine it runs on, stores past its cache, and loads
//! ahead.
use super::coefs::LINE;
use crate::Plain;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{
    __m128i, __m512i, _mm_loadu_si128, _mm_stream_si128, _mm512_loadu_si512, _mm512_stream_si512,
};

/// Runs `f`, compiled once for each vector width and called for the widest this machine has.
///
/// Whatever `f` calls must be `#[inline(always)]`, itself included (`#[inline(always)] || ..`):
/// only what is inlined here is compiled with those instructions. Results do not depend on the
/// width: the code sums in a fixed number of lanes and never fuses a multiplication with an
/// addition.
#[inline]
pub(super) fn vectorized<R>(f: impl FnOnce() -> R) -> R {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2")]
        fn wide<R>(f: impl FnOnce() -> R) -> R {
            f()
        }
        #[target_feature(enable = "avx2")]
        fn middle<R>(f: impl FnOnce() -> R) -> R {
            f()
        }
        use std::is_x86_feature_detected as has;
        if has!("avx512f") && has!("avx512vl") && has!("avx512bw") && has!("avx512dq") {
            // SAFETY: the machine has the features that `wide` is compiled with.
            return unsafe { wide(f) };
        }
        if has!("avx2") {
            // SAFETY: the machine has the feature that `middle` is compiled with.
            return unsafe { middle(f) };
        }
    }
    f()
}

/// Copies `from` to `to` past the cache, which saves reading what is overwritten. Where this
/// machine has no such stores, it is an ordinary copy.
///
/// # Safety
/// The thread must call [`fence`] before anybody, itself included, reads or writes `to` again.
#[inline(always)]
pub(super) unsafe fn stream<T: Plain>(from: &[T], to: &mut [T]) {
    assert_eq!(from.len(), to.len());
    #[cfg(target_arch = "x86_64")]
    {
        // SAFETY: any bytes make a vector, and all elements are numbers without padding; the
        // split puts `middle` at an address that the aligned stores need.
        let (head, middle, _) = unsafe { to.align_to_mut::<__m128i>() };
        let (start, len) = (head.len(), size_of_val(middle) / size_of::<T>());
        head.copy_from_slice(&from[..start]);
        let source = from[start..start + len].as_ptr().cast::<__m128i>();
        if std::is_x86_feature_detected!("avx512f") {
            // SAFETY: the machine has the feature, and `source` as many bytes as `middle`.
            unsafe { stream_lines(source, middle) };
        } else {
            // SAFETY: `source` has as many bytes as `middle`.
            unsafe { stream_quarters(source, middle) };
        }
        to[start + len..].copy_from_slice(&from[start + len..]);
    }
    #[cfg(not(target_arch = "x86_64"))]
    to.copy_from_slice(from);
}

/// Whole lines by one store each, a quarter of the stores; what stands before and behind them in
/// quarters, for a line that is written partly past the cache and partly through it costs most.
///
/// # Safety
/// As [`stream`]; `from` has as many bytes as `to`.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn stream_lines(from: *const __m128i, to: &mut [__m128i]) {
    // SAFETY: four quarters are a line, of whatever bytes; so `from` has those of all three parts,
    // and the split puts `lines` where the aligned stores need them.
    unsafe {
        let (head, lines, tail) = to.align_to_mut::<__m512i>();
        let (middle, end) = (from.add(head.len()), from.add(head.len() + 4 * lines.len()));
        stream_quarters(from, head);
        for (i, place) in lines.iter_mut().enumerate() {
            _mm512_stream_si512(place, _mm512_loadu_si512(middle.cast::<__m512i>().add(i)));
        }
        stream_quarters(end, tail);
    }
}

/// # Safety
/// As [`stream_lines`].
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn stream_quarters(from: *const __m128i, to: &mut [__m128i]) {
    for (i, place) in to.iter_mut().enumerate() {
        // SAFETY: `from` has as many bytes as `to`; loads need no alignment, and `place` is aligned.
        unsafe { _mm_stream_si128(place, _mm_loadu_si128(from.add(i))) };
    }
}

/// Asks for the cache lines that start in `values[at..at + n]`, to be in the second-level cache when
/// they are read; positions behind the end are allowed, and useless.
///
/// Hardware that fetches ahead follows one stream at a time, and none beyond a page. Loops over
/// several rows that ask for rows to come, a line for every line they use, take half the time in
/// memory and two thirds in the last-level cache; asking for many lines at once gains nothing, for
/// only so many can be under way.
#[inline(always)]
pub(super) fn prefetch<T>(values: &[T], at: usize, n: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        let line = LINE / size_of::<T>();
        for i in (at.next_multiple_of(line)..at + n).step_by(line) {
            // SAFETY: every x86-64 machine has it, and whatever the address, it only takes time.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(values.as_ptr().wrapping_add(i).cast()) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (values, at, n);
}

/// Orders what was streamed before whatever the thread does next.
#[inline(always)]
pub(super) fn fence() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 machine has it.
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streamed_copies_are_copies() {
        fn all<T: Plain>(value: impl Fn(usize) -> T) {
            let from: Vec<T> = (0..200).map(value).collect();
            for start in 0..20 {
                for len in [0, 1, 2, 3, 7, 8, 15, 16, 17, 31, 64, 100, 179] {
                    let mut to = [T::default(); 200];
                    // SAFETY: fenced before `to` is read.
                    unsafe { stream(&from[7..7 + len], &mut to[start..start + len]) };
                    fence();
                    assert!(to[..start].iter().all(|v| *v == T::default()));
                    assert_eq!(to[start..start + len], from[7..7 + len]);
                    assert!(to[start + len..].iter().all(|v| *v == T::default()));
                }
            }
        }
        all(|i| i as f32 + 1.0);
        all(|i| i as f64 + 1.0);
        all(|i| half::bf16::from_f32(i as f32 + 1.0));
        all(|i| i as u8);
    }
}
