//! Flax: modules in modules, types, and files made anew.
use batchnorm::DType;
use batchnorm_formats::{LayerState, flax};

use crate::support::data;

fn layer(dtype: DType) -> LayerState {
    let mut state = LayerState::new(dtype);
    state.weight = Some(vec![1.0, 2.0]);
    (state.running_mean, state.running_var) = (Some(vec![0.5, -0.5]), Some(vec![3.0, 4.0]));
    state
}

#[test]
fn what_is_written_anew_is_read() {
    let mut file = flax::File::new();
    let names = ["bn", "block_1/norm/bn", "block_1/norm_2"];
    let types = [DType::F32, DType::F64, DType::Bf16];
    for (name, dtype) in names.iter().zip(types) {
        file.set_layer(name, &layer(dtype)).unwrap();
    }
    let file = flax::File::read(&file.to_bytes().unwrap()).unwrap();
    assert_eq!(file.layers(), names);
    for (name, dtype) in names.iter().zip(types) {
        assert_eq!(file.layer(name).unwrap(), layer(dtype));
    }
    // A module that is the whole model.
    let mut file = flax::File::new();
    file.set_layer("", &layer(DType::F16)).unwrap();
    let file = flax::File::read(&file.to_bytes().unwrap()).unwrap();
    assert_eq!((file.layers(), file.layer("")), (vec![String::new()], Ok(layer(DType::F16))));
}

#[test]
fn other_modules_stay() {
    let mut file = flax::File::read(&data("flax.msgpack")).unwrap();
    file.set_layer("new", &layer(DType::F32)).unwrap();
    assert_eq!(file.layers(), ["bn_a", "bn_b", "new"]);
    let bytes = file.to_bytes().unwrap();
    let before = data("flax.msgpack");
    // The dense layer's numbers, wherever they stand now.
    let kernel = before.windows(6).position(|w| w == b"kernel").unwrap();
    let kernel = &before[kernel..kernel + 100];
    assert!(bytes.windows(kernel.len()).any(|window| window == kernel));
}

#[test]
fn what_does_not_fit_is_refused() {
    let mut file = flax::File::read(&data("flax.msgpack")).unwrap();
    let mut none = layer(DType::F32);
    none.running_var = None;
    let error = file.set_layer("new", &none).unwrap_err().to_string();
    assert_eq!(error, "new: expected running statistics, got none");
    let error = file.layer("dense").unwrap_err().to_string();
    assert_eq!(error, r#"no batch normalization "dense"; there is "bn_a", "bn_b""#);
    // A module where an array is.
    assert!(file.set_layer("bn_a/scale/x", &layer(DType::F32)).is_err());
    let message = |bytes: &[u8]| flax::File::read(bytes).err().unwrap().to_string();
    assert_eq!(message(b"\x93\x01\x02\x03"), "flax: expected a map of collections");
    assert_eq!(message(b"\x80\x80"), "flax: 1 bytes behind its end");
    // Arrays in arrays, deeper than any module: no stack runs out.
    assert!(message(&[0x91; 100_000]).starts_with("flax: "));
}
