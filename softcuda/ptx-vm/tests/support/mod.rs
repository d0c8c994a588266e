//! Runs PTX instructions on chosen values.

#![allow(dead_code)] // Every test program uses its part.

use ptx_vm::instr::{Kernel, Op};
use ptx_vm::registers::Registers;
use ptx_vm::{LoadError, Module, alu};

/// A few register-to-register instructions, their inputs and their results.
pub struct Program {
    registers: Registers,
    kernel: std::sync::Arc<Kernel>,
    inputs: usize,
}

/// Instructions as the body of a kernel.
pub fn text(declarations: &str, body: &str) -> String {
    format!(
        ".version 7.8\n.target sm_90\n.address_size 64\n.visible .entry k(.param .u64 p)\n{{\n{declarations}\n{body}\nret;\n}}\n"
    )
}

impl Program {
    /// `registers`: `"d:b32 a:b32"`; names that begin with d are results, the others inputs, in that order.
    pub fn new(registers: &str, body: &str) -> Program {
        Program::load(registers, body).unwrap_or_else(|error| panic!("{error}"))
    }

    pub fn load(registers: &str, body: &str) -> Result<Program, LoadError> {
        let (mut declarations, mut before, mut after) =
            (String::new(), String::new(), String::new());
        for declared in registers.split(' ') {
            let (name, ty) = declared.split_once(':').unwrap();
            declarations += &format!(".reg .{ty} {name}; ");
            let result = name.starts_with('d');
            match (ty, result) {
                ("pred", false) => {
                    declarations += &format!(".reg .b32 {name}_; ");
                    before +=
                        &format!("ld.param.b32 {name}_, [p]; setp.ne.b32 {name}, {name}_, 0; ");
                }
                ("pred", true) => {
                    declarations += &format!(".reg .b32 {name}_; ");
                    after +=
                        &format!("selp.b32 {name}_, 1, 0, {name}; st.global.b32 [8], {name}_; ");
                }
                (_, false) => before += &format!("ld.param.{} {name}, [p]; ", bits(ty)),
                (_, true) => after += &format!("st.global.{} [8], {name}; ", bits(ty)),
            }
        }
        let module = Module::load(&text(&declarations, &format!("{before}\n{body}\n{after}")))?;
        let kernel = module.kernel("k").unwrap().clone();
        let loads = kernel.code.iter().filter(|instr| matches!(instr.op, Op::Load { .. }));
        Ok(Program { registers: Registers::of(&kernel), inputs: loads.count(), kernel })
    }

    pub fn seeded(mut self, seed: u64) -> Program {
        self.registers.set_seed(seed);
        self
    }

    /// The results for each row of inputs, 32 rows at a time as the lanes of a warp.
    pub fn run(&self, rows: &[Vec<u64>]) -> Vec<Vec<u64>> {
        let mut all = Vec::new();
        for rows in rows.chunks(32) {
            assert!(rows.iter().all(|row| row.len() == self.inputs));
            let mut registers = self.registers.clone();
            let mask = u32::MAX >> (32 - rows.len());
            let (mut inputs, mut results) = (0.., vec![Vec::new(); rows.len()]);
            for instr in &self.kernel.code {
                match &instr.op {
                    Op::Alu(instruction) => alu::execute(instruction, &mut registers, mask),
                    Op::Load { regs, .. } => {
                        let input = inputs.next().unwrap();
                        for (lane, row) in rows.iter().enumerate() {
                            registers.row_mut(regs[0])[lane] = row[input];
                        }
                    }
                    Op::Store { regs, .. } => {
                        for (lane, results) in results.iter_mut().enumerate() {
                            results.push(registers.row(regs[0])[lane]);
                        }
                    }
                    _ => {}
                }
            }
            all.extend(results);
        }
        all
    }

    /// The first result for one row of inputs.
    pub fn one(&self, inputs: &[u64]) -> u64 {
        self.run(&[inputs.to_vec()])[0][0]
    }
}

/// Asserts the first result of each row of inputs.
#[track_caller]
pub fn check(registers: &str, body: &str, cases: &[(&[u64], u64)]) {
    let program = Program::new(registers, body);
    for (inputs, expected) in cases {
        let got = program.one(inputs);
        assert_eq!(got, *expected, "{body} of {inputs:x?} gave {got:#x}, not {expected:#x}");
    }
}

fn bits(ty: &str) -> String {
    format!("b{}", ty.trim_start_matches(|c: char| c.is_ascii_alphabetic()))
}
