//! Any of the fixtures, by its name's ending: what it says, and the same file with other numbers.
use std::path::PathBuf;

use batchnorm::{DType, Keras1, Momentum, StateDict};
use batchnorm_formats::keras::{Hints, RunningStd};
use batchnorm_formats::{Error, LayerState, Result, flax, keras, onnx, torch};
use serde_json::Value;

/// The files that have layers.
pub const FILES: [&str; 21] = [
    "torch.pt",
    "torch.safetensors",
    "torch_module_prefix.pt",
    "torch_module_prefix.safetensors",
    "torch_half.pt",
    "torch_half.safetensors",
    "torch_bf16.safetensors",
    "torch_before_0_4_1.safetensors",
    "keras3.keras",
    "keras3.weights.h5",
    "keras3_legacy.h5",
    "keras2_model.h5",
    "keras2_weights.h5",
    "keras1_weights.h5",
    "keras3_get_weights.npz",
    "keras3_named.npz",
    "keras3_compressed.npz",
    "keras3_renorm.npz",
    "flax.msgpack",
    "onnx_raw_data.onnx",
    "onnx_float_data.onnx",
];

/// The numbers of the layer that `scripts/formats_fixtures.py` made n-th.
pub fn nth(n: usize, channels: usize, dtype: DType) -> LayerState {
    let values = |from: f64, step: f64| {
        Some((0..channels).map(|i| from + step * i as f64 / 8.0).collect::<Vec<_>>())
    };
    let n = n as f64;
    let mut state = LayerState::new(dtype);
    (state.weight, state.bias) = (values(n, 1.0), values(-n, -1.0));
    (state.running_mean, state.running_var) = (values(2.0 * n, 1.0), values(3.0 * n, 1.0));
    state
}

pub fn data(file: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(file);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The numbers that belong to a file.
pub fn expected(file: &str) -> Value {
    let names = [
        ("torch.pt", "torch_pt"),
        ("torch.safetensors", "torch_safetensors"),
        ("torch_half.pt", "torch_half_pt"),
        ("torch_half.safetensors", "torch_half_safetensors"),
        ("torch_bf16.safetensors", "torch_bf16_safetensors"),
        ("torch_module_prefix.pt", "torch_module_prefix_pt"),
        ("torch_module_prefix.safetensors", "torch_module_prefix_safetensors"),
        ("keras3.keras", "keras3_keras"),
        ("keras3.weights.h5", "keras3_weights_h5"),
        ("keras3_legacy.h5", "keras3_legacy_h5"),
    ];
    let name = names.iter().find(|(name, _)| *name == file).map(|(_, json)| *json);
    let name = name.unwrap_or_else(|| file.split('.').next().unwrap());
    let value: Value = serde_json::from_slice(&data(&format!("{name}.json"))).unwrap();
    assert_eq!(value["file"], file);
    value
}

pub fn numbers(value: &Value) -> Option<Vec<f64>> {
    Some(value.as_array()?.iter().map(|v| v.as_f64().unwrap()).collect())
}

/// What the JSON says of a layer, in the words of a state.
pub fn state(layer: &Value, dtype: DType) -> LayerState {
    let mut state = LayerState::new(dtype);
    state.weight = numbers(&layer["weight"]);
    state.bias = numbers(&layer["bias"]);
    state.running_mean = numbers(&layer["running_mean"]);
    state.running_var = numbers(&layer["running_var"]);
    state.num_batches_tracked = layer["num_batches_tracked"].as_u64();
    state.eps = layer["eps"].as_f64();
    state.momentum = layer["momentum_new"].as_f64().map(Momentum::Exponential);
    state
}

/// Any of the files.
pub enum Any {
    Torch(&'static str, StateDict),
    Keras(keras::File, Hints),
    Flax(flax::File),
    Onnx(onnx::File),
}

impl Any {
    pub fn read(file: &str, bytes: &[u8]) -> Result<Self> {
        Ok(match file.rsplit('.').next().unwrap() {
            "pt" => Self::Torch("pt", torch::read_pt(bytes)?),
            "safetensors" => Self::Torch("safetensors", StateDict::from_bytes(bytes)?),
            "h5" | "keras" | "npz" => Self::Keras(keras::File::read(bytes)?, Hints::default()),
            "msgpack" => Self::Flax(flax::File::read(bytes)?),
            "onnx" => Self::Onnx(onnx::File::read(bytes)?),
            other => panic!("{other}"),
        })
    }

    pub fn layers(&self) -> Result<Vec<String>> {
        Ok(match self {
            Self::Torch(_, dict) => torch::layers(dict),
            Self::Keras(file, _) => file.layers(),
            Self::Flax(file) => file.layers(),
            Self::Onnx(file) => file.layers()?,
        })
    }

    pub fn layer(&self, name: &str) -> Result<LayerState> {
        match self {
            Self::Torch(_, dict) => torch::layer(dict, name),
            Self::Keras(file, hints) => file.layer(name, &hints_for(file, name, hints)),
            Self::Flax(file) => file.layer(name),
            Self::Onnx(file) => file.layer(name),
        }
    }

    pub fn set_layer(&mut self, name: &str, state: &LayerState) -> Result<()> {
        match self {
            Self::Torch(_, dict) => torch::set_layer(dict, name, state),
            Self::Keras(file, hints) => {
                let hints = hints_for(file, name, hints);
                file.set_layer(name, state, &hints)
            }
            Self::Flax(file) => file.set_layer(name, state),
            Self::Onnx(file) => file.set_layer(name, state),
        }
    }

    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        match self {
            Self::Torch("pt", dict) => torch::write_pt(dict),
            Self::Torch(_, dict) => Ok(dict.to_bytes()?),
            Self::Keras(file, _) => file.to_bytes(),
            Self::Flax(file) => file.to_bytes(),
            Self::Onnx(file) => Ok(file.to_bytes()),
        }
    }
}

/// What the files do not say: that of Keras 1, and of the layer without gamma.
fn hints_for(file: &keras::File, name: &str, hints: &Hints) -> Hints {
    match file.layer(name, hints) {
        Err(Error::Ambiguous { .. }) if name == "bn_b" => hints.affine(false, true),
        Err(Error::Ambiguous { .. }) => hints.keras1(RunningStd::of(Keras1::V1_2, false)),
        _ => *hints,
    }
}
