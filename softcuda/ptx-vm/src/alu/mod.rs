//! Instructions that go from registers to registers, lane by lane.
//!
//! Lanes outside the mask may be computed too (that is what makes whole rows fast), never written.

use crate::instr::Reg;
use crate::numerics::{BF16, F16, Rounding};
use crate::registers::Registers;
use lanes::map;

pub use approximate::Approximate;
pub use bits::Permutation;
pub use compare::{Compare, Comparison, Connective, Property, Truth};
pub use convert::{Convert, Number, RoundTo};
pub use float::FloatOp;
pub use integer::{Carrying, Half, IntegerOp};

mod approximate;
mod bits;
mod compare;
mod convert;
mod float;
mod half;
mod integer;
mod lanes;
mod moves;
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
pub(crate) mod wide;

/// One such instruction. How many of the registers count is a matter of the operation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Alu {
    /// What it does.
    pub operation: Operation,
    /// What it writes.
    pub to: [Reg; 4],
    /// What it reads.
    pub from: [Reg; 4],
}

/// What an [`Alu`] instruction does.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Operation {
    /// `mov`, `cvta` to or from global addresses.
    Move,
    /// `mov` of several registers of so many bits into one.
    Pack { bits: u8, count: u8 },
    /// `mov` of one register into several of so many bits.
    Unpack { bits: u8, count: u8 },
    /// Integer arithmetic, logic, shifts and bit fields.
    Integer(IntegerOp, Integer),
    /// Integer arithmetic with a carry.
    Carry(Carrying),
    /// `not.pred`
    NotPredicate,
    /// `prmt`
    Permute(Permutation),
    /// `lop3`
    Logic3(u8),
    /// `shf`
    Funnel { left: bool, wrap: bool },
    /// `dp4a`
    Dot4 { a_signed: bool, b_signed: bool },
    /// Floating-point arithmetic.
    Float(Arithmetic, Float),
    /// `.approx` and `div.full`
    Approximate(Approximate, bool),
    /// `setp`, `set`
    Compare(Compare),
    /// `testp`
    Test(Property, Float),
    /// `selp`: the first operand where the third is true, else the second.
    Select,
    /// `slct` on s32: the first operand where the third is not below 0, else the second.
    SelectSigned,
    /// `slct` on f32
    SelectFloat { ftz: bool },
    /// `cvt`
    Convert(Convert),
}

/// An integer type of registers; bits count as unsigned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Integer {
    U16,
    S16,
    U32,
    S32,
    U64,
    S64,
}

impl Integer {
    /// Its width.
    pub fn bits(self) -> u32 {
        match self {
            Integer::U16 | Integer::S16 => 16,
            Integer::U32 | Integer::S32 => 32,
            Integer::U64 | Integer::S64 => 64,
        }
    }

    /// Whether it has a sign.
    pub fn signed(self) -> bool {
        matches!(self, Integer::S16 | Integer::S32 | Integer::S64)
    }
}

/// A floating-point type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Float {
    F16,
    Bf16,
    F16x2,
    Bf16x2,
    F32,
    F64,
}

/// Floating-point arithmetic with its modifiers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Arithmetic {
    /// What is done.
    pub op: FloatOp,
    /// How the result is rounded.
    pub rounding: Rounding,
    /// `.ftz`
    pub ftz: bool,
    /// `.sat`
    pub saturate: bool,
    /// `.relu`
    pub relu: bool,
    /// `.NaN`
    pub nan: bool,
    /// `.xorsign.abs`
    pub xorsign: bool,
}

/// Executes an instruction in the lanes of the mask.
pub fn execute(alu: &Alu, registers: &mut Registers, mask: u32) {
    #[cfg(target_arch = "x86_64")]
    if let Some(wide) = wide::Wide::find() {
        return wide.execute(alu, registers, mask);
    }
    plain(alu, registers, mask);
}

/// [`execute`] on any processor.
pub(crate) fn plain(alu: &Alu, registers: &mut Registers, mask: u32) {
    body(alu, registers, mask);
}

/// Inlined into [`plain`], and once more for processors with wider vectors.
#[inline(always)]
fn body(alu: &Alu, registers: &mut Registers, mask: u32) {
    let (to, from) = (alu.to[0], &alu.from[..]);
    match alu.operation {
        Operation::Move => {
            let values = *registers.row(from[0]);
            registers.merge(to, mask, &values);
        }
        Operation::Integer(op, ty) => integer::execute(op, ty, alu, registers, mask),
        Operation::Float(op, ty) => match ty {
            Float::F32 => float::execute(op, false, alu, registers, mask),
            Float::F64 => float::execute(op, true, alu, registers, mask),
            Float::F16 => half::execute(op, F16, false, alu, registers, mask),
            Float::F16x2 => half::execute(op, F16, true, alu, registers, mask),
            Float::Bf16 => half::execute(op, BF16, false, alu, registers, mask),
            Float::Bf16x2 => half::execute(op, BF16, true, alu, registers, mask),
        },
        Operation::Compare(compare) => compare::execute(compare, alu, registers, mask),
        Operation::Select => {
            map!(registers, mask, to, from, |[a, b, c]| if c != 0 { a } else { b });
        }
        Operation::Convert(convert) => convert::execute(convert, alu, registers, mask),
        Operation::Pack { bits, count } => moves::pack(bits, count, alu, registers, mask),
        Operation::Unpack { bits, count } => moves::unpack(bits, count, alu, registers, mask),
        Operation::NotPredicate => map!(registers, mask, to, from, |[a]| a ^ 1),
        Operation::Logic3(table) => {
            map!(registers, mask, to, from, |[a, b, c]| bits::logic(table, [a, b, c]));
        }
        Operation::Funnel { left, wrap } => {
            map!(registers, mask, to, from, |[a, b, c]| bits::funnel(left, wrap, [a, b, c]));
        }
        Operation::Permute(mode) => {
            lanes::map_active(registers, mask, to, from, |abc| bits::permute(mode, abc));
        }
        Operation::Dot4 { a_signed, b_signed } => {
            lanes::map_active(registers, mask, to, from, |abc| bits::dot4(a_signed, b_signed, abc));
        }
        Operation::Carry(op) => integer::carry(op, alu, registers, mask),
        Operation::Approximate(op, ftz) => approximate::execute(op, ftz, alu, registers, mask),
        Operation::Test(property, ty) => compare::test(property, ty, alu, registers, mask),
        Operation::SelectSigned => {
            map!(registers, mask, to, from, |[a, b, c]| if c >> 31 == 0 { a } else { b });
        }
        Operation::SelectFloat { ftz } => compare::select_float(ftz, alu, registers, mask),
    }
}
