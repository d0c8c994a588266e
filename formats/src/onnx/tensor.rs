//! A `TensorProto`: the numbers of an initializer.
use batchnorm::DType;

use super::ONNX;
use super::wire::{Message, Value, chunk, fields};
use crate::array::ByteOrder;
use crate::{Array, Error, Result};

// Its fields.
const DIMS: u64 = 1;
const DATA_TYPE: u64 = 2;
const FLOAT_DATA: u64 = 4;
const INT32_DATA: u64 = 5;
const NAME: u64 = 8;
const RAW_DATA: u64 = 9;
const DOUBLE_DATA: u64 = 10;
const DATA_LOCATION: u64 = 14;

/// The name of a tensor.
pub(super) fn name(bytes: &[u8]) -> Result<&str> {
    let fields = fields(bytes)?;
    fields.iter().rfind(|field| field.number == NAME).map_or(Ok(""), |field| field.text())
}

/// Its numbers, wherever they stand: as bytes, or in the list for their type.
pub(super) fn decode(bytes: &[u8]) -> Result<Array> {
    let mut shape = Vec::new();
    let (mut data_type, mut raw) = (0, None);
    let (mut floats, mut doubles, mut ints) = (Vec::new(), Vec::new(), Vec::new());
    let name = name(bytes)?;
    for field in fields(bytes)? {
        match field.number {
            DIMS => {
                let dims = field.varints()?.into_iter();
                shape.extend(dims.map(|dim| usize::try_from(dim).unwrap_or(usize::MAX)));
            }
            DATA_TYPE => data_type = field.varints()?.last().copied().unwrap_or(0),
            RAW_DATA => raw = Some(field.bytes()?),
            FLOAT_DATA => match field.value {
                Value::Fixed32(value) => floats.extend(value),
                _ => floats.extend(field.bytes()?),
            },
            DOUBLE_DATA => match field.value {
                Value::Fixed64(value) => doubles.extend(value),
                _ => doubles.extend(field.bytes()?),
            },
            INT32_DATA => ints.extend(field.varints()?),
            DATA_LOCATION if field.varints()?.last() == Some(&1) => {
                let reason = format!("{name}: its data is in another file: save the model as one");
                return Err(Error::unsupported(ONNX, reason));
            }
            _ => {}
        }
    }
    let dtype = match data_type {
        1 => DType::F32,
        10 => DType::F16,
        11 => DType::F64,
        16 => DType::Bf16,
        other => {
            let reason = format!("{name}: expected f16, bf16, f32 or f64, got data type {other}");
            return Err(Error::unsupported(ONNX, reason));
        }
    };
    // Half types stand as their bits in the list of int32.
    let halves = || ints.iter().flat_map(|&bits| (bits as u16).to_le_bytes()).collect();
    let listed: Vec<u8> = match dtype {
        DType::F64 => doubles,
        DType::F32 => floats,
        _ => halves(),
    };
    Array::decode(name, dtype, shape, raw.unwrap_or(&listed), ByteOrder::Little)
}

/// The same tensor with other numbers, as bytes.
pub(super) fn with(bytes: &[u8], array: &Array) -> Result<Message> {
    const DATA: [u64; 4] = [FLOAT_DATA, INT32_DATA, RAW_DATA, DOUBLE_DATA];
    let mut message = Message::default();
    for field in fields(bytes)? {
        if !DATA.contains(&field.number) {
            message = message.raw(field.raw);
        }
    }
    Ok(message.bytes(RAW_DATA, &array.encode(ByteOrder::Little)))
}

/// A new tensor.
pub(super) fn encode(name: &str, array: &Array) -> Message {
    let dims = array.shape.iter();
    let message = dims.fold(Message::default(), |m, &dim| m.int(DIMS, dim as u64));
    let message = message.int(DATA_TYPE, data_type(array.dtype)).text(NAME, name);
    message.bytes(RAW_DATA, &array.encode(ByteOrder::Little))
}

/// The number of a type.
pub(super) fn data_type(dtype: DType) -> u64 {
    match dtype {
        DType::F64 => 11,
        DType::F16 => 10,
        DType::Bf16 => 16,
        _ => 1,
    }
}

/// An attribute that is a float: its number is exactly that f32.
pub(super) fn float(value: Value<'_>) -> Result<f32> {
    match value {
        Value::Fixed32(bytes) => Ok(f32::from_le_bytes(bytes)),
        Value::Bytes(mut bytes) => Ok(f32::from_le_bytes(chunk(&mut bytes)?)),
        other => Err(Error::malformed(ONNX, format!("expected a float, got {other:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;

    #[test]
    fn half_types_are_read_from_bits() {
        let message = |data_type: u64, bits: u16| {
            let packed = Message::default().int(0, bits.into()).0[1..].to_vec();
            Message::default().int(DIMS, 1).int(DATA_TYPE, data_type).bytes(INT32_DATA, &packed).0
        };
        let half = decode(&message(10, f16::from_f64(1.5).to_bits())).unwrap();
        let bfloat = decode(&message(16, bf16::from_f64(-3.0).to_bits())).unwrap();
        assert_eq!((half.values, bfloat.values), (vec![1.5], vec![-3.0]));
        assert_eq!((half.dtype, bfloat.dtype), (DType::F16, DType::Bf16));
    }

    #[test]
    fn doubles_are_read_from_their_list() {
        let data = [0.1f64, 2.0].map(f64::to_le_bytes).concat();
        let message = Message::default().int(DIMS, 2).int(DATA_TYPE, 11).bytes(DOUBLE_DATA, &data);
        assert_eq!(decode(&message.0).unwrap().values, [0.1, 2.0]);
    }
}
