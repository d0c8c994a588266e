//! Kind `double_backward`: the gradients of a backward, for a loss that is made of all of its results.
use super::super::super::tolerance::Kind;
use super::super::{Document, Tensors, narrow};
use super::Outcome;
use super::layer::Layer;
use anyhow::Result;
use batchnorm::{Config, DoubleBackward, Element, Engine, Mask, Memory};

pub fn run<G: Engine, E: Element>(engine: &G, document: &Document) -> Result<Outcome> {
    let training = document.value("training")?.as_bool().unwrap_or(true);
    let config = Config::default().track_running_stats(document.has("running_mean"));
    let mut layer = Layer::<G, E>::new(engine, document, "x", config)?;
    layer.bn.train(training);
    let mut outcome = Outcome::default();
    let places = match document.has("mask") {
        true => {
            let bytes = document.values("mask")?.iter().map(|value| *value as u8);
            Some(engine.memory().upload(&bytes.collect::<Vec<u8>>())?)
        }
        false => None,
    };
    let forward = match &places {
        Some(places) => {
            let mut mask =
                Mask::new(G::Memory::view(places)).count_eps(document.number("mask_eps")?);
            if document.value("mask_without_last")?.as_bool() == Some(true) {
                mask.last = document.tensor("x")?.dims.last().copied();
            }
            let x = layer.upload("x")?;
            let forward =
                layer.bn.forward_masked(&document.shape_of("x")?, G::Memory::view(&x), mask);
            forward.map_err(Into::into).and_then(|(y, saved)| Ok((layer.download(&y)?, saved)))
        }
        None => layer.forward("x", "residual"),
    };
    let Some((y, saved)) = outcome.is_served("forward", forward)? else { return Ok(outcome) };
    let names = ["grad_x", "grad_residual", "grad_weight", "grad_bias"];
    let mut computed = Tensors::from([("y", y)]);
    let backward = match &places {
        Some(places) => {
            let (x, grad_y) = (layer.upload("x")?, layer.upload("grad_y")?);
            let (x, grad_y) = (G::Memory::view(&x), G::Memory::view(&grad_y));
            let grad_x = layer.bn.backward_masked(&saved, x, G::Memory::view(places), grad_y);
            grad_x.map_err(Into::into).and_then(|grad_x| {
                computed.insert(names[0], layer.download(&grad_x)?);
                for (name, param) in layer.bn.named_parameters() {
                    let name = names[if name == "weight" { 2 } else { 3 }];
                    let grad = param.grad().map(|grad| layer.download(grad)).transpose()?;
                    grad.and_then(|grad| computed.insert(name, grad));
                }
                Ok(())
            })
        }
        None => layer.backward(&saved, names, &mut computed),
    };
    outcome.is_served("backward", backward)?;
    let sum = Kind::Sum(document.shape_of("x")?.per_channel());
    for (name, values) in computed.into_iter().filter(|(name, _)| document.has(name)) {
        let kind = if names[2..].contains(&name) { sum } else { Kind::Element };
        outcome.judge(document, name, kind, values)?;
    }

    let (memory, shape) = (engine.memory(), document.shape_of("x")?);
    let some = |name: &str| document.has(name).then(|| layer.upload(name)).transpose();
    let of_channels = |name: &str| -> Result<_> {
        let values = document.has(name).then(|| document.values(name)).transpose()?;
        let values =
            values.map(|values| values.iter().map(|&v| narrow(v)).collect::<Vec<E::Acc>>());
        Ok(values.map(|values| memory.upload(&values)).transpose()?)
    };
    let (x, grad_y, residual) = (layer.upload("x")?, layer.upload("grad_y")?, some("residual")?);
    let (v_x, v_residual) = (some("v_x")?, some("v_residual")?);
    let (v_weight, v_bias) = (of_channels("v_weight")?, of_channels("v_bias")?);
    let (mut gg_grad_y, mut gg_x) = (memory.zeros(shape.len())?, memory.zeros(shape.len())?);
    let mut gg_residual = memory.zeros(shape.len())?;
    let mut args =
        DoubleBackward::<G::Memory, E>::new(&saved, G::Memory::view(&x), G::Memory::view(&grad_y));
    args.mask = places.as_ref().map(G::Memory::view);
    args.residual = residual.as_ref().map(G::Memory::view);
    args.v_x = v_x.as_ref().map(G::Memory::view);
    args.v_residual = v_residual.as_ref().map(G::Memory::view);
    args.v_weight = v_weight.as_ref().map(G::Memory::view);
    args.v_bias = v_bias.as_ref().map(G::Memory::view);
    args.gg_residual = residual.is_some().then(|| G::Memory::view_mut(&mut gg_residual));
    let args =
        args.gg_grad_y(G::Memory::view_mut(&mut gg_grad_y)).gg_x(G::Memory::view_mut(&mut gg_x));
    layer.bn.zero_grad();
    let done = layer.bn.double_backward_into(args).map_err(Into::into);
    if outcome.is_served("double backward", done)?.is_none() {
        return Ok(outcome);
    }
    let tensors = [("gg_grad_y", &gg_grad_y), ("gg_x", &gg_x), ("gg_residual", &gg_residual)];
    for (name, tensor) in tensors.into_iter().filter(|(name, _)| document.has(name)) {
        outcome.judge(document, name, Kind::Element, layer.download(tensor)?)?;
    }
    for (name, param) in layer.bn.named_parameters() {
        let (name, grad) = (format!("gg_{name}"), param.grad());
        if let Some(grad) = grad.filter(|_| document.has(&name)) {
            outcome.judge(document, &name, sum, layer.download(grad)?)?;
        }
    }
    Ok(outcome)
}
