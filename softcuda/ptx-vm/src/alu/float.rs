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
    ($name:ident, $t:ty, $bits:ty, $format:expr, $d:tt) => {
        /// Rounding to nearest, which is what the machine underneath does. `PLAIN`: without modifiers, known beforehand so that
        /// the loops have no branches.
        #[inline(always)]
        fn $name<const PLAIN: bool>(op: Arithmetic, alu: &Alu, registers: &mut Registers, mask: u32) {
            const FORMAT: Format = $format;
            let (to, from) = (alu.to[0], &alu.from[..]);
            let (ftz, saturate) = (!PLAIN && op.ftz, !PLAIN && op.saturate);
            let (xorsign, nan) = (!PLAIN && op.xorsign, !PLAIN && op.nan);
            #[inline(always)]
            fn get(bits: u64, ftz: bool) -> $t {
                <$t>::from_bits((if ftz { FORMAT.flush(bits) } else { bits }) as $bits)
            }
            #[inline(always)]
            fn put(number: $t, ftz: bool, saturate: bool) -> u64 {
                let bits = if number.is_nan() { FORMAT.nan() } else { u64::from(number.to_bits()) };
                let bits = if ftz { FORMAT.flush(bits) } else { bits };
                if saturate { FORMAT.saturate(bits) } else { bits }
            }
            macro_rules! rows {
                (|[$d($d x:ident),+]| $d value:expr) => {
                    map!(registers, mask, to, from, |[$d($d x),+]| {
                        $d(let $d x = get($d x, ftz);)+
                        put($d value, ftz, saturate)
                    })
                };
            }
            macro_rules! extreme {
                ($before:tt, $of_zeros:tt) => {
                    map!(registers, mask, to, from, |[a, b]| {
                        let sign = if xorsign { (a ^ b) & FORMAT.sign() } else { 0 };
                        let keep = if xorsign { !FORMAT.sign() } else { !0 };
                        let (x, y) = (get(a & keep, ftz), get(b & keep, ftz));
                        // Of equal numbers only the signs of zeros can differ.
                        let equal = x.to_bits() $of_zeros y.to_bits();
                        let lone = if x.is_nan() { y.to_bits() } else { x.to_bits() };
                        let other = if x $before y { x.to_bits() } else { y.to_bits() };
                        let number = if x == y { equal } else { other };
                        let number = if y.is_nan() || x.is_nan() { lone } else { number };
                        let none = if nan { x.is_nan() | y.is_nan() } else { x.is_nan() & y.is_nan() };
                        if none { FORMAT.nan() } else { u64::from(number) | sign }
                    })
                };
            }
            match op.op {
                FloatOp::Add => rows!(|[a, b]| a + b),
                FloatOp::Sub => rows!(|[a, b]| a - b),
                FloatOp::Mul => rows!(|[a, b]| a * b),
                FloatOp::Fma => {
                    rows!(|[a, b, c]| a.mul_add(b, c))
                }
                FloatOp::Div => rows!(|[a, b]| a / b),
                FloatOp::Sqrt => rows!(|[a]| a.sqrt()),
                FloatOp::Rcp => rows!(|[a]| 1.0 / a),
                FloatOp::Neg => map!(registers, mask, to, from, |[a]| {
                    (if ftz { FORMAT.flush(a) } else { a }) ^ FORMAT.sign()
                }),
                FloatOp::Abs => map!(registers, mask, to, from, |[a]| {
                    (if ftz { FORMAT.flush(a) } else { a }) & !FORMAT.sign()
                }),
                FloatOp::Copysign => {
                    map!(registers, mask, to, from, |[a, b]| a & FORMAT.sign() | b & !FORMAT.sign())
                }
                FloatOp::Min => extreme!(<, |),
                FloatOp::Max => extreme!(>, &),
            }
        }
    };
}

native!(f32_op, f32, u32, F32, $);
native!(f64_op, f64, u64, F64, $);

#[inline(always)]
pub(super) fn execute(
    op: Arithmetic,
    double: bool,
    alu: &Alu,
    registers: &mut Registers,
    mask: u32,
) {
    let plain = !(op.ftz || op.saturate || op.nan || op.xorsign);
    match (op.rounding, double) {
        (Rounding::Nearest, false) if plain => f32_op::<true>(op, alu, registers, mask),
        (Rounding::Nearest, true) if plain => f64_op::<true>(op, alu, registers, mask),
        (Rounding::Nearest, _) => modified(op, double, alu, registers, mask),
        (_, false) => directed(op, F32, alu, registers, mask),
        (_, true) => directed(op, F64, alu, registers, mask),
    }
}

#[inline(never)]
fn modified(op: Arithmetic, double: bool, alu: &Alu, registers: &mut Registers, mask: u32) {
    if double {
        f64_op::<false>(op, alu, registers, mask);
    } else {
        f32_op::<false>(op, alu, registers, mask);
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
