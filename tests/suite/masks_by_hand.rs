//! Masks: the reference as by hand and by finite differences, what is refused, and a layer by one.
use super::masks::{Pattern, masked, step};
use crate::support::run::{self, Epilogue, Inputs, Masked, Mode};
use batchnorm::{
    Backward, BatchNorm, Config, Cpu, Engine, Error, ForwardTrain, Host, Mask, Momentum, Reference,
    Saved, Shape, Variance,
};

/// Numbers say places, or what is wrong with them.
#[test]
fn f32_masks_are_zeros_and_ones() {
    let places = |numbers: &[f32]| Mask::places_of(&Host, numbers).map_err(|e| e.to_string());
    assert_eq!(places(&[1.0, 0.0, -0.0, 1.0]), Ok(vec![1, 0, 0, 1]));
    assert_eq!(places(&[]), Ok(vec![]));
    for (number, shown) in [(0.5, "0.5"), (f32::NAN, "NaN"), (2.0, "2"), (-1.0, "-1")] {
        let expected = format!("mask: expected 0 or 1 at every place, got {shown} at place 1");
        assert_eq!(places(&[1.0, number]), Err(expected));
    }
}

/// The definition, by numbers worked out by hand.
#[test]
fn the_reference_is_the_definition() {
    // Of 1, 3, (7), 5: mean 3, variance 8 / 3.
    let shape = Shape::new(&[4, 1], 1).unwrap();
    let (x, places, grad_y) = ([1.0, 3.0, 7.0, 5.0], [1, 1, 0, 1], [1.0, 0.0, 2.0, -1.0]);
    let (mut y, mut saved) = ([0.0; 4], Saved::new());
    let (mut mean, mut var) = ([1.0], [1.0]);
    let mask = Mask::<Host>::new(&places);
    let args = ForwardTrain::<Host, f64>::new(&x, &mut y).eps(1.0 / 3.0).mask(mask);
    let args = args.running(&mut mean, &mut var, 0.5).saved(&mut saved);
    Reference.forward_train(&shape, args).unwrap();
    let s = 3f64.sqrt();
    let near = |a: &[f64], b: &[f64]| {
        assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-14), "{a:?}, {b:?}");
    };
    near(&y, &[-2.0 / s, 0.0, 4.0 / s, 2.0 / s]);
    near(&[mean[0], var[0]], &[2.0, 2.5]); // 8 over 2, as PyTorch's
    let (mut grad_x, mut grad_weight, mut grad_bias) = ([0.0; 4], [0.0], [0.0]);
    let args = Backward::<Host, f64>::new(&saved, &x, &grad_y).mask(&places);
    let args = args.grad_x(&mut grad_x).grad_weight(&mut grad_weight).grad_bias(&mut grad_bias);
    Reference.backward(&shape, args).unwrap();
    // sum(g) = 2, sum(g xhat) = (-2 + 8 - 2) / s = 4 / s.
    near(&[grad_bias[0], grad_weight[0]], &[2.0, 4.0 / s]);
    let through = |xhat: f64| 2.0 / 3.0 + xhat * 4.0 / s / 3.0;
    let right = [1.0 - through(-2.0 / s), -through(0.0), 2.0, -1.0 - through(2.0 / s)];
    near(&grad_x, &right.map(|g| g / s));
}

/// A mask's gradient is that of finite differences, with Keras' count, too.
#[test]
fn the_gradient_is_that_of_finite_differences() {
    for (last, count_eps) in [(None, 0.0), (Some(3), 0.5), (None, 0.25)] {
        let shape = Shape::new(&[3, 2, 3], 1).unwrap();
        let mut inputs = Inputs::<f64>::new(&shape, Epilogue::PLAIN, 5);
        inputs.eps = 1e-2;
        let mask = Masked { count_eps, ..masked(&shape, last, Pattern::Sparse(60), 2) };
        inputs.mask = Some(mask);
        let loss = |inputs: &Inputs<f64>| -> f64 {
            let y = run::forward(&Reference, inputs, Mode::Train(None), None).unwrap();
            y["y"].iter().zip(&inputs.grad_y).map(|(y, g)| y * g).sum()
        };
        let (_, gradients) = step(&Reference, &inputs).unwrap();
        for (i, got) in gradients["grad_x"].iter().enumerate() {
            let at = |by: f64| {
                let mut inputs = inputs.clone();
                inputs.x[i] += by;
                loss(&inputs)
            };
            let right = (at(1e-5) - at(-1e-5)) / 2e-5;
            assert!((got - right).abs() < 1e-7, "{last:?}, {count_eps}: {i}: {got}, {right}");
        }
    }
}

#[test]
fn bad_masks_are_refused_by_both_sides() {
    let shape = Shape::new(&[4, 3, 6], 1).unwrap();
    let x = vec![1f32; 72];
    let say = |mask: Mask<'_, Host>| {
        let mut messages = vec![];
        let mut y = vec![7f32; 72];
        let args = ForwardTrain::<Host, f32>::new(&x, &mut y).mask(mask.reborrow());
        messages.push(Cpu::default().forward_train(&shape, args).unwrap_err().to_string());
        let args = ForwardTrain::<Host, f32>::new(&x, &mut y).mask(mask.reborrow());
        messages.push(Reference.forward_train(&shape, args).unwrap_err().to_string());
        assert_eq!(y, [7f32; 72]);
        assert_eq!(messages[0], messages[1]);
        messages.remove(0)
    };
    let (ones, mut two) = ([1; 24], [1; 24]);
    two[5] = 2;
    assert_eq!(say(Mask::<Host>::new(&ones[1..])), "mask: expected 24 elements, got 23");
    assert_eq!(
        say(Mask::<Host>::new(&two)),
        "mask: expected 0 or 1 at every place, got 2 at place 5"
    );
    assert_eq!(say(Mask::<Host>::new(&ones).without_last(6)), "mask: expected 12 elements, got 24");
    assert_eq!(
        say(Mask::<Host>::new(&ones[..18]).without_last(4)),
        "mask: expected a last axis that divides the 6 elements behind the channels, or the 3 \
         channels where nothing is behind them, got one of 4"
    );
    for (eps, shown) in [(-1.0, "-1"), (f64::NAN, "NaN"), (f64::INFINITY, "inf")] {
        let expected = format!("mask: count_eps: expected a finite number from 0 on, got {shown}");
        assert_eq!(say(Mask::<Host>::new(&ones).count_eps(eps)), expected);
    }
}

#[test]
fn a_backward_asks_for_the_mask_of_its_forward() {
    let shape = Shape::new(&[4, 3], 1).unwrap();
    let (x, places, mut y) = ([1f32; 12], [1, 0, 1, 1], [0.0; 12]);
    let (mut with, mut without) = (Saved::new(), Saved::new());
    let engine = Cpu::default();
    let args = ForwardTrain::<Host, f32>::new(&x, &mut y).mask(Mask::<Host>::new(&places));
    engine.forward_train(&shape, args.saved(&mut with)).unwrap();
    let args = ForwardTrain::<Host, f32>::new(&x, &mut y).saved(&mut without);
    engine.forward_train(&shape, args).unwrap();
    let refused = |args: Backward<'_, Host, f32>| engine.backward(&shape, args).unwrap_err();
    let saved = |forward: &str, backward: &str| Error::Saved {
        what: "mask",
        forward: forward.into(),
        backward: backward.into(),
    };
    assert_eq!(refused(Backward::new(&with, &x, &x)), saved("one", "none"));
    assert_eq!(refused(Backward::new(&without, &x, &x).mask(&places)), saved("none", "one"));
    let error = refused(Backward::new(&with, &x, &x).mask(&places[1..]));
    assert_eq!(error.to_string(), "mask: expected 4 elements, got 3");
    let error = refused(Backward::new(&with, &x, &x).mask(&[1, 3, 0, 0]));
    assert_eq!(error.to_string(), "mask: expected 0 or 1 at every place, got 3 at place 1");
    let mut sums = [0.0; 7];
    let error = refused(Backward::new(&with, &x, &x).mask(&places).sums(&mut sums));
    let expected = "sums: after a mask: expected no sums of a part of a batch, got some";
    assert_eq!(error.to_string(), expected);
}

#[test]
fn a_layer_takes_a_mask_in_training_alone() {
    let shape = Shape::from_end(&[2, 3, 2], -1).unwrap();
    let x = [1f32, 2.0, 3.0, 4.0, 50.0, 60.0, 3.0, 6.0, -50.0, 7.0, 8.0, 9.0];
    let places = [1, 1, 0, 1, 0, 0];
    let config = Config::default().momentum(Momentum::Exponential(1.0)).variance(Variance::Biased);
    let mut bn = BatchNorm::new(&Cpu::default(), 2, config).unwrap();
    let (_, saved) = bn.forward_masked(&shape, &x, Mask::<Host>::new(&places)).unwrap();
    assert_eq!(saved.mean().unwrap(), [7.0 / 3.0, 4.0]);
    assert_eq!(bn.running().unwrap().mean, [7.0 / 3.0, 4.0]);
    let grad_x = bn.backward_masked(&saved, &x, &places, &x).unwrap();
    assert!(grad_x.iter().all(|g| g.is_finite()));
    let error = bn.backward(&saved, &x, &x).unwrap_err();
    assert!(matches!(error, Error::Saved { what: "mask", .. }), "{error}");
    bn.eval();
    let (y, saved) = bn.forward_masked(&shape, &x, Mask::<Host>::new(&places)).unwrap();
    assert_eq!(saved.is_masked(), Some(false));
    assert_eq!(y, bn.infer(&shape, &x).unwrap());
    bn.backward_masked(&saved, &x, &places, &x).unwrap();
}
