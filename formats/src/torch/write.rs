//! The pickle that `torch.save` writes of a state dict.
use safetensors::{Dtype, tensor::TensorView};

use super::PT;
use crate::{Error, Result};

/// An `OrderedDict` of tensors; the numbers of the i-th are the archive's entry `data/i`.
pub(super) fn pickle(tensors: &[(&str, TensorView<'_>)]) -> Result<Vec<u8>> {
    let mut out = vec![0x80, 2]; // PROTO
    out.extend(b"ccollections\nOrderedDict\n)R("); // GLOBAL, EMPTY_TUPLE, REDUCE, MARK
    for (index, (name, tensor)) in tensors.iter().enumerate() {
        text(&mut out, name);
        out.extend(b"ctorch._utils\n_rebuild_tensor_v2\n(("); // GLOBAL, MARK, MARK
        text(&mut out, "storage");
        out.extend(format!("ctorch\n{}\n", storage(name, tensor.dtype())?).bytes());
        text(&mut out, &index.to_string());
        text(&mut out, "cpu");
        let count: usize = tensor.shape().iter().product();
        int(&mut out, count);
        out.extend(b"tQ"); // TUPLE, BINPERSID
        int(&mut out, 0); // the offset
        sizes(&mut out, tensor.shape());
        let mut stride = 1;
        let mut strides: Vec<_> = tensor
            .shape()
            .iter()
            .rev()
            .map(|&dim| {
                let this = stride;
                stride *= dim.max(1);
                this
            })
            .collect();
        strides.reverse();
        sizes(&mut out, &strides);
        out.push(0x89); // NEWFALSE: no gradient
        out.extend(b"ccollections\nOrderedDict\n)RtR"); // no hooks; TUPLE, REDUCE
    }
    out.extend(b"u."); // SETITEMS, STOP
    Ok(out)
}

fn storage(name: &str, dtype: Dtype) -> Result<&'static str> {
    Ok(match dtype {
        Dtype::F64 => "DoubleStorage",
        Dtype::F32 => "FloatStorage",
        Dtype::F16 => "HalfStorage",
        Dtype::BF16 => "BFloat16Storage",
        Dtype::I64 => "LongStorage",
        Dtype::I32 => "IntStorage",
        Dtype::I16 => "ShortStorage",
        Dtype::I8 => "CharStorage",
        Dtype::U8 => "ByteStorage",
        Dtype::BOOL => "BoolStorage",
        other => return Err(Error::unsupported(PT, format!("{name}: no storage of {other}"))),
    })
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.push(b'X'); // BINUNICODE
    out.extend((text.len() as u32).to_le_bytes()); // a safetensors header is shorter than 100 MB
    out.extend(text.bytes());
}

fn int(out: &mut Vec<u8>, value: usize) {
    match i32::try_from(value) {
        Ok(value) => {
            out.push(b'J'); // BININT
            out.extend(value.to_le_bytes());
        }
        Err(_) => {
            out.extend([0x8a, 8]); // LONG1: 8 bytes; no slice is longer than i64::MAX
            out.extend((value as u64).to_le_bytes());
        }
    }
}

fn sizes(out: &mut Vec<u8>, sizes: &[usize]) {
    out.push(b'('); // MARK
    sizes.iter().for_each(|&size| int(out, size));
    out.push(b't'); // TUPLE
}
