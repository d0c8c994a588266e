//! What `tests/fuzz.rs` and `examples/tests/fuzz.rs` run, for libFuzzer: `cargo +nightly fuzz run shapes`.
#[path = "../../examples/tests/fuzz/checkpoints.rs"]
pub mod checkpoints;
#[allow(dead_code, unreachable_pub)] // main
#[path = "../../examples/train/main.rs"]
mod example;
#[path = "../../tests/support/mod.rs"]
mod support;
#[path = "../../tests/fuzz/mod.rs"]
pub mod targets;
use targets::bytes;
