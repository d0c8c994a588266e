//! A convolution of 3 x 3 and its batch normalization with ReLU, and with a residual where there is one: the code to
//! look at for how the layer is used between convolutions.
use anyhow::{Result, ensure};
use batchnorm::{Activation, BatchNorm, Config, Engine, Input, Memory, Saved, StateDict, Strict};

use super::backend::{Backend, Operand};
use super::random::Random;
use super::spatial::{Images, Layout, Spatial, TAPS};

pub type Buf<M> = <M as Memory>::Buf<f32>;

/// What is learned, and its gradient.
pub struct Parameter<M: Memory> {
    pub value: Buf<M>,
    pub grad: Buf<M>,
    pub shape: Vec<usize>,
}

pub struct Unit<G: Engine> {
    /// Outputs x inputs x 3 x 3 in either layout, as PyTorch has it. No bias: the normalization
    /// would take it off.
    weight: Parameter<G::Memory>,
    bn: BatchNorm<f32, G>,
}

/// What a unit works in, for so many images, and what its backward needs of its forward.
pub struct Trace<M: Memory> {
    input: Images,
    output: Images,
    /// The windows of the input, then their gradient.
    columns: Buf<M>,
    /// The convolution: what is normalized.
    product: Buf<M>,
    pub y: Buf<M>,
    saved: Saved<M, f32>,
    /// In NCHW every image has a product, and a gradient of the weight, of its own.
    grad_weights: Buf<M>,
}

/// Where the gradient of a unit's input goes.
pub struct To<'a, M: Memory> {
    pub grad_x: &'a mut Buf<M>,
    /// Whether it is added to what is there.
    pub accumulate: bool,
}

impl<M: Memory> Trace<M> {
    pub fn layout(&self) -> Layout {
        self.input.layout
    }
}

impl<M: Memory> Parameter<M> {
    pub fn new(memory: &M, shape: &[usize], values: &[f32]) -> Result<Self> {
        let (value, grad) = (memory.upload(values)?, memory.zeros(values.len())?);
        Ok(Self { value, grad, shape: shape.to_vec() })
    }

    pub fn descend<B: Backend<Memory = M>>(&mut self, backend: &B, rate: f32) -> Result<()> {
        backend.sgd(rate, M::view(&self.grad), M::view_mut(&mut self.value))
    }

    pub fn save(&self, memory: &M, name: &str, dict: &mut StateDict) -> Result<()> {
        Ok(dict.insert(name, &self.shape, &memory.download(M::view(&self.value))?)?)
    }

    pub fn load(&mut self, memory: &M, name: &str, dict: &StateDict) -> Result<()> {
        let expected = &self.shape;
        let Some((shape, values)) = dict.get(name)? else {
            anyhow::bail!("{name}: expected f32 {expected:?}, got none")
        };
        ensure!(shape == expected, "{name}: expected f32 {expected:?}, got {shape:?}");
        Ok(memory.write(&values, M::view_mut(&mut self.value))?)
    }
}

impl<M: Memory, G: Engine<Memory = M>> Unit<G> {
    /// Random weights by He's rule.
    pub fn new(engine: &G, [inputs, outputs]: [usize; 2], random: &mut Random) -> Result<Self> {
        let taps = inputs * TAPS;
        let values = random.normals(outputs * taps, (2.0 / taps as f64).sqrt());
        let weight = Parameter::new(engine.memory(), &[outputs, inputs, 3, 3], &values)?;
        let config = Config::default().activation(Activation::Relu);
        Ok(Self { weight, bn: BatchNorm::new(engine, outputs, config)? })
    }

    /// Memory for a unit on such images.
    pub fn trace(&self, memory: &M, input: Images) -> Result<Trace<M>> {
        let output = input.of(self.bn.channels());
        let weights = match input.layout {
            Layout::Nchw => input.count * output.channels * input.windows().channels,
            Layout::Nhwc => 0,
        };
        Ok(Trace {
            input,
            output,
            columns: memory.zeros(input.windows().len())?,
            product: memory.zeros(output.len())?,
            y: memory.zeros(output.len())?,
            saved: Saved::new(),
            grad_weights: memory.zeros(weights)?,
        })
    }

    /// `relu(bn(conv(x)) + residual)`, by the batch's statistics.
    pub fn forward<B: Backend<Memory = M>, S: Spatial<Memory = M>>(
        &mut self,
        backend: &B,
        spatial: &S,
        x: &Buf<M>,
        residual: Option<&Buf<M>>,
        trace: &mut Trace<M>,
    ) -> Result<()> {
        self.convolve(backend, spatial, x, trace)?;
        let (shape, residual) = (trace.output.shape()?, residual.map(M::view));
        let Trace { product, y, saved, .. } = trace;
        Ok(self.bn.forward_into(&shape, M::view(product), residual, M::view_mut(y), saved)?)
    }

    /// The same by the running statistics, with nothing kept for a backward.
    pub fn infer<B: Backend<Memory = M>, S: Spatial<Memory = M>>(
        &self,
        backend: &B,
        spatial: &S,
        x: &Buf<M>,
        residual: Option<&Buf<M>>,
        trace: &mut Trace<M>,
    ) -> Result<()> {
        self.convolve(backend, spatial, x, trace)?;
        let (shape, residual) = (trace.output.shape()?, residual.map(M::view));
        let x = Input::View(M::view(&trace.product));
        Ok(self.bn.infer_into(&shape, x, residual, M::view_mut(&mut trace.y))?)
    }

    fn convolve<B: Backend<Memory = M>, S: Spatial<Memory = M>>(
        &self,
        backend: &B,
        spatial: &S,
        x: &Buf<M>,
        trace: &mut Trace<M>,
    ) -> Result<()> {
        let Trace { input, output, columns, product, .. } = trace;
        spatial.im2col(*input, M::view(x), M::view_mut(columns))?;
        let (taps, outputs, pixels) = (input.windows().channels, output.channels, input.pixels());
        let (weight, columns) = (M::view(&self.weight.value), Operand::Plain(M::view(columns)));
        let product = M::view_mut(product);
        match input.layout {
            Layout::Nchw => {
                backend.matmul([outputs, taps, pixels], Operand::Plain(weight), columns, product)
            }
            Layout::Nhwc => {
                let size = [input.count * pixels, taps, outputs];
                backend.matmul(size, columns, Operand::Transposed(weight), product)
            }
        }
    }

    /// From the gradient of the output, which is overwritten, to those of the parameters, of the
    /// residual and of the input, where they are asked for.
    pub fn backward<B: Backend<Memory = M>, S: Spatial<Memory = M>>(
        &mut self,
        backend: &B,
        spatial: &S,
        grad: &mut Buf<M>,
        grad_residual: Option<&mut Buf<M>>,
        to: Option<To<'_, M>>,
        trace: &mut Trace<M>,
    ) -> Result<()> {
        let Trace { input, output, columns, product, saved, grad_weights, .. } = trace;
        let (grad_x, grad_residual) = (Some(M::view_mut(grad)), grad_residual.map(M::view_mut));
        let product = M::view(product);
        self.bn.backward_into::<f32>(
            saved,
            product,
            None,
            Input::InPlace,
            grad_x,
            grad_residual,
        )?;

        let (taps, outputs, pixels) = (input.windows().channels, output.channels, input.pixels());
        let Parameter { value: weight, grad: grad_weight, .. } = &mut self.weight;
        let all = input.count * pixels;
        match input.layout {
            Layout::Nchw => {
                let (size, columns) = ([outputs, pixels, taps], M::view(columns));
                let (a, b) = (Operand::Plain(M::view(grad)), Operand::Transposed(columns));
                backend.matmul(size, a, b, M::view_mut(grad_weights))?;
                backend.sum_rows(M::view(grad_weights), M::view_mut(grad_weight))?;
            }
            Layout::Nhwc => {
                let (size, columns) = ([outputs, all, taps], M::view(columns));
                let (a, b) = (Operand::Transposed(M::view(grad)), Operand::Plain(columns));
                backend.matmul(size, a, b, M::view_mut(grad_weight))?;
            }
        }
        let Some(To { grad_x, accumulate }) = to else { return Ok(()) };
        let (grad, weight, to) = (M::view(grad), M::view(weight), M::view_mut(columns));
        match input.layout {
            Layout::Nchw => {
                let (a, b) = (Operand::Transposed(weight), Operand::Plain(grad));
                backend.matmul([taps, outputs, pixels], a, b, to)?;
            }
            Layout::Nhwc => {
                let (a, b) = (Operand::Plain(grad), Operand::Plain(weight));
                backend.matmul([all, outputs, taps], a, b, to)?;
            }
        }
        spatial.col2im(*input, M::view(columns), accumulate, M::view_mut(grad_x))
    }

    /// A step of SGD.
    pub fn descend<B: Backend<Memory = M>>(&mut self, backend: &B, rate: f32) -> Result<()> {
        self.weight.descend(backend, rate)?;
        for (_, param) in self.bn.named_parameters_mut() {
            let Some((value, grad)) = param.value_and_grad() else { continue };
            backend.sgd(rate, M::view(grad), M::view_mut(value))?;
        }
        self.bn.zero_grad();
        Ok(())
    }

    pub fn save(&self, name: &str, dict: &mut StateDict) -> Result<()> {
        self.weight.save(self.bn.engine().memory(), &format!("{name}.conv.weight"), dict)?;
        dict.extend(self.bn.state_dict(&format!("{name}.bn."))?);
        Ok(())
    }

    pub fn load(&mut self, name: &str, dict: &StateDict) -> Result<()> {
        let memory = self.bn.engine().memory().clone();
        self.weight.load(&memory, &format!("{name}.conv.weight"), dict)?;
        self.bn.load_state_dict(dict, &format!("{name}.bn."), Strict::Yes)?;
        Ok(())
    }
}
