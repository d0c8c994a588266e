//! Operands of instructions.

use super::parser::Parser;

/// A number as written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Literal {
    Integer(i128),
    Decimal(f64),
    /// `0f`
    Single(u32),
    /// `0d`
    Double(u64),
}

/// An operand as written.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Operand {
    /// A register, a variable, a label or `_`, and bytes added to it.
    Name(String, i64),
    /// `!p`
    Not(String),
    Number(Literal),
    /// `[name + 8]`, `[8]`
    Address(Option<String>, i64),
    /// `{a, b}`
    Vector(Vec<Operand>),
    /// `p|q`
    Both(String, String),
    /// `(a, b)`: what a call is given or gives.
    List(Vec<Operand>),
}

type Result<T> = std::result::Result<T, String>;

impl Parser<'_> {
    /// The operands up to the semicolon, which it eats.
    pub(super) fn operands(&mut self) -> Result<Vec<Operand>> {
        let mut operands = Vec::new();
        if self.accept(";") {
            return Ok(operands);
        }
        loop {
            operands.push(self.operand()?);
            if self.accept(";") {
                return Ok(operands);
            }
            self.expect(",")?;
        }
    }

    fn operand(&mut self) -> Result<Operand> {
        if self.accept("!") {
            return Ok(Operand::Not(self.word()?.to_owned()));
        }
        if self.accept("{") {
            let mut parts = vec![self.operand()?];
            while !self.accept("}") {
                self.expect(",")?;
                parts.push(self.operand()?);
            }
            return Ok(Operand::Vector(parts));
        }
        if self.accept("(") {
            let mut parts = Vec::new();
            while !self.accept(")") {
                if !parts.is_empty() {
                    self.expect(",")?;
                }
                parts.push(self.operand()?);
            }
            return Ok(Operand::List(parts));
        }
        if self.accept("[") {
            let address = if self.at_number() {
                Operand::Address(None, self.integer()?)
            } else {
                let name = self.word()?.to_owned();
                Operand::Address(Some(name), self.offset()?)
            };
            self.expect("]")?;
            return Ok(address);
        }
        if self.at_number() {
            return Ok(Operand::Number(self.number()?));
        }
        let name = self.word()?.to_owned();
        if self.accept("|") {
            return Ok(Operand::Both(name, self.word()?.to_owned()));
        }
        let offset = self.offset()?;
        Ok(Operand::Name(name, offset))
    }

    /// `+8`, `-8`, `+-8` or nothing.
    pub(super) fn offset(&mut self) -> Result<i64> {
        if self.accept("+") || self.peek() == Some("-") { self.integer() } else { Ok(0) }
    }

    fn integer(&mut self) -> Result<i64> {
        match self.number()? {
            Literal::Integer(value) => Ok(value as i64),
            _ => Err("an offset must be an integer".to_owned()),
        }
    }

    pub(super) fn at_number(&self) -> bool {
        self.peek()
            .is_some_and(|text| text == "-" || text.starts_with(|c: char| c.is_ascii_digit()))
    }

    pub(super) fn number(&mut self) -> Result<Literal> {
        let negative = self.accept("-");
        let text = self.word()?;
        let literal = literal(text).ok_or_else(|| format!("`{text}` is no number"))?;
        Ok(match literal {
            Literal::Integer(value) if negative => Literal::Integer(-value),
            Literal::Decimal(value) if negative => Literal::Decimal(-value),
            Literal::Single(bits) if negative => Literal::Single(bits ^ 1 << 31),
            Literal::Double(bits) if negative => Literal::Double(bits ^ 1 << 63),
            literal => literal,
        })
    }
}

fn literal(text: &str) -> Option<Literal> {
    let digits = |prefix: [&str; 2], count: usize| {
        let digits = text.strip_prefix(prefix[0]).or_else(|| text.strip_prefix(prefix[1]))?;
        (digits.len() == count).then(|| u64::from_str_radix(digits, 16).ok()).flatten()
    };
    if let Some(bits) = digits(["0f", "0F"], 8) {
        return Some(Literal::Single(bits as u32));
    }
    if let Some(bits) = digits(["0d", "0D"], 16) {
        return Some(Literal::Double(bits));
    }
    if text.contains('.') {
        return text.parse().ok().map(Literal::Decimal);
    }
    let text = text.strip_suffix('U').unwrap_or(text);
    let radix = |digits: &str, radix: u32| u64::from_str_radix(digits, radix).ok();
    let value = if let Some(hex) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        radix(hex, 16)
    } else if let Some(binary) = text.strip_prefix("0b").or_else(|| text.strip_prefix("0B")) {
        radix(binary, 2)
    } else if let Some(octal) = text.strip_prefix('0').filter(|rest| !rest.is_empty()) {
        radix(octal, 8)
    } else {
        radix(text, 10)
    };
    value.map(|value| Literal::Integer(i128::from(value)))
}
