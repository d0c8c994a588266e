//! Lists the batch normalizations of a file:
//!
//! ```sh
//! cargo run -p batchnorm-formats --example layers -- model.keras
//! ```
use std::error::Error;

use batchnorm::StateDict;
use batchnorm_formats::keras::Hints;
use batchnorm_formats::{LayerState, Result, flax, keras, onnx, torch};

fn main() -> std::result::Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).ok_or("expected a file")?;
    let bytes = std::fs::read(&path)?;
    match path.rsplit('.').next().unwrap_or_default() {
        "pt" | "pth" => of_torch(&torch::read_pt(&bytes)?),
        "safetensors" => of_torch(&StateDict::from_bytes(&bytes)?),
        "h5" | "keras" | "npz" => {
            let file = keras::File::read(&bytes)?;
            show(&file.layers(), |name| file.layer(name, &Hints::default()));
        }
        "msgpack" => {
            let file = flax::File::read(&bytes)?;
            show(&file.layers(), |name| file.layer(name));
        }
        "onnx" => {
            let file = onnx::File::read(&bytes)?;
            show(&file.layers()?, |name| file.layer(name));
        }
        other => return Err(format!("expected another ending than {other:?}").into()),
    }
    Ok(())
}

fn of_torch(dict: &StateDict) {
    show(&torch::layers(dict), |name| torch::layer(dict, name));
}

/// A line for each layer: what is known of it, or why it is not.
fn show(names: &[String], layer: impl Fn(&str) -> Result<LayerState>) {
    for name in names {
        let shown = layer(name).and_then(|state| {
            let arrays: Vec<_> = state.arrays().map(|(name, _)| name).collect();
            let arrays = arrays.join(", ");
            let eps = state.eps.map_or("eps not said".into(), |eps| format!("eps {eps}"));
            Ok(format!("{} channels, {}, {eps}: {arrays}", state.channels()?, state.dtype))
        });
        println!("{name:?}: {}", shown.unwrap_or_else(|e| e.to_string()));
    }
    println!("{} layers", names.len());
}
