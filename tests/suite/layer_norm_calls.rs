//! Layer normalization: wrong arguments, and the layer.
use crate::support::engines::engines;
use crate::support::rows::{Inputs, near, upload};
use crate::support::run::{self, Buf, agree};
use batchnorm::{
    Cpu, DType, Engine, EpsRule, Error, Keras1, LayerNorm, LayerNormBackward, LayerNormConfig,
    LayerNormForward, LayerNormSaved, Memory, Op, Reference, Request, Shape,
};
use half::f16;

engines! { [reference, cpu, cuda, gpu] [
    wrong_arguments_are_refused,
    the_layer_adds_gradients_up,
    one_saved_serves_shape_after_shape,
] }

fn wrong_arguments_are_refused<G: Engine>(engine: &G) {
    let (memory, view) = (engine.memory(), G::Memory::view::<f32>);
    let zeros = |len: usize| memory.upload(&vec![7f32; len]).unwrap();
    let shape = Shape::new(&[3, 4], 1).unwrap();
    let mut saved = LayerNormSaved::<G::Memory, f32>::new();
    let forward = |lens: [usize; 4], shape: &Shape, eps: f64, rule, saved: &mut _| {
        let [x, weight, bias, mut y] = lens.map(zeros);
        let args = LayerNormForward::<G::Memory, f32>::new(view(&x), G::Memory::view_mut(&mut y));
        let args = args.weight(view(&weight)).bias(view(&bias)).eps(eps).eps_rule(rule);
        let args = args.saved(saved);
        let done = agree(engine, shape, args.request(), |engine| engine.layer_norm(shape, args));
        let is_untouched = memory.download(view(&y)).unwrap().iter().all(|y| *y == 7.0);
        assert!(done.is_ok() || is_untouched);
        done.map_err(|error| error.to_string())
    };
    let (right, by) = ([12, 4, 4, 12], EpsRule::Both);
    for (k, name, len) in [(0, "x", 12), (1, "weight", 4), (2, "bias", 4), (3, "y", 12)] {
        for got in [0, len - 1, len + 1, 2 * len] {
            let mut lens = right;
            lens[k] = got;
            let message = format!("{name}: expected {len} elements, got {got}");
            assert_eq!(forward(lens, &shape, 1e-5, by, &mut saved), Err(message));
        }
    }
    for eps in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let message = format!("eps: expected a finite number above 0, got {eps}");
        assert_eq!(forward(right, &shape, eps, by, &mut saved), Err(message));
    }
    for (rule, eps, divisor) in [
        (EpsRule::Variance, 1e-80, "sqrt(eps)"),
        (EpsRule::Std, 1e-39, "eps"),
        (EpsRule::Both, 1e-80, "(sqrt(eps) + eps)"),
    ] {
        let message =
            format!("eps: expected one whose 1 / {divisor} is finite in f32, got {eps:e}");
        assert_eq!(forward(right, &shape, eps, rule, &mut saved), Err(message));
    }
    let first = Shape::new(&[4, 3], 0).unwrap();
    let error = forward(right, &first, 1e-5, by, &mut saved).unwrap_err();
    let said = engine.supports(&first, Request::new(Op::LayerNorm, DType::F32)).unwrap_err();
    assert_eq!(said.to_string(), error);
    let start = "shape: expected the channels, which are the features, on the last axis, got ";
    assert!(error.starts_with(start), "{error}");
    assert_eq!(saved.shape(), None, "none of them saved anything");

    let backward = |saved: &LayerNormSaved<G::Memory, f32>, lens: [usize; 5], shape: &Shape| {
        let [x, grad_y, mut grad_x, mut grad_weight, mut grad_bias] = lens.map(zeros);
        let args = LayerNormBackward::<G::Memory, f32>::new(saved, view(&x), view(&grad_y))
            .grad_x(G::Memory::view_mut(&mut grad_x))
            .grad_weight(G::Memory::view_mut(&mut grad_weight))
            .grad_bias(G::Memory::view_mut(&mut grad_bias));
        let request = args.request();
        let done = agree(engine, shape, request, |engine| engine.layer_norm_backward(shape, args));
        for to in [&grad_x, &grad_weight, &grad_bias] {
            let is_untouched = memory.download(view(to)).unwrap().iter().all(|v| *v == 7.0);
            assert!(done.is_ok() || is_untouched);
        }
        done.map_err(|error| error.to_string())
    };
    let lens = [12, 12, 12, 4, 4];
    let message = "saved: expected what a forward saved, got an empty one";
    assert_eq!(backward(&saved, lens, &shape), Err(message.into()));
    forward(right, &shape, 1e-5, by, &mut saved).unwrap();
    backward(&saved, lens, &shape).unwrap();
    let names = ["x", "grad_y", "grad_x", "grad_weight", "grad_bias"];
    for (k, name) in names.into_iter().enumerate() {
        let mut wrong = lens;
        wrong[k] += 1;
        let message = format!("{name}: expected {} elements, got {}", lens[k], wrong[k]);
        assert_eq!(backward(&saved, wrong, &shape), Err(message));
    }
    let other = Shape::new(&[4, 3], 1).unwrap();
    let error = backward(&saved, lens, &other).unwrap_err();
    assert!(error.starts_with("saved: the forward had shape "), "{error}");
    let (x, grad_y) = (upload::<G, f16>(engine, &[1.0; 12]), upload::<G, f16>(engine, &[1.0; 12]));
    let view = G::Memory::view::<f16>;
    let args = LayerNormBackward::<G::Memory, f16>::new(&saved, view(&x), view(&grad_y));
    let error = engine.layer_norm_backward(&shape, args).unwrap_err();
    assert_eq!(error.to_string(), "saved: the forward had dtype f32, this backward has f16");
}

#[test]
fn a_forward_of_another_engine_is_refused() {
    let (shape, x, mut y) = (Shape::new(&[2, 2], 1).unwrap(), [1f32, 2.0, 3.0, 5.0], [0f32; 4]);
    let mut saved = LayerNormSaved::new();
    let args = LayerNormForward::<batchnorm::Host, f32>::new(&x, &mut y).saved(&mut saved);
    Reference.layer_norm(&shape, args).unwrap();
    let args = LayerNormBackward::<batchnorm::Host, f32>::new(&saved, &x, &x);
    let error = Cpu::default().layer_norm_backward(&shape, args).unwrap_err();
    let (what, forward, backward) = ("engine", "reference".into(), "cpu".into());
    assert_eq!(error, Error::Saved { what, forward, backward });
}

fn the_layer_adds_gradients_up<G: Engine>(engine: &G) {
    let inputs = Inputs::new(6, 5, EpsRule::Both).rounded::<f32>();
    let config = LayerNormConfig::default().eps(inputs.eps).eps_rule(inputs.rule);
    let mut layer = LayerNorm::<f32, G>::new(engine, 5, config).unwrap();
    layer.weight_mut().unwrap().value = upload::<G, f32>(engine, &inputs.weight);
    layer.bias_mut().unwrap().value = upload::<G, f32>(engine, &inputs.bias);
    let (x, grad_y) =
        (upload::<G, f32>(engine, &inputs.x), upload::<G, f32>(engine, &inputs.grad_y));
    let view = G::Memory::view::<f32>;
    let download = |buf: &Buf<G, f32>| run::widen(&engine.memory().download(view(buf)).unwrap());
    let (y, saved) = layer.forward::<f32>(&inputs.shape(), view(&x)).unwrap();
    let inferred = layer.infer::<f32>(&inputs.shape(), view(&x)).unwrap();
    assert_eq!(download(&y), download(&inferred));
    // An optimizer's step between forward and backward does not reach into what was saved.
    layer.weight_mut().unwrap().value = upload::<G, f32>(engine, &[100.0; 5]);
    let mut expected = inputs.expected();
    for times in [1.0, 2.0] {
        let grad_x = layer.backward::<f32>(&saved, view(&x), view(&grad_y)).unwrap();
        let grad = |name| {
            let (_, param) = layer.named_parameters().find(|(own, _)| *own == name).unwrap();
            download(param.grad().unwrap()).into_iter().map(|v| v / times).collect::<Vec<_>>()
        };
        let got = [
            ("y", download(&y)),
            ("grad_x", download(&grad_x)),
            ("grad_weight", grad("weight")),
            ("grad_bias", grad("bias")),
        ];
        near(DType::F32, 6, &got.into(), &expected, "a layer");
    }
    layer.zero_grad();
    assert!(layer.named_parameters().all(|(_, param)| param.grad().is_none()));
    layer.weight_mut().unwrap().requires_grad = false;
    layer.backward::<f32>(&saved, view(&x), view(&grad_y)).unwrap();
    assert!(layer.weight().unwrap().grad().is_none());
    expected.retain(|name, _| *name == "grad_bias");
    let got = [("grad_bias", download(layer.bias().unwrap().grad().unwrap()))];
    near(DType::F32, 6, &got.into(), &expected, "the bias alone");

    let other = Shape::new(&[5, 6], 1).unwrap();
    let error = layer.forward::<f32>(&other, view(&x)).map(drop).unwrap_err();
    assert_eq!(error, Error::Length { what: "features", expected: 5, got: 6 });
    let mut without = LayerNorm::<f32, G>::new(engine, 5, config.weight(false)).unwrap();
    let error = without.backward::<f32>(&saved, view(&x), view(&grad_y)).map(drop).unwrap_err();
    assert_eq!(error.to_string(), "saved: the forward had weight given, this backward has none");
}

/// With buffers of other rows, of other features, and of the same.
fn one_saved_serves_shape_after_shape<G: Engine>(engine: &G) {
    let mut saved = LayerNormSaved::<G::Memory, f32>::new();
    for (rows, features) in [(3, 4), (3, 9), (7, 9), (7, 9), (3, 4)] {
        let inputs = Inputs::new(rows, features, EpsRule::Variance).rounded::<f32>();
        let config = LayerNormConfig::default().eps(inputs.eps);
        let mut layer = LayerNorm::<f32, G>::new(engine, features, config).unwrap();
        layer.weight_mut().unwrap().value = upload::<G, f32>(engine, &inputs.weight);
        layer.bias_mut().unwrap().value = upload::<G, f32>(engine, &inputs.bias);
        let [x, grad_y] = [&inputs.x, &inputs.grad_y].map(|host| upload::<G, f32>(engine, host));
        let (mut y, view) = (upload::<G, f32>(engine, &inputs.x), G::Memory::view::<f32>);
        let to_y = G::Memory::view_mut(&mut y);
        layer.forward_into::<f32>(&inputs.shape(), view(&x), to_y, Some(&mut saved)).unwrap();
        assert_eq!(saved.shape(), Some(inputs.shape()));
        let grad_x = layer.backward::<f32>(&saved, view(&x), view(&grad_y)).unwrap();
        let [y, grad_x] =
            [y, grad_x].map(|buf| run::widen(&engine.memory().download(view(&buf)).unwrap()));
        let mut expected = inputs.expected();
        expected.retain(|name, _| ["y", "grad_x"].contains(name));
        let what = format!("{rows} x {features}");
        near(DType::F32, rows, &[("y", y), ("grad_x", grad_x)].into(), &expected, &what);
    }
}

#[test]
fn layers_say_what_they_are_and_refuse_what_has_no_meaning() {
    let layer = |config| LayerNorm::<f32, _>::new(&Reference, 3, config);
    let text = |config| layer(config).unwrap().to_string();
    let config = LayerNormConfig::default();
    assert_eq!(text(config), "LayerNorm(3, eps=1e-5, elementwise_affine=True)");
    let keras = |version| text(LayerNormConfig::keras1_mode1(version));
    let both = "LayerNorm(3, eps=1e-6, elementwise_affine=True, eps_rule=both)";
    assert_eq!(keras(Keras1::V1_0_5), both);
    assert_eq!(keras(Keras1::V0_3), both.replace("both", "std"));
    assert_eq!(keras(Keras1::V1_2), both.replace("1e-6", "0.001"));
    let plain = config.weight(false).bias(false);
    assert_eq!(text(plain), "LayerNorm(3, eps=1e-5, elementwise_affine=False)");
    let no_bias = "LayerNorm(3, eps=1e-5, elementwise_affine=True, bias=False)";
    assert_eq!(text(config.bias(false)), no_bias);
    assert!(layer(config.eps(0.0)).is_err());
    let error = LayerNorm::<f32, _>::new(&Reference, 0, config).map(drop).unwrap_err();
    assert_eq!(error.to_string(), "features: expected at least 1, got 0");
}

#[cfg(feature = "safetensors")]
#[test]
fn state_dicts_go_round() {
    use batchnorm::{StateDict, Strict};
    let config = LayerNormConfig::default();
    let mut first = LayerNorm::<f32, _>::new(&Reference, 3, config).unwrap();
    first.weight_mut().unwrap().value = vec![1.0, -2.0, 0.5];
    first.bias_mut().unwrap().value = vec![0.25, 4.0, -1.0];
    let bytes = first.state_dict("norm.").unwrap().to_bytes().unwrap();
    let mut dict = StateDict::from_bytes(&bytes).unwrap();
    assert_eq!(dict.names().collect::<Vec<_>>(), ["norm.bias", "norm.weight"]);
    let mut second = LayerNorm::<f64, _>::new(&Reference, 3, config).unwrap();
    assert!(second.load_state_dict(&dict, "norm.", Strict::Yes).unwrap().is_empty());
    assert_eq!(second.weight().unwrap().value, [1.0, -2.0, 0.5]);
    assert_eq!(second.bias().unwrap().value, [0.25, 4.0, -1.0]);

    dict.insert("norm.running_mean", &[3], &[0f32; 3]).unwrap();
    dict.insert("norm.weight", &[2], &[9f32; 2]).unwrap();
    let error = second.load_state_dict(&dict, "norm.", Strict::Yes).unwrap_err();
    let expected = "state dict: unexpected norm.running_mean; norm.weight: expected ";
    assert!(error.to_string().starts_with(expected), "{error}");
    let report = second.load_state_dict(&dict, "norm.", Strict::No).unwrap();
    assert_eq!((report.unexpected.len(), report.mismatched.len()), (1, 1));
    assert_eq!(second.weight().unwrap().value, [1.0, -2.0, 0.5]);
}
