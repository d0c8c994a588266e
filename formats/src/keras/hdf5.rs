//! HDF5 files as Keras has them: groups, attributes that are text, arrays of numbers.
use std::collections::BTreeMap;

use batchnorm::DType;
use hdf5_pure::{AttrValue, Datatype, DatatypeByteOrder, File, FileBuilder, GroupBuilder, Layout};

use crate::array::{ByteOrder, byte_len};
use crate::{Array, Error, Result};

const HDF5: &str = "hdf5";

/// A file in memory.
pub(super) struct Hdf5 {
    file: File,
}

/// What a group has: names of groups, and those of data sets.
pub(super) struct Members {
    pub groups: Vec<String>,
    pub datasets: Vec<String>,
}

fn wrong(path: &str, e: impl ToString) -> Error {
    Error::malformed(HDF5, format!("{path}: {}", e.to_string()))
}

impl Hdf5 {
    pub fn open(bytes: Vec<u8>) -> Result<Self> {
        let file = File::from_bytes(bytes).map_err(|e| Error::malformed(HDF5, e))?;
        Ok(Self { file })
    }

    pub fn bytes(&self) -> &[u8] {
        self.file.as_bytes()
    }

    fn group(&self, path: &str) -> Result<hdf5_pure::Group> {
        if path.is_empty() {
            return Ok(self.file.root());
        }
        self.file.group(path).map_err(|e| wrong(path, e))
    }

    /// What is in a group, in alphabetical order.
    pub fn members(&self, path: &str) -> Result<Members> {
        let group = self.group(path)?;
        let mut groups = group.groups().map_err(|e| wrong(path, e))?;
        let mut datasets = group.datasets().map_err(|e| wrong(path, e))?;
        groups.sort();
        datasets.sort();
        Ok(Members { groups, datasets })
    }

    /// The attributes of a group that are text, one or a list.
    pub fn texts(&self, path: &str) -> Result<BTreeMap<String, Vec<String>>> {
        let attrs = self.group(path)?.attrs().map_err(|e| wrong(path, e))?;
        let texts = attrs.into_iter().filter_map(|(name, value)| {
            let one = value.as_str().map(|text| vec![text.to_string()]);
            Some((name, one.or_else(|| value.as_strings().map(<[String]>::to_vec))?))
        });
        Ok(texts.collect())
    }

    /// The type, order of bytes and shape of a data set of floating-point numbers.
    fn layout(&self, path: &str) -> Result<(DType, ByteOrder, Vec<usize>)> {
        let data = self.file.dataset(path).map_err(|e| wrong(path, e))?;
        let shape = data.shape().map_err(|e| wrong(path, e))?;
        let shape: Vec<_> =
            shape.iter().map(|&d| usize::try_from(d).unwrap_or(usize::MAX)).collect();
        let datatype = data.datatype().map_err(|e| wrong(path, e))?;
        let (size, order, bits) = match &datatype {
            Datatype::FloatingPoint { size, byte_order, layout } => {
                let order = match byte_order {
                    DatatypeByteOrder::LittleEndian => Some(ByteOrder::Little),
                    DatatypeByteOrder::BigEndian => Some(ByteOrder::Big),
                    _ => None,
                };
                (*size, order, (layout.exponent_size, layout.mantissa_size))
            }
            // HDF5 has no bf16: Keras stores two bytes, and says which.
            Datatype::Opaque { size: 2, .. } => {
                let attrs = data.attrs().map_err(|e| wrong(path, e))?;
                let said = attrs.get("dtype").and_then(AttrValue::as_str);
                let bits = if said == Some("bfloat16") { (8, 7) } else { (0, 0) };
                (2, Some(ByteOrder::Little), bits)
            }
            _ => (0, None, (0, 0)),
        };
        let dtype = match (size, bits) {
            (8, (11, 52)) => Some(DType::F64),
            (4, (8, 23)) => Some(DType::F32),
            (2, (5, 10)) => Some(DType::F16),
            (2, (8, 7)) => Some(DType::Bf16),
            _ => None,
        };
        match (dtype, order) {
            (Some(dtype), Some(order)) => Ok((dtype, order, shape)),
            _ => {
                let reason = format!("{path}: expected f16, bf16, f32 or f64, got {datatype}");
                Err(Error::unsupported(HDF5, reason))
            }
        }
    }

    pub fn read(&self, path: &str) -> Result<Array> {
        let (dtype, order, shape) = self.layout(path)?;
        let data = self.file.dataset(path).map_err(|e| wrong(path, e))?;
        let len = byte_len(dtype, &shape);
        // What deflate makes of the file at the most.
        let most = self.bytes().len().saturating_mul(1032);
        if len.is_none_or(|len| len > most) {
            return Err(wrong(path, format!("{shape:?} is more than the file can hold")));
        }
        let bytes = data.read_raw().map_err(|e| wrong(path, e))?;
        Array::decode(path, dtype, shape, &bytes, order)
    }

    /// Puts other numbers where those of a data set are. All other bytes of the file stay.
    pub fn write(&mut self, path: &str, array: &Array) -> Result<()> {
        let (dtype, order, shape) = self.layout(path)?;
        let array = array.like(path, (dtype, &shape))?;
        let data = self.file.dataset(path).map_err(|e| wrong(path, e))?;
        let encoded = array.encode(order);
        let Layout::Contiguous { address: Some(address), size } =
            data.layout().map_err(|e| wrong(path, e))?
        else {
            let reason = format!("{path}: only contiguous data sets can be written to");
            return Err(Error::unsupported(HDF5, reason));
        };
        let mut bytes = self.bytes().to_vec();
        let place = usize::try_from(address)
            .ok()
            .and_then(|at| bytes.get_mut(at..)?.get_mut(..encoded.len()));
        match place {
            Some(place) if size == encoded.len() as u64 => place.copy_from_slice(&encoded),
            _ => return Err(wrong(path, "its data is outside of the file")),
        }
        let file = Self::open(bytes)?;
        // Where other structures overlap the data, they would now be others.
        if file.read(path)?.encode(order) != encoded {
            return Err(wrong(path, "its data overlaps what describes it"));
        }
        *self = file;
        Ok(())
    }
}

/// A file to be written: groups within groups.
#[derive(Default)]
pub(super) struct Tree {
    pub groups: BTreeMap<String, Tree>,
    pub arrays: Vec<(String, Array)>,
    pub texts: Vec<(String, String)>,
    pub lists: Vec<(String, Vec<String>)>,
}

impl Tree {
    /// The group of a path, made where it is missing.
    pub fn group(&mut self, path: &str) -> &mut Tree {
        path.split('/').fold(self, |tree, name| tree.groups.entry(name.to_string()).or_default())
    }

    pub fn write(&self) -> Result<Vec<u8>> {
        let mut builder = FileBuilder::new();
        for (name, value) in self.attributes() {
            builder.set_attr(&name, value);
        }
        for (name, array) in &self.arrays {
            fill(builder.create_dataset(name), array);
        }
        for (name, tree) in &self.groups {
            let mut group = builder.create_group(name);
            tree.fill(&mut group);
            builder.add_group(group.finish());
        }
        builder.finish().map_err(|e| Error::unsupported(HDF5, e))
    }

    fn fill(&self, group: &mut GroupBuilder) {
        for (name, value) in self.attributes() {
            group.set_attr(&name, value);
        }
        for (name, array) in &self.arrays {
            fill(group.create_dataset(name), array);
        }
        for (name, tree) in &self.groups {
            let mut child = group.create_group(name);
            tree.fill(&mut child);
            group.add_group(child.finish());
        }
    }

    fn attributes(&self) -> impl Iterator<Item = (String, AttrValue)> {
        let texts = self.texts.iter().map(|(k, v)| (k.clone(), AttrValue::VarLenString(v.clone())));
        let lists =
            self.lists.iter().map(|(k, v)| (k.clone(), AttrValue::VarLenStringArray(v.clone())));
        texts.chain(lists)
    }
}

fn fill(dataset: &mut hdf5_pure::DatasetBuilder, array: &Array) {
    let shape: Vec<u64> = array.shape.iter().map(|&dim| dim as u64).collect();
    match array.dtype {
        DType::F64 => dataset.with_f64_data(&array.values),
        // Keras casts what it loads.
        _ => dataset.with_f32_data(&array.values.iter().map(|&v| v as f32).collect::<Vec<_>>()),
    }
    .with_shape(&shape);
}
