//! Comparisons and selections.

use super::modifiers::integer;
use super::{Decoder, Form, Modifiers, Result};
use crate::alu::{Compare, Comparison, Connective, Float, Operation, Property, Truth};
use crate::instr::Type;
use crate::syntax::{Operand, width};

impl Decoder {
    /// Gives false for an instruction that is not of this kind.
    pub(super) fn comparisons(&mut self, form: Form, modifiers: &mut Modifiers) -> Result<bool> {
        match form.opcode {
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
