//! `mov` between one register and several.

use super::Alu;
use super::lanes::map;
use crate::registers::Registers;

#[inline(always)]
pub(super) fn pack(bits: u8, count: u8, alu: &Alu, registers: &mut Registers, mask: u32) {
    let (to, from) = (alu.to[0], &alu.from[..]);
    if count == 2 {
        map!(registers, mask, to, from, |[a, b]| a | b << bits);
    } else {
        map!(registers, mask, to, from, |[a, b, c, d]| {
            a | b << bits | c << (2 * bits) | d << (3 * bits)
        });
    }
}

#[inline(always)]
pub(super) fn unpack(bits: u8, count: u8, alu: &Alu, registers: &mut Registers, mask: u32) {
    let whole = *registers.row(alu.from[0]);
    let part = u64::MAX >> (64 - bits);
    for (i, &to) in alu.to[..usize::from(count)].iter().enumerate() {
        let shift = i as u32 * u32::from(bits);
        let mut values = [0; 32];
        for lane in 0..32 {
            values[lane] = whole[lane] >> shift & part;
        }
        registers.merge(to, mask, &values);
    }
}
