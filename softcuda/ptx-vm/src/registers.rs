//! The registers of one warp.

use crate::instr::{Fill, Kernel, Reg};

/// A register of all 32 lanes.
pub type Row = [u64; 32];

/// The register file of one warp: a [`Row`] for every register of the kernel.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Registers {
    rows: Vec<Row>,
    seed: u64,
}

impl Registers {
    /// `count` registers, all zero.
    pub fn new(count: usize) -> Registers {
        Registers { rows: vec![[0; 32]; count], seed: 0 }
    }

    /// The registers of a warp of this kernel before its first instruction, its constants in place.
    ///
    /// [`Fill::Special`] depends on the warp and is left to whoever starts it.
    pub fn of(kernel: &Kernel) -> Registers {
        let mut registers = Registers::new(kernel.registers);
        for &(reg, fill) in &kernel.fills {
            if let Fill::Constant(bits) = fill {
                *registers.row_mut(reg) = [bits; 32];
            }
        }
        registers
    }

    /// Makes them what `first` are, of a warp that was of the same kernel, where that can matter: in `kept`.
    pub(crate) fn restart(&mut self, first: &Registers, kept: &[Reg]) {
        self.seed = first.seed;
        kept.iter().for_each(|reg| *self.row_mut(*reg) = *first.row(*reg));
    }

    /// The lanes of a register.
    #[inline(always)]
    pub fn row(&self, reg: Reg) -> &Row {
        &self.rows[reg as usize]
    }

    /// The lanes of a register, to be written.
    #[inline(always)]
    pub fn row_mut(&mut self, reg: Reg) -> &mut Row {
        &mut self.rows[reg as usize]
    }

    /// Writes the lanes of `mask` and leaves the others.
    #[inline(always)]
    pub fn merge(&mut self, reg: Reg, mask: u32, values: &Row) {
        let row = self.row_mut(reg);
        if mask == u32::MAX {
            *row = *values;
        } else {
            for lane in 0..32 {
                let taken = 0u64.wrapping_sub(u64::from(mask >> lane & 1));
                row[lane] = row[lane] & !taken | values[lane] & taken;
            }
        }
    }

    /// How many registers there are.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The seed that moves `.approx` results about within their documented bound.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Sets [`Registers::seed`]; 0, as at the start, stands for the nearest value there is.
    pub fn set_seed(&mut self, seed: u64) {
        self.seed = seed;
    }
}
