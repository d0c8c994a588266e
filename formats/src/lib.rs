#![doc = include_str!("../README.md")]
// The map. Who stands higher may use who stands lower, never the other way round.

pub mod flax; // msgpack
pub mod json; // MATLAB and Wolfram, by names
pub mod keras; // HDF5, zip archives with HDF5 in them, npz
pub mod onnx; // protocol buffers
pub mod torch; // pickles in zip archives

pub mod npy; // arrays of NumPy, one or several

mod archive; // zip
mod state; // one layer, whatever system wrote it

mod array; // numbers with a type and a shape
mod error;

pub use array::Array;
pub use error::{Error, Result};
pub use state::{LayerState, Renorm};
