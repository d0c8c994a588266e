//! The host side of `softcuda/kernels`: what the tests and the `compare_kernels` example share. Nothing here knows
//! whether a device is real.
#![allow(dead_code)] // each of them uses a part

#[allow(unsafe_code)]
pub mod batchnorm;
pub mod bound;
#[allow(unsafe_code)]
pub mod cooperative;
pub mod data;
#[allow(unsafe_code)]
pub mod device;
pub mod element;
pub mod exact;
pub mod oracle;
pub mod output;
#[allow(unsafe_code)]
pub mod split;
