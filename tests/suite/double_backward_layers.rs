//! The gradients of a backward through layers: what they add to, ghost batches, renormalization, and what is refused.
use crate::support::engines::engines;
use crate::support::layer::*;
use crate::support::run::{Epilogue, Inputs};
use crate::support::shapes::SMALL;
use crate::support::tolerance::Kind;
use batchnorm::*;

engines! { [reference, cpu, cuda, gpu] [
    each_ghost_batch_goes_through_its_own_statistics,
    renormalization_has_constants,
    what_there_is_not_is_refused_in_words,
] }

/// `gg_grad_y`, `gg_x`, and the parameters' gradients, of a layer.
type Doubled = (Vec<f64>, Vec<f64>, Vec<Vec<f64>>);

fn doubled<G: Engine>(
    bn: &mut BatchNorm<f64, G>,
    shape: &Shape,
    [x, grad_y, v_x]: [&[f64]; 3],
) -> Doubled {
    let engine = bn.engine().clone();
    let (_, saved) = forward(bn, shape, x).unwrap();
    bn.zero_grad();
    let [x, grad_y, v_x] = [x, grad_y, v_x].map(|values| up(&engine, values));
    let [x, grad_y, v_x] = [&x, &grad_y, &v_x].map(view::<G, f64>);
    let (gg_grad_y, gg_x) = bn.double_backward(&saved, x, grad_y, v_x).unwrap();
    let grads = ["weight", "bias"].map(|name| grad(bn, name).unwrap());
    (down(&engine, &gg_grad_y), down(&engine, &gg_x), grads.into())
}

fn each_ghost_batch_goes_through_its_own_statistics<G: Engine>(engine: &G) {
    let config = Config::default().activation(Activation::Silu);
    let ghost = Ghost::consecutive(3).remainder(GhostRemainder::ShortLast);
    let (shape, row) = (Shape::new(&[8, 3, 5], 1).unwrap(), 15);
    let [x, grad_y, v_x] = [1, 2, 3].map(|seed| numbers::<f64>(shape.len(), seed));
    let mut bn = layer::<f64, G>(engine, config.ghost(ghost));
    let got = doubled(&mut bn, &shape, [&x, &grad_y, &v_x]);
    let mut right: Doubled = (vec![], vec![], vec![vec![0.0; 3]; 2]);
    for rows in [0..3, 3..6, 6..8] {
        let shape = Shape::new(&[rows.len(), 3, 5], 1).unwrap();
        let tensors = [&x, &grad_y, &v_x].map(|values| &values[rows.start * row..rows.end * row]);
        let of = doubled(&mut layer::<f64, G>(engine, config), &shape, tensors);
        right.0.extend(of.0);
        right.1.extend(of.1);
        for (all, sums) in right.2.iter_mut().zip(of.2) {
            all.iter_mut().zip(sums).for_each(|(all, sum)| *all += sum);
        }
    }
    assert_near(&got.0, &right.0, Kind::Element);
    assert_near(&got.1, &right.1, Kind::Element);
    for (got, right) in got.2.iter().zip(&right.2) {
        assert_near(got, right, Kind::Sum(40));
    }
}

/// As a layer with the weight `weight * r` and the bias `bias + weight * d`, whose gradients go to weight and
/// bias by the same r and d.
fn renormalization_has_constants<G: Engine>(engine: &G) {
    let config = Config::default().activation(Activation::Gelu);
    let shape = small();
    let [mut x, grad_y, v_x] = [1, 2, 3].map(|seed| numbers::<f64>(shape.len(), seed));
    let channel = |i: usize| i / shape.inner() % shape.channels();
    // So that r and d are at their bounds in one channel, and within in others.
    let of = [(0.8, 0.3), (9.0, -0.2), (1.4, -7.0)];
    for (i, x) in x.iter_mut().enumerate() {
        *x = *x * of[channel(i)].0 + of[channel(i)].1;
    }
    let (r_max, d_max) = (3.0, 2.0);
    let m = shape.per_channel() as f64;
    let moments = |c: usize| {
        let values: Vec<f64> =
            x.iter().enumerate().filter(|(i, _)| channel(*i) == c).map(|(_, x)| *x).collect();
        let mean = values.iter().sum::<f64>() / m;
        (mean, (values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / m + 1e-5).sqrt())
    };
    // What is kept begins at 0 and 1.
    let r: Vec<f64> = (0..3).map(|c| moments(c).1.clamp(1.0 / r_max, r_max)).collect();
    let d: Vec<f64> = (0..3).map(|c| moments(c).0.clamp(-d_max, d_max)).collect();
    assert!(r.contains(&r_max) && d.contains(&-d_max), "{r:?} {d:?}");

    let mut bn = layer::<f64, G>(engine, config.renorm(Renorm::paper(r_max, d_max)));
    let got = doubled(&mut bn, &shape, [&x, &grad_y, &v_x]);
    let mut plain = layer::<f64, G>(engine, config);
    let state = snapshot(&plain).values;
    let (weight, bias) = (&state[0].1, &state[1].1);
    let scaled: Vec<f64> = weight.iter().zip(&r).map(|(w, r)| w * r).collect();
    let shifted: Vec<f64> = bias.iter().zip(weight).zip(&d).map(|((b, w), d)| b + w * d).collect();
    for (param, values) in plain.named_parameters_mut().map(|(_, p)| p).zip([scaled, shifted]) {
        param.value = up(engine, &values);
    }
    let right = doubled(&mut plain, &shape, [&x, &grad_y, &v_x]);
    assert_near(&got.0, &right.0, Kind::Element);
    assert_near(&got.1, &right.1, Kind::Element);
    let of_weight = right.2[0].iter().zip(&r).zip(right.2[1].iter().zip(&d));
    let of_weight: Vec<f64> = of_weight.map(|((w, r), (b, d))| w * r + b * d).collect();
    assert_near(&got.2[0], &of_weight, Kind::Sum(16));
    assert_near(&got.2[1], &right.2[1], Kind::Sum(16));
}

fn what_there_is_not_is_refused_in_words<G: Engine>(engine: &G) {
    let (shape, n) = (small(), small().len());
    let [x, v_weight] = [up(engine, &numbers::<f32>(n, 1)), up(engine, &[1f32; 3])];
    let refusal = |bn: &mut BatchNorm<f32, G>, saved: &Saved<G::Memory, f32>, graph, of_weight| {
        let mut out = engine.memory().upload(&vec![7f32; n]).unwrap();
        let (x, v_weight) = (|| view::<G, f32>(&x), view::<G, f32>(&v_weight));
        let mut args = DoubleBackward::<G::Memory, f32>::new(saved, x(), x())
            .v_x(x())
            .create_graph(graph)
            .gg_x(view_mut::<G, f32>(&mut out));
        args.v_weight = Some(v_weight).filter(|_| of_weight);
        let error = bn.double_backward_into(args).unwrap_err();
        assert_eq!(down(engine, &out), vec![7f32; n]);
        assert!(bn.weight().unwrap().grad().is_none());
        error
    };
    let unsupported = |error: Error, words: &str| {
        assert!(matches!(error, Error::Unsupported { .. }), "{error:?}");
        assert!(error.to_string().contains(words), "{error}");
    };
    let host = numbers::<f32>(n, 1);
    let saved = |config: Config| {
        let mut bn = layer::<f32, G>(engine, config);
        let saved = forward(&mut bn, &shape, &host).unwrap().1;
        (bn, saved)
    };
    let third = "create_graph: there is no third order: nothing is saved for one";
    let config = Config::default();
    let grouped = [Ghost::consecutive(2), Ghost::strided(2)].map(|ghost| config.ghost(ghost));
    for config in [config, grouped[0], grouped[1], config.renorm(Renorm::keras())] {
        let (mut bn, saved) = saved(config);
        unsupported(refusal(&mut bn, &saved, true, false), third);
    }
    let (mut bn, of_renorm) = saved(config.renorm(Renorm::keras()));
    let words = "after renormalization: expected no v_weight, got one";
    unsupported(refusal(&mut bn, &of_renorm, false, true), words);
    let (_, strided) = saved(config.ghost(Ghost::strided(2)));
    // An engine takes what one forward saved.
    let mut out = up(engine, &host);
    let args =
        DoubleBackward::<G::Memory, f32>::new(&strided, view::<G, f32>(&x), view::<G, f32>(&x));
    let error =
        engine.double_backward(&shape, args.gg_x(view_mut::<G, f32>(&mut out))).unwrap_err();
    assert!(error.to_string().contains("got that of ghost batches"), "{error}");
}

/// What a penalty leaves in the parameters is added to what the loss has left.
#[test]
fn a_layer_adds_to_its_gradients() {
    let shape = SMALL.shape();
    let inputs = Inputs::<f32>::new(&shape, Epilogue::PLAIN, 3);
    let given = numbers::<f32>(shape.len(), 4);
    let config = Config::default().activation(Activation::Silu);
    let mut bn = BatchNorm::<f32, _>::new(&Reference, 5, config).unwrap();
    let (_, saved) = bn.forward(&shape, &inputs.x).unwrap();
    bn.backward(&saved, &inputs.x, &inputs.grad_y).unwrap();
    let grads = |bn: &BatchNorm<f32, Reference>| -> Vec<f32> {
        bn.named_parameters().flat_map(|(_, param)| param.grad().unwrap().clone()).collect()
    };
    let before = grads(&bn);
    let (gg_grad_y, gg_x) = bn.double_backward(&saved, &inputs.x, &inputs.grad_y, &given).unwrap();
    let both = grads(&bn);
    bn.zero_grad();
    let (mut of_y, mut of_x) = (vec![0.0; shape.len()], vec![0.0; shape.len()]);
    let args = || DoubleBackward::<Host, f32>::new(&saved, &inputs.x, &inputs.grad_y);
    let some = args().v_x(&given).gg_grad_y(&mut of_y).gg_x(&mut of_x);
    bn.double_backward_into(some).unwrap();
    for ((both, before), own) in both.iter().zip(before).zip(grads(&bn)) {
        assert!((both - before - own).abs() < 1e-5, "{both} {before} {own}");
        assert_ne!(own, 0.0);
    }
    let mut gg_weight = [0.0; 5];
    let args = DoubleBackward::<Host, f32>::new(&saved, &inputs.x, &inputs.grad_y);
    let error = bn.double_backward_into(args.gg_weight(&mut gg_weight)).unwrap_err();
    let expected =
        "gg_weight: expected none, as a layer has its parameter's gradient for it, got one";
    assert_eq!(error.to_string(), expected);
    let error = bn.double_backward(&saved, &inputs.x, &inputs.grad_y, &given[1..]).unwrap_err();
    assert_eq!(error.to_string(), "v_x: expected 105 elements, got 104");
    assert_eq!((gg_grad_y, gg_x), (of_y, of_x));
    let nothing = Saved::new();
    let args = DoubleBackward::<Host, f32>::new(&nothing, &inputs.x, &inputs.grad_y);
    let error = bn.double_backward_into(args).unwrap_err();
    assert_eq!(error.to_string(), "saved: expected what a forward saved, got an empty one");
}
