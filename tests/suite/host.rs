//! What only engines on ordinary memory can be asked: slices from the middle of larger ones.
use crate::support::engines::engines;
use crate::support::oracle::served;
use crate::support::run::{self, Epilogue, Inputs, Mode, SavedOn, Want};
use crate::support::shapes::cases;
use batchnorm::{
    Activation, Backward, Cpu, Element, Engine, ForwardEval, ForwardTrain, Host, Input, MergeStats,
    Real, Saved, Shape, Stats,
};
use half::{bf16, f16};
use std::ops::Range;

engines! { [reference_on_host, cpu_on_host] [slices_from_the_middle_are_written_to_their_ends_and_no_further] }

/// What is too large for the cache is stored past it, by whole lines: rows that start lines at the
/// same columns, rows that do not, runs that end at quarters of a line and runs that do not. Parts of
/// it are not, so elementwise operations on those give the same bits.
#[test]
fn the_cpu_stores_the_same_past_its_cache() {
    fn one<E: Element>(dims: &[usize]) {
        let shape = Shape::new(dims, 1).unwrap();
        let (c, n) = (shape.channels(), shape.len());
        let values = |seed: usize| -> Vec<E> {
            (0..n).map(|i| run::narrow(((i * 7919 + seed) % 2003) as f64 / 500.0 - 2.0)).collect()
        };
        let channel =
            |at: f64| (0..c).map(|k| E::Acc::from_f64(at + k as f64 / c as f64)).collect();
        let (x, grad_y): (Vec<E>, Vec<E>) = (values(1), values(2));
        let of: [Vec<E::Acc>; 4] = [channel(-0.5), channel(0.5), channel(1.0), channel(-0.2)];
        let outputs = |shape: &Shape, x: &[E], grad_y: &[E], relu: bool| {
            let (engine, mut saved) = (Cpu::default(), Saved::new());
            let (mut y, mut grad_x) = (vec![E::default(); x.len()], vec![E::default(); x.len()]);
            let forward = ForwardEval::<Host, E>::new(x, &mut y, &of[0], &of[1])
                .weight(&of[2])
                .bias(&of[3])
                .activation(if relu { Activation::Relu } else { Activation::Identity })
                .saved(&mut saved);
            engine.forward_eval(shape, forward).unwrap();
            let backward = Backward::<Host, E>::new(&saved, x, grad_y).grad_x(&mut grad_x);
            engine.backward(shape, backward).unwrap();
            [y, grad_x]
        };
        const PARTS: usize = 10;
        let part = Shape::new(&[&[dims[0] / PARTS], &dims[1..]].concat(), 1).unwrap();
        for relu in [false, true] {
            let whole = outputs(&shape, &x, &grad_y, relu);
            for (k, (x, grad_y)) in x.chunks(part.len()).zip(grad_y.chunks(part.len())).enumerate()
            {
                let at = k * part.len()..(k + 1) * part.len();
                for (whole, part) in whole.iter().zip(outputs(&part, x, grad_y, relu)) {
                    assert!(whole[at.clone()] == part, "{} {dims:?}, part {k}, {relu}", E::DTYPE);
                }
            }
        }
    }
    one::<f32>(&[70_010, 64]);
    one::<f32>(&[2_100, 2_064]);
    one::<f32>(&[2_100, 2_063]);
    one::<f32>(&[120, 180, 14, 14]);
    one::<f32>(&[40, 140, 28, 28]);
    one::<f32>(&[50, 2_000, 7, 7]);
    one::<f64>(&[2_050, 1_032]);
    one::<f64>(&[20, 40, 53, 53]);
    one::<bf16>(&[4_600, 1_840]);
    one::<f16>(&[4_600, 1_843]);
    one::<f16>(&[40, 140, 39, 39]);
}

/// Before and behind what an operation may write: odd, so that no vector is aligned to it.
const MARGIN: usize = 3;

/// A slice between canaries.
struct Framed<T>(Vec<T>);

impl<E: Element> Framed<E> {
    fn canary() -> E {
        run::narrow(-77.0)
    }
    fn new(values: &[E]) -> Self {
        let canaries = [Self::canary(); MARGIN];
        Self([&canaries, values, &canaries].concat())
    }
    fn inside(&self) -> Range<usize> {
        MARGIN..self.0.len() - MARGIN
    }
    fn get(&self) -> &[E] {
        &self.0[self.inside()]
    }
    fn get_mut(&mut self) -> &mut [E] {
        let inside = self.inside();
        &mut self.0[inside]
    }
    /// The values, once the canaries are seen alive.
    fn values(&self, what: &str) -> Vec<f64> {
        let behind = self.inside().end;
        let canaries = self.0[..MARGIN].iter().chain(&self.0[behind..]);
        assert!(canaries.into_iter().all(|v| *v == Self::canary()), "{what}: a canary died");
        run::widen(self.get())
    }
}

/// With the same values in whole vectors as the measure, so that alignment changes no bit either.
fn slices_from_the_middle_are_written_to_their_ends_and_no_further<G>(engine: &G)
where
    G: Engine<Memory = Host>,
{
    fn framed<E: Element, G: Engine<Memory = Host>>(engine: &G) {
        for case in cases().iter().filter(|c| c.shape().per_channel() != 1) {
            let inputs = Inputs::<E>::new(&case.shape(), Epilogue::FULL, 1);
            let what = format!("{}, {}, {:?} ({})", engine.name(), E::DTYPE, case.dims, case.why);
            train_and_back(&what, engine, &inputs);
            eval(&what, engine, &inputs);
            records(&what, engine, &inputs);
        }
    }
    framed::<f64, G>(engine);
    framed::<f32, G>(engine);
    framed::<f16, G>(engine);
    framed::<bf16, G>(engine);
}

fn train_and_back<E: Element, G: Engine<Memory = Host>>(
    what: &str,
    engine: &G,
    inputs: &Inputs<E>,
) -> Option<()> {
    let (shape, c) = (&inputs.shape, inputs.shape.channels());
    let (mode, want) = (Mode::Train(Some(0.1)), Want::all(Epilogue::FULL));
    let mut right_saved = SavedOn::<G, E>::new();
    let mut right = served(run::forward(engine, inputs, mode, Some(&mut right_saved)))?;
    right.extend(served(run::backward(engine, inputs, want, &right_saved, None))?);

    let [x, residual, grad_y] =
        [&inputs.x, &inputs.residual, &inputs.grad_y].map(|v| Framed::new(v));
    let [weight, bias] = [&inputs.weight, &inputs.bias].map(|v| Framed::new(v));
    let [mut mean, mut var] = [&inputs.mean, &inputs.var].map(|v| Framed::new(v));
    let nan = || Framed::new(&vec![run::narrow::<E>(f64::NAN); shape.len()]);
    let [mut y, mut grad_x, mut grad_residual] = [nan(), nan(), nan()];
    let nan = |len| Framed::new(&vec![run::narrow::<E::Acc>(f64::NAN); len]);
    let [mut grad_weight, mut grad_bias, mut sums] = [nan(c), nan(c), nan(2 * c + 1)];
    let mut saved = Saved::new();
    let forward = ForwardTrain::<Host, E>::new(x.get(), y.get_mut())
        .residual(residual.get())
        .weight(weight.get())
        .bias(bias.get())
        .activation(Activation::Relu)
        .eps(inputs.eps)
        .running(mean.get_mut(), var.get_mut(), 0.1)
        .saved(&mut saved);
    engine.forward_train(shape, forward).unwrap();
    let backward = Backward::<Host, E>::new(&saved, x.get(), grad_y.get())
        .grad_x(grad_x.get_mut())
        .grad_residual(grad_residual.get_mut())
        .grad_weight(grad_weight.get_mut())
        .grad_bias(grad_bias.get_mut())
        .sums(sums.get_mut());
    engine.backward(shape, backward).unwrap();
    for (name, got) in [
        ("y", y.values(what)),
        ("running_mean", mean.values(what)),
        ("running_var", var.values(what)),
        ("grad_x", grad_x.values(what)),
        ("grad_residual", grad_residual.values(what)),
        ("grad_weight", grad_weight.values(what)),
        ("grad_bias", grad_bias.values(what)),
        ("sum_g", sums.values(what)[..c].to_vec()),
    ] {
        assert_eq!(got, right[name], "{what}: {name}");
    }
    for (input, before) in
        [(&x, &inputs.x), (&residual, &inputs.residual), (&grad_y, &inputs.grad_y)]
    {
        assert_eq!(input.values(what), run::widen(before), "{what}: an input changed");
    }
    Some(())
}

fn eval<E: Element, G: Engine<Memory = Host>>(
    what: &str,
    engine: &G,
    inputs: &Inputs<E>,
) -> Option<()> {
    let right = served(run::forward(engine, inputs, Mode::Eval, None))?;
    let x = Framed::new(&inputs.x);
    let nan = Framed::new(&vec![run::narrow::<E>(f64::NAN); x.get().len()]);
    for (x, mut y) in [(Input::View(x.get()), nan), (Input::InPlace, Framed::new(&inputs.x))] {
        let mut args = ForwardEval::<Host, E>::in_place(y.get_mut(), &inputs.mean, &inputs.var)
            .residual(&inputs.residual)
            .weight(&inputs.weight)
            .bias(&inputs.bias)
            .activation(Activation::Relu)
            .eps(inputs.eps);
        args.x = x;
        engine.forward_eval(&inputs.shape, args).unwrap();
        assert_eq!(y.values(what), right["y"], "{what}: y");
    }
    Some(())
}

fn records<E: Element, G: Engine<Memory = Host>>(
    what: &str,
    engine: &G,
    inputs: &Inputs<E>,
) -> Option<()> {
    let c = inputs.shape.channels();
    let right = served(run::stats(engine, inputs))?;
    let (x, mut record) = (Framed::new(&inputs.x), Framed::new(&right));
    record.get_mut().fill(f64::NAN);
    let args = Stats::<Host, E>::new(x.get(), record.get_mut());
    engine.stats(&inputs.shape, args).unwrap();
    assert_eq!(record.values(what), right, "{what}: record");

    let right = served(run::merge_stats::<E::Acc, G>(engine, &right, c, None))?;
    let mut merged = Framed::new(&right["record"]);
    merged.get_mut().fill(f64::NAN);
    let (records, merged_view) = (record.get(), merged.get_mut());
    let args = MergeStats::<Host, E::Acc>::new(records, merged_view);
    engine.merge_stats(args).unwrap();
    assert_eq!(merged.values(what), right["record"], "{what}: merged record");
    Some(())
}
