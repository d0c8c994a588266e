//! Kind `batch_always`: a layer without running statistics normalizes by the batch in training and evaluation.
use super::super::{Document, Tensors};
use super::Outcome;
use super::layer::{Layer, note, set_batch_statistics, step};
use anyhow::Result;
use batchnorm::{Config, Element, Engine};

const TRAINING: &[(&str, &str)] = &[
    ("batch_mean", "batch_mean"),
    ("batch_var", "batch_var"),
    ("grad_y", "grad_y"),
    ("y", "y"),
    ("grad_x", "grad_x"),
    ("grad_weight", "grad_weight"),
    ("grad_bias", "grad_bias"),
];

pub fn run<G: Engine, E: Element>(engine: &G, document: &Document) -> Result<Outcome> {
    let config = Config::default().track_running_stats(false);
    let mut layer = Layer::<G, E>::new(engine, document, "x", config)?;
    let mut outcome = Outcome::default();
    let forward = layer.forward("x", "residual");
    if let Some((y, saved)) = outcome.is_served("training", forward)? {
        let mut computed = Tensors::from([("y", y)]);
        let names = ["grad_x", "grad_residual", "grad_weight", "grad_bias"];
        let backward = layer.backward(&saved, names, &mut computed);
        outcome.is_served("backward", backward)?;
        note(&mut outcome, &step(document, "x", TRAINING)?.0, computed, TRAINING)?;
    }
    layer.bn.eval();
    let evaluated = layer.infer("x_eval");
    if let Some(y) = outcome.is_served("evaluation", evaluated)? {
        let golden = [("y", "y_eval")];
        let (mut case, _) = step(document, "x_eval", &golden)?;
        set_batch_statistics(&mut case)?;
        note(&mut outcome, &case, Tensors::from([("y", y)]), &golden)?;
    }
    Ok(outcome)
}
