//! Executes PTX on the CPU, checking what a GPU does not.

pub mod alu;
mod decode;
pub mod fault;
pub mod instr;
pub mod launch;
pub mod memory;
mod module;
pub mod numerics;
pub mod registers;
pub mod report;
mod syntax;

pub use module::{LoadError, Module};
