//! Floating-point arithmetic on bits, exact and rounded once, for every format and rounding mode of PTX.
//!
//! Values are worked out as integers times powers of two. It is slow and plain; the machine's own arithmetic takes its place
//! where that gives the same bits, and is tested against it.

pub mod arithmetic;
pub mod convert;
mod exact;
pub mod half;

pub use exact::{Exact, Number};

/// Which of the two neighbours of an exact result is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rounding {
    /// `.rn`: the nearest, of two equally near the even one.
    Nearest,
    /// `.rna`: the nearest, of two equally near the one farther from zero.
    NearestAway,
    /// `.rz`: the one nearer to zero.
    Zero,
    /// `.rm`: the lower one.
    Down,
    /// `.rp`: the upper one.
    Up,
}

/// A binary floating-point format of IEEE 754's making.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Format {
    /// Bits of the exponent.
    pub exponent: u32,
    /// Bits of the fraction, the leading one not counted.
    pub fraction: u32,
}

/// binary16
pub const F16: Format = Format { exponent: 5, fraction: 10 };
/// The upper half of binary32.
pub const BF16: Format = Format { exponent: 8, fraction: 7 };
/// The upper 19 bits of binary32.
pub const TF32: Format = Format { exponent: 8, fraction: 10 };
/// binary32
pub const F32: Format = Format { exponent: 8, fraction: 23 };
/// binary64
pub const F64: Format = Format { exponent: 11, fraction: 52 };

impl Format {
    /// Bits of a value.
    pub const fn width(self) -> u32 {
        1 + self.exponent + self.fraction
    }

    /// The bit of the sign.
    pub const fn sign(self) -> u64 {
        1 << (self.exponent + self.fraction)
    }

    /// What is added to the exponent of a normal number.
    pub const fn bias(self) -> i32 {
        (1 << (self.exponent - 1)) - 1
    }

    /// The bits of positive infinity.
    pub const fn infinity(self) -> u64 {
        ((1 << self.exponent) - 1) << self.fraction
    }

    /// The bits of the greatest finite number.
    pub const fn greatest(self) -> u64 {
        self.infinity() - 1
    }

    /// The bits of one.
    pub const fn one(self) -> u64 {
        (self.bias() as u64) << self.fraction
    }

    /// The NaN that arithmetic gives: `0x7fff` for the 16-bit formats, `0x7fffffff` for f32. PTX does not say which it is for
    /// f64; the usual quiet one stands for it.
    pub const fn nan(self) -> u64 {
        if self.fraction == F64.fraction { 0x7ff8_0000_0000_0000 } else { self.sign() - 1 }
    }

    /// Whether the bits are a NaN.
    #[inline(always)]
    pub const fn is_nan(self, bits: u64) -> bool {
        bits & (self.sign() - 1) > self.infinity()
    }

    /// `.ftz`: a subnormal number becomes a zero of its sign.
    #[inline(always)]
    pub const fn flush(self, bits: u64) -> u64 {
        if bits & self.infinity() == 0 { bits & self.sign() } else { bits }
    }

    /// `.sat`: what is below 0, and NaN, becomes +0; what is above 1 becomes 1.
    #[inline(always)]
    pub const fn saturate(self, bits: u64) -> u64 {
        if bits & self.sign() != 0 || self.is_nan(bits) {
            0
        } else if bits > self.one() {
            self.one()
        } else {
            bits
        }
    }

    /// `.relu`: what is below 0 becomes +0; NaN becomes the canonical one.
    #[inline(always)]
    pub const fn relu(self, bits: u64) -> u64 {
        if self.is_nan(bits) {
            self.nan()
        } else if bits & self.sign() != 0 {
            0
        } else {
            bits
        }
    }
}
