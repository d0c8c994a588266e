//! f32 and f64 arithmetic.

use super::lanes::{map, map_active};
use super::{Alu, Arithmetic};
use crate::numerics::{F32, F64, Format, Rounding, arithmetic};
use crate::registers::Registers;

/// What a floating-point instruction does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum FloatOp {
    Add,
    Sub,
    Mul,
    Fma,
    Div,
    Sqrt,
    Rcp,
    Neg,
    Abs,
    Min,
    Max,
    /// The sign of the first operand, the magnitude of the second.
    Copysign,
}

macro_rules! native {
    ($name:ident, $t:ty, $bits:ty, $format:expr) => {
        /// Rounding to nearest, which is what the machine underneath does.
        #[inline(always)]
        fn $name(op: Arithmetic, alu: &Alu, registers: &mut Registers, mask: u32) {
            const FORMAT: Format = $format;
            let (to, from) = (alu.to[0], &alu.from[..]);
            let ftz = op.ftz;
            let get = |x: u64| <$t>::from_bits((if ftz { FORMAT.flush(x) } else { x }) as $bits);
            let put = |x: $t| {
                let bits = if x.is_nan() { FORMAT.nan() } else { u64::from(x.to_bits()) };
                let bits = if ftz { FORMAT.flush(bits) } else { bits };
                if op.saturate { FORMAT.saturate(bits) } else { bits }
            };
            match op.op {
                FloatOp::Add => map(registers, mask, to, from, |[a, b]| put(get(a) + get(b))),
                FloatOp::Sub => map(registers, mask, to, from, |[a, b]| put(get(a) - get(b))),
                FloatOp::Mul => map(registers, mask, to, from, |[a, b]| put(get(a) * get(b))),
                FloatOp::Fma => {
                    map(registers, mask, to, from, |[a, b, c]| put(get(a).mul_add(get(b), get(c))))
                }
                FloatOp::Div => map(registers, mask, to, from, |[a, b]| put(get(a) / get(b))),
                FloatOp::Sqrt => map(registers, mask, to, from, |[a]| put(get(a).sqrt())),
                FloatOp::Rcp => map(registers, mask, to, from, |[a]| put(1.0 / get(a))),
                FloatOp::Neg => map(registers, mask, to, from, |[a]| {
                    (if ftz { FORMAT.flush(a) } else { a }) ^ FORMAT.sign()
                }),
                FloatOp::Abs => map(registers, mask, to, from, |[a]| {
                    (if ftz { FORMAT.flush(a) } else { a }) & !FORMAT.sign()
                }),
                FloatOp::Copysign => {
                    map(registers, mask, to, from, |[a, b]| a & FORMAT.sign() | b & !FORMAT.sign())
                }
                FloatOp::Min | FloatOp::Max => {
                    let max = op.op == FloatOp::Max;
                    map(registers, mask, to, from, |[a, b]| {
                        let sign = if op.xorsign { (a ^ b) & FORMAT.sign() } else { 0 };
                        let keep = if op.xorsign { !FORMAT.sign() } else { !0 };
                        let (x, y) = (get(a & keep), get(b & keep));
                        let (x_bits, y_bits) = (x.to_bits(), y.to_bits());
                        // Of equal numbers only the signs of zeros can differ.
                        let equal = if max { x_bits & y_bits } else { x_bits | y_bits };
                        let x_first = if max { x > y } else { x < y };
                        let number = if x == y {
                            equal
                        } else if x_first || y.is_nan() {
                            x_bits
                        } else {
                            y_bits
                        };
                        let none = if op.nan {
                            x.is_nan() || y.is_nan()
                        } else {
                            x.is_nan() && y.is_nan()
                        };
                        if none { FORMAT.nan() } else { u64::from(number) | sign }
                    })
                }
            }
        }
    };
}

native!(f32_op, f32, u32, F32);
native!(f64_op, f64, u64, F64);

#[inline(always)]
pub(super) fn execute(
    op: Arithmetic,
    double: bool,
    alu: &Alu,
    registers: &mut Registers,
    mask: u32,
) {
    match (op.rounding, double) {
        (Rounding::Nearest, false) => f32_op(op, alu, registers, mask),
        (Rounding::Nearest, true) => f64_op(op, alu, registers, mask),
        (_, false) => directed(op, F32, alu, registers, mask),
        (_, true) => directed(op, F64, alu, registers, mask),
    }
}

/// Every other way to round.
#[inline(never)]
fn directed(op: Arithmetic, format: Format, alu: &Alu, registers: &mut Registers, mask: u32) {
    map_active(registers, mask, alu.to[0], &alu.from, |operands: [u64; 3]| {
        let [a, b, c] = if op.ftz { operands.map(|x| format.flush(x)) } else { operands };
        let mode = op.rounding;
        let bits = match op.op {
            FloatOp::Add => arithmetic::add(format, a, b, mode),
            FloatOp::Sub => arithmetic::sub(format, a, b, mode),
            FloatOp::Mul => arithmetic::mul(format, a, b, mode),
            FloatOp::Fma => arithmetic::fma(format, a, b, c, mode),
            FloatOp::Div => arithmetic::div(format, a, b, mode),
            FloatOp::Sqrt => arithmetic::sqrt(format, a, mode),
            FloatOp::Rcp => arithmetic::div(format, format.one(), a, mode),
            FloatOp::Neg | FloatOp::Abs | FloatOp::Min | FloatOp::Max | FloatOp::Copysign => {
                unreachable!("{:?} does not round", op.op)
            }
        };
        let bits = if op.ftz { format.flush(bits) } else { bits };
        if op.saturate { format.saturate(bits) } else { bits }
    });
}
