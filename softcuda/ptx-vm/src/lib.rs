//! Executes PTX on the CPU, checking what a GPU does not.

pub mod alu;
mod decode;
pub mod instr;
mod module;
pub mod numerics;
pub mod registers;
mod syntax;

pub use module::{LoadError, Module};
