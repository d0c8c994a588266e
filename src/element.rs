//! f16, bf16, f32, f64: the type that is stored, and the type that sums are made in.
use crate::engine::{CpuOperations, Math};
use half::{bf16, f16};

/// A storage type, as a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DType {
    /// IEEE double precision.
    F64,
    /// IEEE single precision.
    F32,
    /// IEEE half precision: largest value 65504.
    F16,
    /// The upper half of an f32.
    Bf16,
}

impl DType {
    /// Bytes of an element.
    pub const fn size(self) -> usize {
        match self {
            Self::F64 => 8,
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

/// `f64`, `f32`, `f16`, `bf16`.
impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            DType::F64 => "f64",
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::Bf16 => "bf16",
        })
    }
}

mod sealed {
    /// Keeps the set of types closed, so that every engine can serve all of them.
    #[cfg(not(feature = "cuda"))]
    pub trait Sealed {}
    /// Keeps the set of types closed, so that every engine and device can serve all of them.
    #[cfg(feature = "cuda")]
    pub trait Sealed: cudarc::driver::DeviceRepr + cudarc::driver::ValidAsZeroBits {}
}

/// What a buffer may hold: an [`Element`], or the bytes of a reserve space. Sealed, and [`Element`] and
/// [`Real`] with it: engines have code for each type.
pub trait Plain:
    sealed::Sealed + Copy + Default + PartialEq + std::fmt::Debug + Send + Sync + 'static
{
}

/// A type that activations are stored in.
#[diagnostic::on_unimplemented(
    message = "batch normalization of `{Self}`: use f16, bf16, f32 or f64"
)]
pub trait Element: Plain + CpuOperations {
    /// The type of sums, parameters and statistics: f64 for f64, f32 for the others.
    type Acc: Real;
    /// This type, as a value.
    const DTYPE: DType;
    /// The largest value of the accumulating type that this type rounds to zero.
    ///
    /// A ReLU whose input is at most this gives 0, and passes no gradient.
    const ROUNDS_TO_ZERO: Self::Acc;
    /// Half the distance of this type's values from 2 to 4, 0 where the accumulating type is the same.
    ///
    /// So what rounds to a kink at 3 begins this far from it, and at 6 twice as far: ties round to even, as
    /// both are.
    const HALF_STEP_AT_THREE: Self::Acc;
    /// To the accumulating type, exactly.
    fn widen(self) -> Self::Acc;
    /// From the accumulating type, to nearest, ties to even.
    fn narrow(acc: Self::Acc) -> Self;
}

/// A type that arithmetic is done in: f32 or f64, nothing else.
pub trait Real:
    Element<Acc = Self>
    + Math
    + PartialOrd
    + std::iter::Sum
    + std::ops::Add<Output = Self>
    + std::ops::Sub<Output = Self>
    + std::ops::Mul<Output = Self>
    + std::ops::Div<Output = Self>
    + std::ops::AddAssign
{
    /// Rounded to this type.
    fn from_f64(v: f64) -> Self;
    /// Exactly.
    fn to_f64(self) -> f64;
}

macro_rules! real {
    ($t:ty, $dtype:ident) => {
        impl sealed::Sealed for $t {}
        impl Plain for $t {}
        impl Element for $t {
            type Acc = $t;
            const DTYPE: DType = DType::$dtype;
            const ROUNDS_TO_ZERO: $t = 0.0;
            const HALF_STEP_AT_THREE: $t = 0.0;
            #[inline(always)]
            fn widen(self) -> $t {
                self
            }
            #[inline(always)]
            fn narrow(acc: $t) -> $t {
                acc
            }
        }
        impl Real for $t {
            #[inline(always)]
            fn from_f64(v: f64) -> Self {
                v as $t
            }
            #[inline(always)]
            fn to_f64(self) -> f64 {
                self.into()
            }
        }
    };
}
real!(f64, F64);
real!(f32, F32);

impl sealed::Sealed for f16 {}
impl Plain for f16 {}
impl Element for f16 {
    type Acc = f32;
    const DTYPE: DType = DType::F16;
    const ROUNDS_TO_ZERO: f32 = f32::from_bits((127 - 25) << 23); // half of the least, 2^-24
    const HALF_STEP_AT_THREE: f32 = 1.0 / 1024.0;
    /// Without a branch, as `narrow`, so that loops over them become vector code.
    #[inline(always)]
    fn widen(self) -> f32 {
        let (sign, rest) = (u32::from(self.to_bits() & 0x8000), u32::from(self.to_bits() & 0x7fff));
        let shifted = rest << 13; // the exponent is 112 too small, that of subnormal numbers, too
        let finite = (f32::from_bits(shifted) * f32::from_bits((127 + 112) << 23)).to_bits();
        let wide = if rest >= 0x7c00 { shifted | 0x7f80_0000 } else { finite };
        f32::from_bits(wide | sign << 16)
    }
    #[inline(always)]
    fn narrow(acc: f32) -> f16 {
        const HALF: u32 = 1 << 12; // of the last place that stays
        const LEAST: u32 = (127 - 14) << 23; // the least normal number
        const INFINITE: u32 = (127 + 16) << 23;
        let sign = acc.to_bits() >> 16 & 0x8000;
        let rest = acc.to_bits() & 0x7fff_ffff;
        let normal = rest.wrapping_sub(112 << 23).wrapping_add(HALF - 1 + (rest >> 13 & 1)) >> 13;
        // An addition rounds to the last place of 1/2, which is that of subnormal numbers.
        let subnormal = (f32::from_bits(rest) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
        let finite = if rest < LEAST { subnormal } else { normal };
        let large = if rest > 0x7f80_0000 { 0x7e00 | rest >> 13 & 0x1ff } else { 0x7c00 };
        f16::from_bits((sign | if rest >= INFINITE { large } else { finite }) as u16)
    }
}

impl sealed::Sealed for bf16 {}
impl Plain for bf16 {}
impl Element for bf16 {
    type Acc = f32;
    const DTYPE: DType = DType::Bf16;
    const ROUNDS_TO_ZERO: f32 = f32::from_bits(1 << 15); // half of the least, 2^-133
    const HALF_STEP_AT_THREE: f32 = 1.0 / 128.0;
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
    /// Without a branch, so that a loop over it becomes vector code.
    #[inline(always)]
    fn narrow(acc: f32) -> bf16 {
        let bits = acc.to_bits();
        let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
        let quiet = bits >> 16 | 0x40;
        bf16::from_bits(if acc.is_nan() { quiet } else { rounded } as u16)
    }
}

impl sealed::Sealed for u8 {}
impl Plain for u8 {}

#[cfg(test)]
#[path = "element_tests.rs"]
mod tests;
