//! Steps of layers with renormalization, by any bounds, weights of a batch, kept statistics and masks: a typed error and
//! nothing changed, or what the reference has.
use super::bytes::Bytes;
use super::given::{Values, near};
use crate::support::run::{Random, narrow, widen};
use crate::support::tolerance::Kind;
use batchnorm::{
    Activation, AllMasked, BatchNorm, Config, Cpu, Element, EmptyBatch, Engine, Error, Host, Mask,
    Momentum, OneValue, Real, Reference, Renorm, RenormClip, Result, Shape,
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

/// What a layer's making, or a step of it, has come to, and what the layer holds after it.
type Step = (String, Result<()>, Values);

/// On either engine by the same bytes.
fn both<E: Element>(input: Bytes) {
    let (eps, cpu) = steps::<E, _>(Bytes(input.0), &Cpu::default());
    let (_, reference) = steps::<E, _>(Bytes(input.0), &Reference);
    assert_eq!(cpu.len(), reference.len());
    for ((what, cpu, got), (_, reference, right)) in cpu.iter().zip(&reference) {
        match (cpu, reference) {
            (Ok(()), Ok(())) => near::<E>(&format!("{}, {what}", E::DTYPE), eps, got, right),
            (Err(a), Err(b)) => assert_eq!(a, b, "{what}"),
            (a, b) => panic!("{}, {what}: cpu: {a:?}, reference: {b:?}", E::DTYPE),
        }
    }
}

/// A number that has a meaning, most times.
fn number(input: &mut Bytes, right: &[f64]) -> f64 {
    match input.one_in(16) {
        true => input.pick(&[-0.1, 1.1, 0.9, f64::NAN, f64::INFINITY, f64::NEG_INFINITY]),
        false => input.pick(right),
    }
}

fn clip(input: &mut Bytes) -> RenormClip {
    let mut some = |right: &[f64]| input.one_in(2).then(|| number(input, right));
    let (r_min, r_max) = (some(&[0.0, 0.5, 1.0]), some(&[1.0, 1.5, 3.0, 1e30]));
    let mut clip = RenormClip::NONE;
    (clip.r_min, clip.r_max, clip.d_max) = (r_min, r_max, some(&[0.0, 0.5, 5.0, 1e30]));
    clip
}

fn momentum(input: &mut Bytes) -> Momentum {
    match input.below(6) {
        0 => Momentum::Cumulative,
        1 => Momentum::Average,
        2 => {
            let [mean, var] = [(); 2].map(|()| number(input, &[0.1, 0.0, 1.0]));
            Momentum::Separate { mean, var }
        }
        _ => Momentum::Exponential(number(input, &[0.1, 0.0, 1.0])),
    }
}

fn config(input: &mut Bytes, eps: f64) -> Config {
    let mut renorm = Renorm::paper(3.0, 5.0).clip(clip(input));
    renorm.momentum = input.one_in(2).then(|| number(input, &[0.01, 0.5, 0.0, 1.0]));
    let config = Config::default().eps(eps).momentum(momentum(input)).renorm(renorm);
    let one_value = [OneValue::Refuse, OneValue::ZeroVariance, OneValue::KeepVariance];
    let config = config.one_value(input.pick(&one_value));
    let config = config.empty_batch(input.pick(&[EmptyBatch::Keep, EmptyBatch::Nan]));
    let config = config.weight(!input.one_in(4)).bias(!input.one_in(4));
    config.activation(input.pick(&[Activation::Identity, Activation::Silu]))
}

/// What a layer may have kept. Nothing finite is so large that sums which cancel are lost beside it.
fn kept<P: Real>(input: &mut Bytes, of_deviations: bool) -> P {
    let any = [f64::INFINITY, f64::NEG_INFINITY, f64::NAN, 1e-42, 1e-310, -0.0, -3.0, 0.0];
    let value = match input.one_in(6) {
        true => input.pick(&any),
        false => input.pick(&[0.5, 1.0, 2.0]) - if of_deviations { 0.0 } else { 1.0 },
    };
    P::from_f64(value)
}

/// All that a layer holds.
fn held<P: Real, G: Engine<Memory = Host>>(bn: &BatchNorm<P, G>, values: usize) -> Values {
    let sum = Kind::Sum(values.max(1));
    let grads = bn.named_parameters().filter_map(|(name, p)| Some((name, sum, widen(p.grad()?))));
    let mut all: Values = grads.collect();
    let Some(running) = bn.running() else { return all };
    let mut add = |name, of: &[P]| all.push((name, Kind::Statistic, widen(of)));
    add("running_mean", &running.mean);
    add("running_var", &running.var);
    if let Some(kept) = &running.renorm {
        add("moving_stddev", &kept.moving_stddev);
        kept.renorm_mean.iter().for_each(|of| add("renorm_mean", of));
        kept.renorm_stddev.iter().for_each(|of| add("renorm_stddev", of));
    }
    all.push(("batches", Kind::Element, vec![running.num_batches_tracked as f64]));
    all
}

fn same_bits(a: &Values, b: &Values) -> bool {
    let bits = |of: &Values| -> Vec<u64> {
        of.iter().flat_map(|(_, _, values)| values).map(|value| value.to_bits()).collect()
    };
    bits(a) == bits(b)
}

/// A layer's steps, the first of which is that it is made; and its eps.
fn steps<E: Element, G: Engine<Memory = Host>>(mut input: Bytes, engine: &G) -> (f64, Vec<Step>) {
    let meaningless = [0.0, -1e-5, f64::NAN, f64::INFINITY];
    let eps =
        if input.one_in(16) { input.pick(&meaningless) } else { input.pick(&[1e-3, 0.1, 2.0]) };
    let config = config(&mut input, eps);
    let channels = 1 + input.below(4);
    let made = BatchNorm::<E::Acc, G>::new(engine, channels, config);
    let mut bn = match made {
        Ok(bn) => bn,
        Err(error) => {
            is_typed(&error);
            return (eps, vec![(format!("{config:?}"), Err(error), vec![])]);
        }
    };
    let mut random = Random(input.byte().into());
    for (_, param) in bn.named_parameters_mut() {
        param.value.fill_with(|| E::Acc::from_f64(random.uniform() + 0.5));
    }
    let mut all = vec![];
    for _ in 0..1 + input.below(4) {
        bn.zero_grad();
        let before = held(&bn, 1);
        let (what, result, mut values) = step::<E, G>(&mut input, &mut bn, &mut random);
        let what = format!("{what} of {config:?}");
        if let Err(error) = &result {
            is_typed(error);
            assert!(same_bits(&before, &held(&bn, 1)), "{what}: {error}, and something changed");
        }
        values.extend(held(&bn, 12));
        all.push((what, result, values));
        // What an engine rounded otherwise, and a bound that only one of them meets, must not add up over steps.
        let Some(running) = bn.running_mut() else { break };
        let Some(renorm) = &mut running.renorm else { break };
        let means = [Some(&mut running.mean), renorm.renorm_mean.as_mut()];
        let stddevs = [Some(&mut renorm.moving_stddev), renorm.renorm_stddev.as_mut()];
        for (of_deviations, buf) in [(false, means), (true, stddevs)] {
            buf.into_iter().flatten().for_each(|buf| {
                buf.fill_with(|| kept(&mut input, of_deviations));
            });
        }
        running.var.fill_with(|| kept(&mut input, true));
    }
    (eps, all)
}

fn is_typed(error: &Error) {
    let typed = matches!(error, Error::Length { .. } | Error::Invalid { .. } | Error::Saved { .. });
    assert!(typed && !error.to_string().is_empty(), "{error:?}");
}

/// One of: other bounds, as a schedule has them, an evaluation, or a forward and its backward.
fn step<E: Element, G: Engine<Memory = Host>>(
    input: &mut Bytes,
    bn: &mut BatchNorm<E::Acc, G>,
    random: &mut Random,
) -> Step {
    if input.one_in(6) {
        let clip = clip(input);
        return (format!("{clip:?}"), bn.set_renorm_clip(clip), vec![]);
    }
    let mut channels = bn.channels();
    if input.one_in(24) {
        channels += 1;
    }
    let (rows, inner) = (input.below(5), 1 + input.below(4));
    let dims = if input.one_in(2) { [rows, inner, channels] } else { [rows, channels, inner] };
    let axis = if dims[2] == channels { 2 } else { 1 };
    let shape = Shape::new(&dims, axis).expect("a small tensor");
    bn.train(!input.one_in(6));
    bn.update_running_stats(!input.one_in(6));
    // So coarse that equal ones meet, as in constant channels.
    let mut tensor = |len: usize, mean: f64| -> Vec<E> {
        (0..len).map(|_| narrow(mean + (random.uniform() * 8.0).floor() / 4.0)).collect()
    };
    let wrong = if input.one_in(24) { input.below(40) } else { shape.len() };
    let (x, grad_y) = (tensor(wrong, 0.25), tensor(shape.len(), -1.0));
    let places: Option<Vec<u8>> = input.one_in(3).then(|| {
        let len = if input.one_in(12) { input.below(20) } else { shape.per_channel() };
        let most = if input.one_in(12) { 3 } else { 2 };
        (0..len)
            .map(|_| if most == 2 { u8::from(!input.one_in(3)) } else { input.byte() })
            .collect()
    });
    let rule = input.pick(&[AllMasked::Keep, AllMasked::Zero, AllMasked::Nan]);
    let count_eps = number(input, &[0.0, 1e-7, 0.5]);
    let what = format!("{shape}, mask {places:?}, {rule:?}, {count_eps}");
    let done = (|| {
        let Some(places) = &places else {
            let (y, saved) = bn.forward(&shape, &x)?;
            return Ok((y, bn.backward(&saved, &x, &grad_y)?));
        };
        let mask = Mask::<Host>::new(places).all_masked(rule).count_eps(count_eps);
        let (y, saved) = bn.forward_masked(&shape, &x, mask)?;
        Ok((y, bn.backward_masked(&saved, &x, places, &grad_y)?))
    })();
    match done {
        Ok((y, grad_x)) => {
            let of = |name, values: &[E]| (name, Kind::Element, widen(values));
            (what, Ok(()), vec![of("y", &y), of("grad_x", &grad_x)])
        }
        Err(error) => (what, Err(error), vec![]),
    }
}
