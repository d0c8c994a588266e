//! Writes a file of each kind, and `manifest.json` with the numbers that are in them, for
//! `scripts/check-formats.py` to read by the systems' own libraries:
//!
//! ```sh
//! cargo run -p batchnorm-formats --example samples -- formats/tests/data OUT
//! ```
use std::error::Error;
use std::path::Path;

use batchnorm::{DType, Keras1, Momentum, StateDict};
use batchnorm_formats::keras::{self, Hints, Legacy, RunningStd};
use batchnorm_formats::{Array, LayerState, flax, npy, onnx, torch};
use serde_json::{Value, json};

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

fn main() -> Outcome {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [from, to] = &arguments[..] else { return Err("expected two folders".into()) };
    let (from, to) = (Path::new(from), Path::new(to));
    std::fs::create_dir_all(to)?;
    let mut manifest = Vec::new();
    changed(from, to, &mut manifest)?;
    new(to, &mut manifest)?;
    std::fs::write(to.join("manifest.json"), serde_json::to_string_pretty(&manifest)?)?;
    println!("{} files in {}", manifest.len(), to.display());
    Ok(())
}

/// Other numbers than those of the state, which f16 holds.
fn other(state: &LayerState) -> LayerState {
    let mut other = state.clone();
    let change = |values: &mut Option<Vec<f64>>, by: f64| {
        for (i, value) in values.iter_mut().flatten().enumerate() {
            *value = by + i as f64 / 4.0;
        }
    };
    change(&mut other.weight, -1.0);
    change(&mut other.bias, 7.5);
    change(&mut other.running_mean, -3.0);
    change(&mut other.running_var, 0.5);
    other.num_batches_tracked = state.num_batches_tracked.map(|count| count + 1000);
    other
}

fn entry(file: &str, what: &str, layers: &[(String, LayerState)]) -> Value {
    let layers = layers.iter().map(|(name, state)| {
        let momentum = match state.momentum {
            Some(Momentum::Exponential(new)) => Some(new),
            _ => None,
        };
        json!({
            "name": name,
            "dtype": state.dtype.to_string(),
            "weight": state.weight,
            "bias": state.bias,
            "running_mean": state.running_mean,
            "running_var": state.running_var,
            "num_batches_tracked": state.num_batches_tracked,
            "eps": state.eps,
            "momentum_new": momentum,
        })
    });
    json!({ "file": file, "what": what, "layers": layers.collect::<Vec<_>>() })
}

/// The systems' own files with other numbers in the layers that they have.
fn changed(from: &Path, to: &Path, manifest: &mut Vec<Value>) -> Outcome {
    let what = "changed";
    for file in ["torch.pt", "torch_half.pt", "torch_module_prefix.pt"] {
        let mut dict = torch::read_pt(&std::fs::read(from.join(file))?)?;
        let layers = all_of_torch(&mut dict)?;
        std::fs::write(to.join(file), torch::write_pt(&dict)?)?;
        manifest.push(entry(file, what, &layers));
    }
    for file in ["torch.safetensors", "torch_bf16.safetensors"] {
        let mut dict = StateDict::from_bytes(&std::fs::read(from.join(file))?)?;
        let layers = all_of_torch(&mut dict)?;
        std::fs::write(to.join(file), dict.to_bytes()?)?;
        manifest.push(entry(file, what, &layers));
    }
    for file in [
        "keras3.keras",
        "keras3.weights.h5",
        "keras3_legacy.h5",
        "keras2_model.h5",
        "keras2_weights.h5",
        "keras1_weights.h5",
        "keras3_named.npz",
        "keras3_get_weights.npz",
    ] {
        let mut keras = keras::File::read(&std::fs::read(from.join(file))?)?;
        let mut layers = Vec::new();
        for name in keras.layers() {
            let mut hints = Hints::default().keras1(RunningStd::of(Keras1::V1_2, false));
            if file == "keras3.weights.h5" && name == "bn_b" {
                hints = hints.affine(false, true);
            }
            let state = other(&keras.layer(&name, &hints)?);
            keras.set_layer(&name, &state, &hints)?;
            layers.push((name, state));
        }
        std::fs::write(to.join(file), keras.to_bytes()?)?;
        manifest.push(entry(file, what, &layers));
    }
    let mut flax = flax::File::read(&std::fs::read(from.join("flax.msgpack"))?)?;
    let mut layers = Vec::new();
    for name in flax.layers() {
        let state = other(&flax.layer(&name)?);
        flax.set_layer(&name, &state)?;
        layers.push((name, state));
    }
    std::fs::write(to.join("flax.msgpack"), flax.to_bytes()?)?;
    manifest.push(entry("flax.msgpack", what, &layers));
    for file in ["onnx_raw_data.onnx", "onnx_float_data.onnx"] {
        let mut onnx = onnx::File::read(&std::fs::read(from.join(file))?)?;
        let mut layers = Vec::new();
        for name in onnx.layers()? {
            let mut state = other(&onnx.layer(&name)?);
            (state.eps, state.momentum) = (Some(0.5), Some(Momentum::Exponential(0.25)));
            onnx.set_layer(&name, &state)?;
            layers.push((name, state));
        }
        std::fs::write(to.join(file), onnx.to_bytes())?;
        manifest.push(entry(file, what, &layers));
    }
    Ok(())
}

fn all_of_torch(dict: &mut StateDict) -> Outcome<Vec<(String, LayerState)>> {
    let mut layers = Vec::new();
    for name in torch::layers(dict) {
        let state = other(&torch::layer(dict, &name)?);
        torch::set_layer(dict, &name, &state)?;
        layers.push((name, state));
    }
    Ok(layers)
}

/// A layer with all arrays, and one without gamma, in new files.
fn new(to: &Path, manifest: &mut Vec<Value>) -> Outcome {
    let what = "new";
    let some = |channels: usize| Some(vec![1.0; channels]);
    let mut whole = LayerState::new(DType::F32);
    (whole.weight, whole.bias) = (some(3), some(3));
    (whole.running_mean, whole.running_var) = (some(3), some(3));
    whole.num_batches_tracked = Some(41);
    let whole = other(&whole);
    let mut part = LayerState::new(DType::F32);
    (part.bias, part.running_mean, part.running_var) = (some(5), some(5), some(5));
    let part = other(&part);
    let named = [("first".to_string(), whole.clone()), ("second".to_string(), part.clone())];
    let pairs = [("first", &whole), ("second", &part)];

    let mut dict = whole.to_state_dict("first.")?;
    dict.extend(part.to_state_dict("second.")?);
    let mut flax = flax::File::new();
    for (name, state) in &pairs {
        flax.set_layer(name, state)?;
    }
    for (file, bytes) in [
        ("new.pt", torch::write_pt(&dict)?),
        ("new.weights.h5", keras::write_weights_h5(&pairs)?),
        ("new_keras2.h5", keras::write_legacy_h5(&pairs, Legacy::Keras2)?),
        ("new_keras3.h5", keras::write_legacy_h5(&pairs, Legacy::Keras3)?),
        ("new.msgpack", flax.to_bytes()?),
    ] {
        std::fs::write(to.join(file), bytes)?;
        manifest.push(entry(file, what, &named));
    }
    let arrays: Vec<(String, Array)> = keras::to_weights(&whole)?
        .into_iter()
        .enumerate()
        .map(|(i, array)| (format!("arr_{i}"), array))
        .collect();
    let mut exact = whole.clone();
    (exact.eps, exact.momentum) = (Some(0.125), Some(Momentum::Exponential(0.5)));
    for (file, name, bytes) in [
        ("new.npz", "", npy::write_npz(&arrays)?),
        ("new_keras1.h5", "first", keras::write_legacy_h5(&pairs[..1], Legacy::Keras1)?),
        ("new.onnx", "first", onnx::write("first", &exact, 4)?),
    ] {
        std::fs::write(to.join(file), bytes)?;
        let state = if file == "new.onnx" { &exact } else { &whole };
        manifest.push(entry(file, what, &[(name.to_string(), state.clone())]));
    }
    Ok(())
}
