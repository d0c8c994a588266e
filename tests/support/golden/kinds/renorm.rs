//! Kind `renorm`: some training batches with renormalization, Keras' or the paper's, and an evaluation.
use super::super::super::tolerance::Kind;
use super::super::{Document, parameters_of};
use super::Outcome;
use super::vectors::{Buf, download, note_as, upload};
use anyhow::{Context, Result, bail};
use batchnorm::{
    BatchNorm, Config, Element, Engine, Memory, Momentum, Renorm, RenormClip, RenormStats,
};

pub fn run<G: Engine, E: Element>(engine: &G, document: &Document) -> Result<Outcome> {
    let renorm = match document.text("flavour")? {
        "keras3" => Renorm::keras().momentum(1.0 - document.number("renorm_momentum_keep")?),
        "paper" => Renorm::paper(1.0, 0.0),
        other => bail!("flavour: expected keras3 or paper, got {other:?}"),
    };
    let config = Config::default()
        .weight(document.has("weight"))
        .bias(document.has("bias"))
        .eps(document.number("eps")?)
        .momentum(Momentum::keeping(document.number("momentum_keep")?))
        .renorm(renorm.clip(clip(document, 0)?));
    let shape = document.shape_of("x_0")?;
    let mut bn = BatchNorm::<E::Acc, G>::new(engine, shape.channels(), config)?;
    for (name, param) in bn.named_parameters_mut() {
        param.value = upload::<G, E::Acc>(engine, document.values(name)?)?;
    }
    start::<G, E>(engine, document, &mut bn)?;
    let mut outcome = Outcome::default();
    let steps = document.count("steps")?;
    for i in 0..steps {
        bn.set_renorm_clip(clip(document, i)?)?;
        let name = |of: &str| format!("{of}_{i}");
        let (x, grad_y) = (tensor::<G, E>(engine, document, &name("x"))?, name("grad_y"));
        let forward = bn.forward(&shape, G::Memory::view(&x)).map_err(Into::into);
        let Some((y, saved)) = outcome.is_served("training", forward)? else { break };
        let as_elements = (document.dtype, Kind::Element, 0.0);
        note_as(&mut outcome, document, &name("y"), download::<G, E>(engine, &y)?, as_elements)?;
        bn.zero_grad();
        let grad_y = tensor::<G, E>(engine, document, &grad_y)?;
        let grad_x = bn.backward(&saved, G::Memory::view(&x), G::Memory::view(&grad_y))?;
        let grad_x = download::<G, E>(engine, &grad_x)?;
        note_as(&mut outcome, document, &name("grad_x"), grad_x, as_elements)?;
        let sums = (parameters_of(document.dtype), Kind::Sum(shape.per_channel()), 0.0);
        for (of, param) in bn.named_parameters() {
            let grad = param.grad().context("a gradient")?;
            let grad = download::<G, E::Acc>(engine, grad)?;
            note_as(&mut outcome, document, &name(&format!("grad_{of}")), grad, sums)?;
        }
        for (of, buf) in vectors(&bn)? {
            outcome.statistics(document, &name(of), download::<G, E::Acc>(engine, buf)?)?;
        }
    }
    if outcome.refused.is_empty() {
        bn.eval();
        let x = tensor::<G, E>(engine, document, "x_eval")?;
        let y = bn.infer(&document.shape_of("x_eval")?, G::Memory::view(&x))?;
        let y = download::<G, E>(engine, &y)?;
        note_as(&mut outcome, document, "y_eval", y, (document.dtype, Kind::Element, 0.0))?;
    }
    Ok(outcome)
}

fn tensor<G: Engine, E: Element>(engine: &G, document: &Document, name: &str) -> Result<Buf<G, E>> {
    upload::<G, E>(engine, document.values(name)?)
}

/// Where the kept statistics start.
fn start<G: Engine, E: Element>(
    engine: &G,
    document: &Document,
    bn: &mut BatchNorm<E::Acc, G>,
) -> Result<()> {
    let up = |name: &str| upload::<G, E::Acc>(engine, document.values(name)?);
    let running = bn.running_mut().context("a layer with running statistics")?;
    running.mean = up("moving_mean")?;
    let kept = running.renorm.as_mut().context("a layer with renormalization")?;
    kept.moving_stddev = up("moving_stddev")?;
    if kept.renorm_mean.is_some() {
        kept.renorm_mean = Some(up("renorm_mean")?);
        kept.renorm_stddev = Some(up("renorm_stddev")?);
    }
    Ok(())
}

/// All that is kept, by its golden names.
fn vectors<P: batchnorm::Real, G: Engine>(
    bn: &BatchNorm<P, G>,
) -> Result<Vec<(&'static str, &Buf<G, P>)>> {
    let running = bn.running().context("a layer with running statistics")?;
    let RenormStats { moving_stddev, renorm_mean, renorm_stddev, .. } =
        running.renorm.as_ref().context("a layer with renormalization")?;
    let mut all = vec![
        ("moving_mean", &running.mean),
        ("moving_variance", &running.var),
        ("moving_stddev", moving_stddev),
    ];
    all.extend(renorm_mean.as_ref().map(|mean| ("renorm_mean", mean)));
    all.extend(renorm_stddev.as_ref().map(|stddev| ("renorm_stddev", stddev)));
    Ok(all)
}

/// The bounds of a step: one for all, or one of each.
fn clip(document: &Document, step: usize) -> Result<RenormClip> {
    let bound = |key: &str| -> Result<Option<f64>> {
        let value = document.value(key)?;
        Ok(value.as_array().map_or(Some(value), |all| all.get(step)).and_then(|v| v.as_f64()))
    };
    let mut clip = RenormClip::NONE;
    (clip.r_min, clip.r_max, clip.d_max) = (bound("rmin")?, bound("rmax")?, bound("dmax")?);
    Ok(clip)
}
