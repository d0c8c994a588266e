//! Groups of 16-bit floating-point numbers, brought to f32 and back.
//!
//! f16 has instructions of its own. bf16 is the upper half of an f32, which integer instructions shift,
//! round and pack: written as vectors here, for of the same steps value by value compilers make scalar
//! code, six times as many instructions of a loop with AVX2.
use super::{Simd, baseline};
#[cfg(target_arch = "x86_64")]
use crate::DType;
use crate::Element;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

impl Simd {
    /// To the accumulating type, exactly.
    #[inline(always)]
    pub fn widen<E: Element, const N: usize>(self, values: &[E; N]) -> [E::Acc; N] {
        #[cfg(target_arch = "x86_64")]
        if self.has_vectors::<E, N>() {
            let mut wide = [E::Acc::default(); N];
            let (from, to) = (values.as_ptr().cast::<u16>(), wide.as_mut_ptr().cast::<f32>());
            let f16 = E::DTYPE == DType::F16;
            // SAFETY: E is of 16 bits and its sums are f32; there are N of both, whole vectors of them;
            // and the machine has the instructions.
            unsafe {
                if self.is_avx512() && N.is_multiple_of(16) {
                    for i in (0..N).step_by(16) {
                        let halves = _mm256_loadu_si256(from.add(i).cast());
                        let wide = if f16 {
                            _mm512_cvtph_ps(halves)
                        } else {
                            let upper = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves));
                            _mm512_castsi512_ps(upper)
                        };
                        _mm512_storeu_ps(to.add(i), wide);
                    }
                } else {
                    for i in (0..N).step_by(8) {
                        let halves = _mm_loadu_si128(from.add(i).cast());
                        let wide = if f16 {
                            _mm256_cvtph_ps(halves)
                        } else {
                            let upper = _mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(halves));
                            _mm256_castsi256_ps(upper)
                        };
                        _mm256_storeu_ps(to.add(i), wide);
                    }
                }
            }
            return wide;
        }
        baseline::widen(values)
    }
    /// From the accumulating type, to nearest, ties to even.
    #[inline(always)]
    pub fn narrow<E: Element, const N: usize>(self, values: &[E::Acc; N]) -> [E; N] {
        #[cfg(target_arch = "x86_64")]
        if self.has_vectors::<E, N>() {
            let mut narrow = [E::default(); N];
            const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT;
            let (from, to) = (values.as_ptr().cast::<f32>(), narrow.as_mut_ptr().cast::<u16>());
            let f16 = E::DTYPE == DType::F16;
            // SAFETY: as in `widen`.
            unsafe {
                if self.is_avx512() && N.is_multiple_of(16) {
                    for i in (0..N).step_by(16) {
                        let wide = _mm512_loadu_ps(from.add(i));
                        let halves = match f16 {
                            true => _mm512_cvtps_ph::<NEAREST>(wide),
                            false => bf16_of_16(self.lacks_bf16, wide),
                        };
                        _mm256_storeu_si256(to.add(i).cast(), halves);
                    }
                } else {
                    for i in (0..N).step_by(8) {
                        let wide = _mm256_loadu_ps(from.add(i));
                        let halves = match f16 {
                            true => _mm256_cvtps_ph::<NEAREST>(wide),
                            false => {
                                let halves = bf16_of_8(wide);
                                let (low, high) = (
                                    _mm256_castsi256_si128(halves),
                                    _mm256_extracti128_si256::<1>(halves),
                                );
                                _mm_packus_epi32(low, high)
                            }
                        };
                        _mm_storeu_si128(to.add(i).cast(), halves);
                    }
                }
            }
            return narrow;
        }
        baseline::narrow(values)
    }
    /// Whether so many are converted as whole vectors.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn has_vectors<E: Element, const N: usize>(self) -> bool {
        matches!(E::DTYPE, DType::F16 | DType::Bf16) && N.is_multiple_of(8) && self.is_avx2()
    }
}

/// What `bf16::narrow` computes, in the lower halves of lanes: adds what carries into the upper half where
/// the lower one is above its middle, or on it and the upper one odd; sets a NaN's quiet bit.
///
/// # Safety
/// The machine has AVX2.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn bf16_of_8(wide: __m256) -> __m256i {
    // SAFETY: what the caller promised.
    unsafe {
        let bits = _mm256_castps_si256(wide);
        let upper = _mm256_srli_epi32::<16>(bits);
        let odd = _mm256_and_si256(upper, _mm256_set1_epi32(1));
        let carry = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
        let rounded = _mm256_srli_epi32::<16>(_mm256_add_epi32(bits, carry));
        let quiet = _mm256_or_si256(upper, _mm256_set1_epi32(0x40));
        let is_nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(wide, wide));
        _mm256_blendv_epi8(rounded, quiet, is_nan)
    }
}

/// The same of 16 lanes, packed: by the instruction for it where the machine has it and no value is subnormal,
/// which it takes for zero; else by integers. Shifts and shuffles share two of the four ports of vectors:
/// so a test asks for the bit that decides ties, and one shuffle of words takes the upper halves.
///
/// The instruction makes inference in the cache take 0.7 of the time and backwards 0.85, and these integers
/// 0.9 of what shifts and a truncation take.
///
/// # Safety
/// The machine has AVX-512 F, BW and DQ, and AVX512-BF16 if `lacks_bf16` is 0.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn bf16_of_16(lacks_bf16: u16, wide: __m512) -> __m256i {
    const SUBNORMAL: i32 = 1 << 5;
    // SAFETY: what the caller promised.
    unsafe {
        if _mm512_fpclass_ps_mask::<SUBNORMAL>(wide) | lacks_bf16 == 0 {
            return bf16_of_normal(wide);
        }
        let bits = _mm512_castps_si512(wide);
        let is_odd = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x1_0000));
        let down = _mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff));
        let rounded = _mm512_mask_add_epi32(down, is_odd, bits, _mm512_set1_epi32(0x8000));
        let is_nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(wide, wide);
        let halves = _mm512_mask_or_epi32(rounded, is_nan, bits, _mm512_set1_epi32(0x40_0000));
        let upper = _mm512_loadu_si512(UPPER.as_ptr().cast());
        _mm512_castsi512_si256(_mm512_permutexvar_epi16(upper, halves))
    }
}

/// The instruction, written out: intrinsics of AVX512-BF16 would not be inlined into code for AVX-512.
///
/// # Safety
/// The machine has AVX512-BF16.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn bf16_of_normal(wide: __m512) -> __m256i {
    let halves;
    // SAFETY: it reads and writes vectors alone, and no flags.
    unsafe {
        std::arch::asm!(
            "vcvtneps2bf16 {halves}, {wide}",
            halves = lateout(ymm_reg) halves,
            wide = in(zmm_reg) wide,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    halves
}

/// Which words of a vector are the upper halves of its lanes, in the lower half of a vector.
#[cfg(target_arch = "x86_64")]
static UPPER: [u16; 32] = {
    let mut words = [0; 32];
    let mut lane = 0;
    while lane < 16 {
        words[lane] = 2 * lane as u16 + 1;
        lane += 1;
    }
    words
};

#[cfg(test)]
#[path = "halves_tests.rs"]
mod tests;
