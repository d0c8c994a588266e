//! Calls: the body of a function takes the place of each of them.
//!
//! So the machine needs no stack, and threads that part in a function meet again as they do in a kernel. Parameters and
//! results are places in local memory: `ld.param` and `st.param` of a function are loads and stores there. Registers,
//! labels and variables of a body are its own, made anew for each call; what is shared is placed once.

use super::{Decoder, Form, Modifiers, Result};
use crate::instr::{Address, Guard, Op, Order, Reg, Space, Type};
use crate::syntax::{Entry, Formal, Function, Kind, Operand, Statement, Text, Variable, width};
use std::collections::HashSet;

/// How deep calls may nest, and how many of them and of instructions there may be once all are replaced.
const DEPTH: usize = 64;
const CALLS: usize = 1 << 16;
const INSTRUCTIONS: usize = 1 << 20;
/// Bytes of local memory that a thread can have.
const LOCAL: usize = 512 << 10;

/// The label of the end of a body, which no text can have.
const END: &str = "<end>";

/// Where a decoder is among calls.
#[derive(Default)]
pub(super) struct Calls {
    /// The functions whose bodies are being read, the outermost first.
    pub(super) stack: Vec<String>,
    count: usize,
}

impl Text {
    /// The bodies that a kernel runs: its own, and those of the functions that it calls, by their names.
    pub(super) fn bodies<'a>(&'a self, entry: &'a Entry) -> Vec<(&'a str, &'a [Statement])> {
        let mut found = vec![("", &entry.body[..])];
        let (mut names, mut at) = (HashSet::new(), 0);
        while let Some(&(_, body)) = found.get(at) {
            for name in body.iter().filter_map(callee) {
                if let Some(function) = self.functions.get(name)
                    && let Some(body) = &function.body
                    && names.insert(name)
                {
                    found.push((&function.name, body));
                }
            }
            at += 1;
        }
        found
    }
}

/// The function that a statement calls by its name.
fn callee(statement: &Statement) -> Option<&str> {
    let Kind::Instruction(instruction) = &statement.kind else { return None };
    let name = |operand| match operand {
        &Operand::Name(ref name, 0) => Some(&name[..]),
        _ => None,
    };
    let is_call = instruction.opcode == "call";
    is_call.then(|| instruction.operands.iter().take(2).find_map(name)).flatten()
}

impl Decoder {
    /// `call`.
    pub(super) fn call(&mut self, form: Form, modifiers: &mut Modifiers) -> Result<()> {
        modifiers.take("uni");
        modifiers.finish()?;
        let (results, rest) = match form.operands {
            [Operand::List(results), rest @ ..] => (&results[..], rest),
            rest => (&[][..], rest),
        };
        let (name, given) = match rest {
            [Operand::Name(name, 0)] => (name, &[][..]),
            [Operand::Name(name, 0), Operand::List(given)] => (name, &given[..]),
            [Operand::Name(..), ..] => return Err("calls by address are not supported".into()),
            _ => return Err("`call` needs the name of a function".into()),
        };
        // Threads whose guard does not hold go past all of it.
        let past = format!("<past {}>", self.code.len());
        let guard = self.guard.take();
        if let Some(Guard { reg, negated }) = guard {
            self.guard = Some(Guard { reg, negated: !negated });
            self.jump(past.clone());
            self.guard = None;
        }
        let text = self.text.clone();
        match (&name[..], text.functions.get(name)) {
            (_, Some(function)) if function.body.is_some() => {
                self.inline(function, results, given)?;
            }
            ("__assertfail", _) => self.assertion(results, given)?,
            ("vprintf", _) => self.print(results, given)?,
            (_, Some(_)) => return Err(format!("`{name}` is declared, but defined nowhere here")),
            (_, None) if self.names.register(name).is_ok() => {
                return Err("calls by address are not supported".into());
            }
            (_, None) => return Err(format!("unknown function `{name}`")),
        }
        if guard.is_some() {
            self.names.label(&past, self.code.len())?;
        }
        Ok(())
    }

    /// A branch to a label of the block of statements in hand.
    fn jump(&mut self, label: String) {
        self.jumps.push((self.code.len(), self.names.scope(), label));
        self.push(Op::Branch { target: 0, uniform: false });
    }

    /// `ret` of a function: to the end of its body.
    pub(super) fn leave(&mut self) {
        self.jump(END.to_owned());
    }

    fn inline(
        &mut self,
        function: &Function,
        results: &[Operand],
        given: &[Operand],
    ) -> Result<()> {
        let name = &function.name;
        let counts = [
            ("parameters", function.parameters.len(), given.len()),
            ("results", function.results.len(), results.len()),
        ];
        for (what, has, gets) in counts {
            if has != gets {
                return Err(format!("`{name}` has {has} {what}, not {gets}"));
            }
        }
        if let Some(at) = self.calls.stack.iter().position(|other| other == name) {
            let round = self.calls.stack[at..].join("` calls `");
            return Err(format!("recursion is not supported: `{round}` calls `{name}`"));
        }
        self.calls.count += 1;
        if self.calls.stack.len() == DEPTH {
            return Err(format!("calls nest deeper than {DEPTH}"));
        }
        if self.calls.count > CALLS || self.code.len() > INSTRUCTIONS {
            return Err(format!(
                "with every call replaced by the function's body a kernel has more than {CALLS} calls or {INSTRUCTIONS} \
                 instructions"
            ));
        }
        let mut places = Vec::new();
        for (formal, actual) in function.parameters.iter().zip(given) {
            places.push(self.give(formal, actual)?);
        }
        let mut returned = Vec::new();
        for (formal, actual) in function.results.iter().zip(results) {
            returned.push(match self.place_of(actual, formal.parameter.size) {
                Some(place) => place?,
                None => self.reserve(formal.parameter.size, formal.parameter.align)?,
            });
        }
        self.calls.stack.push(name.clone());
        let (line, outer) = (self.line, self.names.enter());
        let formals = function.parameters.iter().zip(&places);
        for (formal, place) in formals.chain(function.results.iter().zip(&returned)) {
            self.names.place_variable(&formal.parameter.name, (Space::Local, *place));
            if let Some(ty) = formal.register {
                self.names.declare(ty, &formal.parameter.name, None);
            }
        }
        for (formal, place) in function.parameters.iter().zip(&places) {
            if let Some(ty) = formal.register {
                let (reg, _) = self.names.register(&formal.parameter.name)?;
                self.push_load(reg, ty, *place);
            }
        }
        for statement in function.body.iter().flatten() {
            self.line = statement.line;
            self.statement(&statement.kind)?;
        }
        self.guard = None;
        self.names.label(END, self.code.len())?;
        for (formal, place) in function.results.iter().zip(&returned) {
            if let Some(ty) = formal.register {
                let (reg, _) = self.names.register(&formal.parameter.name)?;
                self.push_store(reg, ty, *place);
            }
        }
        self.names.return_to(outer);
        self.line = line;
        self.calls.stack.pop();
        for ((formal, actual), place) in function.results.iter().zip(results).zip(returned) {
            if self.place_of(actual, 0).is_none() {
                let (reg, ty) = self.names.written_any(actual)?;
                if width(ty) as usize != 8 * formal.parameter.size {
                    return Err(format!("the result of `{name}` does not fit"));
                }
                self.push_load(reg, bits(ty), place);
            }
        }
        Ok(())
    }

    /// Where a `.param` variable lies that a call is given or gives; `None` for a register or a number.
    fn place_of(&self, actual: &Operand, bytes: usize) -> Option<Result<u64>> {
        let Operand::Name(name, 0) = actual else { return None };
        let (space, place) = self.names.variable(name)?;
        let size = self.sizes.get(&place).copied().unwrap_or(0);
        Some(match space {
            Space::Local if size >= bytes => Ok(place),
            Space::Local => Err(format!("`{name}` has {size} bytes, not {bytes}")),
            other => Err(format!("`{name}` lies in {other:?} memory")),
        })
    }

    /// Puts a parameter where the function finds it.
    fn give(&mut self, formal: &Formal, actual: &Operand) -> Result<u64> {
        let (size, align) = (formal.parameter.size, formal.parameter.align);
        if let Some(place) = self.place_of(actual, size) {
            return place;
        }
        let place = self.reserve(size, align)?;
        let ty = match (formal.register, size) {
            (Some(ty), _) => ty,
            (_, 1) => Type::B8,
            (_, 2) => Type::B16,
            (_, 4) => Type::B32,
            (_, 8) => Type::B64,
            _ => return Err(format!("a parameter of {size} bytes is no register")),
        };
        let reg = match (actual, formal.register) {
            // The type of a number is that of the parameter, of which only the bytes are known.
            (Operand::Number(literal), None) => {
                let bits = super::registers::plain(*literal, size);
                self.constant(bits.ok_or("such a number needs a type")?)?
            }
            _ => self.names.read_low(actual, ty)?,
        };
        self.push_store(reg, ty, place);
        Ok(place)
    }

    /// Bytes of local memory that nobody else has.
    fn reserve(&mut self, bytes: usize, align: usize) -> Result<u64> {
        let place = self.local.next_multiple_of(align);
        self.local = place + bytes;
        if self.local > LOCAL {
            return Err(format!("a thread has {LOCAL} bytes of local memory at most"));
        }
        self.sizes.insert(place as u64, bytes);
        Ok(place as u64)
    }

    /// A variable that is declared in a body: of the kernel, where it is placed before, unless it is a `.param` one.
    pub(super) fn variable(&mut self, variable: &Variable) -> Result<()> {
        if variable.space == Space::Shared {
            if let Some(function) = self.calls.stack.last() {
                let key = (function.clone(), variable.name.clone());
                let place = *self.shared_of.get(&key).ok_or("a shared variable without a size")?;
                self.names.place_variable(&variable.name, (Space::Shared, place));
            }
            return Ok(());
        }
        if variable.space == Space::Local && self.calls.stack.is_empty() {
            return Ok(());
        }
        let bytes = variable.size.ok_or_else(|| format!("how many has `{}`?", variable.name))?;
        let place = self.reserve(bytes, variable.align)?;
        self.names.place_variable(&variable.name, (Space::Local, place));
        Ok(())
    }

    /// What a call gives to a function that is not in the text.
    fn argument(&mut self, actual: &Operand, ty: Type) -> Result<Reg> {
        match self.place_of(actual, width(ty) as usize / 8) {
            Some(place) => {
                let (reg, place) = (self.names.fresh()?, place?);
                self.push_load(reg, ty, place);
                Ok(reg)
            }
            None => self.names.read(actual, ty),
        }
    }

    fn assertion(&mut self, results: &[Operand], given: &[Operand]) -> Result<()> {
        let ([], [message, file, line, function, _]) = (results, given) else {
            return Err("`__assertfail` has 5 parameters and no result".into());
        };
        let message = self.argument(message, Type::B64)?;
        let file = self.argument(file, Type::B64)?;
        let line = self.argument(line, Type::B32)?;
        let function = self.argument(function, Type::B64)?;
        self.push(Op::Assertion { message, file, line, function });
        Ok(())
    }

    fn print(&mut self, results: &[Operand], given: &[Operand]) -> Result<()> {
        let ([result], [format, values]) = (results, given) else {
            return Err("`vprintf` has 2 parameters and a result".into());
        };
        let format = self.argument(format, Type::B64)?;
        let values = self.argument(values, Type::B64)?;
        match self.place_of(result, 4) {
            Some(place) => {
                let (count, place) = (self.names.fresh()?, place?);
                self.push(Op::Print { result: count, format, values });
                self.push_store(count, Type::B32, place);
            }
            None => {
                let result = self.names.written(result, 32)?;
                self.push(Op::Print { result, format, values });
            }
        }
        Ok(())
    }

    fn push_load(&mut self, reg: Reg, ty: Type, place: u64) {
        let (regs, address) = ([reg, 0, 0, 0], local(place));
        self.push(Op::Load { ty: bits(ty), count: 1, regs, address, order: Order::Weak });
    }

    fn push_store(&mut self, reg: Reg, ty: Type, place: u64) {
        let (regs, address) = ([reg, 0, 0, 0], local(place));
        self.push(Op::Store { ty: bits(ty), count: 1, regs, address, order: Order::Weak });
    }
}

fn local(place: u64) -> Address {
    Address { space: Space::Local, base: None, offset: place as i64 }
}

/// The type of as many bits that memory accesses have.
fn bits(ty: Type) -> Type {
    match width(ty) {
        1 | 8 => Type::B8,
        16 => Type::B16,
        32 => Type::B32,
        _ => Type::B64,
    }
}
