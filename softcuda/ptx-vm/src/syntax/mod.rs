//! PTX text to declarations and statements, names not yet looked up.

mod module;
mod operands;
mod parser;
mod tokens;

pub(crate) use operands::{Literal, Operand};
pub(crate) use parser::parse;

use crate::instr::{Space, Type};
use std::collections::HashMap;

/// A text.
#[derive(Debug, Default)]
pub(crate) struct Text {
    pub target: u32,
    /// Shared variables outside kernels.
    pub shared: Vec<Variable>,
    /// Variables of global and constant memory.
    pub globals: Vec<Global>,
    /// By their names; of one that is declared first the definition.
    pub functions: HashMap<String, Function>,
    pub entries: Vec<Entry>,
}

/// A variable of global or constant memory, and what it holds when the module is loaded.
#[derive(Debug)]
pub(crate) struct Global {
    pub variable: Variable,
    /// That of an element.
    pub ty: Type,
    pub line: u32,
    /// What is not named is 0.
    pub initial: Vec<Initial>,
}

/// An initial value, and the byte of the variable at which it stands.
#[derive(Debug)]
pub(crate) struct Initial {
    pub at: usize,
    pub value: Value,
}

/// An initial value as written.
#[derive(Debug)]
pub(crate) enum Value {
    Number(Literal),
    /// The address of another variable, shifted down by so many bits.
    Address {
        name: String,
        offset: i64,
        shift: u32,
    },
}

/// A function that kernels call.
#[derive(Debug)]
pub(crate) struct Function {
    pub name: String,
    pub results: Vec<Formal>,
    pub parameters: Vec<Formal>,
    /// None where it is only declared.
    pub body: Option<Vec<Statement>>,
}

/// A parameter or result of a function.
#[derive(Debug)]
pub(crate) struct Formal {
    pub parameter: Parameter,
    /// Its type, where it is a register.
    pub register: Option<Type>,
}

/// A variable.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Variable {
    pub name: String,
    pub space: Space,
    pub align: usize,
    /// Bytes; of an `.extern` one as many as the launch says.
    pub size: Option<usize>,
}

/// A parameter of a kernel.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Parameter {
    pub name: String,
    pub align: usize,
    pub size: usize,
}

/// A kernel.
#[derive(Debug)]
pub(crate) struct Entry {
    pub name: String,
    pub line: u32,
    pub parameters: Vec<Parameter>,
    pub max_threads: Option<u32>,
    pub min_blocks: Option<u32>,
    pub body: Vec<Statement>,
}

/// A statement and the line that it begins on.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Statement {
    pub line: u32,
    pub kind: Kind,
}

/// What a statement is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Kind {
    /// `.reg`: names, and how many of each if numbered.
    Registers(Type, Vec<(String, Option<u32>)>),
    Variable(Variable),
    Label(String),
    /// `{`
    Open,
    /// `}`
    Close,
    Instruction(Instruction),
}

/// An instruction as written.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Instruction {
    /// The predicate, and whether it is negated.
    pub guard: Option<(String, bool)>,
    pub opcode: String,
    /// What follows the opcode, without the dots.
    pub modifiers: Vec<String>,
    pub operands: Vec<Operand>,
}

/// The type that a word without its dot names.
pub(crate) fn type_of(word: &str) -> Option<Type> {
    Some(match word {
        "pred" => Type::Pred,
        "b8" => Type::B8,
        "b16" => Type::B16,
        "b32" => Type::B32,
        "b64" => Type::B64,
        "b128" => Type::B128,
        "u8" => Type::U8,
        "u16" => Type::U16,
        "u32" => Type::U32,
        "u64" => Type::U64,
        "s8" => Type::S8,
        "s16" => Type::S16,
        "s32" => Type::S32,
        "s64" => Type::S64,
        "f16" => Type::F16,
        "bf16" => Type::Bf16,
        "f16x2" => Type::F16x2,
        "bf16x2" => Type::Bf16x2,
        "f32" => Type::F32,
        "f64" => Type::F64,
        _ => return None,
    })
}

/// Bits of a value of the type; 1 for a predicate.
pub(crate) fn width(ty: Type) -> u32 {
    match ty {
        Type::Pred => 1,
        Type::B8 | Type::U8 | Type::S8 => 8,
        Type::B16 | Type::U16 | Type::S16 | Type::F16 | Type::Bf16 => 16,
        Type::B32 | Type::U32 | Type::S32 | Type::F32 | Type::F16x2 | Type::Bf16x2 => 32,
        Type::B64 | Type::U64 | Type::S64 | Type::F64 => 64,
        Type::B128 => 128,
    }
}
