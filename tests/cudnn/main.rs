//! What only the engines have that call cuDNN, `Cudnn` and `Gpu`: the suite runs on them, too.
//!
//! On the software device and the software cuDNN, where passing shows that the plumbing is right,
//! not that cuDNN is.
#![cfg(all(feature = "cudnn", target_os = "linux"))]

#[path = "../support/mod.rs"]
mod support;

mod calls; // how often an operation calls cuDNN, and a y that is not copied
mod choice; // what `Gpu` takes, and why
mod failures; // calls that fail, what is left afterwards
mod own; // overflow, graphs, explanations
mod places; // memory of other devices, arguments at odd addresses
mod refusals; // the committed table: what is not refused is right
