//! Moves, conversions, comparisons and selections.

use super::modifiers::integer;
use super::{Decoder, Form, Modifiers, Result};
use crate::alu::{
    Compare, Comparison, Connective, Convert, Float, Integer, IntegerOp, Number, Operation,
    Property, RoundTo, Truth,
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
            "setp" => self.setp(form, modifiers)?,
            "set" => self.set(form, modifiers)?,
            "selp" => {
                let ty = modifiers.ty()?;
                modifiers.finish()?;
                let [result, a, b, c] = form.exactly()?;
                let result = self.names.written(result, width(ty))?;
                let (a, b) = (self.names.read(a, ty)?, self.names.read(b, ty)?);
                let c = self.names.read(c, Type::Pred)?;
                self.push_alu(Operation::Select, &[result], &[a, b, c]);
            }
            "slct" => self.slct(form, modifiers)?,
            "testp" => self.testp(form, modifiers)?,
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
            "global" => Some(0),
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
        if matches!(rounding, RoundTo::Target(Rounding::NearestAway)) != tf32 && tf32 != loses {
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

    fn setp(&mut self, form: Form, modifiers: &mut Modifiers) -> Result<()> {
        let (name, connective, ftz) = comparison(modifiers)?;
        let ty = modifiers.ty()?;
        modifiers.finish()?;
        if matches!(ty, Type::F16x2 | Type::Bf16x2) {
            return Err(format!("`setp` of {ty:?} is not supported"));
        }
        let (comparison, ty) = typed(&name, ty)?;
        let (result, rest) = form.operands.split_first().ok_or("operands are missing")?;
        let (truth, to) = match result {
            Operand::Both(p, q) => {
                let mut written =
                    |name: &String| self.names.written(&Operand::Name(name.clone(), 0), 1);
                (Truth::Predicates, vec![written(p)?, written(q)?])
            }
            p => (Truth::Predicate, vec![self.names.written(p, 1)?]),
        };
        self.compare(
            Compare { comparison, ty, ftz, connective: None, truth },
            connective,
            &to,
            rest,
        )
    }

    fn set(&mut self, form: Form, modifiers: &mut Modifiers) -> Result<()> {
        let (name, connective, ftz) = comparison(modifiers)?;
        let (result_type, ty) = (modifiers.ty()?, modifiers.ty()?);
        modifiers.finish()?;
        let (comparison, ty) = typed(&name, ty)?;
        let halves = matches!(ty, Type::F16x2 | Type::Bf16x2);
        let truth = match result_type {
            Type::U32 | Type::S32 if halves => 0xffff,
            Type::U32 | Type::S32 => 0xffff_ffff,
            Type::F32 if !halves => 0x3f80_0000,
            Type::F16x2 if halves => 0x3c00,
            Type::Bf16x2 if halves => 0x3f80,
            Type::F16 if !halves => 0x3c00,
            Type::Bf16 if !halves => 0x3f80,
            Type::U16 | Type::S16 if !halves => 0xffff,
            _ => return Err(format!("`set` has no result {result_type:?} of {ty:?}")),
        };
        let (result, rest) = form.operands.split_first().ok_or("operands are missing")?;
        let to = self.names.written(result, width(result_type))?;
        let truth = Truth::Value(truth);
        self.compare(
            Compare { comparison, ty, ftz, connective: None, truth },
            connective,
            &[to],
            rest,
        )
    }

    fn compare(
        &mut self,
        mut compare: Compare,
        connective: Option<Connective>,
        to: &[u16],
        operands: &[Operand],
    ) -> Result<()> {
        let (a, b, c) = match (operands, connective) {
            ([a, b], None) => (a, b, None),
            ([a, b, c], Some(connective)) => (a, b, Some((connective, c))),
            _ => return Err(format!("a comparison with {} operands", operands.len())),
        };
        let mut from = vec![self.names.read(a, compare.ty)?, self.names.read(b, compare.ty)?];
        if let Some((connective, c)) = c {
            let (c, negated) = self.names.predicate(c)?;
            compare.connective = Some((connective, negated));
            from.push(c);
        }
        self.push_alu(Operation::Compare(compare), to, &from);
        Ok(())
    }

    fn slct(&mut self, form: Form, modifiers: &mut Modifiers) -> Result<()> {
        let ftz = modifiers.take("ftz");
        let (ty, by) = (modifiers.ty()?, modifiers.ty()?);
        modifiers.finish()?;
        let operation = match by {
            Type::S32 if !ftz => Operation::SelectSigned,
            Type::F32 => Operation::SelectFloat { ftz },
            _ => return Err(format!("`slct` cannot go by {by:?}")),
        };
        let [result, a, b, c] = form.exactly()?;
        let result = self.names.written(result, width(ty))?;
        let (a, b) = (self.names.read(a, ty)?, self.names.read(b, ty)?);
        let c = self.names.read(c, by)?;
        self.push_alu(operation, &[result], &[a, b, c]);
        Ok(())
    }

    fn testp(&mut self, form: Form, modifiers: &mut Modifiers) -> Result<()> {
        let property = modifiers.find(|name| {
            Some(match name {
                "finite" => Property::Finite,
                "infinite" => Property::Infinite,
                "number" => Property::Number,
                "notanumber" => Property::NotANumber,
                "normal" => Property::Normal,
                "subnormal" => Property::Subnormal,
                _ => return None,
            })
        });
        let property = property.ok_or("`testp` needs a property")?;
        let ty = modifiers.ty()?;
        modifiers.finish()?;
        let float = match ty {
            Type::F32 => Float::F32,
            Type::F64 => Float::F64,
            _ => return Err(format!("`testp` has no type {ty:?}")),
        };
        let [result, value] = form.exactly()?;
        let result = self.names.written(result, 1)?;
        let value = self.names.read(value, ty)?;
        self.push_alu(Operation::Test(property, float), &[result], &[value]);
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

/// The name of the comparison, what joins it with a predicate, and `.ftz`.
fn comparison(modifiers: &mut Modifiers) -> Result<(String, Option<Connective>, bool)> {
    const NAMES: [&str; 18] = [
        "eq", "ne", "lt", "le", "gt", "ge", "lo", "ls", "hi", "hs", "equ", "neu", "ltu", "leu",
        "gtu", "geu", "num", "nan",
    ];
    let name = modifiers.find(|name| NAMES.contains(&name).then(|| name.to_owned()));
    let name = name.ok_or("unknown comparison")?;
    let connective = modifiers.find(|name| match name {
        "and" => Some(Connective::And),
        "or" => Some(Connective::Or),
        "xor" => Some(Connective::Xor),
        _ => None,
    });
    Ok((name, connective, modifiers.take("ftz")))
}

/// The comparison of that name for the type; the integer type that it goes by.
fn typed(name: &str, ty: Type) -> Result<(Comparison, Type)> {
    let is_float =
        matches!(ty, Type::F16 | Type::Bf16 | Type::F16x2 | Type::Bf16x2 | Type::F32 | Type::F64);
    let comparison = match name {
        "eq" => Comparison::Equal,
        "ne" if is_float => Comparison::NotEqual,
        "ne" => Comparison::NotEqualOrUnordered,
        "lt" => Comparison::Less,
        "le" => Comparison::LessOrEqual,
        "gt" => Comparison::Greater,
        "ge" => Comparison::GreaterOrEqual,
        "lo" if !is_float => Comparison::Less,
        "ls" if !is_float => Comparison::LessOrEqual,
        "hi" if !is_float => Comparison::Greater,
        "hs" if !is_float => Comparison::GreaterOrEqual,
        "equ" if is_float => Comparison::EqualOrUnordered,
        "neu" if is_float => Comparison::NotEqualOrUnordered,
        "ltu" if is_float => Comparison::LessOrUnordered,
        "leu" if is_float => Comparison::LessOrEqualOrUnordered,
        "gtu" if is_float => Comparison::GreaterOrUnordered,
        "geu" if is_float => Comparison::GreaterOrEqualOrUnordered,
        "num" if is_float => Comparison::Ordered,
        "nan" if is_float => Comparison::Unordered,
        _ => return Err(format!("comparison `.{name}` is not for {ty:?}")),
    };
    if !is_float {
        let ty_is_bits = matches!(ty, Type::B16 | Type::B32 | Type::B64);
        if ty_is_bits && !matches!(name, "eq" | "ne") {
            return Err(format!("comparison `.{name}` is not for {ty:?}"));
        }
        integer("set", ty)?;
    }
    Ok((comparison, ty))
}
