//! Double backwards on any engine, and how near the reference's they are.
use super::run::{self, Buf, Inputs, Mode, Outcome, Random, SavedOn, agree};
use super::tolerance::{Kind, agrees, tolerance};
use batchnorm::{
    DType, Derivative, DoubleBackward, Element, Engine, Memory, Reference, Result, Shape,
};

/// What is given for the gradients of a backward; what is empty is absent.
#[derive(Debug, Clone)]
pub struct Given<E: Element> {
    pub x: Vec<E>,
    pub residual: Vec<E>,
    pub weight: Vec<E::Acc>,
    pub bias: Vec<E::Acc>,
}

impl<E: Element> Given<E> {
    /// Values of about unit size, from a seed.
    pub fn new(shape: &Shape, residual: bool, seed: u64) -> Self {
        let mut random = Random(seed);
        let mut normals =
            |n: usize| -> Vec<f64> { (0..n).map(|_| random.normal() + 0.25).collect() };
        let (n, c) = (shape.len(), shape.channels());
        Self {
            x: normals(n).into_iter().map(run::narrow).collect(),
            residual: normals(if residual { n } else { 0 }).into_iter().map(run::narrow).collect(),
            weight: normals(c).into_iter().map(run::narrow).collect(),
            bias: normals(c).into_iter().map(run::narrow).collect(),
        }
    }
    fn wide(&self) -> Given<f64> {
        Given {
            x: run::widen(&self.x),
            residual: run::widen(&self.residual),
            weight: run::widen(&self.weight),
            bias: run::widen(&self.bias),
        }
    }
}

pub const NAMES: [&str; 5] = ["gg_grad_y", "gg_x", "gg_residual", "gg_weight", "gg_bias"];

/// By what a forward saved, the results of those names; parameters' are added to what
/// [`run::gradient_before`] says, if it is to.
pub fn double_backward<E: Element, G: Engine>(
    engine: &G,
    inputs: &Inputs<E>,
    given: &Given<E>,
    saved: &SavedOn<G, E>,
    wanted: &[&'static str],
    accumulate: bool,
) -> Result<Outcome> {
    let (shape, on) = (&inputs.shape, engine.memory());
    let (x, grad_y) = (on.upload(&inputs.x)?, on.upload(&inputs.grad_y)?);
    let tensor = |values: &[E]| -> Result<Option<Buf<G, E>>> {
        (!values.is_empty()).then(|| on.upload(values)).transpose()
    };
    let channel = |values: &[E::Acc]| -> Result<Option<Buf<G, E::Acc>>> {
        (!values.is_empty()).then(|| on.upload(values)).transpose()
    };
    let epilogue = inputs.epilogue;
    let takes = epilogue.activation.derivative_from(epilogue.residual);
    let again = takes == Derivative::FromResidual;
    let residual = again.then(|| on.upload(&inputs.residual)).transpose()?;
    let (v_x, v_residual) = (tensor(&given.x)?, tensor(&given.residual)?);
    let (v_weight, v_bias) = (channel(&given.weight)?, channel(&given.bias)?);
    let nan = vec![run::narrow::<E>(f64::NAN); shape.len()];
    let before = |c| run::narrow(if accumulate { run::gradient_before(c) } else { f64::NAN });
    let before: Vec<E::Acc> = (0..shape.channels()).map(before).collect();
    let [mut gg_grad_y, mut gg_x, mut gg_residual] =
        [on.upload(&nan)?, on.upload(&nan)?, on.upload(&nan)?];
    let [mut gg_weight, mut gg_bias] = [on.upload(&before)?, on.upload(&before)?];
    let (x, grad_y) = (G::Memory::view(&x), G::Memory::view(&grad_y));
    let mut args = DoubleBackward::<G::Memory, E>::new(saved, x, grad_y).accumulate(accumulate);
    args.residual = residual.as_ref().map(G::Memory::view);
    args.v_x = v_x.as_ref().map(G::Memory::view);
    args.v_residual = v_residual.as_ref().map(G::Memory::view);
    args.v_weight = v_weight.as_ref().map(G::Memory::view);
    args.v_bias = v_bias.as_ref().map(G::Memory::view);
    let wants = |name: &str| wanted.contains(&name);
    args.gg_grad_y = wants("gg_grad_y").then(|| G::Memory::view_mut(&mut gg_grad_y));
    args.gg_x = wants("gg_x").then(|| G::Memory::view_mut(&mut gg_x));
    args.gg_residual = wants("gg_residual").then(|| G::Memory::view_mut(&mut gg_residual));
    args.gg_weight = wants("gg_weight").then(|| G::Memory::view_mut(&mut gg_weight));
    args.gg_bias = wants("gg_bias").then(|| G::Memory::view_mut(&mut gg_bias));
    agree(engine, shape, args.request()?, |engine| engine.double_backward(shape, args))?;
    let mut outcome = Outcome::new();
    for (name, tensor) in NAMES.into_iter().zip([&gg_grad_y, &gg_x, &gg_residual]) {
        outcome.insert(name, run::widen(&on.download(G::Memory::view(tensor))?));
    }
    for (name, sums) in NAMES.into_iter().skip(3).zip([&gg_weight, &gg_bias]) {
        outcome.insert(name, run::widen(&on.download(G::Memory::view(sums))?));
    }
    outcome.retain(|name, _| wants(name));
    Ok(outcome)
}

/// All that an epilogue has.
pub fn all_of(residual: bool) -> Vec<&'static str> {
    NAMES.into_iter().filter(|name| residual || *name != "gg_residual").collect()
}

/// Forward and double backward.
pub fn step<E: Element, G: Engine>(
    engine: &G,
    inputs: &Inputs<E>,
    given: &Given<E>,
    mode: Mode,
    wanted: &[&'static str],
    accumulate: bool,
) -> Result<Outcome> {
    let mut saved = SavedOn::<G, E>::new();
    run::forward(engine, inputs, mode, Some(&mut saved))?;
    double_backward(engine, inputs, given, &saved, wanted, accumulate)
}

/// Per channel, how large what adds up in an element is: what cancels leaves a rounding of it.
fn parts(inputs: &Inputs<f64>, given: &Given<f64>, saved: &SavedOn<Reference, f64>) -> Vec<f64> {
    let (shape, invstd) = (&inputs.shape, saved.invstd().unwrap());
    let largest = |values: &[f64], c: usize| {
        let of = values.iter().enumerate().filter(|(i, _)| run::channel_of(shape, *i) == c);
        of.fold(0.0, |most: f64, (_, v)| most.max(v.abs()))
    };
    (0..shape.channels())
        .map(|c| {
            let weight = if inputs.epilogue.weight { inputs.weight[c].abs() } else { 1.0 };
            let (g, v) = (largest(&inputs.grad_y, c), largest(&given.x, c));
            let by = given.weight.get(c).map_or(0.0, |v| v.abs());
            let xhat = 1.0 + (shape.per_channel() as f64).sqrt().min(4.0);
            let curved = weight * g * (weight * invstd[c] * v + by * xhat + 4.0);
            invstd[c] * ((weight * invstd[c] * v * g + by * g) * xhat + curved)
        })
        .collect()
}

/// Against the reference, which computes in f64 and decides at kinks as the type does.
#[track_caller]
pub fn near_the_reference<E: Element, G: Engine>(
    engine: &G,
    inputs: &Inputs<E>,
    given: &Given<E>,
    mode: Mode,
    accumulate: bool,
) {
    let wanted = all_of(inputs.epilogue.residual);
    let got = step(engine, inputs, given, mode, &wanted, accumulate).unwrap();
    let (wide, wide_given) = (inputs.wide(), given.wide());
    let mut saved = SavedOn::<Reference, f64>::new();
    run::forward(&Reference, &wide, mode, Some(&mut saved)).unwrap();
    let right = step(&Reference, inputs, given, mode, &wanted, accumulate).unwrap();
    let parts = parts(&wide, &wide_given, &saved);
    let (shape, dtype) = (&inputs.shape, E::DTYPE);
    for (name, right) in &right {
        let got = &got[name];
        assert_eq!(got.len(), right.len(), "{name}");
        let is_sum = ["gg_weight", "gg_bias"].contains(name);
        let kind = if is_sum { Kind::Sum(shape.per_channel()) } else { Kind::Element };
        let max_abs = right.iter().fold(0.0, |max: f64, v| max.max(v.abs()));
        for (i, (got, right)) in got.iter().zip(right).enumerate() {
            let c = if is_sum { i } else { run::channel_of(shape, i) };
            // Of an f16 tensor, too, what cancels is f32.
            let acc = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
            let bar = tolerance(dtype, kind, max_abs, 0.0) + tolerance(acc, kind, parts[c], 0.0);
            assert!(
                agrees(*got, *right, bar, dtype),
                "{}, {dtype}, {shape}, {mode:?}, {:?}: {name}[{i}] is {got:e}, not {right:e} ({bar:e})",
                engine.name(),
                inputs.epilogue
            );
        }
    }
}
