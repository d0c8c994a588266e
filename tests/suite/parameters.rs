//! The layer's configuration, parameters and gradients, and what errors leave alone.
use crate::support::engines::engines;
use crate::support::layer::*;
use crate::support::tolerance::Kind;
use batchnorm::*;
use half::f16;

engines! { [reference, cpu, cuda, gpu] [
    gradients_add_up_until_they_are_dropped,
    optimizers_see_a_gradient_only_where_there_is_one,
    frozen_parameters_get_no_gradient,
    one_old_and_one_new_gradient_are_both_right,
    layers_have_the_parameters_they_were_configured_with,
    refused_forwards_change_nothing,
    refused_backwards_change_nothing,
    replaced_buffers_of_another_length_are_refused,
    parameters_that_change_before_backward_do_not_matter,
    a_backward_by_a_layer_with_other_parameters_is_refused,
] }

/// A layer after a forward, and what a backward needs.
struct Step<G: Engine> {
    bn: BatchNorm<f32, G>,
    saved: SavedOf<G, f32>,
    x: Vec<f32>,
    grad_y: Vec<f32>,
}

impl<G: Engine> Step<G> {
    fn new(engine: &G, config: Config) -> Self {
        let mut bn = layer(engine, config);
        let x = numbers(small().len(), 1);
        let (_, saved) = forward(&mut bn, &small(), &x).unwrap();
        let grad_y = numbers(x.len(), 2);
        Self { bn, saved, x, grad_y }
    }
    fn backward(&mut self) {
        backward(&mut self.bn, &self.saved, &self.x, &self.grad_y).unwrap();
    }
    fn grads(&self) -> [Option<Vec<f32>>; 2] {
        ["weight", "bias"].map(|name| grad(&self.bn, name))
    }
    /// The gradients of one backward.
    fn once(engine: &G) -> [Vec<f32>; 2] {
        let mut step = Self::new(engine, Config::default());
        step.backward();
        let grads = step.grads().map(Option::unwrap);
        assert!(grads.iter().flatten().all(|g| *g != 0.0), "{grads:?}");
        grads
    }
}

fn twice(grad: &[f32]) -> Vec<f32> {
    grad.iter().map(|g| 2.0 * g).collect()
}

fn gradients_add_up_until_they_are_dropped<G: Engine>(engine: &G) {
    let [weight, bias] = Step::once(engine);
    let mut step = Step::new(engine, Config::default());
    assert_eq!(step.grads(), [None, None]);
    step.backward();
    step.backward();
    assert_eq!(step.grads(), [Some(twice(&weight)), Some(twice(&bias))]);
    step.bn.zero_grad();
    assert_eq!(step.grads(), [None, None]);
    step.backward();
    assert_eq!(step.grads(), [Some(weight), Some(bias)]);
}

fn optimizers_see_a_gradient_only_where_there_is_one<G: Engine>(engine: &G) {
    let mut step = Step::new(engine, Config::default());
    assert!(step.bn.named_parameters_mut().all(|(_, p)| p.value_and_grad().is_none()));
    step.backward();
    step.bn.bias_mut().unwrap().zero_grad();
    let [expected, _] = Step::once(engine);
    for (name, param) in step.bn.named_parameters_mut() {
        let Some((value, grad)) = param.value_and_grad() else {
            assert_eq!(name, "bias");
            continue;
        };
        assert_eq!(name, "weight");
        assert_eq!(down(engine, grad), expected);
        *value = up(engine, &[7.0; 3]);
    }
    assert_eq!(down(engine, &step.bn.weight().unwrap().value), [7.0; 3]);
    assert_ne!(down(engine, &step.bn.bias().unwrap().value), [7.0; 3]);
}

fn frozen_parameters_get_no_gradient<G: Engine>(engine: &G) {
    let [weight, bias] = Step::once(engine);
    let mut step = Step::new(engine, Config::default());
    step.bn.weight_mut().unwrap().requires_grad = false;
    step.backward();
    assert_eq!(step.grads(), [None, Some(bias.clone())]);

    // A gradient that is there stays as it is.
    let mut step = Step::new(engine, Config::default());
    step.backward();
    step.bn.bias_mut().unwrap().requires_grad = false;
    step.backward();
    assert_eq!(step.grads(), [Some(twice(&weight)), Some(bias.clone())]);

    // None at all, and yet grad_x.
    let mut frozen = Step::new(engine, Config::default());
    frozen.bn.named_parameters_mut().for_each(|(_, p)| p.requires_grad = false);
    let grad_x = |s: &mut Step<G>| backward(&mut s.bn, &s.saved, &s.x, &s.grad_y).unwrap();
    assert_eq!(grad_x(&mut frozen), grad_x(&mut step));
    assert_eq!(frozen.grads(), [None, None]);
}

fn one_old_and_one_new_gradient_are_both_right<G: Engine>(engine: &G) {
    let once = Step::once(engine);
    for new in 0..2 {
        // Dropped, and arbitrary in memory; then never there at all.
        for frozen_before in [false, true] {
            let mut step = Step::new(engine, Config::default());
            let param = |step: &mut Step<G>, change: fn(&mut Param<G::Memory, f32>)| {
                step.bn.named_parameters_mut().nth(new).into_iter().for_each(|(_, p)| change(p));
            };
            if frozen_before {
                param(&mut step, |p| p.requires_grad = false);
            }
            step.backward();
            param(&mut step, |p| p.requires_grad = true);
            param(&mut step, |p| p.zero_grad());
            step.backward();
            let mut expected = [Some(twice(&once[0])), Some(twice(&once[1]))];
            expected[new] = Some(once[new].clone());
            assert_eq!(step.grads(), expected);
        }
    }
}

fn layers_have_the_parameters_they_were_configured_with<G: Engine>(engine: &G) {
    for (weight, bias, expected) in [
        (true, true, &["weight", "bias"][..]),
        (true, false, &["weight"]),
        (false, true, &["bias"]),
        (false, false, &[]),
    ] {
        let config = Config::default().weight(weight).bias(bias);
        let mut step = Step::new(engine, config);
        let names: Vec<_> = step.bn.named_parameters().map(|(name, _)| name).collect();
        assert_eq!(names, expected);
        let names: Vec<_> = step.bn.named_parameters_mut().map(|(name, _)| name).collect();
        assert_eq!(names, expected);
        assert_eq!((step.bn.weight().is_some(), step.bn.bias().is_some()), (weight, bias));
        step.backward();
        assert!(snapshot(&step.bn).grads.iter().all(Option::is_some));
    }
}

/// The message of an error that must come, after which the layer is as before.
#[track_caller]
fn refused<G: Engine, T>(
    bn: &mut BatchNorm<f32, G>,
    run: impl FnOnce(&mut BatchNorm<f32, G>) -> Result<T>,
) -> String {
    let before = snapshot(bn);
    let message = run(bn).err().expect("an error").to_string();
    assert_eq!(snapshot(bn), before, "{message}");
    message
}

fn refused_forwards_change_nothing<G: Engine>(engine: &G) {
    let Step { mut bn, x, .. } = Step::new(engine, Config::default());
    let (shape, one) = (small(), Shape::new(&[1, 3], 1).unwrap());
    let other = Shape::new(&[4, 5], 1).unwrap();
    for training in [true, false] {
        bn.train(training);
        let message = refused(&mut bn, |bn| forward(bn, &shape, &x[1..]));
        assert_eq!(message, "x: expected 48 elements, got 47");
        let message = refused(&mut bn, |bn| forward(bn, &other, &x[..20]));
        assert_eq!(message, "channels: expected 3 elements, got 5");
        let message = refused(&mut bn, |bn| infer(bn, &other, &x[..20]));
        assert_eq!(message, "channels: expected 3 elements, got 5");
    }
    bn.train(true);
    let message = refused(&mut bn, |bn| forward(bn, &one, &x[..3]));
    assert_eq!(message, "x: training needs more than 1 value per channel, got 1");

    // Outputs stay too.
    let on_engine = up(engine, &x);
    let mut y = up(engine, &x[1..]);
    for training in [true, false] {
        bn.train(training);
        let message = refused(&mut bn, |bn| {
            let (x, y) = (view::<G, f32>(&on_engine), view_mut::<G, f32>(&mut y));
            bn.forward_into(&shape, x, None, y, &mut Saved::new())
        });
        assert_eq!(message, "y: expected 48 elements, got 47");
        assert_eq!(down(engine, &y), &x[1..]);
    }
    let mut y = up(engine, &x);
    let message = refused(&mut bn, |bn| {
        let residual = up(engine, &x[2..]);
        let (x, y) = (view::<G, f32>(&on_engine), view_mut::<G, f32>(&mut y));
        bn.infer_into(&shape, Input::View(x), Some(view::<G, f32>(&residual)), y)
    });
    assert_eq!(message, "residual: expected 48 elements, got 46");
    assert_eq!(down(engine, &y), x);

    let config = Config::default().track_running_stats(false);
    let mut bn = layer(engine, config);
    let message = refused(&mut bn, |bn| {
        bn.infer_into(&shape, Input::InPlace, None, view_mut::<G, f32>(&mut y))
    });
    assert!(message.starts_with("x: in place: expected running statistics"), "{message}");
    assert_eq!(down(engine, &y), x);
}

fn refused_backwards_change_nothing<G: Engine>(engine: &G) {
    let mut step = Step::new(engine, Config::default());
    step.backward();
    // Half of the states: weight has a gradient, bias none.
    step.bn.bias_mut().unwrap().zero_grad();
    let Step { mut bn, saved, x, grad_y } = step;

    let message = refused(&mut bn, |bn| backward(bn, &saved, &x, &grad_y[1..]));
    assert_eq!(message, "grad_y: expected 48 elements, got 47");
    let message = refused(&mut bn, |bn| backward(bn, &saved, &x[1..], &grad_y));
    assert_eq!(message, "x: expected 48 elements, got 47");
    let message = refused(&mut bn, |bn| backward(bn, &Saved::new(), &x, &grad_y));
    assert_eq!(message, "saved: expected what a forward saved, got an empty one");
    let message =
        refused(&mut bn, |bn| backward(bn, &saved, &numbers::<f16>(48, 1), &numbers::<f16>(48, 2)));
    assert_eq!(message, "saved: the forward had dtype f32, this backward has f16");
    let (x_there, grad_there) = (up(engine, &x), up(engine, &grad_y));
    let message = refused(&mut bn, |bn| {
        bn.backward_add(&saved, view::<G, f32>(&x_there), None, view::<G, f32>(&grad_there))
    });
    assert!(message.starts_with("saved: the forward had residual none"), "{message}");
    let mut grad_x = up(engine, &x[1..]);
    let message = refused(&mut bn, |bn| {
        let (x, grad_y) = (view::<G, f32>(&x_there), view::<G, f32>(&grad_there));
        let to_x = Some(view_mut::<G, f32>(&mut grad_x));
        bn.backward_into(&saved, x, None, Input::View(grad_y), to_x, None)
    });
    assert_eq!(message, "grad_x: expected 48 elements, got 47");
    assert_eq!(down(engine, &grad_x), &x[1..]);

    // Of other layers: one with more channels, one without a bias.
    let mut wide = BatchNorm::new(engine, 6, Config::default()).unwrap();
    let shape = Shape::new(&[4, 6, 2], 1).unwrap();
    let (_, of_wide) = forward(&mut wide, &shape, &x).unwrap();
    let message = refused(&mut bn, |bn| backward(bn, &of_wide, &x, &grad_y));
    assert_eq!(message, "channels: expected 3 elements, got 6");
    let bare = Step::new(engine, Config::default().bias(false));
    let message = refused(&mut bn, |bn| backward(bn, &bare.saved, &x, &grad_y));
    assert_eq!(message, "saved: the forward had bias none, this backward has given");

    // And still the next one is right.
    backward(&mut bn, &saved, &x, &grad_y).unwrap();
    let [weight, bias] = Step::once(engine);
    assert_eq!(snapshot(&bn).grads, [Some(twice(&weight)), Some(bias)]);
}

fn replaced_buffers_of_another_length_are_refused<G: Engine>(engine: &G) {
    let Step { mut bn, x, .. } = Step::new(engine, Config::default());
    let dict = bn.state_dict("").unwrap();
    bn.running_mut().unwrap().var = up(engine, &[1.0; 4]);
    let message = "running_var: expected 3 elements, got 4";
    assert_eq!(refused(&mut bn, |bn| forward(bn, &small(), &x)), message);
    assert_eq!(refused(&mut bn, |bn| bn.reset_running_stats()), message);
    assert_eq!(refused(&mut bn, |bn| bn.load_state_dict(&dict, "", Strict::Yes)), message);
    bn.running_mut().unwrap().var = up(engine, &[1.0; 3]);
    bn.bias_mut().unwrap().value = up(engine, &[1.0; 2]);
    let message = "bias: expected 3 elements, got 2";
    assert_eq!(refused(&mut bn, |bn| forward(bn, &small(), &x)), message);
    assert_eq!(refused(&mut bn, |bn| bn.reset_parameters()), message);
    assert_eq!(refused(&mut bn, |bn| bn.load_state_dict(&dict, "", Strict::No)), message);
}

#[test]
fn bad_configurations_are_refused() {
    let message = |channels, config| {
        BatchNorm::<f32, _>::new(&Reference, channels, config).unwrap_err().to_string()
    };
    let default = Config::default();
    for eps in [0.0, -1e-5, f64::NAN, f64::INFINITY] {
        let expected = format!("eps: expected a finite number above 0, got {eps}");
        assert_eq!(message(3, default.eps(eps)), expected);
    }
    for momentum in [f64::NAN, -0.1, 1.1, f64::INFINITY] {
        let expected = format!("momentum: expected 0 to 1, got {momentum}");
        let momentum = Momentum::Exponential(momentum);
        assert_eq!(message(3, default.momentum(momentum)), expected);
    }
    assert_eq!(message(0, default), "channels: expected at least 1, got 0");
    for momentum in [0.0, 1.0] {
        let momentum = Momentum::Exponential(momentum);
        BatchNorm::<f32, _>::new(&Reference, 1, default.momentum(momentum)).unwrap();
    }
}

#[test]
fn layers_print_as_in_pytorch() {
    let print = |config| BatchNorm::<f32, _>::new(&Reference, 64, config).unwrap().to_string();
    let default = Config::default();
    let cases = [
        (default, "BatchNorm(64, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)"),
        (
            default.eps(1e-3).momentum(Momentum::Cumulative),
            "BatchNorm(64, eps=0.001, momentum=None, affine=True, track_running_stats=True)",
        ),
        (
            default.weight(false).bias(false).track_running_stats(false),
            "BatchNorm(64, eps=1e-05, momentum=0.1, affine=False, track_running_stats=False)",
        ),
        (
            default.bias(false).eps(1e-12).momentum(Momentum::Exponential(1.0)),
            "BatchNorm(64, eps=1e-12, momentum=1.0, affine=True, bias=False, \
             track_running_stats=True)",
        ),
        (
            default.weight(false).activation(Activation::Relu),
            "BatchNorm(64, eps=1e-05, momentum=0.1, affine=True, weight=False, \
             track_running_stats=True, activation=relu)",
        ),
    ];
    for (config, expected) in cases {
        assert_eq!(print(config), expected);
    }
}

/// The values are those of long-double arithmetic.
fn parameters_that_change_before_backward_do_not_matter<G: Engine>(engine: &G) {
    let shape = Shape::new(&[4, 1], 1).unwrap();
    let config = Config::default().activation(Activation::Relu);
    let (x, grad_y) = ([-1f32, 1., -3., 3.], [1f32, 2., 3., 4.]);
    let change = |bn: &mut BatchNorm<f32, G>, weight: f32, bias: f32| {
        bn.weight_mut().unwrap().value = up(engine, &[weight]);
        engine
            .memory()
            .write(&[bias], view_mut::<G, _>(&mut bn.bias_mut().unwrap().value))
            .unwrap();
        bn.zero_grad();
    };
    let mut bn = BatchNorm::new(engine, 1, config).unwrap();
    let (_, saved) = forward(&mut bn, &shape, &x).unwrap();
    change(&mut bn, -1.0, 0.5);
    let grad_x = backward(&mut bn, &saved, &x, &grad_y).unwrap();
    assert_near(&grad_x, &[-0.357771, -0.089442, 0.268326, 0.178887], Kind::Element);
    assert_near(&grad(&bn, "weight").unwrap(), &[6.26098], Kind::Sum(4));
    assert_near(&grad(&bn, "bias").unwrap(), &[6.0], Kind::Sum(4));

    // As they would be without the change, in either mode, with and without a residual.
    for (training, residual) in [(true, false), (true, true), (false, false), (false, true)] {
        bn.train(training);
        change(&mut bn, 1.5, -0.25);
        let x_on = up(engine, &x);
        let (_, saved) = match residual {
            true => bn.forward_add(&shape, view::<G, _>(&x_on), view::<G, _>(&x_on)).unwrap(),
            false => bn.forward(&shape, view::<G, _>(&x_on)).unwrap(),
        };
        let expected = backward(&mut bn, &saved, &x, &grad_y).unwrap();
        let grads = snapshot(&bn).grads;
        change(&mut bn, -2.0, 1.0);
        assert_eq!(backward(&mut bn, &saved, &x, &grad_y).unwrap(), expected);
        assert_eq!(snapshot(&bn).grads, grads);
    }
}

fn a_backward_by_a_layer_with_other_parameters_is_refused<G: Engine>(engine: &G) {
    let config = Config::default();
    let (mut bn, x) = (layer::<f32, G>(engine, config), numbers::<f32>(small().len(), 1));
    let (_, most) = forward(&mut bn, &small(), &x).unwrap();
    for (what, weight, bias) in [("weight", false, true), ("bias", true, false)] {
        let mut other = layer::<f32, G>(engine, config.weight(weight).bias(bias));
        let (_, saved) = forward(&mut other, &small(), &x).unwrap();
        let error = backward(&mut other, &most, &x, &x).unwrap_err().to_string();
        let expected = format!("saved: the forward had {what} given, this backward has none");
        assert_eq!(error, expected);
        let error = backward(&mut bn, &saved, &x, &x).unwrap_err().to_string();
        let expected = format!("saved: the forward had {what} none, this backward has given");
        assert_eq!(error, expected);
        assert_eq!(snapshot(&bn).grads, [None, None]);
    }
}
