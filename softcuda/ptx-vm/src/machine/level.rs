//! The machine compiled twice: for any processor, and for one with wider vectors.

#[cfg(target_arch = "x86_64")]
use crate::alu::wide::Wide;
use crate::{
    alu::{self, Alu},
    instr::Op,
    machine::{Machine, Pause, block::Block, shared::Shared, trouble::Trouble, warp::Warp},
    registers::Registers,
};

/// What a step is done with. Which it is does not change what is done.
pub(super) trait Level: Copy {
    /// [`alu::execute`].
    fn execute(self, alu: &Alu, registers: &mut Registers, mask: u32);

    /// [`Machine::memory`].
    fn memory(
        self,
        machine: &mut Machine<'_>,
        at: (&mut Warp, &mut Shared),
        op: &Op,
        mask: u32,
    ) -> Result<(), Trouble>;
}

/// Any processor.
#[derive(Clone, Copy)]
struct Plain;

impl Level for Plain {
    #[inline(always)]
    fn execute(self, alu: &Alu, registers: &mut Registers, mask: u32) {
        alu::plain(alu, registers, mask);
    }

    #[inline(always)]
    fn memory(
        self,
        machine: &mut Machine<'_>,
        at: (&mut Warp, &mut Shared),
        op: &Op,
        mask: u32,
    ) -> Result<(), Trouble> {
        machine.memory(at, op, mask)
    }
}

/// Why a warp stopped, or the index of the instruction that is in trouble.
type Stepped = Result<Pause, (u32, Trouble)>;

impl Machine<'_> {
    /// Runs a warp for at most so many instructions.
    pub(super) fn step(&mut self, block: &mut Block, index: usize, turn: u32) -> Stepped {
        #[cfg(target_arch = "x86_64")]
        if let Some(wide) = Wide::find() {
            // SAFETY: the processor has the features that the function is compiled for, as there is a `Wide`.
            return unsafe { step_wide(wide, self, block, index, turn) };
        }
        self.step_by(Plain, block, index, turn)
    }
}

#[cfg(target_arch = "x86_64")]
impl Level for Wide {
    #[inline(always)]
    fn execute(self, alu: &Alu, registers: &mut Registers, mask: u32) {
        Wide::execute(self, alu, registers, mask);
    }

    #[inline(always)]
    fn memory(
        self,
        machine: &mut Machine<'_>,
        at: (&mut Warp, &mut Shared),
        op: &Op,
        mask: u32,
    ) -> Result<(), Trouble> {
        // SAFETY: as in `step`.
        unsafe { memory_wide(machine, at, op, mask) }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,bmi1,bmi2,lzcnt,popcnt")]
fn step_wide(
    wide: Wide,
    machine: &mut Machine<'_>,
    block: &mut Block,
    index: usize,
    turn: u32,
) -> Stepped {
    machine.step_by(wide, block, index, turn)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,bmi1,bmi2,lzcnt,popcnt")]
fn memory_wide(
    machine: &mut Machine<'_>,
    at: (&mut Warp, &mut Shared),
    op: &Op,
    mask: u32,
) -> Result<(), Trouble> {
    machine.memory(at, op, mask)
}
