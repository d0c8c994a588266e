//! Executes PTX on the CPU, checking what a GPU does not.

pub mod alu;
pub mod fault;
pub mod instr;
pub mod launch;
pub mod memory;
mod race;
pub mod report;
