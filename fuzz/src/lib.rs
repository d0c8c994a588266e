//! What `tests/fuzz.rs` runs, for libFuzzer: `cargo +nightly fuzz run shapes`.
#[allow(dead_code, unreachable_pub)] // main
#[path = "../../examples/train/main.rs"]
mod example;
#[path = "../../tests/support/mod.rs"]
mod support;
#[path = "../../tests/fuzz/mod.rs"]
pub mod targets;
