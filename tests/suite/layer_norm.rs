//! Layer normalization: every engine against the formulas.
use crate::support::engines::engines;
use crate::support::rows::{Inputs, RULES, near, step};
use crate::support::run::{self, same_bits};
use batchnorm::{Cpu, DType, Element, Engine, EpsRule, Real, SimdLevel};
use half::{bf16, f16};

engines! { [reference, cpu, cuda, gpu] [
    rows_agree_with_the_formulas,
    gradients_are_those_of_differences,
    large_means_lose_no_digits,
    constant_rows_give_the_bias,
    rows_that_are_not_finite_are_nan_alone,
    numbers_at_the_ends_of_the_range,
    no_rows_have_gradients_of_zero,
    the_same_call_gives_the_same_bits,
] }

/// Short rows and long ones, more than one chunk of rows, ends of every length.
const SHAPES: [(usize, usize); 11] = [
    (1, 1),
    (3, 1),
    (1, 7),
    (5, 16),
    (4, 17),
    (9, 33),
    (700, 3),
    (260, 40),
    (3, 1025),
    (2, 2500),
    (5, 1024),
];

fn rows_agree_with_the_formulas<G: Engine>(engine: &G) {
    fn all<E: Element, G: Engine>(engine: &G) {
        for (k, (rows, features)) in SHAPES.into_iter().enumerate() {
            let mut inputs = Inputs::new(rows, features, RULES[k % 3]).rounded::<E>();
            if k % 4 == 1 {
                inputs.weight.clear();
            }
            if k % 4 == 2 {
                inputs.bias.clear();
            }
            inputs.before = (k % 2 == 0).then_some(0.75);
            let got = step::<E, G>(engine, &inputs).unwrap();
            let what = format!("{} {rows} x {features}, {:?}", E::DTYPE, inputs.rule);
            near(E::DTYPE, rows, &got, &inputs.expected(), &what);
        }
    }
    all::<f64, G>(engine);
    all::<f32, G>(engine);
    all::<f16, G>(engine);
    all::<bf16, G>(engine);
}

/// `sum(grad_y * y)` by central differences, which know no formula of a gradient.
fn gradients_are_those_of_differences<G: Engine>(engine: &G) {
    for rule in RULES {
        let inputs = Inputs::new(2, 5, rule);
        let got = step::<f64, G>(engine, &inputs).unwrap();
        let loss = |inputs: &Inputs| -> f64 {
            let y = &step::<f64, G>(engine, inputs).unwrap()["y"];
            y.iter().zip(&inputs.grad_y).map(|(y, g)| y * g).sum()
        };
        type Of = fn(&mut Inputs) -> &mut Vec<f64>;
        let of: [(&str, Of); 3] = [
            ("grad_x", |inputs| &mut inputs.x),
            ("grad_weight", |inputs| &mut inputs.weight),
            ("grad_bias", |inputs| &mut inputs.bias),
        ];
        for (name, of) in of {
            for (i, got) in got[name].iter().enumerate() {
                let moved = |by: f64| {
                    let mut inputs = inputs.clone();
                    of(&mut inputs)[i] += by;
                    loss(&inputs)
                };
                let expected = (moved(1e-6) - moved(-1e-6)) / 2e-6;
                assert!((got - expected).abs() < 1e-7, "{rule:?} {name}[{i}]: {got}, {expected}");
            }
        }
    }
}

/// Values far from 0 that a type holds exactly give what they give near 0.
fn large_means_lose_no_digits<G: Engine>(engine: &G) {
    fn check<E: Element, G: Engine>(engine: &G, step_of: f64, mean: f64) {
        for rule in RULES {
            let mut inputs = Inputs::new(3, 41, rule).rounded::<E>();
            inputs.x.iter_mut().for_each(|x| *x = (*x * 50.0).round() * step_of);
            let expected = inputs.expected();
            inputs.x.iter_mut().for_each(|x| *x += mean);
            let got = step::<E, G>(engine, &inputs).unwrap();
            near(E::DTYPE, 3, &got, &expected, &format!("{} {rule:?}", E::DTYPE));
        }
    }
    check::<f32, G>(engine, 1.0 / 16.0, 524_288.0);
    check::<f64, G>(engine, 1.0 / 16.0, 2f64.powi(40));
    check::<f16, G>(engine, 1.0, 1024.0);
}

fn constant_rows_give_the_bias<G: Engine>(engine: &G) {
    fn check<E: Element, G: Engine>(engine: &G, value: f64) {
        for rule in RULES {
            let mut inputs = Inputs::new(2, 19, rule).rounded::<E>();
            inputs.x.fill(run::narrow::<E>(value).widen().to_f64());
            let got = step::<E, G>(engine, &inputs).unwrap();
            let bias: Vec<f64> =
                inputs.bias.iter().map(|v| run::narrow::<E>(*v).widen().to_f64()).collect();
            assert_eq!(got["y"], bias.repeat(2), "{rule:?} {}", E::DTYPE);
            assert_eq!(got["grad_weight"], [0.0; 19], "{rule:?} {}", E::DTYPE);
            let mut expected = inputs;
            expected.x.fill(0.0);
            near(E::DTYPE, 2, &got, &expected.expected(), &format!("{rule:?}"));
        }
    }
    check::<f32, G>(engine, 1e30);
    check::<f64, G>(engine, 0.1);
    check::<f64, G>(engine, 1e300);
    check::<f16, G>(engine, 0.1);
    check::<bf16, G>(engine, 3e38);
}

fn rows_that_are_not_finite_are_nan_alone<G: Engine>(engine: &G) {
    fn check<E: Element, G: Engine>(engine: &G) {
        for (features, rule) in [(21, EpsRule::Std), (1030, EpsRule::Both)] {
            let right = Inputs::new(4, features, rule).rounded::<E>();
            let mut inputs = right.clone();
            inputs.x[features + 2] = f64::INFINITY;
            inputs.x[3 * features] = f64::NAN;
            let (got, right) =
                (step::<E, G>(engine, &inputs).unwrap(), step::<E, G>(engine, &right).unwrap());
            for name in ["y", "grad_x"] {
                for (n, got) in got[name].chunks(features).enumerate() {
                    let right = &right[name][n * features..][..features];
                    match n {
                        1 | 3 => assert!(got.iter().all(|v| v.is_nan()), "{name} of row {n}"),
                        _ => assert_eq!(got, right, "{name} of row {n}"),
                    }
                }
            }
            assert!(got["grad_weight"].iter().all(|v| v.is_nan()));
            assert_eq!(got["grad_bias"], right["grad_bias"]);
        }
    }
    check::<f32, G>(engine);
    check::<f64, G>(engine);
    check::<f16, G>(engine);
}

/// Rows of `size` and `-size`, in turn or one beside many, from which it lies further than the type's range:
/// xhat is that of 1 and -1 whatever the size, where eps is nothing beside it.
fn numbers_at_the_ends_of_the_range<G: Engine>(engine: &G) {
    fn check<E: Element, G: Engine>(engine: &G, size: f64, rule: EpsRule, eps: f64) {
        for (features, period) in [(6, 2), (1100, 2), (6, 6), (1100, 1100)] {
            let mut inputs = Inputs::new(2, features, rule).rounded::<E>();
            let size = run::narrow::<E>(size).widen().to_f64();
            (inputs.weight, inputs.bias, inputs.eps) = (Vec::new(), Vec::new(), eps);
            let signs = |i: usize| if i.is_multiple_of(period) { 1.0 } else { -1.0 };
            inputs.x = (0..2 * features).map(|i| signs(i) * size).collect();
            let mut unit = inputs.clone();
            unit.x = (0..2 * features).map(signs).collect();
            unit.eps = eps / size;
            let mut expected = unit.expected();
            // The gradient of x is that of the unit row over the size.
            let grad_x = expected.remove("grad_x").unwrap();
            let mut got = step::<E, G>(engine, &inputs).unwrap();
            let got_x = got.remove("grad_x").unwrap();
            let what = format!("{} {size:e} {rule:?}", E::DTYPE);
            near(E::DTYPE, 2, &got, &expected, &what);
            for (got, expected) in got_x.iter().zip(grad_x) {
                // What is left of it where a type's least number is near.
                let (got, left) = (got * size, E::DTYPE == DType::F64 && size < 1e300);
                assert!(!left || (got - expected).abs() < 1e-9, "{what}: {got}, not {expected}");
            }
        }
    }
    check::<f32, G>(engine, 3e38, EpsRule::Variance, 1e-5);
    check::<f32, G>(engine, 1e-30, EpsRule::Std, 1e-37);
    check::<bf16, G>(engine, 3e38, EpsRule::Both, 1e-5);
    check::<f16, G>(engine, 65504.0, EpsRule::Both, 1e-5);
    check::<f64, G>(engine, 1.5e308, EpsRule::Variance, 1e-5);
    check::<f64, G>(engine, 1e-200, EpsRule::Std, 1e-240);
    check::<f64, G>(engine, 1e200, EpsRule::Both, 1e-5);
}

fn no_rows_have_gradients_of_zero<G: Engine>(engine: &G) {
    let mut inputs = Inputs::new(0, 5, EpsRule::Both);
    let got = step::<f32, G>(engine, &inputs).unwrap();
    assert_eq!((&got["y"][..], &got["grad_x"][..]), (&[][..], &[][..]));
    assert_eq!((&got["grad_weight"][..], &got["grad_bias"][..]), (&[0.0; 5][..], &[0.0; 5][..]));
    inputs.before = Some(0.5);
    let got = step::<f32, G>(engine, &inputs).unwrap();
    assert_eq!((&got["grad_weight"][..], &got["grad_bias"][..]), (&[0.5; 5][..], &[0.5; 5][..]));
}

fn the_same_call_gives_the_same_bits<G: Engine>(engine: &G) {
    for (rows, features) in [(700, 19), (6, 3000)] {
        let inputs = Inputs::new(rows, features, EpsRule::Both).rounded::<f32>();
        let first = step::<f32, G>(engine, &inputs).unwrap();
        for _ in 0..3 {
            assert!(same_bits(&first, &step::<f32, G>(engine, &inputs).unwrap()));
        }
    }
}

#[test]
fn threads_and_instructions_change_no_bit() {
    fn all<E: Element>() {
        // Several tasks, with ends of every length.
        for (rows, features) in [(9000, 19), (50, 4001), (3, 7)] {
            let inputs = Inputs::new(rows, features, EpsRule::Both).rounded::<E>();
            let first = step::<E, _>(&Cpu::default(), &inputs).unwrap();
            for threads in [1, 3] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let got = pool.install(|| step::<E, _>(&Cpu::default(), &inputs).unwrap());
                assert!(same_bits(&first, &got), "{threads} threads");
            }
            for level in SimdLevel::available() {
                let cpu = Cpu::with_simd_level(level).unwrap();
                assert!(same_bits(&first, &step::<E, _>(&cpu, &inputs).unwrap()), "{level:?}");
            }
        }
    }
    all::<f32>();
    all::<f16>();
    all::<f64>();
}
