//! Stores, past the cache or not, and loads ahead.
use super::{GROUP, LINE, Simd};
use crate::{Element, Plain};
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;
use std::ops::Range;
use std::sync::atomic::{Ordering, compiler_fence};

/// How a loop stores what it computes: as usual, or past the cache, which saves reading what is
/// overwritten.
#[derive(Debug, Clone, Copy)]
pub struct Store {
    pub simd: Simd,
    /// Address bits that forbid a store past the cache: none, or all of them. A mask and no boolean, so
    /// that the test is part of the test of alignment; a boolean would be tested before a loop, which
    /// would be compiled twice.
    never: usize,
}

impl Store {
    #[inline(always)]
    pub fn to_cache(simd: Simd) -> Self {
        Self { simd, never: usize::MAX }
    }
    /// # Safety
    /// The thread must call [`fence`] before anybody, itself included, reads or writes again what it
    /// has written so.
    #[inline(always)]
    pub unsafe fn past_cache(simd: Simd) -> Self {
        Self { simd, never: 0 }
    }
    /// Whether it stores past the cache.
    #[inline(always)]
    pub fn is_past_cache(self) -> bool {
        self.never == 0
    }
    /// The same, where code is compiled for `simd`.
    #[inline(always)]
    pub fn compiled_for(self, simd: Simd) -> Self {
        Self { simd, ..self }
    }
    /// Rounds and writes a group of values: past the cache, if `to` is aligned to its size or a line. In
    /// that case it also asks for `ahead`, for whoever works on so much memory waits for it.
    #[inline(always)]
    pub fn put<E: Element>(
        self,
        values: &[E::Acc; GROUP],
        to: &mut [E; GROUP],
        ahead: impl FnOnce(),
    ) {
        let values = self.simd.narrow::<E, GROUP>(values);
        let size = size_of::<[E; GROUP]>();
        if to.as_ptr().addr() & ((size.min(LINE) - 1) | self.never) == 0 {
            // SAFETY: the group is aligned, and the rest was promised.
            unsafe { self.stream_group(&values, to) };
            ahead();
        } else {
            *to = values;
        }
        // The group is a vector; several groups would become gathered ones.
        compiler_fence(Ordering::SeqCst);
    }
    /// Rounds a group of values and writes it or, past the cache, only lanes `lanes` of it.
    #[inline(always)]
    pub fn put_lanes<E: Element>(
        self,
        values: &[E::Acc; GROUP],
        to: &mut [E; GROUP],
        lanes: Range<usize>,
    ) {
        let values = self.simd.narrow::<E, GROUP>(values);
        if self.is_past_cache() {
            // A copy, so that only here the values pass through memory: a vector that is read back
            // from across two lines waits for its store.
            let copy = values;
            // SAFETY: what was promised.
            unsafe { stream_lanes(&copy, to, lanes) };
        } else {
            *to = values;
        }
    }
    /// Copies a row.
    #[inline(always)]
    pub fn copy<E: Element>(self, from: &[E], to: &mut [E]) {
        match self.never == 0 {
            // SAFETY: what was promised.
            true => unsafe { self.stream(from, to) },
            false => to.copy_from_slice(from),
        }
    }
    /// # Safety
    /// As [`Store::past_cache`]; `to` is aligned to its size or a line, and a multiple of 16 bytes.
    #[inline(always)]
    unsafe fn stream_group<E: Plain, const N: usize>(self, from: &[E; N], to: &mut [E; N]) {
        #[cfg(target_arch = "x86_64")]
        {
            let size = size_of::<[E; N]>();
            let (from, to) = (from.as_ptr().cast::<u8>(), to.as_mut_ptr().cast::<u8>());
            // SAFETY: both have `size` bytes, whole vectors of them; loads need no alignment, the
            // stores have it; the machine has the instructions, and any bytes make a vector.
            unsafe {
                if self.simd.is_avx512() && size.is_multiple_of(64) {
                    for i in (0..size).step_by(64) {
                        let values = _mm512_loadu_si512(from.add(i).cast());
                        _mm512_stream_si512(to.add(i).cast(), values);
                    }
                } else if self.simd.is_avx2() && size.is_multiple_of(32) {
                    for i in (0..size).step_by(32) {
                        let values = _mm256_loadu_si256(from.add(i).cast());
                        _mm256_stream_si256(to.add(i).cast(), values);
                    }
                } else {
                    for i in (0..size).step_by(16) {
                        stream_quarter(to.add(i).cast(), _mm_loadu_si128(from.add(i).cast()));
                    }
                }
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        to.copy_from_slice(from);
    }
    /// # Safety
    /// As [`Store::past_cache`].
    #[inline(always)]
    unsafe fn stream<T: Plain>(self, from: &[T], to: &mut [T]) {
        assert_eq!(from.len(), to.len());
        #[cfg(target_arch = "x86_64")]
        {
            // SAFETY: any bytes make a vector, and all elements are numbers without padding; the
            // split puts `middle` at an address that the aligned stores need.
            let (head, middle, _) = unsafe { to.align_to_mut::<__m128i>() };
            let (start, len) = (head.len(), size_of_val(middle) / size_of::<T>());
            head.copy_from_slice(&from[..start]);
            let source = from[start..start + len].as_ptr().cast::<__m128i>();
            // SAFETY: `source` has as many bytes as `middle`.
            unsafe { self.stream_lines(source, middle) };
            to[start + len..].copy_from_slice(&from[start + len..]);
        }
        #[cfg(not(target_arch = "x86_64"))]
        to.copy_from_slice(from);
    }
    /// Whole lines by one store each, where there are such stores; what stands before and behind them
    /// in quarters, for a line that is written partly past the cache and partly through it costs
    /// most.
    ///
    /// # Safety
    /// As [`Store::past_cache`]; `from` has as many bytes as `to`.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn stream_lines(self, from: *const __m128i, to: &mut [__m128i]) {
        let quarters = |from: *const __m128i, to: &mut [__m128i]| {
            for (i, place) in to.iter_mut().enumerate() {
                // SAFETY: `from` has as many bytes as `to`; loads need no alignment, and `place` is
                // aligned.
                unsafe { stream_quarter(place, _mm_loadu_si128(from.add(i))) };
            }
        };
        if !self.simd.is_avx512() {
            return quarters(from, to);
        }
        // SAFETY: four quarters are a line, of whatever bytes; so `from` has those of all three
        // parts, and the split puts `lines` where the aligned stores need them; the machine has
        // the instructions.
        unsafe {
            let (head, lines, tail) = to.align_to_mut::<__m512i>();
            let (middle, end) = (from.add(head.len()), from.add(head.len() + 4 * lines.len()));
            quarters(from, head);
            for (i, place) in lines.iter_mut().enumerate() {
                _mm512_stream_si512(place, _mm512_loadu_si512(middle.cast::<__m512i>().add(i)));
            }
            quarters(end, tail);
        }
    }
}

/// What stores past the cache write at least.
const QUARTER: usize = 16;

/// Writes a quarter of a line past the cache; under Miri, which does not know that instruction, as usual.
///
/// # Safety
/// As [`Store::past_cache`]; `to` may be written and is aligned.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn stream_quarter(to: *mut __m128i, quarter: __m128i) {
    // SAFETY: what the caller promised; every x86-64 machine has both.
    unsafe {
        match cfg!(miri) {
            true => _mm_store_si128(to, quarter),
            false => _mm_stream_si128(to, quarter),
        }
    }
}

/// Writes some lanes of a group, past the cache where they are whole quarters of a line; all of it as
/// usual. A call, for loops meet it where they begin and where they end.
///
/// # Safety
/// As [`Store::past_cache`].
#[cold]
#[inline(never)]
unsafe fn stream_lanes<E: Element>(from: &[E; GROUP], to: &mut [E; GROUP], lanes: Range<usize>) {
    if lanes.len() == GROUP {
        *to = *from;
        return;
    }
    let n = QUARTER / size_of::<E>();
    for first in (0..GROUP).step_by(n) {
        let own = first.max(lanes.start)..(first + n).min(lanes.end);
        #[cfg(target_arch = "x86_64")]
        if own == (first..first + n) && to[first..].as_ptr().addr().is_multiple_of(QUARTER) {
            // SAFETY: both have a quarter there, of whatever bytes, and that of `to` is aligned.
            unsafe {
                let quarter = _mm_loadu_si128(from[own.clone()].as_ptr().cast());
                stream_quarter(to[own].as_mut_ptr().cast(), quarter);
            }
            continue;
        }
        if !own.is_empty() {
            to[own.clone()].copy_from_slice(&from[own]);
        }
    }
}

/// Asks for the group at an address, to be in the second-level cache when it is read; any address is
/// allowed, and useless where nothing is.
///
/// Hardware that fetches ahead follows one stream at a time, and none beyond a page. Loops over
/// several rows that ask for rows to come, a line for every line they use, take half the time in
/// memory and two thirds in the last-level cache; asking for many lines at once gains nothing, for
/// only so many can be under way.
#[inline(always)]
pub fn prefetch<T>(group: *const T) {
    #[cfg(target_arch = "x86_64")]
    for line in (0..GROUP * size_of::<T>()).step_by(LINE) {
        let address = group.cast::<i8>().wrapping_add(line);
        if !cfg!(miri) {
            // SAFETY: every x86-64 machine has it, and whatever the address, it only takes time.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(address) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = group;
}

/// Orders what was streamed before whatever the thread does next.
#[inline(always)]
pub fn fence() {
    #[cfg(target_arch = "x86_64")]
    if !cfg!(miri) {
        // SAFETY: every x86-64 machine has it.
        unsafe { _mm_sfence() };
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
