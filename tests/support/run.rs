//! Runs an operation on any engine: inputs from the host, results back on the host.
use batchnorm::{
    Backward, Derivative, Element, EmptyBatch, Engine, ForwardEval, ForwardTrain, Input, Memory,
    MergeStats, NonFinite, OneValue, Real, Result, Running, Saved, Shape, Statistics, Stats,
    Variance,
};
use std::collections::BTreeMap;

pub use super::agree::{agree, ask_nothing};
pub use super::inputs::{Epilogue, Inputs, Masked, Spread};
pub use super::random::Random;
pub use super::rules::Rules;

/// Memory of an engine.
pub type Buf<G, T> = <<G as Engine>::Memory as Memory>::Buf<T>;
/// What an operation wrote, by name, widened exactly: equal bits here are equal bits there.
pub type Outcome = BTreeMap<&'static str, Vec<f64>>;
/// What a forward on `G` saves for tensors of `E`.
pub type SavedOn<G, E> = Saved<<G as Engine>::Memory, <E as Element>::Acc>;

/// Which forward.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Mode {
    /// By the batch's statistics; updates running ones with this factor.
    Train(Option<f64>),
    /// By given statistics.
    Eval,
    /// By given statistics, y over x.
    InPlace,
}

/// Which gradients, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Want {
    pub grad_x: bool,
    pub grad_residual: bool,
    pub grad_weight: bool,
    pub grad_bias: bool,
    pub sums: bool,
    pub accumulate: bool,
    /// `grad_x` holds `grad_y` before.
    pub in_place: bool,
}

impl Want {
    /// Everything that this epilogue has a gradient for.
    pub fn all(epilogue: Epilogue) -> Self {
        Self {
            grad_x: true,
            grad_residual: epilogue.residual,
            grad_weight: true,
            grad_bias: true,
            sums: true,
            accumulate: false,
            in_place: false,
        }
    }
}

/// What `grad_weight` and `grad_bias` hold where they are accumulated: exact in every type.
pub fn gradient_before(c: usize) -> f64 {
    0.25 * (c % 7) as f64 - 0.5
}

/// A forward. Outputs start as NaN, so that nothing old in them can pass for a result.
pub fn forward<E: Element, G: Engine>(
    engine: &G,
    inputs: &Inputs<E>,
    mode: Mode,
    mut saved: Option<&mut SavedOn<G, E>>,
) -> Result<Outcome> {
    let (shape, on, epilogue) = (&inputs.shape, engine.memory(), inputs.epilogue);
    let x = on.upload(&inputs.x)?;
    let residual = epilogue.residual.then(|| on.upload(&inputs.residual)).transpose()?;
    let weight = epilogue.weight.then(|| on.upload(&inputs.weight)).transpose()?;
    let bias = epilogue.bias.then(|| on.upload(&inputs.bias)).transpose()?;
    let (mut mean, mut var) = (on.upload(&inputs.mean)?, on.upload(&inputs.var)?);
    let rules = &inputs.rules;
    let skipped = rules.skipped.map(|before| vec![before; shape.channels()]);
    let mut skipped = skipped.map(|before| on.upload(&before)).transpose()?;
    let record = inputs.record.as_ref().map(|record| on.upload(record)).transpose()?;
    let nan = vec![narrow::<E>(f64::NAN); shape.len()];
    let mut y = on.upload(if mode == Mode::InPlace { &inputs.x } else { &nan })?;
    let places = inputs.mask.as_ref().map(|mask| on.upload(&mask.places)).transpose()?;
    let residual_view = residual.as_ref().map(G::Memory::view);
    let (weight, bias) = (weight.as_ref(), bias.as_ref());
    let (weight, bias) = (weight.map(G::Memory::view), bias.map(G::Memory::view));
    if let Mode::Train(factor) = mode {
        let mut args =
            ForwardTrain::<G::Memory, E>::new(G::Memory::view(&x), G::Memory::view_mut(&mut y))
                .activation(epilogue.activation)
                .eps(inputs.eps)
                .one_value(rules.one_value);
        args.residual = residual_view;
        args.weight = weight;
        args.bias = bias;
        args.running = factor.map(|factor| {
            let (mean, var) = (G::Memory::view_mut(&mut mean), G::Memory::view_mut(&mut var));
            rules.running(mean, var, factor, skipped.as_mut().map(G::Memory::view_mut))
        });
        args.mask = inputs
            .mask
            .as_ref()
            .zip(places.as_ref())
            .map(|(mask, places)| mask.mask::<G::Memory>(G::Memory::view(places)));
        args.saved = saved.as_deref_mut();
        agree(engine, shape, args.request(), |engine| engine.forward_train(shape, args))?;
    } else {
        let (x, y) = (G::Memory::view(&x), G::Memory::view_mut(&mut y));
        let (mean, var) = (G::Memory::view(&mean), G::Memory::view(&var));
        let mut args = ForwardEval::<G::Memory, E>::new(x, y, mean, var)
            .activation(epilogue.activation)
            .eps(inputs.eps);
        args.residual = residual_view;
        args.weight = weight;
        args.bias = bias;
        args.saved = saved.as_deref_mut();
        if let Some(record) = &record {
            args.statistics = Statistics::Record(G::Memory::view(record));
        }
        if mode == Mode::InPlace {
            args.x = Input::InPlace;
        }
        agree(engine, shape, args.request(), |engine| engine.forward_eval(shape, args))?;
    }
    let mut outcome = Outcome::from([("y", widen(&on.download(G::Memory::view(&y))?))]);
    if matches!(mode, Mode::Train(Some(_))) {
        outcome.insert("running_mean", widen(&on.download(G::Memory::view(&mean))?));
        outcome.insert("running_var", widen(&on.download(G::Memory::view(&var))?));
        if let Some(skipped) = &skipped {
            outcome.insert("skipped", on.download(G::Memory::view(skipped))?);
        }
    }
    if let Some(saved) = saved {
        let [mean, invstd] = [saved.mean().unwrap(), saved.invstd().unwrap()];
        outcome.insert("saved_mean", widen(&on.download(mean)?));
        outcome.insert("saved_invstd", widen(&on.download(invstd)?));
    }
    Ok(outcome)
}

/// A backward by what a forward saved.
pub fn backward<E: Element, G: Engine>(
    engine: &G,
    inputs: &Inputs<E>,
    want: Want,
    saved: &SavedOn<G, E>,
    total_sums: Option<&[E::Acc]>,
) -> Result<Outcome> {
    let (shape, on) = (&inputs.shape, engine.memory());
    let c = shape.channels();
    let x = on.upload(&inputs.x)?;
    let grad_y = on.upload(&inputs.grad_y)?;
    let Epilogue { activation, residual, .. } = inputs.epilogue;
    let again = activation.derivative_from(residual) == Derivative::FromResidual;
    let residual = again.then(|| on.upload(&inputs.residual)).transpose()?;
    let total_sums = total_sums.map(|sums| on.upload(sums)).transpose()?;
    let mask = inputs.mask.as_ref().filter(|_| saved.is_masked() == Some(true));
    let places = mask.map(|mask| on.upload(&mask.places)).transpose()?;
    // A part of a batch has no mask.
    let want = Want { sums: want.sums && mask.is_none(), ..want };
    let nan = vec![narrow::<E>(f64::NAN); shape.len()];
    let before = |c| narrow(if want.accumulate { gradient_before(c) } else { f64::NAN });
    let before: Vec<E::Acc> = (0..c).map(before).collect();
    let mut grad_x = on.upload(if want.in_place { &inputs.grad_y } else { &nan })?;
    let mut grad_residual = on.upload(&nan)?;
    let (mut grad_weight, mut grad_bias) = (on.upload(&before)?, on.upload(&before)?);
    let mut sums = on.upload(&vec![narrow::<E::Acc>(f64::NAN); 2 * c + 1])?;
    let (x, grad_y) = (G::Memory::view(&x), G::Memory::view(&grad_y));
    let mut args = Backward::<G::Memory, E>::new(saved, x, grad_y).accumulate(want.accumulate);
    if want.in_place {
        args.grad_y = Input::InPlace;
    }
    args.residual = residual.as_ref().map(G::Memory::view);
    args.mask = places.as_ref().map(G::Memory::view);
    args.grad_x = want.grad_x.then(|| G::Memory::view_mut(&mut grad_x));
    args.grad_residual = want.grad_residual.then(|| G::Memory::view_mut(&mut grad_residual));
    args.grad_weight = want.grad_weight.then(|| G::Memory::view_mut(&mut grad_weight));
    args.grad_bias = want.grad_bias.then(|| G::Memory::view_mut(&mut grad_bias));
    args.sums = want.sums.then(|| G::Memory::view_mut(&mut sums));
    args.total_sums = total_sums.as_ref().map(G::Memory::view);
    agree(engine, shape, args.request()?, |engine| engine.backward(shape, args))?;
    let mut outcome = Outcome::new();
    if want.grad_x {
        outcome.insert("grad_x", widen(&on.download(G::Memory::view(&grad_x))?));
    }
    if want.grad_residual {
        outcome.insert("grad_residual", widen(&on.download(G::Memory::view(&grad_residual))?));
    }
    if want.grad_weight {
        outcome.insert("grad_weight", widen(&on.download(G::Memory::view(&grad_weight))?));
    }
    if want.grad_bias {
        outcome.insert("grad_bias", widen(&on.download(G::Memory::view(&grad_bias))?));
    }
    if want.sums {
        let sums = widen(&on.download(G::Memory::view(&sums))?);
        outcome.insert("sum_g", sums[..c].to_vec());
        outcome.insert("sum_g_xhat", sums[c..2 * c].to_vec());
        outcome.insert("count", vec![sums[2 * c]]);
    }
    Ok(outcome)
}

/// One part's record: means, what rounding left of them, variances, m.
pub fn stats<E: Element, G: Engine>(engine: &G, inputs: &Inputs<E>) -> Result<Vec<f64>> {
    let on = engine.memory();
    let x = on.upload(&inputs.x)?;
    let nan = vec![f64::NAN; 3 * inputs.shape.channels() + 1];
    let mut record = on.upload(&nan)?;
    let places = inputs.mask.as_ref().map(|mask| on.upload(&mask.places)).transpose()?;
    let (x, out) = (G::Memory::view(&x), G::Memory::view_mut(&mut record));
    let (shape, mut args) = (&inputs.shape, Stats::<G::Memory, E>::new(x, out));
    let mask = inputs.mask.as_ref().zip(places.as_ref());
    args.mask = mask.map(|(mask, places)| mask.mask::<G::Memory>(G::Memory::view(places)));
    agree(engine, shape, args.request(), |engine| engine.stats(shape, args))?;
    on.download(G::Memory::view(&record))
}

/// Merges records, with running statistics (mean, variance, factor) where there are any.
pub fn merge_stats<P: Real, G: Engine>(
    engine: &G,
    records: &[f64],
    channels: usize,
    running: Option<(&[P], &[P], f64)>,
) -> Result<Outcome> {
    merge_stats_by(engine, records, channels, running, Rules::default())
}

/// The same by rules of the caller's.
pub fn merge_stats_by<P: Real, G: Engine>(
    engine: &G,
    records: &[f64],
    channels: usize,
    running: Option<(&[P], &[P], f64)>,
    rules: Rules,
) -> Result<Outcome> {
    let on = engine.memory();
    let records = on.upload(records)?;
    let mut record = on.upload(&vec![f64::NAN; 3 * channels + 1])?;
    let nan = vec![narrow::<P>(f64::NAN); channels];
    let (running_mean, running_var, factor) = running.unwrap_or((&nan, &nan, 0.0));
    let mut running_mean = on.upload(running_mean)?;
    let mut running_var = on.upload(running_var)?;
    let skipped = rules.skipped.map(|before| vec![before; channels]);
    let mut skipped = skipped.map(|before| on.upload(&before)).transpose()?;
    let mut args = MergeStats::<G::Memory, P>::new(
        G::Memory::view(&records),
        G::Memory::view_mut(&mut record),
    )
    .one_value(rules.one_value);
    args.running = running.is_some().then(|| {
        let mean = G::Memory::view_mut(&mut running_mean);
        let var = G::Memory::view_mut(&mut running_var);
        rules.running(mean, var, factor, skipped.as_mut().map(G::Memory::view_mut))
    });
    let shape = Shape::new(&[1, channels], 1)?;
    agree(engine, &shape, args.request(), |engine| engine.merge_stats(args))?;
    let record = on.download(G::Memory::view(&record))?;
    let mut outcome = Outcome::new();
    outcome.insert("mean", record[..channels].to_vec());
    outcome.insert("var", record[2 * channels..3 * channels].to_vec());
    outcome.insert("record", record);
    if running.is_some() {
        let mean = on.download(G::Memory::view(&running_mean))?;
        let var = on.download(G::Memory::view(&running_var))?;
        outcome.insert("running_mean", widen(&mean));
        outcome.insert("running_var", widen(&var));
        if let Some(skipped) = &skipped {
            outcome.insert("skipped", on.download(G::Memory::view(skipped))?);
        }
    }
    Ok(outcome)
}

/// The channel of the element at `i`.
pub fn channel_of(shape: &Shape, i: usize) -> usize {
    i / shape.inner() % shape.channels()
}

/// Exactly.
pub fn widen<E: Element>(values: &[E]) -> Vec<f64> {
    values.iter().map(|v| v.widen().to_f64()).collect()
}

/// Rounded as a store rounds.
pub fn narrow<E: Element>(v: f64) -> E {
    E::narrow(E::Acc::from_f64(v))
}

/// Equal in every bit, NaN too.
pub fn same_bits(a: &Outcome, b: &Outcome) -> bool {
    let bits = |o: &Outcome| -> Vec<(&str, Vec<u64>)> {
        o.iter().map(|(name, v)| (*name, v.iter().map(|v| v.to_bits()).collect())).collect()
    };
    bits(a) == bits(b)
}
