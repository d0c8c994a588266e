//! The same instructions compiled for AVX2, FMA and the bit instructions of the same years, where the processor has them.

use super::{Alu, body};
use crate::registers::Registers;

/// Says that the processor has what functions with these features need. Only [`Wide::find`] makes one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wide(());

impl Wide {
    /// Whether the processor is new enough.
    pub(crate) fn find() -> Option<Self> {
        let able = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("bmi1")
            && is_x86_feature_detected!("bmi2")
            && is_x86_feature_detected!("lzcnt")
            && is_x86_feature_detected!("popcnt");
        able.then_some(Self(()))
    }

    /// Executes an instruction.
    #[inline(always)]
    pub(crate) fn execute(self, alu: &Alu, registers: &mut Registers, mask: u32) {
        // SAFETY: the processor has the features that the function is compiled for, as there is a `Wide`.
        unsafe { vectorised(alu, registers, mask) };
    }
}

#[target_feature(enable = "avx2,fma,bmi1,bmi2,lzcnt,popcnt")]
fn vectorised(alu: &Alu, registers: &mut Registers, mask: u32) {
    body(alu, registers, mask);
}

#[cfg(test)]
mod tests {
    use crate::Module;
    use crate::alu::{Alu, body, execute};
    use crate::instr::Op;
    use crate::registers::Registers;

    /// Every instruction of the texts, compiled both ways, on the same values.
    #[test]
    fn wide_vectors_change_no_bit() {
        let texts = [
            softcuda_kernels::ptx("exact_floats", 90),
            softcuda_kernels::ptx("exact_integers", 90),
            softcuda_kernels::ptx("batchnorm", 80),
        ];
        let mut state = 1u64;
        let mut random = move || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            state >> 32
        };
        for text in texts {
            let module = Module::load(&text).unwrap();
            for kernel in module.kernels() {
                let alus = kernel.code.iter().filter_map(|instr| match &instr.op {
                    Op::Alu(alu) => Some(alu),
                    _ => None,
                });
                for alu in alus {
                    let alu = Alu { to: [0, 1, 2, 3], from: [4, 5, 6, 7], ..*alu };
                    let mut plain = Registers::new(8);
                    for reg in 0..8 {
                        for value in plain.row_mut(reg) {
                            // Anything, or a float or double of middling size.
                            *value = match random() % 3 {
                                0 => random() << 32 | random(),
                                1 => random() & 0x80ff_ffff | 0x3f00_0000,
                                _ => (random() << 32 | random()) >> 9 | 0x3ff0 << 48,
                            };
                        }
                    }
                    let mut wide = plain.clone();
                    let mask = if random() & 1 == 0 { u32::MAX } else { random() as u32 };
                    body(&alu, &mut plain, mask);
                    execute(&alu, &mut wide, mask);
                    assert_eq!(plain, wide, "{alu:?}");
                }
            }
        }
    }
}
