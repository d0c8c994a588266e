//! Element types on the host.
use cudarc::driver::{DeviceRepr, ValidAsZeroBits};
use half::{bf16, f16};

/// What a buffer on a device may hold.
pub trait Word: Copy + DeviceRepr + ValidAsZeroBits {
    /// How its bits are to be read.
    const KIND: Kind;
    /// Its bits, zero-extended.
    fn bits(self) -> u64;
}

/// How bits are to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    U8,
    U16,
    U32,
    U64,
    F16,
    Bf16,
    F32,
    F64,
}

impl Kind {
    /// Bytes of one.
    pub fn size(self) -> usize {
        match self {
            Kind::U8 => 1,
            Kind::U16 | Kind::F16 | Kind::Bf16 => 2,
            Kind::U32 | Kind::F32 => 4,
            Kind::U64 | Kind::F64 => 8,
        }
    }

    /// The value of bits that stand for a real number.
    pub fn real(self, bits: u64) -> Option<f64> {
        match self {
            Kind::F16 => Some(f16::from_bits(bits as u16).to_f64()),
            Kind::Bf16 => Some(bf16::from_bits(bits as u16).to_f64()),
            Kind::F32 => Some(f32::from_bits(bits as u32).into()),
            Kind::F64 => Some(f64::from_bits(bits)),
            _ => None,
        }
    }
}

macro_rules! words {
    ($($word:ty: $kind:ident, $bits:expr;)*) => {
        $(impl Word for $word {
            const KIND: Kind = Kind::$kind;
            fn bits(self) -> u64 {
                let bits: fn(Self) -> u64 = $bits;
                bits(self)
            }
        })*
    };
}
words! {
    u8: U8, u64::from;
    u16: U16, u64::from;
    u32: U32, u64::from;
    i32: U32, |v| u64::from(v as u32);
    u64: U64, |v| v;
    f16: F16, |v| v.to_bits().into();
    bf16: Bf16, |v| v.to_bits().into();
    f32: F32, |v| v.to_bits().into();
    f64: F64, f64::to_bits;
}

/// What a tensor holds.
pub trait Element: Word {
    /// The type of its sums, parameters and statistics.
    type Acc: Element<Acc = Self::Acc>;
    /// As kernels are called by it.
    const NAME: &str;
    /// Half of the distance from 1 to the next greater number: what rounding costs, relatively.
    const UNIT: f64;
    /// What rounding costs at most where relative precision ends.
    const TINY: f64;
    /// Rounded to nearest.
    fn narrow(value: f64) -> Self;
    fn widen(self) -> f64;
}

macro_rules! elements {
    ($($element:ty: $acc:ty, $name:literal, $digits:expr, $smallest:expr, $narrow:expr;)*) => {
        $(impl Element for $element {
            type Acc = $acc;
            const NAME: &str = $name;
            const UNIT: f64 = 1.0 / (1_u64 << $digits) as f64;
            const TINY: f64 = $smallest / 2.0;
            fn narrow(value: f64) -> Self {
                let narrow: fn(f64) -> Self = $narrow;
                narrow(value)
            }
            fn widen(self) -> f64 {
                self.into()
            }
        })*
    };
}
elements! {
    f64: f64, "f64", f64::MANTISSA_DIGITS, 5e-324, |v| v;
    f32: f32, "f32", f32::MANTISSA_DIGITS, 1.4e-45, |v| v as f32;
    f16: f32, "f16", f16::MANTISSA_DIGITS, 6e-8, |v| f16::from_f32(v as f32);
    bf16: f32, "bf16", bf16::MANTISSA_DIGITS, 9.2e-41, |v| bf16::from_f32(v as f32);
}
