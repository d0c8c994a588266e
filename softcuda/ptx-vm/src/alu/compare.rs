//! Comparisons, and what chooses by them.

use super::lanes::map;
use super::{Alu, Float};
use crate::instr::Type;
use crate::numerics::{BF16, F16, F32, F64, Format, half};
use crate::registers::{Registers, Row};

/// How two values are compared. Those with `OrUnordered` are true of NaN as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    EqualOrUnordered,
    NotEqualOrUnordered,
    LessOrUnordered,
    LessOrEqualOrUnordered,
    GreaterOrUnordered,
    GreaterOrEqualOrUnordered,
    /// `num`: neither is NaN.
    Ordered,
    /// `nan`: one is.
    Unordered,
}

/// What joins a comparison with a predicate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Connective {
    And,
    Or,
    Xor,
}

/// What stands for true in the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Truth {
    /// `setp`
    Predicate,
    /// `setp` with a second result, for the opposite.
    Predicates,
    /// `set` with this value for true, in each half if the operands are packed.
    Value(u32),
}

/// `setp` and `set`. The third operand is the predicate of the connective.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Compare {
    /// The comparison.
    pub comparison: Comparison,
    /// The type of both operands.
    pub ty: Type,
    /// `.ftz`
    pub ftz: bool,
    /// What joins it with a predicate, and whether that is negated.
    pub connective: Option<(Connective, bool)>,
    /// The result.
    pub truth: Truth,
}

impl Comparison {
    #[inline(always)]
    fn holds<T: PartialOrd>(self, a: T, b: T) -> bool {
        // A NaN is what is not even equal to itself.
        #[allow(clippy::eq_op)]
        let unordered = a != a || b != b;
        match self {
            Comparison::Equal => a == b,
            Comparison::NotEqual => a != b && !unordered,
            Comparison::Less => a < b,
            Comparison::LessOrEqual => a <= b,
            Comparison::Greater => a > b,
            Comparison::GreaterOrEqual => a >= b,
            Comparison::EqualOrUnordered => a == b || unordered,
            Comparison::NotEqualOrUnordered => a != b,
            Comparison::LessOrUnordered => a < b || unordered,
            Comparison::LessOrEqualOrUnordered => a <= b || unordered,
            Comparison::GreaterOrUnordered => a > b || unordered,
            Comparison::GreaterOrEqualOrUnordered => a >= b || unordered,
            Comparison::Ordered => !unordered,
            Comparison::Unordered => unordered,
        }
    }
}

#[inline(always)]
fn rows<T: PartialOrd>(comparison: Comparison, a: &Row, b: &Row, get: impl Fn(u64) -> T) -> Row {
    let mut holds = [0; 32];
    // The comparison is chosen once, outside the loop over the lanes.
    macro_rules! by_comparison {
        ($($name:ident)*) => {
            match comparison {
                $(Comparison::$name => for lane in 0..32 {
                    holds[lane] = u64::from(Comparison::$name.holds(get(a[lane]), get(b[lane])));
                },)*
            }
        };
    }
    by_comparison!(Equal NotEqual Less LessOrEqual Greater GreaterOrEqual EqualOrUnordered
        NotEqualOrUnordered LessOrUnordered LessOrEqualOrUnordered GreaterOrUnordered
        GreaterOrEqualOrUnordered Ordered Unordered);
    holds
}

/// 1 where the comparison holds.
#[inline(always)]
fn compared(compare: &Compare, shift: u32, a: &Row, b: &Row) -> Row {
    let c = compare.comparison;
    let flushed = |format: Format, x: u64| if compare.ftz { format.flush(x) } else { x };
    match compare.ty {
        Type::S16 => rows(c, a, b, |x| x as i16),
        Type::S32 => rows(c, a, b, |x| x as i32),
        Type::S64 => rows(c, a, b, |x| x as i64),
        Type::F32 => rows(c, a, b, |x| f32::from_bits(flushed(F32, x) as u32)),
        Type::F64 => rows(c, a, b, f64::from_bits),
        Type::F16 | Type::F16x2 => rows(c, a, b, |x| {
            f32::from_bits(half::f16_to_f32(flushed(F16, x >> shift & 0xffff) as u16))
        }),
        Type::Bf16 | Type::Bf16x2 => rows(c, a, b, |x| {
            f32::from_bits(half::bf16_to_f32(flushed(BF16, x >> shift & 0xffff) as u16))
        }),
        _ => rows(c, a, b, |x| x),
    }
}

#[inline(always)]
pub(super) fn execute(compare: Compare, alu: &Alu, registers: &mut Registers, mask: u32) {
    let (a, b) = (registers.row(alu.from[0]), registers.row(alu.from[1]));
    let joined = |mut holds: Row| {
        if let Some((connective, negated)) = compare.connective {
            let c = registers.row(alu.from[2]);
            for (lane, holds) in holds.iter_mut().enumerate() {
                let c = c[lane] ^ u64::from(negated);
                match connective {
                    Connective::And => *holds &= c,
                    Connective::Or => *holds |= c,
                    Connective::Xor => *holds ^= c,
                }
            }
        }
        holds
    };
    let holds = compared(&compare, 0, a, b);
    if compare.connective.is_none() && compare.truth == Truth::Predicate {
        registers.merge(alu.to[0], mask, &holds);
        return;
    }
    match compare.truth {
        Truth::Predicate => {
            let values = joined(holds);
            registers.merge(alu.to[0], mask, &values);
        }
        Truth::Predicates => {
            let (values, opposite) = (joined(holds), joined(holds.map(|t| t ^ 1)));
            registers.merge(alu.to[0], mask, &values);
            registers.merge(alu.to[1], mask, &opposite);
        }
        Truth::Value(value) => {
            let mut values = joined(holds).map(|t| t * u64::from(value));
            if matches!(compare.ty, Type::F16x2 | Type::Bf16x2) {
                let high = joined(compared(&compare, 16, a, b));
                for (low, high) in values.iter_mut().zip(high) {
                    *low |= (high * u64::from(value)) << 16;
                }
            }
            registers.merge(alu.to[0], mask, &values);
        }
    }
}

/// What `testp` asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Property {
    Finite,
    Infinite,
    Number,
    NotANumber,
    /// Neither NaN, infinite nor subnormal; zeros are normal.
    Normal,
    Subnormal,
}

#[inline(never)]
pub(super) fn test(property: Property, ty: Float, alu: &Alu, registers: &mut Registers, mask: u32) {
    let format = if ty == Float::F64 { F64 } else { F32 };
    map!(registers, mask, alu.to[0], &alu.from, |[a]| {
        let magnitude = a & (format.sign() - 1);
        let subnormal = magnitude != 0 && magnitude >> format.fraction == 0;
        u64::from(match property {
            Property::Finite => magnitude < format.infinity(),
            Property::Infinite => magnitude == format.infinity(),
            Property::Number => magnitude <= format.infinity(),
            Property::NotANumber => magnitude > format.infinity(),
            Property::Normal => magnitude < format.infinity() && !subnormal,
            Property::Subnormal => subnormal,
        })
    });
}

#[inline(never)]
pub(super) fn select_float(ftz: bool, alu: &Alu, registers: &mut Registers, mask: u32) {
    map!(registers, mask, alu.to[0], &alu.from, |[a, b, c]| {
        // -0 counts as 0, NaN as less.
        let c = f32::from_bits(if ftz { F32.flush(c) } else { c } as u32);
        if c >= 0.0 { a } else { b }
    });
}
