//! Protocol buffers on the wire: fields by their numbers, without a schema.
//!
//! A model has much that is none of a reader's business. What is kept as the bytes that it was comes
//! out as it went in, of later versions of the format too.
use crate::{Error, Result};

use super::ONNX;

/// A field of a message.
#[derive(Debug, Clone, Copy)]
pub(super) struct Field<'a> {
    pub number: u64,
    pub value: Value<'a>,
    /// All of it, its number too.
    pub raw: &'a [u8],
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Value<'a> {
    Varint(u64),
    Fixed64([u8; 8]),
    /// A message, a text, bytes, or numbers one behind the other.
    Bytes(&'a [u8]),
    Fixed32([u8; 4]),
}

/// The fields of a message, in its order.
pub(super) fn fields(mut bytes: &[u8]) -> Result<Vec<Field<'_>>> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let all = bytes;
        let tag = varint(&mut bytes)?;
        let value = match tag & 7 {
            0 => Value::Varint(varint(&mut bytes)?),
            1 => Value::Fixed64(chunk(&mut bytes)?),
            2 => {
                let len = usize::try_from(varint(&mut bytes)?).map_err(|_| cut())?;
                let (value, rest) = bytes.split_at_checked(len).ok_or_else(cut)?;
                bytes = rest;
                Value::Bytes(value)
            }
            5 => Value::Fixed32(chunk(&mut bytes)?),
            other => return Err(Error::malformed(ONNX, format!("wire type {other}"))),
        };
        let raw = &all[..all.len() - bytes.len()];
        fields.push(Field { number: tag >> 3, value, raw });
    }
    Ok(fields)
}

fn cut() -> Error {
    Error::malformed(ONNX, "a field is cut off")
}

/// Seven bits to a byte, the lowest first; the upper bit says that more follow.
pub(super) fn varint(bytes: &mut &[u8]) -> Result<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let [byte] = chunk(bytes)?;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err(Error::malformed(ONNX, "an integer of more than 64 bits"))
}

pub(super) fn chunk<const N: usize>(bytes: &mut &[u8]) -> Result<[u8; N]> {
    let (chunk, rest) = bytes.split_first_chunk().ok_or_else(cut)?;
    *bytes = rest;
    Ok(*chunk)
}

impl<'a> Field<'a> {
    /// A message or bytes.
    pub fn bytes(&self) -> Result<&'a [u8]> {
        match self.value {
            Value::Bytes(bytes) => Ok(bytes),
            other => Err(Error::malformed(ONNX, format!("field {}: {other:?}", self.number))),
        }
    }

    pub fn text(&self) -> Result<&'a str> {
        std::str::from_utf8(self.bytes()?).map_err(|e| Error::malformed(ONNX, e))
    }

    /// Integers, one or many.
    pub fn varints(&self) -> Result<Vec<u64>> {
        match self.value {
            Value::Varint(value) => Ok(vec![value]),
            _ => {
                let mut bytes = self.bytes()?;
                let mut values = Vec::new();
                while !bytes.is_empty() {
                    values.push(varint(&mut bytes)?);
                }
                Ok(values)
            }
        }
    }
}

/// A message to be written.
#[derive(Debug, Clone, Default)]
pub(super) struct Message(pub Vec<u8>);

impl Message {
    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    pub fn bytes(mut self, number: u64, bytes: &[u8]) -> Self {
        self.push(number << 3 | 2);
        self.push(bytes.len() as u64);
        self.raw(bytes)
    }

    pub fn text(self, number: u64, text: &str) -> Self {
        self.bytes(number, text.as_bytes())
    }

    pub fn message(self, number: u64, message: &Message) -> Self {
        self.bytes(number, &message.0)
    }

    pub fn int(mut self, number: u64, value: u64) -> Self {
        self.push(number << 3);
        self.push(value);
        self
    }

    pub fn float(mut self, number: u64, value: f32) -> Self {
        self.push(number << 3 | 5);
        self.raw(&value.to_le_bytes())
    }

    fn push(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}
