//! Named tensors, as safetensors files hold them.
use std::collections::{BTreeMap, HashMap};
use std::fmt::Display;

use safetensors::tensor::{Dtype, Metadata};

use crate::{DType, Element, Error, Real, Result};

mod entry;
mod layer;
mod layer_norm;
mod lazy;
mod optimizer;

pub use layer::{LoadReport, Mismatch, Strict};

use entry::Entry;

/// Named tensors on the host: what a safetensors file holds, PyTorch's `state_dict`.
///
/// Several layers share one by their prefixes. Tensors that belong to no layer here, of whatever
/// type, are carried from [`from_bytes`](Self::from_bytes) to [`to_bytes`](Self::to_bytes)
/// unchanged; a file's free-form metadata is not.
///
/// ```
/// # use batchnorm::{BatchNorm, Config, Reference, StateDict, Strict};
/// # fn main() -> batchnorm::Result<()> {
/// # let mut first = BatchNorm::<f32, _>::new(&Reference, 3, Config::default())?;
/// # let mut second = BatchNorm::<f32, _>::new(&Reference, 5, Config::default())?;
/// let mut dict = first.state_dict("layer1.0.bn1.")?;
/// dict.extend(second.state_dict("layer1.0.bn2.")?);
/// let bytes = dict.to_bytes()?; // std::fs::write, and torch's load_file reads it
///
/// let dict = StateDict::from_bytes(&bytes)?;
/// first.load_state_dict(&dict, "layer1.0.bn1.", Strict::Yes)?;
/// second.load_state_dict(&dict, "layer1.0.bn2.", Strict::Yes)?;
/// # Ok(())
/// # }
/// ```
///
/// `D` is what the tensors' bytes lie in: their own memory (`StateDict`), or the file's
/// (`StateDict<&[u8]>`), which [`borrow_bytes`](Self::borrow_bytes) reads without a copy. Either loads.
#[derive(Debug, Clone, PartialEq)]
pub struct StateDict<D = Vec<u8>> {
    entries: BTreeMap<String, Entry<D>>,
}

impl<D> Default for StateDict<D> {
    fn default() -> Self {
        Self { entries: BTreeMap::new() }
    }
}

impl<'a> StateDict<&'a [u8]> {
    /// Reads a safetensors file where it lies, such as one that is mapped into memory: names and shapes are
    /// copied, of the tensors only those that a layer loads. Their bytes may start anywhere.
    ///
    /// ```
    /// # use batchnorm::{BatchNorm, Config, Reference, StateDict, Strict};
    /// # fn main() -> batchnorm::Result<()> {
    /// # let mut bn1 = BatchNorm::<f32, _>::new(&Reference, 3, Config::default())?;
    /// # let map = bn1.state_dict("layer1.0.bn1.")?.to_bytes()?;
    /// // let map = unsafe { memmap2::Mmap::map(&file)? }; // 500 MB, of which little is read
    /// let dict = StateDict::borrow_bytes(&map)?;
    /// bn1.load_state_dict(&dict, "layer1.0.bn1.", Strict::Yes)?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::State`] where the bytes are none. No bytes make it panic.
    pub fn borrow_bytes(bytes: &'a [u8]) -> Result<Self> {
        // Not by `SafeTensors::deserialize`: it adds the header's sizes up without a check, which
        // panics in builds that check overflow.
        let (header, data) = split(bytes)?;
        let metadata: Metadata = serde_json::from_slice(header)
            .map_err(|e| state(format_args!("the header cannot be read: {e}")))?;
        if metadata.data_len() != data.len() {
            let (expected, got) = (metadata.data_len(), data.len());
            return Err(state(format_args!("expected {expected} bytes of data, got {got}")));
        }
        let mut entries = BTreeMap::new();
        for (name, info) in metadata.tensors() {
            let (start, end) = info.data_offsets;
            let data = data.get(start..end).ok_or_else(|| state("offsets outside of the data"))?;
            entries.insert(name, Entry { dtype: info.dtype, shape: info.shape.clone(), data });
        }
        Ok(Self { entries })
    }
}

impl StateDict {
    /// No tensors.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads a safetensors file, each tensor into memory of its own.
    ///
    /// # Errors
    /// [`Error::State`] where the bytes are none. No bytes make it panic.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let entries = StateDict::borrow_bytes(bytes)?.entries.into_iter();
        let entries = entries.map(|(name, Entry { dtype, shape, data })| {
            (name, Entry { dtype, shape, data: data.to_vec() })
        });
        Ok(Self { entries: entries.collect() })
    }

    /// Adds a tensor, row-major, or replaces the one of that name.
    ///
    /// # Errors
    /// [`Error::Length`] where `shape` has not as many elements as `values`; [`Error::State`] for
    /// the one name that the format keeps for itself, `__metadata__`.
    pub fn insert<E: Element>(
        &mut self,
        name: impl Into<String>,
        shape: &[usize],
        values: &[E],
    ) -> Result<()> {
        let name = allowed(name.into())?;
        let expected = shape.iter().try_fold(1usize, |product, &d| product.checked_mul(d));
        let (expected, got) = (expected.unwrap_or(usize::MAX), values.len());
        if expected != got {
            return Err(Error::Length { what: "values", expected, got });
        }
        self.entries.insert(name, Entry::floats(shape, values));
        Ok(())
    }

    /// Adds a counter, an i64 scalar as PyTorch's `num_batches_tracked` is one, or replaces the tensor
    /// of that name.
    ///
    /// # Errors
    /// [`Error::State`] where `count` exceeds i64, and for the name `__metadata__`.
    pub fn insert_count(&mut self, name: impl Into<String>, count: u64) -> Result<()> {
        let name = allowed(name.into())?;
        let count =
            i64::try_from(count).map_err(|e| state(format_args!("{name}: {count}: {e}")))?;
        self.entries.insert(name, Entry::counter(count));
        Ok(())
    }
}

impl<D: AsRef<[u8]>> StateDict<D> {
    /// Writes a safetensors file, marked as of PyTorch's conventions (`"format": "pt"`). Equal
    /// dicts give equal bytes.
    ///
    /// # Errors
    /// [`Error::State`] where the names are too long for the format.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
        safetensors::serialize(&self.entries, Some(metadata)).map_err(state)
    }

    /// The names, in alphabetical order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Takes over all tensors of `other`; of two with one name its own replaces this one's.
    pub fn extend(&mut self, other: Self) {
        self.entries.extend(other.entries);
    }

    /// The value of a counter; none where the name is unknown. It may be of any type of whole or of
    /// floating-point numbers, or a bool.
    ///
    /// # Errors
    /// [`Error::State`] where the tensor is not one whole number from 0 to `i64::MAX`.
    pub fn count(&self, name: &str) -> Result<Option<u64>> {
        let Some(entry) = self.entries.get(name) else { return Ok(None) };
        let refused =
            |got: String| state(format_args!("{name}: expected {}, got {got}", entry::A_COUNT));
        entry.count().unwrap_or_else(|| Err(entry.to_string())).map(Some).map_err(refused)
    }

    /// The type of a tensor's values; none where the name is unknown, or the values are not of
    /// floating point.
    pub fn dtype(&self, name: &str) -> Option<DType> {
        match self.entries.get(name)?.dtype {
            Dtype::F64 => Some(DType::F64),
            Dtype::F32 => Some(DType::F32),
            Dtype::F16 => Some(DType::F16),
            Dtype::BF16 => Some(DType::Bf16),
            _ => None,
        }
    }

    /// The shape and the values of a tensor; none where the name is unknown.
    ///
    /// f16 and bf16 widen to f32 and f64, f32 to f64.
    ///
    /// # Errors
    /// [`Error::State`] where the tensor is of another type, which would lose digits.
    pub fn get<P: Real>(&self, name: &str) -> Result<Option<(&[usize], Vec<P>)>> {
        let Some(entry) = self.entries.get(name) else { return Ok(None) };
        let values = entry.values().ok_or_else(|| {
            state(format_args!("{name}: expected {}, got {entry}", entry::accepted::<P>()))
        })?;
        Ok(Some((&entry.shape, values)))
    }
}

/// A name that a tensor may have.
fn allowed(name: String) -> Result<String> {
    if name == "__metadata__" { Err(state("__metadata__ cannot name a tensor")) } else { Ok(name) }
}

/// The header and what follows it: the first 8 bytes are the header's length.
fn split(bytes: &[u8]) -> Result<(&[u8], &[u8])> {
    let short = || state(format_args!("expected a safetensors header, got {} bytes", bytes.len()));
    let (len, rest) = bytes.split_first_chunk().ok_or_else(short)?;
    let len = usize::try_from(u64::from_le_bytes(*len)).map_err(|_| short())?;
    rest.split_at_checked(len).ok_or_else(short)
}

fn state(reason: impl Display) -> Error {
    Error::State(reason.to_string())
}
