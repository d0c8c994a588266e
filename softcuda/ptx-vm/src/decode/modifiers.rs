//! The modifiers of one instruction: each must be asked for, or the instruction is refused.

use super::Result;
use crate::alu::Integer;
use crate::instr::{Scope, Type};
use crate::numerics::Rounding;
use crate::syntax::type_of;

pub(super) struct Modifiers<'a> {
    opcode: &'a str,
    left: Vec<&'a str>,
}

impl<'a> Modifiers<'a> {
    pub fn new(opcode: &'a str, modifiers: &'a [String]) -> Modifiers<'a> {
        Modifiers { opcode, left: modifiers.iter().map(String::as_str).collect() }
    }

    /// Whether that one is there.
    pub fn take(&mut self, name: &str) -> bool {
        let found = self.left.iter().position(|&left| left == name);
        found.map(|i| self.left.remove(i)).is_some()
    }

    /// The first that the function knows.
    pub fn find<T>(&mut self, known: impl Fn(&str) -> Option<T>) -> Option<T> {
        let (i, found) =
            self.left.iter().enumerate().find_map(|(i, left)| Some((i, known(left)?)))?;
        self.left.remove(i);
        Some(found)
    }

    /// Takes all that are in the list.
    pub fn ignore(&mut self, names: &[&str]) {
        self.left.retain(|left| !names.contains(left));
    }

    /// The type: of several the first.
    pub fn ty(&mut self) -> Result<Type> {
        self.find(type_of).ok_or_else(|| format!("`{}` needs a type", self.opcode))
    }

    pub fn scope(&mut self) -> Option<Scope> {
        self.find(|name| match name {
            // Without clusters of more blocks a cluster is a block.
            "cta" | "cluster" => Some(Scope::Block),
            "gpu" => Some(Scope::Device),
            "sys" => Some(Scope::System),
            _ => None,
        })
    }

    pub fn rounding(&mut self) -> Option<Rounding> {
        self.find(|name| match name {
            "rn" => Some(Rounding::Nearest),
            "rna" => Some(Rounding::NearestAway),
            "rz" => Some(Rounding::Zero),
            "rm" => Some(Rounding::Down),
            "rp" => Some(Rounding::Up),
            _ => None,
        })
    }

    /// Refuses what nobody asked for.
    pub fn finish(&self) -> Result<()> {
        match self.left.first() {
            None => Ok(()),
            Some(left) => Err(format!("unknown modifier `.{left}` of `{}`", self.opcode)),
        }
    }
}

/// The integer type of that name; bits count as unsigned.
pub(super) fn integer(opcode: &str, ty: Type) -> Result<Integer> {
    Ok(match ty {
        Type::B16 | Type::U16 => Integer::U16,
        Type::S16 => Integer::S16,
        Type::B32 | Type::U32 => Integer::U32,
        Type::S32 => Integer::S32,
        Type::B64 | Type::U64 => Integer::U64,
        Type::S64 => Integer::S64,
        _ => return Err(format!("`{opcode}` has no type {ty:?}")),
    })
}
