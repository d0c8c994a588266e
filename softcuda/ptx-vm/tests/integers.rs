//! Integer instructions against the text of the PTX ISA.

mod support;

use proptest::prelude::*;
use support::{Program, check};

const B32: &str = "d:b32 a:b32 b:b32";
const B64: &str = "d:b64 a:b64 b:b64";

#[test]
fn arithmetic_wraps_and_saturates() {
    check(B32, "add.s32 d, a, b;", &[(&[0xffff_ffff, 2], 1), (&[0x7fff_ffff, 1], 0x8000_0000)]);
    check(
        B32,
        "add.sat.s32 d, a, b;",
        &[
            (&[0x7fff_ffff, 1], 0x7fff_ffff),
            (&[0x8000_0000, 0xffff_ffff], 0x8000_0000),
            (&[5, 0xffff_fffe], 3),
        ],
    );
    check(B32, "sub.sat.s32 d, a, b;", &[(&[0x8000_0000, 1], 0x8000_0000), (&[3, 5], 0xffff_fffe)]);
    check("d:b16 a:b16 b:b16", "add.u16 d, a, b;", &[(&[0xffff, 2], 1)]);
    check("d:b16 a:b16 b:b16", "sub.s16 d, a, b;", &[(&[0, 1], 0xffff)]);
    check(B64, "sub.s64 d, a, b;", &[(&[0, 1], u64::MAX)]);
    check("d:b32 a:b32", "neg.s32 d, a;", &[(&[1], 0xffff_ffff), (&[0x8000_0000], 0x8000_0000)]);
    check("d:b32 a:b32", "abs.s32 d, a;", &[(&[0xffff_fffb], 5), (&[0x8000_0000], 0x8000_0000)]);
    check(
        "d:b32 a:b32 b:b32 c:b32",
        "sad.u32 d, a, b, c;",
        &[(&[3, 10, 100], 107), (&[10, 3, 1], 8)],
    );
    check("d:b32 a:b32 b:b32 c:b32", "sad.s32 d, a, b, c;", &[(&[0xffff_ffff, 1, 1], 3)]);
}

#[test]
fn products_have_halves() {
    check(B32, "mul.lo.s32 d, a, b;", &[(&[0x1_0001, 0x1_0001], 0x2_0001)]);
    check(B32, "mul.hi.u32 d, a, b;", &[(&[0xffff_ffff, 0xffff_ffff], 0xffff_fffe)]);
    check(
        B32,
        "mul.hi.s32 d, a, b;",
        &[(&[0xffff_ffff, 0xffff_ffff], 0), (&[0xffff_ffff, 1], 0xffff_ffff)],
    );
    check("d:b64 a:b32 b:b32", "mul.wide.s32 d, a, b;", &[(&[0xffff_ffff, 2], u64::MAX - 1)]);
    check("d:b64 a:b32 b:b32", "mul.wide.u32 d, a, b;", &[(&[0xffff_ffff, 2], 0x1_ffff_fffe)]);
    check("d:b32 a:b16 b:b16", "mul.wide.s16 d, a, b;", &[(&[0xffff, 2], 0xffff_fffe)]);
    check("d:b32 a:b16 b:b16", "mul.wide.u16 d, a, b;", &[(&[0xffff, 0xffff], 0xfffe_0001)]);
    check(B64, "mul.hi.s64 d, a, b;", &[(&[u64::MAX, 3], u64::MAX), (&[1 << 63, 2], u64::MAX)]);
    check("d:b32 a:b32 b:b32 c:b32", "mad.lo.s32 d, a, b, c;", &[(&[3, 0xffff_ffff, 5], 2)]);
    check("d:b32 a:b32 b:b32 c:b32", "mad.hi.u32 d, a, b, c;", &[(&[1 << 31, 4, 7], 9)]);
    check(
        "d:b32 a:b32 b:b32 c:b32",
        "mad.hi.sat.s32 d, a, b, c;",
        &[(&[0x7fff_ffff, 0x7fff_ffff, 0x7fff_ffff], 0x7fff_ffff)],
    );
    check(
        "d:b64 a:b32 b:b32 c:b64",
        "mad.wide.s32 d, a, b, c;",
        &[(&[0xffff_ffff, 2, 1], u64::MAX)],
    );
}

#[test]
fn division_truncates() {
    check(
        B32,
        "div.s32 d, a, b;",
        &[(&[0xffff_fff9, 2], 0xffff_fffd), (&[0x8000_0000, 0xffff_ffff], 0x8000_0000)],
    );
    check(
        B32,
        "rem.s32 d, a, b;",
        &[(&[0xffff_fff9, 2], 0xffff_ffff), (&[0x8000_0000, 0xffff_ffff], 0)],
    );
    check(B32, "div.u32 d, a, b;", &[(&[0xffff_fff9, 2], 0x7fff_fffc)]);
    check(B64, "rem.u64 d, a, b;", &[(&[u64::MAX, 10], 5)]);
    // By zero PTX gives no value; it must only not stop the machine.
    Program::new(B32, "div.u32 d, a, b;").one(&[1, 0]);
    Program::new(B32, "rem.s32 d, a, b;").one(&[1, 0]);
}

#[test]
fn extremes_know_signs() {
    check(B32, "min.s32 d, a, b;", &[(&[0xffff_ffff, 1], 0xffff_ffff)]);
    check(B32, "min.u32 d, a, b;", &[(&[0xffff_ffff, 1], 1)]);
    check(B64, "max.s64 d, a, b;", &[(&[u64::MAX, 1], 1)]);
    check("d:b16 a:b16 b:b16", "max.s16 d, a, b;", &[(&[0x8000, 1], 1)]);
}

#[test]
fn shifts_past_the_width_are_clamped() {
    let shift = "d:b32 a:b32 b:b32";
    check(
        shift,
        "shl.b32 d, a, b;",
        &[(&[1, 31], 0x8000_0000), (&[1, 32], 0), (&[1, 0xffff_ffff], 0)],
    );
    check(
        shift,
        "shr.u32 d, a, b;",
        &[(&[0x8000_0000, 31], 1), (&[0x8000_0000, 32], 0), (&[1 << 31, 33], 0)],
    );
    check(
        shift,
        "shr.s32 d, a, b;",
        &[
            (&[0x8000_0000, 31], 0xffff_ffff),
            (&[0x8000_0000, 32], 0xffff_ffff),
            (&[0x8000_0000, 0xffff_ffff], 0xffff_ffff),
            (&[0x7000_0000, 64], 0),
        ],
    );
    check("d:b64 a:b64 b:b32", "shl.b64 d, a, b;", &[(&[1, 63], 1 << 63), (&[1, 64], 0)]);
    check("d:b64 a:b64 b:b32", "shr.s64 d, a, b;", &[(&[1 << 63, 70], u64::MAX)]);
    check("d:b16 a:b16 b:b32", "shl.b16 d, a, b;", &[(&[0xffff, 4], 0xfff0), (&[1, 16], 0)]);
    check("d:b16 a:b16 b:b32", "shr.s16 d, a, b;", &[(&[0x8000, 16], 0xffff)]);
    let funnel = "d:b32 a:b32 b:b32 c:b32";
    check(funnel, "shf.l.wrap.b32 d, a, b, c;", &[(&[0x8000_0001, 0x1, 33], 3), (&[7, 9, 32], 9)]);
    check(funnel, "shf.l.clamp.b32 d, a, b, c;", &[(&[7, 9, 40], 7), (&[0xf000_0000, 1, 4], 0x1f)]);
    check(
        funnel,
        "shf.r.wrap.b32 d, a, b, c;",
        &[(&[0x10, 0xf, 4], 0xf000_0001), (&[7, 9, 32], 7)],
    );
    check(funnel, "shf.r.clamp.b32 d, a, b, c;", &[(&[7, 9, 32], 9), (&[7, 9, 99], 9)]);
}

#[test]
fn logic_is_bitwise() {
    check(B32, "and.b32 d, a, b;", &[(&[0b1100, 0b1010], 0b1000)]);
    check(B32, "or.b32 d, a, b;", &[(&[0b1100, 0b1010], 0b1110)]);
    check(B64, "xor.b64 d, a, b;", &[(&[0b1100, 0b1010], 0b0110)]);
    check("d:b16 a:b16", "not.b16 d, a;", &[(&[1], 0xfffe)]);
    check("d:b32 a:b32", "cnot.b32 d, a;", &[(&[0], 1), (&[7], 0)]);
    check("d:pred a:pred", "not.pred d, a;", &[(&[1], 0), (&[0], 1)]);
    check("d:pred a:pred b:pred", "xor.pred d, a, b;", &[(&[1, 1], 0), (&[0, 1], 1)]);
    check("d:pred", "mov.pred d, -1;", &[(&[], 1)]);
    let three = "d:b32 a:b32 b:b32 c:b32";
    check(three, "lop3.b32 d, a, b, c, 0x80;", &[(&[0xf0f0, 0xff00, 0xaaaa], 0xa000)]);
    check(three, "lop3.b32 d, a, b, c, 0xfe;", &[(&[0xf0f0, 0xff00, 0xaaaa], 0xfffa)]);
    check(three, "lop3.b32 d, a, b, c, 0x96;", &[(&[1, 3, 7], 5)]);
    // (a & b) | (~a & c)
    check(
        three,
        "lop3.b32 d, a, b, c, 0xca;",
        &[(&[0xffff_0000, 0x1234_5678, 0x9abc_def0], 0x1234_def0)],
    );
}

#[test]
fn bits_are_counted_and_found() {
    check("d:b32 a:b32", "popc.b32 d, a;", &[(&[0xf0f0_0001], 9)]);
    check("d:b32 a:b64", "popc.b64 d, a;", &[(&[u64::MAX], 64)]);
    check("d:b32 a:b32", "clz.b32 d, a;", &[(&[1], 31), (&[0], 32)]);
    check("d:b32 a:b64", "clz.b64 d, a;", &[(&[1], 63), (&[0], 64)]);
    check("d:b32 a:b32", "brev.b32 d, a;", &[(&[1], 0x8000_0000), (&[0x0000_00f1], 0x8f00_0000)]);
    check("d:b64 a:b64", "brev.b64 d, a;", &[(&[1], 1 << 63)]);
    check("d:b32 a:b32", "bfind.u32 d, a;", &[(&[0x0800_0000], 27), (&[0], 0xffff_ffff)]);
    check("d:b32 a:b32", "bfind.s32 d, a;", &[(&[0xffff_ffff], 0xffff_ffff), (&[0xffff_fff0], 3)]);
    check("d:b32 a:b32", "bfind.shiftamt.u32 d, a;", &[(&[1], 31), (&[0], 0xffff_ffff)]);
    check("d:b32 a:b64", "bfind.u64 d, a;", &[(&[1 << 40], 40)]);
}

#[test]
fn fields_are_cut_and_pasted() {
    let extract = "d:b32 a:b32 b:b32 c:b32";
    check(
        extract,
        "bfe.u32 d, a, b, c;",
        &[
            (&[0x1234_5678, 8, 8], 0x56),
            (&[0xffff_ffff, 28, 16], 0xf),
            (&[0xffff_ffff, 40, 4], 0),
            (&[0xffff_ffff, 0, 0], 0),
            // Only the low byte of position and length counts.
            (&[0xabcd, 0x100, 0x108], 0xcd),
        ],
    );
    check(
        extract,
        "bfe.s32 d, a, b, c;",
        &[
            (&[0x0000_8000, 8, 8], 0xffff_ff80),
            (&[0x0000_7f00, 8, 8], 0x7f),
            // Past the end the sign is that of the word.
            (&[0x8000_0000, 28, 16], 0xffff_fff8),
            (&[0x8000_0000, 40, 4], 0xffff_ffff),
            (&[0xffff_ffff, 3, 0], 0),
        ],
    );
    check(
        "d:b64 a:b64 b:b32 c:b32",
        "bfe.u64 d, a, b, c;",
        &[(&[u64::MAX, 0, 64], u64::MAX), (&[1 << 40, 40, 1], 1)],
    );
    check("d:b64 a:b64 b:b32 c:b32", "bfe.s64 d, a, b, c;", &[(&[1 << 40, 40, 1], u64::MAX)]);
    let insert = "d:b32 a:b32 b:b32 c:b32 e:b32";
    check(
        insert,
        "bfi.b32 d, a, b, c, e;",
        &[
            (&[0xab, 0xffff_ffff, 8, 8], 0xffff_abff),
            (&[0xff, 0, 28, 8], 0xf000_0000),
            (&[0xff, 7, 40, 8], 7),
            (&[0xff, 7, 3, 0], 7),
            (&[0x1234_5678, 7, 0, 200], 0x1234_5678),
        ],
    );
    check(
        "d:b64 a:b64 b:b64 c:b32 e:b32",
        "bfi.b64 d, a, b, c, e;",
        &[(&[5, 9, 32, 32], 5 << 32 | 9)],
    );
}

#[test]
fn bytes_are_permuted() {
    let permute = "d:b32 a:b32 b:b32 c:b32";
    let (a, b) = (0x3322_1100, 0x7766_5544);
    check(
        permute,
        "prmt.b32 d, a, b, c;",
        &[
            (&[a, b, 0x3210], 0x3322_1100),
            (&[a, b, 0x7654], 0x7766_5544),
            (&[a, b, 0x0426], 0x0044_2266),
            // The highest bit of a selector asks for the byte's sign.
            (&[0x80, 0x7f00_0000, 0x8080], 0xff80_ff80),
            (&[0x80, 0x7f00_0000, 0xffff], 0),
        ],
    );
    check(
        permute,
        "prmt.b32.f4e d, a, b, c;",
        &[(&[a, b, 0], 0x3322_1100), (&[a, b, 3], 0x6655_4433)],
    );
    check(
        permute,
        "prmt.b32.b4e d, a, b, c;",
        &[(&[a, b, 0], 0x5566_7700), (&[a, b, 3], 0x0011_2233)],
    );
    check(permute, "prmt.b32.rc8 d, a, b, c;", &[(&[a, b, 2], 0x2222_2222)]);
    check(permute, "prmt.b32.ecl d, a, b, c;", &[(&[a, b, 1], 0x3322_1111)]);
    check(permute, "prmt.b32.ecr d, a, b, c;", &[(&[a, b, 1], 0x1111_1100)]);
    check(
        permute,
        "prmt.b32.rc16 d, a, b, c;",
        &[(&[a, b, 1], 0x3322_3322), (&[a, b, 2], 0x1100_1100)],
    );
}

#[test]
fn dot_products_of_bytes() {
    let dot = "d:b32 a:b32 b:b32 c:b32";
    check(
        dot,
        "dp4a.u32.u32 d, a, b, c;",
        &[(&[0x0102_0304, 0x0101_0101, 5], 15), (&[0xff, 0xff, 0], 65025)],
    );
    check(dot, "dp4a.s32.s32 d, a, b, c;", &[(&[0xff, 0xff, 0], 1), (&[0xff, 2, 0], 0xffff_fffe)]);
    check(dot, "dp4a.s32.u32 d, a, b, c;", &[(&[0xff, 0xff, 0], 0xffff_ff01)]);
}

#[test]
fn moves_pack_and_unpack() {
    check("d:b64 a:b32 b:b32", "mov.b64 d, {a, b};", &[(&[1, 2], 2 << 32 | 1)]);
    check("d:b32 a:b16 b:b16", "mov.b32 d, {a, b};", &[(&[0x1111, 0x2222], 0x2222_1111)]);
    check(
        "d:b64 a:b16 b:b16 c:b16 e:b16",
        "mov.b64 d, {a, b, c, e};",
        &[(&[1, 2, 3, 4], 0x4_0003_0002_0001)],
    );
    let halves = Program::new("d0:b32 d1:b32 a:b64", "mov.b64 {d0, d1}, a;");
    assert_eq!(halves.run(&[vec![0x1111_1111_2222_2222]]), [[0x2222_2222, 0x1111_1111]]);
    check("d:b16 a:b32", "mov.b32 {_, d}, a;", &[(&[0xabcd_1234], 0xabcd)]);
    check("d:b32 a:f32", "mov.b32 d, a;", &[(&[0x3f80_0000], 0x3f80_0000)]);
    check("d:f32", "mov.f32 d, 0f3F800000;", &[(&[], 0x3f80_0000)]);
    check("d:f64", "mov.f64 d, 0dBFF0000000000000;", &[(&[], 0xbff0_0000_0000_0000)]);
    check("d:b32", "mov.u32 d, -1;", &[(&[], 0xffff_ffff)]);
    check("d:b16", "mov.u16 d, -2;", &[(&[], 0xfffe)]);
    check("d:b32", "mov.u32 d, WARP_SZ;", &[(&[], 32)]);
}

#[test]
fn addresses_change_windows() {
    use ptx_vm::instr::{LOCAL_WINDOW, SHARED_WINDOW};
    check("d:b64 a:b64", "cvta.shared.u64 d, a;", &[(&[64], SHARED_WINDOW + 64)]);
    check("d:b64 a:b64", "cvta.to.shared.u64 d, a;", &[(&[SHARED_WINDOW + 64], 64)]);
    check("d:b64 a:b64", "cvta.to.local.u64 d, a;", &[(&[LOCAL_WINDOW + 8], 8)]);
    check("d:b64 a:b64", "cvta.to.global.u64 d, a;", &[(&[0x1234_5678_9abc], 0x1234_5678_9abc)]);
    let windows: [u64; 3] = [SHARED_WINDOW, LOCAL_WINDOW, 0x1_0000];
    for (i, space) in ["shared", "local", "global"].iter().enumerate() {
        let program = Program::new("d:pred a:b64", &format!("isspacep.{space} d, a;"));
        for (j, window) in windows.iter().enumerate() {
            assert_eq!(program.one(&[window + 4]), u64::from(i == j), "{space} {window:#x}");
        }
    }
}

#[test]
fn only_active_lanes_are_written() {
    use ptx_vm::{alu, instr::Op, registers::Registers};
    for form in ["add.s32 %r1, %r2, 1;", "div.s32 %r1, %r2, 1;", "prmt.b32 %r1, %r2, 0, 0x3210;"] {
        let text = support::text(".reg .b32 %r<4>;", form);
        let kernel = ptx_vm::Module::load(&text).unwrap().kernels()[0].clone();
        let Op::Alu(instruction) = &kernel.code[0].op else { panic!("{form}") };
        let mut registers = Registers::of(&kernel);
        *registers.row_mut(instruction.to[0]) = [77; 32];
        alu::execute(instruction, &mut registers, 0x8000_0005);
        for lane in 0..32 {
            let active = 0x8000_0005u32 >> lane & 1 == 1;
            assert_eq!(registers.row(instruction.to[0])[lane] != 77, active, "{form} lane {lane}");
        }
    }
}

proptest! {
    #[test]
    fn carries_make_wide_arithmetic(a: u128, b: u128) {
        let words = |x: u128| [x as u64 & 0xffff_ffff, (x >> 32) as u64 & 0xffff_ffff, (x >> 64) as u64 & 0xffff_ffff, (x >> 96) as u64];
        let registers = "d0:b32 d1:b32 d2:b32 d3:b32 a0:b32 a1:b32 a2:b32 a3:b32 b0:b32 b1:b32 b2:b32 b3:b32";
        let inputs = [words(a), words(b)].concat();
        let sum = Program::new(registers, "add.cc.u32 d0, a0, b0; addc.cc.u32 d1, a1, b1; addc.cc.u32 d2, a2, b2; addc.u32 d3, a3, b3;");
        prop_assert_eq!(&sum.run(std::slice::from_ref(&inputs))[0][..], &words(a.wrapping_add(b))[..]);
        let difference = Program::new(registers, "sub.cc.u32 d0, a0, b0; subc.cc.u32 d1, a1, b1; subc.cc.u32 d2, a2, b2; subc.u32 d3, a3, b3;");
        prop_assert_eq!(&difference.run(std::slice::from_ref(&inputs))[0][..], &words(a.wrapping_sub(b))[..]);
    }

    #[test]
    fn multiply_add_with_carry_is_a_wide_product(a: u64, b: u64) {
        let (low, high) = (|x: u64| x & 0xffff_ffff, |x: u64| x >> 32);
        let body = "mul.lo.u32 d0, a0, b0; mul.hi.u32 d1, a0, b0; mad.lo.cc.u32 d1, a0, b1, d1; madc.hi.u32 d2, a0, b1, 0; \
            mad.lo.cc.u32 d1, a1, b0, d1; madc.hi.cc.u32 d2, a1, b0, d2; addc.u32 d3, 0, 0; mad.lo.cc.u32 d2, a1, b1, d2; madc.hi.u32 d3, a1, b1, d3;";
        let program = Program::new("d0:b32 d1:b32 d2:b32 d3:b32 a0:b32 a1:b32 b0:b32 b1:b32", body);
        let got = program.run(&[vec![low(a), high(a), low(b), high(b)]]);
        let product = got[0].iter().rev().fold(0u128, |all, &word| all << 32 | u128::from(word));
        prop_assert_eq!(product, u128::from(a) * u128::from(b));
    }

    #[test]
    fn wide_and_high_products_agree_with_exact_ones(a: u64, b: u64, c: u64) {
        let (x, y) = (a as u32, b as u32);
        let high = Program::new("d:b64 a:b64 b:b64", "mul.hi.u64 d, a, b;");
        prop_assert_eq!(high.one(&[a, b]), ((u128::from(a) * u128::from(b)) >> 64) as u64);
        let signed = Program::new("d:b64 a:b64 b:b64", "mul.hi.s64 d, a, b;");
        prop_assert_eq!(signed.one(&[a, b]), ((i128::from(a as i64) * i128::from(b as i64)) >> 64) as u64);
        let wide = Program::new("d:b64 a:b32 b:b32 c:b64", "mad.wide.s32 d, a, b, c;");
        let exact = (i128::from(x as i32) * i128::from(y as i32)).wrapping_add(i128::from(c)) as u64;
        prop_assert_eq!(wide.one(&[u64::from(x), u64::from(y), c]), exact);
    }

    #[test]
    fn fields_agree_bit_by_bit(a: u64, b: u64, position in 0u64..80, length in 0u64..80) {
        let (mut extracted, mut inserted) = (0u64, b);
        let sign = length > 0 && a >> (position + length - 1).min(63) & 1 == 1;
        for i in 0..64 {
            let inside = i < length && position + i < 64;
            let bit = if inside { a >> (position + i) & 1 == 1 } else { sign };
            extracted |= u64::from(bit) << i;
            if inside {
                inserted = inserted & !(1 << (position + i)) | (a >> i & 1) << (position + i);
            }
        }
        let extract = Program::new("d:b64 a:b64 b:b32 c:b32", "bfe.s64 d, a, b, c;");
        prop_assert_eq!(extract.one(&[a, position, length]), extracted);
        let insert = Program::new("d:b64 a:b64 b:b64 c:b32 e:b32", "bfi.b64 d, a, b, c, e;");
        prop_assert_eq!(insert.one(&[a, b, position, length]), inserted);
    }
}
