//! Variables of a module: their initial values as bytes, and where addresses stand among them.

use super::registers::constant;
use crate::instr::Space;
use crate::module::{AddressOf, LoadError, Variable};
use crate::syntax::{Global, Text, Value, width};

type Result<T> = std::result::Result<T, String>;

/// The variables of a text, in its order. `at` makes an error of a line and a message.
pub(super) fn variables(
    text: &Text,
    at: impl Fn(u32, String) -> LoadError,
) -> std::result::Result<Vec<Variable>, LoadError> {
    let names: Vec<&str> = text.globals.iter().map(|global| &global.variable.name[..]).collect();
    let mut made = Vec::new();
    for (index, global) in text.globals.iter().enumerate() {
        let variable = if names[..index].contains(&names[index]) {
            Err(format!("there is another `{}`", names[index]))
        } else {
            variable(global, &names)
        };
        made.push(variable.map_err(|message| at(global.line, message))?);
    }
    Ok(made)
}

fn variable(global: &Global, names: &[&str]) -> Result<Variable> {
    let declared = &global.variable;
    let size = declared.size.unwrap_or(0);
    let bytes = width(global.ty) as usize / 8;
    let mut variable = Variable {
        name: declared.name.clone(),
        is_constant: declared.space == Space::Const,
        align: declared.align as u64,
        bytes: size as u64,
        initial: Vec::new(),
        addresses: Vec::new(),
    };
    if size == 0 {
        return Err(format!("`{}` has no bytes", declared.name));
    }
    for initial in &global.initial {
        let place = initial.at..initial.at + bytes;
        if place.end > size {
            return Err("there are too many values".into());
        }
        if variable.initial.len() < place.end {
            variable.initial.resize(place.end, 0);
        }
        match &initial.value {
            Value::Number(literal) => {
                let bits = constant(*literal, global.ty)?.to_le_bytes();
                let bits = bits.get(..bytes).ok_or("such a value has no type")?;
                variable.initial[place].copy_from_slice(bits);
            }
            Value::Address { name, offset, shift } => {
                let whole = bytes == 8 && *shift == 0;
                if !whole && bytes != 1 {
                    return Err(format!("the address of `{name}` does not fit"));
                }
                let of = names.iter().position(|other| other == name);
                let of = of.ok_or_else(|| format!("`{name}` is no variable of the module"))?;
                let (at, offset, shift) = (initial.at, *offset, *shift);
                variable.addresses.push(AddressOf { at, bytes, of, offset, shift });
            }
        }
    }
    Ok(variable)
}
