//! f16 and bf16: every conversion, and arithmetic rounded once.

mod support;

use half::{bf16, f16};
use proptest::prelude::*;
use ptx_vm::numerics::{BF16, F16, F32, F64, Format, Rounding, arithmetic, convert};
use support::{Program, check};

const F32_NAN: u64 = 0x7fff_ffff;

fn all_of(body: &str, registers: &str) -> Vec<u64> {
    let rows: Vec<Vec<u64>> = (0..1 << 16).map(|bits| vec![bits]).collect();
    Program::new(registers, body).run(&rows).into_iter().map(|results| results[0]).collect()
}

#[test]
fn every_f16_widens() {
    for (bits, got) in all_of("cvt.f32.f16 d, a;", "d:f32 a:b16").into_iter().enumerate() {
        let half = f16::from_bits(bits as u16);
        let expected = if half.is_nan() { F32_NAN } else { u64::from(half.to_f32().to_bits()) };
        assert_eq!(got, expected, "{bits:#x}");
    }
    for (bits, got) in all_of("cvt.f64.f16 d, a;", "d:f64 a:b16").into_iter().enumerate() {
        let half = f16::from_bits(bits as u16);
        let expected = if half.is_nan() { F64.nan() } else { half.to_f64().to_bits() };
        assert_eq!(got, expected, "{bits:#x}");
    }
}

#[test]
fn every_bf16_widens() {
    for (bits, got) in all_of("cvt.f32.bf16 d, a;", "d:f32 a:b16").into_iter().enumerate() {
        let half = bf16::from_bits(bits as u16);
        let expected = if half.is_nan() { F32_NAN } else { u64::from(half.to_f32().to_bits()) };
        assert_eq!(got, expected, "{bits:#x}");
    }
}

/// Around every number of the format and every middle between two: the f32 itself, the next below and the next above.
fn boundaries(format: Format) -> Vec<u64> {
    let mut values = Vec::new();
    for bits in 0..=format.infinity() {
        let wide = convert::float_to_float(format, F32, bits, Rounding::Nearest);
        let next = convert::float_to_float(
            format,
            F64,
            (bits + 1).min(format.infinity()),
            Rounding::Nearest,
        );
        let number = f64::from(f32::from_bits(wide as u32));
        let next = f64::from_bits(next);
        // Above the greatest number lies what would be the next one, if there were one.
        let next = if next.is_infinite() {
            number * (1.0 + 2f64.powi(-(format.fraction as i32)))
        } else {
            next
        };
        let middle = u64::from(((number + next) as f32 / 2.0).to_bits());
        for value in [wide, middle] {
            values.extend([value.saturating_sub(1), value, value + 1]);
        }
    }
    let negative = values.iter().map(|value| value | 1 << 31).collect::<Vec<_>>();
    values.extend(negative);
    values
}

fn narrowed(body: &str, values: &[u64]) -> Vec<u64> {
    let rows: Vec<Vec<u64>> = values.iter().map(|&bits| vec![bits]).collect();
    Program::new("d:b16 a:f32", body).run(&rows).into_iter().map(|results| results[0]).collect()
}

#[test]
fn every_boundary_of_f16_rounds_to_nearest() {
    let values = boundaries(F16);
    for (&bits, got) in values.iter().zip(narrowed("cvt.rn.f16.f32 d, a;", &values)) {
        let value = f32::from_bits(bits as u32);
        let expected = if value.is_nan() { 0x7fff } else { f16::from_f32(value).to_bits() };
        assert_eq!(got, u64::from(expected), "{bits:#x}");
    }
}

#[test]
fn every_boundary_of_bf16_rounds_to_nearest() {
    let values = boundaries(BF16);
    for (&bits, got) in values.iter().zip(narrowed("cvt.rn.bf16.f32 d, a;", &values)) {
        let value = f32::from_bits(bits as u32);
        let expected = if value.is_nan() { 0x7fff } else { bf16::from_f32(value).to_bits() };
        assert_eq!(got, u64::from(expected), "{bits:#x}");
    }
}

#[test]
fn every_boundary_of_f16_is_cut_towards_zero() {
    let values = boundaries(F16);
    for (&bits, got) in values.iter().zip(narrowed("cvt.rz.f16.f32 d, a;", &values)) {
        let value = f32::from_bits(bits as u32);
        if value.is_nan() {
            assert_eq!(got, 0x7fff);
            continue;
        }
        let magnitude = value.abs();
        let cut = f16::from_bits(got as u16).to_f32();
        assert_eq!(cut.is_sign_negative(), value.is_sign_negative(), "{bits:#x}");
        let above = f16::from_bits((got as u16 & 0x7fff) + 1).to_f32();
        assert!(cut.abs() <= magnitude, "{bits:#x}");
        assert!(magnitude < above || got & 0x7fff >= 0x7bff, "{bits:#x}");
        assert!(cut.is_infinite() == value.is_infinite(), "{bits:#x}");
    }
}

#[test]
fn the_general_way_gives_what_the_fast_one_gives() {
    let mut values = boundaries(F16);
    values.extend(boundaries(BF16));
    for &bits in &values {
        for (format, fast) in [
            (F16, ptx_vm::numerics::half::f32_to_f16(bits as u32)),
            (BF16, ptx_vm::numerics::half::f32_to_bf16(bits as u32)),
        ] {
            let general = convert::float_to_float(F32, format, bits, Rounding::Nearest);
            assert_eq!(u64::from(fast), general, "{format:?} {bits:#x}");
        }
    }
}

#[test]
fn modifiers_of_narrowing() {
    let (one, minus, nan) = (0x3f80_0000, 0xbf80_0000, 0x7fc0_0000);
    let (infinity, huge) = (0x7f80_0000, 0x7f7f_ffff);
    check(
        "d:b16 a:f32",
        "cvt.rn.relu.f16.f32 d, a;",
        &[(&[one], 0x3c00), (&[minus], 0), (&[nan], 0x7fff)],
    );
    check(
        "d:b16 a:f32",
        "cvt.rn.relu.bf16.f32 d, a;",
        &[(&[one], 0x3f80), (&[minus], 0), (&[1 << 31], 0)],
    );
    check(
        "d:b16 a:f32",
        "cvt.rn.satfinite.f16.f32 d, a;",
        &[(&[infinity], 0x7bff), (&[huge | 1 << 31], 0xfbff), (&[nan], 0x7fff)],
    );
    check(
        "d:b16 a:f32",
        "cvt.rn.sat.f16.f32 d, a;",
        &[(&[0x4000_0000], 0x3c00), (&[minus], 0), (&[nan], 0)],
    );
    // The first operand becomes the upper half.
    let pair = "d:b32 a:f32 b:f32";
    check(pair, "cvt.rn.f16x2.f32 d, a, b;", &[(&[one, minus], 0x3c00_bc00)]);
    check(
        pair,
        "cvt.rn.bf16x2.f32 d, a, b;",
        &[(&[one, minus], 0x3f80_bf80), (&[nan, 0], 0x7fff_0000)],
    );
    check(pair, "cvt.rz.f16x2.f32 d, a, b;", &[(&[huge, huge], 0x7bff_7bff)]);
    check(pair, "cvt.rn.relu.bf16x2.f32 d, a, b;", &[(&[minus, one], 0x3f80)]);
    check(
        "d:b32 a:f32",
        "cvt.rna.tf32.f32 d, a;",
        &[(&[0x3f80_1000], 0x3f80_2000), (&[0x3f80_0fff], one)],
    );
    check("d:b32 a:f32", "cvt.rn.tf32.f32 d, a;", &[(&[0x3f80_1000], one), (&[nan], F32_NAN)]);
    check("d:f32 a:b16", "cvt.ftz.f32.f16 d, a;", &[(&[1], 0x3380_0000)]);
    check("d:b16 a:f32", "cvt.rn.ftz.f16.f32 d, a;", &[(&[0x0000_0001], 0)]);
    check(
        "d:b16 a:b16",
        "cvt.rni.f16.f16 d, a;",
        &[(&[0x3e00], 0x4000), (&[0x4100], 0x4000), (&[0xb000], 0x8000)],
    );
    check(
        "d:b16 a:b32",
        "cvt.rn.f16.s32 d, a;",
        &[(&[2049], 0x6800), (&[2051], 0x6802), (&[70000], 0x7c00)],
    );
    check(
        "d:b32 a:b16",
        "cvt.rzi.s32.f16 d, a;",
        &[(&[0xc100], 0xffff_fffe), (&[0x7c00], 0x7fff_ffff), (&[0x7e00], 0)],
    );
}

#[test]
fn f64_is_rounded_to_f16_once() {
    // Just above the middle of 1 and the next f16: rounded to f32 first it would become the middle, then 1.
    let value = (1.0 + 2f64.powi(-11) + 2f64.powi(-40)).to_bits();
    check(
        "d:b16 a:f64",
        "cvt.rn.f16.f64 d, a;",
        &[(&[value], 0x3c01), (&[1f64.to_bits()], 0x3c00)],
    );
    let below = (1.0 + 3.0 * 2f64.powi(-11) - 2f64.powi(-40)).to_bits();
    check("d:b16 a:f64", "cvt.rn.f16.f64 d, a;", &[(&[below], 0x3c01)]);
}

#[test]
fn fma_of_bf16_is_rounded_once() {
    let program = Program::new("d:b16 a:b16 b:b16 c:b16", "fma.rn.bf16 d, a, b, c;");
    // 1.5 * (1 + 2^-7) lies in the middle between two numbers. A hair more or less decides, though the sum in f64 is the middle
    // still.
    let (a, b, hair) = (0x3fc0, 0x3f81, 0x0d80);
    let product = 1.5 * (1.0 + 2f64.powi(-7));
    assert_eq!(product + 2f64.powi(-100), product);
    let value = |bits: u64| f64::from(bf16::from_bits(bits as u16));
    let (down, up) = (0x3fc1, 0x3fc2);
    assert_eq!(value(up) - product, product - value(down));
    assert_eq!(program.one(&[a, b, 0]), up, "of two equally near the even one");
    assert_eq!(program.one(&[a, b, hair]), up);
    assert_eq!(program.one(&[a, b, hair | 0x8000]), down);
}

#[test]
fn specials_of_16_bits() {
    let (infinity, nan) = (0x7c00, 0x7fff);
    let two = "d:b16 a:b16 b:b16";
    check(
        two,
        "add.f16 d, a, b;",
        &[
            (&[infinity, 0xfc00], nan),
            (&[0x7bff, 0x7bff], infinity),
            (&[0x8000, 0x8000], 0x8000),
            (&[0x8000, 0], 0),
            (&[0x7e01, 0x3c00], nan),
            (&[1, 1], 2),
        ],
    );
    check(two, "add.ftz.f16 d, a, b;", &[(&[1, 1], 0), (&[0x8001, 0x8001], 0x8000)]);
    check(
        two,
        "add.sat.f16 d, a, b;",
        &[(&[0x3c00, 0x3c00], 0x3c00), (&[0xbc00, 0], 0), (&[0x7e00, 0], 0)],
    );
    check(two, "sub.rn.f16 d, a, b;", &[(&[0x3c00, 0x3c00], 0)]);
    check(two, "mul.rn.f16 d, a, b;", &[(&[0, infinity], nan), (&[0x3c01, 0x3c01], 0x3c02)]);
    check(
        "d:b16 a:b16 b:b16 c:b16",
        "fma.rn.relu.f16 d, a, b, c;",
        &[(&[0x3c00, 0xbc00, 0], 0), (&[nan, 0, 0], nan)],
    );
    check("d:b16 a:b16", "neg.f16 d, a;", &[(&[0x3c00], 0xbc00), (&[0], 0x8000)]);
    check("d:b32 a:b32", "abs.f16x2 d, a;", &[(&[0xbc00_8000], 0x3c00_0000)]);
    check(
        two,
        "min.f16 d, a, b;",
        &[(&[nan, 0x3c00], 0x3c00), (&[0, 0x8000], 0x8000), (&[nan, nan], nan)],
    );
    check(two, "max.NaN.bf16 d, a, b;", &[(&[0x7fc0, 0x3f80], nan), (&[0x8000, 0], 0)]);
    check(
        two,
        "max.xorsign.abs.f16 d, a, b;",
        &[(&[0xbc00, 0x4000], 0xc000), (&[0xbc00, 0xc000], 0x4000)],
    );
    check(
        "d:b32 a:b32 b:b32 c:b32",
        "fma.rn.f16x2 d, a, b, c;",
        &[(&[0x4000_3c00, 0x4200_3c00, 0x3c00_3c00], 0x4700_4000)],
    );
    check(
        "d:b32 a:b32 b:b32",
        "mul.bf16x2 d, a, b;",
        &[(&[0x4000_3f80, 0x4040_bf80], 0x40c0_bf80)],
    );
    check("d:pred a:b16 b:b16", "setp.lt.f16 d, a, b;", &[(&[0xbc00, 0x3c00], 1), (&[nan, 0], 0)]);
    check(
        "d:b32 a:b32 b:b32",
        "set.lt.f16x2.f16x2 d, a, b;",
        &[(&[0x0000_3c00, 0x3c00_3c00], 0x3c00_0000)],
    );
    check(
        "d:b32 a:b32 b:b32",
        "set.leu.u32.bf16x2 d, a, b;",
        &[(&[0x7fc0_3f80, 0x3f80_0000], 0xffff_0000)],
    );
}

/// Whether `bits` is the nearest f16 to `exact * 2^-48`, ties to even.
fn nearest_f16(bits: u16, exact: i128) -> bool {
    let value = |bits: u16| {
        let half = f16::from_bits(bits & 0x7fff).to_f64();
        // The place behind the greatest number belongs to infinity.
        let half = if half.is_infinite() { 65536.0 } else { half };
        let units = (half * 2f64.powi(24)) as i128 * (1 << 24);
        if bits & 0x8000 != 0 { -units } else { units }
    };
    let distance = |bits: u16| (value(bits) - exact).abs();
    let magnitude = bits & 0x7fff;
    let sign = bits & 0x8000;
    let above = if magnitude == 0x7c00 { u16::MAX } else { magnitude + 1 };
    let fits = |other: u16| match distance(bits).cmp(&distance(other | sign)) {
        std::cmp::Ordering::Less => true,
        std::cmp::Ordering::Equal => magnitude.is_multiple_of(2),
        std::cmp::Ordering::Greater => magnitude == 0x7c00 && exact.abs() > value(0x7c00),
    };
    (above == u16::MAX || fits(above)) && (magnitude == 0 || fits(magnitude - 1))
}

fn units(bits: u16, power: i32) -> i128 {
    (f16::from_bits(bits).to_f64() * 2f64.powi(power)) as i128
}

fn finite_f16() -> impl Strategy<Value = u16> {
    any::<u16>().prop_filter("finite", |bits| bits & 0x7c00 != 0x7c00)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn f16_arithmetic_agrees_with_integers(a in finite_f16(), b in finite_f16(), c in finite_f16()) {
        let wide = [u64::from(a), u64::from(b), u64::from(c)];
        let fma = arithmetic::fma(F16, wide[0], wide[1], wide[2], Rounding::Nearest) as u16;
        let product = units(a, 24) * units(b, 24);
        prop_assert!(nearest_f16(fma, product + units(c, 24) * (1 << 24)), "fma {:x?} {fma:#x}", wide);
        let mul = arithmetic::mul(F16, wide[0], wide[1], Rounding::Nearest) as u16;
        prop_assert!(nearest_f16(mul, product), "mul {:x?} {mul:#x}", wide);
        let add = arithmetic::add(F16, wide[0], wide[1], Rounding::Nearest) as u16;
        prop_assert!(nearest_f16(add, (units(a, 24) + units(b, 24)) * (1 << 24)), "add {:x?} {add:#x}", wide);
    }
}
