//! f16 and bf16 arithmetic, one at a time or two in a register.

use super::lanes::map_active;
use super::{Alu, Arithmetic, FloatOp};
use crate::numerics::{Format, Rounding, arithmetic};
use crate::registers::Registers;

#[inline(never)]
pub(super) fn execute(
    op: Arithmetic,
    format: Format,
    packed: bool,
    alu: &Alu,
    registers: &mut Registers,
    mask: u32,
) {
    map_active(registers, mask, alu.to[0], &alu.from, |operands: [u64; 3]| {
        let low = one(op, format, operands.map(|x| x & 0xffff));
        if !packed {
            return low;
        }
        low | one(op, format, operands.map(|x| x >> 16 & 0xffff)) << 16
    });
}

fn one(op: Arithmetic, format: Format, operands: [u64; 3]) -> u64 {
    let [a, b, c] = if op.ftz { operands.map(|x| format.flush(x)) } else { operands };
    let sign = format.sign();
    let bits = match op.op {
        FloatOp::Add => arithmetic::add(format, a, b, Rounding::Nearest),
        FloatOp::Sub => arithmetic::sub(format, a, b, Rounding::Nearest),
        FloatOp::Mul => arithmetic::mul(format, a, b, Rounding::Nearest),
        FloatOp::Fma => arithmetic::fma(format, a, b, c, Rounding::Nearest),
        FloatOp::Neg => return a ^ sign,
        FloatOp::Abs => return a & !sign,
        FloatOp::Min | FloatOp::Max => {
            let keep = if op.xorsign { !sign } else { !0 };
            let extreme = if op.op == FloatOp::Min { arithmetic::min } else { arithmetic::max };
            let bits = extreme(format, a & keep, b & keep, op.nan);
            if op.xorsign && !format.is_nan(bits) { bits | (a ^ b) & sign } else { bits }
        }
        FloatOp::Div | FloatOp::Sqrt | FloatOp::Rcp | FloatOp::Copysign => {
            unreachable!("{:?} has no 16-bit form", op.op)
        }
    };
    let bits = if op.ftz { format.flush(bits) } else { bits };
    let bits = if op.saturate { format.saturate(bits) } else { bits };
    if op.relu { format.relu(bits) } else { bits }
}
