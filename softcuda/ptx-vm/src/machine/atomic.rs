//! The arithmetic of atomic operations.

use crate::{
    instr::{AtomicOp, Type},
    numerics::{BF16, F16, F32, F64, Format, Rounding, arithmetic},
};

/// Bytes of an element.
pub(crate) fn size(ty: Type) -> usize {
    use Type::*;
    match ty {
        Pred | B8 | U8 | S8 => 1,
        B16 | U16 | S16 | F16 | Bf16 => 2,
        B32 | U32 | S32 | F32 | F16x2 | Bf16x2 => 4,
        B64 | U64 | S64 | F64 => 8,
        B128 => 16,
    }
}

/// What a floating-point type consists of.
fn floats(ty: Type) -> Option<Format> {
    match ty {
        Type::F16 | Type::F16x2 => Some(F16),
        Type::Bf16 | Type::Bf16x2 => Some(BF16),
        Type::F32 => Some(F32),
        Type::F64 => Some(F64),
        _ => None,
    }
}

/// Zero, of the same sign, instead of a subnormal f32.
fn flushed(bits: u64) -> u64 {
    if bits & 0x7f80_0000 == 0 { bits & 0x8000_0000 } else { bits }
}

/// The sum, part by part of a packed type. Of f32 in global memory, subnormal numbers count as zero.
fn sum(ty: Type, format: Format, a: u64, b: u64, in_global: bool) -> u64 {
    let add = |a, b| arithmetic::add(format, a, b, Rounding::Nearest);
    match ty {
        Type::F32 if in_global => flushed(add(flushed(a), flushed(b))),
        Type::F16x2 | Type::Bf16x2 => {
            add(a & 0xffff, b & 0xffff) | add(a >> 16 & 0xffff, b >> 16 & 0xffff) << 16
        }
        _ => add(a, b),
    }
}

/// What replaces `old`. Values are zero-extended; so is the result, within the type.
pub(crate) fn apply(op: AtomicOp, ty: Type, old: u64, values: [u64; 2], in_global: bool) -> u64 {
    let bits = 8 * size(ty).min(8) as u32;
    let signed = |x: u64| ((x << (64 - bits)) as i64) >> (64 - bits);
    let is_signed = matches!(ty, Type::S8 | Type::S16 | Type::S32 | Type::S64);
    let value = values[0] << (64 - bits) >> (64 - bits);
    let lesser = if is_signed { signed(value) < signed(old) } else { value < old };
    let greater = if is_signed { signed(value) > signed(old) } else { value > old };
    let new = match (op, floats(ty)) {
        (AtomicOp::Add, Some(format)) => sum(ty, format, old, value, in_global),
        (AtomicOp::Min, Some(format)) => arithmetic::min(format, old, value, false),
        (AtomicOp::Max, Some(format)) => arithmetic::max(format, old, value, false),
        (AtomicOp::Add, None) => old.wrapping_add(value),
        (AtomicOp::Min, None) => {
            if lesser {
                value
            } else {
                old
            }
        }
        (AtomicOp::Max, None) => {
            if greater {
                value
            } else {
                old
            }
        }
        (AtomicOp::And, _) => old & value,
        (AtomicOp::Or, _) => old | value,
        (AtomicOp::Xor, _) => old ^ value,
        (AtomicOp::Inc, _) => {
            if old >= value {
                0
            } else {
                old + 1
            }
        }
        (AtomicOp::Dec, _) => {
            if old == 0 || old > value {
                value
            } else {
                old - 1
            }
        }
        (AtomicOp::Exchange, _) => value,
        (AtomicOp::CompareExchange, _) => {
            if old == value {
                values[1]
            } else {
                old
            }
        }
    };
    new << (64 - bits) >> (64 - bits)
}

#[cfg(test)]
mod tests {
    use super::apply;
    use crate::instr::{
        AtomicOp::{self, *},
        Type::{self, *},
    };

    fn go(op: AtomicOp, ty: Type, old: u64, value: u64) -> u64 {
        apply(op, ty, old, [value, 77], true)
    }

    #[test]
    fn integers() {
        assert_eq!(go(Add, U32, 0xffff_ffff, 2), 1);
        assert_eq!(go(Add, U64, u64::MAX, 2), 1);
        assert_eq!((go(Min, U32, 0xffff_ffff, 3), go(Min, S32, 0xffff_ffff, 3)), (3, 0xffff_ffff));
        assert_eq!((go(Max, U32, 0xffff_ffff, 3), go(Max, S32, 0xffff_ffff, 3)), (0xffff_ffff, 3));
        assert_eq!((go(Min, S64, u64::MAX, 3), go(Max, S64, u64::MAX, 3)), (u64::MAX, 3));
        assert_eq!((go(And, B32, 6, 3), go(Or, B32, 6, 3), go(Xor, B32, 6, 3)), (2, 7, 5));
        assert_eq!((go(Inc, U32, 6, 7), go(Inc, U32, 7, 7), go(Inc, U32, 9, 7)), (7, 0, 0));
        assert_eq!((go(Dec, U32, 6, 7), go(Dec, U32, 0, 7), go(Dec, U32, 9, 7)), (5, 7, 7));
        assert_eq!((go(Exchange, B32, 6, 7), go(Exchange, B64, 6, 7)), (7, 7));
        assert_eq!((go(CompareExchange, B32, 6, 6), go(CompareExchange, B16, 6, 7)), (77, 6));
    }

    #[test]
    fn floats_are_added_with_one_rounding() {
        let f = |x: f32| u64::from(x.to_bits());
        assert_eq!(go(Add, F32, f(1.0), f(2f32.powi(-24))), f(1.0));
        assert_eq!(go(Add, F32, f(1.0), f(2f32.powi(-24) * 1.5)), f(1.0 + f32::EPSILON));
        assert_eq!(go(Add, F64, 1f64.to_bits(), 0.5f64.to_bits()), 1.5f64.to_bits());
        // 1 + 2 and 1 + 0.5 in f16, 1 + 1 and 1 - 1 in bf16.
        assert_eq!(go(Add, F16x2, 0x3c00_3c00, 0x3800_4000), 0x3e00_4200);
        assert_eq!(go(Add, Bf16x2, 0x3f80_3f80, 0xbf80_3f80), 0x0000_4000);
        assert_eq!(go(Add, F16, 0x3c00, 0x4000), 0x4200);
    }

    #[test]
    fn only_global_memory_flushes_subnormals() {
        let tiny = 1;
        assert_eq!(apply(Add, F32, tiny, [tiny, 0], true), 0);
        assert_eq!(apply(Add, F32, tiny, [tiny, 0], false), 2);
        assert_eq!(apply(Add, F32, 0x8000_0001, [0x8000_0000, 0], true), 0x8000_0000);
    }
}
