//! `.approx` instructions stay within their documented bounds, whatever the seed.

mod support;

use proptest::prelude::*;
use support::{Program, check};

fn f(x: f32) -> u64 {
    u64::from(x.to_bits())
}

/// The distance in units of the last place of `exact`.
fn ulps(got: u64, exact: f64) -> f64 {
    let nearest = exact as f32;
    let ulp = f64::from(nearest.abs().next_up()) - f64::from(nearest.abs());
    ((f64::from(f32::from_bits(got as u32)) - exact) / ulp).abs()
}

fn relative(got: u64, exact: f64) -> f64 {
    ((f64::from(f32::from_bits(got as u32)) - exact) / exact).abs()
}

fn absolute(got: u64, exact: f64) -> f64 {
    (f64::from(f32::from_bits(got as u32)) - exact).abs()
}

proptest! {
    #[test]
    fn results_stay_within_bounds(seed: u64, exponent in 60u32..190, fraction in 0u32..1 << 23) {
        let x = f32::from_bits(exponent << 23 | fraction);
        let wide = f64::from(x);
        let one = |form: &str, value: f32| {
            Program::new("d:f32 a:f32", &format!("{form} d, a;")).seeded(seed).one(&[f(value)])
        };
        prop_assert!(ulps(one("rcp.approx.f32", x), 1.0 / wide) <= 1.0);
        prop_assert!(relative(one("sqrt.approx.f32", x), wide.sqrt()) <= 2f64.powi(-23));
        prop_assert!(relative(one("rsqrt.approx.f32", x), 1.0 / wide.sqrt()) <= 2f64.powf(-22.9));
        prop_assert!(relative(one("tanh.approx.f32", x), wide.tanh()) <= 2f64.powi(-11));
        let small = f32::from_bits((exponent % 8 + 120) << 23 | fraction);
        prop_assert!(ulps(one("ex2.approx.f32", small), f64::from(small).exp2()) <= 2.0);
        prop_assert!(absolute(one("sin.approx.f32", small), f64::from(small).sin()) <= 2f64.powf(-20.5));
        prop_assert!(absolute(one("cos.approx.f32", -small), f64::from(small).cos()) <= 2f64.powf(-20.5));
        let log = one("lg2.approx.f32", x);
        if (0.5..2.0).contains(&x) {
            prop_assert!(absolute(log, wide.log2()) <= 2f64.powi(-22));
        } else {
            prop_assert!(relative(log, wide.log2()) <= 2f64.powf(-22.6));
        }
        for form in ["div.approx.f32", "div.full.f32"] {
            let program = Program::new("d:f32 a:f32 b:f32", &format!("{form} d, a, b;")).seeded(seed);
            prop_assert!(ulps(program.one(&[f(x), f(1.7)]), wide / f64::from(1.7f32)) <= 2.0);
        }
    }
}

#[test]
fn the_seed_moves_results_and_is_all_that_does() {
    let rows: Vec<Vec<u64>> = (0..1000).map(|i| vec![f(1.0 + i as f32 / 999.0)]).collect();
    let with = |seed| Program::new("d:f32 a:f32", "rsqrt.approx.f32 d, a;").seeded(seed).run(&rows);
    assert_eq!(with(5), with(5));
    assert_ne!(with(5), with(6));
    let nearest = with(0);
    for (row, got) in rows.iter().zip(&nearest) {
        let exact = 1.0 / f64::from(f32::from_bits(row[0] as u32)).sqrt();
        assert_eq!(got[0], f(exact as f32));
    }
}

#[test]
fn special_values_are_exact_for_every_seed() {
    let (infinity, nan, sign) = (0x7f80_0000, 0x7fff_ffff, 0x8000_0000);
    for (form, cases) in [
        ("rcp.approx.f32", vec![(0, infinity), (sign, infinity | sign), (infinity, 0), (nan, nan)]),
        ("sqrt.approx.f32", vec![(sign, sign), (infinity, infinity), (f(-1.0), nan)]),
        (
            "rsqrt.approx.f32",
            vec![(0, infinity), (sign, infinity | sign), (infinity, 0), (f(-1.0), nan)],
        ),
        (
            "ex2.approx.f32",
            vec![(0, f(1.0)), (infinity | sign, 0), (infinity, infinity), (nan, nan)],
        ),
        ("lg2.approx.f32", vec![(0, infinity | sign), (infinity, infinity), (f(-1.0), nan)]),
        ("sin.approx.f32", vec![(sign, sign), (infinity, nan)]),
        ("cos.approx.f32", vec![(sign, f(1.0)), (infinity, nan)]),
        ("tanh.approx.f32", vec![(0, 0), (infinity, f(1.0)), (nan, nan)]),
    ] {
        for seed in [0, 1, 99] {
            let program = Program::new("d:f32 a:f32", &format!("{form} d, a;")).seeded(seed);
            for &(value, expected) in &cases {
                let got = program.one(&[value]);
                assert_eq!(got, expected, "{form} {value:x} gave {got:x}");
            }
        }
    }
    check(
        "d:f32 a:f32",
        "rcp.approx.ftz.f32 d, a;",
        &[(&[1], infinity), (&[sign | 1], infinity | sign)],
    );
    check(
        "d:f32 a:f32 b:f32",
        "div.approx.f32 d, a, b;",
        &[(&[f(1.0), 0x7f00_0001], 0), (&[infinity, 0x7f00_0001], nan), (&[f(1.0), 0], infinity)],
    );
    check(
        "d:f64 a:f64",
        "rsqrt.approx.f64 d, a;",
        &[(&[4f64.to_bits()], 0.5f64.to_bits()), (&[0], f64::INFINITY.to_bits())],
    );
    check(
        "d:f64 a:f64",
        "rcp.approx.ftz.f64 d, a;",
        &[(&[4f64.to_bits()], 0.25f64.to_bits()), (&[1], f64::INFINITY.to_bits())],
    );
    check("d:b16 a:b16", "ex2.approx.f16 d, a;", &[(&[0x3c00], 0x4000), (&[0], 0x3c00)]);
    check("d:b32 a:b32", "tanh.approx.bf16x2 d, a;", &[(&[0x0000_7f80], 0x3f80)]);
}
