//! `cvt` between integers and floating-point numbers, against the text of the PTX ISA.

mod support;

use proptest::prelude::*;
use support::{Program, check};

const NAN: u64 = 0x7fff_ffff;

fn f(x: f32) -> u64 {
    u64::from(x.to_bits())
}

#[test]
fn integers_are_extended_cut_and_clamped() {
    check("d:b64 a:b32", "cvt.s64.s32 d, a;", &[(&[0xffff_fffe], u64::MAX - 1)]);
    check("d:b64 a:b32", "cvt.u64.u32 d, a;", &[(&[0xffff_fffe], 0xffff_fffe)]);
    check("d:b32 a:b64", "cvt.u32.u64 d, a;", &[(&[0x1_2345_6789], 0x2345_6789)]);
    check("d:b32 a:b16", "cvt.s32.s16 d, a;", &[(&[0x8000], 0xffff_8000)]);
    // The low byte of a wider register.
    check("d:b32 a:b32", "cvt.s32.s8 d, a;", &[(&[0x1280], 0xffff_ff80)]);
    check("d:b32 a:b32", "cvt.u32.u8 d, a;", &[(&[0x1280], 0x80)]);
    // A signed result fills its register.
    check("d:b32 a:b32", "cvt.s8.s32 d, a;", &[(&[0x1280], 0xffff_ff80)]);
    check("d:b16 a:b32", "cvt.u8.u32 d, a;", &[(&[0x1280], 0x80)]);
    check(
        "d:b32 a:b32",
        "cvt.sat.s8.s32 d, a;",
        &[(&[0x1280], 0x7f), (&[0xffff_0000], 0xffff_ff80)],
    );
    check("d:b16 a:b32", "cvt.sat.u8.s32 d, a;", &[(&[300], 255), (&[0xffff_ffff], 0)]);
    check(
        "d:b32 a:b64",
        "cvt.sat.s32.s64 d, a;",
        &[(&[1 << 40], 0x7fff_ffff), (&[1 << 63], 0x8000_0000)],
    );
    check("d:b32 a:b64", "cvt.sat.u32.u64 d, a;", &[(&[1 << 40], 0xffff_ffff)]);
    check("d:b64 a:b32", "cvt.sat.u64.s32 d, a;", &[(&[0xffff_ffff], 0)]);
}

#[test]
fn floats_become_integers_by_each_rounding() {
    let body = "d:b32 a:f32";
    let cases = [
        // rni, rzi, rmi, rpi
        (2.5, [2, 2, 2, 3]),
        (3.5, [4, 3, 3, 4]),
        (-2.5, [-2, -2, -3, -2]),
        (-0.25, [0, 0, -1, 0]),
        (0.75, [1, 0, 0, 1]),
        (1e-45, [0, 0, 0, 1]),
    ];
    for (i, mode) in ["rni", "rzi", "rmi", "rpi"].iter().enumerate() {
        let program = Program::new(body, &format!("cvt.{mode}.s32.f32 d, a;"));
        for (value, expected) in cases {
            assert_eq!(program.one(&[f(value)]), u64::from(expected[i] as u32), "{mode} {value}");
        }
    }
    check(body, "cvt.rpi.ftz.s32.f32 d, a;", &[(&[1], 0)]);
}

#[test]
fn floats_out_of_range_are_clamped() {
    check(
        "d:b32 a:f32",
        "cvt.rzi.s32.f32 d, a;",
        &[
            (&[f(3e9)], 0x7fff_ffff),
            (&[f(-3e9)], 0x8000_0000),
            (&[f(f32::INFINITY)], 0x7fff_ffff),
            (&[NAN], 0),
        ],
    );
    check(
        "d:b32 a:f32",
        "cvt.rzi.u32.f32 d, a;",
        &[(&[f(-1.0)], 0), (&[f(5e9)], 0xffff_ffff), (&[f(4e9)], 4_000_000_000)],
    );
    check("d:b16 a:f32", "cvt.rzi.u16.f32 d, a;", &[(&[f(70000.0)], 0xffff), (&[NAN], 0)]);
    check(
        "d:b32 a:f32",
        "cvt.rzi.s8.f32 d, a;",
        &[(&[f(-200.0)], 0xffff_ff80), (&[f(200.0)], 0x7f)],
    );
    check(
        "d:b64 a:f32",
        "cvt.rzi.s64.f32 d, a;",
        &[(&[f(1e30)], i64::MAX as u64), (&[f(-1e30)], 1 << 63), (&[NAN], 1 << 63)],
    );
    check(
        "d:b64 a:f64",
        "cvt.rzi.u64.f64 d, a;",
        &[
            (&[1e300f64.to_bits()], u64::MAX),
            (&[(-1f64).to_bits()], 0),
            (&[f64::NAN.to_bits()], 1 << 63),
            (&[18446744073709549568f64.to_bits()], 18446744073709549568),
        ],
    );
    // NaN of f64, or to 64 bits, gives the highest bit.
    check(
        "d:b32 a:f64",
        "cvt.rni.s32.f64 d, a;",
        &[(&[f64::NAN.to_bits()], 0x8000_0000), (&[2.5f64.to_bits()], 2)],
    );
}

#[test]
fn integers_become_floats() {
    check(
        "d:f32 a:b32",
        "cvt.rn.f32.s32 d, a;",
        &[(&[0xffff_ffff], f(-1.0)), (&[16_777_217], f(16_777_216.0))],
    );
    check("d:f32 a:b32", "cvt.rn.f32.u32 d, a;", &[(&[0xffff_ffff], f(4_294_967_296.0))]);
    check("d:f32 a:b32", "cvt.rz.f32.u32 d, a;", &[(&[0xffff_ffff], f(4_294_967_040.0))]);
    check("d:f32 a:b32", "cvt.rp.f32.s32 d, a;", &[(&[16_777_217], f(16_777_218.0))]);
    check(
        "d:f32 a:b32",
        "cvt.rm.f32.s32 d, a;",
        &[(&[-16_777_217i32 as u32 as u64], f(-16_777_218.0))],
    );
    check("d:f64 a:b32", "cvt.rn.f64.s32 d, a;", &[(&[0x8000_0000], (-2147483648f64).to_bits())]);
    check("d:f32 a:b64", "cvt.rn.f32.u64 d, a;", &[(&[u64::MAX], f(18446744073709551616.0))]);
    check("d:f32 a:b16", "cvt.rn.f32.u16 d, a;", &[(&[0xffff], f(65535.0))]);
    check("d:f32 a:b32", "cvt.rn.f32.s8 d, a;", &[(&[0x80], f(-128.0))]);
    check("d:f32 a:b32", "cvt.rn.sat.f32.s32 d, a;", &[(&[5], f(1.0)), (&[0xffff_ffff], 0)]);
    check("d:b16 a:b32", "cvt.rn.bf16.s32 d, a;", &[(&[257], 0x4380), (&[259], 0x4382)]);
}

#[test]
fn floats_become_floats() {
    check(
        "d:f64 a:f32",
        "cvt.f64.f32 d, a;",
        &[(&[1], 2f64.powi(-149).to_bits()), (&[NAN], 0x7ff8_0000_0000_0000)],
    );
    let third = (1f64 / 3.0).to_bits();
    check(
        "d:f32 a:f64",
        "cvt.rn.f32.f64 d, a;",
        &[(&[third], 0x3eaa_aaab), (&[1e300f64.to_bits()], 0x7f80_0000)],
    );
    check(
        "d:f32 a:f64",
        "cvt.rz.f32.f64 d, a;",
        &[(&[third], 0x3eaa_aaaa), (&[1e300f64.to_bits()], 0x7f7f_ffff)],
    );
    check("d:f32 a:f64", "cvt.rm.f32.f64 d, a;", &[(&[third | 1 << 63], 0xbeaa_aaab)]);
    check("d:f32 a:f64", "cvt.rn.ftz.f32.f64 d, a;", &[(&[1e-40f64.to_bits()], 0)]);
    check(
        "d:f32 a:f32",
        "cvt.rni.f32.f32 d, a;",
        &[(&[f(2.5)], f(2.0)), (&[f(-0.25)], f(-0.0)), (&[NAN], NAN)],
    );
    check("d:f32 a:f32", "cvt.rmi.f32.f32 d, a;", &[(&[f(-0.25)], f(-1.0)), (&[f(1e30)], f(1e30))]);
    check("d:f64 a:f64", "cvt.rpi.f64.f64 d, a;", &[(&[0.25f64.to_bits()], 1f64.to_bits())]);
    check(
        "d:f32 a:f32",
        "cvt.sat.f32.f32 d, a;",
        &[(&[f(2.0)], f(1.0)), (&[f(-2.0)], 0), (&[NAN], 0), (&[f(0.5)], f(0.5))],
    );
    check("d:f32 a:f32", "cvt.ftz.f32.f32 d, a;", &[(&[0x8000_0001], 0x8000_0000)]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Casts of the machine underneath round to nearest, and cut and clamp as PTX does.
    #[test]
    fn casts_agree(a: u64, b: u32, exponent in 0u32..80) {
        let single = f32::from_bits(b >> 9 | (100 + exponent) << 23 | b << 31);
        let double = f64::from(single) * 1.000_000_1;
        let one = |registers: &str, body: &str, value: u64| Program::new(registers, body).one(&[value]);
        prop_assert_eq!(one("d:b32 a:f32", "cvt.rzi.s32.f32 d, a;", f(single)), u64::from(single as i32 as u32));
        prop_assert_eq!(one("d:b32 a:f32", "cvt.rzi.u32.f32 d, a;", f(single)), u64::from(single as u32));
        prop_assert_eq!(one("d:b64 a:f32", "cvt.rzi.s64.f32 d, a;", f(single)), single as i64 as u64);
        prop_assert_eq!(one("d:b64 a:f64", "cvt.rzi.u64.f64 d, a;", double.to_bits()), double as u64);
        prop_assert_eq!(one("d:b64 a:f64", "cvt.rni.s64.f64 d, a;", double.to_bits()), double.round_ties_even() as i64 as u64);
        prop_assert_eq!(one("d:f32 a:f32", "cvt.rni.f32.f32 d, a;", f(single)), f(single.round_ties_even()));
        prop_assert_eq!(one("d:f32 a:f32", "cvt.rmi.f32.f32 d, a;", f(single)), f(single.floor()));
        prop_assert_eq!(one("d:f32 a:f32", "cvt.rpi.f32.f32 d, a;", f(single)), f(single.ceil()));
        prop_assert_eq!(one("d:f32 a:f32", "cvt.rzi.f32.f32 d, a;", f(single)), f(single.trunc()));
        prop_assert_eq!(one("d:f32 a:b64", "cvt.rn.f32.s64 d, a;", a), f(a as i64 as f32));
        prop_assert_eq!(one("d:f32 a:b64", "cvt.rn.f32.u64 d, a;", a), f(a as f32));
        prop_assert_eq!(one("d:f64 a:b64", "cvt.rn.f64.s64 d, a;", a), (a as i64 as f64).to_bits());
        prop_assert_eq!(one("d:f64 a:b64", "cvt.rn.f64.u64 d, a;", a), (a as f64).to_bits());
        prop_assert_eq!(one("d:f32 a:f64", "cvt.rn.f32.f64 d, a;", double.to_bits()), f(double as f32));
    }
}
