//! Statements to [`Kernel`]s: names looked up, forms checked.

mod allocate;
mod arithmetic;
mod calls;
mod compare;
mod control;
mod convert;
mod float;
mod memory;
mod modifiers;
mod registers;
mod time;
mod variables;

use crate::alu::{Alu, Operation};
use crate::instr::{Fill, Guard, Instr, Kernel, Op, Param, Reg, Space};
use crate::module::{LoadError, Variable as ModuleVariable};
use crate::syntax::{self, Entry, Instruction, Kind, Operand, Statement, Text, Variable};
use modifiers::Modifiers;
use registers::Names;
use std::{collections::HashMap, sync::Arc};

/// The error is what is wrong; where comes with the statement.
type Result<T> = std::result::Result<T, String>;

/// What a text says: the compute capability it is for, its kernels and its variables.
pub(crate) struct Decoded {
    pub target: u32,
    pub kernels: Vec<Kernel>,
    pub variables: Vec<ModuleVariable>,
}

/// Reads a text.
pub(crate) fn module(text: &str) -> std::result::Result<Decoded, LoadError> {
    let parsed = Arc::new(syntax::parse(text)?);
    let source: Arc<[String]> = text.lines().map(str::to_owned).collect();
    let at = |line: u32, message| LoadError {
        line,
        form: source[line as usize - 1].trim().to_owned(),
        message,
    };
    let variables = variables::variables(&parsed, at)?;
    let kernels = parsed.entries.iter().map(|entry| kernel(&parsed, entry, &source));
    let kernels = kernels.collect::<std::result::Result<_, _>>()?;
    Ok(Decoded { target: parsed.target, kernels, variables })
}

fn kernel(
    text: &Arc<Text>,
    entry: &Entry,
    source: &Arc<[String]>,
) -> std::result::Result<Kernel, LoadError> {
    let mut decoder = Decoder {
        names: Names::new(),
        text: text.clone(),
        calls: calls::Calls::default(),
        local: 0,
        sizes: HashMap::new(),
        shared_of: HashMap::new(),
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
    let static_shared = decoder.variables(text, entry);
    for statement in &entry.body {
        decoder.line = statement.line;
        // The statement to blame may stand in a function.
        decoder.statement(&statement.kind).map_err(|message| at(decoder.line)(message))?;
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
    let Decoder { names, mut code, counts, local, .. } = decoder;
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
    text: Arc<Text>,
    calls: calls::Calls,
    /// Bytes of local memory so far.
    local: usize,
    /// Bytes of the variables there that calls are given, by their places.
    sizes: HashMap<u64, usize>,
    /// Where the shared variables of functions lie, by function and name.
    shared_of: HashMap<(String, String), u64>,
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

    /// Places the variables that the kernel uses; gives the bytes of shared memory.
    fn variables(&mut self, text: &Text, entry: &Entry) -> usize {
        for (index, global) in text.globals.iter().enumerate() {
            let Variable { name, space, .. } = &global.variable;
            self.names.variables.insert(name.clone(), (*space, index as u64));
        }
        let own = entry.body.iter().filter_map(|statement| match &statement.kind {
            Kind::Variable(variable) if variable.space != Space::Param => Some(variable),
            _ => None,
        });
        let bodies = text.bodies(entry);
        let used = text.shared.iter();
        let used =
            used.filter(|variable| bodies.iter().any(|(_, body)| uses(body, &variable.name)));
        let all: Vec<&Variable> = used.chain(own).collect();
        let (mut shared, mut local) = (0, 0);
        for variable in &all {
            let Some(size) = variable.size else { continue };
            let end = if variable.space == Space::Shared { &mut shared } else { &mut local };
            let offset = usize::next_multiple_of(*end, variable.align);
            *end = offset + size;
            self.names.variables.insert(variable.name.clone(), (variable.space, offset as u64));
        }
        for (function, body) in &bodies[1..] {
            for statement in *body {
                let Kind::Variable(variable) = &statement.kind else { continue };
                let Some(size) = variable.size else { continue };
                if variable.space == Space::Shared {
                    let offset = usize::next_multiple_of(shared, variable.align);
                    shared = offset + size;
                    let key = ((*function).to_owned(), variable.name.clone());
                    self.shared_of.insert(key, offset as u64);
                }
            }
        }
        // All `.extern` variables begin at one place, behind the others.
        let dynamic = || all.iter().filter(|variable| variable.size.is_none());
        if let Some(align) = dynamic().map(|variable| variable.align.max(16)).max() {
            shared = usize::next_multiple_of(shared, align);
        }
        for variable in dynamic() {
            self.names.variables.insert(variable.name.clone(), (Space::Shared, shared as u64));
        }
        self.local = local;
        shared
    }

    fn statement(&mut self, kind: &Kind) -> Result<()> {
        match kind {
            Kind::Registers(ty, names) => {
                for (name, count) in names {
                    self.names.declare(*ty, name, *count);
                }
                Ok(())
            }
            Kind::Variable(variable) => self.variable(variable),
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
        self.clocks(&instruction.operands)?;
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
