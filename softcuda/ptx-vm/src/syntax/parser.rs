//! Declarations and statements.

use super::tokens::{Token, tokens};
use super::{Entry, Instruction, Kind, Parameter, Statement, Text, Variable, type_of, width};
use crate::instr::{Space, Type};
use crate::module::LoadError;

pub(super) struct Parser<'a> {
    tokens: Vec<Token<'a>>,
    at: usize,
    /// Where the statement in hand begins.
    line: u32,
}

type Result<T> = std::result::Result<T, String>;

/// Reads a whole text.
pub(crate) fn parse(text: &str) -> std::result::Result<Text, LoadError> {
    let mut parser = Parser { tokens: tokens(text)?, at: 0, line: 1 };
    parser.text().map_err(|message| {
        let form = text.lines().nth(parser.line as usize - 1).unwrap_or_default().trim().to_owned();
        LoadError { line: parser.line, form, message }
    })
}

impl<'a> Parser<'a> {
    pub(super) fn peek(&self) -> Option<&'a str> {
        self.tokens.get(self.at).map(|token| token.text)
    }

    fn next(&mut self) -> Option<&'a str> {
        let text = self.peek()?;
        self.at += 1;
        Some(text)
    }

    pub(super) fn accept(&mut self, text: &str) -> bool {
        let found = self.peek() == Some(text);
        self.at += usize::from(found);
        found
    }

    pub(super) fn expect(&mut self, text: &str) -> Result<()> {
        if self.accept(text) {
            return Ok(());
        }
        Err(format!("`{text}` is missing before `{}`", self.peek().unwrap_or("the end")))
    }

    /// A word or number.
    pub(super) fn word(&mut self) -> Result<&'a str> {
        match self.next() {
            Some(text) if text.starts_with(|c: char| c.is_alphanumeric() || "_$%.".contains(c)) => {
                Ok(text)
            }
            Some(text) => Err(format!("a name is missing before `{text}`")),
            None => Err("the text ends too early".to_owned()),
        }
    }

    pub(super) fn size(&mut self) -> Result<usize> {
        let text = self.word()?;
        text.parse().map_err(|_| format!("`{text}` is no size"))
    }

    pub(super) fn alignment(&mut self) -> Result<usize> {
        let align = self.size()?;
        if align.is_power_of_two() && align <= 4096 {
            return Ok(align);
        }
        Err(format!("{align} is no alignment"))
    }

    /// Bytes of `count` of something; no state space has more than 32 bits of them.
    pub(super) fn bytes(of_one: usize, count: usize) -> Result<usize> {
        let bytes = of_one.checked_mul(count).filter(|bytes| u32::try_from(*bytes).is_ok());
        bytes.ok_or_else(|| format!("{count} of {of_one} bytes are too many"))
    }

    /// Where the statement in hand begins.
    pub(super) fn line(&self) -> u32 {
        self.line
    }

    pub(super) fn begin(&mut self) {
        if let Some(token) = self.tokens.get(self.at) {
            self.line = token.line;
        }
    }

    /// Skips what is left of the line: the end of directives that have no semicolon.
    fn skip_line(&mut self) {
        let line = self.line;
        while self.tokens.get(self.at).is_some_and(|token| token.line == line) {
            self.at += 1;
        }
    }

    fn skip_statement(&mut self) {
        while self.next().is_some_and(|text| text != ";") {}
    }

    fn text(&mut self) -> Result<Text> {
        let mut text = Text::default();
        let mut external = false;
        loop {
            self.begin();
            let Some(word) = self.next() else { break };
            let declared_only = std::mem::take(&mut external);
            match word {
                ".version" | ".file" => self.skip_line(),
                ".address_size" => {
                    if self.size()? != 64 {
                        return Err("addresses of 64 bits only".to_owned());
                    }
                }
                ".target" => {
                    let name = self.word()?;
                    let number = name.strip_prefix("sm_").unwrap_or_default();
                    text.target = number
                        .trim_end_matches(|c: char| c.is_ascii_lowercase())
                        .parse()
                        .map_err(|_| format!("`{name}` is no target"))?;
                    self.skip_line();
                }
                ".pragma" => self.skip_statement(),
                ".section" => while self.next().is_some_and(|text| text != "}") {},
                ".visible" | ".weak" | ".common" => {}
                ".extern" => external = true,
                ".entry" => text.entries.push(self.entry()?),
                ".shared" => text.shared.push(self.variable(Space::Shared)?),
                ".global" => text.globals.push(self.global(Space::Global, declared_only)?),
                ".const" => text.globals.push(self.global(Space::Const, declared_only)?),
                ".func" => {
                    let function = self.function()?;
                    let known = text.functions.get(&function.name);
                    match (known.map(|known| known.body.is_some()), &function.body) {
                        (Some(true), Some(_)) => {
                            return Err(format!("there is another `{}`", function.name));
                        }
                        (Some(true), None) => {}
                        _ => _ = text.functions.insert(function.name.clone(), function),
                    }
                }
                other => return Err(format!("unknown declaration `{other}`")),
            }
        }
        Ok(text)
    }

    fn entry(&mut self) -> Result<Entry> {
        let mut entry = Entry {
            name: self.word()?.to_owned(),
            line: self.line,
            parameters: Vec::new(),
            max_threads: None,
            min_blocks: None,
            body: Vec::new(),
        };
        if self.accept("(") {
            while !self.accept(")") {
                self.begin();
                entry.parameters.push(self.parameter()?);
                self.accept(",");
            }
        }
        loop {
            self.begin();
            match self.next() {
                Some(".maxntid" | ".reqntid") => {
                    let mut threads = self.size()?;
                    while self.accept(",") {
                        threads = threads.saturating_mul(self.size()?);
                    }
                    let threads = u32::try_from(threads).ok().filter(|threads| *threads <= 1024);
                    entry.max_threads = Some(threads.ok_or("a block has 1024 threads at most")?);
                }
                Some(".minnctapersm") => entry.min_blocks = Some(self.size()? as u32),
                Some(".maxnreg" | ".maxnctapersm") => _ = self.size()?,
                Some(".pragma") => self.skip_statement(),
                Some("{") => break,
                Some(other) => return Err(format!("unknown directive `{other}` of a kernel")),
                None => return Err("the text ends too early".to_owned()),
            }
        }
        entry.body = self.body()?;
        Ok(entry)
    }

    /// The statements of a kernel or function, behind the `{`.
    pub(super) fn body(&mut self) -> Result<Vec<Statement>> {
        let (mut body, mut depth) = (Vec::new(), 1);
        while depth > 0 {
            let Some(statement) = self.statement()? else { continue };
            match statement.kind {
                Kind::Open => depth += 1,
                Kind::Close => depth -= 1,
                _ => {}
            }
            body.push(statement);
        }
        body.pop();
        Ok(body)
    }

    fn parameter(&mut self) -> Result<Parameter> {
        self.expect(".param")?;
        Ok(self.parameter_of_type()?.0)
    }

    /// A parameter behind the word that says where it lies, and its type or that of its elements.
    pub(super) fn parameter_of_type(&mut self) -> Result<(Parameter, Type)> {
        let (mut align, mut ty) = (None, None);
        let name = loop {
            match self.word()? {
                ".align" => align = Some(self.alignment()?),
                ".ptr" | ".global" | ".shared" | ".const" | ".local" => {}
                word if word.starts_with('.') => ty = Some(memory_type(word)?),
                name => break name.to_owned(),
            }
        };
        let ty = ty.ok_or("a parameter needs a type")?;
        let of_type = width(ty) as usize / 8;
        let count = if self.accept("[") {
            let count = self.size()?;
            self.expect("]")?;
            count
        } else {
            // What `.ptr` aligns is not the parameter itself.
            align = None;
            1
        };
        let size = Self::bytes(of_type, count)?;
        Ok((Parameter { name, align: align.unwrap_or(of_type), size }, ty))
    }

    fn variable(&mut self, space: Space) -> Result<Variable> {
        let (mut align, mut ty) = (None, None);
        let name = loop {
            match self.word()? {
                ".align" => align = Some(self.alignment()?),
                word if word.starts_with('.') => ty = Some(memory_type(word)?),
                name => break name.to_owned(),
            }
        };
        let of_type = width(ty.ok_or("a variable needs a type")?) as usize / 8;
        let mut size = Some(of_type);
        while self.accept("[") {
            if self.accept("]") {
                size = None;
            } else {
                let count = self.size()?;
                size = size.map(|size| Self::bytes(size, count)).transpose()?;
                self.expect("]")?;
            }
        }
        self.expect(";")?;
        Ok(Variable { name, space, align: align.unwrap_or(of_type), size })
    }

    /// None for what has no effect.
    fn statement(&mut self) -> Result<Option<Statement>> {
        self.begin();
        let line = self.line;
        let kind = match self.word_or_mark()? {
            "{" => Kind::Open,
            "}" => Kind::Close,
            ";" => return Ok(None),
            ".reg" => {
                let ty = self.word()?;
                self.registers(ty)?
            }
            // As it stands in inline assembly of CUDA's headers.
            word if word.starts_with(".reg.") => self.registers(&word[".reg".len()..])?,
            ".shared" => Kind::Variable(self.variable(Space::Shared)?),
            ".local" => Kind::Variable(self.variable(Space::Local)?),
            ".param" => Kind::Variable(self.variable(Space::Param)?),
            ".pragma" => {
                self.skip_statement();
                return Ok(None);
            }
            ".loc" => {
                self.skip_line();
                return Ok(None);
            }
            "@" => {
                let negated = self.accept("!");
                let guard = self.word()?.to_owned();
                let opcode = self.word()?;
                Kind::Instruction(self.instruction(opcode, Some((guard, negated)))?)
            }
            word if word.starts_with('.') => return Err(format!("unknown directive `{word}`")),
            word if self.accept(":") => Kind::Label(word.to_owned()),
            word => Kind::Instruction(self.instruction(word, None)?),
        };
        Ok(Some(Statement { line, kind }))
    }

    pub(super) fn word_or_mark(&mut self) -> Result<&'a str> {
        match self.peek() {
            Some(mark @ ("{" | "}" | "@" | ";")) => {
                self.at += 1;
                Ok(mark)
            }
            _ => self.word(),
        }
    }

    fn registers(&mut self, word: &str) -> Result<Kind> {
        let ty = word
            .strip_prefix('.')
            .and_then(type_of)
            .ok_or_else(|| format!("unknown register type `{word}`"))?;
        let mut names = Vec::new();
        loop {
            let name = self.word()?.to_owned();
            let count = if self.accept("<") {
                let count = self.size()? as u32;
                self.expect(">")?;
                Some(count)
            } else {
                None
            };
            names.push((name, count));
            if self.accept(";") {
                return Ok(Kind::Registers(ty, names));
            }
            self.expect(",")?;
        }
    }

    fn instruction(&mut self, word: &str, guard: Option<(String, bool)>) -> Result<Instruction> {
        let mut parts = word.split('.').map(str::to_owned);
        let opcode = parts.next().unwrap_or_default();
        let modifiers = parts.collect();
        Ok(Instruction { guard, opcode, modifiers, operands: self.operands()? })
    }
}

pub(super) fn memory_type(word: &str) -> Result<Type> {
    match word.strip_prefix('.').and_then(type_of) {
        Some(ty) if ty != Type::Pred => Ok(ty),
        _ => Err(format!("unknown type `{word}`")),
    }
}
