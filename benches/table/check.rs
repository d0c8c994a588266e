//! Whether an engine computes what it is about to be timed for.
//!
//! Channels do not mix, so that the f64 reference on some channels of the full tensors is the
//! whole truth about them, at the full size and by the very code path that is timed. It is made
//! for the first channel, the last and as many between them as keep it to about a million values.
use super::tolerance::{Kind, agrees, tolerance};
use super::{Case, Pass, data};
use anyhow::{Result, ensure};
use batchnorm::{
    Activation, Backward, DType, Element, Engine, ForwardEval, ForwardTrain, Host, Reference,
    Saved, Shape,
};
use rayon::prelude::*;

const VALUES: usize = 1 << 20;
const EPS: f64 = 1e-5;
const MOMENTUM: f64 = 0.1;

/// What an engine computed, in its layout.
pub struct Got<E> {
    /// Of the forward.
    pub y: Vec<E>,
    pub running_mean: Vec<f32>,
    pub running_var: Vec<f32>,
    /// Of the backward, if the operation is one.
    pub gradients: Option<Gradients<E>>,
}

pub struct Gradients<E> {
    pub of_x: Vec<E>,
    pub of_residual: Option<Vec<E>>,
    pub of_weight: Vec<f32>,
    pub of_bias: Vec<f32>,
}

/// Sums of absolute values, which every peer can compare: `[y]`, or `[grad_x, grad_weight,
/// grad_bias]`.
pub fn sums<E: Element<Acc = f32>>(got: &Got<E>) -> Vec<f64> {
    fn sum<E: Element<Acc = f32>>(values: &[E]) -> f64 {
        let parts = values.par_chunks(1 << 16);
        let part = |values: &[E]| values.iter().map(|v| f64::from(v.widen().abs())).sum::<f64>();
        // Collected first: the order of the sum is that of the tensor.
        parts.map(part).collect::<Vec<f64>>().iter().sum()
    }
    match &got.gradients {
        Some(g) => vec![sum(&g.of_x), sum(&g.of_weight), sum(&g.of_bias)],
        None => vec![sum(&got.y)],
    }
}

/// # Errors
/// The first value that is further from the reference than its tolerance.
pub fn against_reference<E>(case: &Case, shape: &Shape, got: &Got<E>) -> Result<()>
where
    E: Element<Acc = f32>,
{
    let some = Channels::new(shape);
    let mut right = Right::new::<E>(case, &some)?;
    let activation = if case.op.relu { Activation::Relu } else { Activation::Identity };
    right.forward(case.op.pass, activation)?;
    let (mean, invstd) = (right.saved.mean(), right.saved.invstd());
    let (mean, invstd) = (mean.unwrap_or_default(), invstd.unwrap_or_default());
    let factors = mean.iter().zip(invstd).zip(&right.weight);
    let drift: Vec<f64> = factors.map(|((m, i), w)| (m * i * w).abs()).collect();
    let none = vec![0.0; drift.len()];

    let judge = Judge { dtype: E::DTYPE, part: &right.part, some: &some };
    let y = some.gather(&got.y);
    judge.values("y", Kind::Element, &y, &right.y, &drift)?;
    let [mean, var] = [&got.running_mean, &got.running_var].map(|v| some.parameters(v));
    judge.values("running_mean", Kind::Statistic, &mean, &right.running_mean, &none)?;
    judge.values("running_var", Kind::Statistic, &var, &right.running_var, &none)?;
    let Some(got) = &got.gradients else { return Ok(()) };

    // Where rounding decides whether a value passes its ReLU, either answer is right: the gate is
    // that of the engine's own y, which was right.
    let mut grad_y = some.data::<E>(case, data::GRAD_Y);
    if case.op.relu {
        grad_y.iter_mut().zip(&y).for_each(|(g, y)| *g = if *y <= 0.0 { 0.0 } else { *g });
        right.forward(Pass::Train, Activation::Identity)?;
    }
    let right = right.backward(&grad_y)?;
    let judge = Judge { dtype: E::DTYPE, part: &right.part, some: &some };
    let sum = Kind::Sum(shape.per_channel());
    let [weight, bias] = [&got.of_weight, &got.of_bias].map(|v| some.parameters(v));
    judge.values("grad_x", Kind::Element, &some.gather(&got.of_x), &right.grad_x, &drift)?;
    judge.values("grad_weight", sum, &weight, &right.grad_weight, &drift)?;
    judge.values("grad_bias", sum, &bias, &right.grad_bias, &none)?;
    if let Some(got) = &got.of_residual {
        judge.values("grad_residual", Kind::Element, &some.gather(got), &grad_y, &none)?;
    }
    Ok(())
}

/// The reference on some channels.
struct Right {
    part: Shape,
    x: Vec<f64>,
    residual: Option<Vec<f64>>,
    weight: Vec<f64>,
    bias: Vec<f64>,
    running_mean: Vec<f64>,
    running_var: Vec<f64>,
    y: Vec<f64>,
    saved: Saved<Host, f64>,
    grad_x: Vec<f64>,
    grad_weight: Vec<f64>,
    grad_bias: Vec<f64>,
}

impl Right {
    fn new<E: Element<Acc = f32>>(case: &Case, some: &Channels<'_>) -> Result<Self> {
        let (shape, c) = (some.shape, some.chosen.len());
        let part = Shape::new(&[shape.outer(), c, shape.inner()], 1)?;
        Ok(Self {
            part,
            x: some.data::<E>(case, data::X),
            residual: case.op.residual.then(|| some.data::<E>(case, data::RESIDUAL)),
            weight: some.parameters(&data::weight(shape.channels())),
            bias: some.parameters(&data::bias(shape.channels())),
            running_mean: vec![0.0; c],
            running_var: vec![1.0; c],
            y: vec![0.0; part.len()],
            saved: Saved::new(),
            grad_x: vec![0.0; part.len()],
            grad_weight: vec![0.0; c],
            grad_bias: vec![0.0; c],
        })
    }

    fn forward(&mut self, pass: Pass, activation: Activation) -> Result<()> {
        let (x, residual) = (&self.x[..], self.residual.as_deref());
        let (y, saved) = (&mut self.y[..], &mut self.saved);
        let (mean, var) = (&mut self.running_mean[..], &mut self.running_var[..]);
        if pass == Pass::Infer {
            let args = ForwardEval::<Host, f64>::new(x, y, mean, var);
            let mut args = args.weight(&self.weight).bias(&self.bias);
            args = args.activation(activation).eps(EPS).saved(saved);
            args.residual = residual;
            return Ok(Reference.forward_eval(&self.part, args)?);
        }
        let args = ForwardTrain::<Host, f64>::new(x, y).weight(&self.weight).bias(&self.bias);
        let mut args = args.activation(activation).eps(EPS).saved(saved);
        args = args.running(mean, var, MOMENTUM);
        args.residual = residual;
        Ok(Reference.forward_train(&self.part, args)?)
    }

    fn backward(mut self, grad_y: &[f64]) -> Result<Self> {
        let args = Backward::<Host, f64>::new(&self.saved, &self.x, grad_y)
            .grad_x(&mut self.grad_x)
            .grad_weight(&mut self.grad_weight)
            .grad_bias(&mut self.grad_bias);
        Reference.backward(&self.part, args)?;
        Ok(self)
    }
}

/// Some channels of a shape.
struct Channels<'a> {
    shape: &'a Shape,
    chosen: Vec<usize>,
}

impl<'a> Channels<'a> {
    fn new(shape: &'a Shape) -> Self {
        let all = shape.channels();
        let count = (VALUES / shape.per_channel().max(1)).clamp(all.min(2), all);
        let chosen = (0..count).map(|k| k * (all - 1) / (count - 1).max(1)).collect();
        Self { shape, chosen }
    }
    /// Their values, widened.
    fn gather<E: Element<Acc = f32>>(&self, tensor: &[E]) -> Vec<f64> {
        let (channels, inner) = (self.shape.channels(), self.shape.inner());
        let mut values = Vec::with_capacity(self.shape.outer() * self.chosen.len() * inner);
        for o in 0..self.shape.outer() {
            for c in &self.chosen {
                let first = (o * channels + c) * inner;
                values.extend(tensor[first..first + inner].iter().map(|v| f64::from(v.widen())));
            }
        }
        values
    }
    /// What [`data::tensor`] has there, rounded to the dtype and widened.
    fn data<E: Element<Acc = f32>>(&self, case: &Case, seed: u32) -> Vec<f64> {
        let channels = self.shape.channels();
        let positions: usize = case.dims[2..].iter().product();
        // `outer` counts samples, or samples and positions where channels are last.
        let positions_in_outer = positions / self.shape.inner();
        let mut values = Vec::with_capacity(self.shape.per_channel() * self.chosen.len());
        for o in 0..self.shape.outer() {
            let (n, s) = (o / positions_in_outer, o % positions_in_outer);
            for c in &self.chosen {
                let first = (n * channels + c) * positions + s;
                let value = |i: usize| E::narrow(data::value((first + i) as u32, seed)).widen();
                values.extend((0..self.shape.inner()).map(|i| f64::from(value(i))));
            }
        }
        values
    }
    fn parameters(&self, of_all: &[f32]) -> Vec<f64> {
        self.chosen.iter().map(|&c| f64::from(of_all[c])).collect()
    }
}

struct Judge<'a> {
    dtype: DType,
    part: &'a Shape,
    some: &'a Channels<'a>,
}

impl Judge<'_> {
    /// One tolerance per channel: the largest value of another says nothing about this one.
    fn values(
        &self,
        name: &str,
        kind: Kind,
        got: &[f64],
        right: &[f64],
        drift: &[f64],
    ) -> Result<()> {
        let element = kind == Kind::Element;
        let channel = |i: usize| if element { i / self.part.inner() % drift.len() } else { i };
        let mut largest = vec![0f64; drift.len()];
        right.iter().enumerate().for_each(|(i, r)| {
            let c = channel(i);
            largest[c] = largest[c].max(r.abs());
        });
        for (i, (got, right)) in got.iter().zip(right).enumerate() {
            let c = channel(i);
            let bar = tolerance(self.dtype, kind, largest[c], drift[c]);
            let place = self.some.chosen[c];
            let dtype = if element { self.dtype } else { DType::F32 };
            ensure!(
                agrees(*got, *right, bar, dtype),
                "{name} of channel {place} is {got:e}, the reference has {right:e}, \
                 the tolerance is {bar:.1e}"
            );
        }
        Ok(())
    }
}
