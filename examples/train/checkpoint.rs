//! A run as a safetensors file: both networks, the step, the curve, and what was chosen.
//!
//! | name | |
//! |---|---|
//! | `with.layer1.weight`, `with.bn1.running_mean`, `without.layer1.bias`, ... | the networks |
//! | `step` | f64 scalar; with the seed it is also the sampler's state |
//! | `curve` | f64 `[points, 5]`: step, loss and accuracy with, loss and accuracy without |
//! | `options` | f32 `[bytes]`: text, one option per line, in UTF-8 |
use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use batchnorm::{Engine, Memory, StateDict};

use super::backend::Backend;
use super::experiment::{Experiment, Point};
use super::files;
use super::network::Score;

/// The file that a run is saved to, if any. A run goes on where that fails.
pub struct Saves<'p> {
    pub path: Option<&'p Path>,
    /// Of the run when it was last saved.
    pub step: Option<u64>,
    /// Why it could not be saved this time.
    pub error: Option<anyhow::Error>,
}

impl<'p> Saves<'p> {
    pub fn to(path: Option<&'p Path>) -> Self {
        Self { path, step: None, error: None }
    }

    pub fn save<M: Memory, G: Engine<Memory = M>, B: Backend<Memory = M>>(
        &mut self,
        run: &Experiment<'_, G, B>,
    ) {
        let Some(path) = self.path else { return };
        self.error = to_bytes(run).and_then(|bytes| files::write(path, &bytes)).err();
        if self.error.is_none() {
            self.step = Some(run.step);
        }
    }
}

/// The state of a run.
pub fn to_bytes<M: Memory, G: Engine<Memory = M>, B: Backend<Memory = M>>(
    run: &Experiment<'_, G, B>,
) -> Result<Vec<u8>> {
    Ok(dict(run)?.to_bytes()?)
}

/// Continues the run that `bytes` are of, in a new one of the same options.
pub fn load<M: Memory, G: Engine<Memory = M>, B: Backend<Memory = M>>(
    bytes: &[u8],
    run: &mut Experiment<'_, G, B>,
) -> Result<()> {
    let dict = StateDict::from_bytes(bytes)?;
    same_options(&options(&dict)?, &run.identity())?;
    // Only now: other options may bring other names.
    let names = |dict: &StateDict| dict.names().map(String::from).collect::<BTreeSet<_>>();
    let (expected, got) = (names(&self::dict(run)?), names(&dict));
    let list =
        |names: Vec<&String>| names.into_iter().map(String::as_str).collect::<Vec<_>>().join(", ");
    if expected != got {
        let missing = list(expected.difference(&got).collect());
        let unexpected = list(got.difference(&expected).collect());
        bail!("expected the tensors of such a run; missing: {missing}; unexpected: {unexpected}");
    }
    let step = match floats(&dict, "step")? {
        ([], values) => values[0],
        (shape, _) => bail!("step: expected a scalar, got shape {shape:?}"),
    };
    let counter = |what, v: f64| {
        let whole = (0.0..=(1u64 << 53) as f64).contains(&v) && v.fract() == 0.0;
        ensure!(whole, "{what}: expected a whole number, got {v}");
        Ok(v as u64)
    };
    run.step = counter("step", step)?;
    run.curve = match floats(&dict, "curve")? {
        ([_, 5], values) => {
            let point = |v: &[f64; 5]| {
                let score = |loss, accuracy| {
                    ensure!((0.0..=1.0).contains(&accuracy), "curve: accuracy {accuracy}");
                    Ok(Score { loss, accuracy })
                };
                let step = counter("curve", v[0])?;
                Ok(Point { step, with: score(v[1], v[2])?, without: score(v[3], v[4])? })
            };
            values.as_chunks().0.iter().map(point).collect::<Result<Vec<_>>>()?
        }
        (shape, _) => bail!("curve: expected shape [points, 5], got {shape:?}"),
    };
    let ascending = run.curve.is_sorted_by(|a, b| a.step < b.step);
    let last = run.curve.last().map_or(0, |point| point.step);
    ensure!(ascending && last <= run.step, "curve: expected ascending steps up to {}", run.step);
    run.with.load_state_dict(&dict, "with.")?;
    run.without.load_state_dict(&dict, "without.")
}

fn dict<M: Memory, G: Engine<Memory = M>, B: Backend<Memory = M>>(
    run: &Experiment<'_, G, B>,
) -> Result<StateDict> {
    let mut dict = run.with.state_dict("with.")?;
    dict.extend(run.without.state_dict("without.")?);
    dict.insert("step", &[], &[run.step as f64])?;
    let numbers = |p: &Point| {
        [p.step as f64, p.with.loss, p.with.accuracy, p.without.loss, p.without.accuracy]
    };
    let curve: Vec<f64> = run.curve.iter().flat_map(numbers).collect();
    dict.insert("curve", &[run.curve.len(), 5], &curve)?;
    let text: Vec<f32> = run.identity().bytes().map(f32::from).collect();
    dict.insert("options", &[text.len()], &text)?;
    Ok(dict)
}

fn floats<'d>(dict: &'d StateDict, name: &str) -> Result<(&'d [usize], Vec<f64>)> {
    dict.get(name)?.with_context(|| format!("{name}: expected a tensor of floats, got none"))
}

fn options(dict: &StateDict) -> Result<String> {
    let (_, codes) = floats(dict, "options")?;
    let byte = |code: &f64| {
        let byte = *code as u8;
        (f64::from(byte) == *code).then_some(byte)
    };
    let bytes: Option<Vec<u8>> = codes.iter().map(byte).collect();
    let text = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
    text.context("options: expected the bytes of a text, got other numbers")
}

/// Shows both sides of every line that differs.
fn same_options(checkpoint: &str, run: &str) -> Result<()> {
    if checkpoint == run {
        return Ok(());
    }
    let count = checkpoint.lines().count().max(run.lines().count());
    let padded = |text: &'static str| std::iter::repeat(text);
    let pairs =
        checkpoint.lines().chain(padded("nothing")).zip(run.lines().chain(padded("nothing")));
    let differing = pairs.take(count).filter(|(then, now)| then != now);
    let lines = differing
        .map(|(then, now)| format!("\n  the checkpoint has {then:?}, this run has {now:?}"));
    bail!("the checkpoint is of other options:{}", lines.collect::<String>())
}
