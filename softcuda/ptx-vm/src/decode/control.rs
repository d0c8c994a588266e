//! Branches, barriers and what the lanes of a warp do together.

use super::{Decoder, Form, Modifiers, Result};
use crate::instr::{BarrierMode, Op, Order, Scope, ShuffleMode, Type, VoteMode};
use crate::syntax::Operand;

impl Decoder {
    /// Gives false for an instruction that is not of this kind.
    pub(super) fn control(&mut self, form: Form, modifiers: &mut Modifiers) -> Result<bool> {
        match form.opcode {
            "bra" => {
                let uniform = modifiers.take("uni");
                modifiers.finish()?;
                let [Operand::Name(label, 0)] = form.exactly()? else {
                    return Err("`bra` needs a label".to_owned());
                };
                self.jumps.push((self.code.len(), self.names.scope(), label.clone()));
                self.push(Op::Branch { target: 0, uniform });
            }
            "call" => self.call(form, modifiers)?,
            "ret" if !self.calls.stack.is_empty() => {
                modifiers.take("uni");
                modifiers.finish()?;
                let [] = form.exactly()?;
                self.leave();
            }
            "ret" | "exit" | "trap" => {
                modifiers.take("uni");
                modifiers.finish()?;
                let [] = form.exactly()?;
                self.push(if form.opcode == "trap" { Op::Trap } else { Op::Exit });
            }
            "bar" | "barrier" => self.barrier(form, modifiers)?,
            "shfl" => self.shuffle(form, modifiers)?,
            "vote" => self.vote(form, modifiers)?,
            "activemask" => {
                modifiers.take("b32");
                modifiers.finish()?;
                let [result] = form.exactly()?;
                let result = self.names.written(result, 32)?;
                self.push(Op::ActiveMask { result });
            }
            "fence" | "membar" => self.fence(form, modifiers)?,
            "nanosleep" => {
                modifiers.take("u32");
                modifiers.finish()?;
                let [time] = form.exactly()?;
                let time = self.names.read(time, Type::U32)?;
                self.push(Op::Sleep { time });
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn barrier(&mut self, form: Form, modifiers: &mut Modifiers) -> Result<()> {
        if modifiers.take("warp") {
            if !modifiers.take("sync") {
                return Err("`bar.warp` needs `.sync`".to_owned());
            }
            modifiers.finish()?;
            let [members] = form.exactly()?;
            let members = self.names.read(members, Type::B32)?;
            self.push(Op::WarpBarrier { members });
            return Ok(());
        }
        modifiers.take("cta");
        let aligned = modifiers.take("aligned") || form.opcode == "bar";
        let mode = modifiers.find(|name| match name {
            "sync" => Some(BarrierMode::Sync),
            "arrive" => Some(BarrierMode::Arrive),
            "popc" => Some(BarrierMode::Count),
            "and" => Some(BarrierMode::And),
            "or" => Some(BarrierMode::Or),
            _ => None,
        });
        let mode = mode.ok_or_else(|| format!("`{}` needs a kind", form.opcode))?;
        let reduces = !matches!(mode, BarrierMode::Sync | BarrierMode::Arrive);
        if reduces != modifiers.take("red") {
            return Err("only `.red` has a result, and it must say which".to_owned());
        }
        let mut operands = form.operands;
        let (mut result, mut value) = (None, None);
        if reduces {
            let bits = if mode == BarrierMode::Count { 32 } else { 1 };
            modifiers.take(if bits == 32 { "u32" } else { "pred" });
            let [first, middle @ .., last] = operands else {
                return Err("operands are missing".to_owned());
            };
            result = Some(self.names.written(first, bits)?);
            value = Some(self.names.predicate(last)?);
            operands = middle;
        }
        modifiers.finish()?;
        let (id, threads) = match operands {
            [id] if mode != BarrierMode::Arrive => (id, None),
            [id, threads] => (id, Some(self.names.read(threads, Type::U32)?)),
            _ => return Err(format!("`{}` with {} operands", form.opcode, form.operands.len())),
        };
        let id = self.names.read(id, Type::U32)?;
        self.push(Op::Barrier { mode, aligned, id, threads, result, value });
        Ok(())
    }

    fn shuffle(&mut self, form: Form, modifiers: &mut Modifiers) -> Result<()> {
        if !modifiers.take("sync") {
            return Err("`shfl` without `.sync` is no longer".to_owned());
        }
        modifiers.take("b32");
        let mode = modifiers.find(|name| match name {
            "up" => Some(ShuffleMode::Up),
            "down" => Some(ShuffleMode::Down),
            "bfly" => Some(ShuffleMode::Butterfly),
            "idx" => Some(ShuffleMode::Index),
            _ => None,
        });
        modifiers.finish()?;
        let mode = mode.ok_or("`shfl` needs a kind")?;
        let [result, value, lane, clamp, members] = form.exactly()?;
        let (result, found) = match result {
            Operand::Both(result, found) => {
                let found = self.names.written(&Operand::Name(found.clone(), 0), 1)?;
                (self.names.written(&Operand::Name(result.clone(), 0), 32)?, Some(found))
            }
            result => (self.names.written(result, 32)?, None),
        };
        let mut read = |operand| self.names.read(operand, Type::B32);
        let (value, lane, clamp, members) =
            (read(value)?, read(lane)?, read(clamp)?, read(members)?);
        self.push(Op::Shuffle { mode, result, found, value, lane, clamp, members });
        Ok(())
    }

    fn vote(&mut self, form: Form, modifiers: &mut Modifiers) -> Result<()> {
        if !modifiers.take("sync") {
            return Err("`vote` without `.sync` is no longer".to_owned());
        }
        let mode = modifiers.find(|name| match name {
            "all" => Some(VoteMode::All),
            "any" => Some(VoteMode::Any),
            "uni" => Some(VoteMode::Uniform),
            "ballot" => Some(VoteMode::Ballot),
            _ => None,
        });
        let mode = mode.ok_or("`vote` needs a kind")?;
        let (suffix, bits) = if mode == VoteMode::Ballot { ("b32", 32) } else { ("pred", 1) };
        modifiers.take(suffix);
        modifiers.finish()?;
        let [result, value, members] = form.exactly()?;
        let result = self.names.written(result, bits)?;
        let (value, negated) = self.names.predicate(value)?;
        let members = self.names.read(members, Type::B32)?;
        self.push(Op::Vote { mode, result, value, negated, members });
        Ok(())
    }

    fn fence(&mut self, form: Form, modifiers: &mut Modifiers) -> Result<()> {
        let [] = form.exactly()?;
        let order = if form.opcode == "membar" {
            let scope = modifiers.find(|name| match name {
                "cta" => Some(Scope::Block),
                "gl" => Some(Scope::Device),
                "sys" => Some(Scope::System),
                _ => None,
            });
            Order::SequentiallyConsistent(scope.ok_or("`membar` needs a scope")?)
        } else {
            let order = modifiers.find(|name| match name {
                "sc" => Some(Order::SequentiallyConsistent as fn(Scope) -> Order),
                "acq_rel" => Some(Order::AcquireRelease as fn(Scope) -> Order),
                "acquire" => Some(Order::Acquire as fn(Scope) -> Order),
                "release" => Some(Order::Release as fn(Scope) -> Order),
                _ => None,
            });
            let scope = modifiers.scope().ok_or("`fence` needs a scope")?;
            order.unwrap_or(Order::AcquireRelease)(scope)
        };
        modifiers.finish()?;
        self.push(Op::Fence { order });
        Ok(())
    }
}
