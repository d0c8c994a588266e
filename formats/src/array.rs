//! Numbers with a type and a shape, as files hold them.
use std::fmt;

use batchnorm::{DType, StateDict};
use half::{bf16, f16};

use crate::{Error, Result};

/// An array of floating-point numbers, row-major.
#[derive(Debug, Clone, PartialEq)]
pub struct Array {
    /// The type that a file stores them as.
    pub dtype: DType,
    /// The length of each dimension.
    pub shape: Vec<usize>,
    /// The numbers; f64 holds those of every type exactly.
    pub values: Vec<f64>,
}

/// In which order a file has the bytes of a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ByteOrder {
    Little,
    Big,
}

impl Array {
    /// One dimension.
    pub fn vector(dtype: DType, values: Vec<f64>) -> Self {
        Self { dtype, shape: vec![values.len()], values }
    }

    /// The number of values where they are one per channel: one dimension, or all others 1, as
    /// MATLAB, Haiku and TensorFlow's virtual batches have them.
    pub fn channels(&self) -> Option<usize> {
        channels(&self.shape)
    }

    /// Puts it into a state dict, each number rounded to the type.
    pub(crate) fn insert_into(&self, dict: &mut StateDict, name: &str) -> Result<()> {
        fn map<T>(values: &[f64], to: impl Fn(f64) -> T) -> Vec<T> {
            values.iter().map(|&value| to(value)).collect()
        }
        let (shape, values) = (&self.shape, &self.values);
        match self.dtype {
            DType::F64 => dict.insert(name, shape, values)?,
            DType::F16 => dict.insert(name, shape, &map(values, f16::from_f64))?,
            DType::Bf16 => dict.insert(name, shape, &map(values, bf16::from_f64))?,
            _ => dict.insert(name, shape, &map(values, |value| value as f32))?,
        }
        Ok(())
    }

    /// From a file's bytes, which must be as many as `shape` asks for.
    pub(crate) fn decode(
        name: &str,
        dtype: DType,
        shape: Vec<usize>,
        bytes: &[u8],
        order: ByteOrder,
    ) -> Result<Self> {
        if byte_len(dtype, &shape) != Some(bytes.len()) {
            let expected = format!("the bytes of {dtype} {shape:?}");
            return Err(Error::mismatch(name, expected, format!("{} bytes", bytes.len())));
        }
        let values = match dtype {
            DType::F64 => numbers(bytes, order, f64::from_le_bytes),
            DType::F32 => numbers(bytes, order, |b| f32::from_le_bytes(b).into()),
            DType::F16 => numbers(bytes, order, |b| f16::from_le_bytes(b).into()),
            DType::Bf16 => numbers(bytes, order, |b| bf16::from_le_bytes(b).into()),
            other => return Err(Error::mismatch(name, "f64, f32, f16 or bf16", other)),
        };
        Ok(Self { dtype, shape, values })
    }

    /// The bytes as a file has them; each number rounded to the type.
    pub(crate) fn encode(&self, order: ByteOrder) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.values.len() * self.dtype.size());
        for &value in &self.values {
            match self.dtype {
                DType::F64 => bytes.extend(value.to_le_bytes()),
                DType::F16 => bytes.extend(f16::from_f64(value).to_le_bytes()),
                DType::Bf16 => bytes.extend(bf16::from_f64(value).to_le_bytes()),
                _ => bytes.extend((value as f32).to_le_bytes()),
            }
        }
        if order == ByteOrder::Big {
            bytes.chunks_exact_mut(self.dtype.size()).for_each(<[u8]>::reverse);
        }
        bytes
    }

    /// The same numbers, one per channel, in another array's type and shape. Rounds to nearest where
    /// that type is narrower, and refuses a finite number that it would make infinite.
    pub(crate) fn like(&self, name: &str, other: (DType, &[usize])) -> Result<Self> {
        let (dtype, shape) = other;
        if self.channels().is_none() || self.channels() != channels(shape) {
            let got = self.to_string();
            return Err(Error::mismatch(name, format!("{dtype} {shape:?}"), got));
        }
        let cast = Self { dtype, shape: shape.to_vec(), values: self.values.clone() };
        let bytes = cast.encode(ByteOrder::Little);
        let cast = Self::decode(name, dtype, cast.shape, &bytes, ByteOrder::Little)?;
        let lost =
            self.values.iter().zip(&cast.values).find(|(a, b)| a.is_finite() != b.is_finite());
        match lost {
            Some((value, _)) => Err(Error::mismatch(name, format!("what {dtype} holds"), value)),
            None => Ok(cast),
        }
    }
}

/// The bytes that an array has; none where that is more than memory can hold.
pub(crate) fn byte_len(dtype: DType, shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(dtype.size(), |len, &dim| len.checked_mul(dim))
}

/// See [`Array::channels`].
pub(crate) fn channels(shape: &[usize]) -> Option<usize> {
    let mut wide = shape.iter().filter(|&&dim| dim != 1);
    match (wide.next(), wide.next()) {
        (Some(&channels), None) => Some(channels),
        (None, _) if !shape.is_empty() => Some(1),
        _ => None,
    }
}

fn numbers<const N: usize>(
    bytes: &[u8],
    order: ByteOrder,
    value: impl Fn([u8; N]) -> f64,
) -> Vec<f64> {
    let ordered = |mut bytes: [u8; N]| {
        if order == ByteOrder::Big {
            bytes.reverse();
        }
        value(bytes)
    };
    bytes.as_chunks().0.iter().map(|&bytes| ordered(bytes)).collect()
}

/// As messages show it: `f32 [5]`.
impl fmt::Display for Array {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.dtype, self.shape)
    }
}
