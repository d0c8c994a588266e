//! One tensor: its type, its shape, its bytes.
use std::borrow::Cow;
use std::fmt;

use half::{bf16, f16};
use safetensors::View;

use super::{DType, Dtype};
use crate::{Element, Real};

/// A tensor as the file has it: row-major, little-endian, in bytes of its own or in the file's.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry<D = Vec<u8>> {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub data: D,
}

impl Entry {
    pub fn floats<E: Element>(shape: &[usize], values: &[E]) -> Self {
        let wide = || values.iter().map(|v| v.widen().to_f64());
        // Back to the type they came from: exact.
        let (dtype, data) = match E::DTYPE {
            DType::F64 => (Dtype::F64, wide().flat_map(f64::to_le_bytes).collect()),
            DType::F32 => (Dtype::F32, wide().flat_map(|v| (v as f32).to_le_bytes()).collect()),
            DType::F16 => {
                (Dtype::F16, wide().flat_map(|v| f16::from_f64(v).to_le_bytes()).collect())
            }
            DType::Bf16 => {
                (Dtype::BF16, wide().flat_map(|v| bf16::from_f64(v).to_le_bytes()).collect())
            }
        };
        Self { dtype, shape: shape.to_vec(), data }
    }

    /// A scalar, as PyTorch's `num_batches_tracked` is one.
    pub fn counter(value: i64) -> Self {
        Self { dtype: Dtype::I64, shape: Vec::new(), data: value.to_le_bytes().to_vec() }
    }
}

impl<D: AsRef<[u8]>> Entry<D> {
    /// The values, if they fit into `P` without loss.
    pub fn values<P: Real>(&self) -> Option<Vec<P>> {
        let data = self.data.as_ref();
        match self.dtype {
            Dtype::F16 => Some(decode(data, |b| f16::from_le_bytes(b).to_f64())),
            Dtype::BF16 => Some(decode(data, |b| bf16::from_le_bytes(b).to_f64())),
            Dtype::F32 => Some(decode(data, |b| f64::from(f32::from_le_bytes(b)))),
            Dtype::F64 if P::DTYPE == DType::F64 => Some(decode(data, f64::from_le_bytes)),
            _ => None,
        }
    }

    /// The value as a count of at most `i64::MAX`, or what it is instead; none where this is not one
    /// number. PyTorch before 0.4 wrote scalars with shape `[1]`.
    pub fn count(&self) -> Option<Result<u64, String>> {
        if !matches!(self.shape[..], [] | [1]) {
            return None;
        }
        let data = self.data.as_ref();
        let float = |value: f64| match value {
            // i64::MAX itself is no f64; what is below 2^63 is at most that.
            value if value >= 0.0 && value < 2f64.powi(63) && value.fract() == 0.0 => {
                Ok(value as u64)
            }
            value => Err(value.to_string()),
        };
        Some(match self.dtype {
            Dtype::I8 => whole(number(data).map(i8::from_le_bytes)?),
            Dtype::U8 => whole(number(data).map(u8::from_le_bytes)?),
            Dtype::I16 => whole(number(data).map(i16::from_le_bytes)?),
            Dtype::U16 => whole(number(data).map(u16::from_le_bytes)?),
            Dtype::I32 => whole(number(data).map(i32::from_le_bytes)?),
            Dtype::U32 => whole(number(data).map(u32::from_le_bytes)?),
            Dtype::I64 => whole(number(data).map(i64::from_le_bytes)?),
            Dtype::U64 => whole(number(data).map(u64::from_le_bytes)?),
            Dtype::BOOL => match number(data)? {
                [value @ (0 | 1)] => Ok(value.into()),
                _ => return None,
            },
            Dtype::F16 => float(f16::from_le_bytes(number(data)?).to_f64()),
            Dtype::BF16 => float(bf16::from_le_bytes(number(data)?).to_f64()),
            Dtype::F32 => float(f32::from_le_bytes(number(data)?).into()),
            Dtype::F64 => float(f64::from_le_bytes(number(data)?)),
            _ => return None,
        })
    }
}

/// The bytes of one number.
fn number<const N: usize>(data: &[u8]) -> Option<[u8; N]> {
    data.try_into().ok()
}

/// A whole number as a count.
fn whole<T: Copy + fmt::Display>(value: T) -> Result<u64, String>
where
    i64: TryFrom<T>,
{
    let count = i64::try_from(value).ok().and_then(|count| u64::try_from(count).ok());
    count.ok_or_else(|| value.to_string())
}

fn decode<P: Real, const N: usize>(data: &[u8], value: impl Fn([u8; N]) -> f64) -> Vec<P> {
    data.as_chunks().0.iter().map(|bytes| P::from_f64(value(*bytes))).collect()
}

/// What [`Entry::count`] takes, for messages.
pub(super) const A_COUNT: &str = "one whole number from 0 to i64::MAX";

/// The types that [`Entry::values`] takes, for messages.
pub(super) fn accepted<P: Real>() -> &'static str {
    if P::DTYPE == DType::F64 { "f64, f32, f16 or bf16" } else { "f32, f16 or bf16" }
}

/// As messages show it: `f32 [5]`.
impl<D> fmt::Display for Entry<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.dtype.to_string().to_lowercase(), self.shape)
    }
}

impl<D: AsRef<[u8]>> View for &Entry<D> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(self.data.as_ref())
    }
    fn data_len(&self) -> usize {
        self.data.as_ref().len()
    }
}
