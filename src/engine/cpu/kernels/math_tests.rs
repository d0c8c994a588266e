//! Against f64, and libm where f64 is what is tested, over all that an activation can ask for.
use super::super::activation::{Block, Kinks, differentiate, values};
use super::Math;
use crate::engine::Activation;
use crate::engine::cpu::simd::{ROOM, Simd};
use crate::{Element, Real};
use half::{bf16, f16};

/// Numbers from `from` to `to`, so many that neighbours round differently.
fn dense(from: f64, to: f64, count: usize) -> impl Iterator<Item = f64> {
    (0..=count).map(move |k| from + (to - from) * k as f64 / count as f64)
}

#[test]
fn exponentials_are_within_units_in_the_last_place() {
    for x in dense(-87.3, 0.0, 200_000).map(|x| x as f32) {
        let (got, right) = (f32::exp_sum(x, 0.0), libm::exp(f64::from(x)));
        let error = (f64::from(got) / right - 1.0).abs() / f64::from(f32::EPSILON);
        assert!(error < 1.0, "{x}: {got}, {right}, {error}");
    }
    for x in dense(-708.0, 0.0, 200_000) {
        let (got, right) = (f64::exp_sum(x, 0.0), libm::exp(x));
        let error = (got / right - 1.0).abs() / f64::EPSILON;
        assert!(error < 2.0, "{x}: {got}, {right}, {error}");
    }
    // Subnormal results, 0, and the rest of a sum.
    for x in dense(-103.9, -87.3, 2000).map(|x| x as f32) {
        let right = libm::exp(f64::from(x)) as f32;
        assert!((f32::exp_sum(x, 0.0) - right).abs() <= 2.0 * f32::from_bits(1), "{x}");
    }
    assert_eq!((f32::exp_sum(-1e30, 0.0), f64::exp_sum(f64::NEG_INFINITY, 0.0)), (0.0, 0.0));
    assert!(f32::exp_sum(f32::NAN, 0.0).is_nan() && f64::exp_sum(f64::NAN, 0.0).is_nan());
    assert!((f64::exp_sum(-1.0, -0.05) / libm::exp(-1.05) - 1.0).abs() < 4e-16);
}

/// What a block of one value becomes, and its derivative, on every level of instructions.
fn both<A: Real>(activation: Activation, z: f64) -> (f64, f64) {
    let kinks = Kinks::of::<A>();
    let mut all = crate::SimdLevel::available().filter_map(Simd::new).map(|simd| {
        let z: Block<A> = [A::from_f64(z); ROOM];
        let (mut y, mut g) = (z, [A::from_f64(1.0); ROOM]);
        values(simd, activation, &mut y, 1);
        differentiate(simd, activation, kinks, &z, &mut g, 1);
        (y[0].to_f64(), g[0].to_f64())
    });
    let first = all.next().unwrap();
    let bits = |(y, g): (f64, f64)| (y.to_bits(), g.to_bits());
    assert!(all.all(|other| bits(other) == bits(first)), "{activation} at {z}: levels differ");
    first
}

fn agrees<A: Real>(epsilon: f64, step: usize) {
    for activation in Activation::ALL {
        for z in dense(-40.0, 40.0, 40_000).step_by(step) {
            let z = A::from_f64(z).to_f64();
            let (y, g) = both::<A>(activation, z);
            let right = activation.value(z);
            // Tails keep their digits; of what is subnormal each step rounds, and z multiplies it. The
            // definition of GELU in f64 rounds `z / sqrt(2)`, which counts z^2 times.
            let (smallest, lost) = match epsilon > 1e-12 {
                true => (f64::from(f32::from_bits(1)), 0.0),
                false => (5e-324, z * z),
            };
            let relative = epsilon * (5.0 + lost);
            let most = relative * right.abs() + smallest * (2.0 + 3.0 * z.abs());
            let error = (y - right).abs();
            assert!(error <= most, "{activation} of {z}: {y:e}, {right:e}, {error:e}");
            let right = activation.derivative::<A>(z);
            // In f64 the definition loses digits of `1 - s`, which z multiplies.
            let most = epsilon * if epsilon > 1e-12 { 5.0 } else { 5.0 + z.abs() };
            assert!((g - right).abs() < most, "{activation}' of {z}: {g:e}, {right:e}");
        }
        for z in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 0.0, -3.0, 3.0, 6.0, 1e30, -1e30] {
            let same = |a: f64, b: f64| a == b || a.is_nan() && b.is_nan();
            let (y, g) = both::<A>(activation, z);
            let z = A::from_f64(z).to_f64();
            let (value, slope) = (activation.value(z), activation.derivative::<A>(z));
            let most = epsilon * (5.0 + z.abs().min(6.0));
            let near = |a: f64, b: f64| same(a, b) || (a - b).abs() <= most * b.abs().max(1.0);
            assert!(near(y, value), "{activation} of {z}: {y}, {value}");
            assert!(near(g, slope), "{activation}' of {z}: {g}, {slope}");
        }
    }
}

#[test]
fn activations_agree_with_their_definition() {
    agrees::<f32>(f64::from(f32::EPSILON), 1);
    agrees::<f64>(f64::EPSILON, 1);
}

#[test]
fn tails_have_all_digits() {
    // mpmath, 40 digits.
    for (z, right) in [
        (-20.0, -5.507_248_237_212_467e-88),
        (-30.0, -1.472_014_178_144_456e-196),
        (-36.0, -1.505_744_663_687_022e-282),
    ] {
        let (y, _) = both::<f64>(Activation::Gelu, z);
        assert!((y / right - 1.0).abs() < 8.0 * f64::EPSILON, "{z}: {y:e}");
    }
}

#[test]
fn kinks_are_the_last_numbers_that_round_to_them() {
    fn all<E: Element>(below: impl Fn(f64) -> f64) {
        let kinks = Kinks::of::<E>();
        let rounded = |v: f64| E::narrow(E::Acc::from_f64(v)).widen().to_f64();
        for (kink, at) in [(kinks.six, 6.0), (kinks.three, 3.0), (kinks.minus_three, -3.0)] {
            let kink = kink.to_f64();
            assert_eq!(rounded(kink), at, "{}", E::DTYPE);
            let nearer = below(kink.abs()).copysign(at);
            assert!(rounded(nearer).abs() < at.abs(), "{}: {nearer}", E::DTYPE);
        }
    }
    let below_f32 = |v: f64| f64::from((v as f32).next_down());
    all::<f32>(below_f32);
    all::<f16>(below_f32);
    all::<bf16>(below_f32);
    all::<f64>(f64::next_down);
}
