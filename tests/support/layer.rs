//! Layers on any engine, with tensors on the host.
#![allow(unused_macros, unused_imports)] // not every test runs on every engine

use batchnorm::*;

use super::tolerance::{Kind, agrees, tolerance};

pub type Buf<G, T> = <<G as Engine>::Memory as Memory>::Buf<T>;
pub type View<'a, G, T> = <<G as Engine>::Memory as Memory>::View<'a, T>;
pub type ViewMut<'a, G, T> = <<G as Engine>::Memory as Memory>::ViewMut<'a, T>;
pub type SavedOf<G, P> = Saved<<G as Engine>::Memory, P>;
pub type Forward<G, E> = Result<(Vec<E>, SavedOf<G, <E as Element>::Acc>)>;

pub fn up<G: Engine, T: Plain>(engine: &G, host: &[T]) -> Buf<G, T> {
    engine.memory().upload(host).unwrap()
}
pub fn down<G: Engine, T: Plain>(engine: &G, buf: &Buf<G, T>) -> Vec<T> {
    engine.memory().download(view::<G, T>(buf)).unwrap()
}
pub fn view<G: Engine, T: Plain>(buf: &Buf<G, T>) -> View<'_, G, T> {
    G::Memory::view(buf)
}
pub fn view_mut<G: Engine, T: Plain>(buf: &mut Buf<G, T>) -> ViewMut<'_, G, T> {
    G::Memory::view_mut(buf)
}

/// 4 samples of 3 channels of 2 x 2, 16 values per channel.
pub fn small() -> Shape {
    Shape::new(&[4, 3, 2, 2], 1).unwrap()
}

/// Values without a pattern, other ones for every seed.
pub fn numbers<E: Element>(len: usize, seed: u64) -> Vec<E> {
    let value = |i: u64| {
        let hash = (i + 1 + seed * 7919).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (hash >> 40) as f64 / (1 << 23) as f64 * 2.0 - 1.5
    };
    (0..len as u64).map(|i| E::narrow(Real::from_f64(value(i)))).collect()
}

/// A layer for [`small`] with weights and biases that are no defaults.
pub fn layer<P: Real, G: Engine>(engine: &G, config: Config) -> BatchNorm<P, G> {
    let mut bn = BatchNorm::new(engine, 3, config).unwrap();
    for (name, param) in bn.named_parameters_mut() {
        let values = if name == "weight" { [0.5, -2.0, 1.25] } else { [0.75, 0.25, -0.5] };
        param.value = up(engine, &values.map(P::from_f64));
    }
    bn
}

pub fn forward<E: Element, G: Engine>(
    bn: &mut BatchNorm<E::Acc, G>,
    shape: &Shape,
    x: &[E],
) -> Forward<G, E> {
    let engine = bn.engine().clone();
    let (y, saved) = bn.forward(shape, view::<G, E>(&up(&engine, x)))?;
    Ok((down(&engine, &y), saved))
}
pub fn infer<E: Element, G: Engine>(
    bn: &BatchNorm<E::Acc, G>,
    shape: &Shape,
    x: &[E],
) -> Result<Vec<E>> {
    let y = bn.infer(shape, view::<G, E>(&up(bn.engine(), x)))?;
    Ok(down(bn.engine(), &y))
}
pub fn backward<E: Element, G: Engine>(
    bn: &mut BatchNorm<E::Acc, G>,
    saved: &SavedOf<G, E::Acc>,
    x: &[E],
    grad_y: &[E],
) -> Result<Vec<E>> {
    let engine = bn.engine().clone();
    let (x, grad_y) = (up(&engine, x), up(&engine, grad_y));
    let grad_x = bn.backward(saved, view::<G, E>(&x), view::<G, E>(&grad_y))?;
    Ok(down(&engine, &grad_x))
}

/// All that a layer remembers, on the host.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot<P> {
    pub values: Vec<(&'static str, Vec<P>)>,
    pub grads: Vec<Option<Vec<P>>>,
    pub running: Option<(Vec<P>, Vec<P>, u64)>,
    pub training: bool,
}

pub fn snapshot<P: Real, G: Engine>(bn: &BatchNorm<P, G>) -> Snapshot<P> {
    let on_host = |buf: &Buf<G, P>| down(bn.engine(), buf);
    let named = || bn.named_parameters();
    Snapshot {
        values: named().map(|(name, param)| (name, on_host(&param.value))).collect(),
        grads: named().map(|(_, param)| param.grad().map(on_host)).collect(),
        running: bn.running().map(|r| (on_host(&r.mean), on_host(&r.var), r.num_batches_tracked)),
        training: bn.is_training(),
    }
}

/// The gradient of the parameter of that name.
pub fn grad<P: Real, G: Engine>(bn: &BatchNorm<P, G>, name: &str) -> Option<Vec<P>> {
    let (_, param) = bn.named_parameters().find(|(n, _)| *n == name).unwrap();
    param.grad().map(|buf| down(bn.engine(), buf))
}

/// `weight * (x - mean) / sqrt(var + eps) + bias` in f64, with what the layer has.
pub fn by_running<E: Element, G: Engine>(
    bn: &BatchNorm<E::Acc, G>,
    shape: &Shape,
    x: &[E],
) -> Vec<f64> {
    let state = snapshot(bn);
    let (mean, var, _) = state.running.unwrap();
    let value = |name: &str, c: usize, absent: f64| {
        let found = state.values.iter().find(|(n, _)| *n == name);
        found.map_or(absent, |(_, values)| values[c].to_f64())
    };
    let y = |(i, x): (usize, &E)| {
        let c = i / shape.inner() % shape.channels();
        let invstd = 1.0 / (var[c].to_f64() + bn.config().eps).sqrt();
        let xhat = (x.widen().to_f64() - mean[c].to_f64()) * invstd;
        value("weight", c, 1.0) * xhat + value("bias", c, 0.0)
    };
    x.iter().enumerate().map(y).collect()
}

/// Asserts that all are as near as elements must be, for means of about 1.
#[track_caller]
pub fn assert_near<E: Element>(got: &[E], expected: &[f64], kind: Kind) {
    assert_eq!(got.len(), expected.len());
    let max = expected.iter().fold(0.0, |max: f64, v| max.max(v.abs()));
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        let (got, tolerance) = (got.widen().to_f64(), tolerance(E::DTYPE, kind, max, 1.0));
        let near = agrees(got, *expected, tolerance, E::DTYPE);
        assert!(near, "at {i}: expected {expected}, got {got}, tolerance {tolerance}");
    }
}
pub fn wide<E: Element>(values: &[E]) -> Vec<f64> {
    values.iter().map(|v| v.widen().to_f64()).collect()
}
