//! Flax's msgpack files: what `flax.serialization.to_bytes` writes of variables.
use batchnorm::DType;
use rmpv::Value;

use crate::array::ByteOrder;
use crate::{Array, Error, LayerState, Result};

const FLAX: &str = "flax";
/// Of the extension that holds an array: `[shape, type, bytes]`, in msgpack again.
const NDARRAY: i8 = 1;
/// Variables are maps of modules in modules: no deeper than this.
const DEPTH: usize = 64;

/// The variables of a model, in memory: which batch normalizations they have, and their numbers, to be
/// read and replaced.
///
/// A layer is `params/PATH` with `scale` and `bias`, and `batch_stats/PATH` with `mean` and `var`; its
/// name is PATH, joined by `/`. The file says neither epsilon nor momentum, and no axis.
pub struct File {
    root: Value,
}

/// The collection and the name of each array, in the order of [`LayerState::from_arrays`].
const ARRAYS: [(&str, &str); 4] =
    [("params", "scale"), ("params", "bias"), ("batch_stats", "mean"), ("batch_stats", "var")];

impl File {
    /// No layers.
    pub fn new() -> Self {
        Self { root: Value::Map(Vec::new()) }
    }

    /// Reads a file.
    ///
    /// # Errors
    /// [`Error::Malformed`] for bytes that are no msgpack map, or that go on behind it.
    pub fn read(bytes: &[u8]) -> Result<Self> {
        let root = whole(bytes)?;
        if !root.is_map() {
            return Err(Error::malformed(FLAX, "expected a map of collections"));
        }
        Ok(Self { root })
    }

    /// The names of the modules that have a mean and a variance among their `batch_stats`.
    pub fn layers(&self) -> Vec<String> {
        let mut names = Vec::new();
        if let Some(stats) = get(&self.root, "batch_stats") {
            walk(stats, "", &mut names);
        }
        names
    }

    /// What the file says of one layer.
    ///
    /// # Errors
    /// [`Error::NoLayer`]; [`Error::Malformed`] for an array that is none; [`Error::Unsupported`] for
    /// one in another type than f16, bf16, f32 or f64, or in chunks; [`Error::Mismatch`] where the
    /// arrays are not one value per channel, as of a layer with several axes.
    pub fn layer(&self, name: &str) -> Result<LayerState> {
        if !self.layers().iter().any(|there| there == name) {
            return Err(Error::no_layer(name, self.layers()));
        }
        let mut arrays = ARRAYS.iter().map(|(collection, array)| {
            let Some(value) = at(&self.root, collection, name).and_then(|m| get(m, array)) else {
                return Ok(None);
            };
            let array = decode(&format!("{collection}/{name}/{array}"), value)?;
            match array.channels() {
                Some(_) => Ok(Some(array)),
                None => Err(Error::mismatch(name, "one value per channel", array)),
            }
        });
        let mut next = || arrays.next().transpose().map(Option::flatten);
        LayerState::from_arrays(next()?, next()?, next()?, next()?)
    }

    /// Puts a layer's numbers in place of those that the file has of it, in their types and shapes; or
    /// adds it, where the file has none of that name.
    ///
    /// # Errors
    /// Those of [`layer`](Self::layer); [`Error::Mismatch`] where one has an array that the other
    /// lacks, or of another length, or a number that the type does not hold, and where a new layer has
    /// no statistics.
    pub fn set_layer(&mut self, name: &str, state: &LayerState) -> Result<()> {
        if self.layers().iter().any(|there| there == name) {
            state.check_fits(name, &self.layer(name)?)?;
        } else if state.running_mean.is_none() || state.running_var.is_none() {
            return Err(Error::mismatch(name, "running statistics", "none"));
        }
        state.channels()?;
        let values = [&state.weight, &state.bias, &state.running_mean, &state.running_var];
        let mut encoded = Vec::new();
        for ((collection, key), values) in ARRAYS.iter().zip(values) {
            let Some(values) = values else { continue };
            let path = format!("{collection}/{name}/{key}");
            let mut array = Array::vector(state.dtype, values.clone());
            if let Some(there) = at(&self.root, collection, name).and_then(|m| get(m, key)) {
                let there = decode(&path, there)?;
                array = array.like(&path, (there.dtype, &there.shape))?;
            }
            encoded.push((*collection, *key, encode(&array)?));
        }
        for (collection, key, value) in encoded {
            let module = std::iter::once(collection).chain(parts(name));
            let mut place = &mut self.root;
            for part in module.chain([key]) {
                place = entry(place, part)?;
            }
            *place = value;
        }
        Ok(())
    }

    /// The file, as `flax.serialization.from_bytes` and `msgpack_restore` read it.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for what msgpack does not hold: more than 2^32 - 1 of anything.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        packed(&self.root)
    }
}

impl Default for File {
    fn default() -> Self {
        Self::new()
    }
}

/// The parts of a name; none of the model's own, which is empty.
fn parts(name: &str) -> impl Iterator<Item = &str> {
    name.split('/').filter(|part| !part.is_empty())
}

fn get<'a>(map: &'a Value, key: &str) -> Option<&'a Value> {
    map.as_map()?.iter().find(|(k, _)| k.as_str() == Some(key)).map(|(_, value)| value)
}

/// A module of a collection.
fn at<'a>(root: &'a Value, collection: &str, name: &str) -> Option<&'a Value> {
    parts(name).try_fold(get(root, collection)?, get)
}

/// The value of a key, which is added where it is missing.
fn entry<'a>(map: &'a mut Value, key: &str) -> Result<&'a mut Value> {
    let Value::Map(items) = map else {
        return Err(Error::malformed(FLAX, format!("expected a map that has {key}")));
    };
    let place = items.iter().position(|(k, _)| k.as_str() == Some(key)).unwrap_or_else(|| {
        items.push((key.into(), Value::Map(Vec::new())));
        items.len() - 1
    });
    Ok(&mut items[place].1)
}

fn walk(module: &Value, path: &str, names: &mut Vec<String>) {
    if get(module, "mean").is_some_and(|v| !v.is_map()) && get(module, "var").is_some() {
        names.push(path.to_string());
    }
    for (key, value) in module.as_map().into_iter().flatten() {
        if let (Some(key), true) = (key.as_str(), value.is_map()) {
            walk(value, &if path.is_empty() { key.into() } else { format!("{path}/{key}") }, names);
        }
    }
}

/// One value that is all of the bytes.
fn whole(mut bytes: &[u8]) -> Result<Value> {
    let value = rmpv::decode::read_value_with_max_depth(&mut bytes, DEPTH);
    let value = value.map_err(|e| Error::malformed(FLAX, e))?;
    match bytes.len() {
        0 => Ok(value),
        more => Err(Error::malformed(FLAX, format!("{more} bytes behind its end"))),
    }
}

fn packed(value: &Value) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    rmpv::encode::write_value(&mut bytes, value).map_err(|e| Error::unsupported(FLAX, e))?;
    Ok(bytes)
}

fn decode(path: &str, value: &Value) -> Result<Array> {
    let wrong = || Error::malformed(FLAX, format!("{path}: expected an array"));
    let Some((NDARRAY, bytes)) = value.as_ext() else {
        // Flax splits arrays of more than 2^30 bytes, which no vector of channels is.
        return Err(wrong());
    };
    let value = whole(bytes)?;
    let [shape, dtype, data] = value.as_array().map(Vec::as_slice).ok_or_else(wrong)? else {
        return Err(wrong());
    };
    let shape = shape.as_array().ok_or_else(wrong)?.iter();
    let shape = shape.map(|dim| usize::try_from(dim.as_u64()?).ok()).collect::<Option<Vec<_>>>();
    let dtype = match dtype.as_str() {
        Some("float64") => DType::F64,
        Some("float32") => DType::F32,
        Some("float16") => DType::F16,
        Some("bfloat16") => DType::Bf16,
        other => {
            let reason = format!("{path}: expected f16, bf16, f32 or f64, got {other:?}");
            return Err(Error::unsupported(FLAX, reason));
        }
    };
    let (shape, data) = (shape.ok_or_else(wrong)?, data.as_slice().ok_or_else(wrong)?);
    Array::decode(path, dtype, shape, data, ByteOrder::Little)
}

fn encode(array: &Array) -> Result<Value> {
    let dtype = match array.dtype {
        DType::F64 => "float64",
        DType::F16 => "float16",
        DType::Bf16 => "bfloat16",
        _ => "float32",
    };
    let shape = array.shape.iter().map(|&dim| Value::from(dim)).collect();
    let data = Value::Binary(array.encode(ByteOrder::Little));
    let bytes = packed(&Value::Array(vec![Value::Array(shape), dtype.into(), data]))?;
    Ok(Value::Ext(NDARRAY, bytes))
}
