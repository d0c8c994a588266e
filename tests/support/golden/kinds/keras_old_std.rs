//! Kind `keras_old_std`: Keras 1 before 1.0.6, which kept an average of deviations and added eps to them twice.
//!
//! No layer trains by that rule; a forward of its is the batch's statistics, converted, and an evaluation by
//! them, and the running deviation is the caller's.
use super::super::{Document, Tensors};
use super::Outcome;
use super::layer::{Layer, note, set_batch_statistics, step};
use anyhow::Result;
use batchnorm::{Config, Element, Engine, Keras1Std};

pub fn run<G: Engine, E: Element>(engine: &G, document: &Document) -> Result<Outcome> {
    let (eps, to_eps) = (document.number("eps")?, document.number("to_eps")?);
    let keep = document.number("momentum_keep")?;
    let to_vars = |deviations: &[f64]| -> Result<Vec<f64>> {
        let var = |&std: &f64| Ok(Keras1Std::Deviation.to_var(std, eps, to_eps)?);
        deviations.iter().map(var).collect()
    };
    let mut layer = Layer::<G, E>::new(engine, document, "x_0", Config::default())?;
    layer.bn.set_eps(to_eps)?;
    layer.bn.eval();
    let mut outcome = Outcome::default();
    let steps = document.count("steps")?;
    let mut mean = document.values("running_mean")?.to_vec();
    let mut std = document.values("running_std")?.to_vec();
    for i in 0..steps {
        let name = |of: &str| format!("{of}_{i}");
        let (x, y) = (name("x"), name("y"));
        let moments = layer.moments(&x);
        let Some((means, vars)) = outcome.is_served("statistics", moments)? else { break };
        let deviations: Vec<f64> = vars.iter().map(|var| (var + eps).sqrt()).collect();
        layer.set_running(&means, &to_vars(&deviations)?)?;
        let computed = layer.infer(&x)?;
        let golden = [("y", y.as_str())];
        let (mut case, _) = step(document, &x, &golden)?;
        set_batch_statistics(&mut case)?;
        note(&mut outcome, &case, Tensors::from([("y", computed)]), &golden)?;
        for (running, of_batch) in [(&mut mean, &means), (&mut std, &deviations)] {
            let pairs = running.iter_mut().zip(of_batch);
            pairs.for_each(|(running, new)| *running = keep * *running + (1.0 - keep) * new);
        }
        outcome.statistics(document, &name("running_mean"), mean.clone())?;
        outcome.statistics(document, &name("running_std"), std.clone())?;
    }
    if !outcome.refused.is_empty() {
        let last = |of: &str| format!("{of}_{}", steps - 1);
        mean = document.values(&last("running_mean"))?.to_vec();
        std = document.values(&last("running_std"))?.to_vec();
    }
    let var = to_vars(&std)?;
    outcome.statistics(document, "converted_var", var.clone())?;
    layer.set_running(&mean, &var)?;
    let evaluated = layer.infer("x_eval");
    if let Some(y) = outcome.is_served("evaluation", evaluated)? {
        let golden = [("y_eval", "y_eval")];
        let (mut case, _) = step(document, "x_eval", &golden)?;
        case.eps = to_eps;
        case.set("running_mean", mean);
        case.set("running_var", var);
        note(&mut outcome, &case, Tensors::from([("y_eval", y)]), &golden)?;
    }
    Ok(outcome)
}
