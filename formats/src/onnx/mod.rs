//! ONNX models: nodes `BatchNormalization`, and the initializers that they read.
use batchnorm::Momentum;

use crate::{Array, Error, LayerState, Result};

mod tensor;
mod wire;
mod write;

pub use write::write;

use wire::{Field, Message, Value, fields};

const ONNX: &str = "onnx";

// Fields of ModelProto, GraphProto, NodeProto and AttributeProto.
const GRAPH: u64 = 7;
const NODE: u64 = 1;
const INITIALIZER: u64 = 5;
const INPUT: u64 = 1;
const OUTPUT: u64 = 2;
const NODE_NAME: u64 = 3;
const OP_TYPE: u64 = 4;
const ATTRIBUTE: u64 = 5;
const DOMAIN: u64 = 7;
const ATTRIBUTE_NAME: u64 = 1;
const F: u64 = 2;
const I: u64 = 3;
const ATTRIBUTE_TYPE: u64 = 20;

/// A model, in memory: which batch normalizations it has, and their numbers, to be read and replaced.
/// All else of the model stays as its bytes are.
///
/// Nodes of the graph itself are looked at, not those of the branches of `If` and the bodies of
/// `Loop`. Numbers are those of initializers, as raw data or in the list of their type.
pub struct File {
    bytes: Vec<u8>,
}

/// A node, and what it says.
struct Node<'a> {
    raw: &'a [u8],
    /// By which it is found: its own, or else its first output's.
    names: [&'a str; 2],
    inputs: Vec<&'a str>,
    eps: Option<f32>,
    momentum: Option<f32>,
    spatial: bool,
}

impl File {
    /// Reads a model of any version of the operator.
    ///
    /// # Errors
    /// [`Error::Malformed`] for bytes that are none.
    pub fn read(bytes: &[u8]) -> Result<Self> {
        let file = Self { bytes: bytes.to_vec() };
        file.nodes()?;
        Ok(file)
    }

    /// The names of the batch normalizations in the graph's order: those of the nodes, or of their
    /// outputs where they have none.
    ///
    /// # Errors
    /// [`Error::Malformed`] for a damaged graph.
    pub fn layers(&self) -> Result<Vec<String>> {
        Ok(self.nodes()?.iter().map(|node| node.name().to_string()).collect())
    }

    /// What the model says of one layer. eps and momentum are attributes, f32 by the format: 0.9 is
    /// 0.8999999761581421 there, and the default where it is left out.
    ///
    /// # Errors
    /// [`Error::NoLayer`]; [`Error::Unsupported`] where an array is no initializer, has another type
    /// than f16, bf16, f32 or f64, or stands in another file, and for `spatial=0`, which is one value
    /// per activation; [`Error::Mismatch`] where they are not one value per channel.
    pub fn layer(&self, name: &str) -> Result<LayerState> {
        let node = self.node(name)?;
        if !node.spatial {
            return Err(Error::unsupported(ONNX, format!("{name}: spatial=0")));
        }
        let mut arrays = Vec::new();
        for input in node.parameters()? {
            let array = tensor::decode(self.initializer(name, input)?)?;
            if array.channels().is_none() {
                return Err(Error::mismatch(input, "one value per channel", array));
            }
            arrays.push(Some(array));
        }
        let mut arrays = arrays.into_iter();
        let mut next = || arrays.next().flatten();
        let mut state = LayerState::from_arrays(next(), next(), next(), next())?;
        state.eps = Some(node.eps().into());
        state.momentum = Some(Momentum::keeping(node.keep().into()));
        state.axis = Some(1);
        Ok(state)
    }

    /// Puts a layer's numbers in place of those that the model has of it, in the types that it has
    /// them in, and its eps and momentum, rounded to f32, where the state has them.
    ///
    /// # Errors
    /// Those of [`layer`](Self::layer); [`Error::Mismatch`] where one has an array that the other
    /// lacks, or of another length, or a number that the type does not hold; [`Error::Unsupported`]
    /// for a momentum that is not one weight, and where other nodes read the same
    /// initializer, which would change for them too.
    pub fn set_layer(&mut self, name: &str, state: &LayerState) -> Result<()> {
        state.check_fits(name, &self.layer(name)?)?;
        let node = self.node(name)?;
        let arrays = [&state.weight, &state.bias, &state.running_mean, &state.running_var];
        let mut tensors = Vec::new();
        for (input, values) in node.parameters()?.into_iter().zip(arrays) {
            let Some(values) = values else { continue };
            let raw = self.initializer(name, input)?;
            let there = tensor::decode(raw)?;
            let array = Array::vector(state.dtype, values.clone());
            let array = array.like(input, (there.dtype, &there.shape))?;
            if array != there && self.uses(input)? > 1 {
                let reason = format!("{name}: other nodes read {input} too");
                return Err(Error::unsupported(ONNX, reason));
            }
            tensors.push((raw, tensor::with(raw, &array)?));
        }
        let changed = node.with(state.eps, state.momentum)?;
        let replace = |field: &Field| -> Result<Option<Message>> {
            let bytes = field.bytes()?;
            // The same place in memory: two may be equal.
            let same = |other: &[u8]| std::ptr::eq(bytes, other);
            Ok(match field.number {
                NODE if same(node.raw) => Some(changed.clone()),
                INITIALIZER => {
                    tensors.iter().find(|(raw, _)| same(raw)).map(|(_, new)| new.clone())
                }
                _ => None,
            })
        };
        let mut model = Message::default();
        for field in fields(&self.bytes)? {
            if field.number != GRAPH {
                model = model.raw(field.raw);
                continue;
            }
            let mut graph = Message::default();
            for field in fields(field.bytes()?)? {
                let new = match field.number {
                    NODE | INITIALIZER => replace(&field)?,
                    _ => None,
                };
                graph = match new {
                    Some(message) => graph.message(field.number, &message),
                    None => graph.raw(field.raw),
                };
            }
            model = model.message(GRAPH, &graph);
        }
        self.bytes = model.0;
        Ok(())
    }

    /// The model, with what was replaced in it.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.bytes.clone()
    }

    fn graph(&self) -> Result<Vec<Field<'_>>> {
        let model = fields(&self.bytes)?;
        let mut graphs = model.iter().filter(|field| field.number == GRAPH);
        match (graphs.next(), graphs.next()) {
            (Some(graph), None) => fields(graph.bytes()?),
            _ => Err(Error::malformed(ONNX, "expected a model with one graph")),
        }
    }

    fn nodes(&self) -> Result<Vec<Node<'_>>> {
        let graph = self.graph()?;
        let nodes = graph.iter().filter(|field| field.number == NODE);
        nodes.filter_map(|field| field.bytes().and_then(Node::read).transpose()).collect()
    }

    fn node(&self, name: &str) -> Result<Node<'_>> {
        let nodes = self.nodes()?;
        let there: Vec<_> = nodes.iter().map(|node| node.name().to_string()).collect();
        let found = nodes.into_iter().find(|node| node.names.contains(&name) && !name.is_empty());
        found.ok_or_else(|| Error::no_layer(name, there))
    }

    fn initializer(&self, layer: &str, name: &str) -> Result<&[u8]> {
        for field in self.graph()?.iter().filter(|field| field.number == INITIALIZER) {
            if tensor::name(field.bytes()?)? == name {
                return field.bytes();
            }
        }
        let reason = format!("{layer}: {name} is no initializer, but computed or an input");
        Err(Error::unsupported(ONNX, reason))
    }

    /// How many inputs of nodes are this.
    fn uses(&self, name: &str) -> Result<usize> {
        let mut uses = 0;
        for node in self.graph()?.iter().filter(|field| field.number == NODE) {
            let inputs = fields(node.bytes()?)?.into_iter().filter(|field| field.number == INPUT);
            for input in inputs {
                uses += usize::from(input.text()? == name);
            }
        }
        Ok(uses)
    }
}

impl<'a> Node<'a> {
    /// None where it is another operator.
    fn read(raw: &'a [u8]) -> Result<Option<Self>> {
        let mut node = Self {
            raw,
            names: ["", ""],
            inputs: Vec::new(),
            eps: None,
            momentum: None,
            spatial: true,
        };
        let mut is = false;
        for field in fields(raw)? {
            match field.number {
                INPUT => node.inputs.push(field.text()?),
                OUTPUT if node.names[1].is_empty() => node.names[1] = field.text()?,
                NODE_NAME => node.names[0] = field.text()?,
                OP_TYPE => is = field.text()? == "BatchNormalization",
                DOMAIN if !matches!(field.text()?, "" | "ai.onnx") => return Ok(None),
                ATTRIBUTE => {
                    let (name, value) = attribute(field.bytes()?)?;
                    match (name, value) {
                        ("epsilon", Some(value)) => node.eps = Some(tensor::float(value)?),
                        ("momentum", Some(value)) => node.momentum = Some(tensor::float(value)?),
                        ("spatial", Some(Value::Varint(0))) => node.spatial = false,
                        _ => {}
                    }
                }
                _ => {}
            }
        }
        Ok(is.then_some(node))
    }

    fn name(&self) -> &'a str {
        if self.names[0].is_empty() { self.names[1] } else { self.names[0] }
    }

    /// The names of scale, B, input_mean and input_var.
    fn parameters(&self) -> Result<[&'a str; 4]> {
        match self.inputs[..] {
            [_x, scale, bias, mean, var] => Ok([scale, bias, mean, var]),
            _ => Err(Error::mismatch(self.name(), "5 inputs", self.inputs.len())),
        }
    }

    fn eps(&self) -> f32 {
        self.eps.unwrap_or(1e-5)
    }

    /// The weight of the old value.
    fn keep(&self) -> f32 {
        self.momentum.unwrap_or(0.9)
    }

    /// The same node with another eps and momentum.
    fn with(&self, eps: Option<f64>, momentum: Option<Momentum>) -> Result<Message> {
        let eps = eps.map_or(self.eps(), |eps| eps as f32);
        let keep = momentum.map(keep).transpose()?.unwrap_or(self.keep());
        let mut message = Message::default();
        for field in fields(self.raw)? {
            let name = match field.number {
                ATTRIBUTE => attribute(field.bytes()?)?.0,
                _ => "",
            };
            if !matches!(name, "epsilon" | "momentum") {
                message = message.raw(field.raw);
            }
        }
        let eps = float_attribute("epsilon", eps);
        let keep = float_attribute("momentum", keep);
        Ok(message.message(ATTRIBUTE, &eps).message(ATTRIBUTE, &keep))
    }
}

/// The name of an attribute, and its value where that is one number.
fn attribute(bytes: &[u8]) -> Result<(&str, Option<Value<'_>>)> {
    let (mut name, mut value) = ("", None);
    for field in fields(bytes)? {
        match field.number {
            ATTRIBUTE_NAME => name = field.text()?,
            F | I => value = Some(field.value),
            _ => {}
        }
    }
    Ok((name, value))
}

fn float_attribute(name: &str, value: f32) -> Message {
    Message::default().text(ATTRIBUTE_NAME, name).float(F, value).int(ATTRIBUTE_TYPE, 1)
}

/// ONNX's momentum.
fn keep(momentum: Momentum) -> Result<f32> {
    match momentum {
        Momentum::Exponential(new) => Ok((1.0 - new) as f32),
        other => {
            Err(Error::unsupported(ONNX, format!("momentum: expected one weight, got {other}")))
        }
    }
}
