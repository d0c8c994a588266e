//! Executes PTX on the CPU, checking what a GPU does not.

pub mod alu;
mod decode;
pub mod fault;
pub mod instr;
pub mod launch;
mod machine;
pub mod memory;
mod module;
pub mod numerics;
mod race;
pub mod registers;
pub mod report;
mod syntax;

pub use module::{AddressOf, LoadError, Module, Variable};
