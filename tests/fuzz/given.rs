//! What calls are given, and how two of them compare.
use super::bytes::Bytes;
use crate::support::run::{Random, narrow, widen};
use crate::support::tolerance::{Kind, agrees, tolerance};
use batchnorm::{
    Activation, Element, Engine, ForwardEval, ForwardTrain, Host, Input, Real, Saved, Shape,
    Statistics,
};
use std::collections::BTreeMap;

/// The arguments that are there, by name, and what they hold.
pub type Buffers<T> = BTreeMap<&'static str, Vec<T>>;
/// Those of x's type, of its parameters' and of f64.
pub type Held<E> = (Buffers<E>, Buffers<<E as Element>::Acc>, Buffers<f64>);

/// Small ones, empty and single values among them.
pub fn shape(input: &mut Bytes) -> Shape {
    let mut size = |least: usize| least.max(input.below(5));
    let dims = [size(0), size(1), size(0), size(1)];
    Shape::new(&dims, if input.one_in(2) { 3 } else { 1 }).expect("a small tensor")
}

/// What [`earlier`] normalizes.
pub fn earlier_x<E: Element>(len: usize) -> impl Iterator<Item = E> {
    let mut random = Random(7);
    (0..len).map(move |_| narrow(random.normal()))
}

/// A forward by the same values on every engine.
pub fn earlier<E: Element, G: Engine<Memory = Host>>(
    engine: &G,
    shape: &Shape,
    relu: bool,
    residual: bool,
    frozen: bool,
    saved: &mut Saved<Host, E::Acc>,
) {
    let x: Vec<E> = earlier_x(shape.len()).collect();
    let ones = vec![E::Acc::from_f64(1.0); shape.channels()];
    let mut y = x.clone();
    let activation = if relu { Activation::Relu } else { Activation::Identity };
    let residual = residual.then_some(&x[..]);
    let (weight, bias, saved, eps) = (Some(&ones[..]), None, Some(saved), 0.1);
    let result = if frozen || shape.per_channel() == 1 {
        let statistics = Statistics::Given { mean: &ones[..], var: &ones[..] };
        let (x, y) = (Input::View(&x[..]), &mut y[..]);
        let args = ForwardEval { x, residual, weight, bias, activation, statistics, eps, y, saved };
        engine.forward_eval::<E>(shape, args)
    } else {
        let (x, y, running) = (&x[..], &mut y[..], None);
        let args = ForwardTrain { x, residual, weight, bias, activation, eps, running, y, saved };
        engine.forward_train::<E>(shape, args)
    };
    result.expect("a right call");
}

/// In every bit, NaN too.
pub fn same<E: Element>(a: &Held<E>, b: &Held<E>) -> bool {
    fn bits<T: Element>(buffers: &Buffers<T>) -> Vec<u64> {
        buffers.values().flat_map(|values| widen(values)).map(f64::to_bits).collect()
    }
    bits(&a.0) == bits(&b.0) && bits(&a.1) == bits(&b.1) && bits(&a.2) == bits(&b.2)
}

/// All that either call holds after it, inputs too.
pub fn near<E: Element>(what: &str, shape: &Shape, eps: f64, got: &Held<E>, right: &Held<E>) {
    // What an engine's rounding grows by on its way into a gradient.
    let scale = 1.0 / eps.clamp(1e-5, 1.0).sqrt();
    let close = |name: &str, dtype, kind, got: &[f64], right: &[f64]| {
        let most = right.iter().filter(|v| v.is_finite()).fold(scale, |most, v| most.max(v.abs()));
        let bar = 4.0 * tolerance(dtype, kind, most, 0.0);
        assert_eq!(got.len(), right.len());
        for (i, (got, right)) in got.iter().zip(right).enumerate() {
            let fine = agrees(*got, *right, bar, dtype);
            assert!(fine, "{what}: {name}[{i}] is {got:e}, reference {right:e} within {bar:e}");
        }
    };
    for (name, values) in &right.0 {
        close(name, E::DTYPE, Kind::Element, &widen(&got.0[name]), &widen(values));
    }
    let sum = Kind::Sum(shape.per_channel().max(1));
    for (name, values) in &right.1 {
        close(name, E::Acc::DTYPE, sum, &widen(&got.1[name]), &widen(values));
    }
    for (name, values) in &right.2 {
        close(name, E::Acc::DTYPE, sum, &got.2[name], values);
    }
}
