//! Numbers without rounding error.

use super::{Format, Rounding};

/// What bits of a format stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Number {
    Nan,
    Infinite { negative: bool },
    Finite(Exact),
}

impl Number {
    /// Reads bits of a format.
    pub fn of(format: Format, bits: u64) -> Number {
        let negative = bits & format.sign() != 0;
        let magnitude = bits & (format.sign() - 1);
        if magnitude > format.infinity() {
            return Number::Nan;
        }
        if magnitude == format.infinity() {
            return Number::Infinite { negative };
        }
        let exponent = (magnitude >> format.fraction) as i32;
        let fraction = magnitude & ((1 << format.fraction) - 1);
        let leading = if exponent == 0 { 0 } else { 1 << format.fraction };
        let least = 1 - format.bias() - format.fraction as i32;
        let significand = u128::from(fraction | leading);
        Number::Finite(Exact { negative, significand, exponent: least + (exponent - 1).max(0) })
    }
}

/// `significand * 2^exponent`, with a sign that zero has too.
///
/// The lowest bit of a significand of more than 60 bits may stand for "this or a little more": no format is so wide that
/// rounding could tell the difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Exact {
    pub negative: bool,
    pub significand: u128,
    pub exponent: i32,
}

impl Exact {
    /// Significant bits at most, so that two of them can be added.
    const WIDTH: u32 = 126;

    /// An integer.
    pub fn integer(value: i128) -> Exact {
        Exact { negative: value < 0, significand: value.unsigned_abs(), exponent: 0 }
    }

    fn bits(self) -> u32 {
        u128::BITS - self.significand.leading_zeros()
    }

    /// The same number with a significand of that many bits.
    fn widened(self, bits: u32) -> Exact {
        let shift = bits.saturating_sub(self.bits());
        Exact {
            significand: self.significand << shift,
            exponent: self.exponent - shift as i32,
            ..self
        }
    }

    /// The sum. `mode` decides the sign of a zero that is none of the operands' doing.
    pub fn plus(self, other: Exact, mode: Rounding) -> Exact {
        if self.significand == 0 && other.significand == 0 {
            let negative = match mode {
                Rounding::Down => self.negative || other.negative,
                _ => self.negative && other.negative,
            };
            return Exact { negative, ..self };
        }
        if self.significand == 0 {
            return other;
        }
        if other.significand == 0 {
            return self;
        }
        let (a, b) = (self.widened(Self::WIDTH), other.widened(Self::WIDTH));
        let (high, low) = if a.exponent >= b.exponent { (a, b) } else { (b, a) };
        let low_significand =
            shift_right_sticky(low.significand, (high.exponent - low.exponent) as u32);
        if high.negative == low.negative {
            return Exact { significand: high.significand + low_significand, ..high };
        }
        let negative = match high.significand.cmp(&low_significand) {
            std::cmp::Ordering::Greater => high.negative,
            std::cmp::Ordering::Less => low.negative,
            std::cmp::Ordering::Equal => mode == Rounding::Down,
        };
        let significand = high.significand.abs_diff(low_significand);
        Exact { negative, significand, exponent: high.exponent }
    }

    /// The product, of numbers of 64 bits at most.
    pub fn times(self, other: Exact) -> Exact {
        Exact {
            negative: self.negative != other.negative,
            significand: self.significand * other.significand,
            exponent: self.exponent + other.exponent,
        }
    }

    /// The quotient, of numbers of 60 bits at most; the divisor is not 0.
    pub fn over(self, other: Exact) -> Exact {
        let a = self.widened(127);
        let quotient = a.significand / other.significand;
        let rest = a.significand % other.significand;
        Exact {
            negative: self.negative != other.negative,
            significand: quotient | u128::from(rest != 0),
            exponent: a.exponent - other.exponent,
        }
    }

    /// The square root of a number that is not below 0.
    pub fn square_root(self) -> Exact {
        let mut a = self.widened(126);
        if a.exponent % 2 != 0 {
            a = a.widened(127);
        }
        let root = a.significand.isqrt();
        let significand = root | u128::from(root * root != a.significand);
        Exact { negative: self.negative, significand, exponent: a.exponent / 2 }
    }

    /// The bits of the format's number that `mode` takes; zeros keep their sign.
    pub fn round(self, format: Format, mode: Rounding) -> u64 {
        let sign = if self.negative { format.sign() } else { 0 };
        if self.significand == 0 {
            return sign;
        }
        let top = self.exponent + self.bits() as i32 - 1;
        let scale = top.max(1 - format.bias());
        let kept = self.at(scale - format.fraction as i32, mode);
        // The leading one of `kept` counts the exponent up by one; that of a subnormal number is absent.
        let bits = (((scale + format.bias() - 1) as u64) << format.fraction) + kept as u64;
        if bits < format.infinity() {
            return sign | bits;
        }
        let to_infinity = match mode {
            Rounding::Nearest | Rounding::NearestAway => true,
            Rounding::Zero => false,
            Rounding::Down => self.negative,
            Rounding::Up => !self.negative,
        };
        sign | if to_infinity { format.infinity() } else { format.greatest() }
    }

    /// The magnitude as a multiple of `2^exponent`, rounded.
    pub fn at(self, exponent: i32, mode: Rounding) -> u128 {
        let shift = exponent - self.exponent;
        if shift <= 0 {
            return self.significand << -shift;
        }
        // A bit at the bottom remembers what was shifted out; the one above it is a half.
        let quarters = shift_right_sticky(self.significand << 1, shift as u32 - 1);
        let (kept, half) = (quarters >> 2, quarters >> 1 & 1 == 1);
        let more = quarters & 1 == 1;
        let up = match mode {
            Rounding::Nearest => half && (more || kept & 1 == 1),
            Rounding::NearestAway => half,
            Rounding::Zero => false,
            Rounding::Down => self.negative && (half || more),
            Rounding::Up => !self.negative && (half || more),
        };
        kept + u128::from(up)
    }
}

/// Shifts right; the lowest bit of the result is set if anything was lost.
fn shift_right_sticky(value: u128, shift: u32) -> u128 {
    if shift == 0 {
        value
    } else if shift >= u128::BITS {
        u128::from(value != 0)
    } else {
        value >> shift | u128::from(value << (u128::BITS - shift) != 0)
    }
}
