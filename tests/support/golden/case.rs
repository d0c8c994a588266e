//! Reads a case and says what is wrong with one that is malformed.
use super::{COMPUTED, Content, Entry, INPUTS, Tensors, parameters_of};
use anyhow::{Context, Result, anyhow, bail, ensure};
use batchnorm::{Activation, DType, Shape};
use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// A golden case: the inputs of a step, and what PyTorch computed from them in float64.
#[derive(Debug, Clone)]
pub struct Case {
    /// The file's name without `.safetensors`.
    pub name: String,
    /// Shape of x.
    pub dims: Vec<usize>,
    /// `dims`, folded around the channel axis.
    pub shape: Shape,
    pub dtype: DType,
    pub activation: Activation,
    pub eps: f64,
    /// Weight of the new value.
    pub momentum: f64,
    /// As in the file.
    pub metadata: HashMap<String, String>,
    /// Inputs and golden values; complete, see [`Case::has`].
    pub(super) tensors: Tensors,
}

/// Every `*.safetensors` of a folder, by name; or the file itself.
pub fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    if folder.is_file() {
        return Ok(vec![folder.to_owned()]);
    }
    let entries = std::fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let paths: std::io::Result<Vec<_>> = entries.map(|entry| Ok(entry?.path())).collect();
    let mut paths = paths.with_context(|| folder.display().to_string())?;
    paths.retain(|path| path.extension().is_some_and(|e| e == "safetensors"));
    paths.sort();
    ensure!(!paths.is_empty(), "{}: expected *.safetensors files, got none", folder.display());
    Ok(paths)
}

impl Case {
    /// A case without tensors, to be given some: what a step of another kind is judged by.
    pub fn of(
        name: &str,
        dims: &[usize],
        shape: Shape,
        dtype: DType,
        activation: Activation,
        eps: f64,
    ) -> Self {
        let (name, dims) = (name.to_owned(), dims.to_vec());
        let (metadata, tensors) = (HashMap::new(), Tensors::new());
        Self { name, dims, shape, dtype, activation, eps, momentum: 0.0, metadata, tensors }
    }

    /// Reads a file.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        Self::parse(&name, &bytes).with_context(|| path.display().to_string())
    }

    /// Reads the bytes of a file; `name` is what the case will be called.
    pub fn parse(name: &str, bytes: &[u8]) -> Result<Self> {
        let file = SafeTensors::deserialize(bytes)?;
        let metadata = SafeTensors::read_metadata(bytes)?.1.metadata().clone().unwrap_or_default();
        let get = |key: &str| {
            let value = metadata.get(key).with_context(|| format!("metadata: {key} is missing"));
            value.map(String::as_str)
        };
        let number = |key: &str| -> Result<f64> {
            let text = get(key)?;
            text.parse().map_err(|_| anyhow!("metadata: {key}: expected a number, got {text:?}"))
        };

        let dtype = get("dtype")?;
        let dtype = [DType::F64, DType::F32, DType::F16, DType::Bf16]
            .into_iter()
            .find(|d| d.to_string() == dtype)
            .with_context(|| {
                format!("metadata: dtype: expected f64, f32, f16 or bf16, got {dtype:?}")
            })?;
        let activation = get("activation")?;
        let found = Activation::ALL.into_iter().find(|known| known.name() == activation);
        let mut activation = found.with_context(|| {
            let known = Activation::ALL.map(Activation::name).join(", ");
            format!("metadata: activation: expected one of {known}, got {activation:?}")
        })?;
        if let Activation::LeakyRelu { negative_slope } = &mut activation {
            *negative_slope = number("negative_slope")?;
            ensure!(
                negative_slope.is_finite(),
                "metadata: negative_slope: expected a finite number, got {negative_slope}"
            );
        }
        let (eps, momentum) = (number("eps")?, number("momentum")?);
        ensure!(
            eps > 0.0 && eps.is_finite(),
            "metadata: eps: expected a finite number above 0, got {eps}"
        );
        ensure!(
            (0.0..=1.0).contains(&momentum),
            "metadata: momentum: expected 0 to 1, got {momentum}"
        );
        let axis = get("axis")?;
        let axis = axis
            .parse()
            .map_err(|_| anyhow!("metadata: axis: expected a whole number from 0, got {axis:?}"))?;
        let dims = file.tensor("x").context("x: is missing")?.shape().to_vec();
        let shape = Shape::new(&dims, axis).context("metadata: axis, for the shape of x")?;

        let name = name.to_owned();
        let tensors = Tensors::new();
        let mut case =
            Self { name, dims, shape, dtype, activation, eps, momentum, metadata, tensors };
        case.tensors = case.load(&file)?;
        Ok(case)
    }

    /// Whether this case has such a tensor: residual, weight and bias are optional, and with them
    /// what is computed from them.
    pub fn has(&self, entry: &Entry) -> bool {
        entry.with.is_none_or(|input| self.tensors.contains_key(input))
    }

    /// An input or a golden value.
    pub fn tensor(&self, name: &str) -> Result<&[f64]> {
        let tensor = self.tensors.get(name).map(Vec::as_slice);
        tensor.with_context(|| format!("{}: {name}: is missing", self.name))
    }

    /// An optional input.
    pub fn optional(&self, name: &str) -> Option<&[f64]> {
        self.tensors.get(name).map(Vec::as_slice)
    }

    /// Replaces an input or a golden value.
    pub fn set(&mut self, name: &'static str, values: Vec<f64>) {
        self.tensors.insert(name, values);
    }

    /// The same case on f64 elements and parameters: nothing is rounded, so a right answer is the
    /// golden one but for f64's own rounding.
    pub fn widened(&self) -> Self {
        Self { dtype: DType::F64, ..self.clone() }
    }

    /// The channel of an element.
    pub fn channel_of(&self, index: usize) -> usize {
        index / self.shape.inner() % self.shape.channels()
    }

    /// Shape of a tensor with that content.
    pub(super) fn dims_of(&self, content: Content) -> Vec<usize> {
        match content {
            Content::Elements => self.dims.clone(),
            _ => vec![self.shape.channels()],
        }
    }

    /// The type that a tensor of such content is computed in.
    pub fn dtype_of(&self, content: Content) -> DType {
        match content {
            Content::Elements => self.dtype,
            _ => parameters_of(self.dtype),
        }
    }

    /// All tensors of the file, checked against the format.
    fn load(&self, file: &SafeTensors<'_>) -> Result<Tensors> {
        let names = file.names();
        let mut tensors = Tensors::new();
        let inputs = INPUTS.iter().map(|entry| match entry.content {
            Content::Statistics => (entry, DType::F64),
            content => (entry, self.dtype_of(content)),
        });
        for (entry, dtype) in inputs.chain(COMPUTED.iter().map(|entry| (entry, DType::F64))) {
            let Entry { name, content, with } = *entry;
            if with.is_some_and(|input| !names.contains(&input)) {
                continue;
            }
            let view = file.tensor(name).with_context(|| format!("{name}: is missing"))?;
            let (expected, got) = (self.dims_of(content), view.shape());
            ensure!(got == expected, "{name}: expected shape {expected:?}, got {got:?}");
            tensors.insert(name, decode(&view, dtype).with_context(|| name)?);
        }
        for name in names {
            let known = tensors.contains_key(name);
            ensure!(known, "{name}: is no tensor of this format, or its input is missing");
        }
        Ok(tensors)
    }
}

/// The values in f64, if they are stored as `dtype`.
pub(super) fn decode(view: &TensorView<'_>, dtype: DType) -> Result<Vec<f64>> {
    fn each<const N: usize>(bytes: &[u8], value: impl Fn([u8; N]) -> f64) -> Vec<f64> {
        bytes.as_chunks().0.iter().map(|bytes| value(*bytes)).collect()
    }
    let bytes = view.data();
    Ok(match (dtype, view.dtype()) {
        (DType::F64, Dtype::F64) => each(bytes, f64::from_le_bytes),
        (DType::F32, Dtype::F32) => each(bytes, |b| f32::from_le_bytes(b).into()),
        (DType::F16, Dtype::F16) => each(bytes, |b| f16::from_le_bytes(b).into()),
        (DType::Bf16, Dtype::BF16) => each(bytes, |b| bf16::from_le_bytes(b).into()),
        (_, got) => bail!("expected dtype {dtype}, got {got}"),
    })
}
