//! Types of numbers in device memory.

use half::{bf16, f16};

/// A type of number that the libraries compute with; all of them widen to f64 exactly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Number {
    /// Bytes that are no numbers.
    Byte,
    /// IEEE half precision.
    F16,
    /// The upper half of an [`Number::F32`].
    Bf16,
    /// IEEE single precision.
    F32,
    /// IEEE double precision.
    F64,
}

impl Number {
    /// Bytes of one.
    #[must_use]
    pub fn width(self) -> usize {
        match self {
            Number::Byte => 1,
            Number::F16 | Number::Bf16 => 2,
            Number::F32 => 4,
            Number::F64 => 8,
        }
    }

    /// The numbers that these bytes are.
    #[must_use]
    pub fn load(self, bytes: &[u8]) -> Vec<f64> {
        match self {
            Number::Byte => bytes.iter().map(|byte| f64::from(*byte)).collect(),
            Number::F16 => each(bytes, |b| f16::from_le_bytes(b).to_f64()),
            Number::Bf16 => each(bytes, |b| bf16::from_le_bytes(b).to_f64()),
            Number::F32 => each(bytes, |b| f64::from(f32::from_le_bytes(b))),
            Number::F64 => each(bytes, f64::from_le_bytes),
        }
    }

    /// Writes numbers, each rounded to the nearest of this type.
    pub fn store(self, values: &[f64], bytes: &mut [u8]) {
        let places = bytes.chunks_exact_mut(self.width());
        for (value, place) in values.iter().zip(places) {
            match self {
                Number::Byte => place[0] = *value as u8,
                Number::F16 => place.copy_from_slice(&f16::from_f64(*value).to_le_bytes()),
                Number::Bf16 => place.copy_from_slice(&bf16::from_f64(*value).to_le_bytes()),
                Number::F32 => place.copy_from_slice(&(*value as f32).to_le_bytes()),
                Number::F64 => place.copy_from_slice(&value.to_le_bytes()),
            }
        }
    }

    /// The nearest number of this type.
    #[must_use]
    pub fn round(self, value: f64) -> f64 {
        match self {
            Number::Byte => f64::from(value as u8),
            Number::F16 => f16::from_f64(value).to_f64(),
            Number::Bf16 => bf16::from_f64(value).to_f64(),
            Number::F32 => f64::from(value as f32),
            Number::F64 => value,
        }
    }
}

fn each<const N: usize>(bytes: &[u8], widen: impl Fn([u8; N]) -> f64) -> Vec<f64> {
    bytes.chunks_exact(N).map(|b| widen(b.try_into().expect("N bytes"))).collect()
}
