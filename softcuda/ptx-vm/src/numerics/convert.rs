//! Conversions between formats, and between them and integers.

use super::arithmetic::finish;
use super::{Exact, Format, Number, Rounding};

/// The number in another format.
pub fn float_to_float(from: Format, to: Format, bits: u64, mode: Rounding) -> u64 {
    finish(to, Number::of(from, bits), mode)
}

/// An integer as a number of the format.
pub fn integer_to_float(value: i128, to: Format, mode: Rounding) -> u64 {
    Exact::integer(value).round(to, mode)
}

/// The number as an integer between `least` and `greatest`; beyond them the nearer of the two, and 0 for NaN.
pub fn float_to_integer(
    from: Format,
    bits: u64,
    mode: Rounding,
    least: i128,
    greatest: i128,
) -> i128 {
    match Number::of(from, bits) {
        Number::Nan => 0,
        Number::Infinite { negative: true } => least,
        Number::Infinite { negative: false } => greatest,
        // 2^65 and more lies beyond every integer type.
        Number::Finite(exact) if exact.exponent > 65 => {
            if exact.negative {
                least
            } else {
                greatest
            }
        }
        Number::Finite(exact) => {
            let magnitude = exact.at(0, mode) as i128;
            let value = if exact.negative { -magnitude } else { magnitude };
            value.clamp(least, greatest)
        }
    }
}

/// The number rounded to an integral one of the same format; zeros keep the sign of what was rounded.
pub fn to_integral(format: Format, bits: u64, mode: Rounding) -> u64 {
    match Number::of(format, bits) {
        Number::Finite(exact) if exact.exponent < 0 => {
            let significand = exact.at(0, mode);
            Exact { significand, exponent: 0, ..exact }.round(format, mode)
        }
        number => finish(format, number, mode),
    }
}
