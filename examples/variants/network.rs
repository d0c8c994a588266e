//! A fully connected network, normalized behind every hidden layer, as walks through its layers: forward and
//! backward, with a mask or without, and the two further walks that a penalty on gradients takes.
use anyhow::Result;
use batchnorm::{
    Activation, BatchNorm, Config, Cpu, Host, Mask, PopulationRule, PopulationStatistics,
    RenormClip, Saved, Shape,
};
use ndarray::linalg::general_mat_mul;
use ndarray::{ArrayView2, ArrayViewMut2};

use super::random::Random;

/// Inputs, the units of every hidden layer, classes.
const UNITS: [usize; 5] = [64, 100, 100, 100, 10];

pub struct Network {
    hidden: Vec<(Linear, BatchNorm<f32, Cpu>)>,
    head: Linear,
    bias: Vec<f32>,
    bias_grad: Vec<f32>,
    engine: Cpu,
}

/// What a forward leaves for the walks after it.
pub struct Forward {
    /// Of every linear layer, the head's last.
    inputs: Vec<Vec<f32>>,
    /// Of every hidden layer: what its normalization was given, and saved.
    products: Vec<(Vec<f32>, Saved<Host, f32>)>,
    pub logits: Vec<f32>,
}

/// Gradients that a backward leaves for the walks after it, and that of the images.
pub struct Backward {
    logits: Vec<f32>,
    /// Of every hidden layer: of its output, and of what its normalization was given.
    hidden: Vec<[Vec<f32>; 2]>,
    pub x: Vec<f32>,
}

/// What the gradients of a backward add to those of the loss.
pub struct DoubleBackward {
    /// With respect to the gradient of the logits.
    pub grad_logits: Vec<f32>,
    /// With respect to what every normalization was given.
    products: Vec<Vec<f32>>,
}

impl Network {
    /// Random weights, the same for equal `random`.
    pub fn new(config: Config, random: &mut Random) -> Result<Self> {
        let engine = Cpu::default();
        let [.., last, classes] = UNITS;
        let layer = |io: &[usize], random: &mut Random| -> Result<_> {
            let bn = BatchNorm::new(&engine, io[1], config)?;
            Ok((Linear::new([io[0], io[1]], random), bn))
        };
        let pairs = UNITS[..UNITS.len() - 1].windows(2);
        let hidden = pairs.map(|io| layer(io, random)).collect::<Result<_>>()?;
        let head = Linear::new([last, classes], random);
        let (bias, bias_grad) = (vec![0.0; classes], vec![0.0; classes]);
        Ok(Self { hidden, head, bias, bias_grad, engine })
    }

    /// Every normalization is set to training, or to evaluation.
    pub fn train(&mut self, training: bool) {
        self.hidden.iter_mut().for_each(|(_, bn)| bn.train(training));
    }

    pub fn set_renorm_clip(&mut self, clip: RenormClip) -> Result<()> {
        Ok(self.hidden.iter_mut().try_for_each(|(_, bn)| bn.set_renorm_clip(clip))?)
    }

    /// A forward of so many rows; by the rows alone that `mask` has a 1 for, if there is one.
    pub fn forward(&mut self, x: Vec<f32>, mask: Option<&[u8]>) -> Result<Forward> {
        let (mut inputs, mut products) = (vec![x], Vec::new());
        for (linear, bn) in &mut self.hidden {
            let product = linear.forward(&inputs[inputs.len() - 1])?;
            let shape = Shape::from_end(&[product.len() / linear.outputs, linear.outputs], -1)?;
            let (y, saved) = match mask {
                Some(places) => bn.forward_masked(&shape, &product, Mask::new(places))?,
                None => bn.forward(&shape, &product)?,
            };
            products.push((product, saved));
            inputs.push(y);
        }
        let logits = self.classify(&inputs[inputs.len() - 1])?;
        Ok(Forward { inputs, products, logits })
    }

    fn classify(&self, features: &[f32]) -> Result<Vec<f32>> {
        let mut logits = self.head.forward(features)?;
        for row in logits.chunks_exact_mut(self.bias.len()) {
            row.iter_mut().zip(&self.bias).for_each(|(logit, bias)| *logit += bias);
        }
        Ok(logits)
    }

    /// The gradients of a loss, from those of its logits; the parameters' are added to what there is. `more` is
    /// what else adds to the gradients of what the normalizations were given.
    pub fn backward(
        &mut self,
        forward: &Forward,
        mask: Option<&[u8]>,
        logits: Vec<f32>,
        more: Option<&DoubleBackward>,
    ) -> Result<Backward> {
        for row in logits.chunks_exact(self.bias.len()) {
            self.bias_grad.iter_mut().zip(row).for_each(|(sum, grad)| *sum += grad);
        }
        let Forward { inputs, products, .. } = forward;
        let mut grad = self.head.backward(&inputs[self.hidden.len()], &logits)?;
        let mut hidden = Vec::new();
        for (i, (linear, bn)) in self.hidden.iter_mut().enumerate().rev() {
            let (product, saved) = &products[i];
            let mut to_product = match mask {
                Some(places) => bn.backward_masked(saved, product, places, &grad)?,
                None => bn.backward(saved, product, &grad)?,
            };
            if let Some(more) = more {
                add(&mut to_product, &more.products[i]);
            }
            let next = linear.backward(&inputs[i], &to_product)?;
            hidden.push([std::mem::replace(&mut grad, next), to_product]);
        }
        hidden.reverse();
        Ok(Backward { logits, hidden, x: grad })
    }

    /// The gradients of a backward for a loss that is made of its gradient of the images, from the gradient of that
    /// loss with respect to it, `v`: from the images on, as what a layer's backward was given is what that of the
    /// next one has computed. The parameters' are added to what there is.
    pub fn double_backward(
        &mut self,
        forward: &Forward,
        backward: &Backward,
        v: Vec<f32>,
    ) -> Result<DoubleBackward> {
        let (mut v, mut products) = (v, Vec::new());
        let layers = forward.products.iter().zip(&backward.hidden);
        for ((linear, bn), ((x, saved), [to_y, to_product])) in self.hidden.iter_mut().zip(layers) {
            let v_product = linear.double_backward(to_product, &v)?;
            let (to_grad_y, to_x) = bn.double_backward(saved, x, to_y, &v_product)?;
            products.push(to_x);
            v = to_grad_y;
        }
        let grad_logits = self.head.double_backward(&backward.logits, &v)?;
        Ok(DoubleBackward { grad_logits, products })
    }

    /// The logits in evaluation.
    pub fn infer(&self, x: &[f32]) -> Result<Vec<f32>> {
        let mut y = x.to_vec();
        for (linear, bn) in &self.hidden {
            let product = linear.forward(&y)?;
            let shape = Shape::from_end(&[product.len() / linear.outputs, linear.outputs], -1)?;
            y = bn.infer(&shape, &product)?;
        }
        self.classify(&y)
    }

    /// All gradients are 0 from here on.
    pub fn zero_grad(&mut self) {
        for (linear, bn) in &mut self.hidden {
            linear.grad.fill(0.0);
            bn.zero_grad();
        }
        self.head.grad.fill(0.0);
        self.bias_grad.fill(0.0);
    }

    /// Every parameter with its gradient.
    pub fn for_each_parameter(&mut self, mut visit: impl FnMut(&mut [f32], &[f32])) {
        for (linear, bn) in &mut self.hidden {
            visit(&mut linear.weight, &linear.grad);
            for (_, parameter) in bn.named_parameters_mut() {
                if let Some((value, grad)) = parameter.value_and_grad() {
                    visit(value, grad);
                }
            }
        }
        visit(&mut self.head.weight, &self.head.grad);
        visit(&mut self.bias, &self.bias_grad);
    }

    /// A step of SGD by the gradients that there are, which are 0 then.
    pub fn step(&mut self, learning_rate: f32) {
        self.for_each_parameter(|value, grad| {
            value.iter_mut().zip(grad).for_each(|(value, grad)| *value -= learning_rate * grad);
        });
        self.zero_grad();
    }

    /// What the running statistics are beside those of these images, in evaluation: the mean distance of the
    /// means in the images' deviations, and the geometric mean of the deviations' ratio, over all channels.
    pub fn drift(&self, x: &[f32]) -> Result<[f64; 2]> {
        let (mut y, mut sums, mut channels) = (x.to_vec(), [0.0; 2], 0);
        for (linear, bn) in &self.hidden {
            let product = linear.forward(&y)?;
            let shape = Shape::from_end(&[product.len() / linear.outputs, linear.outputs], -1)?;
            let mut all =
                PopulationStatistics::new(&self.engine, linear.outputs, PopulationRule::Exact)?;
            all.add::<f32, _>(&self.engine, &shape, &product)?;
            let all = all.finish()?;
            if let Some(running) = bn.running() {
                for c in 0..linear.outputs {
                    let [mean, var] = [&running.mean, &running.var].map(|of| f64::from(of[c]));
                    sums[0] += (mean - all.mean[c]).abs() / all.var[c].sqrt();
                    sums[1] += 0.5 * (var / all.var[c]).ln();
                    channels += 1;
                }
            }
            y = bn.infer(&shape, &product)?;
        }
        let [distance, ratio] = sums.map(|sum| sum / f64::from(channels));
        Ok([distance, ratio.exp()])
    }
}

/// `y = x weight^T`, weight being outputs x inputs.
struct Linear {
    inputs: usize,
    outputs: usize,
    weight: Vec<f32>,
    grad: Vec<f32>,
}

impl Linear {
    fn new([inputs, outputs]: [usize; 2], random: &mut Random) -> Self {
        let weight = random.normals(inputs * outputs, (2.0 / inputs as f64).sqrt());
        Self { inputs, outputs, grad: vec![0.0; weight.len()], weight }
    }

    fn weight(&self) -> Result<ArrayView2<'_, f32>> {
        Ok(ArrayView2::from_shape((self.outputs, self.inputs), &self.weight)?)
    }

    fn forward(&self, x: &[f32]) -> Result<Vec<f32>> {
        times(&matrix(x, self.inputs)?, &self.weight()?.reversed_axes())
    }

    /// The gradient of x, from that of y.
    fn backward(&mut self, x: &[f32], grad_y: &[f32]) -> Result<Vec<f32>> {
        self.add_grad(grad_y, x)?;
        times(&matrix(grad_y, self.outputs)?, &self.weight()?)
    }

    /// The gradient of a backward with respect to its `grad_y`, from that with respect to what it gave, `v_x`.
    fn double_backward(&mut self, grad_y: &[f32], v_x: &[f32]) -> Result<Vec<f32>> {
        self.add_grad(grad_y, v_x)?; // grad_x = grad_y weight
        self.forward(v_x)
    }

    fn add_grad(&mut self, of_outputs: &[f32], of_inputs: &[f32]) -> Result<()> {
        let (a, b) = (matrix(of_outputs, self.outputs)?, matrix(of_inputs, self.inputs)?);
        let shape = (self.outputs, self.inputs);
        let grad = &mut ArrayViewMut2::from_shape(shape, &mut self.grad)?;
        general_mat_mul(1.0, &a.reversed_axes(), &b, 1.0, grad);
        Ok(())
    }
}

fn matrix(values: &[f32], columns: usize) -> Result<ArrayView2<'_, f32>> {
    Ok(ArrayView2::from_shape((values.len() / columns, columns), values)?)
}

fn times(a: &ArrayView2<'_, f32>, b: &ArrayView2<'_, f32>) -> Result<Vec<f32>> {
    let shape = (a.nrows(), b.ncols());
    let mut c = vec![0.0; shape.0 * shape.1];
    general_mat_mul(1.0, a, b, 0.0, &mut ArrayViewMut2::from_shape(shape, &mut c)?);
    Ok(c)
}

pub fn add(to: &mut [f32], more: &[f32]) {
    to.iter_mut().zip(more).for_each(|(to, more)| *to += more);
}

/// How a layer is set up where nothing else is asked for.
pub fn plain() -> Config {
    Config::default().activation(Activation::Relu)
}
