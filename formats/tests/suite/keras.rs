//! Keras: what the file does not say, versions 1 to 3, and files made anew.
use batchnorm::{Config, DType, Keras1, Keras1Std, Momentum, Reference, Shape};
use batchnorm_formats::keras::{self, File, Hints, Legacy, RunningStd};
use batchnorm_formats::{Array, Error, LayerState, npy};

use crate::support::{data, nth};

fn layer(scale: bool, center: bool, channels: usize) -> LayerState {
    let values = |from: f64| (0..channels).map(|i| from + i as f64 / 8.0).collect::<Vec<_>>();
    let mut state = LayerState::new(DType::F32);
    state.weight = scale.then(|| values(1.0));
    state.bias = center.then(|| values(2.0));
    (state.running_mean, state.running_var) = (Some(values(3.0)), Some(values(4.0)));
    state
}

#[test]
fn three_arrays_are_ambiguous_until_said() {
    let mut file = File::read(&data("keras3.weights.h5")).unwrap();
    let error = file.layer("bn_b", &Hints::default()).unwrap_err();
    assert!(matches!(&error, Error::Ambiguous { .. }), "{error}");
    assert!(error.to_string().contains("3 variables without names"), "{error}");
    let center = file.layer("bn_b", &Hints::default().affine(false, true)).unwrap();
    let scale = file.layer("bn_b", &Hints::default().affine(true, false)).unwrap();
    assert_eq!((&center.bias, &center.weight), (&scale.weight, &scale.bias));
    assert_eq!(center.running_var, scale.running_var);
    // One that contradicts the number of arrays.
    let error = file.layer("bn_a", &Hints::default().affine(true, false)).unwrap_err();
    let expected = "expected 3 variables: scale=True, center=False, got 4";
    assert!(error.to_string().ends_with(expected), "{error}");
    assert!(file.set_layer("bn_b", &center, &Hints::default()).is_err());
    // The archive's configuration knows it, and contradicts the other.
    let archive = File::read(&data("keras3.keras")).unwrap();
    let said = archive.layer("bn_b", &Hints::default()).unwrap();
    assert_eq!(said.bias, center.bias);
    let error = archive.layer("bn_b", &Hints::default().affine(true, false)).unwrap_err();
    let expected = "expected scale=False, center=True, got scale=True, center=False";
    assert!(error.to_string().ends_with(expected), "{error}");
}

#[test]
fn layers_are_found_by_their_path_too() {
    let file = File::read(&data("keras3.weights.h5")).unwrap();
    let hints = Hints::default();
    let by_path = file.layer("layers/batch_normalization", &hints).unwrap();
    assert_eq!(by_path, file.layer("bn_a", &hints).unwrap());
    // What is no batch normalization by its class is read only if that is said, and then it has to fit.
    let error = file.layer("layers/conv2d", &hints).unwrap_err();
    assert!(matches!(error, Error::Ambiguous { .. }), "{error}");
    let error = file.layer("layers/conv2d", &hints.affine(false, false)).unwrap_err();
    assert!(matches!(error, Error::Mismatch { .. }), "{error}");
    let error = file.layer("bn_c", &hints).unwrap_err();
    assert_eq!(error.to_string(), r#"no batch normalization "bn_c"; there is "bn_a", "bn_b""#);
}

/// The layers of the nested models, without what a file may say of them beside.
fn nested(file: &File, names: [&str; 4]) {
    let affine = [(true, true), (false, true), (true, false), (true, true)];
    for (i, ((name, (scale, center)), channels)) in
        names.into_iter().zip(affine).zip([4, 3, 3, 3]).enumerate()
    {
        let mut want = nth(i + 1, channels, DType::F32);
        want.weight = want.weight.filter(|_| scale);
        want.bias = want.bias.filter(|_| center);
        let mut got = file.layer(name, &Hints::default().affine(scale, center)).unwrap();
        if file.layers().contains(&"block/bn".to_string()) {
            let said = (got.eps.take(), got.momentum.take(), got.axis.take());
            assert_eq!(said, (Some(0.25), Some(Momentum::Exponential(0.5)), Some(-1)), "{name}");
        }
        assert_eq!(got, want, "{name}");
    }
}

#[test]
fn models_in_a_model_have_their_names_before() {
    let names = ["block/bn", "block/last", "block2/bn", "bn"];
    for file in ["more_nested.keras", "more_nested.h5"] {
        let file = File::read(&data(file)).unwrap();
        assert_eq!(file.layers(), names);
        nested(&file, names);
    }
    // Weights alone know a layer's own name, which is there more than once.
    let file = File::read(&data("more_nested.weights.h5")).unwrap();
    let paths = [
        "layers/sequential/layers/batch_normalization",
        "last",
        "layers/sequential_1/layers/batch_normalization",
        "layers/batch_normalization",
    ];
    let mut layers = file.layers();
    layers.sort();
    let mut sorted = paths;
    sorted.sort();
    assert_eq!(layers, sorted);
    assert!(file.layer("bn", &Hints::default()).is_err());
    nested(&file, paths);
}

#[test]
fn numbered_groups_are_in_order() {
    let file = File::read(&data("more_many.weights.h5")).unwrap();
    let names: Vec<_> = (0..12).map(|i| format!("bn{i}")).collect();
    assert_eq!(file.layers(), names);
    for (i, name) in names.iter().enumerate() {
        assert_eq!(file.layer(name, &Hints::default()).unwrap(), nth(i + 1, 1, DType::F32));
    }
}

#[test]
fn half_types_are_read_and_kept() {
    for (file, dtype) in [("float16", DType::F16), ("bfloat16", DType::Bf16)] {
        let mut file = File::read(&data(&format!("more_{file}.weights.h5"))).unwrap();
        assert_eq!(file.layer("bn", &Hints::default()).unwrap(), nth(1, 2, dtype));
        file.set_layer("bn", &nth(2, 2, DType::F32), &Hints::default()).unwrap();
        let again = File::read(&file.to_bytes().unwrap()).unwrap();
        assert_eq!(again.layer("bn", &Hints::default()).unwrap(), nth(2, 2, dtype));
    }
}

#[test]
fn running_std_is_what_the_version_says() {
    let file = File::read(&data("keras1_weights.h5")).unwrap();
    let name = "batchnormalization_1";
    let error = file.layer(name, &Hints::default()).unwrap_err();
    assert!(error.to_string().contains("running_std is a variance or a deviation"), "{error}");
    let read = |std| file.layer(name, &Hints::default().keras1(std));
    let default = RunningStd::of(Keras1::V1_2, false);
    assert_eq!((default.stored, default.eps, default.to_eps), (Keras1Std::Variance, 1e-3, 1e-3));
    let stored = read(default).unwrap();
    let s = stored.running_var.clone().unwrap();
    assert_eq!(stored.eps, Some(1e-3));

    // What each version divided by, and another eps for the new layer.
    let deviation = RunningStd::of(Keras1::V0_3, false).to_eps(1e-5);
    let outside = RunningStd::of(Keras1::V1_0_7, true).to_eps(1e-5);
    let theano = RunningStd { stored: Keras1Std::Variance, eps: 0.0, to_eps: 1e-3 };
    type Divisor = fn(f64) -> f64;
    let divisors: [(RunningStd, Divisor); 4] = [
        (deviation, |s| s + 1e-6),
        (outside, |s| s.sqrt() + 1e-6),
        (default.to_eps(1e-5), |s| (s + 1e-3).sqrt()),
        (theano, f64::sqrt),
    ];
    for (std, divisor) in divisors {
        let state = read(std).unwrap();
        assert_eq!(state.eps, Some(std.to_eps));
        let mut state64 = state.clone();
        state64.dtype = DType::F64;
        let bn = state64.layer::<f64, _>(&Reference, Config::default()).unwrap();
        let x = [0.5, -1.0, 2.0, 0.25];
        let y = bn.infer(&Shape::new(&[1, 4], 1).unwrap(), &x).unwrap();
        for c in 0..4 {
            let of = |values: &Option<Vec<f64>>| values.as_ref().unwrap()[c];
            let scaled = (x[c] - of(&state.running_mean)) / divisor(s[c]) * of(&state.weight);
            assert!((y[c] - (scaled + of(&state.bias))).abs() < 1e-12, "{std:?}");
        }
        // And back, within f32.
        let mut again = File::read(&data("keras1_weights.h5")).unwrap();
        again.set_layer(name, &state, &Hints::default().keras1(std)).unwrap();
        let back = again.layer(name, &Hints::default().keras1(default)).unwrap();
        for (back, s) in back.running_var.unwrap().iter().zip(&s) {
            assert!((back - s).abs() <= 6e-8 * s, "{std:?}: {back} {s}");
        }
    }
    // A deviation that no variance with this eps has, and the other way round.
    let error = read(deviation.to_eps(4.0)).unwrap_err();
    assert!(error.to_string().contains("running_std: expected a denominator"), "{error}");
    let mut again = File::read(&data("keras1_weights.h5")).unwrap();
    let mut state = stored.clone();
    state.running_var.as_mut().unwrap()[0] = 0.0;
    state.eps = Some(1e-5);
    let hints = Hints::default().keras1(default.to_eps(1e-5));
    let error = again.set_layer(name, &state, &hints).unwrap_err().to_string();
    assert!(error.ends_with("a variance that Variance with an eps of 0.001 has, got 0"), "{error}");
}

#[test]
fn an_eps_other_than_the_files_is_refused() {
    let mut file = File::read(&data("keras3.keras")).unwrap();
    let mut state = file.layer("bn_a", &Hints::default()).unwrap();
    state.eps = Some(1e-5);
    let error = file.set_layer("bn_a", &state, &Hints::default()).unwrap_err();
    assert_eq!(error.to_string(), "bn_a: eps: expected 0.001, got 0.00001");
    state.eps = None;
    state.momentum = Some(Momentum::Cumulative);
    let error = file.set_layer("bn_a", &state, &Hints::default()).unwrap_err();
    assert!(error.to_string().starts_with("bn_a: momentum: expected"), "{error}");
    state.momentum = None;
    file.set_layer("bn_a", &state, &Hints::default()).unwrap();
}

#[test]
fn what_is_written_anew_is_read() {
    let (whole, part) = (layer(true, true, 3), layer(false, true, 5));
    let pairs = [("first", &whole), ("a longer name", &part)];
    let files = [
        keras::write_weights_h5(&pairs),
        keras::write_legacy_h5(&pairs, Legacy::Keras2),
        keras::write_legacy_h5(&pairs, Legacy::Keras3),
    ];
    for bytes in files {
        let file = File::read(&bytes.unwrap()).unwrap();
        assert_eq!(file.layers(), ["first", "a longer name"]);
        assert_eq!(file.layer("first", &Hints::default()).unwrap(), whole);
        let hints = Hints::default().affine(false, true);
        assert_eq!(file.layer("a longer name", &hints).unwrap(), part);
    }
    let bytes = keras::write_legacy_h5(&pairs[..1], Legacy::Keras1).unwrap();
    let file = File::read(&bytes).unwrap();
    let hints = Hints::default().keras1(RunningStd::of(Keras1::V1_2, false));
    let mut of_keras1 = whole.clone();
    of_keras1.eps = Some(1e-3); // which the hint says
    assert_eq!(file.layer("first", &hints).unwrap(), of_keras1);
    let error = keras::write_legacy_h5(&pairs, Legacy::Keras1).unwrap_err().to_string();
    assert!(error.ends_with("no renorm; got scale=False, center=True"), "{error}");
}

#[test]
fn many_layers_keep_their_order() {
    let states: Vec<_> = (0..40).map(|i| layer(i % 2 == 0, true, 1 + i)).collect();
    let names: Vec<_> = (0..40).map(|i| format!("bn{}", 39 - i)).collect();
    let pairs: Vec<_> = names.iter().map(String::as_str).zip(&states).collect();
    let file = File::read(&keras::write_legacy_h5(&pairs, Legacy::Keras2).unwrap()).unwrap();
    assert_eq!(file.layers(), names);
    let file = File::read(&keras::write_weights_h5(&pairs).unwrap()).unwrap();
    for (name, state) in pairs {
        let hints = Hints::default().affine(state.weight.is_some(), true);
        assert_eq!(file.layer(name, &hints).unwrap(), *state);
    }
}

#[test]
fn doubles_stay_doubles() {
    let mut state = layer(true, true, 2);
    state.dtype = DType::F64;
    state.weight = Some(vec![0.1, 0.2]);
    let bytes = keras::write_weights_h5(&[("bn", &state)]).unwrap();
    assert_eq!(File::read(&bytes).unwrap().layer("bn", &Hints::default()).unwrap(), state);
}

#[test]
fn arrays_in_the_order_of_get_weights() {
    let hints = Hints::default();
    for (scale, center) in [(true, true), (true, false), (false, true), (false, false)] {
        let state = layer(scale, center, 4);
        let arrays = keras::to_weights(&state).unwrap();
        assert_eq!(arrays.len(), 2 + usize::from(scale) + usize::from(center));
        let read = keras::from_weights(arrays.clone(), &hints.affine(scale, center)).unwrap();
        assert_eq!(read, state);
        let unsaid = keras::from_weights(arrays, &hints);
        assert_eq!(unsaid.is_err(), scale != center);
    }
    let many = vec![Array::vector(DType::F32, vec![1.0]); 8];
    let error = keras::from_weights(many, &hints).unwrap_err().to_string();
    assert_eq!(error, "get_weights(): expected 2 to 7 variables, got 8");
    let mut uneven = keras::to_weights(&layer(true, true, 4)).unwrap();
    uneven[3].values.pop();
    uneven[3].shape = vec![3];
    let error = keras::from_weights(uneven, &hints).unwrap_err().to_string();
    assert_eq!(error, "running_var: expected 4 values as weight has them, got 3");
}

#[test]
fn an_npz_may_hold_several_layers() {
    let mut arrays = Vec::new();
    for (layer_name, state) in [("net/a", layer(true, true, 2)), ("net/b", layer(false, true, 3))] {
        let names = ["gamma", "beta", "moving_mean", "moving_variance"];
        let names = if state.weight.is_some() { &names[..] } else { &names[1..] };
        for (name, array) in names.iter().zip(keras::to_weights(&state).unwrap()) {
            arrays.push((format!("{layer_name}/{name}"), array));
        }
    }
    arrays.push(("net/dense/kernel".into(), Array::vector(DType::F32, vec![1.0])));
    let file = File::read(&npy::write_npz(&arrays).unwrap()).unwrap();
    assert_eq!(file.layers(), ["a", "b"]);
    assert_eq!(file.layer("b", &Hints::default()).unwrap(), layer(false, true, 3));
    assert_eq!(file.layer("net/a", &Hints::default()).unwrap(), layer(true, true, 2));
}

#[test]
fn what_is_no_file_of_keras_is_refused() {
    let message = |bytes: &[u8]| File::read(bytes).err().unwrap().to_string();
    assert_eq!(message(b"hello"), "keras: expected an HDF5 file or a zip archive");
    assert!(message(b"\x89HDF\r\n\x1a\n").starts_with("hdf5: "));
    let pt = data("torch.pt");
    assert_eq!(message(&pt), "keras: expected config.json in the archive");
}
