//! Comparisons, selections and tests of a number's kind, against the text of the PTX ISA.

mod support;

use support::{Program, check};

const NAN: u64 = 0x7fff_ffff;
const INFINITY: u64 = 0x7f80_0000;
const SIGN: u64 = 0x8000_0000;

fn f(x: f32) -> u64 {
    u64::from(x.to_bits())
}

#[test]
fn comparisons_know_order() {
    let three = "d:pred a:f32 b:f32";
    let pairs: [(u64, u64, [bool; 14]); 4] = [
        // eq ne lt le gt ge equ neu ltu leu gtu geu num nan
        (
            f(1.0),
            f(2.0),
            [
                false, true, true, true, false, false, false, true, true, true, false, false, true,
                false,
            ],
        ),
        (
            f(2.0),
            f(2.0),
            [
                true, false, false, true, false, true, true, false, false, true, false, true, true,
                false,
            ],
        ),
        (
            SIGN,
            0,
            [
                true, false, false, true, false, true, true, false, false, true, false, true, true,
                false,
            ],
        ),
        (
            NAN,
            f(1.0),
            [
                false, false, false, false, false, false, true, true, true, true, true, true,
                false, true,
            ],
        ),
    ];
    let names = [
        "eq", "ne", "lt", "le", "gt", "ge", "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan",
    ];
    for (i, name) in names.iter().enumerate() {
        let program = Program::new(three, &format!("setp.{name}.f32 d, a, b;"));
        let doubles = Program::new("d:pred a:f64 b:f64", &format!("setp.{name}.f64 d, a, b;"));
        for (a, b, expected) in &pairs {
            assert_eq!(program.one(&[*a, *b]), u64::from(expected[i]), "{name} {a:x} {b:x}");
            let wide = |bits: u64| f64::from(f32::from_bits(bits as u32)).to_bits();
            assert_eq!(
                doubles.one(&[wide(*a), wide(*b)]),
                u64::from(expected[i]),
                "{name} {a:x} {b:x}"
            );
        }
    }
    check(three, "setp.eq.ftz.f32 d, a, b;", &[(&[1, SIGN], 1)]);
    check(three, "setp.eq.f32 d, a, b;", &[(&[1, SIGN], 0)]);
}

#[test]
fn comparisons_combine() {
    let program =
        Program::new("d0:pred d1:pred a:b32 b:b32 c:pred", "setp.lt.and.s32 d0|d1, a, b, c;");
    // t = -1 < 1; p = t & c; q = !t & c
    assert_eq!(
        program.run(&[vec![0xffff_ffff, 1, 1], vec![0xffff_ffff, 1, 0], vec![1, 1, 1]]),
        [[1, 0], [0, 0], [0, 1]]
    );
    check(
        "d:pred a:b32 b:b32 c:pred",
        "setp.eq.xor.b32 d, a, b, !c;",
        &[(&[1, 1, 1], 1), (&[1, 1, 0], 0)],
    );
    check(
        "d:pred a:b32 b:b32 c:pred",
        "setp.hi.or.u32 d, a, b, c;",
        &[(&[0xffff_ffff, 1, 0], 1), (&[0, 1, 1], 1), (&[0, 1, 0], 0)],
    );
    check("d:pred a:b16 b:b16", "setp.lt.s16 d, a, b;", &[(&[0xffff, 0], 1)]);
    check("d:pred a:b64 b:b64", "setp.ge.s64 d, a, b;", &[(&[u64::MAX, 0], 0)]);
    check(
        "d:b32 a:b32 b:b32",
        "set.gt.u32.s32 d, a, b;",
        &[(&[1, 0xffff_ffff], 0xffff_ffff), (&[0, 0], 0)],
    );
    check(
        "d:f32 a:f32 b:f32",
        "set.lt.f32.f32 d, a, b;",
        &[(&[f(1.0), f(2.0)], f(1.0)), (&[NAN, 0], 0)],
    );
    check("d:f64 a:f64 b:f64 c:pred", "selp.f64 d, a, b, c;", &[(&[5, 6, 1], 5), (&[5, 6, 0], 6)]);
    check(
        "d:b32 a:b32 b:b32 c:b32",
        "slct.u32.s32 d, a, b, c;",
        &[(&[5, 6, 0], 5), (&[5, 6, SIGN], 6)],
    );
    check(
        "d:b64 a:b64 b:b64 c:f32",
        "slct.u64.f32 d, a, b, c;",
        &[(&[5, 6, SIGN], 5), (&[5, 6, NAN], 6), (&[5, 6, SIGN | 1], 6)],
    );
    check("d:b64 a:b64 b:b64 c:f32", "slct.ftz.u64.f32 d, a, b, c;", &[(&[5, 6, SIGN | 1], 5)]);
}

#[test]
fn properties_are_told_apart() {
    let values = [f(1.0), 0, SIGN, 1, INFINITY, INFINITY | SIGN, NAN];
    for (name, expected) in [
        ("finite", [1, 1, 1, 1, 0, 0, 0]),
        ("infinite", [0, 0, 0, 0, 1, 1, 0]),
        ("number", [1, 1, 1, 1, 1, 1, 0]),
        ("notanumber", [0, 0, 0, 0, 0, 0, 1]),
        ("normal", [1, 1, 1, 0, 0, 0, 0]),
        ("subnormal", [0, 0, 0, 1, 0, 0, 0]),
    ] {
        let program = Program::new("d:pred a:f32", &format!("testp.{name}.f32 d, a;"));
        assert_eq!(values.map(|value| program.one(&[value])), expected, "{name}");
    }
    check("d:pred a:f64", "testp.subnormal.f64 d, a;", &[(&[1], 1), (&[1f64.to_bits()], 0)]);
}
