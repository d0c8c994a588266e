//! The `.approx` instructions. Hardware gives something within a documented bound; so do they, moved about in it by the seed.

use super::Alu;
use super::lanes::map_active;
use crate::numerics::{BF16, F16, F32, F64, Format, Rounding, convert};
use crate::registers::Registers;

/// A function that is only approximated, of f32 unless it says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Approximate {
    /// `div.approx`: off by 2 ulp; where the divisor lies beyond 2^126, 0, or NaN for an infinite dividend.
    Div,
    /// `div.full`: off by 2 ulp.
    DivFull,
    /// `rcp.approx`: off by 1 ulp.
    Rcp,
    /// `sqrt.approx`: off by 2^-23 of the value.
    Sqrt,
    /// `rsqrt.approx`: off by 2^-22.9 of the value.
    Rsqrt,
    /// `ex2.approx`: off by 2 ulp.
    Exp2,
    /// `lg2.approx`: off by 2^-22, or 2^-22.6 of the value outside 0.5..2.
    Log2,
    /// `sin.approx`: off by 2^-20.5 from -pi to pi.
    Sin,
    /// `cos.approx`: off by 2^-20.5 from -pi to pi.
    Cos,
    /// `tanh.approx`: off by 2^-11 of the value.
    Tanh,
    /// `ex2.approx.f16`, and two at a time: off by 2^-9.9 of the value.
    Exp2F16 { packed: bool },
    /// `ex2.approx.ftz.bf16`: off by 2^-7 of the value.
    Exp2Bf16 { packed: bool },
    /// `tanh.approx.f16`: off by 2^-10.987.
    TanhF16 { packed: bool },
    /// `tanh.approx.bf16`: off by 2^-8 of the value.
    TanhBf16 { packed: bool },
    /// `rcp.approx.ftz.f64`: 20 bits of the fraction.
    RcpF64,
    /// `rsqrt.approx.f64`: off by 2 ulp, and flushing nothing.
    RsqrtF64,
    /// `rsqrt.approx.ftz.f64`: 20 bits of the fraction.
    RsqrtFlushF64,
}

/// Mixes what is hashed as SplitMix64 does: quick, and nobody chooses operands to make hashes collide.
struct Mixer(u64);

impl std::hash::Hasher for Mixer {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    #[inline]
    fn write_u64(&mut self, word: u64) {
        let mut z = (self.0 ^ word).wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        self.0 = z ^ z >> 31;
    }

    #[inline]
    fn write_isize(&mut self, variant: isize) {
        self.write_u64(variant as u64);
    }
}

/// A number between -1 and 1 that depends on the instruction and its operands, as the error of hardware does. 0 for seed 0.
fn whim(seed: u64, op: Approximate, a: u64, b: u64) -> f64 {
    use std::hash::{Hash, Hasher};
    if seed == 0 {
        return 0.0;
    }
    let mut hasher = Mixer(seed);
    (op, a, b).hash(&mut hasher);
    (hasher.finish() as i64) as f64 / 2f64.powi(63)
}

/// `value` off by that part of itself, or by that much, at most.
fn off(value: f64, relative: f64, absolute: f64) -> f64 {
    // Infinities and zeros are exact; so is what has no error.
    if value == 0.0 || !value.is_finite() { value } else { value + value * relative + absolute }
}

#[inline(never)]
pub(super) fn execute(op: Approximate, ftz: bool, alu: &Alu, registers: &mut Registers, mask: u32) {
    use Approximate as A;
    let seed = registers.seed();
    map_active(registers, mask, alu.to[0], &alu.from, |[a, b]: [u64; 2]| match op {
        A::Exp2F16 { packed } | A::TanhF16 { packed } => by_halves(op, F16, packed, false, seed, a),
        A::Exp2Bf16 { packed } => by_halves(op, BF16, packed, true, seed, a),
        A::TanhBf16 { packed } => by_halves(op, BF16, packed, false, seed, a),
        A::RcpF64 | A::RsqrtF64 | A::RsqrtFlushF64 => double(op, seed, a),
        _ => {
            let flush = |bits| if ftz { F32.flush(bits) } else { bits };
            let (a, b) = (flush(a), flush(b));
            let value = single(
                op,
                f32::from_bits(a as u32),
                f32::from_bits(b as u32),
                whim(seed, op, a, b),
            );
            let nearest = value as f32;
            flush(if nearest.is_nan() { F32.nan() } else { u64::from(nearest.to_bits()) })
        }
    });
}

/// The exact value, moved; rounding it to f32 takes another half ulp.
fn single(op: Approximate, a: f32, b: f32, whim: f64) -> f64 {
    use Approximate as A;
    let (x, y) = (f64::from(a), f64::from(b));
    // Half an ulp is 2^-25 of the value or more, one and a half three times that.
    let half_ulp = whim * 2f64.powi(-25);
    let three_halves = whim * 3.0 * 2f64.powi(-25);
    match op {
        A::Div if y.abs() > 2f64.powi(126) && y.is_finite() => {
            if x.is_infinite() {
                f64::NAN
            } else {
                0.0f64.copysign(x * y)
            }
        }
        A::Div | A::DivFull => off(x / y, three_halves, 0.0),
        A::Rcp => off(1.0 / x, half_ulp, 0.0),
        A::Sqrt => off(x.sqrt(), half_ulp, 0.0),
        A::Rsqrt if x == 0.0 => f64::INFINITY.copysign(x),
        A::Rsqrt => off(1.0 / x.sqrt(), half_ulp, 0.0),
        A::Exp2 if x == 0.0 => 1.0,
        A::Exp2 => off(x.exp2(), three_halves, 0.0),
        A::Log2 if (0.5..2.0).contains(&x) => off(x.log2(), 0.0, whim * 2f64.powi(-23)),
        A::Log2 => off(x.log2(), half_ulp, 0.0),
        A::Sin => off(x.sin(), 0.0, whim * 2f64.powi(-21)),
        A::Cos if x == 0.0 => 1.0,
        A::Cos => off(x.cos(), 0.0, whim * 2f64.powi(-21)),
        A::Tanh if x.is_infinite() => 1f64.copysign(x),
        A::Tanh => off(x.tanh(), whim * 2f64.powi(-12), 0.0),
        _ => unreachable!("{op:?} is not of f32"),
    }
}

fn by_halves(
    op: Approximate,
    format: Format,
    packed: bool,
    ftz: bool,
    seed: u64,
    operand: u64,
) -> u64 {
    let one = |bits: u64| {
        let flush = |bits| if ftz { format.flush(bits) } else { bits };
        let bits = flush(bits & 0xffff);
        let wide = convert::float_to_float(format, F64, bits, Rounding::Nearest);
        let (x, whim) = (f64::from_bits(wide), whim(seed, op, bits, 0));
        // The bounds leave little beside the rounding to 16 bits.
        let value = match op {
            Approximate::Exp2F16 { .. } if x == 0.0 => 1.0,
            Approximate::Exp2F16 { .. } => off(x.exp2(), whim * 2f64.powi(-14), 0.0),
            Approximate::Exp2Bf16 { .. } if x == 0.0 => 1.0,
            Approximate::Exp2Bf16 { .. } => off(x.exp2(), whim * 2f64.powi(-9), 0.0),
            Approximate::TanhF16 { .. } => off(x.tanh(), whim * 2f64.powi(-18), 0.0),
            _ => off(x.tanh(), whim * 2f64.powi(-12), 0.0),
        };
        flush(convert::float_to_float(F64, format, value.to_bits(), Rounding::Nearest))
    };
    if packed { one(operand) | one(operand >> 16) << 16 } else { one(operand) }
}

fn double(op: Approximate, seed: u64, bits: u64) -> u64 {
    // Only the upper word of the operand counts where 20 bits of the result do.
    let upper = |bits: u64| F64.flush(bits) >> 32 << 32;
    let x = f64::from_bits(if op == Approximate::RsqrtF64 { bits } else { upper(bits) });
    let whim = whim(seed, op, bits, 0);
    let value = match op {
        Approximate::RcpF64 => 1.0 / x,
        _ if x == 0.0 => f64::INFINITY.copysign(x),
        _ => 1.0 / x.sqrt(),
    };
    if value.is_nan() {
        return F64.nan();
    }
    match op {
        Approximate::RsqrtF64 => off(value, whim * 2f64.powi(-53), 0.0).to_bits(),
        _ => upper(off(value, whim * 2f64.powi(-22), 0.0).to_bits()),
    }
}
