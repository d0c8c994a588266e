//! Kind `ghost`: groups of rows, each a batch of its own, with running statistics by either rule.
use super::super::super::tolerance::Kind;
use super::super::{Document, Tensors, parameters_of};
use super::Outcome;
use super::layer::Layer;
use super::vectors::note_as;
use anyhow::{Result, bail};
use batchnorm::{Config, Element, Engine, Ghost, GhostRemainder, GhostUpdate, Momentum, Variance};

pub fn run<G: Engine, E: Element>(engine: &G, document: &Document) -> Result<Outcome> {
    let momentum = Momentum::Exponential(document.number("momentum")?);
    let config = Config::default().momentum(momentum);
    let ghost = ghost(document)?;
    let mut outcome = Outcome::default();
    for (update, variance, rule) in [
        (GhostUpdate::Sequential, Variance::Unbiased, "sequential"),
        (GhostUpdate::Average, Variance::Biased, "average"),
    ] {
        let config = config.ghost(ghost.update(update)).variance(variance);
        let mut layer = Layer::<G, E>::new(engine, document, "x", config)?;
        let forward = layer.forward("x", "no residual");
        let Some((y, saved)) = outcome.is_served(rule, forward)? else { continue };
        let (mean, var) = layer.running()?;
        outcome.statistics(document, &format!("new_running_mean_{rule}"), mean)?;
        outcome.statistics(document, &format!("new_running_var_{rule}"), var)?;
        if update != GhostUpdate::Sequential {
            continue;
        }
        let as_elements = (document.dtype, Kind::Element, 0.0);
        note_as(&mut outcome, document, "y", y, as_elements)?;
        let mut computed = Tensors::new();
        let names = ["grad_x", "grad_residual", "grad_weight", "grad_bias"];
        let backward = layer.backward(&saved, names, &mut computed);
        if outcome.is_served("backward", backward)?.is_none() {
            continue;
        }
        let sums = Kind::Sum(document.shape_of("x")?.per_channel());
        for (name, values) in computed {
            let by = match name {
                "grad_x" => as_elements,
                _ => (parameters_of(document.dtype), sums, 0.0),
            };
            note_as(&mut outcome, document, name, values, by)?;
        }
    }
    Ok(outcome)
}

/// The groups by their sizes, which say what became of a rest.
fn ghost(document: &Document) -> Result<Ghost> {
    let size = document.count("virtual_batch_size")?;
    let sizes = document.value("sizes")?.as_array().cloned().unwrap_or_default();
    let sizes: Vec<usize> = sizes.iter().filter_map(|s| s.as_u64()).map(|s| s as usize).collect();
    let rows: usize = sizes.iter().sum();
    let sizes_of = |size: usize| -> Vec<usize> {
        (0..rows).step_by(size).map(|from| size.min(rows - from)).collect()
    };
    let ghost = match document.text("assignment")? {
        "strided" if rows / size == sizes.len() => return Ok(Ghost::strided(size)),
        "consecutive" => Ghost::consecutive(size),
        other => {
            bail!("assignment: expected consecutive, or strided without a rest, got {other:?}")
        }
    };
    let remainder = match (rows % size, &sizes) {
        (0, sizes) if *sizes == sizes_of(size) => GhostRemainder::Even,
        (_, sizes) if *sizes == sizes_of(size) => GhostRemainder::ShortLast,
        (_, sizes) if *sizes == sizes_of(rows.div_ceil(rows.div_ceil(size))) => {
            GhostRemainder::Chunk
        }
        _ => bail!("sizes: expected those of a policy for {rows} rows by {size}, got {sizes:?}"),
    };
    Ok(ghost.remainder(remainder))
}
