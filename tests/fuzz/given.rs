//! What calls are given, and how two of them compare.
use super::bytes::Bytes;
use crate::support::run::{Random, narrow};
use crate::support::tolerance::{Kind, agrees, tolerance};
use batchnorm::{Activation, Element, Engine, ForwardEval, ForwardTrain, Host, Real, Saved, Shape};

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
    let result = if frozen || shape.per_channel() == 1 {
        let args = ForwardEval::<Host, E>::new(&x, &mut y, &ones, &ones);
        let mut args = args.weight(&ones).activation(activation).eps(0.1).saved(saved);
        args.residual = residual;
        engine.forward_eval(shape, args)
    } else {
        let args = ForwardTrain::<Host, E>::new(&x, &mut y);
        let mut args = args.weight(&ones).activation(activation).eps(0.1).saved(saved);
        args.residual = residual;
        engine.forward_train(shape, args)
    };
    result.expect("a right call");
}

/// What a call has computed, or taken, under a name, and how exact it is.
pub type Values = Vec<(&'static str, Kind, Vec<f64>)>;

/// All that either call holds after it, inputs too.
pub fn near<E: Element>(what: &str, eps: f64, got: &Values, right: &Values) {
    // What an engine's rounding grows by on its way into a gradient.
    let scale = 1.0 / eps.clamp(1e-5, 1.0).sqrt();
    assert_eq!(got.len(), right.len(), "{what}");
    for ((name, kind, got), (also, _, right)) in got.iter().zip(right) {
        assert_eq!((name, got.len()), (also, right.len()), "{what}");
        let dtype = if *kind == Kind::Element { E::DTYPE } else { E::Acc::DTYPE };
        let most = right.iter().filter(|v| v.is_finite()).fold(scale, |most, v| most.max(v.abs()));
        let bar = 4.0 * tolerance(dtype, *kind, most, 0.0);
        for (i, (got, right)) in got.iter().zip(right).enumerate() {
            let fine = agrees(*got, *right, bar, dtype);
            assert!(fine, "{what}: {name}[{i}] is {got:e}, reference {right:e} within {bar:e}");
        }
    }
}
