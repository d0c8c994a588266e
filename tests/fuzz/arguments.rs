//! Calls with arguments of any length, left out, of another forward, or without meaning: a typed error and nothing
//! written, or what the reference has.
use super::bytes::Bytes;
use super::given::{Buffers, Held, earlier, earlier_x, near, same, shape};
use crate::support::run::{Random, narrow};
use batchnorm::{
    Activation, Backward, Cpu, Element, Engine, Error, ForwardEval, ForwardTrain, Host, Input,
    MergeStats, Real, Reference, Result, Running, Saved, Shape, Statistics, Stats,
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
            near(&what, &call.shape, call.eps, &cpu.call.copies(), &call.copies());
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
    Stats,
    Merge,
}

struct Call<'i, E: Element> {
    input: Bytes<'i>,
    op: Op,
    shape: Shape,
    tensors: Buffers<E>,
    parameters: Buffers<E::Acc>,
    records: Buffers<f64>,
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
        let op = input.pick(&[Op::Train, Op::Eval, Op::Backward, Op::Stats, Op::Merge]);
        let meaningless = [0.0, -1e-5, f64::NAN, f64::INFINITY, 1e-80];
        let eps =
            if input.one_in(12) { input.pick(&meaningless) } else { input.pick(&[1e-5, 0.1, 2.0]) };
        let factors = [-0.1, 1.1, f64::NAN, f64::INFINITY];
        let factor =
            if input.one_in(12) { input.pick(&factors) } else { input.pick(&[0.1, 0.0, 1.0]) };
        Self {
            op,
            shape: shape(&mut input),
            tensors: Buffers::new(),
            parameters: Buffers::new(),
            records: Buffers::new(),
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

    /// Values for an argument, of the right length most times.
    fn values<T: Element>(&mut self, right: usize) -> Vec<T> {
        let wrong = [right + 1, right.saturating_sub(1), 0, 2 * right, self.input.below(40)];
        let len = if self.input.one_in(40) { self.input.pick(&wrong) } else { right };
        self.lengths &= len == right;
        // So coarse that equal ones meet, as in constant channels.
        (0..len).map(|_| narrow(0.25 + (self.random.uniform() * 8.0).floor() / 4.0)).collect()
    }
    fn tensors(&mut self, names: &[&'static str]) {
        for name in names {
            let values = self.values(self.shape.len());
            self.tensors.insert(name, values);
        }
    }
    fn parameters(&mut self, names: &[&'static str], right: usize) {
        for name in names {
            let values = self.values(right);
            self.parameters.insert(name, values);
        }
    }
    fn record(&mut self, name: &'static str, right: usize) {
        let values = self.values(right);
        self.records.insert(name, values);
    }
    /// One time in so many.
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
            Op::Backward => self.backward(engine, other),
            Op::Stats => self.stats(engine),
            Op::Merge => self.merge(engine),
        }
    }

    /// That the verdict is right, and that an error has left everything as it was.
    fn judged(
        self,
        result: Result<()>,
        lawful: bool,
        before: impl Fn(&Self) -> bool,
    ) -> Outcome<'i, E> {
        let what = (self.op, E::DTYPE, self.shape, self.eps, self.factor, self.lengths);
        assert_eq!(result.is_ok(), lawful, "{what:?}: {result:?}");
        if let Err(error) = &result {
            let typed =
                matches!(error, Error::Length { .. } | Error::Invalid { .. } | Error::Saved { .. });
            assert!(typed && !error.to_string().is_empty(), "{error:?}");
            assert!(before(&self), "{what:?}: {error}, and something was written");
        }
        Outcome { call: self, result }
    }
    fn copies(&self) -> Held<E> {
        (self.tensors.clone(), self.parameters.clone(), self.records.clone())
    }

    fn forward<G: Engine<Memory = Host>>(mut self, engine: &G) -> Outcome<'i, E> {
        let (train, c) = (self.op == Op::Train, self.shape.channels());
        self.tensors(&["x", "y"]);
        if self.some() {
            self.tensors(&["residual"]);
        }
        for name in ["weight", "bias"] {
            if self.some() {
                self.parameters(&[name], c);
            }
        }
        let (running, by_record) = (!train || self.some(), !train && self.input.one_in(4));
        if by_record {
            self.record("record", 3 * c + 1);
            // What rounding leaves of a mean is next to nothing.
            let record = self.records.get_mut("record").expect("record");
            record.iter_mut().skip(c).take(c).for_each(|rest| *rest = 0.0);
        } else if running {
            self.parameters(&["mean", "var"], c);
        }
        let (mut saved, wanted) = (Saved::<Host, E::Acc>::new(), self.some());
        if self.input.one_in(2) {
            let (shape, relu, residual) = (shape(&mut self.input), self.some(), self.some());
            earlier::<E, G>(engine, &shape, relu, residual, false, &mut saved);
        }
        let held = |saved: &Saved<Host, E::Acc>| {
            (saved.shape(), saved.mean().map(<[_]>::to_vec), saved.invstd().map(<[_]>::to_vec))
        };
        let (before, held_before) = (self.copies(), held(&saved));
        let mut y = self.tensors.remove("y").expect("y");
        let [mut mean, mut var] = ["mean", "var"].map(|name| self.parameters.remove(name));
        let result = {
            let tensor = |name| self.tensors.get(name).map(Vec::as_slice);
            let parameter = |name| self.parameters.get(name).map(Vec::as_slice);
            let (x, residual) = (tensor("x").expect("x"), tensor("residual"));
            let (weight, bias, saved) =
                (parameter("weight"), parameter("bias"), wanted.then_some(&mut saved));
            let (activation, eps, factor) = (self.activation, self.eps, self.factor);
            if train {
                let running = mean.as_deref_mut().zip(var.as_deref_mut());
                let running = running.map(|(mean, var)| Running { mean, var, factor });
                let y = &mut y;
                engine.forward_train::<E>(
                    &self.shape,
                    ForwardTrain { x, residual, weight, bias, activation, eps, running, y, saved },
                )
            } else {
                let statistics = match self.records.get("record") {
                    Some(record) => Statistics::Record(&record[..]),
                    None => Statistics::Given {
                        mean: mean.as_deref().expect("mean"),
                        var: var.as_deref().expect("var"),
                    },
                };
                let x = if self.in_place { Input::InPlace } else { Input::View(x) };
                let y = &mut y;
                engine.forward_eval::<E>(
                    &self.shape,
                    ForwardEval {
                        x,
                        residual,
                        weight,
                        bias,
                        activation,
                        statistics,
                        eps,
                        y,
                        saved,
                    },
                )
            }
        };
        self.tensors.insert("y", y);
        for (name, buffer) in [("mean", mean), ("var", var)] {
            buffer.into_iter().for_each(|values| drop(self.parameters.insert(name, values)));
        }
        let inverse = E::Acc::from_f64(1.0 / self.eps.sqrt()).to_f64();
        let eps = self.eps > 0.0 && self.eps.is_finite() && inverse.is_finite();
        let lawful = self.lengths
            && eps
            && match train {
                true => {
                    self.shape.per_channel() != 1
                        && (!running || (0.0..=1.0).contains(&self.factor))
                }
                // In place there is no x for a backward. A wrong length of an x that is not looked at is none.
                false => !(self.in_place && wanted),
            };
        let unread = !train && self.in_place && before.0["x"].len() != self.shape.len();
        let lawful = if unread { result.is_ok() } else { lawful };
        if result.is_ok() && wanted {
            assert_eq!((saved.shape(), saved.is_frozen()), (Some(self.shape), Some(!train)));
            let [mean, invstd] =
                [saved.mean(), saved.invstd()].map(|view| view.expect("saved").to_vec());
            self.parameters.extend([("saved mean", mean), ("saved invstd", invstd)]);
        }
        self.judged(result, lawful, |call| {
            same::<E>(&call.copies(), &before) && held(&saved) == held_before
        })
    }

    fn backward<G: Engine<Memory = Host>, O: Engine<Memory = Host>>(
        mut self,
        engine: &G,
        other: &O,
    ) -> Outcome<'i, E> {
        let (c, mut saved) = (self.shape.channels(), Saved::<Host, E::Acc>::new());
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
        self.tensors(&["x", "grad_y"]);
        // That of the forward, as far as there are so many: nothing can tell.
        let x = self.tensors.get_mut("x").expect("x");
        x.iter_mut().zip(earlier_x(self.shape.len())).for_each(|(x, of_forward)| *x = of_forward);
        for name in ["grad_x", "grad_residual"] {
            if self.some() {
                self.tensors(&[name]);
            }
        }
        for name in ["grad_weight", "grad_bias"] {
            if self.some() {
                self.parameters(&[name], c);
            }
        }
        for name in ["sums", "total_sums"] {
            if self.input.one_in(2) {
                self.parameters(&[name], 2 * c + 1);
            }
        }
        let before = self.copies();
        let [mut grad_x, mut grad_residual] =
            ["grad_x", "grad_residual"].map(|name| self.tensors.remove(name));
        let outputs = ["grad_weight", "grad_bias", "sums"];
        let mut taken = outputs.map(|name| self.parameters.remove(name));
        let result = {
            let [grad_weight, grad_bias, sums] = &mut taken;
            let args = Backward::<Host, E> {
                saved: &saved,
                x: &self.tensors["x"],
                residual: None,
                grad_y: if self.in_place {
                    Input::InPlace
                } else {
                    Input::View(&self.tensors["grad_y"])
                },
                grad_x: grad_x.as_deref_mut(),
                grad_residual: grad_residual.as_deref_mut(),
                grad_weight: grad_weight.as_deref_mut(),
                grad_bias: grad_bias.as_deref_mut(),
                accumulate: self.accumulate,
                sums: sums.as_deref_mut(),
                total_sums: self.parameters.get("total_sums").map(Vec::as_slice),
            };
            engine.backward(&self.shape, args)
        };
        for (name, buffer) in [("grad_x", grad_x), ("grad_residual", grad_residual)] {
            buffer.into_iter().for_each(|values| drop(self.tensors.insert(name, values)));
        }
        for (name, buffer) in outputs.into_iter().zip(taken) {
            buffer.into_iter().for_each(|values| drop(self.parameters.insert(name, values)));
        }
        let unread = self.in_place && before.0["grad_y"].len() != self.shape.len();
        let lawful = self.lengths
            && kind > 1
            && dtype
            && shape == self.shape
            && (!self.in_place || before.0.contains_key("grad_x"))
            && (residual || !before.0.contains_key("grad_residual"));
        let lawful = if unread { result.is_ok() } else { lawful };
        self.judged(result, lawful, |call| same::<E>(&call.copies(), &before))
    }

    fn stats<G: Engine<Memory = Host>>(mut self, engine: &G) -> Outcome<'i, E> {
        self.tensors(&["x"]);
        self.record("record", 3 * self.shape.channels() + 1);
        let before = self.copies();
        let record = self.records.get_mut("record").expect("record");
        let result = engine.stats::<E>(&self.shape, Stats { x: &self.tensors["x"], record });
        let lawful = self.lengths;
        self.judged(result, lawful, |call| same::<E>(&call.copies(), &before))
    }

    fn merge<G: Engine<Memory = Host>>(mut self, engine: &G) -> Outcome<'i, E> {
        let (channels, parts) = (self.input.below(4), 1 + self.input.below(4));
        self.record("record", 3 * channels + 1);
        self.record("records", parts * (3 * channels + 1));
        let mut counts = Vec::new();
        for count in self
            .records
            .get_mut("records")
            .expect("records")
            .iter_mut()
            .skip(3 * channels)
            .step_by(3 * channels + 1)
        {
            let odd = [1.0, 0.5, -1.0, f64::NAN, f64::INFINITY, 1e300];
            *count = if self.input.one_in(12) {
                self.input.pick(&odd)
            } else {
                self.input.pick(&[0.0, 2.0, 5.0])
            };
            counts.push(*count);
        }
        let running = self.some();
        if running {
            self.parameters(&["mean", "var"], channels);
        }
        let before = self.copies();
        let [mut mean, mut var] = ["mean", "var"].map(|name| self.parameters.remove(name));
        let mut record = self.records.remove("record").expect("record");
        let both = mean.as_deref_mut().zip(var.as_deref_mut());
        let args = MergeStats::<Host, E::Acc> {
            records: &self.records["records"],
            known: self.input.below(3),
            running: both.map(|(mean, var)| Running { mean, var, factor: self.factor }),
            record: &mut record,
        };
        let result = engine.merge_stats(args);
        self.records.insert("record", record);
        for (name, buffer) in [("mean", mean), ("var", var)] {
            buffer.into_iter().for_each(|values| drop(self.parameters.insert(name, values)));
        }
        let total: f64 = counts.iter().sum();
        let counted =
            counts.iter().all(|n| *n >= 0.0 && n.is_finite() && n.fract() == 0.0) && total != 1.0;
        let lawful = self.lengths
            && channels > 0
            && counted
            && (!running || (0.0..=1.0).contains(&self.factor));
        // Other lengths may be those of fewer or more channels or parts.
        let lawful = if self.lengths { lawful } else { result.is_ok() };
        self.judged(result, lawful, |call| same::<E>(&call.copies(), &before))
    }
}
