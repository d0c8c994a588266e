//! Kind `masked`: a training step by the statistics of the values that count, as Keras 3 and Flax take them.
use super::super::{Document, Tensors};
use super::Outcome;
use super::layer::{Layer, note, step};
use super::vectors::download;
use anyhow::{Context, Result, ensure};
use batchnorm::{AllMasked, Config, Element, Engine, Mask, Memory, Momentum, Variance};

const GOLDEN: &[(&str, &str)] = &[
    ("batch_mean", "batch_mean"),
    ("batch_var", "batch_var"),
    ("grad_y", "grad_y"),
    ("y", "y"),
    ("grad_x", "grad_x"),
    ("grad_weight", "grad_weight"),
    ("grad_bias", "grad_bias"),
];

pub fn run<G: Engine, E: Element>(engine: &G, document: &Document) -> Result<Outcome> {
    let variance = match document.text("running_var")? {
        "unbiased" => Variance::Unbiased,
        _ => Variance::Biased,
    };
    let momentum = Momentum::Exponential(document.number("momentum")?);
    let config = Config::default().momentum(momentum).variance(variance);
    let mut layer = Layer::<G, E>::new(engine, document, "x", config)?;
    let mut outcome = Outcome::default();
    let (tensor, shape) = (document.tensor("x")?, document.shape_of("x")?);
    let last = tensor.dims.last().copied().context("x: expected an axis")?;
    let bytes = document.values("mask")?.iter().map(|value| *value as u8);
    let places = engine.memory().upload(&bytes.collect::<Vec<u8>>())?;
    let counted = document.values("mask")?.iter().sum::<f64>();
    let is_last = document.count("axis")? + 1 == tensor.dims.len();
    let golden = document.values("count")?;
    ensure!(
        !is_last || golden.iter().all(|count| *count == counted),
        "count: expected {counted}, got {golden:?}"
    );
    // Every case has Keras' zeros where nothing counts.
    let mask = Mask::new(G::Memory::view(&places))
        .without_last(last)
        .count_eps(document.number("mask_eps")?)
        .all_masked(AllMasked::Zero);
    let (x, grad_y) = (layer.upload("x")?, layer.upload("grad_y")?);
    let (x, grad_y) = (G::Memory::view(&x), G::Memory::view(&grad_y));
    let forward = layer.bn.forward_masked(&shape, G::Memory::reborrow(&x), mask);
    let forward = forward.map_err(anyhow::Error::from);
    let Some((y, saved)) = outcome.is_served("training", forward)? else { return Ok(outcome) };
    let mut computed = Tensors::from([("y", download::<G, E>(engine, &y)?)]);
    let grad_x = layer.bn.backward_masked(&saved, x, G::Memory::view(&places), grad_y)?;
    computed.insert("grad_x", download::<G, E>(engine, &grad_x)?);
    for (name, param) in layer.bn.named_parameters() {
        let gradient = param.grad().context("a gradient")?;
        let name = if name == "weight" { "grad_weight" } else { "grad_bias" };
        computed.insert(name, download::<G, E::Acc>(engine, gradient)?);
    }
    note(&mut outcome, &step(document, "x", GOLDEN)?.0, computed, GOLDEN)?;
    let (mean, var) = layer.running()?;
    outcome.statistics(document, "new_running_mean", mean)?;
    outcome.statistics(document, "new_running_var", var)?;
    Ok(outcome)
}
