//! The one place that knows vector instructions: code compiled for those of the machine that it runs
//! on, conversions and masks of groups of values, stores past the cache.
//!
//! NEON has run in QEMU alone, which says what is executed and not how long that takes. By such counts
//! (`scripts/check-neon.sh --counts` has a part of them), and by reading the machine code of the blocks that
//! they name, every operation, activation and type executes at most 2.1 times as many instructions for each
//! element as with AVX2, whose vectors are twice as long, and half of them less than 1.2 times, in loops
//! without calls or scalar values. Stores past the cache and loads ahead are left out there: only a machine
//! can say what they are worth.
#[cfg(target_arch = "x86_64")]
use crate::DType;
use crate::{Element, Real};
pub use level::SimdLevel;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;
use std::hint::select_unpredictable;
pub(super) use store::{Store, fence, prefetch};
pub(super) use units::{BLOCK, GROUP, LINE, ROOM, Scratch, TWICE, to_line};

/// What every machine of the architecture can do.
#[cfg_attr(all(target_arch = "aarch64", not(miri)), path = "neon.rs")]
mod baseline;
mod halves;
mod level;
mod store;
mod units;

/// The vector instructions that code is compiled with, and so may use: a proof that the machine has
/// them. Where [`Simd::vectorize`] hands one on, the compiler knows which.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Simd {
    level: SimdLevel,
    /// AVX512-BF16's conversion beside those of AVX-512: no bit where the machine has it, all bits where it
    /// has not. A mask and no boolean, which would be tested before a loop, and that compiled twice.
    lacks_bf16: u16,
}

impl Simd {
    /// Those of a level, if this machine has them.
    pub fn new(level: SimdLevel) -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        let has = {
            use std::is_x86_feature_detected as has;
            match level {
                SimdLevel::Baseline => true,
                SimdLevel::Avx2 => has!("avx2") && has!("f16c"),
                SimdLevel::Avx512 => {
                    let wide = has!("avx512f") && has!("avx512vl");
                    let more = has!("avx512bw") && has!("avx512dq");
                    wide && more && has!("avx2") && has!("f16c")
                }
            }
        };
        #[cfg(not(target_arch = "x86_64"))]
        let has = level == SimdLevel::Baseline;
        has.then(|| Self { level, lacks_bf16: lacks_bf16() })
    }
    /// The widest of this machine.
    pub fn widest() -> Self {
        let wider = [SimdLevel::Avx512, SimdLevel::Avx2].into_iter().find_map(Self::new);
        wider.unwrap_or(Self { level: SimdLevel::Baseline, lacks_bf16: lacks_bf16() })
    }
    #[inline(always)]
    pub fn level(self) -> SimdLevel {
        self.level
    }

    /// Runs `f`, compiled once for each level, with the instructions of this one.
    ///
    /// Whatever `f` calls must be `#[inline(always)]`, itself included (`#[inline(always)] |simd| ..`):
    /// only what is inlined here is compiled with those instructions. Results do not depend on the
    /// level: the code sums in a fixed number of lanes and never fuses a multiplication with an
    /// addition.
    #[inline]
    pub fn vectorize<R>(self, f: impl FnOnce(Simd) -> R) -> R {
        #[cfg(target_arch = "x86_64")]
        match self.level {
            // SAFETY: `new` has found the features that `avx512` is compiled with.
            SimdLevel::Avx512 => return unsafe { f.avx512(self.lacks_bf16) },
            // SAFETY: `new` has found the features that `avx2` is compiled with.
            SimdLevel::Avx2 => return unsafe { f.avx2() },
            SimdLevel::Baseline => (),
        }
        f(Simd { level: SimdLevel::Baseline, lacks_bf16: u16::MAX })
    }
}

/// The copies of a loop for the levels that a machine may lack.
///
/// The compiler hands its work to processors by modules, and a method is of the module that its type
/// is written in: so each copy is compiled beside others of the same file. As functions of this
/// module all of them were one piece, for which the other processors waited.
#[cfg(target_arch = "x86_64")]
trait Vectorized<R>: FnOnce(Simd) -> R + Sized {
    /// # Safety
    /// The machine has the features.
    #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,f16c")]
    unsafe fn avx512(self, lacks_bf16: u16) -> R {
        self(Simd { level: SimdLevel::Avx512, lacks_bf16 })
    }
    /// # Safety
    /// The machine has the features.
    #[target_feature(enable = "avx2,f16c")]
    unsafe fn avx2(self) -> R {
        self(Simd { level: SimdLevel::Avx2, lacks_bf16: u16::MAX })
    }
}
#[cfg(target_arch = "x86_64")]
impl<R, F: FnOnce(Simd) -> R> Vectorized<R> for F {}

/// [`Simd::lacks_bf16`] of this machine.
fn lacks_bf16() -> u16 {
    #[cfg(target_arch = "x86_64")]
    if std::is_x86_feature_detected!("avx512bf16") {
        return 0;
    }
    u16::MAX
}

impl Simd {
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub fn is_avx2(self) -> bool {
        self.level >= SimdLevel::Avx2
    }
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub fn is_avx512(self) -> bool {
        self.level == SimdLevel::Avx512
    }
    /// A bit for each value: 0 where it is zero or negative.
    #[inline(always)]
    pub fn positive<A: Real>(self, values: &[A; 8]) -> u8 {
        #[cfg(target_arch = "x86_64")]
        if self.is_avx2() {
            let at = values.as_ptr();
            // SAFETY: the machine has the instructions; the vectors are those 8 values.
            return unsafe {
                if A::DTYPE == DType::F32 {
                    let v = _mm256_loadu_ps(at.cast());
                    let positive = _mm256_cmp_ps::<_CMP_NLE_UQ>(v, _mm256_setzero_ps());
                    _mm256_movemask_ps(positive) as u8
                } else {
                    let four = |at: *const A| {
                        let v = _mm256_loadu_pd(at.cast());
                        let positive = _mm256_cmp_pd::<_CMP_NLE_UQ>(v, _mm256_setzero_pd());
                        _mm256_movemask_pd(positive) as u8
                    };
                    four(at) | four(at.add(4)) << 4
                }
            };
        }
        baseline::positive(values)
    }
    /// `values` where `bits` have a 1, zeros elsewhere: by arithmetic on their bits, for of a choice
    /// between values the compiler may make branches, and of a ReLU's mask nobody can predict them.
    #[inline(always)]
    pub fn keep<E: Element>(self, bits: u8, values: &[E; 8]) -> [E; 8] {
        #[cfg(target_arch = "x86_64")]
        if self.is_avx512() {
            let mut kept = *values;
            let all = kept.as_mut_ptr();
            // SAFETY: the machine has the instructions, which take 8 numbers of their size.
            unsafe {
                match size_of::<E>() {
                    2 => {
                        let all = all.cast::<__m128i>();
                        all.write_unaligned(_mm_maskz_mov_epi16(bits, all.read_unaligned()));
                        return kept;
                    }
                    4 => {
                        let all = all.cast::<__m256i>();
                        all.write_unaligned(_mm256_maskz_mov_epi32(bits, all.read_unaligned()));
                        return kept;
                    }
                    8 => {
                        let all = all.cast::<__m512i>();
                        all.write_unaligned(_mm512_maskz_mov_epi64(bits, all.read_unaligned()));
                        return kept;
                    }
                    _ => (),
                }
            }
        }
        #[cfg(target_arch = "x86_64")]
        if self.is_avx2() {
            let mut kept = *values;
            let all = kept.as_mut_ptr();
            // SAFETY: the machine has the instructions, which take 8 numbers of their size, a vector or two.
            unsafe {
                match size_of::<E>() {
                    2 => {
                        let each = _mm_set_epi16(128, 64, 32, 16, 8, 4, 2, 1);
                        let own = _mm_and_si128(_mm_set1_epi16(i16::from(bits)), each);
                        let all = all.cast::<__m128i>();
                        let kept = _mm_and_si128(all.read_unaligned(), _mm_cmpeq_epi16(own, each));
                        all.write_unaligned(kept);
                    }
                    4 => {
                        let each = _mm256_set_epi32(128, 64, 32, 16, 8, 4, 2, 1);
                        let own = _mm256_and_si256(_mm256_set1_epi32(i32::from(bits)), each);
                        let all = all.cast::<__m256i>();
                        let is = _mm256_cmpeq_epi32(own, each);
                        all.write_unaligned(_mm256_and_si256(all.read_unaligned(), is));
                    }
                    _ => {
                        for (k, each) in
                            [_mm256_set_epi64x(8, 4, 2, 1), _mm256_set_epi64x(128, 64, 32, 16)]
                                .into_iter()
                                .enumerate()
                        {
                            let own = _mm256_and_si256(_mm256_set1_epi64x(i64::from(bits)), each);
                            let all = all.cast::<__m256i>().add(k);
                            let is = _mm256_cmpeq_epi64(own, each);
                            all.write_unaligned(_mm256_and_si256(all.read_unaligned(), is));
                        }
                    }
                }
            }
            return kept;
        }
        baseline::keep(bits, values)
    }
}

impl Simd {
    /// `values` where their bytes are not 0, zeros elsewhere, without branches as in [`keep`](Self::keep).
    #[inline(always)]
    pub fn counted<A: Real>(self, counts: &[u8; GROUP], values: &[A; GROUP]) -> [A; GROUP] {
        #[cfg(target_arch = "x86_64")]
        if self.is_avx2() {
            let mut counted = *values;
            let (from, to) = (counts.as_ptr(), counted.as_mut_ptr());
            // SAFETY: the machine has the instructions; they read the bytes and take the values a vector
            // after the other, of their own type.
            unsafe {
                match (self.is_avx512(), A::DTYPE) {
                    (true, DType::F32) => {
                        let bytes = _mm_loadu_si128(from.cast());
                        let bits = _mm_test_epi8_mask(bytes, bytes);
                        let all = _mm512_loadu_ps(to.cast());
                        _mm512_storeu_ps(to.cast(), _mm512_maskz_mov_ps(bits, all));
                    }
                    (true, _) => {
                        let bytes = _mm_loadu_si128(from.cast());
                        let bits = _mm_test_epi8_mask(bytes, bytes);
                        for (k, bits) in bits.to_le_bytes().into_iter().enumerate() {
                            let to = to.add(8 * k).cast();
                            let all = _mm512_loadu_pd(to);
                            _mm512_storeu_pd(to, _mm512_maskz_mov_pd(bits, all));
                        }
                    }
                    (false, DType::F32) => {
                        for k in 0..2 {
                            let bytes = _mm_loadl_epi64(from.add(8 * k).cast());
                            let none = _mm256_setzero_si256();
                            let is = _mm256_cmpgt_epi32(_mm256_cvtepu8_epi32(bytes), none);
                            let to = to.add(8 * k).cast();
                            let all = _mm256_and_ps(_mm256_loadu_ps(to), _mm256_castsi256_ps(is));
                            _mm256_storeu_ps(to, all);
                        }
                    }
                    (false, _) => {
                        for k in 0..4 {
                            let bytes = _mm_loadu_si32(from.add(4 * k).cast());
                            let none = _mm256_setzero_si256();
                            let is = _mm256_cmpgt_epi64(_mm256_cvtepu8_epi64(bytes), none);
                            let to = to.add(4 * k).cast();
                            let all = _mm256_and_pd(_mm256_loadu_pd(to), _mm256_castsi256_pd(is));
                            _mm256_storeu_pd(to, all);
                        }
                    }
                }
            }
            return counted;
        }
        let mut counted = [A::default(); GROUP];
        for l in 0..GROUP {
            counted[l] = select_unpredictable(counts[l] != 0, values[l], A::default());
        }
        counted
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// With the instructions of every level that this machine has, and without those of AVX512-BF16.
    pub fn every_level(mut test: impl FnMut(Simd)) {
        for simd in SimdLevel::available().filter_map(Simd::new) {
            simd.vectorize(&mut test);
            if simd.lacks_bf16 == 0 {
                Simd { lacks_bf16: u16::MAX, ..simd }.vectorize(&mut test);
            }
        }
    }
    /// What `write` has written to zeros, by every level and store.
    pub fn every_store<E: Element>(
        len: usize,
        mut write: impl FnMut(Store, &mut [E]),
        mut check: impl FnMut(&[E]),
    ) {
        every_level(|simd| {
            // SAFETY: fenced before anything is read.
            let past = unsafe { Store::past_cache(simd) };
            for store in [Store::to_cache(simd), past] {
                let mut memory = vec![E::default(); len];
                write(store, &mut memory);
                fence();
                check(&memory);
            }
        });
    }

    #[test]
    fn bits_keep_their_values() {
        fn all<E: Element>() {
            let nan = E::Acc::from_f64(f64::NAN);
            let values = std::array::from_fn(|k| {
                if k == 3 { E::narrow(nan) } else { E::narrow(E::Acc::from_f64(-1.5)) }
            });
            every_level(|simd| {
                for bits in 0..=u8::MAX {
                    for (k, (kept, v)) in simd.keep(bits, &values).iter().zip(values).enumerate() {
                        let expected = if bits >> k & 1 == 1 { v } else { E::default() };
                        assert_eq!(format!("{kept:?}"), format!("{expected:?}"), "{bits:b} at {k}");
                    }
                }
            });
        }
        all::<f32>();
        all::<f64>();
        all::<half::bf16>();
        all::<half::f16>();
    }

    #[test]
    fn what_counts_is_kept() {
        fn all<A: Real>() {
            let values: [A; GROUP] = std::array::from_fn(|l| match l % 3 {
                0 => A::from_f64(f64::NAN),
                _ => A::from_f64(l as f64 - 9.5),
            });
            every_level(|simd| {
                for bits in (0..=u16::MAX).step_by(7) {
                    let counts = std::array::from_fn(|l| (bits >> l & 1) as u8);
                    let counted = simd.counted(&counts, &values);
                    for l in 0..GROUP {
                        let expected = if counts[l] == 1 { values[l] } else { A::default() };
                        assert_eq!(format!("{expected:?}"), format!("{:?}", counted[l]), "{l}");
                    }
                }
            });
        }
        all::<f32>();
        all::<f64>();
    }

    #[test]
    fn positive_values_have_a_bit() {
        fn all<A: Real>() {
            let some = [f64::NAN, 1.0, 0.0, -0.0, -1.0, f64::INFINITY, -f64::INFINITY, 1e-30];
            let positive = 0b1010_0011_u8;
            every_level(|simd| {
                for turn in 0..8 {
                    let values = std::array::from_fn(|k| A::from_f64(some[(k + turn) % 8]));
                    assert_eq!(simd.positive(&values), positive.rotate_right(turn as u32));
                }
            });
        }
        all::<f32>();
        all::<f64>();
    }
}
