//! What is fuzzed: every target takes any bytes, and panics where something is wrong. `tests/fuzz.rs` runs them for
//! seconds on stable Rust, `fuzz/` by libFuzzer.
#![allow(dead_code)] // each program uses a part

mod arguments;
pub mod bytes;
mod given;
mod plans;
mod renorm;
mod rows;
mod shapes;
mod states;

pub use arguments::run as arguments;
pub use plans::run as plans;
pub use renorm::run as renorm;
pub use rows::run as rows;
pub use shapes::run as shapes;
pub use states::run as states;
