//! What a layer does with optimizers, regularizers, constraints and values of its parameters; the
//! arithmetic is in `optimizer.rs`.
use super::optimizer::{ALGORITHMS, assert_all_near};
use crate::support::engines::engines;
use crate::support::layer::*;
use batchnorm::*;

engines! { [reference, cpu, cuda, cudnn, gpu] [
    a_step_leaves_alone_what_has_no_gradient,
    parameters_are_brought_within_their_constraint_after_a_step,
    regularizers_add_to_gradient_and_loss,
    a_loaded_state_goes_on_bit_for_bit,
    a_state_that_does_not_fit_changes_nothing,
    a_state_dict_has_the_names_of_the_buffers,
    numbers_without_meaning_are_refused_with_both_sides,
    a_layer_of_other_parameters_is_refused,
    values_go_in_and_out_in_every_order,
    gradients_can_be_set_and_changed,
    parameters_carry_theirs_to_another_engine,
] }

/// A layer whose parameters have gradients.
fn with_gradients<G: Engine>(engine: &G) -> BatchNorm<f64, G> {
    let mut bn = layer(engine, Config::default());
    for (name, param) in bn.named_parameters_mut() {
        let seed = if name == "weight" { 8 } else { 9 };
        param.set_grad(up(engine, &numbers::<f64>(3, seed))).unwrap();
    }
    bn
}

fn a_step_leaves_alone_what_has_no_gradient<G: Engine>(engine: &G) {
    let mut bn = with_gradients(engine);
    bn.weight_mut().unwrap().zero_grad();
    bn.bias_mut().unwrap().requires_grad = false;
    bn.bias_mut().unwrap().constraint = Some(Constraint::NonNegative);
    let mut optimizer =
        Optimizer::new(&bn, Algorithm::adam(), 0.1).unwrap().weight_decay(0.5).unwrap();
    let (before, kept) = (snapshot(&bn), optimizer.state().unwrap());
    optimizer.step(&mut bn).unwrap();
    assert_eq!(snapshot(&bn), before);
    assert_eq!(optimizer.state().unwrap(), kept);
    bn.bias_mut().unwrap().requires_grad = true;
    optimizer.step(&mut bn).unwrap();
    let after = snapshot(&bn);
    assert_eq!(after.values[0], before.values[0]);
    assert_ne!(after.values[1], before.values[1]);
    assert_eq!(after.grads, before.grads);
    let state = optimizer.state().unwrap();
    assert_eq!([state.weight.unwrap().steps, state.bias.unwrap().steps], [0, 1]);
}

fn parameters_are_brought_within_their_constraint_after_a_step<G: Engine>(engine: &G) {
    let mut bn = with_gradients(engine);
    bn.weight_mut().unwrap().constraint = Some(Constraint::NonNegative);
    bn.bias_mut().unwrap().constraint = Some(Constraint::MaxNorm(0.25));
    let mut optimizer = Optimizer::new(&bn, Algorithm::sgd(0.0), 0.5).unwrap();
    let free: Vec<Vec<f64>> = {
        let values = snapshot(&bn).values.into_iter();
        let stepped = values.zip(snapshot(&bn).grads).map(|((_, values), grads)| {
            values.iter().zip(grads.unwrap()).map(|(w, g)| w - 0.5 * g).collect()
        });
        stepped.collect()
    };
    assert!(free[0].iter().any(|w| *w < 0.0));
    optimizer.step(&mut bn).unwrap();
    let got = snapshot(&bn).values;
    let right: Vec<f64> = free[0].iter().map(|w| w.max(0.0)).collect();
    assert_all_near::<f64>("weight", &got[0].1, &right);
    let norm = got[1].1.iter().map(|w| w * w).sum::<f64>().sqrt();
    assert!((norm - 0.25).abs() < 1e-6, "{norm}");
}

fn regularizers_add_to_gradient_and_loss<G: Engine>(engine: &G) {
    let mut bn = with_gradients(engine);
    let [weight, bias] = [grad(&bn, "weight").unwrap(), grad(&bn, "bias").unwrap()];
    assert_eq!(bn.regularization_loss().unwrap(), 0.0);
    let mut loss = up(engine, &[5.0]);
    bn.regularize(Some(view_mut::<G, f64>(&mut loss))).unwrap();
    assert_eq!(down(engine, &loss), [0.0]);
    let mut two = up(engine, &[5.0; 2]);
    let long = Error::Length { what: "loss", expected: 1, got: 2 };
    let error = bn.regularize(Some(view_mut::<G, f64>(&mut two))).unwrap_err();
    assert_eq!((error, down(engine, &two)), (long.clone(), vec![5.0; 2]));
    bn.weight_mut().unwrap().regularizer = Regularizer::new(0.0, 0.5);
    bn.bias_mut().unwrap().regularizer = Regularizer::new(0.25, 0.0);
    // The weight is 0.5, -2, 1.25, the bias 0.75, 0.25, -0.5.
    let right = 0.5 * (0.25 + 4.0 + 1.5625) + 0.25 * 1.5;
    assert!((bn.regularization_loss().unwrap() - right).abs() < 1e-15);
    bn.bias_mut().unwrap().zero_grad();
    bn.regularize(Some(view_mut::<G, f64>(&mut loss))).unwrap();
    assert!((down(engine, &loss)[0] - right).abs() < 1e-15);
    let added: Vec<f64> = weight.iter().zip([0.5, -2.0, 1.25]).map(|(g, w)| g + w).collect();
    assert_all_near::<f64>("weight", &grad(&bn, "weight").unwrap(), &added);
    assert_eq!(grad(&bn, "bias").unwrap(), [0.25, 0.25, -0.25]);
    // A frozen one does not count.
    bn.weight_mut().unwrap().requires_grad = false;
    bn.regularize(None).unwrap();
    assert_eq!(bn.regularization_loss().unwrap(), 0.375);
    assert_all_near::<f64>("weight", &grad(&bn, "weight").unwrap(), &added);
    assert_ne!(grad(&bn, "bias").unwrap(), bias);
    // What is refused adds nothing, to the parameters before it neither.
    bn.weight_mut().unwrap().requires_grad = true;
    let before = snapshot(&bn);
    bn.bias_mut().unwrap().regularizer.l1 = -1.0;
    let error = bn.regularize(None).unwrap_err().to_string();
    assert_eq!(error, "l1: expected a finite number from 0 on, got -1");
    assert_eq!(bn.regularization_loss().unwrap_err().to_string(), error);
    bn.bias_mut().unwrap().regularizer.l1 = 1.0;
    let error = bn.regularize(Some(view_mut::<G, f64>(&mut two))).unwrap_err();
    assert_eq!(error, long);
    assert_eq!(snapshot(&bn), before);
}

fn a_loaded_state_goes_on_bit_for_bit<G: Engine>(engine: &G) {
    for algorithm in ALGORITHMS {
        let mut bn = with_gradients(engine);
        let mut optimizer = Optimizer::new(&bn, algorithm, 0.25).unwrap();
        for _ in 0..3 {
            optimizer.step(&mut bn).unwrap();
        }
        optimizer.set_lr(0.125).unwrap();
        let (state, mut other) = (optimizer.state().unwrap(), bn.to(engine).unwrap());
        assert_eq!(state.weight.as_ref().unwrap().buffers.len(), algorithm.buffers().len());
        let mut loaded = Optimizer::new(&other, algorithm, 1.0).unwrap();
        loaded.load_state(&state).unwrap();
        assert_eq!((loaded.lr(), loaded.state().unwrap()), (0.125, state));
        optimizer.step(&mut bn).unwrap();
        loaded.step(&mut other).unwrap();
        assert_eq!(snapshot(&other), snapshot(&bn), "{algorithm:?}");
        assert_eq!(loaded.state().unwrap(), optimizer.state().unwrap());
    }
}

fn a_state_that_does_not_fit_changes_nothing<G: Engine>(engine: &G) {
    let bn = with_gradients(engine);
    let mut optimizer = Optimizer::new(&bn, Algorithm::adam(), 0.25).unwrap();
    let before = optimizer.state().unwrap();
    let param = |steps, len: usize, buffers| ParamState::new(steps, vec![vec![1.0; len]; buffers]);
    let state = |lr, weight, bias| OptimizerState::new(lr).weight(weight).bias(bias);
    let right = || param(1, 3, 2);
    for (state, said) in [
        (
            OptimizerState::new(0.5).weight(right()),
            "bias: expected a state of adam with 2 buffers, got none",
        ),
        (
            state(0.5, right(), param(1, 3, 1)),
            "bias: expected a state of adam with 2 buffers, got 1 buffers",
        ),
        (state(0.5, right(), param(1, 4, 2)), "exp_avg: expected 3 elements, got 4"),
        (state(f64::NAN, right(), right()), "lr: expected a finite number from 0 on, got NaN"),
        (
            state(0.5, right(), param(u64::MAX, 3, 2)),
            "steps: expected at most 9007199254740992, got 18446744073709551615",
        ),
    ] {
        assert_eq!(optimizer.load_state(&state).unwrap_err().to_string(), said);
        assert_eq!(optimizer.state().unwrap(), before);
    }
}

fn a_state_dict_has_the_names_of_the_buffers<G: Engine>(engine: &G) {
    let mut bn = with_gradients(engine);
    for (algorithm, buffers) in [
        (Algorithm::sgd(0.0), &[][..]),
        (Algorithm::sgd(0.5), &["momentum_buffer"]),
        (Algorithm::adam(), &["exp_avg", "exp_avg_sq"]),
        (Algorithm::keras_adam().amsgrad(true), &["momentum", "velocity", "velocity_hat"]),
    ] {
        let mut optimizer = Optimizer::new(&bn, algorithm, 0.25).unwrap();
        optimizer.step(&mut bn).unwrap();
        let dict = optimizer.state_dict("optimizer.bn1.").unwrap();
        let of = |param: &'static str| {
            let mut names: Vec<_> = buffers.iter().copied().chain(["step"]).collect();
            names.sort_unstable();
            names.into_iter().map(move |name| format!("optimizer.bn1.{param}.{name}"))
        };
        let names = of("bias").chain(["optimizer.bn1.lr".to_owned()]).chain(of("weight"));
        assert!(dict.names().map(str::to_owned).eq(names), "{dict:?}");
        let dict = StateDict::from_bytes(&dict.to_bytes().unwrap()).unwrap();
        let mut loaded = Optimizer::new(&bn, algorithm, 1.0).unwrap();
        loaded.load_state_dict(&dict, "optimizer.bn1.").unwrap();
        assert_eq!(loaded.state().unwrap(), optimizer.state().unwrap());

        let before = loaded.state().unwrap();
        let mut other = StateDict::new();
        other.insert("lr", &[], &[0.5]).unwrap();
        other.insert("weight.step", &[], &[3.0]).unwrap();
        let error = loaded.load_state_dict(&other, "").unwrap_err().to_string();
        let mut missing: Vec<_> = buffers.iter().map(|name| format!("weight.{name}")).collect();
        missing.push("bias.step".into());
        missing.extend(buffers.iter().map(|name| format!("bias.{name}")));
        assert_eq!(error, format!("state dict: missing {}", missing.join(", ")));
        other.insert("weight.step", &[], &[0.5]).unwrap();
        let error = loaded.load_state_dict(&other, "").unwrap_err().to_string();
        assert_eq!(error, "state dict: weight.step: expected a whole number, got 0.5");
        other.insert("weight.step", &[2], &[1.0, 2.0]).unwrap();
        let error = loaded.load_state_dict(&other, "").unwrap_err().to_string();
        assert_eq!(error, "state dict: weight.step: expected one number, got 2");
        assert_eq!(loaded.state().unwrap(), before);
    }
}

fn numbers_without_meaning_are_refused_with_both_sides<G: Engine>(engine: &G) {
    let mut bn = with_gradients(engine);
    let adam = |beta1, beta2, eps| Algorithm::Adam { beta1, beta2, eps, amsgrad: false };
    let sgd = |momentum, dampening, nesterov| Algorithm::Sgd { momentum, dampening, nesterov };
    for (algorithm, said) in [
        (adam(1.0, 0.9, 0.0), "beta1: expected 0 to below 1, got 1"),
        (adam(0.9, -0.1, 0.0), "beta2: expected 0 to below 1, got -0.1"),
        (adam(f64::NAN, 0.9, 0.0), "beta1: expected 0 to below 1, got NaN"),
        (adam(0.9, 0.9, -1.0), "eps: expected a finite number from 0 on, got -1"),
        (adam(0.9, 2.0, 0.0).amsgrad(true), "beta2: expected 0 to below 1, got 2"),
        (
            Algorithm::KerasAdam { beta1: -1.0, beta2: 0.5, eps: 0.0, amsgrad: false },
            "beta1: expected 0 to below 1, got -1",
        ),
        (
            Algorithm::KerasSgd { momentum: f64::NAN, nesterov: true },
            "momentum: expected a finite number from 0 on, got NaN",
        ),
        (
            Algorithm::MatlabSgdm { momentum: -1.0 },
            "momentum: expected a finite number from 0 on, got -1",
        ),
        (sgd(-0.5, 0.0, false), "momentum: expected a finite number from 0 on, got -0.5"),
        (sgd(0.5, f64::INFINITY, false), "dampening: expected a finite number, got inf"),
        (
            sgd(0.5, 0.5, true),
            "nesterov: expected a momentum above 0 and no dampening, got momentum 0.5 and dampening 0.5",
        ),
    ] {
        assert_eq!(Optimizer::new(&bn, algorithm, 0.1).unwrap_err().to_string(), said);
    }
    for lr in [f64::NAN, -1.0, f64::INFINITY] {
        let said = format!("lr: expected a finite number from 0 on, got {lr}");
        assert_eq!(Optimizer::new(&bn, Algorithm::adam(), lr).unwrap_err().to_string(), said);
        let mut optimizer = Optimizer::new(&bn, Algorithm::adam(), 0.5).unwrap();
        assert_eq!(optimizer.set_lr(lr).unwrap_err().to_string(), said);
        assert_eq!(optimizer.lr(), 0.5);
    }
    let error =
        Optimizer::new(&bn, Algorithm::adam(), 0.1).unwrap().weight_decay(-1.0).unwrap_err();
    assert_eq!(error.to_string(), "weight_decay: expected a finite number from 0 on, got -1");

    let mut optimizer = Optimizer::new(&bn, Algorithm::adam(), 0.1).unwrap();
    let (before, kept) = (snapshot(&bn), optimizer.state().unwrap());
    type Change<M> = fn(&mut Param<M, f64>);
    let changes: [(Change<G::Memory>, &str); 4] = [
        (|p| p.lr_factor = -1.0, "lr_factor: expected a finite number from 0 on, got -1"),
        (
            |p| p.weight_decay_factor = f64::NAN,
            "weight_decay_factor: expected a finite number from 0 on, got NaN",
        ),
        (
            |p| p.constraint = Some(Constraint::MaxNorm(-2.0)),
            "constraint: expected norms of 0 <= min <= max and a rate of 0 to 1, got min 0, max -2 and \
             rate 1",
        ),
        (
            |p| p.constraint = Some(Constraint::MinMaxNorm { min: 1.0, max: 2.0, rate: 1.5 }),
            "constraint: expected norms of 0 <= min <= max and a rate of 0 to 1, got min 1, max 2 and \
             rate 1.5",
        ),
    ];
    for (change, said) in changes {
        // Of the second parameter: the first is not changed either.
        let bias = bn.bias_mut().unwrap();
        change(bias);
        assert_eq!(optimizer.step(&mut bn).unwrap_err().to_string(), said);
        let bias = bn.bias_mut().unwrap();
        (bias.lr_factor, bias.weight_decay_factor, bias.constraint) = (1.0, 1.0, None);
        assert_eq!(snapshot(&bn), before);
        assert_eq!(optimizer.state().unwrap(), kept);
    }
}

fn a_layer_of_other_parameters_is_refused<G: Engine>(engine: &G) {
    let bn = with_gradients(engine);
    let mut optimizer = Optimizer::new(&bn, Algorithm::adam(), 0.1).unwrap();
    let mut without = layer::<f64, G>(engine, Config::default().bias(false));
    let error = optimizer.step(&mut without).unwrap_err().to_string();
    assert_eq!(error, "bias: expected one, got none");
    let mut narrow = BatchNorm::<f64, G>::new(engine, 2, Config::default()).unwrap();
    let error = optimizer.step(&mut narrow).unwrap_err();
    assert_eq!(error, Error::Length { what: "weight", expected: 3, got: 2 });
    // The algorithm's own buffers are asked for.
    let (mut value, grad) = (up(engine, &[1.0; 2]), up(engine, &[1.0; 2]));
    let (lr, mut steps) = (up(engine, &[0.1]), up(engine, &[0.0; 2]));
    let args = OptimizerStep::<G::Memory, f64>::new(
        view_mut::<G, f64>(&mut value),
        view::<G, f64>(&grad),
        Algorithm::sgd(0.5),
        view::<G, f64>(&lr),
        view_mut::<G, f64>(&mut steps),
    );
    let error = engine.optimizer_step(args).unwrap_err().to_string();
    assert_eq!(error, "first: expected the momentum_buffer of sgd, got none");
    let [mut first, mut second] = [up(engine, &[0.0; 2]), up(engine, &[0.0; 2])];
    let args = OptimizerStep::<G::Memory, f64>::new(
        view_mut::<G, f64>(&mut value),
        view::<G, f64>(&grad),
        Algorithm::adam().amsgrad(true),
        view::<G, f64>(&lr),
        view_mut::<G, f64>(&mut steps),
    );
    let args = args.first(view_mut::<G, f64>(&mut first)).second(view_mut::<G, f64>(&mut second));
    let error = engine.optimizer_step(args).unwrap_err().to_string();
    assert_eq!(error, "third: expected the max_exp_avg_sq of adam, got none");
    assert_eq!((down(engine, &value), down(engine, &steps)), (vec![1.0; 2], vec![0.0; 2]));
}

fn values_go_in_and_out_in_every_order<G: Engine>(engine: &G) {
    let [weight, bias, mean, var] = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]];
    for order in [
        Order::PYTORCH,
        Order::KERAS,
        Order::KERAS1,
        Order::ONNX,
        Order::FLAX,
        Order::HAIKU,
        Order::MXNET,
        Order::WOLFRAM,
    ] {
        let mut bn = BatchNorm::<f64, G>::new(engine, 2, Config::default()).unwrap();
        bn.set_values(order, &[&weight, &bias, &mean, &var]).unwrap();
        let names = order.entries().map(|(_, name)| name);
        let expected = [weight, bias, mean, var].map(Vec::from);
        let got = bn.values(order).unwrap();
        assert!(got.into_iter().eq(names.into_iter().zip(expected.clone())), "{order:?}");
        let values = snapshot(&bn);
        assert_eq!(values.values[0].1, weight);
        assert_eq!(values.running.unwrap(), (mean.into(), var.into(), 0));
        // MATLAB's has the bias first.
        let got: Vec<_> = bn.values(Order::MATLAB).unwrap().into_iter().map(|(_, v)| v).collect();
        assert_eq!(got, [1, 0, 2, 3].map(|k: usize| expected[k].clone()));
    }
    let mut bn = BatchNorm::<f64, G>::new(engine, 2, Config::default().weight(false)).unwrap();
    bn.set_values(Order::KERAS, &[&bias, &mean, &var]).unwrap();
    assert_eq!(bn.values(Order::KERAS).unwrap()[0], ("beta", bias.to_vec()));
    let before = snapshot(&bn);
    let error = bn.set_values(Order::KERAS, &[&weight, &bias, &mean, &var]).unwrap_err();
    let said = "values: expected the 3 of beta, moving_mean, moving_variance, got 4";
    assert_eq!(error.to_string(), said);
    let error = bn.set_values(Order::KERAS, &[&weight, &mean, &[1.0; 3]]).unwrap_err();
    assert_eq!(error, Error::Length { what: "moving_variance", expected: 2, got: 3 });
    let error = bn.initialize(Slot::Weight, &Initializer::ONES).unwrap_err().to_string();
    assert_eq!(error, "slot: expected one that the layer has, got Weight");
    assert_eq!(snapshot(&bn), before);
    bn.initialize_with(Slot::RunningMean, |channel| 10.0 * channel as f64).unwrap();
    assert_eq!(bn.values(Order::FLAX).unwrap()[1], ("mean", vec![0.0, 10.0]));
}

fn gradients_can_be_set_and_changed<G: Engine>(engine: &G) {
    let mut bn = layer::<f64, G>(engine, Config::default());
    let weight = bn.weight_mut().unwrap();
    assert!(weight.grad_mut().is_none());
    let error = weight.set_grad(up(engine, &[1.0; 4])).unwrap_err();
    assert_eq!(error, Error::Length { what: "grad", expected: 3, got: 4 });
    assert!(weight.grad().is_none());
    weight.set_grad(up(engine, &[1.0; 3])).unwrap();
    *weight.grad_mut().unwrap() = up(engine, &[2.0; 3]);
    // The next backward adds to it.
    let (x, grad_y) = (numbers::<f64>(small().len(), 1), numbers::<f64>(small().len(), 2));
    let mut other = layer::<f64, G>(engine, Config::default());
    let grads = [&mut bn, &mut other].map(|bn| {
        let (_, saved) = forward(bn, &small(), &x).unwrap();
        backward(bn, &saved, &x, &grad_y).unwrap();
        grad(bn, "weight").unwrap()
    });
    let right: Vec<f64> = grads[1].iter().map(|g| g + 2.0).collect();
    assert_all_near::<f64>("weight", &grads[0], &right);
}

fn parameters_carry_theirs_to_another_engine<G: Engine>(engine: &G) {
    let mut bn = with_gradients(engine);
    let bias = bn.bias_mut().unwrap();
    (bias.lr_factor, bias.weight_decay_factor, bias.requires_grad) = (0.5, 0.25, false);
    bias.regularizer = Regularizer::new(1.0, 2.0);
    bias.constraint = Some(Constraint::UnitNorm);
    let moved = bn.to(&Reference).unwrap();
    let bias = moved.bias().unwrap();
    assert_eq!((bias.lr_factor, bias.weight_decay_factor, bias.requires_grad), (0.5, 0.25, false));
    assert_eq!(bias.regularizer, Regularizer::new(1.0, 2.0));
    assert_eq!(bias.constraint, Some(Constraint::UnitNorm));
    let weight = moved.weight().unwrap();
    assert_eq!((weight.lr_factor, weight.constraint), (1.0, None));
}
