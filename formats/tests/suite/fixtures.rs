//! Every file of every system: numbers, inference on two engines, and back.
use batchnorm::{BatchNorm, Config, Cpu, DType, Engine, Host, Momentum, Real, Reference, Shape};
use batchnorm_formats::{LayerState, keras, npy};
use serde_json::Value;

use crate::support::*;

/// The files with what their systems say of eps and momentum.
fn says_config(file: &str) -> bool {
    matches!(file, "keras3.keras" | "keras3_legacy.h5" | "keras2_model.h5")
        || file.ends_with(".onnx")
}

fn dtype(file: &str) -> DType {
    match file {
        _ if file.starts_with("torch_half") => DType::F16,
        _ if file.starts_with("torch_bf16") => DType::Bf16,
        _ => DType::F32,
    }
}

/// The name that a file has for a layer of the JSON.
fn name(file: &str, path: &str) -> String {
    let nameless = ["keras3_get_weights.npz", "keras3_compressed.npz", "keras3_renorm.npz"];
    if nameless.contains(&file) { String::new() } else { path.to_string() }
}

#[test]
fn numbers_are_those_of_the_system() {
    for file in FILES {
        let any = Any::read(file, &data(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
        let expected = expected(file);
        let layers = expected["layers"].as_array().unwrap();
        let names: Vec<_> =
            layers.iter().map(|l| name(file, l["path"].as_str().unwrap())).collect();
        assert_eq!(any.layers().unwrap(), names, "{file}");
        for (layer, name) in layers.iter().zip(&names) {
            let got = any.layer(name).unwrap_or_else(|e| panic!("{file}: {e}"));
            let mut want = state(layer, dtype(file));
            if !says_config(file) {
                // Of Keras 1's eps a hint speaks.
                want.eps = want.eps.filter(|_| file == "keras1_weights.h5");
                want.momentum = None;
            }
            want.axis = got.axis;
            want.renorm = got.renorm.clone();
            assert_eq!(got, want, "{file}: {name}");
            if says_config(file) {
                let axis = layer["axis"].as_i64().unwrap();
                let rank = expected["x_shape"].as_array().unwrap().len() as i64;
                assert_eq!(got.axis.map(|a| a.rem_euclid(rank)), Some(axis), "{file}: {name}");
            }
        }
    }
}

fn infer<P: Real, G: Engine<Memory = Host>>(
    engine: &G,
    state: &LayerState,
    layer: &Value,
    shape: &[usize],
    x: &[P],
) -> Vec<P> {
    let base = Config::default().eps(layer["eps"].as_f64().unwrap());
    let bn = state.layer::<P, G>(engine, base).unwrap();
    let shape = Shape::new(shape, layer["axis"].as_i64().unwrap() as usize).unwrap();
    bn.infer(&shape, x).unwrap()
}

fn inference_on<G: Engine<Memory = Host>>(engine: &G) {
    for file in FILES {
        let any = Any::read(file, &data(file)).unwrap();
        let expected = expected(file);
        let layers = expected["layers"].as_array().unwrap();
        let of = |layer: &Value| any.layer(&name(file, layer["path"].as_str().unwrap())).unwrap();
        let shape = numbers(&expected["x_shape"]).unwrap();
        let shape: Vec<usize> = shape.iter().map(|&dim| dim as usize).collect();
        let x = numbers(&expected["x"]).unwrap();
        let x: Vec<f32> = x.iter().map(|&v| v as f32).collect();
        let mut y = infer(engine, &of(&layers[0]), &layers[0], &shape, &x);
        if file == "flax.msgpack" {
            // The whole net: a dense layer, and the other batch normalization.
            let kernel = numbers(&expected["dense_kernel"]).unwrap();
            let bias = numbers(&expected["dense_bias"]).unwrap();
            let rows = y.chunks(shape[1]).flat_map(|row| {
                let (bias, kernel) = (&bias, &kernel);
                (0..bias.len()).map(move |o| {
                    let row = row.iter().enumerate();
                    let sum: f64 =
                        row.map(|(i, &v)| f64::from(v) * kernel[i * bias.len() + o]).sum();
                    (sum + bias[o]) as f32
                })
            });
            let hidden: Vec<f32> = rows.collect();
            y = infer(engine, &of(&layers[1]), &layers[1], &[shape[0], bias.len()], &hidden);
        }
        let want = numbers(&expected["y"]).unwrap();
        assert_eq!(y.len(), want.len(), "{file}");
        let most = want.iter().fold(1f64, |most, v| most.max(v.abs()));
        // The library's tolerance for the type that the system computed in.
        let base = match dtype(file) {
            DType::F16 => 1e-3,
            DType::Bf16 => 8e-3,
            _ => 2e-6,
        };
        for (got, want) in y.iter().zip(&want) {
            let error = (f64::from(*got) - want).abs();
            assert!(error <= base * most, "{file}: {got} for {want}");
        }
    }
}

#[test]
fn reference_infers_as_the_system() {
    inference_on(&Reference);
}

#[test]
fn cpu_infers_as_the_system() {
    inference_on(&Cpu::default());
}

/// Other numbers, which every type holds.
fn changed(state: &LayerState) -> LayerState {
    let mut changed = state.clone();
    let change = |values: &mut Option<Vec<f64>>, by: f64| {
        for (i, value) in values.iter_mut().flatten().enumerate() {
            *value = by + i as f64 / 4.0;
        }
    };
    change(&mut changed.weight, -1.0);
    change(&mut changed.bias, 7.5);
    change(&mut changed.running_mean, -3.0);
    change(&mut changed.running_var, 0.5);
    changed.num_batches_tracked = state.num_batches_tracked.map(|count| count + 1000);
    changed
}

#[test]
fn what_is_written_back_is_read_again() {
    for file in FILES {
        let mut any = Any::read(file, &data(file)).unwrap();
        let names = any.layers().unwrap();
        let before: Vec<_> = names.iter().map(|name| any.layer(name).unwrap()).collect();
        // The same numbers: the same bytes, where neither an archive's times of day nor an order of
        // tensors is in them, and the numbers stand as they are written.
        any.set_layer(&names[0], &before[0]).unwrap();
        if file.ends_with("h5") || file.ends_with("msgpack") {
            assert!(any.to_bytes().unwrap() == data(file), "{file}");
        }
        let other = changed(&before[0]);
        any.set_layer(&names[0], &other).unwrap_or_else(|e| panic!("{file}: {e}"));
        let any = Any::read(file, &any.to_bytes().unwrap()).unwrap();
        assert_eq!(any.layers().unwrap(), names, "{file}");
        assert_eq!(any.layer(&names[0]).unwrap(), other, "{file}");
        for (name, before) in names.iter().zip(&before).skip(1) {
            assert_eq!(any.layer(name).unwrap(), *before, "{file}: {name}");
        }
    }
}

#[test]
fn what_does_not_fit_is_refused_and_changes_nothing() {
    for file in FILES {
        let mut any = Any::read(file, &data(file)).unwrap();
        let name = any.layers().unwrap().remove(0);
        let good = any.layer(&name).unwrap();
        let before = any.to_bytes().unwrap();
        let mut short = good.clone();
        short.running_mean.as_mut().unwrap().pop();
        let mut none = good.clone();
        none.weight = None;
        let mut huge = good.clone();
        huge.bias.as_mut().unwrap()[0] = 1e300; // an infinity in f32
        for bad in [&short, &none, &huge] {
            let error = any.set_layer(&name, bad).unwrap_err().to_string();
            assert!(error.contains("expected"), "{file}: {error}");
        }
        assert!(any.layer("nobody").is_err(), "{file}");
        assert!(any.to_bytes().unwrap() == before, "{file}");
    }
}

#[test]
fn an_array_by_itself_is_the_variance() {
    let expected = expected("keras3_moving_variance.npy");
    let array = npy::read(&data("keras3_moving_variance.npy")).unwrap();
    assert_eq!(Some(&array.values), numbers(&expected["layers"][0]["running_var"]).as_ref());
    assert_eq!((array.dtype, &array.shape[..]), (DType::F32, &[4][..]));
    assert_eq!(npy::read(&npy::write(&array)).unwrap(), array);
    // Byte for byte what NumPy writes.
    assert_eq!(npy::write(&array), data("keras3_moving_variance.npy"));
}

#[test]
fn renorm_statistics_come_along() {
    let expected = &expected("keras3_renorm.npz")["layers"][0];
    let file = keras::File::read(&data("keras3_renorm.npz")).unwrap();
    let state = file.layer("", &keras::Hints::default()).unwrap();
    let renorm = state.renorm.clone().unwrap();
    assert_eq!(Some(renorm.moving_stddev), numbers(&expected["moving_stddev"]));
    assert_eq!(Some(renorm.renorm_mean), numbers(&expected["renorm_mean"]));
    assert_eq!(Some(renorm.renorm_stddev), numbers(&expected["renorm_stddev"]));
    // moving_variance + eps is moving_stddev squared, which is what a layer that lacks it starts with.
    assert_eq!(keras::to_weights(&state).unwrap().len(), 7);
    // A layer takes them all, renormalizes, and gives them back.
    let layer: BatchNorm<f64, _> = state.layer(&Reference, Config::keras()).unwrap();
    assert_eq!(layer.config().renorm, Some(batchnorm::Renorm::keras()));
    assert_eq!(LayerState::of(&layer).unwrap().renorm, state.renorm);
    // By the paper's rules there is one pair: the moving one.
    let paper = Config::keras().renorm(batchnorm::Renorm::paper(3.0, 5.0));
    let layer: BatchNorm<f64, _> = state.layer(&Reference, paper).unwrap();
    let kept = layer.running().unwrap().renorm.as_ref().unwrap();
    let stddev = state.renorm.unwrap().moving_stddev;
    assert_eq!((&kept.moving_stddev, &kept.renorm_mean), (&stddev, &None));
    let again = LayerState::of(&layer).unwrap();
    assert_eq!((again.renorm.unwrap().renorm_stddev, again.renorm_rules), (stddev, paper.renorm));
}

#[test]
fn virtual_batches_are_strided_groups() {
    let mut state = LayerState::new(DType::F32);
    state.running_mean = Some(vec![0.0; 2]);
    state.running_var = Some(vec![1.0; 2]);
    state.virtual_batch_size = Some(4);
    let layer: BatchNorm<f32, _> = state.layer(&Reference, Config::keras()).unwrap();
    let config = layer.config();
    assert_eq!(
        (config.ghost, config.variance),
        (Some(batchnorm::Ghost::strided(4)), batchnorm::Variance::Biased)
    );
    assert_eq!(LayerState::of(&layer).unwrap().virtual_batch_size, Some(4));
}

#[test]
fn momentum_is_the_weight_of_the_new_value() {
    for file in FILES.into_iter().filter(|file| says_config(file)) {
        let any = Any::read(file, &data(file)).unwrap();
        let state = any.layer(&any.layers().unwrap()[0]).unwrap();
        let config = state.config(Config::default());
        let Momentum::Exponential(new) = config.momentum else { panic!("{file}") };
        assert!((new - 0.01).abs() < 1e-8, "{file}: {new}");
        assert!((config.eps - 1e-3).abs() < 1e-10, "{file}: {}", config.eps);
    }
}
