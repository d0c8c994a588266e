//! What `tests/fuzz.rs` and `examples/tests/fuzz.rs` run, for libFuzzer: `cargo +nightly fuzz run shapes`.
#[allow(dead_code, unreachable_pub)] // main
#[path = "../../examples/train/main.rs"]
mod example;
#[path = "../../tests/support/mod.rs"]
mod support;
#[path = "../../examples/tests/fuzz/checkpoints.rs"]
pub mod checkpoints;
#[path = "../../tests/fuzz/mod.rs"]
pub mod targets;
use targets::bytes;
