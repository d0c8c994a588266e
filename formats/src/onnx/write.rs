//! A model of one layer.
use batchnorm::Momentum;

use super::wire::Message;
use super::{
    ATTRIBUTE, GRAPH, INITIALIZER, INPUT, NODE, NODE_NAME, ONNX, OP_TYPE, OUTPUT, float_attribute,
    keep, tensor,
};
use crate::{Array, Error, LayerState, Result};

/// A model of one node `BatchNormalization`, operator set 15, from `x` to `y` of `rank` dimensions, the
/// channels on axis 1. Its initializers are `NAME.weight` and so on, in the state's type: 1 and 0 where
/// the layer has no weight or bias. eps and momentum are rounded to f32; 1e-5 and 0.9 where the state
/// has none.
///
/// # Errors
/// [`Error::Mismatch`] where statistics are missing, the arrays are not of one length, or `rank` is
/// less than 2; [`Error::Unsupported`] for a momentum that is not one weight.
pub fn write(name: &str, state: &LayerState, rank: usize) -> Result<Vec<u8>> {
    if rank < 2 {
        return Err(Error::mismatch("rank", "2 or more", rank));
    }
    let channels = state.channels()?;
    let missing = || Error::mismatch(name, "running statistics", "none");
    let arrays = [
        ("weight", state.weight.clone().unwrap_or(vec![1.0; channels])),
        ("bias", state.bias.clone().unwrap_or(vec![0.0; channels])),
        ("running_mean", state.running_mean.clone().ok_or_else(missing)?),
        ("running_var", state.running_var.clone().ok_or_else(missing)?),
    ];
    let eps = state.eps.unwrap_or(1e-5) as f32;
    let keep = keep(state.momentum.unwrap_or(Momentum::Exponential(0.1)))?;

    let mut node = Message::default().text(INPUT, "x");
    let mut initializers = Message::default();
    for (suffix, values) in arrays {
        let name = format!("{name}.{suffix}");
        let array = Array::vector(state.dtype, values);
        node = node.text(INPUT, &name);
        initializers = initializers.message(INITIALIZER, &tensor::encode(&name, &array));
    }
    let node = node
        .text(OUTPUT, "y")
        .text(NODE_NAME, name)
        .text(OP_TYPE, "BatchNormalization")
        .message(ATTRIBUTE, &float_attribute("epsilon", eps))
        .message(ATTRIBUTE, &float_attribute("momentum", keep));
    let port = |port: &str| {
        // TensorShapeProto.Dimension: a number, or a name.
        let dim = |axis| match axis {
            0 => Message::default().text(2, "batch"),
            1 => Message::default().int(1, channels as u64),
            axis => Message::default().text(2, &format!("d{axis}")),
        };
        let shape = (0..rank).fold(Message::default(), |shape, axis| shape.message(1, &dim(axis)));
        let tensor = Message::default().int(1, tensor::data_type(state.dtype)).message(2, &shape);
        Message::default().text(1, port).message(2, &Message::default().message(1, &tensor))
    };
    let graph = Message::default()
        .message(NODE, &node)
        .text(2, name)
        .raw(&initializers.0)
        .message(11, &port("x"))
        .message(12, &port("y"));
    let opset = Message::default().text(1, "").int(2, 15);
    // ir_version 8 is that of operator set 15.
    let model = Message::default().int(1, 8).text(2, "batchnorm").message(GRAPH, &graph);
    let model = model.message(8, &opset);
    match u32::try_from(model.0.len()) {
        Ok(len) if len < 1 << 31 => Ok(model.0),
        _ => Err(Error::unsupported(ONNX, "a model of 2 GB or more")),
    }
}
