use super::*;

#[test]
fn bf16_rounds_as_half_does() {
    // Every upper half with lower halves around the tie, NaN and infinities among them.
    for high in 0..=u16::MAX {
        for low in [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
            let wide = f32::from_bits(u32::from(high) << 16 | low);
            let (ours, theirs) = (bf16::narrow(wide), bf16::from_f32(wide));
            assert_eq!(ours.to_bits(), theirs.to_bits(), "{wide:e}");
        }
        let narrow = bf16::from_bits(high);
        let same = narrow.widen().to_bits() == narrow.to_f32().to_bits();
        assert!(same || narrow.is_nan(), "{high:#x}");
    }
}

#[test]
fn rounds_to_zero_is_the_edge() {
    fn edge<E: Element<Acc = f32>>() {
        assert_eq!(E::narrow(E::ROUNDS_TO_ZERO).widen(), 0.0);
        let above = f32::from_bits(E::ROUNDS_TO_ZERO.to_bits() + 1);
        assert!(E::narrow(above).widen() > 0.0);
    }
    edge::<f16>();
    edge::<bf16>();
    edge::<f32>();
}

#[test]
fn kinks_round_from_half_a_step_on() {
    fn edge<E: Element<Acc = f32>>() {
        for (kink, steps) in [(3.0, 1.0), (-3.0, -1.0), (6.0, 2.0)] {
            let edge: f32 = kink - steps * E::HALF_STEP_AT_THREE;
            assert_eq!(E::narrow(edge).widen(), kink, "{}", E::DTYPE);
            let before = if kink > 0.0 { edge.next_down() } else { edge.next_up() };
            assert_ne!(E::narrow(before).widen(), kink, "{}", E::DTYPE);
        }
    }
    edge::<f16>();
    edge::<bf16>();
    edge::<f32>();
}

#[test]
fn f16_converts_as_half_does() {
    for bits in 0..=u16::MAX {
        let x = f16::from_bits(bits);
        let (ours, theirs) = (x.widen(), x.to_f32());
        assert!(ours.to_bits() == theirs.to_bits() || ours.is_nan() && x.is_nan(), "{x:e}");
        // The values about it, and about the ties on both sides.
        for offset in [-0x1001, -0x1000, -0xfff, -1, 0, 1, 0xfff, 0x1000, 0x1001] {
            let wide = f32::from_bits(theirs.to_bits().wrapping_add_signed(offset));
            let (ours, theirs) = (f16::narrow(wide), f16::from_f32(wide));
            let same = ours.to_bits() == theirs.to_bits();
            assert!(same || ours.is_nan() && wide.is_nan(), "{wide:e}: {ours} {theirs}");
        }
    }
    // Results below the least normal number, where ties lie elsewhere.
    for bits in (0..LEAST_NORMAL).step_by(997).chain([0x3300_0000, 0x3300_0001, 0x3380_0000]) {
        let wide = f32::from_bits(bits);
        assert_eq!(f16::narrow(wide).to_bits(), f16::from_f32(wide).to_bits(), "{wide:e}");
    }
}
const LEAST_NORMAL: u32 = (127 - 14) << 23;
