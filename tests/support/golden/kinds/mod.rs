//! Golden cases of a whole layer: a runner per kind, which knows its tensors and its metadata.
//!
//! A runner is generic over engine and element, calls the layer as a user does, and gives a [`Verdict`] for
//! each golden tensor. A new kind is a file here and a line of [`runner`].
use super::super::tolerance::{Kind, agrees, tolerance};
use super::{Document, Verdict};
use anyhow::{Context, Result, bail, ensure};
use batchnorm::{Element, Engine, Error, dispatch};
use std::collections::BTreeMap;

mod batch_always;
mod double_backward;
mod fold;
mod frozen;
mod ghost;
mod keras_old_std;
mod layer;
mod masked;
mod optimizer;
mod population;
mod regularizer;
mod renorm;
mod sample_wise;
mod steps;
mod vectors;

pub use steps::config as steps_config;

/// What an engine makes of a document.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// One for each golden tensor that was computed.
    pub verdicts: Vec<Verdict<String>>,
    /// What was computed, by the golden tensors' names.
    pub computed: BTreeMap<String, Vec<f64>>,
    /// What the engine does not serve, and why.
    pub refused: Vec<String>,
}

impl Outcome {
    /// Judges statistics, one per channel, that were computed as the golden tensor of that name.
    pub(super) fn statistics(
        &mut self,
        document: &Document,
        name: &str,
        computed: Vec<f64>,
    ) -> Result<()> {
        self.judge(document, name, Kind::Statistic, computed)
    }
    /// The same of values of any kind.
    pub(super) fn judge(
        &mut self,
        document: &Document,
        name: &str,
        kind: Kind,
        computed: Vec<f64>,
    ) -> Result<()> {
        let golden = document.values(name)?;
        let (expected, got) = (golden.len(), computed.len());
        ensure!(got == expected, "{name}: expected {expected} elements, got {got}");
        let max_abs = golden.iter().fold(0.0, |max: f64, value| max.max(value.abs()));
        let tolerance = tolerance(document.dtype, kind, max_abs, 0.0);
        let errors = golden.iter().zip(&computed).map(|(golden, got)| (got - golden).abs());
        let worst = errors.clone().enumerate().max_by(|a, b| a.1.total_cmp(&b.1));
        let (index, error) = worst.unwrap_or((0, 0.0));
        let value = |values: &[f64]| values.get(index).copied().unwrap_or(0.0);
        self.verdicts.push(Verdict {
            tensor: name.to_owned(),
            index,
            channel: index,
            expected: value(golden),
            got: value(&computed),
            error,
            tolerance,
            pass: golden
                .iter()
                .zip(&computed)
                .all(|(golden, got)| agrees(*got, *golden, tolerance, document.dtype)),
            note: None,
        });
        self.computed.insert(name.to_owned(), computed);
        Ok(())
    }
    /// Whether the engine serves it; any other error than a refusal is passed on.
    pub(super) fn is_served<T>(&mut self, what: &str, done: Result<T>) -> Result<Option<T>> {
        match done {
            Ok(value) => Ok(Some(value)),
            Err(error) if matches!(error.downcast_ref(), Some(Error::Unsupported { .. })) => {
                self.refused.push(format!("{what}: {error}"));
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

type Runner<G> = fn(&G, &Document) -> Result<Outcome>;

fn runner<G: Engine, E: Element>(kind: &str) -> Option<Runner<G>> {
    Some(match kind {
        "batch_always" => batch_always::run::<G, E>,
        "double_backward" => double_backward::run::<G, E>,
        "fold" => fold::run::<G, E>,
        "frozen" => frozen::run::<G, E>,
        "ghost" => ghost::run::<G, E>,
        "keras_old_std" => keras_old_std::run::<G, E>,
        "sample_wise" => sample_wise::run::<G, E>,
        "masked" => masked::run::<G, E>,
        "optimizer" => optimizer::run::<G, E>,
        "population" => population::run::<G, E>,
        "population_network" => population::run_network::<G, E>,
        "regularizer" => regularizer::run::<G, E>,
        "renorm" => renorm::run::<G, E>,
        "steps" => steps::run::<G, E>,
        _ => return None,
    })
}

/// Whether there is a runner for such documents.
pub fn is_known(kind: &str) -> bool {
    runner::<batchnorm::Reference, f64>(kind).is_some()
}

/// Runs an engine over a document of a known kind.
pub fn run<G: Engine>(engine: &G, document: &Document) -> Result<Outcome> {
    let runner = dispatch!(document.dtype, E => runner::<G, E>(&document.kind));
    let Some(runner) = runner else { bail!("kind {:?} is not known", document.kind) };
    runner(engine, document).with_context(|| format!("{}: {}", document.name, engine.name()))
}
