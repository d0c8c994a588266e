//! f32 and f64 arithmetic against the text of the PTX ISA, and against the machine underneath.

mod support;

use proptest::prelude::*;
use ptx_vm::numerics::{F32, F64, Rounding, arithmetic};
use support::{Program, check};

const NAN: u64 = 0x7fff_ffff;
const INFINITY: u64 = 0x7f80_0000;
const SIGN: u64 = 0x8000_0000;
const TWO: &str = "d:f32 a:f32 b:f32";
const ONE: &str = "d:f32 a:f32";

fn f(x: f32) -> u64 {
    u64::from(x.to_bits())
}

#[test]
fn nan_results_are_canonical() {
    check(
        TWO,
        "add.f32 d, a, b;",
        &[(&[0xffc1_2345, f(1.0)], NAN), (&[INFINITY, INFINITY | SIGN], NAN)],
    );
    check(TWO, "mul.f32 d, a, b;", &[(&[0, INFINITY], NAN), (&[0x7f80_0001, f(1.0)], NAN)]);
    check(
        "d:f32 a:f32 b:f32 c:f32",
        "fma.rn.f32 d, a, b, c;",
        &[
            (&[INFINITY, 0, 0x7fc0_0000], NAN),
            (&[INFINITY, f(1.0), INFINITY | SIGN], NAN),
            (&[INFINITY, f(1.0), f(1.0)], INFINITY),
        ],
    );
    check(
        TWO,
        "div.rn.f32 d, a, b;",
        &[(&[0, 0], NAN), (&[f(-1.0), 0], INFINITY | SIGN), (&[f(1.0), INFINITY | SIGN], SIGN)],
    );
    check(ONE, "sqrt.rn.f32 d, a;", &[(&[f(-1.0)], NAN), (&[SIGN], SIGN), (&[INFINITY], INFINITY)]);
    check(ONE, "sqrt.rz.f32 d, a;", &[(&[f(-1.0)], NAN), (&[SIGN], SIGN), (&[INFINITY], INFINITY)]);
    check(
        ONE,
        "rcp.rn.f32 d, a;",
        &[(&[SIGN], INFINITY | SIGN), (&[INFINITY], 0), (&[0xffff_ffff], NAN)],
    );
}

#[test]
fn signs_are_only_signs() {
    check(ONE, "neg.f32 d, a;", &[(&[0], SIGN), (&[f(1.0)], f(-1.0))]);
    check(
        ONE,
        "abs.f32 d, a;",
        &[(&[SIGN], 0), (&[f(-2.0)], f(2.0)), (&[INFINITY | SIGN], INFINITY)],
    );
    check("d:f64 a:f64", "neg.f64 d, a;", &[(&[0], 1 << 63)]);
    check("d:f64 a:f64", "abs.f64 d, a;", &[(&[1 << 63], 0)]);
    // The sign of the first operand, the magnitude of the second.
    check(TWO, "copysign.f32 d, a, b;", &[(&[SIGN, f(2.0)], f(-2.0)), (&[0, f(-2.0)], f(2.0))]);
    check("d:f64 a:f64 b:f64", "copysign.f64 d, a, b;", &[(&[1 << 63, 5], 1 << 63 | 5)]);
}

#[test]
fn extremes_pass_nan_by_unless_told() {
    check(
        TWO,
        "min.f32 d, a, b;",
        &[
            (&[0x7fc0_0000, f(1.0)], f(1.0)),
            (&[f(1.0), 0xffc0_0001], f(1.0)),
            (&[0x7fc0_0000, 0xffc0_0000], NAN),
            (&[0, SIGN], SIGN),
            (&[SIGN, 0], SIGN),
            (&[f(-1.0), f(1.0)], f(-1.0)),
        ],
    );
    check(
        TWO,
        "max.f32 d, a, b;",
        &[(&[0, SIGN], 0), (&[SIGN, 0], 0), (&[INFINITY, f(1.0)], INFINITY), (&[SIGN, SIGN], SIGN)],
    );
    check(
        TWO,
        "min.NaN.f32 d, a, b;",
        &[
            (&[0x7fc0_0000, f(1.0)], NAN),
            (&[f(1.0), 0xffc0_0000], NAN),
            (&[f(1.0), f(2.0)], f(1.0)),
        ],
    );
    check(
        TWO,
        "max.xorsign.abs.f32 d, a, b;",
        &[(&[f(-3.0), f(2.0)], f(-3.0)), (&[f(-3.0), f(-2.0)], f(3.0))],
    );
    check(TWO, "min.ftz.f32 d, a, b;", &[(&[SIGN | 5, f(1.0)], SIGN), (&[5, 3], 0)]);
    check(
        "d:f64 a:f64 b:f64",
        "max.f64 d, a, b;",
        &[(&[f64::NAN.to_bits(), 7], 7), (&[0, 1 << 63], 0)],
    );
}

#[test]
fn subnormals_are_kept_or_flushed() {
    check(TWO, "add.f32 d, a, b;", &[(&[1, 1], 2), (&[0x0080_0000, SIGN | 1], 0x007f_ffff)]);
    check(
        TWO,
        "add.ftz.f32 d, a, b;",
        &[
            (&[1, 1], 0),
            (&[SIGN | 1, SIGN | 1], SIGN),
            // The result is subnormal, the operands are not.
            (&[0x0080_0001, SIGN | 0x0080_0000], 0),
            (&[SIGN | 0x0080_0001, 0x0080_0000], SIGN),
        ],
    );
    check(
        TWO,
        "mul.ftz.f32 d, a, b;",
        &[(&[0x0080_0000, f(0.5)], 0), (&[0x0080_0000, f(-0.5)], SIGN)],
    );
    check(TWO, "mul.rn.f32 d, a, b;", &[(&[0x0080_0000, f(0.5)], 0x0040_0000)]);
    check(
        "d:f32 a:f32 b:f32 c:f32",
        "fma.rn.ftz.f32 d, a, b, c;",
        &[(&[1, f(1.0), f(2.0)], f(2.0))],
    );
    check(TWO, "div.rn.ftz.f32 d, a, b;", &[(&[f(1.0), 1], INFINITY)]);
    check(ONE, "neg.ftz.f32 d, a;", &[(&[1], SIGN)]);
    check(ONE, "sqrt.rn.ftz.f32 d, a;", &[(&[SIGN | 1], SIGN)]);
}

#[test]
fn saturation_is_to_the_unit_interval() {
    check(
        TWO,
        "add.sat.f32 d, a, b;",
        &[
            (&[f(0.75), f(0.75)], f(1.0)),
            (&[f(-0.75), f(0.5)], 0),
            (&[SIGN, SIGN], 0),
            (&[INFINITY, INFINITY | SIGN], 0),
            (&[f(0.25), f(0.5)], f(0.75)),
        ],
    );
    check(
        "d:f32 a:f32 b:f32 c:f32",
        "fma.rz.sat.f32 d, a, b, c;",
        &[(&[f(3.0), f(3.0), 0], f(1.0)), (&[NAN, 0, 0], 0)],
    );
}

#[test]
fn directed_rounding_at_the_ends() {
    let huge = 0x7f7f_ffff;
    check(
        TWO,
        "add.rz.f32 d, a, b;",
        &[(&[huge, huge], huge), (&[huge | SIGN, huge | SIGN], huge | SIGN)],
    );
    check(
        TWO,
        "add.rp.f32 d, a, b;",
        &[(&[huge, 1], INFINITY), (&[huge | SIGN, huge | SIGN], huge | SIGN)],
    );
    check(
        TWO,
        "add.rm.f32 d, a, b;",
        &[
            (&[huge, huge], huge),
            (&[huge | SIGN, SIGN | 1], INFINITY | SIGN),
            // x - x is -0 only downward.
            (&[f(1.0), f(-1.0)], SIGN),
        ],
    );
    check(TWO, "add.rp.f32 d, a, b;", &[(&[f(1.0), f(-1.0)], 0), (&[f(1.0), 1], 0x3f80_0001)]);
    check(TWO, "mul.rp.f32 d, a, b;", &[(&[1, 1], 1), (&[SIGN | 1, 1], SIGN)]);
    check(TWO, "mul.rm.f32 d, a, b;", &[(&[1, 1], 0), (&[SIGN | 1, 1], SIGN | 1)]);
    check(ONE, "rcp.rz.f32 d, a;", &[(&[f(3.0)], 0x3eaa_aaaa), (&[0], INFINITY)]);
    check(ONE, "rcp.rp.f32 d, a;", &[(&[f(3.0)], 0x3eaa_aaab), (&[1], INFINITY)]);
    check(ONE, "rcp.rm.f32 d, a;", &[(&[1], huge)]);
    check(ONE, "sqrt.rp.f32 d, a;", &[(&[f(2.0)], 0x3fb5_04f4), (&[f(4.0)], f(2.0))]);
    check(ONE, "sqrt.rm.f32 d, a;", &[(&[f(2.0)], 0x3fb5_04f3)]);
}

#[test]
fn a_hair_above_the_middle_is_not_the_middle() {
    // 1 / (1 - 2^-53) = 1 + 2^-53 + 2^-106 + ..: the last term alone decides against the even neighbour.
    let (one, below) = (1f64.to_bits(), 1f64.next_down().to_bits());
    let above = 1f64.next_up().to_bits();
    let two = "d:f64 a:f64 b:f64";
    assert_eq!(arithmetic::div(F64, one, below, Rounding::Nearest), above);
    check(two, "div.rn.f64 d, a, b;", &[(&[one, below], above)]);
    check(two, "div.rz.f64 d, a, b;", &[(&[one, below], one)]);
    check(two, "div.rp.f64 d, a, b;", &[(&[one, below], above)]);
    // 1 + 2^-1074: the least of all numbers decides.
    let program = Program::new("d:f64 a:f64 b:f64 c:f64", "fma.rp.f64 d, a, b, c;");
    assert_eq!(program.one(&[one, one, 1]), above);
    assert_eq!(program.one(&[one, one, 1 << 63 | 1]), one);
    assert_eq!(arithmetic::fma(F64, one, one, 1, Rounding::Nearest), one);
}

/// Numbers far enough from the ends that the error of an operation is itself a number.
fn middling_f32() -> impl Strategy<Value = f32> {
    (any::<bool>(), 97u32..157, 0u32..1 << 23).prop_map(|(sign, exponent, fraction)| {
        f32::from_bits(u32::from(sign) << 31 | exponent << 23 | fraction)
    })
}

fn middling_f64() -> impl Strategy<Value = f64> {
    (any::<bool>(), 900u64..1150, 0u64..1 << 52).prop_map(|(sign, exponent, fraction)| {
        f64::from_bits(u64::from(sign) << 63 | exponent << 52 | fraction)
    })
}

/// The four roundings of a result, told from the nearest one and the sign of what it is short of the exact one.
macro_rules! roundings {
    ($nearest:expr, $error:expr) => {{
        let (nearest, error) = ($nearest, $error);
        let down = if error < 0.0 { nearest.next_down() } else { nearest };
        let up = if error > 0.0 { nearest.next_up() } else { nearest };
        let zero = if nearest > 0.0 { down } else { up };
        [
            (Rounding::Nearest, nearest),
            (Rounding::Zero, zero),
            (Rounding::Down, down),
            (Rounding::Up, up),
        ]
    }};
}

macro_rules! directed {
    ($test:ident, $format:expr, $t:ty, $strategy:expr) => {
        proptest! {
            #![proptest_config(ProptestConfig::with_cases(3000))]
            #[test]
            fn $test(a in $strategy, b in $strategy) {
                let bits = |x: $t| u64::from(x.to_bits());
                let sum = a + b;
                let of_b = sum - a;
                let sum_error = (a - (sum - of_b)) + (b - of_b);
                let (product, quotient) = (a * b, a / b);
                let root = a.abs().sqrt();
                // What is left over, in the direction in which the exact result lies.
                let rest = (-quotient).mul_add(b, a) * b.signum();
                for (mode, expected) in roundings!(sum, sum_error).into_iter().filter(|_| sum != 0.0) {
                    prop_assert_eq!(arithmetic::add($format, bits(a), bits(b), mode), bits(expected), "{:?} {} + {}", mode, a, b);
                    prop_assert_eq!(arithmetic::sub($format, bits(a), bits(-b), mode), bits(expected), "{:?}", mode);
                }
                for (mode, expected) in roundings!(product, a.mul_add(b, -product)) {
                    prop_assert_eq!(arithmetic::mul($format, bits(a), bits(b), mode), bits(expected), "{:?} {} * {}", mode, a, b);
                    prop_assert_eq!(arithmetic::fma($format, bits(a), bits(b), bits(0.0), mode), bits(expected), "{:?}", mode);
                }
                for (mode, expected) in roundings!(quotient, rest) {
                    prop_assert_eq!(arithmetic::div($format, bits(a), bits(b), mode), bits(expected), "{:?} {} / {}", mode, a, b);
                }
                for (mode, expected) in roundings!(root, (-root).mul_add(root, a.abs())) {
                    prop_assert_eq!(arithmetic::sqrt($format, bits(a.abs()), mode), bits(expected), "{:?} root {}", mode, a);
                }
            }
        }
    };
}

directed!(f32_results_lie_between_the_right_neighbours, F32, f32, middling_f32());
directed!(f64_results_lie_between_the_right_neighbours, F64, f64, middling_f64());

fn canonical_f32(x: f32) -> u64 {
    if x.is_nan() { NAN } else { f(x) }
}

fn canonical_f64(x: f64) -> u64 {
    if x.is_nan() { F64.nan() } else { x.to_bits() }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20000))]

    #[test]
    fn any_f32_rounds_as_the_machine_does(a: u32, b: u32, c: u32) {
        let (x, y, z) = (f32::from_bits(a), f32::from_bits(b), f32::from_bits(c));
        let (a, b, c) = (u64::from(a), u64::from(b), u64::from(c));
        let mode = Rounding::Nearest;
        prop_assert_eq!(arithmetic::add(F32, a, b, mode), canonical_f32(x + y));
        prop_assert_eq!(arithmetic::mul(F32, a, b, mode), canonical_f32(x * y));
        prop_assert_eq!(arithmetic::div(F32, a, b, mode), canonical_f32(x / y));
        prop_assert_eq!(arithmetic::sqrt(F32, a, mode), canonical_f32(x.sqrt()));
        prop_assert_eq!(arithmetic::fma(F32, a, b, c, mode), canonical_f32(x.mul_add(y, z)));
        // Close to the product, so that almost all of it cancels.
        let near = u64::from((-(x * y)).to_bits());
        prop_assert_eq!(arithmetic::fma(F32, a, b, near, mode), canonical_f32(x.mul_add(y, f32::from_bits(near as u32))));
    }

    #[test]
    fn any_f64_rounds_as_the_machine_does(a: u64, b: u64, c: u64) {
        let (x, y, z) = (f64::from_bits(a), f64::from_bits(b), f64::from_bits(c));
        let mode = Rounding::Nearest;
        prop_assert_eq!(arithmetic::add(F64, a, b, mode), canonical_f64(x + y));
        prop_assert_eq!(arithmetic::mul(F64, a, b, mode), canonical_f64(x * y));
        prop_assert_eq!(arithmetic::div(F64, a, b, mode), canonical_f64(x / y));
        prop_assert_eq!(arithmetic::sqrt(F64, a, mode), canonical_f64(x.sqrt()));
        prop_assert_eq!(arithmetic::fma(F64, a, b, c, mode), canonical_f64(x.mul_add(y, z)));
        let near = (-(x * y)).to_bits();
        prop_assert_eq!(arithmetic::fma(F64, a, b, near, mode), canonical_f64(x.mul_add(y, f64::from_bits(near))));
    }
}

#[test]
fn rows_give_what_the_exact_way_gives() {
    type Exact = fn(u64, u64, u64, Rounding) -> u64;
    let forms: [(&str, Exact); 5] = [
        ("add.f32 d, a, b;", |a, b, _, mode| arithmetic::add(F32, a, b, mode)),
        ("sub.f32 d, a, b;", |a, b, _, mode| arithmetic::sub(F32, a, b, mode)),
        ("mul.f32 d, a, b;", |a, b, _, mode| arithmetic::mul(F32, a, b, mode)),
        ("div.rn.f32 d, a, b;", |a, b, _, mode| arithmetic::div(F32, a, b, mode)),
        ("fma.rn.f32 d, a, b, c;", |a, b, c, mode| arithmetic::fma(F32, a, b, c, mode)),
    ];
    let values = [
        0,
        1,
        0x007f_ffff,
        0x0080_0000,
        f(1.0),
        f(1.5),
        f(3.0),
        0x7f7f_ffff,
        INFINITY,
        NAN,
        0x3f80_0001,
    ];
    let mut rows = Vec::new();
    for &a in &values {
        for &b in &values {
            for &c in &values {
                rows.push(vec![a, b, c]);
                rows.push(vec![a | SIGN, b, c]);
                rows.push(vec![a, b, c | SIGN]);
            }
        }
    }
    for (form, exact) in forms {
        let program = Program::new("d:f32 a:f32 b:f32 c:f32", form);
        for (row, got) in rows.iter().zip(program.run(&rows)) {
            assert_eq!(got[0], exact(row[0], row[1], row[2], Rounding::Nearest), "{form} {row:x?}");
        }
    }
}
