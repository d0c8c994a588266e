//! What operations are given: tensors and parameters on the host, from a seed.
use super::random::Random;
use super::rules::Rules;
use super::run::{channel_of, narrow, widen};
use batchnorm::{Activation, AllMasked, Element, Mask, Memory, Real, Shape};

/// What is added to `xhat`, and which parameters there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Epilogue {
    pub activation: Activation,
    pub residual: bool,
    pub weight: bool,
    pub bias: bool,
}

impl Epilogue {
    pub const PLAIN: Self =
        Self { activation: Activation::Identity, residual: false, weight: true, bias: true };
    pub const FULL: Self = Self { activation: Activation::Relu, residual: true, ..Self::PLAIN };

    /// ReLU and residual in every combination, with both parameters: what takes loops of its own.
    pub fn affine() -> impl Iterator<Item = Self> {
        Self::all().filter(|e| e.weight && e.bias)
    }
    /// The activations after ReLU with a residual and without, with both parameters.
    pub fn others() -> impl Iterator<Item = Self> {
        let known = [Activation::Identity, Activation::Relu];
        let others = Activation::ALL.into_iter().filter(move |a| !known.contains(a));
        let epilogue = |activation, residual| Self { activation, residual, ..Self::PLAIN };
        others.flat_map(move |a| [false, true].map(|residual| epilogue(a, residual)))
    }
    /// ReLU, residual, weight and bias in all sixteen combinations.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..16).map(|bits| Self {
            activation: if bits & 1 > 0 { Activation::Relu } else { Activation::Identity },
            residual: bits & 2 > 0,
            weight: bits & 4 > 0,
            bias: bits & 8 > 0,
        })
    }
}

/// What the values of a tensor are like.
#[derive(Debug, Clone, Copy)]
pub struct Spread {
    pub mean: f64,
    pub std: f64,
}

/// Everything an operation reads, on the host.
#[derive(Debug, Clone)]
pub struct Inputs<E: Element> {
    pub shape: Shape,
    pub epilogue: Epilogue,
    pub eps: f64,
    pub x: Vec<E>,
    pub residual: Vec<E>,
    pub grad_y: Vec<E>,
    pub weight: Vec<E::Acc>,
    pub bias: Vec<E::Acc>,
    /// Running statistics in training, given ones in evaluation.
    pub mean: Vec<E::Acc>,
    pub var: Vec<E::Acc>,
    /// In evaluation instead of these.
    pub record: Option<Vec<f64>>,
    pub rules: Rules,
    /// Which values count; all if absent.
    pub mask: Option<Masked>,
}

/// A mask, on the host.
#[derive(Debug, Clone)]
pub struct Masked {
    pub places: Vec<u8>,
    pub last: Option<usize>,
    pub count_eps: f64,
    pub all_masked: AllMasked,
}

impl Masked {
    /// As an argument, where its places lie.
    pub fn mask<'a, M: Memory>(&self, places: M::View<'a, u8>) -> Mask<'a, M> {
        let mask = Mask::new(places).count_eps(self.count_eps).all_masked(self.all_masked);
        match self.last {
            Some(last) => mask.without_last(last),
            None => mask,
        }
    }
}

impl<E: Element> Inputs<E> {
    /// Values of about unit size, from a seed.
    pub fn new(shape: &Shape, epilogue: Epilogue, seed: u64) -> Self {
        Self::spread(shape, epilogue, Spread { mean: 0.7, std: 1.3 }, seed)
    }

    /// x with this mean (somewhat different in each channel) and standard deviation.
    pub fn spread(shape: &Shape, epilogue: Epilogue, spread: Spread, seed: u64) -> Self {
        Self::spreads(shape, epilogue, |_| spread, seed)
    }

    /// The same with what `spread` says of each channel.
    pub fn spreads(
        shape: &Shape,
        epilogue: Epilogue,
        spread: impl Fn(usize) -> Spread,
        seed: u64,
    ) -> Self {
        let (n, c) = (shape.len(), shape.channels());
        let channel_mean = |c: usize| spread(c).mean * (1.0 - 0.1 * ((c * 5) % 7) as f64);
        let std = |c: usize| spread(c).std;
        let mut random = Random(seed);
        let mut normals = |n: usize| -> Vec<f64> { (0..n).map(|_| random.normal()).collect() };
        let x = normals(n).into_iter().enumerate().map(|(i, v)| (channel_of(shape, i), v));
        let x = x.map(|(c, v)| channel_mean(c) + std(c) * v);
        let given_mean = normals(c).into_iter().enumerate();
        let given_mean = given_mean.map(|(c, v)| channel_mean(c) + 0.3 * std(c) * v);
        Self {
            shape: *shape,
            epilogue,
            eps: 1e-5,
            x: x.map(narrow).collect(),
            residual: normals(n).into_iter().map(narrow).collect(),
            grad_y: normals(n).into_iter().map(narrow).collect(),
            weight: normals(c).into_iter().map(narrow).collect(),
            bias: normals(c).into_iter().map(|v| narrow(0.5 * v)).collect(),
            mean: given_mean.map(narrow).collect(),
            var: normals(c)
                .into_iter()
                .enumerate()
                .map(|(c, v)| narrow((0.2 + v.abs()) * std(c) * std(c)))
                .collect(),
            record: None,
            rules: Rules::default(),
            mask: None,
        }
    }

    /// The same values in f64.
    pub fn wide(&self) -> Inputs<f64> {
        Inputs {
            shape: self.shape,
            epilogue: self.epilogue,
            eps: self.eps,
            x: widen(&self.x),
            residual: widen(&self.residual),
            grad_y: widen(&self.grad_y),
            weight: widen(&self.weight),
            bias: widen(&self.bias),
            mean: widen(&self.mean),
            var: widen(&self.var),
            record: self.record.clone(),
            rules: self.rules,
            mask: self.mask.clone(),
        }
    }
}
