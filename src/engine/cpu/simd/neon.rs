//! Groups of values by NEON, which every aarch64 processor has: what compilers do not make of the same
//! steps value by value.
//!
//! Of an f16's conversion in integers they make tens of instructions instead of one for four values, and
//! of sums behind it scalar ones, most of which wait in memory.
use crate::{DType, Element, Real};
use std::arch::aarch64::*;
use std::arch::asm;

/// The bits of a mask, a lane for each.
const EACH_16: [u16; 8] = [1, 2, 4, 8, 16, 32, 64, 128];
const EACH_32: [u32; 8] = [1, 2, 4, 8, 16, 32, 64, 128];
const EACH_64: [u64; 8] = [1, 2, 4, 8, 16, 32, 64, 128];

/// To the accumulating type, exactly.
#[inline(always)]
pub fn widen<E: Element, const N: usize>(values: &[E; N]) -> [E::Acc; N] {
    let mut wide = [E::Acc::default(); N];
    if !has_vectors::<E, N>() {
        for l in 0..N {
            wide[l] = values[l].widen();
        }
        return wide;
    }
    let (from, to) = (values.as_ptr().cast::<u16>(), wide.as_mut_ptr().cast::<f32>());
    for i in (0..N).step_by(8) {
        // SAFETY: E is of 16 bits and its sums are f32; there are N of both, whole vectors of them.
        unsafe {
            let halves = vld1q_u16(from.add(i));
            let (low, high) = match E::DTYPE {
                DType::F16 => f32_of_f16(halves),
                _ => (vshll_n_u16::<16>(vget_low_u16(halves)), vshll_high_n_u16::<16>(halves)),
            };
            vst1q_f32(to.add(i), vreinterpretq_f32_u32(low));
            vst1q_f32(to.add(i + 4), vreinterpretq_f32_u32(high));
        }
    }
    wide
}

/// From the accumulating type, to nearest, ties to even.
#[inline(always)]
pub fn narrow<E: Element, const N: usize>(values: &[E::Acc; N]) -> [E; N] {
    let mut narrow = [E::default(); N];
    if !has_vectors::<E, N>() {
        for l in 0..N {
            narrow[l] = E::narrow(values[l]);
        }
        return narrow;
    }
    let (from, to) = (values.as_ptr().cast::<f32>(), narrow.as_mut_ptr().cast::<u16>());
    for i in (0..N).step_by(8) {
        // SAFETY: as in `widen`.
        unsafe {
            let (low, high) = (vld1q_f32(from.add(i)), vld1q_f32(from.add(i + 4)));
            let halves = match E::DTYPE {
                DType::F16 => f16_of_f32(low, high),
                _ => bf16_of_f32(low, high),
            };
            vst1q_u16(to.add(i), halves);
        }
    }
    narrow
}

/// Whether so many are converted as whole vectors.
#[inline(always)]
fn has_vectors<E: Element, const N: usize>() -> bool {
    matches!(E::DTYPE, DType::F16 | DType::Bf16) && N.is_multiple_of(8)
}

/// The bits of eight values as f32. By the instructions themselves: the standard library's functions for
/// them are younger than the oldest compiler that takes this crate.
#[inline(always)]
fn f32_of_f16(halves: uint16x8_t) -> (uint32x4_t, uint32x4_t) {
    let (low, high);
    // SAFETY: every aarch64 processor has both; they read and write registers alone.
    unsafe {
        asm!(
            "fcvtl {low:v}.4s, {halves:v}.4h",
            "fcvtl2 {high:v}.4s, {halves:v}.8h",
            halves = in(vreg) halves,
            low = out(vreg) low,
            high = lateout(vreg) high,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    (low, high)
}

/// Eight values of f32, rounded to nearest, as no program in Rust may have it otherwise.
#[inline(always)]
fn f16_of_f32(low: float32x4_t, high: float32x4_t) -> uint16x8_t {
    let halves;
    // SAFETY: as in `f32_of_f16`.
    unsafe {
        asm!(
            "fcvtn {halves:v}.4h, {low:v}.4s",
            "fcvtn2 {halves:v}.8h, {high:v}.4s",
            low = in(vreg) low,
            high = in(vreg) high,
            halves = out(vreg) halves,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    halves
}

/// What `bf16::narrow` computes: adds what carries into the upper half where the lower one is above its
/// middle, or on it and the upper one odd; sets a NaN's quiet bit.
#[inline(always)]
fn bf16_of_f32(low: float32x4_t, high: float32x4_t) -> uint16x8_t {
    // Two shifts leave the lowest bit of the upper half alone, and the second one adds it.
    // SAFETY: every aarch64 processor has the instruction.
    let and_odd = |bits| unsafe { vsraq_n_u32::<31>(bits, vshlq_n_u32::<15>(bits)) };
    // SAFETY: as above, all of them.
    unsafe {
        let (odd_low, odd_high) =
            (and_odd(vreinterpretq_u32_f32(low)), and_odd(vreinterpretq_u32_f32(high)));
        let below = vdupq_n_u32(0x7fff);
        let rounded = vaddhn_high_u32(vaddhn_u32(odd_low, below), odd_high, below);
        let upper = vuzp2q_u16(vreinterpretq_u16_f32(low), vreinterpretq_u16_f32(high));
        let quiet = vorrq_u16(upper, vdupq_n_u16(0x40));
        let is_number = vuzp1q_u16(
            vreinterpretq_u16_u32(vceqq_f32(low, low)),
            vreinterpretq_u16_u32(vceqq_f32(high, high)),
        );
        vbslq_u16(is_number, rounded, quiet)
    }
}

/// A bit for each value: 0 where it is zero or negative.
#[inline(always)]
pub fn positive<A: Real>(values: &[A; 8]) -> u8 {
    let at = values.as_ptr();
    // SAFETY: every aarch64 processor has the instructions; the vectors are those 8 values, of their own
    // type, and the bits.
    unsafe {
        let stopped = if A::DTYPE == DType::F32 {
            let four = |at: *const A| vmovn_u32(vcleq_f32(vld1q_f32(at.cast()), vdupq_n_f32(0.0)));
            vcombine_u16(four(at), four(at.add(4)))
        } else {
            let two = |at: *const A| vmovn_u64(vcleq_f64(vld1q_f64(at.cast()), vdupq_n_f64(0.0)));
            let four = |at: *const A| vmovn_u32(vcombine_u32(two(at), two(at.add(2))));
            vcombine_u16(four(at), four(at.add(4)))
        };
        vaddvq_u16(vbicq_u16(vld1q_u16(EACH_16.as_ptr()), stopped)) as u8
    }
}

/// `values` where `bits` have a 1, zeros elsewhere.
#[inline(always)]
pub fn keep<E: Element>(bits: u8, values: &[E; 8]) -> [E; 8] {
    let mut kept = *values;
    let all = kept.as_mut_ptr();
    // SAFETY: the elements are 8 numbers of that size, a vector or several, as are the bits of each.
    unsafe {
        match size_of::<E>() {
            2 => {
                let all = all.cast();
                let is = vtstq_u16(vdupq_n_u16(bits.into()), vld1q_u16(EACH_16.as_ptr()));
                vst1q_u16(all, vandq_u16(vld1q_u16(all), is));
            }
            4 => {
                for k in [0, 4] {
                    let all = all.cast::<u32>().add(k);
                    let each = vld1q_u32(EACH_32[k..].as_ptr());
                    let is = vtstq_u32(vdupq_n_u32(bits.into()), each);
                    vst1q_u32(all, vandq_u32(vld1q_u32(all), is));
                }
            }
            _ => {
                for k in [0, 2, 4, 6] {
                    let all = all.cast::<u64>().add(k);
                    let each = vld1q_u64(EACH_64[k..].as_ptr());
                    let is = vtstq_u64(vdupq_n_u64(bits.into()), each);
                    vst1q_u64(all, vandq_u64(vld1q_u64(all), is));
                }
            }
        }
    }
    kept
}
