//! Kind `steps`: some training batches, each of which moves the running statistics by a system's rule, and an
//! evaluation by where they end.
use super::super::{Document, Tensors};
use super::Outcome;
use super::layer::{Layer, note, set_batch_statistics, step};
use anyhow::{Result, bail};
use batchnorm::{Config, Element, Engine, Momentum, Variance};

pub fn run<G: Engine, E: Element>(engine: &G, document: &Document) -> Result<Outcome> {
    let mut layer = Layer::<G, E>::new(engine, document, "x_0", config(document)?)?;
    let mut outcome = Outcome::default();
    let steps = document.count("steps")?;
    for i in 0..steps {
        let name = |of: &str| format!("{of}_{i}");
        let (x, y) = (name("x"), name("y"));
        let forward = layer.forward(&x, "no residual");
        let Some((computed, _)) = outcome.is_served("training", forward)? else { break };
        let golden = [("y", y.as_str())];
        let (mut case, _) = step(document, &x, &golden)?;
        set_batch_statistics(&mut case)?;
        note(&mut outcome, &case, Tensors::from([("y", computed)]), &golden)?;
        let (mean, var) = layer.running()?;
        outcome.statistics(document, &name("running_mean"), mean)?;
        outcome.statistics(document, &name("running_var"), var)?;
    }
    let last = |of: &str| format!("{of}_{}", steps - 1);
    let (mean, var) = (last("running_mean"), last("running_var"));
    if !outcome.refused.is_empty() {
        let values = |name: &str| document.values(name).map(<[f64]>::to_vec);
        layer.set_running(&values(&mean)?, &values(&var)?)?;
    }
    layer.bn.eval();
    let golden = [("y_eval", "y_eval"), ("running_mean", &mean), ("running_var", &var)];
    let evaluated = layer.infer("x_eval");
    if let Some(y) = outcome.is_served("evaluation", evaluated)? {
        let (case, _) = step(document, "x_eval", &golden)?;
        note(&mut outcome, &case, Tensors::from([("y_eval", y)]), &golden)?;
    }
    Ok(outcome)
}

/// How the running statistics of such a case move.
pub fn config(document: &Document) -> Result<Config> {
    Ok(Config::default().momentum(momentum(document)?).variance(variance(document)?))
}

fn momentum(document: &Document) -> Result<Momentum> {
    Ok(match document.text("rule")? {
        "ema" => {
            let [mean, var] = ["mean_weight_new", "var_weight_new"].map(|key| document.number(key));
            let (mean, var) = (mean?, var?);
            if mean == var { Momentum::Exponential(mean) } else { Momentum::Separate { mean, var } }
        }
        "cumulative" => Momentum::Cumulative,
        "debiased" => Momentum::Debiased { decay: document.number("momentum_keep")? },
        other => bail!("metadata: rule: expected ema, cumulative or debiased, got {other:?}"),
    })
}

fn variance(document: &Document) -> Result<Variance> {
    Ok(match document.text("running_var")? {
        "biased" => Variance::Biased,
        "unbiased" => Variance::Unbiased,
        other => bail!("metadata: running_var: expected biased or unbiased, got {other:?}"),
    })
}
