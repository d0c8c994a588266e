//! A fully connected network, with or without batch normalization before its nonlinearities: the
//! code to look at for how the layer is used. It runs wherever its engine and backend do.
use anyhow::{Result, ensure};
use batchnorm::{
    Activation, BatchNorm, Config, Engine, Input, Memory, PopulationRule, PopulationStatistics,
    Saved, Shape, StateDict, Strict,
};

use super::backend::{Backend, Nonlinearity, Operand};
use super::random::Random;

/// What a network is made of.
#[derive(Debug, Clone)]
pub struct Architecture {
    /// Inputs, the units of every hidden layer, classes.
    pub units: Vec<usize>,
    /// After every hidden layer.
    pub nonlinearity: Nonlinearity,
    /// Whether every hidden layer is normalized, before the nonlinearity.
    pub normalize: bool,
}

/// The mean loss and the share of right answers, 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Score {
    pub loss: f64,
    pub accuracy: f64,
}

/// Layers, their gradients, and all memory that a step needs: steps allocate no tensor.
pub struct Network<G: Engine, B> {
    layers: Vec<Layer<G>>,
    training: Pass<G::Memory>,
    /// Of every layer's output, and in place of every layer's input to the nonlinearity.
    grads: Vec<Buf<G>>,
    evaluation: Pass<G::Memory>,
    engine: G,
    backend: B,
}

type Buf<G> = <<G as Engine>::Memory as Memory>::Buf<f32>;

/// A linear layer and what follows it.
struct Layer<G: Engine> {
    inputs: usize,
    outputs: usize,
    /// Outputs x inputs, as PyTorch has it.
    weight: Parameter<G::Memory>,
    /// None under a normalization, whose own bias does the same: the mean takes any other off.
    bias: Option<Parameter<G::Memory>>,
    norm: Option<Norm<G>>,
    /// None at the end, and where the normalization brings its own ReLU.
    nonlinearity: Option<Nonlinearity>,
}

struct Parameter<M: Memory> {
    value: M::Buf<f32>,
    grad: M::Buf<f32>,
}

struct Norm<G: Engine> {
    bn: BatchNorm<f32, G>,
    /// What the batch normalization got: its backward needs it.
    x: Buf<G>,
    saved: Saved<G::Memory, f32>,
}

/// Memory for the outputs of all layers, for so many images.
struct Pass<M: Memory> {
    rows: usize,
    outputs: Vec<M::Buf<f32>>,
    /// Mean loss and number of right answers.
    scores: M::Buf<f32>,
}

impl<M: Memory, G: Engine<Memory = M>, B: Backend<Memory = M>> Network<G, B> {
    /// Random weights, the same for equal `random`, with and without normalization; memory for
    /// steps of `batch` images and for the evaluation of `evaluated` images.
    pub fn new(
        engine: &G,
        backend: &B,
        architecture: &Architecture,
        [batch, evaluated]: [usize; 2],
        random: &mut Random,
    ) -> Result<Self> {
        let memory = engine.memory();
        let units = &architecture.units;
        let mut layers = Vec::new();
        for (i, io) in units.windows(2).enumerate() {
            let hidden = i + 2 < units.len();
            layers.push(Layer::new(engine, [io[0], io[1]], hidden, architecture, batch, random)?);
        }
        let buffers = |rows: usize| units[1..].iter().map(move |n| memory.zeros(rows * n));
        let pass = |rows| -> Result<_> {
            let outputs = buffers(rows).collect::<Result<_, _>>()?;
            Ok(Pass { rows, outputs, scores: memory.zeros(2)? })
        };
        Ok(Self {
            layers,
            training: pass(batch)?,
            grads: buffers(batch).collect::<Result<_, _>>()?,
            evaluation: pass(evaluated)?,
            engine: engine.clone(),
            backend: backend.clone(),
        })
    }

    /// One step of SGD on a batch: `x` holds its images, `labels` their classes.
    pub fn step(&mut self, x: &M::Buf<f32>, labels: &M::Buf<u8>, learning_rate: f32) -> Result<()> {
        self.gradients(x, labels)?;
        let backend = &self.backend;
        for layer in &mut self.layers {
            for Parameter { value, grad } in [&mut layer.weight].into_iter().chain(&mut layer.bias)
            {
                backend.sgd(learning_rate, M::view(grad), M::view_mut(value))?;
            }
            let Some(Norm { bn, .. }) = &mut layer.norm else { continue };
            for (_, param) in bn.named_parameters_mut() {
                let Some((value, grad)) = param.value_and_grad() else { continue };
                backend.sgd(learning_rate, M::view(grad), M::view_mut(value))?;
            }
            bn.zero_grad();
        }
        Ok(())
    }

    /// Forward, loss and backward of a batch: what a step does before it changes the parameters.
    fn gradients(&mut self, x: &M::Buf<f32>, labels: &M::Buf<u8>) -> Result<()> {
        let Self { layers, training, grads, backend, .. } = self;
        let Pass { rows, outputs, scores } = training;
        for (i, layer) in layers.iter_mut().enumerate() {
            let (before, after) = outputs.split_at_mut(i);
            layer.forward(backend, *rows, before.last().unwrap_or(x), &mut after[0])?;
        }
        let last = layers.len() - 1;
        backend.cross_entropy(
            M::view(&outputs[last]),
            M::view(labels),
            M::view_mut(scores),
            Some(M::view_mut(&mut grads[last])),
        )?;
        for (i, layer) in layers.iter_mut().enumerate().rev() {
            let (before, after) = grads.split_at_mut(i);
            let input = if i == 0 { x } else { &outputs[i - 1] };
            // The first layer's input is the image: nobody asks for its gradient.
            layer.backward(backend, *rows, input, &outputs[i], &mut after[0], before.last_mut())?;
        }
        Ok(())
    }

    /// How the network does on images it was not trained on, by its running statistics.
    pub fn evaluate(&mut self, x: &M::Buf<f32>, labels: &M::Buf<u8>) -> Result<Score> {
        let Self { layers, evaluation, backend, .. } = self;
        let Pass { rows, outputs, scores } = evaluation;
        for (i, layer) in layers.iter().enumerate() {
            let (before, after) = outputs.split_at_mut(i);
            layer.infer(backend, *rows, before.last().unwrap_or(x), &mut after[0])?;
        }
        let logits = M::view(&outputs[layers.len() - 1]);
        backend.cross_entropy(logits, M::view(labels), M::view_mut(scores), None)?;
        let scores = self.engine.memory().download(M::view(scores))?;
        let [loss, right] = [f64::from(scores[0]), f64::from(scores[1])];
        Ok(Score { loss, accuracy: right / *rows as f64 })
    }

    /// Gives every normalization the statistics of a whole data set in place of its running ones, in order:
    /// a layer's are applied before those of the next one are gathered, which so come from what that is
    /// given in evaluation. `batch` makes the `i`th of so many batches: its rows, and the images.
    pub fn use_population(
        &mut self,
        batches: usize,
        mut batch: impl FnMut(usize) -> Result<(usize, M::Buf<f32>)>,
    ) -> Result<()> {
        let Self { layers, engine, backend, .. } = self;
        for i in 0..layers.len() {
            let (before, layer) = layers.split_at_mut(i);
            let Layer { outputs, norm: Some(_), .. } = layer[0] else { continue };
            let mut population = PopulationStatistics::new(engine, outputs, PopulationRule::Exact)?;
            for k in 0..batches {
                let (rows, mut x) = batch(k)?;
                for layer in &*before {
                    let mut y = engine.memory().zeros(rows * layer.outputs)?;
                    layer.infer(backend, rows, &x, &mut y)?;
                    x = y;
                }
                let mut product = engine.memory().zeros(rows * outputs)?;
                layer[0].multiply(backend, rows, &x, M::view_mut(&mut product))?;
                let shape = Shape::new(&[rows, outputs], 1)?;
                population.add::<f32, G>(engine, &shape, M::view(&product))?;
            }
            let norm = layer[0].norm.as_mut();
            norm.map_or(Ok(()), |norm| population.apply_to(&mut norm.bn))?;
        }
        Ok(())
    }

    /// All parameters and running statistics, under names such as `layer1.weight` and
    /// `bn1.running_mean` behind `prefix`.
    pub fn state_dict(&self, prefix: &str) -> Result<StateDict> {
        let memory = self.engine.memory();
        let mut dict = StateDict::new();
        for (i, layer) in (1..).zip(&self.layers) {
            for (name, shape, parameter) in layer.parameters() {
                let values = memory.download(M::view(&parameter.value))?;
                dict.insert(format!("{prefix}layer{i}.{name}"), &shape, &values)?;
            }
            if let Some(norm) = &layer.norm {
                dict.extend(norm.bn.state_dict(&format!("{prefix}bn{i}."))?);
            }
        }
        Ok(dict)
    }

    /// Takes over what [`state_dict`](Self::state_dict) gave.
    pub fn load_state_dict(&mut self, dict: &StateDict, prefix: &str) -> Result<()> {
        for (i, layer) in (1..).zip(&mut self.layers) {
            for (name, expected, parameter) in layer.parameters_mut() {
                let name = format!("{prefix}layer{i}.{name}");
                let tensor = dict.get(&name)?;
                ensure!(tensor.is_some(), "{name}: expected f32 {expected:?}, got none");
                let Some((shape, values)) = tensor else { continue };
                ensure!(shape == expected, "{name}: expected f32 {expected:?}, got {shape:?}");
                self.engine.memory().write(&values, M::view_mut(&mut parameter.value))?;
            }
            if let Some(norm) = &mut layer.norm {
                norm.bn.load_state_dict(dict, &format!("{prefix}bn{i}."), Strict::Yes)?;
            }
        }
        Ok(())
    }
}

impl<M: Memory, G: Engine<Memory = M>> Layer<G> {
    fn new(
        engine: &G,
        [inputs, outputs]: [usize; 2],
        hidden: bool,
        architecture: &Architecture,
        batch: usize,
        random: &mut Random,
    ) -> Result<Self> {
        let memory = engine.memory();
        let Architecture { nonlinearity, normalize, .. } = *architecture;
        // What keeps the size of signals, forward and backward: Glorot's and He's rules.
        let variance = match nonlinearity {
            Nonlinearity::Relu if hidden => 2.0 / inputs as f64,
            _ => 2.0 / (inputs + outputs) as f64,
        };
        let weights = random.normals(inputs * outputs, variance.sqrt());
        let parameter = |value: M::Buf<f32>, len| -> Result<_> {
            Ok(Parameter { value, grad: memory.zeros(len)? })
        };
        let weight = parameter(memory.upload(&weights)?, inputs * outputs)?;
        if !(hidden && normalize) {
            let bias = Some(parameter(memory.zeros(outputs)?, outputs)?);
            let nonlinearity = hidden.then_some(nonlinearity);
            return Ok(Self { inputs, outputs, weight, bias, norm: None, nonlinearity });
        }
        // The layer has a ReLU of its own, in the same pass over memory.
        let (activation, nonlinearity) = match nonlinearity {
            Nonlinearity::Relu => (Activation::Relu, None),
            other => (Activation::Identity, Some(other)),
        };
        let config = Config::default().activation(activation);
        let bn = BatchNorm::new(engine, outputs, config)?;
        let norm = Some(Norm { bn, x: memory.zeros(batch * outputs)?, saved: Saved::new() });
        Ok(Self { inputs, outputs, weight, bias: None, norm, nonlinearity })
    }

    fn forward<B: Backend<Memory = M>>(
        &mut self,
        backend: &B,
        rows: usize,
        x: &M::Buf<f32>,
        y: &mut M::Buf<f32>,
    ) -> Result<()> {
        let size = [rows, self.inputs, self.outputs];
        let weight = Operand::Transposed(M::view(&self.weight.value));
        if let Some(norm) = &mut self.norm {
            let shape = Shape::new(&[rows, self.outputs], 1)?;
            let Norm { bn, x: product, saved } = norm;
            backend.matmul(size, Operand::Plain(M::view(x)), weight, M::view_mut(product))?;
            bn.forward_into(&shape, M::view(product), None, M::view_mut(y), saved)?;
        } else {
            self.multiply(backend, rows, x, M::view_mut(y))?;
        }
        self.finish(backend, y)
    }

    /// What the linear layer makes of `x`, its bias aside.
    fn multiply<B: Backend<Memory = M>>(
        &self,
        backend: &B,
        rows: usize,
        x: &M::Buf<f32>,
        product: M::ViewMut<'_, f32>,
    ) -> Result<()> {
        let size = [rows, self.inputs, self.outputs];
        let weight = Operand::Transposed(M::view(&self.weight.value));
        backend.matmul(size, Operand::Plain(M::view(x)), weight, product)
    }

    /// As [`forward`](Self::forward), by the running statistics, with nothing kept.
    fn infer<B: Backend<Memory = M>>(
        &self,
        backend: &B,
        rows: usize,
        x: &M::Buf<f32>,
        y: &mut M::Buf<f32>,
    ) -> Result<()> {
        self.multiply(backend, rows, x, M::view_mut(y))?;
        if let Some(norm) = &self.norm {
            let shape = Shape::new(&[rows, self.outputs], 1)?;
            norm.bn.infer_into::<f32>(&shape, Input::InPlace, None, M::view_mut(y))?;
        }
        self.finish(backend, y)
    }

    /// Bias and nonlinearity.
    fn finish<B: Backend<Memory = M>>(&self, backend: &B, y: &mut M::Buf<f32>) -> Result<()> {
        if let Some(bias) = &self.bias {
            backend.add_bias(M::view(&bias.value), M::view_mut(y))?;
        }
        self.nonlinearity.map_or(Ok(()), |kind| backend.activate(kind, M::view_mut(y)))
    }

    /// From the gradient of the output `y`, which is overwritten, to those of the parameters, and
    /// of the input `x` where there is a `grad_x`.
    fn backward<B: Backend<Memory = M>>(
        &mut self,
        backend: &B,
        rows: usize,
        x: &M::Buf<f32>,
        y: &M::Buf<f32>,
        grad: &mut M::Buf<f32>,
        grad_x: Option<&mut M::Buf<f32>>,
    ) -> Result<()> {
        if let Some(kind) = self.nonlinearity {
            backend.activate_backward(kind, M::view(y), M::view_mut(grad))?;
        }
        if let Some(Norm { bn, x, saved }) = &mut self.norm {
            let grad = Some(M::view_mut(grad));
            bn.backward_into::<f32>(saved, M::view(x), None, Input::InPlace, grad, None)?;
        }
        if let Some(bias) = &mut self.bias {
            backend.sum_rows(M::view(grad), M::view_mut(&mut bias.grad))?;
        }
        let (inputs, outputs) = (self.inputs, self.outputs);
        backend.matmul(
            [outputs, rows, inputs],
            Operand::Transposed(M::view(grad)),
            Operand::Plain(M::view(x)),
            M::view_mut(&mut self.weight.grad),
        )?;
        let Some(grad_x) = grad_x else { return Ok(()) };
        let weight = Operand::Plain(M::view(&self.weight.value));
        let size = [rows, outputs, inputs];
        backend.matmul(size, Operand::Plain(M::view(grad)), weight, M::view_mut(grad_x))
    }

    /// Those of the linear layer: name, shape, and the parameter.
    fn parameters(&self) -> impl Iterator<Item = (&'static str, Vec<usize>, &Parameter<M>)> {
        let weight = ("weight", vec![self.outputs, self.inputs], &self.weight);
        let bias = self.bias.as_ref().map(|bias| ("bias", vec![self.outputs], bias));
        [weight].into_iter().chain(bias)
    }

    fn parameters_mut(
        &mut self,
    ) -> impl Iterator<Item = (&'static str, Vec<usize>, &mut Parameter<M>)> {
        let weight = ("weight", vec![self.outputs, self.inputs], &mut self.weight);
        let bias = self.bias.as_mut().map(|bias| ("bias", vec![self.outputs], bias));
        [weight].into_iter().chain(bias)
    }
}
