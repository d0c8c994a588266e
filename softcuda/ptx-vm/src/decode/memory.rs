//! Loads, stores and atomics.

use super::{Decoder, Form, Modifiers, Result};
use crate::alu::{Convert, Number, Operation, RoundTo};
use crate::instr::{Address, AtomicOp, Op, Order, Reg, Scope, Space, Type};
use crate::numerics::Rounding;
use crate::syntax::{Operand, width};

/// Hints to the caches, which change no value.
const HINTS: [&str; 20] = [
    "nc",
    "ca",
    "cg",
    "cs",
    "lu",
    "wb",
    "wt",
    "unified",
    "L1::evict_normal",
    "L1::evict_unchanged",
    "L1::evict_first",
    "L1::evict_last",
    "L1::no_allocate",
    "L2::evict_normal",
    "L2::evict_first",
    "L2::evict_last",
    "L2::64B",
    "L2::128B",
    "L2::256B",
    "weak",
];

impl Decoder {
    /// Gives false for an instruction that is not of this kind.
    pub(super) fn memory(&mut self, form: Form, modifiers: &mut Modifiers) -> Result<bool> {
        match form.opcode {
            "ld" => self.load(form, modifiers)?,
            "st" => self.store(form, modifiers)?,
            "atom" | "red" => self.atomic(form, modifiers)?,
            "prefetch" | "prefetchu" => {
                modifiers.ignore(&["global", "L1", "L2", "L2::evict_last", "L2::evict_normal"]);
                modifiers.finish()?;
                let [Operand::Address(..)] = form.exactly()? else {
                    return Err("an address is missing".to_owned());
                };
                self.push(Op::Nop);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn load(&mut self, form: Form, modifiers: &mut Modifiers) -> Result<()> {
        if modifiers.take("param::entry") {
            if !self.calls.stack.is_empty() {
                return Err("a function cannot read the parameters of the kernel".to_owned());
            }
            return self.load_from(form, modifiers, Space::Param);
        }
        let space = space(modifiers);
        self.load_from(form, modifiers, space)
    }

    fn load_from(&mut self, form: Form, modifiers: &mut Modifiers, space: Space) -> Result<()> {
        let order = order(modifiers, None)?;
        if matches!(order, Order::Release(_) | Order::AcquireRelease(_)) {
            return Err("a load cannot release".to_owned());
        }
        let count = vector(modifiers);
        modifiers.ignore(&HINTS);
        let ty = accessed(modifiers)?;
        modifiers.finish()?;
        let [result, from] = form.exactly()?;
        let address = self.address(from, space)?;
        let parts = parts(result, count)?;
        let mut regs = [0; 4];
        let mut narrow: Vec<(Reg, u32)> = Vec::new();
        for (reg, part) in regs.iter_mut().zip(parts) {
            let (to, declared) = self.names.written_any(part)?;
            if width(declared) < width(ty) {
                return Err(format!("{ty:?} does not fit a register of {} bits", width(declared)));
            }
            if signed(ty) && width(declared) > width(ty) {
                narrow.push((to, width(declared)));
            }
            *reg = to;
        }
        self.push(Op::Load { ty, count, regs, address, order });
        // A signed value is extended to the register; loads themselves leave the upper bits zero.
        for (reg, bits) in narrow {
            let integer = |bits: u32| Number::Integer { bits: bits as u8, signed: true };
            let extend = Convert {
                from: integer(width(ty)),
                to: integer(bits),
                rounding: RoundTo::Target(Rounding::Nearest),
                ftz: false,
                saturate: false,
                relu: false,
                finite: false,
            };
            self.push_alu(Operation::Convert(extend), &[reg], &[reg]);
        }
        Ok(())
    }

    fn store(&mut self, form: Form, modifiers: &mut Modifiers) -> Result<()> {
        let space = space(modifiers);
        let order = order(modifiers, None)?;
        if matches!(order, Order::Acquire(_) | Order::AcquireRelease(_)) {
            return Err("a store cannot acquire".to_owned());
        }
        let count = vector(modifiers);
        modifiers.ignore(&HINTS);
        let ty = accessed(modifiers)?;
        modifiers.finish()?;
        let [to, value] = form.exactly()?;
        let address = self.address(to, space)?;
        match address.space {
            Space::Param => return Err("parameters of a kernel cannot be written".to_owned()),
            Space::Const => return Err("constant memory cannot be written".to_owned()),
            _ => {}
        }
        let mut regs = [0; 4];
        for (reg, part) in regs.iter_mut().zip(parts(value, count)?) {
            *reg = self.names.read_low(part, ty)?;
        }
        self.push(Op::Store { ty, count, regs, address, order });
        Ok(())
    }

    fn atomic(&mut self, form: Form, modifiers: &mut Modifiers) -> Result<()> {
        let space = space(modifiers);
        let order = match order(modifiers, Some(Scope::Device))? {
            Order::Weak => Order::Relaxed(Scope::Device),
            Order::Volatile => return Err(format!("`{}` is never volatile", form.opcode)),
            order => order,
        };
        let op = modifiers.find(|name| {
            Some(match name {
                "add" => AtomicOp::Add,
                "min" => AtomicOp::Min,
                "max" => AtomicOp::Max,
                "and" => AtomicOp::And,
                "or" => AtomicOp::Or,
                "xor" => AtomicOp::Xor,
                "inc" => AtomicOp::Inc,
                "dec" => AtomicOp::Dec,
                "exch" => AtomicOp::Exchange,
                "cas" => AtomicOp::CompareExchange,
                _ => return None,
            })
        });
        let op = op.ok_or_else(|| format!("`{}` needs an operation", form.opcode))?;
        modifiers.take("noftz");
        let ty = modifiers.ty()?;
        modifiers.finish()?;
        if !has_atomic(op, ty) {
            return Err(format!("`{}` has no {op:?} of {ty:?}", form.opcode));
        }
        let (result, operands) = match (form.opcode, form.operands) {
            ("red", operands) => (None, operands),
            (_, [Operand::Name(name, 0), operands @ ..]) if name == "_" => (None, operands),
            (_, [result, operands @ ..]) => {
                (Some(self.names.written(result, width(ty))?), operands)
            }
            _ => return Err("operands are missing".to_owned()),
        };
        if matches!((form.opcode, op), ("red", AtomicOp::Exchange | AtomicOp::CompareExchange)) {
            return Err("`red` cannot exchange".to_owned());
        }
        let (address, values) = match operands {
            [address, value] if op != AtomicOp::CompareExchange => {
                let value = self.names.read(value, ty)?;
                (address, [value; 2])
            }
            [address, old, new] if op == AtomicOp::CompareExchange => {
                (address, [self.names.read(old, ty)?, self.names.read(new, ty)?])
            }
            _ => return Err(format!("`{}` with {} operands", form.opcode, form.operands.len())),
        };
        let address = self.address(address, space)?;
        self.push(Op::Atomic { op, ty, result, values, address, order });
        Ok(())
    }

    fn address(&mut self, operand: &Operand, space: Space) -> Result<Address> {
        let Operand::Address(name, offset) = operand else {
            return Err("an address in brackets is missing".to_owned());
        };
        let Some(name) = name else {
            return Ok(Address { space, base: None, offset: *offset });
        };
        if let Some((own, address)) = self.names.variable(name) {
            if matches!(own, Space::Global | Space::Const)
                && (own == space || space == Space::Generic)
            {
                let base = Some(self.names.symbol(address, 0)?);
                return Ok(Address { space, base, offset: *offset });
            }
            // The parameters of functions, and those of calls.
            let space = if (own, space) == (Space::Local, Space::Param) { own } else { space };
            if own != space {
                return Err(format!("`{name}` lies in {own:?} memory, not {space:?}"));
            }
            return Ok(Address { space, base: None, offset: address as i64 + offset });
        }
        let (base, ty) = self.names.register(name)?;
        let in_function = space == Space::Param && !self.calls.stack.is_empty();
        let space = if in_function { Space::Local } else { space };
        let windowed = matches!(space, Space::Shared | Space::Local | Space::Param);
        if !(width(ty) == 64 || width(ty) == 32 && windowed) {
            return Err(format!("register `{name}` of {} bits is no address here", width(ty)));
        }
        Ok(Address { space, base: Some(base), offset: *offset })
    }
}

fn space(modifiers: &mut Modifiers) -> Space {
    let space = modifiers.find(|name| match name {
        "global" => Some(Space::Global),
        "shared" | "shared::cta" => Some(Space::Shared),
        "local" => Some(Space::Local),
        "const" => Some(Space::Const),
        "param" | "param::func" => Some(Space::Param),
        _ => None,
    });
    space.unwrap_or(Space::Generic)
}

/// `default`: the scope and the relaxed order, where the other is written alone.
fn order(modifiers: &mut Modifiers, default: Option<Scope>) -> Result<Order> {
    if modifiers.take("volatile") || modifiers.take("cv") {
        return Ok(Order::Volatile);
    }
    let order = modifiers.find(|name| {
        Some(match name {
            "relaxed" => Order::Relaxed as fn(Scope) -> Order,
            "acquire" => Order::Acquire,
            "release" => Order::Release,
            "acq_rel" => Order::AcquireRelease,
            _ => return None,
        })
    });
    match (order, modifiers.scope()) {
        (None, None) => Ok(Order::Weak),
        (Some(order), scope) => scope.or(default).map(order).ok_or("a scope is missing".to_owned()),
        (None, Some(scope)) if default.is_some() => Ok(Order::Relaxed(scope)),
        (None, Some(_)) => Err("a scope without an order".to_owned()),
    }
}

fn vector(modifiers: &mut Modifiers) -> u8 {
    let count = modifiers.find(|name| match name {
        "v2" => Some(2),
        "v4" => Some(4),
        _ => None,
    });
    count.unwrap_or(1)
}

fn accessed(modifiers: &mut Modifiers) -> Result<Type> {
    match modifiers.ty()? {
        ty @ (Type::Pred | Type::B128 | Type::F16 | Type::Bf16 | Type::F16x2 | Type::Bf16x2) => {
            Err(format!("no memory access has type {ty:?}"))
        }
        ty => Ok(ty),
    }
}

fn parts(operand: &Operand, count: u8) -> Result<&[Operand]> {
    match operand {
        Operand::Vector(parts) if count > 1 && parts.len() == usize::from(count) => Ok(parts),
        Operand::Vector(parts) => Err(format!("{} registers where {count} belong", parts.len())),
        operand if count == 1 => Ok(std::slice::from_ref(operand)),
        _ => Err(format!("a vector of {count} is missing")),
    }
}

fn signed(ty: Type) -> bool {
    matches!(ty, Type::S8 | Type::S16 | Type::S32)
}

fn has_atomic(op: AtomicOp, ty: Type) -> bool {
    use Type::*;
    match op {
        AtomicOp::Add => {
            matches!(ty, U32 | S32 | U64 | S64 | F32 | F64 | F16 | Bf16 | F16x2 | Bf16x2)
        }
        AtomicOp::Min | AtomicOp::Max => matches!(ty, U32 | S32 | U64 | S64),
        AtomicOp::And | AtomicOp::Or | AtomicOp::Xor => matches!(ty, B32 | B64),
        AtomicOp::Inc | AtomicOp::Dec => ty == U32,
        AtomicOp::Exchange => matches!(ty, B32 | U32 | S32 | F32 | B64 | U64 | S64 | F64),
        AtomicOp::CompareExchange => matches!(ty, B16 | B32 | U32 | S32 | B64 | U64 | S64),
    }
}
