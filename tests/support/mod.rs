//! What tests and the `conformance` example share.
#![allow(dead_code, unused_imports, unused_macros)] // each of them uses a part

pub mod agree;
pub mod blank;
pub mod call;
#[cfg(all(feature = "cuda", target_os = "linux"))]
pub mod cuda;
#[cfg(all(feature = "cudnn", target_os = "linux"))]
pub mod cudnn;
pub mod desk;
pub mod doubly;
pub mod engines;
pub mod faults;
pub mod files;
pub mod golden;
pub mod inputs;
#[cfg(all(feature = "cuda", target_os = "linux"))]
pub mod late;
pub mod layer;
pub mod near;
pub mod oracle;
pub mod random;
pub mod rows;
pub mod rules;
pub mod run;
pub mod shapes;
pub mod state;
pub mod steps;
pub mod tolerance;
