//! The gradients of a backward by a mask: beside differences, beside the reference, and what is refused.
use crate::support::engines::engines;
use crate::support::layer::*;
use crate::support::steps::*;
use crate::support::tolerance::Kind;
use batchnorm::*;
use half::{bf16, f16};

engines! { [reference, cpu, cuda, gpu] [
    results_are_those_of_differences,
    what_does_not_count_is_not_looked_at,
    a_mask_belongs_to_its_forward,
    renormalization_goes_with_a_mask,
] }

mod layouts {
    use super::{engines, every_layout_agrees_with_the_reference};
    engines! { [cpu, cuda, gpu] [every_layout_agrees_with_the_reference] }
}
mod loops {
    use super::{engines, every_loop_agrees_with_the_reference};
    engines! { [cpu] [every_loop_agrees_with_the_reference] }
}

const ACTIVATIONS: [Activation; 7] = [
    Activation::Identity,
    Activation::Relu,
    Activation::LeakyRelu { negative_slope: 0.25 },
    Activation::Relu6,
    Activation::Silu,
    Activation::HardSwish,
    Activation::Gelu,
];

/// Of a loss that is made of all that a backward gives.
fn results_are_those_of_differences<G: Engine>(engine: &G) {
    let (dims, axis) = (&[5, 2, 3][..], 1);
    for (k, activation) in ACTIVATIONS.into_iter().enumerate() {
        let [mut exact, mut keras] = masks(dims, axis, k as u64);
        // So that it is seen.
        keras.count_eps = 0.5;
        exact.all_masked = AllMasked::Zero;
        for mask in [exact, keras] {
            let config = Config::default().activation(activation).eps(0.1);
            let step = Step::<f64>::new(dims, axis, Some(mask));
            let mut bn = parameterized::<f64, G>(engine, 2, config);
            let got = step.run(&mut bn, true);
            let mut loss = |step: &Step<f64>, weight: &[f64], bias: &[f64]| {
                for ((_, param), values) in bn.named_parameters_mut().zip([weight, bias]) {
                    param.value = up(engine, values);
                }
                let of = step.run(&mut bn, false);
                let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
                dot(&of.tensors[1], &step.v_x)
                    + dot(&of.tensors[2], &step.v_residual)
                    + dot(&of.sums[0], &step.v_weight)
                    + dot(&of.sums[1], &step.v_bias)
            };
            let values = [40, 41].map(|seed| wide(&numbers::<bf16>(2, seed)));
            type Of = fn(&mut (Step<f64>, [Vec<f64>; 2])) -> &mut Vec<f64>;
            let of: [(&[f64], Of); 5] = [
                (&got.tensors[3], |all| &mut all.0.grad_y),
                (&got.tensors[4], |all| &mut all.0.x),
                (&got.tensors[5], |all| &mut all.0.residual),
                (&got.sums[2], |all| &mut all.1[0]),
                (&got.sums[3], |all| &mut all.1[1]),
            ];
            for (n, (got, of)) in of.into_iter().enumerate() {
                for (i, got) in got.iter().enumerate() {
                    let mut moved = |by: f64| {
                        let mut all = (step.clone(), values.clone());
                        of(&mut all)[i] += by;
                        loss(&all.0, &all.1[0], &all.1[1])
                    };
                    let expected = (moved(1e-6) - moved(-1e-6)) / 2e-6;
                    let near = (got - expected).abs() < 1e-6 * expected.abs().max(1.0);
                    assert!(near, "{activation:?}, result {n}, at {i}: {got}, {expected}");
                }
            }
        }
    }
}

/// A step beside the reference's, behind the `k`th activation and by one of the masks.
fn agrees_with_the_reference<E: Element, G: Engine>(
    engine: &G,
    (dims, axis): (&[usize], usize),
    (k, by_mask): (usize, usize),
    eps: f64,
) {
    let activation = ACTIVATIONS[k % ACTIVATIONS.len()];
    let mask = masks(dims, axis, k as u64)[by_mask % 2].clone();
    let step = Step::<E>::new(dims, axis, Some(mask));
    let (config, channels) = (Config::default().activation(activation).eps(eps), dims[axis]);
    let got = step.run(&mut parameterized::<E::Acc, G>(engine, channels, config), true);
    // Which decides at kinks as the type does.
    let right = step.run(&mut parameterized::<E::Acc, _>(&Reference, channels, config), true);
    let say = format!("{dims:?} axis {axis} {activation:?} {}", E::DTYPE);
    for (n, (got, right)) in got.tensors.iter().zip(&right.tensors).enumerate() {
        near::<E>(&format!("{say}: tensor {n}"), got, right, Kind::Element);
    }
    for (got, right) in got.sums.iter().zip(&right.sums) {
        let m = step.x.len() / channels;
        near::<E>(&format!("{say}: parameters"), got, right, Kind::Sum(m));
    }
}

fn every_layout_agrees_with_the_reference<G: Engine>(engine: &G) {
    fn one<E: Element, G: Engine>(engine: &G, dims: &[usize], axis: usize, k: usize, eps: f64) {
        agrees_with_the_reference::<E, G>(engine, (dims, axis), (k, k / 2), eps);
    }
    const DIMS: [(&[usize], usize); 12] = [
        (&[6, 5], 1),
        (&[40, 3], 1),
        (&[8, 3, 2, 2], 1),
        (&[5, 3, 7], 1),
        (&[4, 2, 33], 1),
        (&[3, 2, 64], 1),
        (&[3, 4, 300], 1),
        (&[5, 4, 3, 5], 3),
        (&[7, 3, 16], 2),
        (&[3, 4, 70], 2),
        (&[4, 3, 4, 6], 2),
        (&[9, 1, 5], 1),
    ];
    for (k, (dims, axis)) in DIMS.into_iter().enumerate() {
        one::<f64, G>(engine, dims, axis, k, 1e-2);
        one::<f32, G>(engine, dims, axis, k + 3, 1e-2);
        one::<f16, G>(engine, dims, axis, k + 5, 0.1);
        one::<bf16, G>(engine, dims, axis, k + 6, 0.1);
    }
}

/// Where rows are joined, of less than a vector and of more than are taken at a time, and where they are not; runs of
/// less than a vector, several at a time, and cut in pieces; each behind what the loops know.
fn every_loop_agrees_with_the_reference<G: Engine>(engine: &G) {
    const DIMS: [(&[usize], usize); 11] = [
        (&[600, 3], 1),
        (&[300, 40], 1),
        (&[40, 300], 1),
        (&[70, 600], 1),
        (&[40, 10, 2, 2], 1),
        (&[40, 70, 3, 3], 1),
        (&[9, 40, 7, 7], 1),
        (&[3, 5, 400], 1),
        (&[2, 3, 5000], 1),
        (&[9, 3, 300, 10], 1),
        (&[6, 9, 11, 40], 3),
    ];
    for (n, dims) in DIMS.into_iter().enumerate() {
        // The first four activations are not curved.
        for k in 0..4 {
            let of = (k, n + k / 2);
            match (n + k) % 4 {
                0 => agrees_with_the_reference::<f64, G>(engine, dims, of, 1e-2),
                1 => agrees_with_the_reference::<f16, G>(engine, dims, of, 0.1),
                2 => agrees_with_the_reference::<bf16, G>(engine, dims, of, 0.1),
                _ => agrees_with_the_reference::<f32, G>(engine, dims, of, 1e-2),
            }
        }
    }
}

/// What is not finite there stays where it is.
fn what_does_not_count_is_not_looked_at<G: Engine>(engine: &G) {
    let activations = [Activation::Identity, Activation::Relu, Activation::Silu];
    for dims in [[6, 3, 5], [2, 3, 300], [40, 3, 1], [4, 600, 1]] {
        for (k, activation) in activations.into_iter().enumerate() {
            let ([_, channels, inner], [mask, _]) = (dims, masks(&dims, 1, 3));
            let places = mask.places.iter().enumerate().filter(|(_, place)| **place == 0);
            let (place, _) = places.max_by_key(|(i, _)| i * (7 + k) % 11).unwrap();
            let at = (place / inner * channels + 1) * inner + place % inner;
            let config = Config::default().activation(activation);
            let run = |v: f32| {
                let mut step = Step::<f32>::new(&dims, 1, Some(mask.clone()));
                step.v_x[at] = v;
                step.grad_y[at] = 0.0;
                step.run(&mut parameterized::<f32, G>(engine, channels, config), true)
            };
            let plain = run(0.5);
            for v in [f32::INFINITY, f32::NAN] {
                let beyond = run(v);
                // v g is a term of a sum that all values have: 0 times infinity; gg_grad_y has no part in it elsewhere.
                let both = plain.tensors[3].iter().zip(&beyond.tensors[3]).enumerate();
                for (i, (plain, beyond)) in both.filter(|(i, _)| *i != at) {
                    assert!(plain == beyond, "{dims:?} {activation:?} at {i}: {plain}, {beyond}");
                }
                // A derivative of 0 stops it.
                let is_stopped = plain.tensors[3][at] == 0.0;
                let got = beyond.tensors[3][at];
                assert!(is_stopped || !got.is_finite(), "{dims:?} {activation:?} at {at}: {got}");
            }
        }
    }
}

fn a_mask_belongs_to_its_forward<G: Engine>(engine: &G) {
    let (shape, n) = (small(), small().len());
    let tensor = up(engine, &numbers::<f32>(n, 1));
    let x = || view::<G, f32>(&tensor);
    let ones = up(engine, &[1u8; 16]);
    let short = up(engine, &[1u8; 15]);
    let mut bn = layer::<f32, G>(engine, Config::default());
    let (_, plain) = bn.forward(&shape, x()).unwrap();
    let (_, masked) = bn.forward_masked(&shape, x(), Mask::new(view::<G, u8>(&ones))).unwrap();
    let mut refusal = |saved: &Saved<G::Memory, f32>, places: Option<&Buf<G, u8>>| {
        let x = || view::<G, f32>(&tensor);
        let mut args = DoubleBackward::<G::Memory, f32>::new(saved, x(), x()).v_x(x());
        args.mask = places.map(view::<G, u8>);
        bn.double_backward_into(args).unwrap_err().to_string()
    };
    assert_eq!(refusal(&masked, None), "saved: the forward had mask one, this backward has none");
    assert_eq!(
        refusal(&plain, Some(&ones)),
        "saved: the forward had mask none, this backward has one"
    );
    assert_eq!(refusal(&masked, Some(&short)), "mask: expected 16 elements, got 15");
    let (gg_grad_y, gg_x) =
        bn.double_backward_masked(&masked, x(), view::<G, u8>(&ones), x(), x()).unwrap();
    let (like_y, like_x) = bn.double_backward(&plain, x(), x(), x()).unwrap();
    let down = |buf: &Buf<G, f32>| down::<G, f32>(engine, buf);
    assert_near(&down(&gg_grad_y), &wide(&down(&like_y)), Kind::Element);
    assert_near(&down(&gg_x), &wide(&down(&like_x)), Kind::Element);
}

/// By which all values count the same as without one, and by which those of the last row do not the same as without
/// that row.
fn renormalization_goes_with_a_mask<G: Engine>(engine: &G) {
    let config = Config::default().activation(Activation::Silu).eps(1e-2);
    let config = config.renorm(Renorm::paper(1.25, 0.5));
    let (shape, n) = (small(), small().len());
    let [x, mut grad_y, mut v_x] = [1, 2, 3].map(|seed| numbers::<f64>(n, seed));
    for rows in [4, 3] {
        let (len, own) = (n / 4 * rows, Shape::new(&[rows, 3, 2, 2], 1).unwrap());
        // Nothing comes of the values that do not count but by the statistics.
        for values in [&mut grad_y, &mut v_x] {
            values[len..].fill(0.0);
        }
        let [all_x, all_y, all_v] = [&x, &grad_y, &v_x].map(|values| up(engine, values));
        let places: Vec<u8> = (0..16).map(|i| u8::from(i < 4 * rows)).collect();
        let places = up(engine, &places);
        let (of, places) = (view::<G, f64>, || view::<G, u8>(&places));
        let mut masked = layer::<f64, G>(engine, config);
        let (_, saved) = masked.forward_masked(&shape, of(&all_x), Mask::new(places())).unwrap();
        let (a, b, c) = (of(&all_x), of(&all_y), of(&all_v));
        let got = masked.double_backward_masked(&saved, a, places(), b, c).unwrap();
        let [own_x, own_y, own_v] = [&x, &grad_y, &v_x].map(|values| up(engine, &values[..len]));
        let mut plain = layer::<f64, G>(engine, config);
        let (_, saved) = plain.forward(&own, of(&own_x)).unwrap();
        let right = plain.double_backward(&saved, of(&own_x), of(&own_y), of(&own_v)).unwrap();
        for (k, (got, right)) in [(&got.0, &right.0), (&got.1, &right.1)].into_iter().enumerate() {
            let [got, right] = [got, right].map(|buf| down::<G, f64>(engine, buf));
            near::<f64>(&format!("{rows} rows, {k}"), &got[..len], &right, Kind::Element);
        }
        for name in ["weight", "bias"] {
            let [got, right] = [&masked, &plain].map(|bn| grad(bn, name).unwrap());
            near::<f64>(name, &got, &right, Kind::Sum(16));
        }
    }
}
