//! Numbers that leave the range of their type on the way from x to y, or from y to a gradient, where
//! the results do not.
use crate::support::engines::engines;
use crate::support::near::{near_the_definition, step};
use crate::support::oracle::{self, served};
use crate::support::run::{self, Epilogue, Inputs, Mode, Spread, Want, channel_of};
use approx::{abs_diff_eq, relative_eq};
use batchnorm::{Element, Engine, Real, Shape};
use half::bf16;

engines! { [reference, cpu, cuda, cuda_split] [
    products_beyond_f32_are_computed_in_f64,
    squares_below_f32_count_beside_a_tiny_eps,
    tiny_gradients_beside_tiny_values_keep_their_digits,
    squares_beyond_f64_and_below_it_count,
    distances_beyond_the_type_are_in_range,
    scales_beyond_the_type_are_in_range,
    gradients_near_the_end_of_the_type_are_added_up,
    an_extreme_channel_leaves_the_others_alone,
    constants_at_the_ends_give_their_bias,
    values_further_apart_than_the_largest_number_are_normalized,
] }

const MODES: [Mode; 2] = [Mode::Train(Some(0.1)), Mode::Eval];

fn elements(shape: &Shape, channel: usize) -> Vec<usize> {
    (0..shape.len()).filter(|&i| channel_of(shape, i) == channel).collect()
}

/// `x` and `grad_y` of one channel, alternating between these values and their negatives.
fn alternating<E: Element>(shape: &Shape, x: f64, grad_y: f64, epilogue: Epilogue) -> Inputs<E> {
    let mut inputs = Inputs::<E>::new(shape, epilogue, 1);
    for channel in 0..shape.channels() {
        for (k, i) in elements(shape, channel).into_iter().enumerate() {
            let sign = if k % 2 == 0 { 1.0 } else { -1.0 };
            inputs.x[i] = run::narrow(sign * x);
            inputs.grad_y[i] = run::narrow(sign * grad_y);
        }
    }
    inputs.weight.fill(E::Acc::from_f64(1.0));
    inputs.bias.fill(E::Acc::from_f64(0.0));
    inputs
}

/// Shapes with an even number of values per channel, so that means are 0.
fn even() -> impl Iterator<Item = Shape> {
    let dims: [(&[usize], usize); 7] = [
        (&[4, 1], 1),
        (&[1024, 3], 1),
        (&[2, 3, 2, 5], 1),
        (&[2, 4, 300], 1),
        (&[6, 3, 17], 1),
        (&[8, 301], 1),
        (&[1, 2, 70_002], 1),
    ];
    dims.into_iter().map(|(dims, axis)| Shape::new(dims, axis).unwrap())
}

/// Those of them that a software device is through with at once.
fn small() -> impl Iterator<Item = Shape> {
    even().filter(|shape| shape.len() <= 2408)
}

/// Products of gradients and distances that no f32 holds, and whose sum times invstd one does.
fn products_beyond_f32_are_computed_in_f64<G: Engine>(engine: &G) {
    fn large<E: Element, G: Engine>(engine: &G, x: f64, grad_y: f64) {
        for shape in even() {
            let m = shape.per_channel() as f64;
            for mode in MODES {
                let mut inputs = alternating::<E>(&shape, x, grad_y, Epilogue::PLAIN);
                inputs.mean.fill(E::Acc::from_f64(0.0));
                inputs.var.fill(E::Acc::from_f64(f64::from(f32::MAX)));
                let got = step(engine, &inputs, mode, false).unwrap();
                let x = inputs.x[0].widen().to_f64();
                let grad_y = inputs.grad_y[0].widen().to_f64();
                let deviation =
                    if mode == Mode::Eval { inputs.var[0].to_f64().sqrt() } else { x.abs() };
                let what = format!("{}, {shape}, {mode:?}, {x:e}, {grad_y:e}", engine.name());
                let near = |got: f64, right: f64| {
                    relative_eq!(got, right, epsilon = 0.0, max_relative = 1e-5)
                };
                for (name, right) in
                    [("grad_weight", m * grad_y * x / deviation), ("grad_bias", 0.0)]
                {
                    for got in &got[name] {
                        let fine = if right == 0.0 { *got == 0.0 } else { near(*got, right) };
                        assert!(fine, "{what}: {name} is {got:e}, expected {right:e}");
                    }
                }
                let most = grad_y.abs() / deviation * 1e-5;
                if mode != Mode::Eval {
                    assert!(got["grad_x"].iter().all(|grad| grad.abs() <= most), "{what}: grad_x");
                }
            }
        }
    }
    for (x, grad_y) in [(1e30, 1e9), (1e37, 4.0), (6e37, 1.5), (1e25, 1e18)] {
        large::<f32, G>(engine, x, grad_y);
        large::<bf16, G>(engine, x, grad_y);
    }
    // With what a ReLU and a residual let pass; by the definition.
    for epilogue in Epilogue::affine() {
        for shape in small() {
            let inputs = alternating::<f32>(&shape, 1e30, 1e9, epilogue);
            near_the_definition(engine, &inputs, MODES[0]);
        }
    }
}

fn squares_below_f32_count_beside_a_tiny_eps<G: Engine>(engine: &G) {
    for (dims, x, eps, right) in [
        (&[1, 1, 4096][..], 1e-25, 1e-52, 0.9950372),
        (&[8, 2, 1024], 1e-23, 1e-50, 0.99995),
        (&[64, 6], 1e-23, 1e-50, 0.99995),
    ] {
        let shape = Shape::new(dims, 1).unwrap();
        let mut inputs = alternating::<f32>(&shape, x, 1.0, Epilogue::PLAIN);
        inputs.eps = eps;
        let got = step(engine, &inputs, MODES[0], false).unwrap();
        let y = got["y"].iter().map(|y| y.abs());
        y.for_each(|y| {
            assert!(abs_diff_eq!(y, right, epsilon = 2e-6), "{dims:?}: {y}, expected {right}");
        });
        // A constant channel has its bias all the same.
        inputs.x.fill(0.1);
        inputs.bias.fill(0.25);
        let got = step(engine, &inputs, MODES[0], false).unwrap();
        assert!(got["y"].iter().all(|&y| y == 0.25), "{dims:?}");
    }
}

fn tiny_gradients_beside_tiny_values_keep_their_digits<G: Engine>(engine: &G) {
    for shape in even() {
        let mut inputs = alternating::<f32>(&shape, 1e-20, 1e-26, Epilogue::PLAIN);
        inputs.eps = 1e-45;
        let got = step(engine, &inputs, MODES[0], false).unwrap();
        let (x, grad_y) = (f64::from(inputs.x[0]), f64::from(inputs.grad_y[0]));
        let right = shape.per_channel() as f64 * grad_y * x / (x * x + 1e-45).sqrt();
        for got in &got["grad_weight"] {
            let near = relative_eq!(*got, right, epsilon = 0.0, max_relative = 1e-5);
            assert!(near, "{shape}: {got:e}, expected {right:e}");
        }
    }
}

/// In f64 there is nothing wider: y is 1 and -1 times the weight, from the least numbers to the largest.
fn squares_beyond_f64_and_below_it_count<G: Engine>(engine: &G) {
    for (x, eps) in [
        (1e160, 1e-5),
        (1e300, 1e-5),
        (1.5e308, 1e-5),
        (1e155, 1e300),
        (1e-300, 1e-280),
        (1e-160, 1e-323),
        (1e-165, f64::MIN_POSITIVE / 4.0),
    ] {
        for shape in even() {
            let mut inputs = alternating::<f64>(&shape, x, 0.5, Epilogue::PLAIN);
            inputs.eps = eps;
            inputs.weight.fill(2.5);
            inputs.grad_y.iter_mut().step_by(3).for_each(|g| *g = 0.25);
            let Some(got) = step(engine, &inputs, MODES[0], false) else { return };
            // x / hypot(x, sqrt(eps)), which neither square is needed for.
            let right = 2.5 * (x / f64::hypot(x, eps.sqrt()));
            let what = format!("{}, {shape}, {x:e}", engine.name());
            let invstd = got["saved_invstd"][0] * f64::hypot(x, eps.sqrt());
            assert!(
                abs_diff_eq!(invstd, 1.0, epsilon = 1e-12),
                "{what}: invstd {:e}",
                got["saved_invstd"][0]
            );
            for (y, x) in got["y"].iter().zip(&inputs.x) {
                assert!(
                    abs_diff_eq!(*y, right.copysign(*x), epsilon = 2.5e-12),
                    "{what}: {y:e}, expected {right}"
                );
            }
            for c in 0..shape.channels() {
                let signed =
                    |i: &usize| inputs.grad_y[*i].copysign(inputs.x[*i] * inputs.grad_y[*i]);
                let right = elements(&shape, c).iter().map(signed).sum::<f64>() * right / 2.5;
                let got = got["grad_weight"][c];
                let bar = 1e-12 * shape.per_channel() as f64;
                assert!(
                    abs_diff_eq!(got, right, epsilon = bar),
                    "{what}: {got:e}, expected {right:e}"
                );
            }
        }
    }
}

/// `x - mean` is no number of the type, `(x - mean) * invstd` is.
fn distances_beyond_the_type_are_in_range<G: Engine>(engine: &G) {
    fn far<E: Element, G: Engine>(engine: &G, largest: f64) {
        for (shape, epilogue) in small().flat_map(|s| Epilogue::affine().map(move |e| (s, e))) {
            let mut inputs = Inputs::<E>::new(&shape, epilogue, 3);
            for (i, x) in inputs.x.iter_mut().enumerate() {
                *x = run::narrow(if i % 4 == 1 {
                    -largest
                } else {
                    largest * (1.0 - (i % 5) as f64 / 50.0)
                });
            }
            near_the_definition(engine, &inputs, MODES[0]);
            // The other end's statistics.
            inputs.mean.fill(E::Acc::from_f64(-0.9 * largest));
            inputs.var.fill(E::Acc::from_f64(largest));
            near_the_definition(engine, &inputs, MODES[1]);
        }
    }
    far::<f32, G>(engine, 3e38);
    far::<bf16, G>(engine, 3e38);
}

/// `weight * invstd` is no number of the type, or one of few digits.
fn scales_beyond_the_type_are_in_range<G: Engine>(engine: &G) {
    for epilogue in Epilogue::affine() {
        for shape in small() {
            for (x, eps, weight) in [
                (1e-36, 1e-76, 1e4),
                (1e37, 1e-5, 1e-3),
                (3e38, 1e-5, 0.25),
                (2e-30, 1e-70, 1.5),
                (1e25, 1e-5, 1e-20),
            ] {
                let mut inputs = alternating::<f32>(&shape, x, 1.0, epilogue);
                inputs.x.iter_mut().step_by(5).for_each(|x| *x *= 0.75);
                inputs.grad_y = Inputs::<f32>::new(&shape, epilogue, 5).grad_y;
                inputs.eps = eps;
                inputs.weight.fill(weight as f32);
                near_the_definition(engine, &inputs, MODES[0]);
            }
        }
    }
}

/// Products and sums leave f32 though deviations are ordinary ones.
fn gradients_near_the_end_of_the_type_are_added_up<G: Engine>(engine: &G) {
    for epilogue in Epilogue::affine() {
        for shape in small() {
            for (x, grad_y) in [(1e9, 1e30), (2.0, 2e38), (1e-3, 1e36)] {
                let mut inputs = alternating::<f32>(&shape, x, grad_y, epilogue);
                // So that not all of it passes a ReLU, nor adds up beyond f32.
                let n = shape.per_channel() as f32;
                inputs.grad_y.iter_mut().for_each(|g| *g /= n.sqrt());
                let mode = MODES[0];
                let Some(got) = step(engine, &inputs, mode, false) else { return };
                let right = oracle::backward(&inputs, mode, Want::all(epilogue), &got["y"], None);
                for name in ["grad_weight", "grad_bias"] {
                    for (got, right) in got[name].iter().zip(&right[name].values) {
                        let bar = 1e-5 * right.abs().max(grad_y);
                        let beyond = right.abs() > f64::from(f32::MAX);
                        let fine = (got - right).abs() <= bar || beyond && got.is_infinite();
                        let what = format!("{}, {shape}, {epilogue:?}", engine.name());
                        assert!(fine, "{what}: {name} is {got:e}, expected {right:e}");
                    }
                }
            }
        }
    }
}

/// In every bit, and it is right itself.
fn an_extreme_channel_leaves_the_others_alone<G: Engine>(engine: &G) {
    for (mode, shape) in MODES.into_iter().flat_map(|mode| small().map(move |shape| (mode, shape)))
    {
        if shape.channels() == 1 {
            continue;
        }
        for epilogue in Epilogue::affine() {
            let spread = Spread { mean: 0.5, std: 2.0 };
            let clean = Inputs::<f32>::spread(&shape, epilogue, spread, 4);
            let mut inputs = clean.clone();
            for i in elements(&shape, 1) {
                inputs.x[i] *= 1e35;
            }
            (inputs.mean[1], inputs.var[1]) = (-1e38, 1e38);
            near_the_definition(engine, &inputs, mode);
            let [Some(got), Some(clean)] =
                [&inputs, &clean].map(|inputs| step(engine, inputs, mode, false))
            else {
                return;
            };
            for (name, values) in &got {
                for (i, (got, clean)) in values.iter().zip(&clean[name]).enumerate() {
                    let by_element = values.len() == shape.len();
                    let c = if by_element { channel_of(&shape, i) } else { i % shape.channels() };
                    let what = format!("{}, {shape}, {epilogue:?}: {name}[{i}]", engine.name());
                    assert!(c == 1 || got.to_bits() == clean.to_bits(), "{what}: {got}, {clean}");
                }
            }
        }
    }
}

/// Ends of the type that are in a channel alone: its bias, in every bit.
fn constants_at_the_ends_give_their_bias<G: Engine>(engine: &G) {
    fn constant<E: Element, G: Engine>(engine: &G, value: f64) {
        for (shape, sign) in small().flat_map(|shape| [(shape, 1.0), (shape, -1.0)]) {
            let mut inputs = Inputs::<E>::new(&shape, Epilogue::PLAIN, 2);
            inputs.x.fill(run::narrow(sign * value));
            inputs.mean.fill(E::Acc::from_f64(inputs.x[0].widen().to_f64()));
            inputs.var.fill(E::Acc::from_f64(0.0));
            for mode in MODES {
                let Some(got) = step(engine, &inputs, mode, false) else { return };
                for (i, y) in got["y"].iter().enumerate() {
                    let bias = E::narrow(inputs.bias[channel_of(&shape, i)]).widen().to_f64();
                    let what = format!("{}, {shape}, {mode:?}, {value:e}", engine.name());
                    assert_eq!(*y, bias, "{what}: y[{i}]");
                }
            }
        }
    }
    for value in [1e160, 1e306, f64::MAX, 1e-300, f64::MIN_POSITIVE / 8.0] {
        constant::<f64, G>(engine, value);
    }
    for value in [1e37, f64::from(f32::MAX), 1e-37, 1e-44] {
        constant::<f32, G>(engine, value);
    }
}

/// A third of them is on the other side: the mean is a third, the distance four thirds of each.
fn values_further_apart_than_the_largest_number_are_normalized<G: Engine>(engine: &G) {
    let shape = Shape::new(&[6, 1], 1).unwrap();
    let mut inputs = Inputs::<f64>::new(&shape, Epilogue::PLAIN, 1);
    let a = 1.7e308;
    inputs.x = vec![a, -a, a, a, a, -a];
    (inputs.weight, inputs.bias) = (vec![1.0], vec![0.0]);
    let Some(got) = served(run::forward(engine, &inputs, Mode::Train(None), None)) else { return };
    let (near, far) = (0.5f64.sqrt(), -2f64.sqrt());
    for (y, right) in got["y"].iter().zip([near, far, near, near, near, far]) {
        assert!(
            abs_diff_eq!(*y, right, epsilon = 1e-14),
            "{}: {y}, by hand {right}",
            engine.name()
        );
    }
}
