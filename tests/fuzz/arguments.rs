//! Calls with arguments of any length, left out, of another forward, or without meaning: a typed error and nothing
//! written, or what the reference has.
use super::bytes::Bytes;
use super::given::{Values, earlier, earlier_x, near, shape};
use crate::support::call::{Held, Whole};
use crate::support::faults::{Blank, Fault, NONE};
use crate::support::run::{Random, widen};
use crate::support::tolerance::Kind;
use batchnorm::{
    Activation, Algorithm, Argument, Arguments, Constraint, Cpu, Element, Engine, Error, Host,
    Real, Reference, Regularizer, Result, Role, Saved, Shape,
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
    let cpu = Call::<E>::new(Bytes(input.0)).on(&Cpu::default(), &Reference);
    let reference = Call::<E>::new(Bytes(input.0)).on(&Reference, &Cpu::default());
    match (cpu.result, reference.result) {
        (Ok(()), Ok(())) => {
            let call = &reference.call;
            let what = format!("{:?}, {}, {}", call.op, E::DTYPE, call.shape);
            near::<E>(&what, call.eps, &cpu.call.values(), &call.values());
        }
        (Err(a), Err(b)) => {
            assert_eq!(std::mem::discriminant(&a), std::mem::discriminant(&b), "{a}, {b}")
        }
        (a, b) => panic!("cpu: {a:?}, reference: {b:?}"),
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Op {
    Train,
    Eval,
    Backward,
    DoubleBackward,
    Stats,
    Merge,
    OptimizerStep,
    Regularize,
    Constrain,
}

struct Call<'i, E: Element> {
    input: Bytes<'i>,
    op: Op,
    shape: Shape,
    held: Held,
    /// The statistics that a forward has saved.
    saved: Vec<(&'static str, Vec<E::Acc>)>,
    eps: f64,
    factor: f64,
    activation: Activation,
    in_place: bool,
    accumulate: bool,
    random: Random,
    /// Whether some length is not what the shape asks for.
    lengths: bool,
}

/// What has come of a call.
struct Outcome<'i, E: Element> {
    call: Call<'i, E>,
    result: Result<()>,
}

impl<'i, E: Element> Call<'i, E> {
    fn new(mut input: Bytes<'i>) -> Self {
        let parameters = [Op::OptimizerStep, Op::Regularize, Op::Constrain];
        let others = [Op::Train, Op::Eval, Op::Backward, Op::DoubleBackward, Op::Stats, Op::Merge];
        let op = match input.below(1 + others.len()) {
            0 => input.pick(&parameters),
            n => others[n - 1],
        };
        let meaningless = [0.0, -1e-5, f64::NAN, f64::INFINITY, 1e-80];
        let eps =
            if input.one_in(12) { input.pick(&meaningless) } else { input.pick(&[1e-5, 0.1, 2.0]) };
        let factors = [-0.1, 1.1, f64::NAN, f64::INFINITY];
        let factor =
            if input.one_in(12) { input.pick(&factors) } else { input.pick(&[0.1, 0.0, 1.0]) };
        Self {
            op,
            shape: shape(&mut input),
            held: Held::default(),
            saved: Vec::new(),
            eps,
            factor,
            activation: input.pick(&[Activation::Identity, Activation::Relu]),
            in_place: input.one_in(4),
            accumulate: input.one_in(3),
            random: Random(input.byte().into()),
            lengths: true,
            input,
        }
    }

    /// What it is called with beside its arguments in memory.
    fn fault(&self) -> Fault {
        Fault { eps: self.eps, factor: self.factor, in_place: self.in_place, ..NONE }
    }

    /// Values for the arguments of a call: all that it must have, of the others most, of the right
    /// length most times. `change` is for those whose values have a meaning.
    fn hold<'a>(
        &mut self,
        args: &mut impl Arguments<'a, Host>,
        (elements, channels): (usize, usize),
        mut change: impl FnMut(&mut Bytes, Argument, &mut Vec<f64>),
    ) {
        let Self { input, random, lengths, .. } = self;
        self.held = Held::new(args, |argument, always| {
            if !always && input.one_in(4) {
                return None;
            }
            let right = argument.role.len(elements, channels);
            let right = right * if argument.role == Role::Records { 1 + input.below(4) } else { 1 };
            let wrong = [right + 1, right.saturating_sub(1), 0, 2 * right, input.below(40)];
            let len = if input.one_in(40) { input.pick(&wrong) } else { right };
            *lengths &= len == right;
            // So coarse that equal ones meet, as in constant channels.
            let value = |_| 0.25 + (random.uniform() * 8.0).floor() / 4.0;
            let mut values = (0..len).map(value).collect();
            change(input, argument, &mut values);
            Some((Host, values))
        });
    }
    fn sizes(&self) -> (usize, usize) {
        (self.shape.len(), self.shape.channels())
    }
    /// Most times.
    fn some(&mut self) -> bool {
        !self.input.one_in(4)
    }

    fn on<G: Engine<Memory = Host>, O: Engine<Memory = Host>>(
        self,
        engine: &G,
        other: &O,
    ) -> Outcome<'i, E> {
        match self.op {
            Op::Train | Op::Eval => self.forward(engine),
            Op::Backward | Op::DoubleBackward => self.backward(engine, other),
            Op::Stats => self.stats(engine),
            Op::Merge => self.merge(engine),
            Op::OptimizerStep => self.optimizer_step(engine),
            Op::Regularize => self.regularize(engine),
            Op::Constrain => self.constrain(engine),
        }
    }

    /// That the verdict is right, and that an error has left everything as it was.
    fn judged(self, result: Result<()>, lawful: bool, is_kept: bool) -> Outcome<'i, E> {
        let what = (self.op, E::DTYPE, self.shape, self.eps, self.factor, self.lengths);
        assert_eq!(result.is_ok(), lawful, "{what:?}: {result:?}");
        if let Err(error) = &result {
            let typed =
                matches!(error, Error::Length { .. } | Error::Invalid { .. } | Error::Saved { .. });
            assert!(typed && !error.to_string().is_empty(), "{error:?}");
            let untouched = is_kept && self.held.is_untouched();
            assert!(untouched, "{what:?}: {error}, and something was written");
        }
        Outcome { call: self, result }
    }
    fn values(&self) -> Values {
        let sum = Kind::Sum(self.shape.per_channel().max(1));
        let kind = |role| if role == Role::Tensor { Kind::Element } else { sum };
        let held = self.held.values().into_iter().map(|(a, values)| (a.name, kind(a.role), values));
        held.chain(self.saved.iter().map(|(name, values)| (*name, sum, widen(values)))).collect()
    }

    fn forward<G: Engine<Memory = Host>>(mut self, engine: &G) -> Outcome<'i, E> {
        let (train, c) = (self.op == Op::Train, self.shape.channels());
        let (running, by_record) = (self.some(), self.input.one_in(4));
        let (mut saved, wanted) = (Saved::<Host, E::Acc>::new(), self.some());
        if self.input.one_in(2) {
            let (shape, relu, residual) = (shape(&mut self.input), self.some(), self.some());
            earlier::<E, G>(engine, &shape, relu, residual, false, &mut saved);
        }
        let look = |saved: &Saved<Host, E::Acc>| {
            (saved.shape(), saved.mean().map(<[_]>::to_vec), saved.invstd().map(<[_]>::to_vec))
        };
        let before = look(&saved);
        let (mut blank, sizes) = (Blank::<E, G>::new(engine), self.sizes());
        let result = if train {
            let mut args = blank.train(self.fault());
            args.activation = self.activation;
            args.running = args.running.filter(|_| running);
            self.hold(&mut args.reborrow(), sizes, |_, _, _| {});
            args.saved = wanted.then_some(&mut saved);
            self.held.lend(&mut args, Whole);
            engine.forward_train(&self.shape, args)
        } else {
            let mut args = blank.eval(Fault { by_record, ..self.fault() });
            args.activation = self.activation;
            self.hold(&mut args.reborrow(), sizes, |_, argument, values| {
                if argument.role == Role::Record {
                    // What rounding leaves of a mean is next to nothing.
                    values.iter_mut().skip(c).take(c).for_each(|rest| *rest = 0.0);
                }
            });
            args.saved = wanted.then_some(&mut saved);
            self.held.lend(&mut args, Whole);
            engine.forward_eval(&self.shape, args)
        };
        let inverse = E::Acc::from_f64(1.0 / self.eps.sqrt()).to_f64();
        let eps = self.eps > 0.0 && self.eps.is_finite() && inverse.is_finite();
        let lawful = self.lengths
            && eps
            && match train {
                true => {
                    self.shape.per_channel() != 1
                        && (!running || (0.0..=1.0).contains(&self.factor))
                }
                // In place there is no x for a backward.
                false => !(self.in_place && wanted),
            };
        if result.is_ok() && wanted {
            assert_eq!((saved.shape(), saved.is_frozen()), (Some(self.shape), Some(!train)));
            let [mean, invstd] =
                [saved.mean(), saved.invstd()].map(|view| view.expect("saved").to_vec());
            self.saved = vec![("saved mean", mean), ("saved invstd", invstd)];
        }
        let is_kept = look(&saved) == before;
        self.judged(result, lawful, is_kept)
    }

    fn backward<G: Engine<Memory = Host>, O: Engine<Memory = Host>>(
        mut self,
        engine: &G,
        other: &O,
    ) -> Outcome<'i, E> {
        let mut saved = Saved::<Host, E::Acc>::new();
        // Of this shape, dtype and engine, most times.
        let shape = if self.input.one_in(12) { shape(&mut self.input) } else { self.shape };
        let frozen = self.input.one_in(3) || shape.per_channel() == 1;
        let (relu, residual) = (self.activation == Activation::Relu, self.some());
        let kind = self.input.below(24);
        let mut dtype = true;
        match kind {
            0 => {}
            1 => earlier::<E, O>(other, &shape, relu, residual, frozen, &mut saved),
            2 => {
                dtype = E::DTYPE == E::Acc::DTYPE;
                earlier::<E::Acc, G>(engine, &shape, relu, residual, frozen, &mut saved);
            }
            _ => earlier::<E, G>(engine, &shape, relu, residual, frozen, &mut saved),
        }
        let (mut blank, sizes) = (Blank::<E, G>::new(engine), self.sizes());
        // That of the forward, as far as there are so many: nothing can tell.
        let of_forward = |_: &mut Bytes, argument: Argument, values: &mut Vec<f64>| {
            if ["x", "residual"].contains(&argument.name) {
                let of_forward = widen(&earlier_x::<E>(sizes.0).collect::<Vec<_>>());
                values.iter_mut().zip(of_forward).for_each(|(value, right)| *value = right);
            }
        };
        let (result, given) = if self.op == Op::DoubleBackward {
            let mut args = blank.double_backward(&saved);
            args.accumulate = self.accumulate;
            self.hold(&mut args.reborrow(), sizes, of_forward);
            self.held.lend(&mut args, Whole);
            let result = engine.double_backward(&self.shape, args);
            let of_residual = self.held.has("v_residual") || self.held.has("gg_residual");
            (result, residual || !of_residual)
        } else {
            let mut args = blank.backward(self.fault(), &saved);
            args.accumulate = self.accumulate;
            self.hold(&mut args.reborrow(), sizes, of_forward);
            self.held.lend(&mut args, Whole);
            let result = engine.backward(&self.shape, args);
            let given = !self.in_place || self.held.has("grad_x");
            let of_residual = residual || !self.held.has("grad_residual");
            (result, given && of_residual)
        };
        let lawful = self.lengths && kind > 1 && dtype && shape == self.shape && given;
        self.judged(result, lawful, true)
    }

    fn stats<G: Engine<Memory = Host>>(mut self, engine: &G) -> Outcome<'i, E> {
        let (mut blank, sizes) = (Blank::<E, G>::new(engine), self.sizes());
        let mask = self.input.one_in(3);
        let mut args = blank.stats(Fault { mask, ..NONE });
        self.hold(&mut args.reborrow(), sizes, |_, _, _| {});
        self.held.lend(&mut args, Whole);
        let result = engine.stats(&self.shape, args);
        let lawful = self.lengths;
        self.judged(result, lawful, true)
    }

    fn merge<G: Engine<Memory = Host>>(mut self, engine: &G) -> Outcome<'i, E> {
        let (channels, running) = (self.input.below(4), self.some());
        let mut counts = Vec::new();
        let mut blank = Blank::<E, G>::new(engine);
        let mut args = blank.merge(self.fault());
        args.known = self.input.below(3);
        args.running = args.running.filter(|_| running);
        self.hold(&mut args.reborrow(), (0, channels), |input, argument, values| {
            if argument.role != Role::Records {
                return;
            }
            for count in values.iter_mut().skip(3 * channels).step_by(3 * channels + 1) {
                let odd = [1.0, 0.5, -1.0, f64::NAN, f64::INFINITY, 1e300];
                *count = match input.one_in(12) {
                    true => input.pick(&odd),
                    false => input.pick(&[0.0, 2.0, 5.0]),
                };
                counts.push(*count);
            }
        });
        self.held.lend(&mut args, Whole);
        let result = engine.merge_stats(args);
        let total: f64 = counts.iter().sum();
        let counted =
            counts.iter().all(|n| *n >= 0.0 && n.is_finite() && n.fract() == 0.0) && total != 1.0;
        let lawful = channels > 0 && counted && (!running || (0.0..=1.0).contains(&self.factor));
        // Other lengths may be those of fewer or more channels or parts.
        let lawful = if self.lengths { lawful } else { result.is_ok() };
        self.judged(result, lawful, true)
    }

    /// A number with a meaning, most times, and whether it has one: 0 or more, below `end`.
    fn factor_below(&mut self, end: f64) -> (f64, bool) {
        let bad = [-0.5, f64::NAN, f64::INFINITY, end];
        let good = [0.0, 0.25, 0.5];
        let value =
            if self.input.one_in(12) { self.input.pick(&bad) } else { self.input.pick(&good) };
        (value, value >= 0.0 && value < end)
    }

    fn optimizer_step<G: Engine<Memory = Host>>(mut self, engine: &G) -> Outcome<'i, E> {
        let most = f64::INFINITY;
        let [(beta1, one), (beta2, two)] = [1.0; 2].map(|end| self.factor_below(end));
        let (momentum, three) = self.factor_below(most);
        let [(eps, four), (lr_factor, five), (decay, six)] =
            [most; 3].map(|end| self.factor_below(end));
        let nesterov = self.input.one_in(3);
        let (eps, amsgrad) = (eps + 0.125, self.input.one_in(3));
        let moments = one && two && four;
        let (algorithm, meant) = match self.input.below(6) {
            0 => {
                let sgd = Algorithm::Sgd { momentum, dampening: 0.0, nesterov };
                (sgd, three && (!nesterov || momentum > 0.0))
            }
            1 => (Algorithm::Adam { beta1, beta2, eps, amsgrad }, moments),
            2 => (Algorithm::AdamW { beta1, beta2, eps, amsgrad }, moments),
            3 => (Algorithm::KerasAdam { beta1, beta2, eps, amsgrad }, moments),
            4 => (Algorithm::KerasSgd { momentum, nesterov }, three),
            _ => (Algorithm::MatlabSgdm { momentum }, three),
        };
        let steps = self.input.below(1000) as f64;
        let (mut blank, sizes) = (Blank::<E, G>::new(engine), self.sizes());
        let mut args = blank.optimizer_step();
        args.algorithm = algorithm;
        let mut args = args.lr_factor(lr_factor).weight_decay(decay);
        self.hold(&mut args.reborrow(), sizes, |_, argument, values| {
            if argument.name == "steps" {
                values.iter_mut().zip([steps, 0.0]).for_each(|(value, is)| *value = is);
            }
        });
        self.held.lend(&mut args, Whole);
        let result = engine.optimizer_step(args);
        let given = ["first", "second", "third"].iter().zip(algorithm.buffers());
        let given = given.into_iter().all(|(name, _)| self.held.has(name));
        // Another length of the value may be that of all, where the shape's is another one.
        let lawful = meant && five && six && given;
        let lawful = if self.lengths { lawful } else { result.is_ok() };
        self.judged(result, lawful, true)
    }

    fn regularize<G: Engine<Memory = Host>>(mut self, engine: &G) -> Outcome<'i, E> {
        let [(l1, one), (l2, two)] = [f64::INFINITY; 2].map(|end| self.factor_below(end));
        let (to_grad, to_loss) = (self.accumulate, self.some());
        let (mut blank, sizes) = (Blank::<E, G>::new(engine), self.sizes());
        let mut args = blank.regularize().accumulate_grad(to_grad).accumulate_loss(to_loss);
        args.regularizer = Regularizer::new(l1, l2);
        self.hold(&mut args.reborrow(), sizes, |_, _, _| {});
        self.held.lend(&mut args, Whole);
        let result = engine.regularize(args);
        let lawful = if self.lengths { one && two } else { result.is_ok() };
        self.judged(result, lawful, true)
    }

    fn constrain<G: Engine<Memory = Host>>(mut self, engine: &G) -> Outcome<'i, E> {
        let (max, meant) = self.factor_below(f64::INFINITY);
        let (constraint, meant) = match self.input.below(3) {
            0 => (Constraint::NonNegative, true),
            1 => (Constraint::UnitNorm, true),
            _ => (Constraint::MaxNorm(max), meant),
        };
        let (mut blank, sizes) = (Blank::<E, G>::new(engine), self.sizes());
        let mut args = blank.constrain();
        args.constraint = constraint;
        self.hold(&mut args.reborrow(), sizes, |_, _, _| {});
        self.held.lend(&mut args, Whole);
        let result = engine.constrain(args);
        self.judged(result, meant, true)
    }
}
