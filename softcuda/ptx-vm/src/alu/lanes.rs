//! The loop over the lanes of a row.

use crate::instr::Reg;
use crate::registers::Registers;

/// Applies `|[a, b]| ..` to each lane. It is a macro and not a function so that nothing depends on what the compiler inlines.
macro_rules! map {
    ($registers:expr, $mask:expr, $to:expr, $from:expr, |[$($operand:ident),+]| $value:expr) => {{
        let mut from = $from.iter();
        $(let $operand = $registers.row(*from.next().unwrap_or(&0));)+
        let mut values = [0; 32];
        for lane in 0..32 {
            $(let $operand = $operand[lane];)+
            values[lane] = $value;
        }
        $registers.merge($to, $mask, &values);
    }};
}
pub(super) use map;

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
