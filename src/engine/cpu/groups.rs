//! Groups of a batch's rows, each a batch of its own: at once, where each is too little for all threads. A thread
//! takes a group from its first pass to its last, and what groups have in common comes after, in their order: the
//! bits are those of one call after the other.
use super::backward::{Results, backward as backward_one};
use super::forward::forward_train as forward_one;
use super::ghost;
use super::kernels::masked::number;
use super::policy::{ENOUGH_TASKS, SMALL, TASK};
use super::tiles::at_once;
use super::{Cpu, update_by};
use crate::engine::places::Places;
use crate::engine::{Activation, Backward, ForwardTrain, Grouping, Input, OneValue, ops};
use crate::{Element, Host, Mask, Result, Saved, Shape};

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

/// What the forwards of all groups have in common.
struct Common<'a, E: Element> {
    pub weight: Option<&'a [E::Acc]>,
    pub bias: Option<&'a [E::Acc]>,
    pub activation: Activation,
    pub eps: f64,
    pub one_value: OneValue,
}

/// A group of a forward.
struct Group<'a, E: Element> {
    pub shape: Shape,
    pub x: &'a [E],
    pub residual: Option<&'a [E]>,
    pub mask: Option<Mask<'a, Host>>,
    pub y: &'a mut [E],
    pub saved: &'a mut Saved<Host, E::Acc>,
    /// Of every channel the mean, then the sum of squares.
    pub kept: &'a mut [f64],
}

impl<E: Element> Common<'_, E> {
    /// The forward of a group.
    pub fn part<'g>(
        &'g self,
        (x, residual, mask): (&'g [E], Option<&'g [E]>, Option<&'g Mask<'_, Host>>),
        y: &'g mut [E],
        saved: &'g mut Saved<Host, E::Acc>,
    ) -> ForwardTrain<'g, Host, E> {
        let mut part = ForwardTrain::<Host, E>::new(x, y);
        (part.residual, part.mask) = (residual, mask.map(Mask::reborrow));
        (part.weight, part.bias) = (self.weight, self.bias);
        (part.activation, part.eps, part.one_value) = (self.activation, self.eps, self.one_value);
        part.saved(saved)
    }
}

pub(super) fn forward_train<E: Element>(
    cpu: &Cpu,
    groups: &[Shape],
    mut args: ForwardTrain<'_, Host, E>,
    saved: &mut [Saved<Host, E::Acc>],
    factors: &[(f64, f64)],
) -> Result<()> {
    // Of places without the last axis each channel has a count of its own.
    let is_served = args.mask.as_ref().is_none_or(|mask| {
        let places = groups.first().map(|shape| Places::new(shape, mask.last));
        matches!(places, Some(Ok(Places::Positions { .. })))
    });
    let (Some(together), true) = (together(groups.iter().copied()), is_served) else {
        return ops::groups::forward_train(cpu, groups, args, saved, factors);
    };
    let (simd, channels, one_value) = (cpu.simd()?, groups[0].channels(), args.one_value);
    let mut running = args.running.take();
    let ForwardTrain { weight, bias, activation, eps, .. } = args;
    let common = Common { weight, bias, activation, eps, one_value };
    cpu.with_workspace(groups.len() * 2 * channels, |kept| {
        let (mut rest, mut at) = (&mut *args.y, 0);
        let calls = groups.iter().zip(saved).zip(kept.chunks_mut(2 * channels));
        let calls = calls.map(|((shape, saved), kept)| {
            let here = at..at + shape.len();
            at = here.end;
            let y = take(&mut rest, shape.len());
            let residual = args.residual.map(|residual| &residual[here.clone()]);
            let mask = args.mask.as_ref().map(|mask| mask.at(&here, channels)).transpose()?;
            Ok(Group { shape: *shape, x: &args.x[here], residual, mask, y, saved, kept })
        });
        let mut calls = calls.collect::<Result<Vec<_>>>()?;
        at_once(&mut calls, together, |group| {
            let Group { shape, x, residual, mask, y, saved, kept } = group;
            let part = common.part((x, *residual, mask.as_ref()), y, saved);
            forward_one(cpu, shape, part, Some(kept))
        })?;
        for (Group { shape, mask, kept, .. }, factors) in calls.iter().zip(factors) {
            let Some(running) = &mut running else { break };
            (running.factor, running.var_factor) = *factors;
            let (means, squares) = kept.split_at(channels);
            let Some(mask) = mask else {
                let m = shape.per_channel() as f64;
                update_by(simd, running, m, (means, None), squares, one_value);
                continue;
            };
            let (count, rules) = (number(simd, mask.places) as f64, (one_value, mask.all_masked));
            for (c, (mean, squares)) in means.iter().zip(squares).enumerate() {
                let var_over = |over: f64| squares / (over + mask.count_eps);
                running.update_masked(c, count, *mean, var_over, rules);
            }
        }
        Ok(())
    })
}

/// A group of a backward.
struct Gradient<'a, E: Element> {
    pub shape: Shape,
    pub saved: &'a Saved<Host, E::Acc>,
    pub x: &'a [E],
    pub residual: Option<&'a [E]>,
    pub mask: Option<&'a [u8]>,
    pub grad_y: Input<&'a [E]>,
    pub grad_x: Option<&'a mut [E]>,
    pub grad_residual: Option<&'a mut [E]>,
    /// Of every channel both sums.
    pub kept: &'a mut [f64],
}

pub(super) fn backward<E: Element>(cpu: &Cpu, mut args: Backward<'_, Host, E>) -> Result<()> {
    let Some((forward, grouping, saved)) = args.saved.groups() else { return Ok(()) };
    if let (Grouping::AtOnce(groups), [saved]) = (grouping, saved) {
        return ghost::backward(cpu, groups, saved, args);
    }
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
            let residual = residual.map(|residual| &residual[here.clone()]);
            let grad_x = grad_x.as_mut().map(|all| take(all, shape.len()));
            let grad_residual = grad_residual.as_mut().map(|all| take(all, shape.len()));
            let mask = args.mask.zip(forward.mask);
            let mask = mask.map(|(all, rules)| &all[rules.places_of(&here, channels)]);
            let x = &x[here];
            Ok(Gradient { shape, saved, x, residual, mask, grad_y, grad_x, grad_residual, kept })
        });
        let mut calls = calls.collect::<Result<Vec<_>>>()?;
        at_once(&mut calls, together, |group| {
            let grad_y = group.grad_y.as_ref();
            let mut part =
                Backward::<Host, E>::with_input(group.saved, group.x, grad_y.map(|y| *y));
            (part.residual, part.mask) = (group.residual, group.mask);
            part.grad_x = group.grad_x.as_deref_mut();
            part.grad_residual = group.grad_residual.as_deref_mut();
            backward_one(cpu, &group.shape, part, Some(&mut *group.kept))
        })?;
        let mut results = Results {
            sums: None,
            grad_weight: args.grad_weight,
            grad_bias: args.grad_bias,
            kept: None,
            accumulate: args.accumulate,
        };
        for Gradient { shape, kept, .. } in &calls {
            results.set(simd, shape, kept.split_at(channels));
            results.accumulate = true;
        }
        Ok(())
    })
}
