//! Groups of a batch's rows, each a batch of its own: at once, where each is too little for all threads. A thread
//! takes a group from its first pass to its last, and what groups have in common comes after, in their order: the
//! bits are those of one call after the other.
use super::backward::{Results, backward as backward_one};
use super::forward::forward_train as forward_one;
use super::policy::{ENOUGH_TASKS, SMALL, TASK};
use super::tiles::at_once;
use super::{Cpu, update_by};
use crate::engine::{Backward, ForwardTrain, Input, ops};
use crate::{Element, Host, Result, Saved, Shape};

/// A group of so many elements is work for one thread if there are enough groups.
const MOST: usize = 16 * TASK;

/// How many groups a thread takes at a time; none where they go one after the other.
fn together(shapes: impl Iterator<Item = Shape>) -> Option<usize> {
    let (mut groups, mut most, mut least) = (0, 0, usize::MAX);
    for shape in shapes {
        (groups, most, least) = (groups + 1, most.max(shape.len()), least.min(shape.len()));
    }
    let is_share = most <= SMALL || groups >= ENOUGH_TASKS && most <= MOST;
    (groups > 1 && least > 0 && is_share).then(|| (TASK / 4 / most).max(1))
}

/// Some elements of a tensor that is written, which has more.
fn take<'a, E>(rest: &mut &'a mut [E], len: usize) -> &'a mut [E] {
    let (these, others) = std::mem::take(rest).split_at_mut(len);
    *rest = others;
    these
}

pub(super) fn forward_train<E: Element>(
    cpu: &Cpu,
    groups: &[Shape],
    mut args: ForwardTrain<'_, Host, E>,
    saved: &mut [Saved<Host, E::Acc>],
    factors: &[(f64, f64)],
) -> Result<()> {
    let (Some(together), None) = (together(groups.iter().copied()), &args.mask) else {
        return ops::groups::forward_train(cpu, groups, args, saved, factors);
    };
    let (simd, channels, one_value) = (cpu.simd()?, groups[0].channels(), args.one_value);
    let mut running = args.running.take();
    cpu.with_workspace(groups.len() * 2 * channels, |kept| {
        let mut rest = &mut *args.y;
        let mut at = 0;
        let calls = groups.iter().zip(saved).zip(kept.chunks_mut(2 * channels));
        let calls = calls.map(|((shape, saved), kept)| {
            let here = at..at + shape.len();
            at = here.end;
            let y = take(&mut rest, shape.len());
            let mut part = ForwardTrain::<Host, E>::new(&args.x[here.clone()], y);
            part.residual = args.residual.map(|residual| &residual[here]);
            (part.weight, part.bias) = (args.weight, args.bias);
            (part.activation, part.eps, part.one_value) = (args.activation, args.eps, one_value);
            (shape, Some(part.saved(saved)), kept)
        });
        let mut calls: Vec<_> = calls.collect();
        at_once(&mut calls, together, |(shape, part, kept)| {
            part.take().map_or(Ok(()), |part| forward_one(cpu, shape, part, Some(kept)))
        })?;
        for ((shape, _, kept), factors) in calls.iter().zip(factors) {
            if let Some(running) = &mut running {
                (running.factor, running.var_factor) = *factors;
            }
            let (means, squares) = kept.split_at(channels);
            let m = shape.per_channel() as f64;
            let mean = |k: usize| means[k];
            update_by(simd, &mut running, 0..channels, m, mean, squares, one_value);
        }
        Ok(())
    })
}

pub(super) fn backward<E: Element>(cpu: &Cpu, mut args: Backward<'_, Host, E>) -> Result<()> {
    let Some((forward, _, saved)) = args.saved.groups() else { return Ok(()) };
    let Some(together) = together(saved.iter().filter_map(Saved::shape)) else {
        return ops::groups::backward(cpu, args);
    };
    let (simd, channels) = (cpu.simd()?, forward.shape.channels());
    cpu.with_workspace(saved.len() * 2 * channels, |kept| {
        let (mut grad_x, mut grad_residual) = (args.grad_x.take(), args.grad_residual.take());
        let (x, residual) = (args.x, args.residual);
        let grad_y = args.grad_y.as_ref();
        let mut at = 0;
        let calls = saved.iter().zip(kept.chunks_mut(2 * channels)).map(|(saved, kept)| {
            let shape = saved.made()?.0.shape;
            let here = at..at + shape.len();
            at = here.end;
            let grad_y = match grad_y {
                Input::View(grad_y) => Input::View(&grad_y[here.clone()]),
                Input::InPlace => Input::InPlace,
            };
            let mut part = Backward::<Host, E>::with_input(saved, &x[here.clone()], grad_y);
            part.residual = residual.map(|residual| &residual[here]);
            part.grad_x = grad_x.as_mut().map(|all| take(all, shape.len()));
            part.grad_residual = grad_residual.as_mut().map(|all| take(all, shape.len()));
            Ok((shape, Some(part), kept))
        });
        let mut calls = calls.collect::<Result<Vec<_>>>()?;
        at_once(&mut calls, together, |(shape, part, kept)| {
            part.take().map_or(Ok(()), |part| backward_one(cpu, shape, part, Some(kept)))
        })?;
        let mut results = Results {
            sums: None,
            grad_weight: args.grad_weight,
            grad_bias: args.grad_bias,
            kept: None,
            accumulate: args.accumulate,
        };
        for (shape, _, kept) in &calls {
            results.set(simd, shape, 0..channels, kept.split_at(channels));
            results.accumulate = true;
        }
        Ok(())
    })
}
