//! Vectors of a layer that are golden by themselves.
use super::super::super::tolerance::{Kind, agrees, tolerance};
use super::super::{Document, Verdict, narrow, parameters_of, widen};
use super::Outcome;
use anyhow::{Result, ensure};
use batchnorm::{Element, Engine, Memory};

pub type Buf<G, T> = <<G as Engine>::Memory as Memory>::Buf<T>;

pub fn upload<G: Engine, T: Element>(engine: &G, values: &[f64]) -> Result<Buf<G, T>> {
    let values: Vec<T> = values.iter().map(|&v| narrow(v)).collect();
    Ok(engine.memory().upload(&values)?)
}
pub fn download<G: Engine, T: Element>(engine: &G, buf: &Buf<G, T>) -> Result<Vec<f64>> {
    let values = engine.memory().download(G::Memory::view(buf))?;
    Ok(values.into_iter().map(widen).collect())
}

/// Judges a vector of the parameters' type against the golden one of that name, as statistics are.
pub fn note(outcome: &mut Outcome, document: &Document, name: &str, got: Vec<f64>) -> Result<()> {
    note_within(outcome, document, name, got, 0.0)
}

/// The same where one rounding of a mean of `drift` deviations goes in.
pub fn note_within(
    outcome: &mut Outcome,
    document: &Document,
    name: &str,
    got: Vec<f64>,
    drift: f64,
) -> Result<()> {
    let golden = document.values(name)?;
    ensure!(got.len() == golden.len(), "{name}: expected {}, got {}", golden.len(), got.len());
    let dtype = parameters_of(document.dtype);
    let max = golden.iter().fold(0.0, |max: f64, v| max.max(v.abs()));
    let tolerance = tolerance(dtype, Kind::Statistic, max, drift);
    let worst = (0..golden.len()).max_by(|&a, &b| {
        let far = |k: usize| (got[k] - golden[k]).abs();
        far(a).total_cmp(&far(b)) // NaN is the furthest
    });
    let Some(index) = worst else { return Ok(()) };
    let (expected, got_worst) = (golden[index], got[index]);
    outcome.verdicts.push(Verdict {
        tensor: name.to_owned(),
        index,
        channel: index,
        expected,
        got: got_worst,
        error: (got_worst - expected).abs(),
        tolerance,
        pass: agrees(got_worst, expected, tolerance, dtype),
        note: None,
    });
    outcome.computed.insert(name.to_owned(), got);
    Ok(())
}
