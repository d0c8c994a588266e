//! Files that the systems wrote (`tests/data/README.md`), read, computed with, written back and read
//! again.
#[path = "suite/support.rs"]
mod support;

#[path = "suite/fixtures.rs"]
mod fixtures;
#[path = "suite/flax.rs"]
mod flax;
#[path = "suite/json.rs"]
mod json;
#[path = "suite/keras.rs"]
mod keras;
#[path = "suite/npy.rs"]
mod npy;
#[path = "suite/onnx.rs"]
mod onnx;
#[path = "suite/torch.rs"]
mod torch;
