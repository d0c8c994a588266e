//! `cvt`.

use super::Alu;
use super::lanes::{map, map_active};
use crate::numerics::{BF16, F16, F32, F64, Format, Rounding, TF32, convert, half};
use crate::registers::Registers;

/// A type of `cvt`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Number {
    /// An integer of so many bits.
    Integer {
        /// 8, 16, 32 or 64.
        bits: u8,
        /// Whether it has a sign.
        signed: bool,
    },
    /// A number of the format.
    Float(Format),
    /// Two numbers of the format, made of two operands; the first becomes the upper one.
    Pair(Format),
}

/// How `cvt` rounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RoundTo {
    /// To a number of the target type.
    Target(Rounding),
    /// To an integral number.
    Integral(Rounding),
}

/// `cvt` with its modifiers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Convert {
    /// The type of the operand.
    pub from: Number,
    /// The type of the result.
    pub to: Number,
    /// How to round; where nothing is lost it does not matter.
    pub rounding: RoundTo,
    /// `.ftz`
    pub ftz: bool,
    /// `.sat`: integers are clamped to the target's range, floating-point results to 0..1.
    pub saturate: bool,
    /// `.relu`
    pub relu: bool,
    /// `.satfinite`
    pub finite: bool,
}

#[inline(always)]
pub(super) fn execute(op: Convert, alu: &Alu, registers: &mut Registers, mask: u32) {
    let (to, from) = (alu.to[0], &alu.from[..]);
    let plain = !(op.ftz || op.saturate || op.relu || op.finite);
    let nearest = op.rounding == RoundTo::Target(Rounding::Nearest);
    // What kernels do all the time goes by rows.
    match (op.from, op.to) {
        (Number::Integer { bits, signed }, Number::Integer { bits: to_bits, .. })
            if !op.saturate =>
        {
            let keep = u64::MAX >> (64 - to_bits);
            let narrow = u64::MAX >> (64 - bits);
            match (bits, signed) {
                (32, true) => map!(registers, mask, to, from, |[a]| a as i32 as u64 & keep),
                (16, true) => map!(registers, mask, to, from, |[a]| a as i16 as u64 & keep),
                (8, true) => map!(registers, mask, to, from, |[a]| a as i8 as u64 & keep),
                _ => map!(registers, mask, to, from, |[a]| a & narrow & keep),
            }
        }
        (Number::Float(F16), Number::Float(F32)) if plain => {
            map!(registers, mask, to, from, |[a]| u64::from(half::f16_to_f32(a as u16)));
        }
        (Number::Float(BF16), Number::Float(F32)) if plain => {
            map!(registers, mask, to, from, |[a]| u64::from(half::bf16_to_f32(a as u16)));
        }
        (Number::Float(F32), Number::Float(F16)) if plain && nearest => {
            map!(registers, mask, to, from, |[a]| u64::from(half::f32_to_f16(a as u32)));
        }
        (Number::Float(F32), Number::Float(BF16)) if plain && nearest => {
            map!(registers, mask, to, from, |[a]| u64::from(half::f32_to_bf16(a as u32)));
        }
        (Number::Float(F32), Number::Pair(F16)) if plain && nearest => {
            map!(registers, mask, to, from, |[high, low]| {
                u64::from(half::f32_to_f16(high as u32)) << 16
                    | u64::from(half::f32_to_f16(low as u32))
            });
        }
        (Number::Float(F32), Number::Pair(BF16)) if plain && nearest => {
            map!(registers, mask, to, from, |[high, low]| {
                u64::from(half::f32_to_bf16(high as u32)) << 16
                    | u64::from(half::f32_to_bf16(low as u32))
            });
        }
        (Number::Float(F32), Number::Float(F64)) if plain => {
            map!(registers, mask, to, from, |[a]| {
                let wide = f64::from(f32::from_bits(a as u32));
                if wide.is_nan() { F64.nan() } else { wide.to_bits() }
            })
        }
        (Number::Float(F64), Number::Float(F32)) if plain && nearest => {
            map!(registers, mask, to, from, |[a]| {
                let narrow = f64::from_bits(a) as f32;
                if narrow.is_nan() { F32.nan() } else { u64::from(narrow.to_bits()) }
            });
        }
        (Number::Integer { bits: 32, signed: true }, Number::Float(F32)) if plain && nearest => {
            map!(registers, mask, to, from, |[a]| u64::from((a as i32 as f32).to_bits()));
        }
        (Number::Integer { bits: 32, signed: false }, Number::Float(F32)) if plain && nearest => {
            map!(registers, mask, to, from, |[a]| u64::from((a as u32 as f32).to_bits()));
        }
        _ => others(op, alu, registers, mask),
    }
}

/// Every other form, the two halves of a pair one after the other.
#[inline(never)]
fn others(op: Convert, alu: &Alu, registers: &mut Registers, mask: u32) {
    map_active(registers, mask, alu.to[0], &alu.from, |[a, b]| match op.to {
        Number::Pair(format) => {
            let op = Convert { to: Number::Float(format), ..op };
            one(op, a) << 16 | one(op, b)
        }
        _ => one(op, a),
    });
}

fn range(bits: u8, signed: bool) -> (i128, i128) {
    if signed { (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) } else { (0, (1 << bits) - 1) }
}

fn one(op: Convert, bits: u64) -> u64 {
    let (RoundTo::Target(mode) | RoundTo::Integral(mode)) = op.rounding;
    let flush = |format: Format, bits: u64| {
        if op.ftz && format == F32 { format.flush(bits) } else { bits }
    };
    match (op.from, op.to) {
        (Number::Integer { bits: width, signed }, to) => {
            let drop = 128 - u32::from(width);
            let value = if signed {
                (i128::from(bits) << drop) >> drop
            } else {
                (u128::from(bits) << drop >> drop) as i128
            };
            match to {
                Number::Integer { bits: width, signed } => {
                    let (least, greatest) = range(width, signed);
                    let value = if op.saturate { value.clamp(least, greatest) } else { value };
                    value as u64 & (u64::MAX >> (64 - width))
                }
                Number::Float(format) | Number::Pair(format) => {
                    let bits = convert::integer_to_float(value, format, mode);
                    if op.saturate { format.saturate(bits) } else { bits }
                }
            }
        }
        (Number::Float(from) | Number::Pair(from), Number::Integer { bits: width, signed }) => {
            let (least, greatest) = range(width, signed);
            if from.is_nan(bits) {
                return if from == F64 || width == 64 { 1 << (width - 1) } else { 0 };
            }
            let value = convert::float_to_integer(from, flush(from, bits), mode, least, greatest);
            value as u64 & (u64::MAX >> (64 - width))
        }
        (Number::Float(from) | Number::Pair(from), Number::Float(to) | Number::Pair(to)) => {
            let bits = flush(from, bits);
            let result = match op.rounding {
                RoundTo::Integral(_) => {
                    let integral = convert::to_integral(from, bits, mode);
                    convert::float_to_float(from, to, integral, Rounding::Nearest)
                }
                RoundTo::Target(_) => convert::float_to_float(from, to, bits, mode),
            };
            let result = flush(to, result);
            let result = if op.saturate { to.saturate(result) } else { result };
            let result = if op.relu { to.relu(result) } else { result };
            let infinite = result & !to.sign() == to.infinity();
            let result = if op.finite && infinite { result - 1 } else { result };
            // tf32 stands in the upper bits of an f32.
            if to == TF32 { tf32_in_f32(result) } else { result }
        }
    }
}

fn tf32_in_f32(bits: u64) -> u64 {
    if TF32.is_nan(bits) { F32.nan() } else { bits << (F32.fraction - TF32.fraction) }
}
