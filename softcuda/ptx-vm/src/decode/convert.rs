//! Moves and conversions.

use super::{Decoder, Form, Modifiers, Result};
use crate::alu::{
    Compare, Comparison, Convert, Integer, IntegerOp, Number, Operation, RoundTo, Truth,
};
use crate::instr::{LOCAL_WINDOW, SHARED_WINDOW, Type, WINDOW};
use crate::numerics::{BF16, F16, F32, F64, Rounding, TF32};
use crate::syntax::{Operand, width};

impl Decoder {
    /// Gives false for an instruction that is not of this kind.
    pub(super) fn moves(&mut self, form: Form, modifiers: &mut Modifiers) -> Result<bool> {
        match form.opcode {
            "mov" => self.mov(form, modifiers)?,
            "cvta" => self.cvta(form, modifiers)?,
            "isspacep" => self.isspacep(form, modifiers)?,
            "cvt" => self.cvt(form, modifiers)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn mov(&mut self, form: Form, modifiers: &mut Modifiers) -> Result<()> {
        let ty = modifiers.ty()?;
        modifiers.finish()?;
        let split = |parts: &[Operand]| {
            let bits = width(ty) / parts.len() as u32;
            let part = match bits {
                8 => Type::B8,
                16 => Type::B16,
                32 => Type::B32,
                _ => return Err("so many registers do not fit".to_owned()),
            };
            if !matches!(parts.len(), 2 | 4) || width(ty) > 64 {
                return Err("so many registers do not fit".to_owned());
            }
            Ok(part)
        };
        match form.exactly()? {
            [result, Operand::Vector(parts)] => {
                let part = split(parts)?;
                let result = self.names.written(result, width(ty))?;
                let mut from = Vec::new();
                for operand in parts {
                    from.push(self.names.read(operand, part)?);
                }
                let (bits, count) = (width(part) as u8, parts.len() as u8);
                self.push_alu(Operation::Pack { bits, count }, &[result], &from);
            }
            [Operand::Vector(parts), value] => {
                let part = split(parts)?;
                let value = self.names.read(value, ty)?;
                let mut to = Vec::new();
                for operand in parts {
                    to.push(self.names.written(operand, width(part))?);
                }
                let (bits, count) = (width(part) as u8, parts.len() as u8);
                self.push_alu(Operation::Unpack { bits, count }, &to, &[value]);
            }
            [result, value] => {
                let result = self.names.written(result, width(ty))?;
                let value = self.names.read(value, ty)?;
                self.push_alu(Operation::Move, &[result], &[value]);
            }
        }
        Ok(())
    }

    fn cvta(&mut self, form: Form, modifiers: &mut Modifiers) -> Result<()> {
        let to = modifiers.take("to");
        let window = modifiers.find(|name| match name {
            "global" | "const" => Some(0),
            "shared" | "shared::cta" => Some(SHARED_WINDOW),
            "local" => Some(LOCAL_WINDOW),
            _ => None,
        });
        let window = window.ok_or("`cvta` of that state space is not supported")?;
        if modifiers.ty()? != Type::U64 {
            return Err("`cvta` of 64-bit addresses only".to_owned());
        }
        modifiers.finish()?;
        let [result, from] = form.exactly()?;
        let result = self.names.written(result, 64)?;
        let from = self.names.read(from, Type::U64)?;
        if window == 0 {
            self.push_alu(Operation::Move, &[result], &[from]);
        } else {
            let window = self.constant(window)?;
            let op = if to { IntegerOp::Sub } else { IntegerOp::Add };
            self.push_alu(Operation::Integer(op, Integer::U64), &[result], &[from, window]);
        }
        Ok(())
    }

    fn isspacep(&mut self, form: Form, modifiers: &mut Modifiers) -> Result<()> {
        let window = modifiers.find(|name| match name {
            "shared" | "shared::cta" => Some((SHARED_WINDOW, WINDOW)),
            "local" => Some((LOCAL_WINDOW, WINDOW)),
            "global" => Some((0, SHARED_WINDOW)),
            _ => None,
        });
        let (start, bytes) = window.ok_or("`isspacep` of that state space is not supported")?;
        modifiers.finish()?;
        let [result, address] = form.exactly()?;
        let result = self.names.written(result, 1)?;
        let address = self.names.read(address, Type::U64)?;
        let (start, bytes) = (self.constant(start)?, self.constant(bytes)?);
        let inside = self.names.fresh()?;
        self.push_alu(
            Operation::Integer(IntegerOp::Sub, Integer::U64),
            &[inside],
            &[address, start],
        );
        let compare = Compare {
            comparison: Comparison::Less,
            ty: Type::U64,
            ftz: false,
            connective: None,
            truth: Truth::Predicate,
        };
        self.push_alu(Operation::Compare(compare), &[result], &[inside, bytes]);
        Ok(())
    }

    fn cvt(&mut self, form: Form, modifiers: &mut Modifiers) -> Result<()> {
        let integral = modifiers.find(|name| match name {
            "rni" => Some(Rounding::Nearest),
            "rzi" => Some(Rounding::Zero),
            "rmi" => Some(Rounding::Down),
            "rpi" => Some(Rounding::Up),
            _ => None,
        });
        let rounding = modifiers.rounding();
        let (ftz, saturate) = (modifiers.take("ftz"), modifiers.take("sat"));
        let (relu, finite) = (modifiers.take("relu"), modifiers.take("satfinite"));
        let tf32 = modifiers.take("tf32");
        let to_type = if tf32 { Type::B32 } else { modifiers.ty()? };
        let from_type = modifiers.ty()?;
        modifiers.finish()?;
        let to = if tf32 { Number::Float(TF32) } else { number(to_type)? };
        let from = number(from_type)?;
        let is_integer = |number| matches!(number, Number::Integer { .. });
        if matches!(from, Number::Pair(_)) {
            return Err(format!("`cvt` has no type {from_type:?}"));
        }
        // What PTX asks to be said must be said, so that nothing is rounded by a guess.
        let loses = match (from, to) {
            (Number::Integer { .. }, Number::Integer { .. }) => false,
            (Number::Integer { .. }, _) => true,
            (Number::Float(a), Number::Float(b) | Number::Pair(b)) => {
                b.fraction < a.fraction || b.exponent < a.exponent
            }
            _ => false,
        };
        let rounding = match (rounding, integral) {
            (Some(_), Some(_)) => return Err("two roundings".to_owned()),
            (Some(_), None) if !loses && is_integer(to) => {
                return Err("an integral rounding is needed".to_owned());
            }
            (Some(mode), None) => RoundTo::Target(mode),
            (None, Some(_)) if is_integer(from) => {
                return Err("integers need no rounding".to_owned());
            }
            (None, Some(mode)) => RoundTo::Integral(mode),
            (None, None) if loses || is_integer(to) && !is_integer(from) => {
                return Err("a rounding is missing".to_owned());
            }
            (None, None) => RoundTo::Target(Rounding::Nearest),
        };
        let away = matches!(rounding, RoundTo::Target(Rounding::NearestAway));
        let resized = matches!((from, to), (Number::Float(a), Number::Float(b)) if a != b);
        if away && !tf32 || resized && matches!(rounding, RoundTo::Integral(_)) {
            return Err("that rounding does not belong here".to_owned());
        }
        if (relu || finite) && is_integer(to) {
            return Err("`.relu` and `.satfinite` are for floating-point results".to_owned());
        }
        let convert = Convert { from, to, rounding, ftz, saturate, relu, finite };
        if let Number::Pair(_) = to {
            let [result, high, low] = form.exactly()?;
            let result = self.names.written(result, 32)?;
            let (high, low) = (self.names.read(high, from_type)?, self.names.read(low, from_type)?);
            self.push_alu(Operation::Convert(convert), &[result], &[high, low]);
            return Ok(());
        }
        let [result, value] = form.exactly()?;
        let (result, declared) = self.names.written_any(result)?;
        if width(declared) < width(to_type) {
            return Err(format!("{to_type:?} does not fit a register of {} bits", width(declared)));
        }
        let value = self.names.read_low(value, from_type)?;
        self.push_alu(Operation::Convert(convert), &[result], &[value]);
        if let Number::Integer { bits, signed: true } = to
            && width(declared) > u32::from(bits)
        {
            let to = Number::Integer { bits: width(declared) as u8, signed: true };
            let from = Number::Integer { bits, signed: true };
            let extend = Convert { from, to, rounding, saturate: false, ..convert };
            self.push_alu(Operation::Convert(extend), &[result], &[result]);
        }
        Ok(())
    }
}

fn number(ty: Type) -> Result<Number> {
    let integer = |bits, signed| Number::Integer { bits, signed };
    Ok(match ty {
        Type::U8 => integer(8, false),
        Type::S8 => integer(8, true),
        Type::U16 => integer(16, false),
        Type::S16 => integer(16, true),
        Type::U32 => integer(32, false),
        Type::S32 => integer(32, true),
        Type::U64 => integer(64, false),
        Type::S64 => integer(64, true),
        Type::F16 => Number::Float(F16),
        Type::Bf16 => Number::Float(BF16),
        Type::F32 => Number::Float(F32),
        Type::F64 => Number::Float(F64),
        Type::F16x2 => Number::Pair(F16),
        Type::Bf16x2 => Number::Pair(BF16),
        _ => return Err(format!("`cvt` has no type {ty:?}")),
    })
}
