//! The gradients of a backward: every engine against differences, against the reference, and by rules.
use crate::support::doubly::{Given, NAMES, all_of, double_backward, near_the_reference, step};
use crate::support::engines::engines;
use crate::support::run::{self, Epilogue, Inputs, Mode, SavedOn, Spread, Want, same_bits};
use crate::support::shapes::{self, CHANNELS_LAST, SMALL};
use batchnorm::{Activation, Cpu, Element, Engine, Shape, SimdLevel};
use half::{bf16, f16};

engines! { [reference, cpu, cuda, gpu] [
    results_are_those_of_differences,
    small_shapes_agree_with_the_reference,
    what_is_absent_is_zero,
    what_is_not_asked_for_changes_nothing,
    what_is_not_finite_stays_in_its_channel,
    numbers_at_the_ends_of_the_range,
    a_residual_that_there_was_not_is_refused,
] }
/// What takes long on the software device.
mod shapes_of_all_kinds {
    use super::{engines, every_shape_agrees_with_the_reference};
    engines! { [cpu] [every_shape_agrees_with_the_reference] }
}
/// What a device does by the way it cuts a tensor.
#[cfg(all(feature = "cuda", target_os = "linux"))]
mod cut_in_every_way {
    use super::{engines, parts_of_all_kinds_agree_with_the_reference};
    engines! { [cuda] [parts_of_all_kinds_agree_with_the_reference] }
}

const MODES: [Mode; 2] = [Mode::Train(None), Mode::Eval];

fn epilogues() -> impl Iterator<Item = Epilogue> {
    let plain = Epilogue { weight: false, bias: false, ..Epilogue::PLAIN };
    Epilogue::affine().chain(Epilogue::others()).chain([plain])
}

/// Of `<v_x, grad_x> + <v_residual, grad_residual> + <v_weight, grad_weight> + <v_bias, grad_bias>`, which the
/// backward alone gives.
fn results_are_those_of_differences<G: Engine>(engine: &G) {
    let shape = Shape::new(&[3, 2, 2], 1).unwrap();
    for (mode, epilogue) in MODES.into_iter().flat_map(|m| epilogues().map(move |e| (m, e))) {
        let mut inputs = Inputs::<f64>::new(&shape, epilogue, 5);
        inputs.eps = 0.1;
        let given = Given::<f64>::new(&shape, epilogue.residual, 7);
        let wanted = all_of(epilogue.residual);
        let got = step(engine, &inputs, &given, mode, &wanted, false).unwrap();
        let loss = |inputs: &Inputs<f64>| -> f64 {
            let mut saved = SavedOn::<G, f64>::new();
            run::forward(engine, inputs, mode, Some(&mut saved)).unwrap();
            let want = Want::all(epilogue);
            let grads = run::backward(engine, inputs, want, &saved, None).unwrap();
            let dot = |name: &str, v: &[f64]| -> f64 {
                grads.get(name).map_or(0.0, |g| g.iter().zip(v).map(|(a, b)| a * b).sum())
            };
            dot("grad_x", &given.x)
                + dot("grad_residual", &given.residual)
                + dot("grad_weight", &given.weight)
                + dot("grad_bias", &given.bias)
        };
        type Of = fn(&mut Inputs<f64>) -> &mut Vec<f64>;
        let of: [Of; 5] = [
            |inputs| &mut inputs.grad_y,
            |inputs| &mut inputs.x,
            |inputs| &mut inputs.residual,
            |inputs| &mut inputs.weight,
            |inputs| &mut inputs.bias,
        ];
        for (name, of) in NAMES.into_iter().zip(of).filter(|(name, _)| wanted.contains(name)) {
            if name == "gg_weight" && !epilogue.weight || name == "gg_bias" && !epilogue.bias {
                continue;
            }
            for (i, got) in got[name].iter().enumerate() {
                let moved = |by: f64| {
                    let mut inputs = inputs.clone();
                    of(&mut inputs)[i] += by;
                    loss(&inputs)
                };
                let expected = (moved(1e-6) - moved(-1e-6)) / 2e-6;
                let near = (got - expected).abs() < 1e-6 * expected.abs().max(1.0);
                assert!(near, "{mode:?} {epilogue:?} {name}[{i}]: {got}, {expected}");
            }
        }
    }
}

fn small_shapes_agree_with_the_reference<G: Engine>(engine: &G) {
    fn all<E: Element, G: Engine>(engine: &G) {
        for (k, case) in [SMALL, CHANNELS_LAST].into_iter().enumerate() {
            for (mode, epilogue) in MODES.into_iter().flat_map(|m| epilogues().map(move |e| (m, e)))
            {
                let shape = case.shape();
                let inputs = Inputs::<E>::new(&shape, epilogue, 11);
                let given = Given::new(&shape, epilogue.residual, 13);
                near_the_reference(engine, &inputs, &given, mode, k == 0);
            }
        }
    }
    all::<f64, G>(engine);
    all::<f32, G>(engine);
    all::<f16, G>(engine);
    all::<bf16, G>(engine);
}

fn every_shape_agrees_with_the_reference<G: Engine>(engine: &G) {
    fn all<E: Element, G: Engine>(engine: &G, first: usize) {
        let all: Vec<_> = epilogues().collect();
        // And joined rows of more columns than the loops on the CPU take at a time.
        let joined = Shape::new(&[40, 300], 1).unwrap();
        let shapes = shapes::cases().iter().map(|case| case.shape());
        for (k, shape) in shapes.chain([joined]).enumerate() {
            for mode in MODES {
                if shape.per_channel() == 1 && mode != Mode::Eval {
                    continue;
                }
                let epilogue = all[(first + 5 * k) % all.len()];
                let inputs = Inputs::<E>::new(&shape, epilogue, k as u64);
                let given = Given::new(&shape, epilogue.residual, 17);
                near_the_reference(engine, &inputs, &given, mode, k % 2 == 0);
            }
        }
    }
    all::<f64, G>(engine, 0);
    all::<f32, G>(engine, 3);
    all::<f16, G>(engine, 7);
    all::<bf16, G>(engine, 10);
}

/// On a device, every way to cut a tensor: runs of whole vectors and not, of several stages and parts, and columns,
/// of rows that are joined, of several parts, and with a last row and a last vector that are not whole.
#[cfg(all(feature = "cuda", target_os = "linux"))]
fn parts_of_all_kinds_agree_with_the_reference<G: Engine>(engine: &G) {
    const DIMS: [&[usize]; 10] = [
        &[3, 2, 64],
        &[2, 2, 4600],
        &[1, 1, 9001],
        &[3, 3, 300],
        &[5, 3, 333],
        &[3, 5, 49],
        &[701, 3],
        &[2100, 2, 2],
        &[37, 7, 9],
        &[5, 140],
    ];
    fn all<E: Element, G: Engine>(engine: &G, first: usize) {
        let silu = Epilogue { activation: Activation::Silu, ..Epilogue::PLAIN };
        let gelu = Epilogue { activation: Activation::Gelu, residual: true, ..Epilogue::PLAIN };
        let relu = Epilogue { activation: Activation::Relu, residual: true, ..Epilogue::PLAIN };
        let all = [Epilogue::PLAIN, relu, silu, gelu];
        for (k, dims) in DIMS.into_iter().enumerate() {
            let shape = Shape::new(dims, 1).unwrap();
            for epilogue in [all[(first + k) % 4], all[(first + k + 1) % 4]] {
                let inputs = Inputs::<E>::new(&shape, epilogue, k as u64);
                let given = Given::new(&shape, epilogue.residual, 19);
                near_the_reference(engine, &inputs, &given, Mode::Train(None), k % 2 == 0);
            }
        }
    }
    all::<f64, G>(engine, 0);
    all::<f32, G>(engine, 1);
    all::<f16, G>(engine, 2);
    all::<bf16, G>(engine, 3);
}

fn what_is_absent_is_zero<G: Engine>(engine: &G) {
    let shape = SMALL.shape();
    let epilogue = Epilogue { activation: Activation::Gelu, residual: true, ..Epilogue::PLAIN };
    let inputs = Inputs::<f32>::new(&shape, epilogue, 3);
    let given = Given::<f32>::new(&shape, true, 4);
    let wanted = all_of(true);
    for (mode, absent) in MODES.into_iter().flat_map(|mode| (0..16).map(move |bits| (mode, bits))) {
        let (mut without, mut zeros) = (given.clone(), given.clone());
        for (k, (gone, zero)) in [
            (&mut without.x, &mut zeros.x),
            (&mut without.residual, &mut zeros.residual),
            (&mut without.weight, &mut zeros.weight),
            (&mut without.bias, &mut zeros.bias),
        ]
        .into_iter()
        .enumerate()
        {
            if absent >> k & 1 == 1 {
                gone.clear();
                zero.fill(0.0);
            }
        }
        let [without, zeros] = [without, zeros]
            .map(|given| step(engine, &inputs, &given, mode, &wanted, false).unwrap());
        assert!(same_bits(&without, &zeros), "{mode:?}, {absent:b}");
    }
}

fn what_is_not_asked_for_changes_nothing<G: Engine>(engine: &G) {
    let shape = SMALL.shape();
    for activation in [Activation::Relu, Activation::Silu] {
        let epilogue = Epilogue { activation, residual: true, ..Epilogue::PLAIN };
        let inputs = Inputs::<f32>::new(&shape, epilogue, 3);
        let given = Given::<f32>::new(&shape, true, 4);
        for mode in MODES {
            let all = step(engine, &inputs, &given, mode, &NAMES, false).unwrap();
            for bits in 0..32 {
                let is_wanted = |k: &usize| bits >> k & 1 == 1;
                let wanted: Vec<_> = (0..5).filter(is_wanted).map(|k| NAMES[k]).collect();
                let some = step(engine, &inputs, &given, mode, &wanted, false).unwrap();
                assert_eq!(some.len(), wanted.len());
                for (name, values) in some {
                    assert_eq!(values, all[name], "{mode:?}, {activation}, {wanted:?}: {name}");
                }
            }
        }
    }
}

fn what_is_not_finite_stays_in_its_channel<G: Engine>(engine: &G) {
    fn check<E: Element, G: Engine>(engine: &G) {
        let shape = SMALL.shape();
        let nan = run::narrow::<E>(f64::NAN);
        for (mode, tensor) in MODES.into_iter().flat_map(|mode| (0..3).map(move |k| (mode, k))) {
            let mut inputs = Inputs::<E>::new(&shape, Epilogue::PLAIN, 3);
            let mut given = Given::<E>::new(&shape, false, 4);
            let wanted = all_of(false);
            let right = step(engine, &inputs, &given, mode, &wanted, false).unwrap();
            let at = 2 * shape.inner() + 1;
            let of = [&mut inputs.x, &mut inputs.grad_y, &mut given.x];
            of.into_iter().nth(tensor).unwrap()[at] = nan;
            let got = step(engine, &inputs, &given, mode, &wanted, false).unwrap();
            let mut spoiled = 0;
            for (name, got) in got {
                for (i, (got, right)) in got.iter().zip(&right[name]).enumerate() {
                    let is_sum = got_is_sum(name);
                    let c = if is_sum { i } else { run::channel_of(&shape, i) };
                    let frozen = mode == Mode::Eval && !is_sum && i != at;
                    if c != 2 || frozen {
                        assert_eq!(got.to_bits(), right.to_bits(), "{mode:?} {name}[{i}]");
                    }
                    spoiled += usize::from(got.is_nan());
                }
            }
            assert!(spoiled > 0, "{mode:?}: NaN in {tensor} is not seen");
        }
    }
    check::<f32, G>(engine);
    check::<f64, G>(engine);
    check::<f16, G>(engine);
}

fn got_is_sum(name: &str) -> bool {
    ["gg_weight", "gg_bias"].contains(&name)
}

/// Values whose deviations, and gradients whose products, leave the type on the way: by what they are times a
/// power of two, which changes nothing but exponents.
fn numbers_at_the_ends_of_the_range<G: Engine>(engine: &G) {
    fn check<E: Element, G: Engine>(engine: &G, size: i32, bar: f64) {
        let shape = SMALL.shape();
        let unit = 2f64.powi(size);
        let epilogue = Epilogue { weight: false, ..Epilogue::PLAIN };
        for mode in MODES {
            let mut inputs =
                Inputs::<E>::spread(&shape, epilogue, Spread { mean: 0.7, std: 1.3 }, 3);
            inputs.eps = 1e-300;
            if E::Acc::DTYPE == batchnorm::DType::F32 {
                inputs.eps = 1e-70;
            }
            let given = Given::<E>::new(&shape, false, 4);
            let wanted = all_of(false);
            let right = step(engine, &inputs, &given, mode, &wanted, false).unwrap();
            let times = |values: &mut [E], by: f64| {
                values.iter_mut().for_each(|v| *v = run::narrow(v.widen().to_f64() * by));
            };
            let (mut inputs, mut given) = (inputs, given);
            times(&mut inputs.x, unit);
            times(&mut given.x, unit); // so that all results but that of x stay
            for mean in &mut inputs.mean {
                *mean = run::narrow(mean.to_f64() * unit);
            }
            for var in &mut inputs.var {
                *var = run::narrow(var.to_f64() * unit * unit);
            }
            if inputs.var.iter().any(|var| !var.to_f64().is_normal()) {
                continue; // no type has such a variance
            }
            let got = step(engine, &inputs, &given, mode, &wanted, false).unwrap();
            for name in wanted {
                let by = if name == "gg_x" { unit } else { 1.0 };
                let most = right[name].iter().fold(1e-30, |most: f64, v| most.max(v.abs()));
                for (i, (got, right)) in got[name].iter().zip(&right[name]).enumerate() {
                    let error = (got * by - right).abs();
                    assert!(error <= bar * most, "{mode:?} {name}[{i}]: {got:e}, {right:e}");
                }
            }
        }
    }
    use batchnorm::Real;
    for size in [-90, -40, 40, 90] {
        check::<f32, G>(engine, size, 1e-5);
        check::<f64, G>(engine, 5 * size, 1e-12);
    }
}

fn a_residual_that_there_was_not_is_refused<G: Engine>(engine: &G) {
    let shape = SMALL.shape();
    let inputs = Inputs::<f32>::new(&shape, Epilogue::PLAIN, 3);
    let given = Given::<f32>::new(&shape, true, 4);
    let refusal = |given: &Given<f32>, wanted: &[&'static str]| {
        step(engine, &inputs, given, Mode::Eval, wanted, false).unwrap_err().to_string()
    };
    let without = Given { residual: vec![], ..given.clone() };
    for (given, wanted, what) in [
        (&given, "gg_x", "a v_residual to read"),
        (&without, "gg_residual", "a gg_residual to write"),
    ] {
        let error = refusal(given, &[wanted]);
        assert!(error.contains("residual") && error.contains("none") && error.contains(what));
    }
    // A derivative that takes it again.
    let epilogue = Epilogue { activation: Activation::Silu, residual: true, ..Epilogue::PLAIN };
    let mut inputs = Inputs::<f32>::new(&shape, epilogue, 3);
    let mut saved = SavedOn::<G, f32>::new();
    run::forward(engine, &inputs, Mode::Eval, Some(&mut saved)).unwrap();
    inputs.epilogue.residual = false;
    let error = double_backward(engine, &inputs, &without, &saved, &["gg_x"], false).unwrap_err();
    let expected =
        "residual: expected that of the forward, which the derivatives of silu take, got none";
    assert_eq!(error.to_string(), expected);
}

#[test]
fn cpu_gives_the_same_bits_on_every_level_and_number_of_threads() {
    let leaky = Activation::LeakyRelu { negative_slope: 0.25 };
    // Whole runs and parts of one, several runs, columns of joined rows and of parts of a row.
    for dims in [
        [40, 6, 700],
        [2, 3, 9001],
        [9, 70, 49],
        [3000, 40, 1],
        [300, 24, 7],
        [70, 600, 1],
        [40, 300, 1],
    ] {
        let shape = Shape::new(&dims, 1).unwrap();
        for (activation, residual) in [
            (Activation::Identity, true),
            (Activation::Relu, true),
            (Activation::Relu, false),
            (Activation::Relu6, false),
            (leaky, false),
            (Activation::Gelu, true),
        ] {
            let epilogue = Epilogue { activation, residual, ..Epilogue::PLAIN };
            let inputs = Inputs::<f32>::new(&shape, epilogue, 3);
            let given = Given::<f32>::new(&shape, residual, 4);
            let wanted = all_of(residual);
            let run = |engine: &Cpu| {
                step(engine, &inputs, &given, Mode::Train(None), &wanted, false).unwrap()
            };
            let right = run(&Cpu::default());
            for level in SimdLevel::available() {
                let same = same_bits(&run(&Cpu::with_simd_level(level).unwrap()), &right);
                assert!(same, "{level:?}, {shape}");
            }
            let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
            assert!(same_bits(&pool.install(|| run(&Cpu::default())), &right), "{shape}");
        }
    }
}
