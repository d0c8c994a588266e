//! A golden file that names its kind: metadata as JSON values, tensors by name.
use super::case::decode;
use anyhow::{Context, Result, anyhow, ensure};
use batchnorm::{Activation, DType, Shape};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};

/// A golden case of some kind, whose tensors and metadata its runner in [`super::kinds`] knows.
#[derive(Debug, Clone)]
pub struct Document {
    /// The file's name without `.safetensors`.
    pub name: String,
    /// What its metadata says that it is.
    pub kind: String,
    /// Of x, parameters aside.
    pub dtype: DType,
    metadata: BTreeMap<String, Value>,
    /// The metadata as in the file.
    texts: HashMap<String, String>,
    tensors: BTreeMap<String, Stored>,
}

/// A tensor of a [`Document`], widened to f64.
#[derive(Debug, Clone)]
pub struct Stored {
    pub dims: Vec<usize>,
    pub values: Vec<f64>,
}

impl Document {
    /// Reads the bytes of a file; `name` is what the case will be called. Nothing where the file names no kind.
    pub fn parse(name: &str, bytes: &[u8]) -> Result<Option<Self>> {
        let file = SafeTensors::deserialize(bytes)?;
        let texts = SafeTensors::read_metadata(bytes)?.1.metadata().clone().unwrap_or_default();
        if !texts.contains_key("kind") {
            return Ok(None);
        }
        let mut metadata = BTreeMap::new();
        for (key, text) in &texts {
            let value = serde_json::from_str(text)
                .with_context(|| format!("metadata: {key}: expected a JSON value, got {text:?}"))?;
            metadata.insert(key.clone(), value);
        }
        let mut tensors = BTreeMap::new();
        for (name, view) in file.iter() {
            let dtype = match view.dtype() {
                Dtype::F64 => DType::F64,
                Dtype::F32 => DType::F32,
                Dtype::F16 => DType::F16,
                Dtype::BF16 => DType::Bf16,
                // Masks.
                Dtype::U8 | Dtype::BOOL => {
                    let values = view.data().iter().map(|byte| f64::from(*byte)).collect();
                    let dims = view.shape().to_vec();
                    tensors.insert(name.to_owned(), Stored { dims, values });
                    continue;
                }
                _ => continue,
            };
            let values = decode(&view, dtype).with_context(|| name.to_owned())?;
            tensors.insert(name.to_owned(), Stored { dims: view.shape().to_vec(), values });
        }
        let (name, kind) = (name.to_owned(), String::new());
        let mut this = Self { name, kind, dtype: DType::F64, metadata, texts, tensors };
        this.kind = this.text("kind")?.to_owned();
        if let Some(dtype) = this.metadata.get("dtype") {
            this.dtype = [DType::F64, DType::F32, DType::F16, DType::Bf16]
                .into_iter()
                .find(|known| dtype.as_str() == Some(&known.to_string()))
                .with_context(|| {
                    format!("metadata: dtype: expected f64, f32, f16 or bf16, got {dtype}")
                })?;
        }
        Ok(Some(this))
    }

    /// A value of the metadata; `null` is one.
    pub fn value(&self, key: &str) -> Result<&Value> {
        self.metadata.get(key).with_context(|| format!("{}: metadata: {key} is missing", self.name))
    }
    pub fn text(&self, key: &str) -> Result<&str> {
        let value = self.value(key)?;
        value.as_str().ok_or_else(|| anyhow!("metadata: {key}: expected a string, got {value}"))
    }
    pub fn number(&self, key: &str) -> Result<f64> {
        let value = self.value(key)?;
        // From the text: serde_json's numbers may be off by a unit in the last place.
        let text = self.texts.get(key).filter(|_| value.is_number());
        let number = text.and_then(|text| text.trim().parse().ok());
        number.ok_or_else(|| anyhow!("metadata: {key}: expected a number, got {value}"))
    }
    /// How many: steps, batches.
    pub fn count(&self, key: &str) -> Result<usize> {
        let value = self.value(key)?;
        let count = value.as_u64().and_then(|count| usize::try_from(count).ok());
        count.ok_or_else(|| anyhow!("metadata: {key}: expected a count, got {value}"))
    }
    /// What follows the normalization: none where the metadata does not say.
    pub fn activation(&self) -> Result<Activation> {
        let Some(value) = self.metadata.get("activation") else { return Ok(Activation::Identity) };
        let known = Activation::ALL.into_iter().find(|known| value.as_str() == Some(known.name()));
        known.with_context(|| format!("metadata: activation: expected a known one, got {value}"))
    }

    /// Whether there is such a tensor.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }
    pub fn tensor(&self, name: &str) -> Result<&Stored> {
        let tensor = self.tensors.get(name);
        tensor.with_context(|| format!("{}: {name}: is missing", self.name))
    }
    pub fn values(&self, name: &str) -> Result<&[f64]> {
        Ok(&self.tensor(name)?.values)
    }
    /// What was computed for it, in f64 and under the golden tensors' names, as a safetensors file.
    pub fn serialize(&self, computed: &BTreeMap<String, Vec<f64>>) -> Result<Vec<u8>> {
        let bytes: BTreeMap<_, Vec<u8>> = computed
            .iter()
            .map(|(name, values)| (name, values.iter().flat_map(|v| v.to_le_bytes()).collect()))
            .collect();
        let views: Result<Vec<_>> = bytes
            .iter()
            .map(|(name, bytes)| {
                let dims = self.tensor(name)?.dims.clone();
                Ok((name, TensorView::new(Dtype::F64, dims, bytes)?))
            })
            .collect();
        Ok(safetensors::serialize(views?, Some(self.texts.clone()))?)
    }

    /// As [`values`](Self::values), to change them.
    pub fn values_mut(&mut self, name: &str) -> Result<&mut Vec<f64>> {
        let tensor = self.tensors.get_mut(name).map(|tensor| &mut tensor.values);
        tensor.with_context(|| format!("{}: {name}: is missing", self.name))
    }
    /// Says a number that the file leaves out.
    pub fn set_count(&mut self, key: &str, count: usize) {
        self.metadata.insert(key.to_owned(), count.into());
    }
    /// Of all tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }
    /// The shape of that tensor around the channel axis.
    pub fn shape_of(&self, name: &str) -> Result<Shape> {
        let dims = &self.tensor(name)?.dims;
        let axis = self.count("axis")?;
        ensure!(axis < dims.len(), "{name}: expected more than {axis} axes, got {dims:?}");
        Ok(Shape::new(dims, axis)?)
    }
}
