//! A batch in groups of neighbouring rows, each a batch of its own: the calls that come of one.
use super::{Backward, ForwardTrain, Input, Running};
use crate::{Element, Engine, Error, Memory, Result, Saved, Shape};
use std::ops::Range;

type M<G> = <G as Engine>::Memory;

/// The shapes of groups that lie one after the other, and the elements that each has.
fn placed(shapes: impl Iterator<Item = Shape>) -> impl Iterator<Item = (Shape, Range<usize>)> {
    shapes.scan(0, |at, shape| {
        let from = std::mem::replace(at, *at + shape.len());
        Some((shape, from..*at))
    })
}

fn present<T>(what: &'static str, part: Option<T>) -> Result<T> {
    part.ok_or_else(|| Error::invalid(what, "expected as many elements as all groups have"))
}

/// [`Engine::forward_train_groups`], one call after the other.
pub fn forward_train<E: Element, G: Engine>(
    engine: &G,
    groups: &[Shape],
    mut args: ForwardTrain<'_, G::Memory, E>,
    saved: &mut [Saved<G::Memory, E::Acc>],
    factors: &[(f64, f64)],
) -> Result<()> {
    let calls = placed(groups.iter().copied()).zip(saved).zip(factors);
    for (((shape, at), saved), factors) in calls {
        let x = present("x", M::<G>::slice(&args.x, at.clone()))?;
        let y = present("y", M::<G>::slice_mut(&mut args.y, at.clone()))?;
        let mut part = ForwardTrain::<M<G>, E>::new(x, y);
        let residual = args.residual.as_ref();
        let residual = residual.map(|r| present("residual", M::<G>::slice(r, at.clone())));
        part.residual = residual.transpose()?;
        let mask = args.mask.as_ref();
        part.mask = mask.map(|mask| mask.at(&at, shape.channels())).transpose()?;
        part.weight = args.weight.as_ref().map(M::<G>::reborrow);
        part.bias = args.bias.as_ref().map(M::<G>::reborrow);
        (part.activation, part.eps, part.one_value) = (args.activation, args.eps, args.one_value);
        part.running = args.running.as_mut().map(Running::reborrow);
        if let Some(running) = &mut part.running {
            (running.factor, running.var_factor) = *factors;
        }
        engine.forward_train(&shape, part.saved(saved).alone(args.alone))?;
    }
    Ok(())
}

/// [`Engine::backward_groups`], one call after the other.
pub fn backward<E: Element, G: Engine>(
    engine: &G,
    mut args: Backward<'_, G::Memory, E>,
) -> Result<()> {
    let Some((_, _, saved)) = args.saved.groups() else { return Ok(()) };
    let shapes = saved.iter().map_while(Saved::shape);
    for (k, ((shape, at), saved)) in placed(shapes).zip(saved).enumerate() {
        let x = present("x", M::<G>::slice(&args.x, at.clone()))?;
        let grad_y = match &args.grad_y {
            Input::View(all) => Input::View(present("grad_y", M::<G>::slice(all, at.clone()))?),
            Input::InPlace => Input::InPlace,
        };
        let mut part = Backward::<M<G>, E>::with_input(saved, x, grad_y);
        let residual = args.residual.as_ref();
        let residual = residual.map(|r| present("residual", M::<G>::slice(r, at.clone())));
        part.residual = residual.transpose()?;
        if let (Some(all), Some(rules)) = (&args.mask, saved.made()?.0.mask) {
            let at = rules.places_of(&at, shape.channels());
            part.mask = Some(present("mask", M::<G>::slice(all, at))?);
        }
        let grad_x = args.grad_x.as_mut();
        let grad_x = grad_x.map(|all| present("grad_x", M::<G>::slice_mut(all, at.clone())));
        part.grad_x = grad_x.transpose()?;
        let residual = args.grad_residual.as_mut();
        let residual =
            residual.map(|all| present("grad_residual", M::<G>::slice_mut(all, at.clone())));
        part.grad_residual = residual.transpose()?;
        part.grad_weight = args.grad_weight.as_mut().map(M::<G>::reborrow_mut);
        part.grad_bias = args.grad_bias.as_mut().map(M::<G>::reborrow_mut);
        engine.backward(&shape, part.accumulate(args.accumulate || k > 0))?;
    }
    Ok(())
}
