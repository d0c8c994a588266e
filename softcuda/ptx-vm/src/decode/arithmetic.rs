//! Integer arithmetic and logic.

use super::float::float_type;
use super::modifiers::integer;
use super::{Decoder, Form, Modifiers, Result};
use crate::alu::{Carrying, Half, Integer, IntegerOp, Operation, Permutation};
use crate::instr::{Reg, Type};
use crate::syntax::{Literal, Operand, width};

impl Decoder {
    /// Gives false for an instruction that is not of this kind.
    pub(super) fn arithmetic(&mut self, form: Form, modifiers: &mut Modifiers) -> Result<bool> {
        match form.opcode {
            "addc" | "subc" | "madc" => self.carrying(form, modifiers)?,
            "add" | "sub" | "mad" if modifiers.take("cc") => self.carrying_out(form, modifiers)?,
            "add" | "sub" | "mul" | "mad" | "div" | "neg" | "abs" | "min" | "max" => {
                match float_type(modifiers) {
                    Some(ty) => self.float(form, modifiers, ty)?,
                    None => self.integer(form, modifiers)?,
                }
            }
            "fma" | "rcp" | "sqrt" | "rsqrt" | "ex2" | "lg2" | "sin" | "cos" | "tanh"
            | "copysign" => {
                let ty = float_type(modifiers)
                    .ok_or_else(|| format!("`{}` needs a type", form.opcode))?;
                self.float(form, modifiers, ty)?;
            }
            "rem" | "sad" | "and" | "or" | "xor" | "not" | "cnot" | "shl" | "shr" | "popc"
            | "clz" | "brev" | "bfind" | "bfe" | "bfi" => self.integer(form, modifiers)?,
            "prmt" | "lop3" | "shf" | "dp4a" => self.bits(form, modifiers)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn integer(&mut self, form: Form, modifiers: &mut Modifiers) -> Result<()> {
        use IntegerOp as O;
        let half = modifiers.find(|name| match name {
            "lo" => Some([O::MulLow, O::MadLow]),
            "hi" => Some([O::MulHigh, O::MadHigh]),
            "wide" => Some([O::MulWide, O::MadWide]),
            _ => None,
        });
        let ty = modifiers.ty()?;
        if ty == Type::Pred {
            modifiers.finish()?;
            return self.predicates(form);
        }
        let saturate = ty == Type::S32 && modifiers.take("sat");
        let op = match (form.opcode, half) {
            ("mul", Some([op, _])) | ("mad", Some([_, op])) => op,
            ("mul" | "mad", None) => {
                return Err(format!("`{}` needs `.lo`, `.hi` or `.wide`", form.opcode));
            }
            ("add", None) => O::Add,
            ("sub", None) => O::Sub,
            ("div", None) => O::Div,
            ("rem", None) => O::Rem,
            ("neg", None) => O::Neg,
            ("abs", None) => O::Abs,
            ("min", None) => O::Min,
            ("max", None) => O::Max,
            ("sad", None) => O::Sad,
            ("and", None) => O::And,
            ("or", None) => O::Or,
            ("xor", None) => O::Xor,
            ("not", None) => O::Not,
            ("cnot", None) => O::IsZero,
            ("shl", None) => O::Shl,
            ("shr", None) => O::Shr,
            ("popc", None) => O::Popc,
            ("clz", None) => O::Clz,
            ("brev", None) => O::Brev,
            ("bfind", None) if modifiers.take("shiftamt") => O::BfindShift,
            ("bfind", None) => O::Bfind,
            ("bfe", None) => O::Bfe,
            ("bfi", None) => O::Bfi,
            (opcode, _) => return Err(format!("`{opcode}` has no half")),
        };
        let op = match (op, saturate) {
            (op, false) => op,
            (O::Add, true) => O::AddSaturating,
            (O::Sub, true) => O::SubSaturating,
            (O::MadHigh, true) => O::MadHighSaturating,
            _ => return Err(format!("`{}` does not saturate", form.opcode)),
        };
        modifiers.finish()?;
        let of = integer(form.opcode, ty)?;
        check_type(form.opcode, op, ty, of)?;
        let wide = match of {
            Integer::U16 | Integer::S16 => Type::B32,
            _ => Type::B64,
        };
        let result = match op {
            O::MulWide | O::MadWide => wide,
            O::Popc | O::Clz | O::Bfind | O::BfindShift => Type::B32,
            _ => ty,
        };
        let operands: &[Type] = match op {
            O::Neg
            | O::Abs
            | O::Not
            | O::IsZero
            | O::Popc
            | O::Clz
            | O::Brev
            | O::Bfind
            | O::BfindShift => &[ty],
            O::MadLow | O::MadHigh | O::MadHighSaturating | O::Sad => &[ty, ty, ty],
            O::MadWide => &[ty, ty, wide],
            O::Shl | O::Shr => &[ty, Type::U32],
            O::Bfe => &[ty, Type::U32, Type::U32],
            O::Bfi => &[ty, ty, Type::U32, Type::U32],
            _ => &[ty, ty],
        };
        self.operation(form, Operation::Integer(op, of), result, operands)
    }

    fn predicates(&mut self, form: Form) -> Result<()> {
        let pred = Type::Pred;
        let op = match form.opcode {
            "and" => IntegerOp::And,
            "or" => IntegerOp::Or,
            "xor" => IntegerOp::Xor,
            "not" => return self.operation(form, Operation::NotPredicate, pred, &[pred]),
            opcode => return Err(format!("`{opcode}` has no type Pred")),
        };
        self.operation(form, Operation::Integer(op, Integer::U16), pred, &[pred, pred])
    }

    /// The usual form: one result, then the operands.
    pub(super) fn operation(
        &mut self,
        form: Form,
        operation: Operation,
        result: Type,
        operands: &[Type],
    ) -> Result<()> {
        let Some((to, from)) =
            form.operands.split_first().filter(|(_, from)| from.len() == operands.len())
        else {
            let (needs, has) = (operands.len() + 1, form.operands.len());
            return Err(format!("`{}` has {needs} operands, not {has}", form.opcode));
        };
        let mut regs: Vec<Reg> = Vec::new();
        for (operand, ty) in from.iter().zip(operands) {
            regs.push(self.names.read(operand, *ty)?);
        }
        let to = self.names.written(to, width(result))?;
        self.push_alu(operation, &[to], &regs);
        Ok(())
    }

    fn carrying_out(&mut self, form: Form, modifiers: &mut Modifiers) -> Result<()> {
        self.carry(form, modifiers, false, true)
    }

    fn carrying(&mut self, form: Form, modifiers: &mut Modifiers) -> Result<()> {
        let out = modifiers.take("cc");
        self.carry(form, modifiers, true, out)
    }

    fn carry(
        &mut self,
        form: Form,
        modifiers: &mut Modifiers,
        carry_in: bool,
        carry_out: bool,
    ) -> Result<()> {
        let product = if form.opcode.starts_with("mad") {
            let half = modifiers.find(|name| match name {
                "lo" => Some(Half::Low),
                "hi" => Some(Half::High),
                _ => None,
            });
            Some(half.ok_or_else(|| format!("`{}` needs `.lo` or `.hi`", form.opcode))?)
        } else {
            None
        };
        let ty = modifiers.ty()?;
        modifiers.finish()?;
        let of = integer(form.opcode, ty)?;
        if of.bits() == 16 {
            return Err(format!("`{}` has no type {ty:?}", form.opcode));
        }
        let count = if product.is_some() { 3 } else { 2 };
        let Some((to, operands)) =
            form.operands.split_first().filter(|(_, from)| from.len() == count)
        else {
            let has = form.operands.len();
            return Err(format!("`{}` has {} operands, not {has}", form.opcode, count + 1));
        };
        let mut from = Vec::new();
        for operand in operands {
            from.push(self.names.read(operand, ty)?);
        }
        // The condition code is a register like the others.
        let flag = self.names.carry()?;
        from.push(flag);
        let to = [self.names.written(to, width(ty))?, flag];
        let subtract = form.opcode.starts_with("sub");
        let op = Carrying { ty: of, product, subtract, carry_in, carry_out };
        self.push_alu(Operation::Carry(op), &to, &from);
        Ok(())
    }

    fn bits(&mut self, form: Form, modifiers: &mut Modifiers) -> Result<()> {
        let word = Type::B32;
        match form.opcode {
            "lop3" => {
                modifiers.take("b32");
                modifiers.finish()?;
                let [result, a, b, c, table] = form.exactly()?;
                let Operand::Number(Literal::Integer(table @ 0..256)) = table else {
                    return Err("the table of `lop3` must be a number".to_owned());
                };
                let operands = [result.clone(), a.clone(), b.clone(), c.clone()];
                let form = Form { operands: &operands, ..form };
                self.operation(form, Operation::Logic3(*table as u8), word, &[word; 3])
            }
            "prmt" => {
                modifiers.take("b32");
                let mode = modifiers.find(|name| {
                    Some(match name {
                        "f4e" => Permutation::Forward,
                        "b4e" => Permutation::Backward,
                        "rc8" => Permutation::Replicate8,
                        "ecl" => Permutation::ClampLeft,
                        "ecr" => Permutation::ClampRight,
                        "rc16" => Permutation::Replicate16,
                        _ => return None,
                    })
                });
                modifiers.finish()?;
                let mode = mode.unwrap_or(Permutation::Any);
                self.operation(form, Operation::Permute(mode), word, &[word; 3])
            }
            "shf" => {
                modifiers.take("b32");
                let (left, right) = (modifiers.take("l"), modifiers.take("r"));
                let (wrap, clamp) = (modifiers.take("wrap"), modifiers.take("clamp"));
                modifiers.finish()?;
                if left == right || wrap == clamp {
                    return Err("`shf` needs `.l` or `.r`, and `.wrap` or `.clamp`".to_owned());
                }
                self.operation(form, Operation::Funnel { left, wrap }, word, &[word; 3])
            }
            _ => {
                let (a, b) = (modifiers.ty()?, modifiers.ty()?);
                modifiers.finish()?;
                let signed = |ty| match ty {
                    Type::U32 => Ok(false),
                    Type::S32 => Ok(true),
                    _ => Err(format!("`dp4a` has no type {ty:?}")),
                };
                let operation = Operation::Dot4 { a_signed: signed(a)?, b_signed: signed(b)? };
                self.operation(form, operation, word, &[word; 3])
            }
        }
    }
}

/// Refuses the types that PTX does not have for the operation.
fn check_type(opcode: &str, op: IntegerOp, ty: Type, of: Integer) -> Result<()> {
    use IntegerOp as O;
    let bits = matches!(ty, Type::B16 | Type::B32 | Type::B64);
    let fits = match op {
        O::And | O::Or | O::Xor | O::Not | O::IsZero | O::Shl => bits,
        O::Shr => true,
        O::Popc | O::Clz | O::Brev | O::Bfi => bits && of.bits() > 16,
        O::Bfind | O::BfindShift | O::Bfe => !bits && of.bits() > 16,
        O::MulWide | O::MadWide => !bits && of.bits() < 64,
        O::Neg | O::Abs => of.signed(),
        _ => !bits,
    };
    if fits { Ok(()) } else { Err(format!("`{opcode}` has no type {ty:?}")) }
}
