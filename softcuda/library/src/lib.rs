//! What the software CUDA libraries have in common: becoming the library that a vendor's name stands for, and work in
//! the order of a stream, on the public driver API alone.

#[allow(unsafe_code)]
mod install;

pub use install::{InstallError, StandIn};
