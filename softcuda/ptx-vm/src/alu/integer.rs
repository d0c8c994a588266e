//! Integer arithmetic, logic and bit fields.

use super::lanes::{map, map_active};
use super::{Alu, Integer};
use crate::registers::Registers;

/// What an integer instruction does. Where the type of PTX is bits, it stands as unsigned here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum IntegerOp {
    Add,
    Sub,
    AddSaturating,
    SubSaturating,
    MulLow,
    MulHigh,
    MulWide,
    MadLow,
    MadHigh,
    MadHighSaturating,
    MadWide,
    Div,
    Rem,
    Neg,
    Abs,
    Min,
    Max,
    Sad,
    And,
    Or,
    Xor,
    Not,
    /// `cnot`: 1 for 0, 0 for all else.
    IsZero,
    Shl,
    Shr,
    Popc,
    Clz,
    Brev,
    Bfind,
    BfindShift,
    Bfe,
    Bfi,
}

macro_rules! by_width {
    ($name:ident, $t:ty, $unsigned:ty, $wide:ty, $wide_unsigned:ty, $d:tt) => {
        #[inline(always)]
        fn $name(op: IntegerOp, alu: &Alu, registers: &mut Registers, mask: u32) {
            use IntegerOp as O;
            const BITS: u32 = <$t>::BITS;
            let (to, from) = (alu.to[0], &alu.from[..]);
            let get = |x: u64| x as $t;
            let put = |x: $t| x as $unsigned as u64;
            let wide = |a: u64, b: u64| (a as $t as $wide).wrapping_mul(b as $t as $wide);
            let put_wide = |x: $wide| x as $wide_unsigned as u64;
            macro_rules! rows {
                                                ($d($d f:tt)*) => {
                                                    map!(registers, mask, to, from, $d($d f)*)
                                                };
                                            }
            match op {
                O::Add => rows!(|[a, b]| put(get(a).wrapping_add(get(b)))),
                O::Sub => rows!(|[a, b]| put(get(a).wrapping_sub(get(b)))),
                O::AddSaturating => rows!(|[a, b]| put(get(a).saturating_add(get(b)))),
                O::SubSaturating => rows!(|[a, b]| put(get(a).saturating_sub(get(b)))),
                O::MulLow => rows!(|[a, b]| put(get(a).wrapping_mul(get(b)))),
                O::MulHigh => rows!(|[a, b]| put((wide(a, b) >> BITS) as $t)),
                O::MulWide => rows!(|[a, b]| put_wide(wide(a, b))),
                O::MadLow => {
                    rows!(|[a, b, c]| put(get(a).wrapping_mul(get(b)).wrapping_add(get(c))))
                }
                O::MadHigh => {
                    rows!(|[a, b, c]| put(((wide(a, b) >> BITS) as $t).wrapping_add(get(c))))
                }
                O::MadHighSaturating => {
                    rows!(|[a, b, c]| put(((wide(a, b) >> BITS) as $t).saturating_add(get(c))))
                }
                O::MadWide => rows!(|[a, b, c]| put_wide(wide(a, b).wrapping_add(c as $wide))),
                // PTX leaves division by zero to the machine: all ones, and the dividend as the rest.
                O::Div => map_active(registers, mask, to, from, |[a, b]| {
                    if get(b) == 0 { put(!0) } else { put(get(a).wrapping_div(get(b))) }
                }),
                O::Rem => map_active(registers, mask, to, from, |[a, b]| {
                    if get(b) == 0 { put(get(a)) } else { put(get(a).wrapping_rem(get(b))) }
                }),
                O::Neg => rows!(|[a]| put(get(0).wrapping_sub(get(a)))),
                O::Abs => {
                    rows!(|[a]| put(if get(a) < get(0) {
                        get(0).wrapping_sub(get(a))
                    } else {
                        get(a)
                    }))
                }
                O::Min => rows!(|[a, b]| put(get(a).min(get(b)))),
                O::Max => rows!(|[a, b]| put(get(a).max(get(b)))),
                O::Sad => rows!(|[a, b, c]| {
                    put(get(a).abs_diff(get(b)) as $t).wrapping_add(c) as $unsigned as u64
                }),
                O::And => rows!(|[a, b]| a & b),
                O::Or => rows!(|[a, b]| a | b),
                O::Xor => rows!(|[a, b]| a ^ b),
                O::Not => rows!(|[a]| put(!get(a))),
                O::IsZero => rows!(|[a]| (a == 0) as u64),
                O::Shl => rows!(|[a, b]| {
                    let shifted = put(get(a).wrapping_shl(b as u32));
                    if b < u64::from(BITS) { shifted } else { 0 }
                }),
                O::Shr => {
                    rows!(|[a, b]| {
                        let all = put(if get(a) < get(0) { !0 } else { 0 });
                        let shifted = put(get(a).wrapping_shr(b as u32));
                        if b < u64::from(BITS) { shifted } else { all }
                    })
                }
                O::Popc => rows!(|[a]| u64::from(a.count_ones())),
                O::Clz => rows!(|[a]| u64::from((a as $unsigned).leading_zeros())),
                O::Brev => rows!(|[a]| put(get(a).reverse_bits())),
                O::Bfind | O::BfindShift => map_active(registers, mask, to, from, |[a]| {
                    let magnitude = put(if get(a) < get(0) { !get(a) } else { get(a) });
                    match magnitude.checked_ilog2() {
                        None => u64::from(u32::MAX),
                        Some(top) if op == O::Bfind => u64::from(top),
                        Some(top) => u64::from(BITS - 1 - top),
                    }
                }),
                O::Bfe => map_active(registers, mask, to, from, |[a, position, length]| {
                    let (position, length) = (position as u8 as u32, length as u8 as u32);
                    if length == 0 {
                        return 0;
                    }
                    let shifted = put(get(a).checked_shr(position).unwrap_or(0));
                    let sign_at = (position + length - 1).min(BITS - 1);
                    let fill = if get(a).wrapping_shr(sign_at) & 1 == 1 && <$t>::MIN != 0 {
                        !0
                    } else {
                        0
                    };
                    let count = length.min(BITS.saturating_sub(position));
                    let field = 1u64.checked_shl(count).unwrap_or(0).wrapping_sub(1);
                    put((shifted & field | fill & !field) as $t)
                }),
                O::Bfi => map_active(registers, mask, to, from, |[a, b, position, length]| {
                    let (position, length) = (position as u8 as u32, length as u8 as u32);
                    let field = 1u64.checked_shl(length).unwrap_or(0).wrapping_sub(1);
                    let field = put(field.checked_shl(position).unwrap_or(0) as $t);
                    b & !field | a.checked_shl(position).unwrap_or(0) & field
                }),
            }
        }
    };
}

by_width!(u16_op, u16, u16, u32, u32, $);
by_width!(s16_op, i16, u16, i32, u32, $);
by_width!(u32_op, u32, u32, u64, u64, $);
by_width!(s32_op, i32, u32, i64, u64, $);
by_width!(u64_op, u64, u64, u128, u128, $);
by_width!(s64_op, i64, u64, i128, u128, $);

#[inline(always)]
pub(super) fn execute(op: IntegerOp, ty: Integer, alu: &Alu, registers: &mut Registers, mask: u32) {
    match ty {
        Integer::U16 => u16_op(op, alu, registers, mask),
        Integer::S16 => s16_op(op, alu, registers, mask),
        Integer::U32 => u32_op(op, alu, registers, mask),
        Integer::S32 => s32_op(op, alu, registers, mask),
        Integer::U64 => u64_op(op, alu, registers, mask),
        Integer::S64 => s64_op(op, alu, registers, mask),
    }
}

/// `add`, `sub` and `mad` with `.cc`, and `addc`, `subc` and `madc`. What is multiplied, if anything, is of `half`: the low or
/// the high half of the product. `carry_in` reads the carry from the register behind the operands, `carry_out` writes `to[1]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Carrying {
    /// The width, and for the high half of a product the sign.
    pub ty: Integer,
    /// Which half of a product is added to the last operand; none: the operands themselves are added.
    pub product: Option<Half>,
    /// Whether it is subtracted instead.
    pub subtract: bool,
    /// Whether the carry is an operand: the last.
    pub carry_in: bool,
    /// Whether the carry is a result: the second.
    pub carry_out: bool,
}

/// A half of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Half {
    Low,
    High,
}

#[inline(never)]
pub(super) fn carry(op: Carrying, alu: &Alu, registers: &mut Registers, mask: u32) {
    let bits = op.ty.bits();
    let width = u64::MAX >> (64 - bits);
    for lane in (0..32).filter(|lane| mask >> lane & 1 == 1) {
        let operand = |i: usize| registers.row(alu.from[i])[lane];
        let (a, b, count) = match op.product {
            None => (operand(0), operand(1), 2),
            Some(half) => {
                let product = if op.ty.signed() {
                    let extend = |x: u64| i128::from((x << (64 - bits)) as i64 >> (64 - bits));
                    (extend(operand(0)) * extend(operand(1))) as u128
                } else {
                    u128::from(operand(0)) * u128::from(operand(1))
                };
                let half = if half == Half::Low { product } else { product >> bits };
                (half as u64 & width, operand(2), 3)
            }
        };
        let carry = u128::from(op.carry_in && operand(count) != 0);
        // The carry of a subtraction is its borrow.
        let result = if op.subtract {
            u128::from(a).wrapping_sub(u128::from(b)).wrapping_sub(carry)
        } else {
            u128::from(a) + u128::from(b) + carry
        };
        registers.row_mut(alu.to[0])[lane] = result as u64 & width;
        if op.carry_out {
            registers.row_mut(alu.to[1])[lane] = (result >> bits) as u64 & 1;
        }
    }
}
