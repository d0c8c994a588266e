//! NumPy's `.npy` and `.npz`: one array, and a zip archive of them.
use batchnorm::DType;

use crate::archive::{self, Archive};
use crate::array::ByteOrder;
use crate::{Array, Error, Result};

const NPY: &str = "npy";
const NPZ: &str = "npz";
const MAGIC: &[u8] = b"\x93NUMPY";

/// Reads an array of `np.save`: f16, f32 or f64, of either byte order. One in Fortran's order must
/// have one dimension that is not 1.
///
/// # Errors
/// [`Error::Malformed`] for bytes that are no such file; [`Error::Unsupported`] for one of another
/// type, an object array among them.
pub fn read(bytes: &[u8]) -> Result<Array> {
    let wrong = |reason: &str| Error::malformed(NPY, reason);
    let rest =
        bytes.strip_prefix(MAGIC).ok_or_else(|| wrong("expected \\x93NUMPY at its start"))?;
    let ([major, _minor], rest) = rest.split_first_chunk().ok_or_else(|| wrong("no version"))?;
    let (len, rest) = match major {
        1 => rest.split_first_chunk().map(|(len, rest)| (u16::from_le_bytes(*len).into(), rest)),
        2 | 3 => rest.split_first_chunk().map(|(len, rest)| (u32::from_le_bytes(*len), rest)),
        other => return Err(Error::unsupported(NPY, format!("version {other}"))),
    }
    .ok_or_else(|| wrong("no header"))?;
    let (header, data) =
        rest.split_at_checked(len as usize).ok_or_else(|| wrong("the header is cut off"))?;
    let header = std::str::from_utf8(header).map_err(|_| wrong("the header is no text"))?;

    let field = |key: &str| {
        let (_, value) = header.split_once(&format!("'{key}'"))?;
        Some(value.trim_start().strip_prefix(':')?.trim_start())
    };
    let field = |key: &str| field(key).ok_or_else(|| Error::malformed(NPY, format!("no {key}")));
    let descr = field("descr")?;
    let descr = descr.strip_prefix('\'').and_then(|rest| rest.split_once('\'')).map(|(d, _)| d);
    let (order, dtype) = match descr {
        Some("<f8") => (ByteOrder::Little, DType::F64),
        Some("<f4") => (ByteOrder::Little, DType::F32),
        Some("<f2") => (ByteOrder::Little, DType::F16),
        Some(">f8") => (ByteOrder::Big, DType::F64),
        Some(">f4") => (ByteOrder::Big, DType::F32),
        Some(">f2") => (ByteOrder::Big, DType::F16),
        other => {
            let got = other.unwrap_or("a structured one");
            return Err(Error::unsupported(NPY, format!("expected type f2, f4 or f8, got {got}")));
        }
    };
    let shape = field("shape")?.strip_prefix('(').and_then(|rest| rest.split_once(')'));
    let (shape, _) = shape.ok_or_else(|| wrong("no shape"))?;
    let shape = shape.split(',').map(str::trim).filter(|dim| !dim.is_empty());
    let shape: Vec<usize> = shape
        .map(|dim| dim.parse().map_err(|_| Error::malformed(NPY, format!("dimension {dim}"))))
        .collect::<Result<_>>()?;
    let fortran = field("fortran_order")?.starts_with("True");
    if fortran && shape.len() > 1 && crate::array::channels(&shape).is_none() {
        return Err(Error::unsupported(NPY, format!("{shape:?} in Fortran's order")));
    }
    Array::decode("array", dtype, shape, data, order)
}

/// An array as `np.load` reads it. bf16, which NumPy does not have, is written as f32.
pub fn write(array: &Array) -> Vec<u8> {
    let dtype = if array.dtype == DType::Bf16 { DType::F32 } else { array.dtype };
    let dims: Vec<_> = array.shape.iter().map(usize::to_string).collect();
    let shape = match &dims[..] {
        [one] => format!("({one},)"),
        dims => format!("({})", dims.join(", ")),
    };
    let size = dtype.size();
    let mut header = format!("{{'descr': '<f{size}', 'fortran_order': False, 'shape': {shape}, }}");
    // The data begins at a multiple of 64, behind a line's end.
    let before = MAGIC.len() + 4;
    let padding = 63 - (before + header.len()) % 64;
    header.extend(std::iter::repeat_n(' ', padding).chain(['\n']));
    let len = (header.len() as u16).to_le_bytes(); // at most 32 dimensions of 20 digits
    let array = Array { dtype, ..array.clone() };
    [MAGIC, &[1, 0], &len, header.as_bytes(), &array.encode(ByteOrder::Little)].concat()
}

/// Reads the arrays of `np.savez` or `np.savez_compressed`, with their names, in the file's order.
///
/// # Errors
/// As [`read`]; [`Error::Unsupported`] where they take more than 64 times the file's length.
pub fn read_npz(bytes: &[u8]) -> Result<Vec<(String, Array)>> {
    let mut archive = Archive::new(NPZ, bytes)?;
    let mut arrays = Vec::new();
    let mut left = bytes.len().saturating_mul(64);
    for full in archive.names() {
        let Some(name) = full.strip_suffix(".npy") else {
            return Err(Error::unsupported(NPZ, format!("expected arrays, got {full:?}")));
        };
        let entry = archive.read(&full)?.unwrap_or_default();
        left = left.checked_sub(entry.len()).ok_or_else(|| {
            Error::unsupported(NPZ, "its arrays take more than 64 times its length")
        })?;
        arrays.push((name.to_string(), read(&entry)?));
    }
    Ok(arrays)
}

/// The arrays as `np.load` reads them from one file.
///
/// # Errors
/// [`Error::Unsupported`] where the names are too long or twice there.
pub fn write_npz(arrays: &[(String, Array)]) -> Result<Vec<u8>> {
    let entries: Vec<_> =
        arrays.iter().map(|(name, array)| (format!("{name}.npy"), write(array))).collect();
    let entries = entries.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice()));
    archive::write(NPZ, entries, 1)
}
