//! Layer normalization with arguments of any length, left out, of another forward, or without meaning: a typed error
//! and nothing written, or what the reference has.
use super::bytes::Bytes;
use super::given::{Values, earlier_x, near, shape};
use crate::support::call::{Held, Whole};
use crate::support::faults::{Blank, Fault, NONE, RowsOn};
use crate::support::run::{Random, widen};
use crate::support::tolerance::Kind;
use batchnorm::{
    Arguments, Cpu, Element, Engine, EpsRule, Error, Host, LayerNormForward, Real, Reference,
    Result, Role, Shape,
};
use half::{bf16, f16};

pub fn run(input: &[u8]) {
    let mut input = Bytes(input);
    match input.below(4) {
        0 => both::<f32>(input),
        1 => both::<f64>(input),
        2 => both::<f16>(input),
        _ => both::<bf16>(input),
    }
}

/// On either engine by the same bytes.
fn both<E: Element>(input: Bytes) {
    let (call, cpu, got) = Call::run::<E>(Bytes(input.0), &Cpu::default(), &Reference);
    let (_, reference, right) = Call::run::<E>(Bytes(input.0), &Reference, &Cpu::default());
    match (cpu, reference) {
        (Ok(()), Ok(())) => {
            // A constant row is divided by as little as that.
            let least = call.rule.map_or(0.1, |rule| divisor(rule, call.eps));
            near::<E>(&format!("{}, {call:?}", E::DTYPE), least * least, &got, &right);
        }
        (Err(a), Err(b)) => {
            assert_eq!(std::mem::discriminant(&a), std::mem::discriminant(&b), "{a}, {b}")
        }
        (a, b) => panic!("cpu: {a:?}, reference: {b:?}"),
    }
}

/// What divides a constant row.
fn divisor(rule: EpsRule, eps: f64) -> f64 {
    match rule {
        EpsRule::Variance => eps.sqrt(),
        EpsRule::Std => eps,
        _ => eps.sqrt() + eps,
    }
}

#[derive(Debug)]
struct Call {
    shape: Shape,
    eps: f64,
    /// Of a forward; a backward has that of its own.
    rule: Option<EpsRule>,
    /// Whether all lengths are what the shape asks for.
    lengths: bool,
}

impl Call {
    fn run<E: Element>(
        mut input: Bytes,
        engine: &impl Engine<Memory = Host>,
        other: &impl Engine<Memory = Host>,
    ) -> (Self, Result<()>, Values) {
        let is_backward = input.one_in(2);
        let (rows, features) = (input.below(5), 1 + input.below(9));
        let rows = Shape::new(&[rows, features], 1).expect("a small tensor");
        // Channels that are no last axis, too.
        let shape = if input.one_in(8) { shape(&mut input) } else { rows };
        let meaningless = [0.0, -1e-5, f64::NAN, f64::INFINITY, 1e-80];
        let eps =
            if input.one_in(12) { input.pick(&meaningless) } else { input.pick(&[0.01, 0.1, 2.0]) };
        let rule = input.pick(&[EpsRule::Variance, EpsRule::Std, EpsRule::Both]);
        let mut call = Self { shape, eps, rule: (!is_backward).then_some(rule), lengths: true };
        let (held, result, lawful) = match is_backward {
            false => call.forward::<E, _>(&mut input, engine, rule),
            true => call.backward::<E, _>(&mut input, engine, other),
        };
        assert_eq!(result.is_ok(), lawful, "{}, {call:?}: {result:?}", E::DTYPE);
        if let Err(error) = &result {
            let typed =
                matches!(error, Error::Length { .. } | Error::Invalid { .. } | Error::Saved { .. });
            assert!(typed && !error.to_string().is_empty(), "{error:?}");
            assert!(held.is_untouched(), "{call:?}: {error}, and something was written");
        }
        let sum = Kind::Sum(shape.per_channel().max(1));
        let kind = |role| if role == Role::Tensor { Kind::Element } else { sum };
        let values = held.values().into_iter().map(|(a, values)| (a.name, kind(a.role), values));
        (call, result, values.collect())
    }

    /// Values for the arguments of a call: all that it must have, of the others most, of the right length
    /// most times.
    fn hold<'a, E: Element>(
        &mut self,
        input: &mut Bytes,
        args: &mut impl Arguments<'a, Host>,
    ) -> Held {
        let (elements, channels) = (self.shape.len(), self.shape.channels());
        let (mut random, lengths) = (Random(input.byte().into()), &mut self.lengths);
        Held::new(args, |argument, always| {
            if !always && input.one_in(4) {
                return None;
            }
            let right = argument.role.len(elements, channels);
            let wrong = [right + 1, right.saturating_sub(1), 0, 2 * right, input.below(40)];
            let len = if input.one_in(40) { input.pick(&wrong) } else { right };
            *lengths &= len == right;
            // So coarse that equal ones meet, as in constant rows.
            let value = |_| 0.25 + (random.uniform() * 8.0).floor() / 4.0;
            let mut values: Vec<f64> = (0..len).map(value).collect();
            if argument.name == "x" {
                let of_forward = widen(&earlier_x::<E>(elements).collect::<Vec<_>>());
                values.iter_mut().zip(of_forward).for_each(|(value, right)| *value = right);
            }
            Some((Host, values))
        })
    }

    fn forward<E: Element, G: Engine<Memory = Host>>(
        &mut self,
        input: &mut Bytes,
        engine: &G,
        rule: EpsRule,
    ) -> (Held, Result<()>, bool) {
        let (mut saved, wanted) = (RowsOn::<G, E>::new(), !input.one_in(4));
        let mut blank = Blank::<E, G>::new(engine);
        let mut args = blank.layer_norm(Fault { eps: self.eps, ..NONE }).eps_rule(rule);
        let mut held = self.hold::<E>(input, &mut args);
        args.saved = wanted.then_some(&mut saved);
        held.lend(&mut args, Whole);
        let result = engine.layer_norm(&self.shape, args);
        let inverse = E::Acc::from_f64(1.0 / divisor(rule, self.eps)).to_f64();
        let eps = self.eps > 0.0 && self.eps.is_finite() && inverse.is_finite();
        let lawful = self.lengths && eps && self.shape.inner() == 1;
        assert_eq!(saved.shape(), (result.is_ok() && wanted).then_some(self.shape));
        (held, result, lawful)
    }

    fn backward<E: Element, G: Engine<Memory = Host>>(
        &mut self,
        input: &mut Bytes,
        engine: &G,
        other: &impl Engine<Memory = Host>,
    ) -> (Held, Result<()>, bool) {
        // Of this shape, dtype and engine, most times.
        let shape = match input.one_in(12) {
            true => {
                Shape::new(&[1 + input.below(4), 1 + input.below(4)], 1).expect("a small tensor")
            }
            false => self.shape,
        };
        let mut saved = RowsOn::<G, E>::new();
        let kind = if shape.inner() == 1 { input.below(24) } else { 0 };
        let mut dtype = true;
        match kind {
            0 => {}
            1 => earlier::<E>(other, &shape, &mut saved),
            2 => {
                dtype = E::DTYPE == E::Acc::DTYPE;
                earlier::<E::Acc>(engine, &shape, &mut saved);
            }
            _ => earlier::<E>(engine, &shape, &mut saved),
        }
        let mut blank = Blank::<E, G>::new(engine);
        let mut args = blank.layer_norm_backward(&saved);
        args.accumulate = input.one_in(3);
        let mut held = self.hold::<E>(input, &mut args);
        held.lend(&mut args, Whole);
        let result = engine.layer_norm_backward(&self.shape, args);
        let lawful = self.lengths && kind > 1 && dtype && shape == self.shape;
        (held, result, lawful)
    }
}

/// A forward by the same values on every engine.
fn earlier<E: Element>(
    engine: &impl Engine<Memory = Host>,
    shape: &Shape,
    saved: &mut batchnorm::LayerNormSaved<Host, E::Acc>,
) {
    let x: Vec<E> = earlier_x(shape.len()).collect();
    let weight: Vec<E::Acc> =
        (0..shape.channels()).map(|c| E::Acc::from_f64(1.0 + c as f64)).collect();
    let mut y = x.clone();
    let args = LayerNormForward::<Host, E>::new(&x, &mut y).weight(&weight).eps(0.1).saved(saved);
    engine.layer_norm(shape, args).expect("a right call");
}
