//! The fuzz target of `train`'s checkpoints on stable Rust: `tests/fuzz.rs` of the library says how it is run.
#[allow(dead_code)] // what other targets need
#[path = "../../tests/fuzz/bytes.rs"]
mod bytes;
#[path = "fuzz/checkpoints.rs"]
mod checkpoints;
#[allow(dead_code)] // main
#[path = "../train/main.rs"]
mod example;
#[path = "../../tests/fuzz/runner.rs"]
mod runner;

#[test]
fn checkpoints() {
    runner::fuzz(checkpoints::run, vec![vec![5], vec![1, 1, 1], vec![0; 20]], 20_000);
}
