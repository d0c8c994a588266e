//! The fuzz targets on stable Rust: the same inputs in every run, of every target as many as take about 5 seconds.
//!
//! | variable | |
//! |---|---|
//! | `BATCHNORM_FUZZ_SECONDS` | runs every target for so long instead |
//! | `BATCHNORM_FUZZ_SEED` | other inputs than those of seed 1 |
//! | `BATCHNORM_FUZZ_INPUT` | one input instead, as hex: `cargo test --test fuzz shapes` runs it again |
//! | `BATCHNORM_FUZZ_TRACE` | shows every input before it runs, for one that ends the process |
//!
//! `examples/tests/fuzz.rs` runs one more target, of checkpoints.
#[path = "fuzz/runner.rs"]
mod runner;
#[path = "support/mod.rs"]
mod support;
#[path = "fuzz/mod.rs"]
mod targets;

use runner::fuzz;

#[test]
fn states() {
    let files = (0..10).map(|file| vec![file]);
    fuzz(targets::states, files.collect(), 500_000);
}
#[test]
fn shapes() {
    fuzz(
        targets::shapes,
        vec![vec![0, 2, 1, 2, 1], vec![2, 3, 2, 3, 4, 1], vec![0; 40]],
        2_000_000,
    );
}
#[test]
fn arguments() {
    let right = (0..20).map(|k| [&[k % 4, k / 4][..], &[1; 20]].concat());
    fuzz(targets::arguments, right.collect(), 500_000);
}
#[test]
fn rows() {
    let right = (0..8).map(|k| [&[k % 4, k / 4, 3, 6][..], &[1; 20]].concat());
    fuzz(targets::rows, right.collect(), 500_000);
}
#[test]
fn renorm() {
    let right = (0..8).map(|k| [&[k % 4, k][..], &[2; 60]].concat());
    fuzz(targets::renorm, right.collect(), 40_000);
}
#[test]
fn plans() {
    let dtypes = (0..4).map(|dtype| vec![dtype, 0, 3, 0, 3, 0, 4, 0]);
    fuzz(targets::plans, dtypes.collect(), 500);
}
