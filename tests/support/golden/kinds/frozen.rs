//! Kind `frozen`: forward and backward of a layer in evaluation, by running statistics that stay.
use super::super::{Document, Tensors};
use super::Outcome;
use super::layer::{Layer, note, step};
use anyhow::Result;
use batchnorm::{Config, Element, Engine};

const GOLDEN: &[(&str, &str)] = &[
    ("running_mean", "running_mean"),
    ("running_var", "running_var"),
    ("grad_y", "grad_y"),
    ("residual", "residual"),
    ("y_eval", "y"),
    ("grad_x_eval", "grad_x"),
    ("grad_residual_eval", "grad_residual"),
    ("grad_weight_eval", "grad_weight"),
    ("grad_bias_eval", "grad_bias"),
];

pub fn run<G: Engine, E: Element>(engine: &G, document: &Document) -> Result<Outcome> {
    let mut layer = Layer::<G, E>::new(engine, document, "x", Config::default())?;
    layer.bn.eval();
    let mut outcome = Outcome::default();
    let forward = layer.forward("x", "residual");
    let case = step(document, "x", GOLDEN)?.0;
    let Some((y, saved)) = outcome.is_served("frozen", forward)? else {
        // What keeps nothing for a backward may be served all the same.
        if !document.has("residual") {
            let evaluated = layer.infer("x");
            if let Some(y) = outcome.is_served("evaluation", evaluated)? {
                note(&mut outcome, &case, Tensors::from([("y_eval", y)]), GOLDEN)?;
            }
        }
        return Ok(outcome);
    };
    let mut computed = Tensors::from([("y_eval", y)]);
    let names = ["grad_x_eval", "grad_residual_eval", "grad_weight_eval", "grad_bias_eval"];
    let backward = layer.backward(&saved, names, &mut computed);
    outcome.is_served("backward", backward)?;
    note(&mut outcome, &case, computed, GOLDEN)?;
    Ok(outcome)
}
