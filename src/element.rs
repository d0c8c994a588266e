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
mod tests {
    use super::*;

    #[test]
    fn bf16_rounds_as_half_does() {
        // Every upper half with lower halves around the tie, NaN and infinities among them.
        for high in 0..=u16::MAX {
            for low in [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let wide = f32::from_bits(u32::from(high) << 16 | low);
                let (ours, theirs) = (bf16::narrow(wide), bf16::from_f32(wide));
                assert_eq!(ours.to_bits(), theirs.to_bits(), "{wide:e}");
            }
            let narrow = bf16::from_bits(high);
            let same = narrow.widen().to_bits() == narrow.to_f32().to_bits();
            assert!(same || narrow.is_nan(), "{high:#x}");
        }
    }

    #[test]
    fn rounds_to_zero_is_the_edge() {
        fn edge<E: Element<Acc = f32>>() {
            assert_eq!(E::narrow(E::ROUNDS_TO_ZERO).widen(), 0.0);
            let above = f32::from_bits(E::ROUNDS_TO_ZERO.to_bits() + 1);
            assert!(E::narrow(above).widen() > 0.0);
        }
        edge::<f16>();
        edge::<bf16>();
        edge::<f32>();
    }

    #[test]
    fn kinks_round_from_half_a_step_on() {
        fn edge<E: Element<Acc = f32>>() {
            for (kink, steps) in [(3.0, 1.0), (-3.0, -1.0), (6.0, 2.0)] {
                let edge: f32 = kink - steps * E::HALF_STEP_AT_THREE;
                assert_eq!(E::narrow(edge).widen(), kink, "{}", E::DTYPE);
                let before = if kink > 0.0 { edge.next_down() } else { edge.next_up() };
                assert_ne!(E::narrow(before).widen(), kink, "{}", E::DTYPE);
            }
        }
        edge::<f16>();
        edge::<bf16>();
        edge::<f32>();
    }

    #[test]
    fn f16_converts_as_half_does() {
        for bits in 0..=u16::MAX {
            let x = f16::from_bits(bits);
            let (ours, theirs) = (x.widen(), x.to_f32());
            assert!(ours.to_bits() == theirs.to_bits() || ours.is_nan() && x.is_nan(), "{x:e}");
            // The values about it, and about the ties on both sides.
            for offset in [-0x1001, -0x1000, -0xfff, -1, 0, 1, 0xfff, 0x1000, 0x1001] {
                let wide = f32::from_bits(theirs.to_bits().wrapping_add_signed(offset));
                let (ours, theirs) = (f16::narrow(wide), f16::from_f32(wide));
                let same = ours.to_bits() == theirs.to_bits();
                assert!(same || ours.is_nan() && wide.is_nan(), "{wide:e}: {ours} {theirs}");
            }
        }
        // Results below the least normal number, where ties lie elsewhere.
        for bits in (0..LEAST_NORMAL).step_by(997).chain([0x3300_0000, 0x3300_0001, 0x3380_0000]) {
            let wide = f32::from_bits(bits);
            assert_eq!(f16::narrow(wide).to_bits(), f16::from_f32(wide).to_bits(), "{wide:e}");
        }
    }
    const LEAST_NORMAL: u32 = (127 - 14) << 23;
}
