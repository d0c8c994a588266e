//! A whole step of a layer - forward, backward, the backward's gradients - by a mask or without one.
use super::layer::*;
use super::tolerance::{Kind, tolerance};
use batchnorm::*;
use half::bf16;

/// Tensors of a step, and what is given for the gradients of a backward; the residual is empty where there is none.
#[derive(Clone)]
pub struct Step<E: Element> {
    pub dims: Vec<usize>,
    pub axis: usize,
    pub x: Vec<E>,
    pub residual: Vec<E>,
    pub grad_y: Vec<E>,
    pub v_x: Vec<E>,
    pub v_residual: Vec<E>,
    pub v_weight: Vec<E::Acc>,
    pub v_bias: Vec<E::Acc>,
    pub mask: Option<OfMask>,
}
/// Places, and the rules of a mask: without the last axis of this length, if it is one of those.
#[derive(Clone)]
pub struct OfMask {
    pub places: Vec<u8>,
    pub last: Option<usize>,
    pub count_eps: f64,
    pub all_masked: AllMasked,
}

/// What a step leaves: y, grad_x, grad_residual; gg_grad_y, gg_x, gg_residual; then gradients of weight and bias, of
/// both backwards.
#[derive(Debug, Default)]
pub struct Outcome {
    pub tensors: [Vec<f64>; 6],
    pub sums: [Vec<f64>; 4],
}

fn narrowed<E: Element>(values: &[f64]) -> Vec<E> {
    values.iter().map(|v| E::narrow(Real::from_f64(*v))).collect()
}

impl<E: Element> Step<E> {
    pub fn new(dims: &[usize], axis: usize, mask: Option<OfMask>) -> Self {
        let len = dims.iter().product();
        // Exact in every type that is tested.
        let tensor = |seed| narrowed::<E>(&wide(&numbers::<bf16>(len, seed)));
        let channel = |seed| narrowed_acc::<E>(&wide(&numbers::<bf16>(dims[axis], seed)));
        Self {
            dims: dims.to_vec(),
            axis,
            x: tensor(1),
            residual: tensor(2),
            grad_y: tensor(3),
            v_x: tensor(4),
            v_residual: tensor(5),
            v_weight: channel(6),
            v_bias: channel(7),
            mask,
        }
    }
    pub fn row_len(&self) -> usize {
        self.x.len() / self.dims[0]
    }
    /// These rows.
    pub fn of_rows(&self, rows: &[usize]) -> Self {
        let some = |all: &[E]| -> Vec<E> {
            let row = |row: &usize| all[row * self.row_len()..][..self.row_len()].to_vec();
            rows.iter().filter(|_| !all.is_empty()).flat_map(row).collect()
        };
        let mask = self.mask.clone().map(|mask| {
            let len = mask.places.len() / self.dims[0];
            let row = |row: &usize| mask.places[row * len..][..len].to_vec();
            OfMask { places: rows.iter().flat_map(row).collect(), ..mask }
        });
        Self {
            dims: [&[rows.len()], &self.dims[1..]].concat(),
            axis: self.axis,
            x: some(&self.x),
            residual: some(&self.residual),
            grad_y: some(&self.grad_y),
            v_x: some(&self.v_x),
            v_residual: some(&self.v_residual),
            v_weight: self.v_weight.clone(),
            v_bias: self.v_bias.clone(),
            mask,
        }
    }
    /// These rows in f64.
    pub fn rows(&self, rows: &[usize]) -> Step<f64> {
        let Self { dims, axis, x, residual, grad_y, v_x, v_residual, v_weight, v_bias, mask } =
            self.of_rows(rows);
        let channel = |all: Vec<E::Acc>| all.iter().map(|v| v.to_f64()).collect();
        Step {
            dims,
            axis,
            x: wide(&x),
            residual: wide(&residual),
            grad_y: wide(&grad_y),
            v_x: wide(&v_x),
            v_residual: wide(&v_residual),
            v_weight: channel(v_weight),
            v_bias: channel(v_bias),
            mask,
        }
    }

    pub fn run<G: Engine>(&self, bn: &mut BatchNorm<E::Acc, G>, doubles: bool) -> Outcome {
        let (engine, n) = (bn.engine().clone(), self.x.len());
        let shape = Shape::new(&self.dims, self.axis).unwrap();
        let up = |values: &[E]| up(&engine, values);
        let [x, residual, grad_y] = [&self.x, &self.residual, &self.grad_y].map(|v| up(v));
        let nan = vec![narrowed::<E>(&[f64::NAN])[0]; n];
        let mut to = [(); 6].map(|()| up(&nan));
        let of = view::<G, E>;
        let on_engine = |mask: &OfMask| engine.memory().upload(&mask.places).unwrap();
        let places = self.mask.as_ref().map(on_engine);
        let places = || places.as_ref().map(|places| view::<G, u8>(places));
        let has_residual = self.residual.len() == self.x.len();
        let again = || has_residual.then(|| of(&residual));
        let mut saved = Saved::new();
        let y = view_mut::<G, E>(&mut to[0]);
        match (&self.mask, places()) {
            (Some(of_mask), Some(places)) => {
                let mut mask = Mask::new(places).count_eps(of_mask.count_eps);
                mask.last = of_mask.last;
                let mask = mask.all_masked(of_mask.all_masked);
                bn.forward_masked_into(&shape, of(&x), again(), mask, y, &mut saved).unwrap();
            }
            _ => bn.forward_into(&shape, of(&x), again(), y, &mut saved).unwrap(),
        }
        bn.zero_grad();
        {
            let [_, grad_x, grad_residual, ..] = &mut to;
            let to_r = again().map(|_| view_mut::<G, E>(grad_residual));
            let to_x = Some(view_mut::<G, E>(grad_x));
            let g = Input::View(of(&grad_y));
            match places() {
                Some(places) => {
                    bn.backward_masked_into(&saved, of(&x), again(), places, g, to_x, to_r).unwrap()
                }
                None => bn.backward_into(&saved, of(&x), again(), g, to_x, to_r).unwrap(),
            }
        }
        let channels = |bn: &BatchNorm<E::Acc, G>, name: &str| -> Vec<f64> {
            let grad = grad(bn, name).unwrap_or_default();
            grad.iter().map(|v| v.to_f64()).collect()
        };
        let mut outcome = Outcome::default();
        outcome.sums[..2].clone_from_slice(&["weight", "bias"].map(|name| channels(bn, name)));
        if doubles {
            bn.zero_grad();
            let [v_x, v_residual] = [&self.v_x, &self.v_residual].map(|v| up(v));
            let [v_weight, v_bias] =
                [&self.v_weight, &self.v_bias].map(|v| engine.memory().upload(v).unwrap());
            let [.., gg_grad_y, gg_x, gg_residual] = &mut to;
            let mut args = DoubleBackward::<G::Memory, E>::new(&saved, of(&x), of(&grad_y))
                .residual(of(&residual))
                .v_x(of(&v_x))
                .v_residual(of(&v_residual))
                .v_bias(view::<G, E::Acc>(&v_bias))
                .gg_grad_y(view_mut::<G, E>(gg_grad_y))
                .gg_x(view_mut::<G, E>(gg_x))
                .gg_residual(view_mut::<G, E>(gg_residual));
            args.mask = places();
            let v_weight = Some(&v_weight).filter(|_| !self.v_weight.is_empty());
            args.v_weight = v_weight.map(view::<G, E::Acc>);
            bn.double_backward_into(args).unwrap();
            outcome.sums[2..].clone_from_slice(&["weight", "bias"].map(|name| channels(bn, name)));
        }
        outcome.tensors = to.map(|buf| wide(&down::<G, E>(&engine, &buf)));
        outcome
    }
}

fn narrowed_acc<E: Element>(values: &[f64]) -> Vec<E::Acc> {
    values.iter().map(|v| Real::from_f64(*v)).collect()
}

pub fn parameterized<P: Real, G: Engine>(
    engine: &G,
    channels: usize,
    config: Config,
) -> BatchNorm<P, G> {
    let mut bn = BatchNorm::new(engine, channels, config).unwrap();
    for (seed, (_, param)) in bn.named_parameters_mut().enumerate() {
        let values = wide(&numbers::<bf16>(channels, seed as u64 + 40));
        param.value = up(engine, &values.into_iter().map(P::from_f64).collect::<Vec<_>>());
    }
    bn
}

/// Gradients of gradients are differences of products, each of which has an error of its own.
#[track_caller]
pub fn near<E: Element>(say: &str, got: &[f64], right: &[f64], kind: Kind) {
    assert_eq!(got.len(), right.len(), "{say}");
    let max = right.iter().filter(|v| v.is_finite()).fold(0.0, |max: f64, v| max.max(v.abs()));
    let bar = 16.0 * tolerance(E::DTYPE, kind, max, 1.0);
    for (i, (got, right)) in got.iter().zip(right).enumerate() {
        let near = got.is_nan() && right.is_nan() || (got - right).abs() <= bar;
        assert!(near, "{say}: at {i} expected {right}, got {got}, tolerance {bar}");
    }
}

/// Places of which about three of five count, other ones for every seed; none in the first two rows.
pub fn places(len: usize, rows: usize, seed: u64) -> Vec<u8> {
    let none = 2 * len / rows;
    let counts = numbers::<f64>(len, seed).into_iter().map(|v| u8::from(v < -0.3));
    counts.enumerate().map(|(i, one)| if i < none { 0 } else { one }).collect()
}

pub fn masks(dims: &[usize], axis: usize, seed: u64) -> [OfMask; 2] {
    let (len, last) = (dims.iter().product::<usize>(), dims[dims.len() - 1]);
    let of = |len| places(len, dims[0], seed);
    let exact = OfMask {
        places: of(len / dims[axis]),
        last: None,
        count_eps: 0.0,
        all_masked: AllMasked::Keep,
    };
    // Another one for every channel, where these are not last.
    let keras = OfMask {
        places: of(len / last),
        last: Some(last),
        count_eps: 1e-2,
        all_masked: AllMasked::Zero,
    };
    [exact, keras]
}
