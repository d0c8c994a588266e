//! Arithmetic on bits of one format.

use super::{Exact, Format, Number, Rounding};
use Number::{Finite, Infinite, Nan};

/// `a + b`
pub fn add(format: Format, a: u64, b: u64, mode: Rounding) -> u64 {
    sum(format, Number::of(format, a), Number::of(format, b), mode)
}

/// `a - b`
pub fn sub(format: Format, a: u64, b: u64, mode: Rounding) -> u64 {
    add(format, a, b ^ format.sign(), mode)
}

/// `a * b`
pub fn mul(format: Format, a: u64, b: u64, mode: Rounding) -> u64 {
    finish(format, product(Number::of(format, a), Number::of(format, b)), mode)
}

/// `a * b + c`, rounded once.
pub fn fma(format: Format, a: u64, b: u64, c: u64, mode: Rounding) -> u64 {
    sum(format, product(Number::of(format, a), Number::of(format, b)), Number::of(format, c), mode)
}

/// `a / b`
pub fn div(format: Format, a: u64, b: u64, mode: Rounding) -> u64 {
    let quotient = match (Number::of(format, a), Number::of(format, b)) {
        (Nan, _) | (_, Nan) | (Infinite { .. }, Infinite { .. }) => Nan,
        (Infinite { negative }, Finite(b)) => Infinite { negative: negative != b.negative },
        (Finite(a), Infinite { negative }) => {
            Finite(Exact { negative: a.negative != negative, significand: 0, exponent: 0 })
        }
        (Finite(a), Finite(b)) if b.significand == 0 => match a.significand {
            0 => Nan,
            _ => Infinite { negative: a.negative != b.negative },
        },
        (Finite(a), Finite(b)) => Finite(a.over(b)),
    };
    finish(format, quotient, mode)
}

/// The square root; that of -0 is -0.
pub fn sqrt(format: Format, a: u64, mode: Rounding) -> u64 {
    let root = match Number::of(format, a) {
        Finite(a) if a.significand == 0 => Finite(a),
        Finite(a) if !a.negative => Finite(a.square_root()),
        Infinite { negative: false } => Infinite { negative: false },
        _ => Nan,
    };
    finish(format, root, mode)
}

/// The lesser. Of 0 and -0 that is -0; NaN counts only if both are, or if `nan`.
pub fn min(format: Format, a: u64, b: u64, nan: bool) -> u64 {
    extreme(format, a, b, nan, |a, b| a < b)
}

/// The greater. Of 0 and -0 that is 0; NaN counts only if both are, or if `nan`.
pub fn max(format: Format, a: u64, b: u64, nan: bool) -> u64 {
    extreme(format, a, b, nan, |a, b| a > b)
}

fn extreme(format: Format, a: u64, b: u64, nan: bool, first: impl Fn(i64, i64) -> bool) -> u64 {
    match (format.is_nan(a), format.is_nan(b)) {
        (true, true) => format.nan(),
        (true, false) | (false, true) if nan => format.nan(),
        (true, false) => b,
        (false, true) => a,
        (false, false) if first(order(format, a), order(format, b)) => a,
        (false, false) => b,
    }
}

/// Numbers in their order as integers in theirs; -0 comes before 0.
fn order(format: Format, bits: u64) -> i64 {
    if bits & format.sign() == 0 { bits as i64 } else { !((bits ^ format.sign()) as i64) }
}

fn product(a: Number, b: Number) -> Number {
    match (a, b) {
        (Nan, _) | (_, Nan) => Nan,
        (Infinite { .. }, Finite(x)) | (Finite(x), Infinite { .. }) if x.significand == 0 => Nan,
        (Finite(a), Finite(b)) => Finite(a.times(b)),
        (a, b) => Infinite { negative: negative(a) != negative(b) },
    }
}

fn sum(format: Format, a: Number, b: Number, mode: Rounding) -> u64 {
    let sum = match (a, b) {
        (Nan, _) | (_, Nan) => Nan,
        (Infinite { negative: x }, Infinite { negative: y }) if x != y => Nan,
        (Infinite { negative }, _) | (_, Infinite { negative }) => Infinite { negative },
        (Finite(a), Finite(b)) => Finite(a.plus(b, mode)),
    };
    finish(format, sum, mode)
}

fn negative(number: Number) -> bool {
    match number {
        Nan => false,
        Infinite { negative } => negative,
        Finite(exact) => exact.negative,
    }
}

pub(super) fn finish(format: Format, number: Number, mode: Rounding) -> u64 {
    match number {
        Nan => format.nan(),
        Infinite { negative } => format.infinity() | if negative { format.sign() } else { 0 },
        Finite(exact) => exact.round(format, mode),
    }
}
