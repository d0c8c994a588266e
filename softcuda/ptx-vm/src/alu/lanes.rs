//! The loop over the lanes of a row.

use crate::instr::Reg;
use crate::registers::{Registers, Row};

/// Applies `f` to each lane.
#[inline(always)]
pub(super) fn map<const N: usize>(
    registers: &mut Registers,
    mask: u32,
    to: Reg,
    from: &[Reg],
    f: impl Fn([u64; N]) -> u64,
) {
    let rows: [&Row; N] = std::array::from_fn(|i| registers.row(from[i]));
    let mut values = [0; 32];
    for lane in 0..32 {
        values[lane] = f(std::array::from_fn(|i| rows[i][lane]));
    }
    registers.merge(to, mask, &values);
}

/// Applies `f` to the lanes of the mask only: for what is slow.
#[inline(always)]
pub(super) fn map_active<const N: usize>(
    registers: &mut Registers,
    mask: u32,
    to: Reg,
    from: &[Reg],
    f: impl Fn([u64; N]) -> u64,
) {
    let mut lanes = mask;
    while lanes != 0 {
        let lane = lanes.trailing_zeros() as usize;
        lanes &= lanes - 1;
        let value = f(std::array::from_fn(|i| registers.row(from[i])[lane]));
        registers.row_mut(to)[lane] = value;
    }
}
