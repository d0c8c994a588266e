//! What a module declares beside its kernels: variables with their initial values, and functions.

use super::operands::Literal;
use super::parser::{Parser, memory_type};
use super::{Formal, Function, Global, Initial, Value, Variable, width};
use crate::instr::Space;

type Result<T> = std::result::Result<T, String>;

impl Parser<'_> {
    /// A variable of global or constant memory, behind the word that says which.
    pub(super) fn global(&mut self, space: Space, external: bool) -> Result<Global> {
        let line = self.line();
        let (mut align, mut ty) = (None, None);
        let name = loop {
            match self.word()? {
                ".align" => align = Some(self.alignment()?),
                ".attribute" => return Err("variables with attributes are not supported".into()),
                word if word.starts_with('.') => ty = Some(memory_type(word)?),
                name => break name.to_owned(),
            }
        };
        if external {
            return Err(format!("`{name}` is defined in another module: there is no linker"));
        }
        let ty = ty.ok_or("a variable needs a type")?;
        let unit = width(ty) as usize / 8;
        let mut lengths = Vec::new();
        while self.accept("[") {
            if self.accept("]") {
                lengths.push(None);
            } else {
                lengths.push(Some(self.size()?));
                self.expect("]")?;
            }
        }
        if lengths.iter().skip(1).any(Option::is_none) {
            return Err("only the first length of an array may be left out".into());
        }
        let mut initial = Vec::new();
        if self.accept("=") {
            let inner = |lengths: &[Option<usize>]| {
                lengths.iter().try_fold(unit, |bytes, n| Self::bytes(bytes, n.unwrap_or(0)))
            };
            let strides: Vec<usize> =
                (1..=lengths.len()).map(|i| inner(&lengths[i..])).collect::<Result<_>>()?;
            let count = self.values(&lengths, &strides, 0, &mut initial)?;
            if let Some(first @ None) = lengths.first_mut() {
                *first = Some(count);
            }
        }
        self.expect(";")?;
        let mut size = unit;
        for length in lengths {
            let length = length.ok_or_else(|| format!("how many has `{name}`?"))?;
            size = Self::bytes(size, length)?;
        }
        let variable = Variable { name, space, align: align.unwrap_or(unit), size: Some(size) };
        Ok(Global { variable, ty, line, initial })
    }

    /// The values of an array, or the one of a scalar, which lie from `at` on. Gives how many there are at this level.
    fn values(
        &mut self,
        lengths: &[Option<usize>],
        strides: &[usize],
        at: usize,
        into: &mut Vec<Initial>,
    ) -> Result<usize> {
        let ([length, lengths @ ..], [stride, strides @ ..]) = (lengths, strides) else {
            let value = self.value()?;
            into.push(Initial { at, value });
            return Ok(1);
        };
        self.expect("{")?;
        let mut count = 0;
        while !self.accept("}") {
            if count > 0 {
                self.expect(",")?;
            }
            if length.is_some_and(|length| count >= length) {
                return Err(format!("more than {count} values"));
            }
            self.values(lengths, strides, at + Self::bytes(*stride, count)?, into)?;
            count += 1;
        }
        Ok(count)
    }

    /// `5`, `name + 8`, `generic(name)`, or a byte of such an address: `0xFF00(name)`.
    fn value(&mut self) -> Result<Value> {
        if !self.at_number() {
            let (name, offset) = self.address_of()?;
            return Ok(Value::Address { name, offset, shift: 0 });
        }
        let number = self.number()?;
        if !self.accept("(") {
            return Ok(Value::Number(number));
        }
        let byte = |mask: i128| (0..8).find(|byte| mask == 0xff << (8 * byte));
        let shift = match number {
            Literal::Integer(mask) => byte(mask).map(|byte| 8 * byte),
            _ => None,
        };
        let shift = shift.ok_or("a part of an address is one of its bytes")?;
        let (name, offset) = self.address_of()?;
        self.expect(")")?;
        Ok(Value::Address { name, offset, shift })
    }

    fn address_of(&mut self) -> Result<(String, i64)> {
        let mut name = self.word()?;
        let generic = name == "generic" && self.accept("(");
        if generic {
            name = self.word()?;
        }
        let mut offset = self.offset()?;
        if generic {
            self.expect(")")?;
            offset += self.offset()?;
        }
        Ok((name.to_owned(), offset))
    }

    /// A function, behind `.func`: its declaration alone, or with a body.
    pub(super) fn function(&mut self) -> Result<Function> {
        let results = if self.accept("(") { self.formals()? } else { Vec::new() };
        let name = self.word()?.to_owned();
        let parameters = if self.accept("(") { self.formals()? } else { Vec::new() };
        loop {
            self.begin();
            match self.word_or_mark()? {
                ".noreturn" => {}
                ";" => return Ok(Function { name, results, parameters, body: None }),
                "{" => break,
                other => return Err(format!("unknown directive `{other}` of a function")),
            }
        }
        let body = Some(self.body()?);
        Ok(Function { name, results, parameters, body })
    }

    /// The parameters of a function, behind the `(`.
    fn formals(&mut self) -> Result<Vec<Formal>> {
        let mut formals = Vec::new();
        while !self.accept(")") {
            if !formals.is_empty() {
                self.expect(",")?;
            }
            self.begin();
            let in_register = self.accept(".reg");
            if !in_register {
                self.expect(".param")?;
            }
            let (parameter, ty) = self.parameter_of_type()?;
            formals.push(Formal { parameter, register: in_register.then_some(ty) });
        }
        Ok(formals)
    }
}
