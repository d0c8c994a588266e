//! Tensor descriptors.

use softlibrary::Number;

use crate::status::{Refusal, Status};

/// What a tensor descriptor says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    pub data_type: u32,
    pub dims: Vec<i32>,
    pub strides: Vec<i32>,
}

/// The most dimensions of a descriptor.
pub const MAX_DIMS: usize = 8;
/// `CUDNN_DATA_FLOAT` and `CUDNN_DATA_DOUBLE`.
const FLOAT: u32 = 0;
const DOUBLE: u32 = 1;
/// The last `cudnnDataType_t`.
const LAST_TYPE: u32 = 14;

impl Tensor {
    /// Refuses what cuDNN 9 was seen to refuse, with the same status.
    pub fn new(data_type: u32, dims: &[i32], strides: &[i32]) -> Result<Self, Refusal> {
        if data_type > LAST_TYPE {
            return Status::BAD_PARAM.because(format!("there is no data type {data_type}"));
        }
        if dims.len() < 2 {
            return Status::BAD_PARAM.because(format!("{} dimensions", dims.len()));
        }
        if dims.len() > MAX_DIMS {
            return Status::NOT_SUPPORTED.because(format!("{} dimensions", dims.len()));
        }
        if dims.iter().any(|dim| *dim <= 0) {
            return Status::BAD_PARAM.because(format!("dimensions {dims:?}"));
        }
        if dims.iter().zip(strides).any(|(dim, stride)| *stride == 0 && *dim != 1) {
            return Status::BAD_PARAM.because(format!("strides {strides:?} of {dims:?}"));
        }
        if dims.iter().map(|dim| i128::from(*dim)).product::<i128>() > i128::from(i32::MAX) {
            return Status::NOT_SUPPORTED.because(format!("{dims:?} are 2^31 elements or more"));
        }
        Ok(Self { data_type, dims: dims.to_vec(), strides: strides.to_vec() })
    }

    /// One of NCHW order without gaps.
    pub fn packed(data_type: u32, dims: &[i32]) -> Result<Self, Refusal> {
        Self::new(data_type, dims, &strides(dims, 0..dims.len()))
    }

    /// One of NHWC order without gaps.
    pub fn channels_last(data_type: u32, dims: &[i32]) -> Result<Self, Refusal> {
        Self::new(data_type, dims, &channels_last(dims))
    }

    /// The descriptor of scale, bias and statistics of this tensor.
    pub fn derived(&self, is_per_activation: bool) -> Result<Self, Refusal> {
        let kept = |axis: usize| axis == 1 || (is_per_activation && axis > 0);
        let dims = self.dims.iter().enumerate();
        let dims: Vec<_> = dims.map(|(axis, dim)| if kept(axis) { *dim } else { 1 }).collect();
        Self::packed(if self.data_type == DOUBLE { DOUBLE } else { FLOAT }, &dims)
    }

    /// The type of its numbers, where batch normalization has it.
    pub fn number(&self) -> Option<Number> {
        match self.data_type {
            FLOAT => Some(Number::F32),
            DOUBLE => Some(Number::F64),
            2 => Some(Number::F16),
            9 => Some(Number::Bf16),
            _ => None,
        }
    }

    pub fn len(&self) -> usize {
        self.dims.iter().map(|dim| *dim as usize).product()
    }

    /// Bytes from its first to behind its last element.
    pub fn bytes(&self) -> usize {
        let width = match self.data_type {
            DOUBLE | 10 => 8,
            2 | 9 => 2,
            3 | 6 | 11..=13 => 1,
            8 => 32,
            _ => 4,
        };
        let ends = self.dims.iter().zip(&self.strides);
        let last: i64 = ends.map(|(dim, stride)| i64::from(dim - 1) * i64::from(*stride)).sum();
        (last.max(0) as usize + 1) * width
    }

    /// Whether it is NHWC to the letter, strides of dimensions of 1 included.
    pub fn is_channels_last(&self) -> bool {
        self.strides == channels_last(&self.dims)
    }

    /// Whether it is NCHW or NHWC without gaps, whatever the strides of dimensions of 1.
    pub fn is_packed(&self) -> bool {
        let orders = [strides(&self.dims, 0..self.dims.len()), channels_last(&self.dims)];
        orders.iter().any(|order| {
            let mut axes = self.dims.iter().zip(order.iter().zip(&self.strides));
            axes.all(|(dim, (wanted, stride))| *dim == 1 || wanted == stride)
        })
    }

    /// Where its elements are, in NCHW order.
    pub fn places(&self) -> Vec<usize> {
        let mut places = vec![0];
        for (dim, stride) in self.dims.iter().zip(&self.strides) {
            let step = |place: usize| (0..*dim as usize).map(move |i| place + i * *stride as usize);
            places = places.into_iter().flat_map(step).collect();
        }
        places
    }
}

fn channels_last(dims: &[i32]) -> Vec<i32> {
    strides(dims, [0].into_iter().chain(2..dims.len()).chain([1]))
}

/// The strides in which `order` goes from the outermost to the innermost axis, without gaps.
fn strides(dims: &[i32], order: impl DoubleEndedIterator<Item = usize>) -> Vec<i32> {
    let mut strides = vec![0; dims.len()];
    let mut next = 1i32;
    for axis in order.rev() {
        strides[axis] = next;
        next = next.saturating_mul(dims[axis]);
    }
    strides
}
