//! Names to registers.

use super::Result;
use crate::instr::{Fill, Reg, Space, Special, Type};
use crate::syntax::{Literal, Operand, width};
use std::collections::HashMap;

/// What the names of a kernel stand for, block of statements by block.
pub(super) struct Names {
    scopes: Vec<Scope>,
    /// The innermost open one.
    current: usize,
    count: usize,
    carry: Option<Reg>,
    fills: HashMap<Fill, Reg>,
    order: Vec<(Reg, Fill)>,
    /// Addresses of shared, local and parameter variables; of those of the module their numbers.
    pub variables: HashMap<String, (Space, u64)>,
}

#[derive(Default)]
struct Scope {
    parent: Option<usize>,
    registers: HashMap<String, (Option<Reg>, Type)>,
    families: Vec<(String, u32, Type)>,
    labels: HashMap<String, usize>,
    /// Addresses of `.param` variables, and of all that a function declares.
    variables: HashMap<String, (Space, u64)>,
}

impl Names {
    pub fn new() -> Names {
        Names {
            scopes: vec![Scope::default()],
            current: 0,
            count: 0,
            carry: None,
            fills: HashMap::new(),
            order: Vec::new(),
            variables: HashMap::new(),
        }
    }

    /// Registers in use so far.
    pub fn count(&self) -> usize {
        self.count
    }

    /// What registers hold at the start.
    pub fn into_fills(self) -> Vec<(Reg, Fill)> {
        self.order
    }

    pub fn open(&mut self) {
        self.scopes.push(Scope { parent: Some(self.current), ..Scope::default() });
        self.current = self.scopes.len() - 1;
    }

    pub fn close(&mut self) {
        self.current = self.scopes[self.current].parent.unwrap_or(0);
    }

    /// Begins the body of a function, which sees nothing of the block that calls it. [`Names::return_to`] that.
    pub fn enter(&mut self) -> usize {
        let outer = self.current;
        self.scopes.push(Scope::default());
        self.current = self.scopes.len() - 1;
        outer
    }

    /// Ends the body of a function.
    pub fn return_to(&mut self, outer: usize) {
        self.current = outer;
    }

    /// Places a variable that the innermost open block has.
    pub fn place_variable(&mut self, name: &str, place: (Space, u64)) {
        self.scopes[self.current].variables.insert(name.to_owned(), place);
    }

    /// The innermost open block, for [`Names::target`].
    pub fn scope(&self) -> usize {
        self.current
    }

    pub fn declare(&mut self, ty: Type, name: &str, family: Option<u32>) {
        let scope = &mut self.scopes[self.current];
        match family {
            Some(count) => scope.families.push((name.to_owned(), count, ty)),
            None => _ = scope.registers.insert(name.to_owned(), (None, ty)),
        }
    }

    pub fn label(&mut self, name: &str, index: usize) -> Result<()> {
        match self.scopes[self.current].labels.insert(name.to_owned(), index) {
            None => Ok(()),
            Some(_) => Err(format!("label `{name}` stands here a second time")),
        }
    }

    /// The instruction of a label, seen from a block.
    pub fn target(&self, scope: usize, name: &str) -> Option<usize> {
        let mut scope = Some(scope);
        while let Some(at) = scope {
            if let Some(&index) = self.scopes[at].labels.get(name) {
                return Some(index);
            }
            scope = self.scopes[at].parent;
        }
        None
    }

    /// A register of its own.
    pub fn fresh(&mut self) -> Result<Reg> {
        let reg = Reg::try_from(self.count).map_err(|_| "too many registers".to_owned())?;
        self.count += 1;
        Ok(reg)
    }

    /// The condition code of arithmetic with carries.
    pub fn carry(&mut self) -> Result<Reg> {
        match self.carry {
            Some(reg) => Ok(reg),
            None => {
                let reg = self.fresh()?;
                self.carry = Some(reg);
                Ok(reg)
            }
        }
    }

    /// The register that holds that from the start.
    pub fn filled(&mut self, fill: Fill) -> Result<Reg> {
        if let Some(&reg) = self.fills.get(&fill) {
            return Ok(reg);
        }
        let reg = self.fresh()?;
        self.fills.insert(fill, reg);
        self.order.push((reg, fill));
        Ok(reg)
    }

    /// The address of a variable, unless a register hides it; of one of the module its number.
    pub fn variable(&self, name: &str) -> Option<(Space, u64)> {
        let register = self.declared(name).map(|(scope, _)| scope);
        let mut scope = Some(self.current);
        while let Some(at) = scope.filter(|at| Some(*at) != register) {
            if let Some(place) = self.scopes[at].variables.get(name) {
                return Some(*place);
            }
            scope = self.scopes[at].parent;
        }
        if register.is_some() { None } else { self.variables.get(name).copied() }
    }

    /// The register that holds the address of a variable of the module, and bytes added to it.
    pub fn symbol(&mut self, number: u64, offset: i64) -> Result<Reg> {
        self.filled(Fill::Symbol(number as u32, offset))
    }

    /// The block that declares a register of that name, and its type.
    fn declared(&self, name: &str) -> Option<(usize, Type)> {
        let mut scope = Some(self.current);
        while let Some(at) = scope {
            let Scope { parent, registers, families, .. } = &self.scopes[at];
            if let Some(&(_, ty)) = registers.get(name) {
                return Some((at, ty));
            }
            let number = |prefix: &str| name.strip_prefix(prefix)?.parse::<u32>().ok();
            let family = |(prefix, count, _): &&(String, u32, Type)| {
                number(prefix).is_some_and(|number| number < *count)
            };
            if let Some(&(_, _, ty)) = families.iter().find(family) {
                return Some((at, ty));
            }
            scope = *parent;
        }
        None
    }

    /// A declared register and its type.
    pub fn register(&mut self, name: &str) -> Result<(Reg, Type)> {
        let (scope, ty) =
            self.declared(name).ok_or_else(|| format!("unknown register `{name}`"))?;
        match self.scopes[scope].registers.get(name) {
            Some(&(Some(reg), _)) => Ok((reg, ty)),
            _ => Ok((self.place(scope, name, ty)?, ty)),
        }
    }

    fn place(&mut self, scope: usize, name: &str, ty: Type) -> Result<Reg> {
        let reg = self.fresh()?;
        self.scopes[scope].registers.insert(name.to_owned(), (Some(reg), ty));
        Ok(reg)
    }

    /// The register that an instruction of that width writes; for `_` one that nobody reads.
    pub fn written(&mut self, operand: &Operand, bits: u32) -> Result<Reg> {
        match operand {
            Operand::Name(name, 0) if name == "_" => self.fresh(),
            Operand::Name(name, 0) => self.of_width(name, bits),
            _ => Err("the result must be a register".to_owned()),
        }
    }

    /// Its type besides.
    pub fn written_any(&mut self, operand: &Operand) -> Result<(Reg, Type)> {
        match operand {
            Operand::Name(name, 0) if name == "_" => Ok((self.fresh()?, Type::B64)),
            Operand::Name(name, 0) => self.register(name),
            _ => Err("the result must be a register".to_owned()),
        }
    }

    fn of_width(&mut self, name: &str, bits: u32) -> Result<Reg> {
        let (reg, ty) = self.register(name)?;
        if width(ty) == bits {
            return Ok(reg);
        }
        let form = |bits| if bits == 1 { "a predicate".to_owned() } else { format!("{bits} bits") };
        Err(format!("register `{name}` has {}, not {}", form(width(ty)), form(bits)))
    }

    /// The register that holds an operand of that type: its own, or one for a constant.
    pub fn read(&mut self, operand: &Operand, ty: Type) -> Result<Reg> {
        let bits = width(ty);
        match operand {
            Operand::Name(name, offset) => {
                if let Some((space, address)) = self.variable(name) {
                    let of_module = matches!(space, Space::Global | Space::Const);
                    if !(bits == 32 && !of_module || bits == 64) {
                        return Err(format!("the address of `{name}` does not fit"));
                    }
                    if of_module {
                        return self.symbol(address, *offset);
                    }
                    return self.filled(Fill::Constant(address.wrapping_add(*offset as u64)));
                }
                if *offset != 0 {
                    return Err(format!("unknown variable `{name}`"));
                }
                if name == "WARP_SZ" {
                    return self.filled(Fill::Constant(32));
                }
                if let Some(special) = special(name) {
                    if bits != 32 {
                        return Err(format!("`{name}` has 32 bits, not {bits}"));
                    }
                    return self.filled(Fill::Special(special));
                }
                self.of_width(name, bits)
            }
            Operand::Number(literal) => self.filled(Fill::Constant(constant(*literal, ty)?)),
            Operand::Not(_) => Err("`!` does not belong here".to_owned()),
            Operand::Both(..) => Err("`|` does not belong here".to_owned()),
            Operand::Vector(_) => Err("a vector does not belong here".to_owned()),
            Operand::List(_) => Err("a list does not belong here".to_owned()),
            Operand::Address(..) => Err("an address does not belong here".to_owned()),
        }
    }

    /// An operand wider than the type is cut: what `cvt` and `st` read.
    pub fn read_low(&mut self, operand: &Operand, ty: Type) -> Result<Reg> {
        if let Operand::Name(name, 0) = operand
            && self.variable(name).is_none()
            && special(name).is_none()
        {
            let (reg, declared) = self.register(name)?;
            if width(declared) < width(ty) {
                let (has, needs) = (width(declared), width(ty));
                return Err(format!("register `{name}` has {has} bits, not {needs}"));
            }
            return Ok(reg);
        }
        self.read(operand, ty)
    }

    /// `p` or `!p`
    pub fn predicate(&mut self, operand: &Operand) -> Result<(Reg, bool)> {
        match operand {
            Operand::Not(name) => Ok((self.of_width(name, 1)?, true)),
            operand => Ok((self.read(operand, Type::Pred)?, false)),
        }
    }
}

/// The bits of a number of which only the bytes are known: none of a decimal one.
pub(super) fn plain(literal: Literal, bytes: usize) -> Option<u64> {
    match literal {
        Literal::Integer(value) => Some(value as u64 & u64::MAX >> (64 - 8 * bytes)),
        Literal::Single(bits) if bytes == 4 => Some(bits.into()),
        Literal::Double(bits) if bytes == 8 => Some(bits),
        _ => None,
    }
}

/// The bits of a number as a value of the type.
pub(super) fn constant(literal: Literal, ty: Type) -> Result<u64> {
    let bits = width(ty);
    let cut = |value: u64| value & (u64::MAX >> (64 - bits));
    match (literal, ty) {
        (Literal::Integer(value), Type::Pred) => Ok(u64::from(value != 0)),
        (Literal::Integer(value), Type::F32) => Ok(u64::from((value as f32).to_bits())),
        (Literal::Integer(value), Type::F64) => Ok((value as f64).to_bits()),
        (Literal::Integer(value), _) => Ok(cut(value as u64)),
        (Literal::Decimal(value), Type::F32) => Ok(u64::from((value as f32).to_bits())),
        (Literal::Decimal(value), Type::F64) => Ok(value.to_bits()),
        (Literal::Single(value), Type::F64) => Ok(f64::from(f32::from_bits(value)).to_bits()),
        (Literal::Single(value), Type::F32 | Type::B32 | Type::U32 | Type::S32) => {
            Ok(u64::from(value))
        }
        (Literal::Double(value), Type::F64 | Type::B64 | Type::U64 | Type::S64) => Ok(value),
        _ => Err(format!("such a number is no {ty:?}")),
    }
}

fn special(name: &str) -> Option<Special> {
    if let Some((name, axis)) = name.rsplit_once('.') {
        let axis = match axis {
            "x" => 0,
            "y" => 1,
            "z" => 2,
            _ => return None,
        };
        return Some(match name {
            "%tid" => Special::Thread(axis),
            "%ntid" => Special::Threads(axis),
            "%ctaid" => Special::Block(axis),
            "%nctaid" => Special::Blocks(axis),
            _ => return None,
        });
    }
    Some(match name {
        "%laneid" => Special::Lane,
        "%warpid" => Special::Warp,
        "%nwarpid" => Special::Warps,
        "%lanemask_eq" => Special::LaneMaskEq,
        "%lanemask_lt" => Special::LaneMaskLt,
        "%lanemask_le" => Special::LaneMaskLe,
        "%lanemask_gt" => Special::LaneMaskGt,
        "%lanemask_ge" => Special::LaneMaskGe,
        "%dynamic_smem_size" => Special::DynamicSharedSize,
        "%total_smem_size" => Special::TotalSharedSize,
        _ => return None,
    })
}
