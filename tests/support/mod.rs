//! What tests and the `conformance` example share.
#![allow(dead_code, unused_imports)] // each of them uses a part

pub mod golden;
pub mod tolerance;
