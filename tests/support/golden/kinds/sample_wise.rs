//! Kind `sample_wise`: forward and backward of layer normalization, by either of Keras 1's rules for eps.
use super::super::super::run;
use super::super::super::tolerance::Kind;
use super::super::Document;
use super::Outcome;
use anyhow::{Result, bail};
use batchnorm::{
    Element, Engine, EpsRule, LayerNorm, LayerNormConfig, LayerNormSaved, Memory, Real,
};

type Buf<G, T> = <<G as Engine>::Memory as Memory>::Buf<T>;

pub fn run<G: Engine, E: Element>(engine: &G, document: &Document) -> Result<Outcome> {
    let (shape, eps) = (document.shape_of("x")?, document.number("eps")?);
    let rule = match document.text("eps_rule")? {
        "outside" => EpsRule::Std,
        "twice" => EpsRule::Both,
        other => bail!("metadata: eps_rule: expected twice or outside, got {other:?}"),
    };
    let config = LayerNormConfig::default()
        .eps(eps)
        .eps_rule(rule)
        .weight(document.has("weight"))
        .bias(document.has("bias"));
    let mut layer = LayerNorm::<E::Acc, G>::new(engine, shape.channels(), config)?;
    for (name, param) in layer.named_parameters_mut() {
        param.value = upload::<G, E::Acc>(engine, document.values(name)?)?;
    }
    let x = upload::<G, E>(engine, document.values("x")?)?;
    let grad_y = upload::<G, E>(engine, document.values("grad_y")?)?;
    let mut outcome = Outcome::default();
    let step = step::<G, E>(&mut layer, document, &x, &grad_y);
    let Some((y, saved, grad_x)) = outcome.is_served("sample_wise", step)? else {
        return Ok(outcome);
    };
    let memory = engine.memory();
    let values = |buf: &Buf<G, E>| {
        Ok::<_, anyhow::Error>(run::widen(&memory.download(G::Memory::view(buf))?))
    };
    outcome.judge(document, "y", Kind::Element, values(&y)?)?;
    outcome.judge(document, "grad_x", Kind::Element, values(&grad_x)?)?;
    let rows = shape.len() / shape.channels();
    for (name, param) in layer.named_parameters() {
        let Some(grad) = param.grad() else { bail!("{name}: expected a gradient, got none") };
        let grad = run::widen(&memory.download(G::Memory::view(grad))?);
        outcome.judge(document, &format!("grad_{name}"), Kind::Sum(rows), grad)?;
    }
    let (Some(mean), Some(std)) = (saved.mean(), saved.std()) else { bail!("nothing was saved") };
    outcome.statistics(document, "row_mean", run::widen(&memory.download(mean)?))?;
    let inside = if rule == EpsRule::Std { 0.0 } else { eps };
    let var = memory.download(std)?.into_iter().map(|std| std.to_f64().powi(2) - inside);
    outcome.statistics(document, "row_var", var.collect())?;
    Ok(outcome)
}

#[allow(clippy::type_complexity)] // two tensors, and what was saved between them
fn step<G: Engine, E: Element>(
    layer: &mut LayerNorm<E::Acc, G>,
    document: &Document,
    x: &Buf<G, E>,
    grad_y: &Buf<G, E>,
) -> Result<(Buf<G, E>, LayerNormSaved<G::Memory, E::Acc>, Buf<G, E>)> {
    let view = G::Memory::view::<E>;
    let (y, saved) = layer.forward::<E>(&document.shape_of("x")?, view(x))?;
    let grad_x = layer.backward::<E>(&saved, view(x), view(grad_y))?;
    Ok((y, saved, grad_x))
}

fn upload<G: Engine, T: Element>(engine: &G, values: &[f64]) -> Result<Buf<G, T>> {
    let values: Vec<T> = values.iter().map(|&v| run::narrow(v)).collect();
    Ok(engine.memory().upload(&values)?)
}
