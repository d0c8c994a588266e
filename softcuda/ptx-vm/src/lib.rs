//! Executes PTX on the CPU, checking what a GPU does not.

pub mod alu;
pub mod instr;
