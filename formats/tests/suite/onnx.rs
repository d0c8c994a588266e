//! ONNX: attributes, shared initializers, and a model made anew.
use batchnorm::{DType, Momentum};
use batchnorm_formats::{Error, LayerState, onnx};

use crate::support::data;

fn layer() -> LayerState {
    let mut state = LayerState::new(DType::F32);
    (state.weight, state.bias) = (Some(vec![1.0, 2.0]), Some(vec![3.0, 4.0]));
    (state.running_mean, state.running_var) = (Some(vec![5.0, 6.0]), Some(vec![7.0, 8.0]));
    state
}

/// What a reader finds of it: attributes are f32.
fn read(state: &LayerState, eps: f64, momentum: f64) -> LayerState {
    let mut read = state.clone();
    read.eps = Some(f64::from(eps as f32));
    read.momentum = Some(Momentum::Exponential(1.0 - f64::from((1.0 - momentum) as f32)));
    read.axis = Some(1);
    read
}

#[test]
fn what_is_written_anew_is_read() {
    let mut state = layer();
    let file = onnx::File::read(&onnx::write("bn", &state, 4).unwrap()).unwrap();
    assert_eq!(file.layers().unwrap(), ["bn"]);
    assert_eq!(file.layer("bn").unwrap(), read(&state, 1e-5, 0.1));
    // By its output, too.
    assert_eq!(file.layer("y"), file.layer("bn"));
    state.eps = Some(1e-3);
    state.momentum = Some(Momentum::Exponential(0.01));
    let file = onnx::File::read(&onnx::write("bn", &state, 2).unwrap()).unwrap();
    assert_eq!(file.layer("bn").unwrap(), read(&state, 1e-3, 0.01));
    // What a layer has not, the operator asks for.
    (state.weight, state.bias) = (None, None);
    let file = onnx::File::read(&onnx::write("bn", &state, 2).unwrap()).unwrap();
    let got = file.layer("bn").unwrap();
    assert_eq!((got.weight, got.bias), (Some(vec![1.0; 2]), Some(vec![0.0; 2])));
    for dtype in [DType::F64, DType::F16, DType::Bf16] {
        let mut state = layer();
        state.dtype = dtype;
        let file = onnx::File::read(&onnx::write("bn", &state, 3).unwrap()).unwrap();
        assert_eq!(file.layer("bn").unwrap().dtype, dtype);
        assert_eq!(file.layer("bn").unwrap().running_var, state.running_var);
    }
}

#[test]
fn attributes_are_replaced() {
    let mut file = onnx::File::read(&data("onnx_float_data.onnx")).unwrap();
    let mut state = file.layer("layer").unwrap();
    (state.eps, state.momentum) = (Some(0.25), Some(Momentum::Exponential(0.75)));
    file.set_layer("layer", &state).unwrap();
    assert_eq!(file.layer("layer").unwrap(), state);
    // None keeps what is there.
    (state.eps, state.momentum) = (None, None);
    file.set_layer("layer", &state).unwrap();
    let got = file.layer("layer").unwrap();
    assert_eq!((got.eps, got.momentum), (Some(0.25), Some(Momentum::Exponential(0.75))));
    state.momentum = Some(Momentum::Average);
    let error = file.set_layer("layer", &state).unwrap_err();
    assert_eq!(error.to_string(), "onnx: momentum: expected one weight, got None");
}

/// A field whose content is bytes, with its length: of less than 128 bytes.
fn field(number: u8, content: &[u8]) -> Vec<u8> {
    assert!(content.len() < 128);
    [&[number << 3 | 2, content.len() as u8][..], content].concat()
}

fn tensor(name: &str, values: &[f32]) -> Vec<u8> {
    let data: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let head = [&[8, values.len() as u8, 16, 1][..], &field(8, name.as_bytes())].concat();
    field(5, &[head, field(9, &data)].concat())
}

fn node(name: &str, inputs: [&str; 5], attributes: &[Vec<u8>]) -> Vec<u8> {
    let inputs = inputs.iter().flat_map(|input| field(1, input.as_bytes()));
    let mut node: Vec<u8> = inputs.collect();
    node.extend(field(2, format!("{name}_y").as_bytes()));
    node.extend(field(3, name.as_bytes()));
    node.extend(field(4, b"BatchNormalization"));
    attributes.iter().for_each(|attribute| node.extend(field(5, attribute)));
    field(1, &node)
}

fn model(parts: &[Vec<u8>]) -> Vec<u8> {
    let graph = parts.concat();
    let len = [(graph.len() as u8) | 0x80, (graph.len() >> 7) as u8];
    [&[7 << 3 | 2][..], &len, &graph].concat()
}

#[test]
fn a_shared_initializer_does_not_change_for_others() {
    let tensors =
        [tensor("s", &[1.0]), tensor("b", &[2.0]), tensor("m", &[3.0]), tensor("v", &[4.0])];
    let first = node("first", ["x", "s", "b", "m", "v"], &[]);
    let second = node("second", ["first_y", "s", "b", "m", "v2"], &[]);
    let parts = [&[first, second, tensor("v2", &[5.0])][..], &tensors].concat();
    let mut file = onnx::File::read(&model(&parts)).unwrap();
    assert_eq!(file.layers().unwrap(), ["first", "second"]);
    let mut state = file.layer("second").unwrap();
    assert_eq!(state.running_var, Some(vec![5.0]));
    state.running_var = Some(vec![9.0]);
    file.set_layer("second", &state).unwrap();
    assert_eq!(file.layer("second").unwrap(), state);
    assert_eq!(file.layer("first").unwrap().running_var, Some(vec![4.0]));
    state.weight = Some(vec![7.0]);
    let error = file.set_layer("second", &state).unwrap_err();
    assert_eq!(error.to_string(), "onnx: second: other nodes read s too");
}

#[test]
fn what_is_not_per_channel_or_not_there_is_refused() {
    let tensors = [tensor("s", &[1.0]), tensor("b", &[2.0]), tensor("m", &[3.0])];
    let missing = node("bn", ["x", "s", "b", "m", "v"], &[]);
    let file = onnx::File::read(&model(&[&[missing][..], &tensors].concat())).unwrap();
    let error = file.layer("bn").unwrap_err().to_string();
    assert_eq!(error, "onnx: bn: v is no initializer, but computed or an input");
    let spatial = [&field(1, b"spatial")[..], &[3 << 3, 0]].concat();
    let flat = node("bn", ["x", "s", "b", "m", "s"], &[spatial]);
    let file = onnx::File::read(&model(&[&[flat][..], &tensors].concat())).unwrap();
    assert_eq!(file.layer("bn").unwrap_err().to_string(), "onnx: bn: spatial=0");
    // Data in another file.
    let outside = [&[8, 1, 16, 1][..], &field(8, b"s"), &[14 << 3, 1]].concat();
    let bn = node("bn", ["x", "s", "s", "s", "s"], &[]);
    let file = onnx::File::read(&model(&[bn, field(5, &outside)])).unwrap();
    assert!(matches!(file.layer("bn"), Err(Error::Unsupported { .. })));
    assert!(file.layer("bn").unwrap_err().to_string().contains("in another file"));
    let error = onnx::write("bn", &layer(), 1).unwrap_err().to_string();
    assert_eq!(error, "rank: expected 2 or more, got 1");
}
