//! Statements to [`Kernel`]s: names looked up, forms checked.

mod allocate;
mod arithmetic;
mod compare;
mod control;
mod convert;
mod float;
mod memory;
mod modifiers;
mod registers;

use crate::alu::{Alu, Operation};
use crate::instr::{Fill, Guard, Instr, Kernel, Op, Param, Reg, Space};
use crate::module::LoadError;
use crate::syntax::{self, Entry, Instruction, Kind, Operand, Statement, Text, Variable};
use modifiers::Modifiers;
use registers::Names;
use std::sync::Arc;

/// The error is what is wrong; where comes with the statement.
type Result<T> = std::result::Result<T, String>;

/// Reads a text: the compute capability it is for, and its kernels.
pub(crate) fn module(text: &str) -> std::result::Result<(u32, Vec<Kernel>), LoadError> {
    let parsed = syntax::parse(text)?;
    let source: Arc<[String]> = text.lines().map(str::to_owned).collect();
    let kernels = parsed.entries.iter().map(|entry| kernel(&parsed, entry, &source));
    Ok((parsed.target, kernels.collect::<std::result::Result<_, _>>()?))
}

fn kernel(
    text: &Text,
    entry: &Entry,
    source: &Arc<[String]>,
) -> std::result::Result<Kernel, LoadError> {
    let mut decoder = Decoder {
        names: Names::new(),
        code: Vec::new(),
        counts: Vec::new(),
        jumps: Vec::new(),
        guard: None,
        line: entry.line,
    };
    let at = |line: u32| {
        move |message| LoadError {
            line,
            form: source[line as usize - 1].trim().to_owned(),
            message,
        }
    };
    let (params, param_bytes) = decoder.parameters(entry);
    let (static_shared, local) = decoder.variables(text, entry);
    for statement in &entry.body {
        decoder.line = statement.line;
        decoder.statement(&statement.kind).map_err(at(statement.line))?;
    }
    decoder.push(Op::Exit);
    for (index, scope, label) in std::mem::take(&mut decoder.jumps) {
        let line = decoder.code[index].line;
        let target = decoder
            .names
            .target(scope, &label)
            .ok_or_else(|| at(line)(format!("unknown label `{label}`")))?;
        if let Op::Branch { target: to, .. } = &mut decoder.code[index].op {
            *to = target as u32;
        }
    }
    let Decoder { names, mut code, counts, .. } = decoder;
    let (registers, at_start) = allocate::allocate(&mut code, &counts, names.count());
    let kept = |(reg, fill): (Reg, Fill)| Some((at_start[usize::from(reg)]?, fill));
    Ok(Kernel {
        name: entry.name.clone(),
        params,
        param_bytes,
        code,
        registers,
        fills: names.into_fills().into_iter().filter_map(kept).collect(),
        kept: at_start.iter().copied().flatten().collect(),
        static_shared,
        local,
        max_threads: entry.max_threads,
        min_blocks: entry.min_blocks,
        source: source.clone(),
    })
}

struct Decoder {
    names: Names,
    code: Vec<Instr>,
    /// How many results and operands each instruction has, if it is an [`Op::Alu`].
    counts: Vec<(u8, u8)>,
    /// Branches whose target is not known yet: their index, the block they stand in and the label.
    jumps: Vec<(usize, usize, String)>,
    /// That of the instruction in hand.
    guard: Option<Guard>,
    line: u32,
}

impl Decoder {
    /// Lays out the parameter block as the driver does.
    fn parameters(&mut self, entry: &Entry) -> (Vec<Param>, usize) {
        let mut end = 0;
        let mut params = Vec::new();
        for parameter in &entry.parameters {
            let offset = usize::next_multiple_of(end, parameter.align);
            end = offset + parameter.size;
            self.names.variables.insert(parameter.name.clone(), (Space::Param, offset as u64));
            params.push(Param { name: parameter.name.clone(), offset, size: parameter.size });
        }
        (params, end)
    }

    /// Places the variables that the kernel uses; gives the bytes of shared and local memory.
    fn variables(&mut self, text: &Text, entry: &Entry) -> (usize, usize) {
        let own = entry.body.iter().filter_map(|statement| match &statement.kind {
            Kind::Variable(variable) => Some(variable),
            _ => None,
        });
        let used = text.shared.iter().filter(|variable| uses(&entry.body, &variable.name));
        let all: Vec<&Variable> = used.chain(own).collect();
        let (mut shared, mut local) = (0, 0);
        for variable in &all {
            let Some(size) = variable.size else { continue };
            let end = if variable.space == Space::Shared { &mut shared } else { &mut local };
            let offset = usize::next_multiple_of(*end, variable.align);
            *end = offset + size;
            self.names.variables.insert(variable.name.clone(), (variable.space, offset as u64));
        }
        // All `.extern` variables begin at one place, behind the others.
        let dynamic = || all.iter().filter(|variable| variable.size.is_none());
        if let Some(align) = dynamic().map(|variable| variable.align.max(16)).max() {
            shared = usize::next_multiple_of(shared, align);
        }
        for variable in dynamic() {
            self.names.variables.insert(variable.name.clone(), (Space::Shared, shared as u64));
        }
        (shared, local)
    }

    fn statement(&mut self, kind: &Kind) -> Result<()> {
        match kind {
            Kind::Registers(ty, names) => {
                for (name, count) in names {
                    self.names.declare(*ty, name, *count);
                }
                Ok(())
            }
            Kind::Variable(_) => Ok(()),
            Kind::Label(name) => self.names.label(name, self.code.len()),
            Kind::Open => {
                self.names.open();
                Ok(())
            }
            Kind::Close => {
                self.names.close();
                Ok(())
            }
            Kind::Instruction(instruction) => self.instruction(instruction),
        }
    }

    fn instruction(&mut self, instruction: &Instruction) -> Result<()> {
        self.guard = match &instruction.guard {
            None => None,
            Some((name, negated)) => {
                let (reg, _) = self.names.predicate(&Operand::Name(name.clone(), 0))?;
                Some(Guard { reg, negated: *negated })
            }
        };
        let mut modifiers = Modifiers::new(&instruction.opcode, &instruction.modifiers);
        let form = Form { opcode: &instruction.opcode, operands: &instruction.operands };
        let known = self.control(form, &mut modifiers)?
            || self.memory(form, &mut modifiers)?
            || self.moves(form, &mut modifiers)?
            || self.comparisons(form, &mut modifiers)?
            || self.arithmetic(form, &mut modifiers)?;
        if known { Ok(()) } else { Err(format!("unknown instruction `{}`", instruction.opcode)) }
    }

    fn push(&mut self, op: Op) {
        self.code.push(Instr { op, guard: self.guard, line: self.line });
        self.counts.push((0, 0));
    }

    fn push_alu(&mut self, operation: Operation, to: &[Reg], from: &[Reg]) {
        let fill = |given: &[Reg]| {
            let mut regs = [0; 4];
            regs[..given.len()].copy_from_slice(given);
            regs
        };
        self.push(Op::Alu(Alu { operation, to: fill(to), from: fill(from) }));
        *self.counts.last_mut().expect("just pushed") = (to.len() as u8, from.len() as u8);
    }

    fn constant(&mut self, bits: u64) -> Result<Reg> {
        self.names.filled(Fill::Constant(bits))
    }
}

/// An instruction without its modifiers.
#[derive(Clone, Copy)]
struct Form<'a> {
    opcode: &'a str,
    operands: &'a [Operand],
}

impl<'a> Form<'a> {
    /// The operands, if there are that many.
    fn exactly<const N: usize>(self) -> Result<&'a [Operand; N]> {
        let count = self.operands.len();
        self.operands
            .try_into()
            .map_err(|_| format!("`{}` has {N} operands, not {count}", self.opcode))
    }
}

fn uses(body: &[Statement], name: &str) -> bool {
    fn operand_uses(operand: &Operand, name: &str) -> bool {
        match operand {
            Operand::Name(used, _) | Operand::Address(Some(used), _) => used == name,
            Operand::Vector(parts) => parts.iter().any(|part| operand_uses(part, name)),
            _ => false,
        }
    }
    body.iter().any(|statement| match &statement.kind {
        Kind::Instruction(instruction) => {
            instruction.operands.iter().any(|operand| operand_uses(operand, name))
        }
        _ => false,
    })
}
