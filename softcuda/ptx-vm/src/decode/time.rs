//! Registers that tell the time.

use super::{Decoder, Result};
use crate::instr::{Op, Type};
use crate::syntax::{Operand, width};

/// The part of the time that a special register holds: bits that it is shifted down by, and the type.
fn clock(name: &str) -> Option<(u8, Type)> {
    Some(match name {
        "%clock" | "%globaltimer_lo" => (0, Type::U32),
        "%clock_hi" | "%globaltimer_hi" => (32, Type::U32),
        "%clock64" | "%globaltimer" => (0, Type::U64),
        _ => return None,
    })
}

impl Decoder {
    /// Reads the time for operands that name such a register, each time anew.
    pub(super) fn clocks(&mut self, operands: &[Operand]) -> Result<()> {
        for operand in operands {
            if let Operand::Name(name, 0) = operand
                && let Some((shift, ty)) = clock(name)
            {
                self.names.declare(ty, name, None);
                let (result, _) = self.names.register(name)?;
                self.push(Op::Clock { result, shift, bits: width(ty) as u8 });
            }
        }
        Ok(())
    }
}
