//! Vectors of a layer that are golden by themselves.
use super::super::super::tolerance::{Kind, agrees, tolerance};
use super::super::{Document, Verdict, narrow, parameters_of, widen};
use super::Outcome;
use anyhow::{Result, ensure};
use batchnorm::{DType, Element, Engine, Memory};

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
    note_as(outcome, document, name, got, (parameters_of(document.dtype), Kind::Statistic, 0.0))
}

/// The same by a dtype, a kind and a drift, as `tolerance` takes them.
pub fn note_as(
    outcome: &mut Outcome,
    document: &Document,
    name: &str,
    got: Vec<f64>,
    (dtype, kind, drift): (DType, Kind, f64),
) -> Result<()> {
    let golden = document.values(name)?;
    ensure!(got.len() == golden.len(), "{name}: expected {}, got {}", golden.len(), got.len());
    let max = golden.iter().fold(0.0, |max: f64, v| max.max(v.abs()));
    let tolerance = tolerance(dtype, kind, max, drift);
    let error = |index: usize| (got[index] - golden[index]).abs(); // NaN is the furthest
    let worst = (0..golden.len()).max_by(|&a, &b| error(a).total_cmp(&error(b)));
    if let Some(index) = worst {
        let verdict = Verdict {
            tensor: name.to_owned(),
            index,
            channel: index,
            expected: golden[index],
            got: got[index],
            error: error(index),
            tolerance,
            pass: agrees(got[index], golden[index], tolerance, dtype),
            note: None,
        };
        outcome.verdicts.push(verdict);
    }
    outcome.computed.insert(name.to_owned(), got);
    Ok(())
}
