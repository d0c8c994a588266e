use super::super::tests::every_level;
use super::*;
use half::{bf16, f16};

/// What a type has at a pattern of bits, and back.
trait Bits: Element<Acc = f32> {
    fn of_bits(bits: u16) -> Self;
    fn bits(self) -> u16;
}
impl Bits for f16 {
    fn of_bits(bits: u16) -> Self {
        Self::from_bits(bits)
    }
    fn bits(self) -> u16 {
        self.to_bits()
    }
}
impl Bits for bf16 {
    fn of_bits(bits: u16) -> Self {
        Self::from_bits(bits)
    }
    fn bits(self) -> u16 {
        self.to_bits()
    }
}

fn widened<E: Bits, const N: usize>(simd: Simd, start: u16) {
    let values: [E; N] = std::array::from_fn(|i| E::of_bits(start + i as u16));
    for (wide, x) in simd.widen(&values).iter().zip(values) {
        let same = wide.to_bits() == x.widen().to_bits();
        assert!(same || wide.is_nan() && x.widen().is_nan(), "{x:?}");
    }
}
fn narrowed<E: Bits, const N: usize>(simd: Simd, start: u32, step: u32) {
    let bits = |i| start.wrapping_add(step.wrapping_mul(i as u32));
    let values: [f32; N] = std::array::from_fn(|i| f32::from_bits(bits(i)));
    for (narrow, wide) in simd.narrow::<E, N>(&values).iter().zip(values) {
        assert_eq!(narrow.bits(), E::narrow(wide).bits(), "{wide:e}");
    }
}

#[test]
fn instructions_convert_as_the_definition_does() {
    fn all<E: Bits>() {
        every_level(|simd| {
            for start in (0..=u16::MAX).step_by(16) {
                widened::<E, 16>(simd, start);
                widened::<E, 8>(simd, start);
                widened::<E, 8>(simd, start + 8);
            }
            for start in (0..=u32::MAX - 0xffff).step_by(0x7fff) {
                narrowed::<E, 16>(simd, start, 0x7ff);
                narrowed::<E, 8>(simd, start, 0x7ff);
            }
            // Below, on and above the middle between two of bf16, of every upper half.
            for upper in 0..=u16::MAX {
                narrowed::<E, 16>(simd, (u32::from(upper) << 16) + 0x7ff9, 1);
            }
        });
    }
    all::<f16>();
    all::<bf16>();
}
