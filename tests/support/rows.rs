//! Steps of layer normalization, and what they give by formulas of their own.
use super::run::{self, Buf, Outcome};
use super::tolerance::{Kind, agrees, tolerance};
use batchnorm::{
    DType, Element, Engine, EpsRule, LayerNormBackward, LayerNormForward, LayerNormSaved, Memory,
    Real, Result, Shape,
};

pub const RULES: [EpsRule; 3] = [EpsRule::Variance, EpsRule::Std, EpsRule::Both];

/// What a step is given; parameters that are empty are absent.
#[derive(Debug, Clone)]
pub struct Inputs {
    pub rows: usize,
    pub features: usize,
    pub x: Vec<f64>,
    pub grad_y: Vec<f64>,
    pub weight: Vec<f64>,
    pub bias: Vec<f64>,
    pub eps: f64,
    pub rule: EpsRule,
    /// What gradients of parameters hold before, to be added to.
    pub before: Option<f64>,
}

/// From -1 to 1, the same in every run.
fn values(seed: u64, len: usize) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

impl Inputs {
    pub fn new(rows: usize, features: usize, rule: EpsRule) -> Self {
        let seed = (1000 * rows + features) as u64;
        let shifted = |seed, by: f64, len| values(seed, len).into_iter().map(|v| v + by).collect();
        Self {
            rows,
            features,
            x: shifted(seed, 0.5, rows * features),
            grad_y: values(seed + 1, rows * features),
            weight: shifted(seed + 2, 1.5, features),
            bias: values(seed + 3, features),
            eps: 0.05,
            rule,
            before: None,
        }
    }
    /// As a type has them.
    pub fn rounded<E: Element>(mut self) -> Self {
        for tensor in [&mut self.x, &mut self.grad_y] {
            tensor.iter_mut().for_each(|v| *v = run::narrow::<E>(*v).widen().to_f64());
        }
        for of in [&mut self.weight, &mut self.bias] {
            of.iter_mut().for_each(|v| *v = E::Acc::from_f64(*v).to_f64());
        }
        self
    }
    pub fn shape(&self) -> Shape {
        Shape::new(&[self.rows, self.features], 1).unwrap()
    }
    fn divisor(&self, var: f64) -> f64 {
        match self.rule {
            EpsRule::Std => var.sqrt() + self.eps,
            EpsRule::Both => (var + self.eps).sqrt() + self.eps,
            _ => (var + self.eps).sqrt(),
        }
    }

    /// By the formulas, in f64; sums by the chain rule through the variance.
    pub fn expected(&self) -> Outcome {
        let Self { rows, features, x, grad_y, .. } = self;
        let c64 = *features as f64;
        let at = |of: &[f64], c: usize, absent: f64| of.get(c).copied().unwrap_or(absent);
        let (mut y, mut grad_x) = (Vec::new(), Vec::new());
        let (mut grad_weight, mut grad_bias) = (vec![0.0; *features], vec![0.0; *features]);
        for n in 0..*rows {
            let (x, grad_y) =
                (&x[n * features..][..*features], &grad_y[n * features..][..*features]);
            let mean = x.iter().sum::<f64>() / c64;
            let var = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / c64;
            let divisor = self.divisor(var);
            let root = if self.rule == EpsRule::Std { var.sqrt() } else { (var + self.eps).sqrt() };
            for c in 0..*features {
                let xhat = (x[c] - mean) / divisor;
                y.push(xhat * at(&self.weight, c, 1.0) + at(&self.bias, c, 0.0));
                grad_weight[c] += grad_y[c] * xhat;
                grad_bias[c] += grad_y[c];
            }
            let g: Vec<f64> =
                (0..*features).map(|c| grad_y[c] * at(&self.weight, c, 1.0)).collect();
            let mean_g = g.iter().sum::<f64>() / c64;
            // d loss / d var, and d var / d x = 2 (x - mean) / C.
            let dot: f64 = g.iter().zip(x).map(|(g, x)| g * (x - mean)).sum();
            let by_var = if root > 0.0 { -dot / divisor.powi(2) / (2.0 * root) } else { 0.0 };
            grad_x.extend(
                (0..*features)
                    .map(|c| (g[c] - mean_g) / divisor + by_var * 2.0 * (x[c] - mean) / c64),
            );
        }
        let before = self.before.unwrap_or(0.0);
        for sums in [&mut grad_weight, &mut grad_bias] {
            sums.iter_mut().for_each(|v| *v += before);
        }
        [("y", y), ("grad_x", grad_x), ("grad_weight", grad_weight), ("grad_bias", grad_bias)]
            .into()
    }
}

pub fn upload<G: Engine, T: Element>(engine: &G, values: &[f64]) -> Buf<G, T> {
    let values: Vec<T> = values.iter().map(|&v| run::narrow(v)).collect();
    engine.memory().upload(&values).unwrap()
}

/// Forward and backward on an engine.
pub fn step<E: Element, G: Engine>(engine: &G, inputs: &Inputs) -> Result<Outcome> {
    let (memory, shape, len) = (engine.memory(), inputs.shape(), inputs.x.len());
    let (x, grad_y) = (upload::<G, E>(engine, &inputs.x), upload::<G, E>(engine, &inputs.grad_y));
    let [weight, bias] = [&inputs.weight, &inputs.bias]
        .map(|of| (!of.is_empty()).then(|| upload::<G, E::Acc>(engine, of)));
    let [mut y, mut grad_x]: [Buf<G, E>; 2] =
        std::array::from_fn(|_| upload::<G, E>(engine, &vec![9.0; len]));
    let before = vec![inputs.before.unwrap_or(9.0); inputs.features];
    let [mut grad_weight, mut grad_bias]: [Buf<G, E::Acc>; 2] =
        std::array::from_fn(|_| upload::<G, E::Acc>(engine, &before));
    let mut saved = LayerNormSaved::<G::Memory, E::Acc>::new();
    let mut args =
        LayerNormForward::<G::Memory, E>::new(G::Memory::view(&x), G::Memory::view_mut(&mut y));
    args.weight = weight.as_ref().map(G::Memory::view);
    args.bias = bias.as_ref().map(G::Memory::view);
    let args = args.eps(inputs.eps).eps_rule(inputs.rule).saved(&mut saved);
    run::agree(engine, &shape, args.request(), |engine| engine.layer_norm(&shape, args))?;
    let args = LayerNormBackward::<G::Memory, E>::new(
        &saved,
        G::Memory::view(&x),
        G::Memory::view(&grad_y),
    );
    let args = args
        .grad_x(G::Memory::view_mut(&mut grad_x))
        .grad_weight(G::Memory::view_mut(&mut grad_weight))
        .grad_bias(G::Memory::view_mut(&mut grad_bias))
        .accumulate(inputs.before.is_some());
    run::agree(engine, &shape, args.request(), |engine| engine.layer_norm_backward(&shape, args))?;
    let tensor = |buf: &Buf<G, E>| memory.download(G::Memory::view(buf)).map(|v| run::widen(&v));
    let sums = |buf: &Buf<G, E::Acc>| memory.download(G::Memory::view(buf)).map(|v| run::widen(&v));
    Ok([
        ("y", tensor(&y)?),
        ("grad_x", tensor(&grad_x)?),
        ("grad_weight", sums(&grad_weight)?),
        ("grad_bias", sums(&grad_bias)?),
    ]
    .into())
}

#[track_caller]
pub fn near(dtype: DType, rows: usize, got: &Outcome, expected: &Outcome, what: &str) {
    for (name, expected) in expected {
        let got = &got[name];
        assert_eq!(got.len(), expected.len(), "{what}: {name}");
        let max_abs = expected.iter().fold(0.0, |max: f64, v| max.max(v.abs()));
        let sums = ["grad_weight", "grad_bias"].contains(name);
        let kind = if sums { Kind::Sum(rows.max(1)) } else { Kind::Element };
        let bar = tolerance(dtype, kind, max_abs, 0.0);
        for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
            assert!(
                agrees(*got, *expected, bar, dtype),
                "{what}: {name}[{i}]: {got}, not {expected}"
            );
        }
    }
}
