//! Runs PTX instructions on chosen values.

#![allow(dead_code)] // Every test program uses its part.

use ptx_vm::instr::{Kernel, Op, Reg};
use ptx_vm::registers::Registers;
use ptx_vm::{LoadError, Module, alu};

/// A few register-to-register instructions, their inputs and their results.
pub struct Program {
    registers: Registers,
    kernel: std::sync::Arc<Kernel>,
    inputs: Vec<Reg>,
    results: Vec<Reg>,
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
        let (mut inputs, mut results) = (Vec::new(), Vec::new());
        for instr in &kernel.code {
            match &instr.op {
                Op::Load { regs, .. } => inputs.push(regs[0]),
                Op::Store { regs, .. } => results.push(regs[0]),
                _ => {}
            }
        }
        Ok(Program { registers: Registers::of(&kernel), kernel, inputs, results })
    }

    pub fn seeded(mut self, seed: u64) -> Program {
        self.registers.set_seed(seed);
        self
    }

    /// The results for each row of inputs, 32 rows at a time as the lanes of a warp.
    pub fn run(&self, rows: &[Vec<u64>]) -> Vec<Vec<u64>> {
        let mut all = Vec::new();
        for rows in rows.chunks(32) {
            let mut registers = self.registers.clone();
            for (lane, row) in rows.iter().enumerate() {
                assert_eq!(row.len(), self.inputs.len());
                for (&reg, &value) in self.inputs.iter().zip(row) {
                    registers.row_mut(reg)[lane] = value;
                }
            }
            let mask = u32::MAX >> (32 - rows.len());
            for instr in &self.kernel.code {
                if let Op::Alu(instruction) = &instr.op {
                    alu::execute(instruction, &mut registers, mask);
                }
            }
            for lane in 0..rows.len() {
                all.push(self.results.iter().map(|&reg| registers.row(reg)[lane]).collect());
            }
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
