//! Floating-point arithmetic.

use super::{Decoder, Form, Modifiers, Result};
use crate::alu::{Approximate, Arithmetic, Float, FloatOp, Operation};
use crate::instr::Type;
use crate::numerics::Rounding;

impl Decoder {
    /// An instruction of that floating-point type.
    pub(super) fn float(&mut self, form: Form, modifiers: &mut Modifiers, ty: Type) -> Result<()> {
        let opcode = form.opcode;
        let refused = |what: &str| Err(format!("`{opcode}` of {ty:?} {what}"));
        let of = match ty {
            Type::F16 => Float::F16,
            Type::Bf16 => Float::Bf16,
            Type::F16x2 => Float::F16x2,
            Type::Bf16x2 => Float::Bf16x2,
            Type::F32 => Float::F32,
            _ => Float::F64,
        };
        let half = !matches!(of, Float::F32 | Float::F64);
        let ftz = modifiers.take("ftz");
        if modifiers.take("approx") {
            return self.approximate(form, modifiers, of, ftz);
        }
        if opcode == "div" && modifiers.take("full") {
            modifiers.finish()?;
            if of != Float::F32 {
                return refused("is not there");
            }
            return self.operation(
                form,
                Operation::Approximate(Approximate::DivFull, ftz),
                ty,
                &[ty, ty],
            );
        }
        let (op, count) = match opcode {
            "add" => (FloatOp::Add, 2),
            "sub" => (FloatOp::Sub, 2),
            "mul" => (FloatOp::Mul, 2),
            "fma" | "mad" => (FloatOp::Fma, 3),
            "div" => (FloatOp::Div, 2),
            "rcp" => (FloatOp::Rcp, 1),
            "sqrt" => (FloatOp::Sqrt, 1),
            "neg" => (FloatOp::Neg, 1),
            "abs" => (FloatOp::Abs, 1),
            "min" => (FloatOp::Min, 2),
            "max" => (FloatOp::Max, 2),
            "copysign" => (FloatOp::Copysign, 2),
            _ => return refused("is only `.approx`"),
        };
        let rounding = modifiers.rounding();
        let rounds = op_rounds(op);
        let must = matches!(op, FloatOp::Fma | FloatOp::Div | FloatOp::Rcp | FloatOp::Sqrt);
        match rounding {
            None if must => return refused("needs a rounding"),
            Some(_) if !rounds => return refused("does not round"),
            Some(Rounding::NearestAway) => return refused("does not round so"),
            Some(Rounding::Zero | Rounding::Down | Rounding::Up) if half => {
                return refused("rounds to nearest only");
            }
            _ => {}
        }
        let not_half =
            matches!(op, FloatOp::Div | FloatOp::Rcp | FloatOp::Sqrt | FloatOp::Copysign);
        if half && (not_half || opcode == "mad") {
            return refused("is not there");
        }
        let extreme = matches!(op, FloatOp::Min | FloatOp::Max);
        let saturates = matches!(op, FloatOp::Add | FloatOp::Sub | FloatOp::Mul | FloatOp::Fma);
        let single = of == Float::F32 || matches!(of, Float::F16 | Float::F16x2);
        let arithmetic = Arithmetic {
            op,
            rounding: rounding.unwrap_or(Rounding::Nearest),
            ftz,
            saturate: saturates && single && modifiers.take("sat"),
            relu: half && op == FloatOp::Fma && modifiers.take("relu"),
            nan: extreme && of != Float::F64 && modifiers.take("NaN"),
            xorsign: extreme && of != Float::F64 && modifiers.take("xorsign"),
        };
        if arithmetic.xorsign && !modifiers.take("abs") {
            return refused("has `.xorsign` only with `.abs`");
        }
        if ftz && (!single || op == FloatOp::Copysign) {
            return refused("has no `.ftz`");
        }
        modifiers.finish()?;
        self.operation(form, Operation::Float(arithmetic, of), ty, &[ty; 3][..count])
    }

    fn approximate(
        &mut self,
        form: Form,
        modifiers: &mut Modifiers,
        of: Float,
        ftz: bool,
    ) -> Result<()> {
        use Approximate as A;
        modifiers.finish()?;
        let op = match (form.opcode, of) {
            ("div", Float::F32) => A::Div,
            ("rcp", Float::F32) => A::Rcp,
            ("rcp", Float::F64) if ftz => A::RcpF64,
            ("sqrt", Float::F32) => A::Sqrt,
            ("rsqrt", Float::F32) => A::Rsqrt,
            ("rsqrt", Float::F64) if ftz => A::RsqrtFlushF64,
            ("rsqrt", Float::F64) => A::RsqrtF64,
            ("ex2", Float::F32) => A::Exp2,
            ("ex2", Float::F16) if !ftz => A::Exp2F16 { packed: false },
            ("ex2", Float::F16x2) if !ftz => A::Exp2F16 { packed: true },
            ("ex2", Float::Bf16) if ftz => A::Exp2Bf16 { packed: false },
            ("ex2", Float::Bf16x2) if ftz => A::Exp2Bf16 { packed: true },
            ("lg2", Float::F32) => A::Log2,
            ("sin", Float::F32) => A::Sin,
            ("cos", Float::F32) => A::Cos,
            ("tanh", Float::F32) if !ftz => A::Tanh,
            ("tanh", Float::F16) if !ftz => A::TanhF16 { packed: false },
            ("tanh", Float::F16x2) if !ftz => A::TanhF16 { packed: true },
            ("tanh", Float::Bf16) if !ftz => A::TanhBf16 { packed: false },
            ("tanh", Float::Bf16x2) if !ftz => A::TanhBf16 { packed: true },
            (opcode, of) => return Err(format!("`{opcode}.approx` of {of:?} is not there")),
        };
        let ty = match of {
            Float::F16 => Type::F16,
            Float::Bf16 => Type::Bf16,
            Float::F16x2 => Type::F16x2,
            Float::Bf16x2 => Type::Bf16x2,
            Float::F32 => Type::F32,
            Float::F64 => Type::F64,
        };
        let count = if op == A::Div { 2 } else { 1 };
        self.operation(form, Operation::Approximate(op, ftz), ty, &[ty; 2][..count])
    }
}

fn op_rounds(op: FloatOp) -> bool {
    !matches!(op, FloatOp::Neg | FloatOp::Abs | FloatOp::Min | FloatOp::Max | FloatOp::Copysign)
}

/// The floating-point type among the modifiers.
pub(super) fn float_type(modifiers: &mut Modifiers) -> Option<Type> {
    modifiers.find(|name| {
        Some(match name {
            "f16" => Type::F16,
            "bf16" => Type::Bf16,
            "f16x2" => Type::F16x2,
            "bf16x2" => Type::Bf16x2,
            "f32" => Type::F32,
            "f64" => Type::F64,
            _ => return None,
        })
    })
}
