//! The same instructions compiled for AVX2 and FMA, where the processor has them.

use super::{Alu, body};
use crate::registers::Registers;

/// Executes the instruction; gives false, and does nothing, where the processor is too old.
#[inline(always)]
pub(super) fn execute(alu: &Alu, registers: &mut Registers, mask: u32) -> bool {
    let able = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    if able {
        // SAFETY: the processor has the features that the function is compiled for.
        unsafe { vectorised(alu, registers, mask) };
    }
    able
}

#[target_feature(enable = "avx2,fma")]
fn vectorised(alu: &Alu, registers: &mut Registers, mask: u32) {
    body(alu, registers, mask);
}
