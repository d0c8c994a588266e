//! The conversions that kernels do all the time, without branches, so that rows of them become vector instructions.

use super::{BF16, F16, F32};

const F32_NAN: u32 = F32.nan() as u32;

/// `cvt.f32.f16`
#[inline(always)]
pub fn f16_to_f32(bits: u16) -> u32 {
    let magnitude = u32::from(bits & 0x7fff) << 13;
    // The exponent of f32 is biased by 112 more. Multiplying normalises subnormals on the way, exactly.
    let scaled = (f32::from_bits(magnitude) * f32::from_bits((112 + 127) << 23)).to_bits();
    let finite = magnitude < 0x7c00 << 13;
    let number = if finite { scaled } else { F32.infinity() as u32 };
    let signed = number | u32::from(bits & 0x8000) << 16;
    if magnitude > 0x7c00 << 13 { F32_NAN } else { signed }
}

/// `cvt.f32.bf16`
#[inline(always)]
pub fn bf16_to_f32(bits: u16) -> u32 {
    let wide = u32::from(bits) << 16;
    if wide & 0x7fff_ffff > 0x7f80_0000 { F32_NAN } else { wide }
}

/// `cvt.rn.f16.f32`
#[inline(always)]
pub fn f32_to_f16(bits: u32) -> u16 {
    let magnitude = bits & 0x7fff_ffff;
    let sign = bits >> 16 & 0x8000;
    let normal = (magnitude + 0xfff + (magnitude >> 13 & 1)).wrapping_sub(112 << 23) >> 13;
    // The last bit of 0.5 is worth the least subnormal of f16, so that adding 0.5 rounds to it.
    let shifted = (f32::from_bits(magnitude) + 0.5).to_bits();
    let subnormal = shifted.wrapping_sub(0x3f00_0000);
    let number = if magnitude < 113 << 23 { subnormal } else { normal };
    let number = if magnitude >= 0x477f_f000 { F16.infinity() as u32 } else { number };
    if magnitude > 0x7f80_0000 { F16.nan() as u16 } else { (number | sign) as u16 }
}

/// `cvt.rn.bf16.f32`
#[inline(always)]
pub fn f32_to_bf16(bits: u32) -> u16 {
    let rounded = (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16;
    if bits & 0x7fff_ffff > 0x7f80_0000 { BF16.nan() as u16 } else { rounded }
}
