//! The backward: that of every unit as a part of its group's batch, by the sums of all.
use super::super::Cpu;
use super::super::backward::backward as backward_one;
use super::super::kernels::sums;
use super::super::simd::Simd;
use super::super::tiles::at_once;
use super::{Cut, Rows, RowsMut, refused};
use crate::engine::saved::{Buffers, ByChannel, Forward, Opened};
use crate::engine::{Backward, Derivative, Input};
use crate::{Element, Host, Real, Result, Saved, Shape};
use std::ops::Range;

pub(in super::super) fn backward<E: Element>(
    cpu: &Cpu,
    shape: &Shape,
    mut args: Backward<'_, Host, E>,
) -> Result<()> {
    args.check(cpu, shape)?;
    if args.sums.is_some() || args.total_sums.is_some() {
        return Err(refused("sums of a part of a batch"));
    }
    let simd = cpu.simd()?;
    let cut = &Cut::new(shape);
    let (forward, saved) = args.saved.made()?;
    let grad_y = match args.grad_y {
        Input::View(grad_y) => Some(Rows::new(cut, grad_y)),
        Input::InPlace => None,
    };
    let task = Task {
        cpu,
        simd,
        cut,
        of: OfGroups::new(cut, forward, saved),
        x: Rows::new(cut, args.x),
        residual: args.residual.map(|residual| Rows::new(cut, residual)),
        grad_y,
        accumulates: args.accumulate,
    };
    let mut grad_x = RowsMut::deal_some(cut, args.grad_x);
    let mut grad_residual = RowsMut::deal_some(cut, args.grad_residual);
    let mut weights = args.grad_weight.map(|all| all.chunks_mut(cut.channels()));
    let mut biases = args.grad_bias.map(|all| all.chunks_mut(cut.channels()));
    let group = |number: usize| {
        let shares = (0..cut.shares()).map(|share| Share {
            group: number,
            rows: cut.share(share),
            grad_x: grad_x.next().flatten(),
            grad_residual: grad_residual.next().flatten(),
        });
        Group {
            shares: shares.collect(),
            grad_weight: weights.as_mut().and_then(Iterator::next),
            grad_bias: biases.as_mut().and_then(Iterator::next),
        }
    };
    task.run((0..cut.groups).map(group).collect())
}

/// What the forward has left of all groups.
#[derive(Clone, Copy)]
pub(super) struct OfGroups<'a, P: Real> {
    cut: &'a Cut,
    forward: &'a Forward,
    saved: &'a Buffers<Host, P>,
}

impl<'a, P: Real> OfGroups<'a, P> {
    pub fn new(cut: &'a Cut, forward: &'a Forward, saved: &'a Buffers<Host, P>) -> Self {
        Self { cut, forward, saved }
    }
    /// What a forward of some units of a group would have left, of one after the other.
    pub fn of(self, group: usize) -> OfUnits<'a, P> {
        OfUnits { all: self, group, saved: Saved::new(), is_new: true }
    }
}

/// What a forward of units of a group would have left.
pub(super) struct OfUnits<'a, P: Real> {
    all: OfGroups<'a, P>,
    group: usize,
    saved: Saved<Host, P>,
    is_new: bool,
}

impl<P: Real> OfUnits<'_, P> {
    /// Of the unit of these rows.
    pub fn of(&mut self, rows: Range<usize>) -> Result<&Saved<Host, P>> {
        let OfGroups { cut, forward, saved } = self.all;
        let takes = forward.activation.derivative_from(forward.residual);
        let masks = saved.reserve.as_ref().filter(|_| takes == Derivative::FromMask);
        // Room for those of any unit, so that what there is remains.
        let mask_len = if masks.is_some() { cut.mask_of(cut.unit) } else { 0 };
        let own = Forward { shape: cut.shape(rows.len()), ..*forward };
        let to = self.saved.open(&Host, own, mask_len).map(Opened::filled)?;
        if std::mem::take(&mut self.is_new) {
            let channels = cut.channels_of(self.group);
            let ByChannel { mean, mean_rest, invstd, weight, bias } = saved.by_channel();
            let from = [mean, mean_rest, invstd, weight, bias];
            let ByChannel { mean, mean_rest, invstd, weight, bias } = to.by_channel_mut();
            let to = [mean, mean_rest, invstd, weight, bias];
            to.into_iter().zip(from).for_each(|(to, of)| to.copy_from_slice(&of[channels.clone()]));
        }
        if let (Some(masks), Some(to)) = (masks, &mut to.reserve) {
            let len = cut.mask_of(rows.len());
            let before = self.group * cut.masks_of(cut.rows) + cut.masks_of(rows.start);
            to[..len].copy_from_slice(&masks[before..before + len]);
        }
        Ok(&self.saved)
    }
}

/// A group, and the gradients of its parameters.
struct Group<'a, E: Element> {
    shares: Vec<Share<'a, E>>,
    grad_weight: Option<&'a mut [E::Acc]>,
    grad_bias: Option<&'a mut [E::Acc]>,
}

/// Some rows of a group.
struct Share<'a, E> {
    group: usize,
    rows: Range<usize>,
    grad_x: Option<RowsMut<'a, E>>,
    grad_residual: Option<RowsMut<'a, E>>,
}

/// What all groups have in common.
struct Task<'a, E: Element> {
    cpu: &'a Cpu,
    simd: Simd,
    cut: &'a Cut,
    of: OfGroups<'a, E::Acc>,
    x: Rows<'a, E>,
    residual: Option<Rows<'a, E>>,
    /// Absent where `grad_x` holds it.
    grad_y: Option<Rows<'a, E>>,
    accumulates: bool,
}

impl<E: Element> Task<'_, E> {
    fn run(&self, mut groups: Vec<Group<'_, E>>) -> Result<()> {
        let (cut, n, together) = (self.cut, self.cut.channels(), self.cut.together());
        if cut.shares() == 1 {
            return at_once(&mut groups, together, |group| {
                self.cpu.with_workspace(2 * n, |sums| {
                    for share in &group.shares {
                        self.reduce(share, sums)?;
                    }
                    let total = self.finish(group, sums);
                    group.shares.iter_mut().try_for_each(|share| self.write(share, &total))
                })
            });
        }
        let of_group = 2 * n * cut.shares();
        self.cpu.with_workspace(groups.len() * of_group, |sums| {
            let shares = groups.iter().flat_map(|group| &group.shares);
            let mut calls: Vec<_> = shares.zip(sums.chunks_mut(2 * n)).collect();
            at_once(&mut calls, together, |(share, sums)| self.reduce(share, sums))?;
            let totals = groups.iter_mut().zip(sums.chunks_mut(of_group));
            let totals: Vec<_> = totals.map(|(group, sums)| self.finish(group, sums)).collect();
            let shares = groups.iter_mut().zip(&totals);
            let shares = shares.flat_map(|(group, total)| {
                group.shares.iter_mut().map(move |share| (share, total))
            });
            let mut calls: Vec<_> = shares.collect();
            at_once(&mut calls, together, |(share, total)| self.write(share, total))
        })
    }

    /// The first pass over a share: `sum(g)` of every channel, then `sum(g * xhat)`.
    fn reduce(&self, share: &Share<'_, E>, sums: &mut [f64]) -> Result<()> {
        let Self { cpu, simd, cut, .. } = *self;
        let (side_len, n) = (cut.side_len::<E>(3), cut.channels());
        sums.fill(0.0);
        let mut of_units = self.of.of(share.group);
        cpu.with_workspace(side_len + 2 * n, |memory| {
            let (sides, own) = memory.split_at_mut(side_len);
            let [of_x, of_residual, of_y] = cut.sides(sides);
            for rows in cut.units(share.rows.clone()) {
                let saved = of_units.of(rows.clone())?;
                let x = self.x.unit(share.group, rows.clone(), of_x);
                let number = rows.start - share.rows.start..rows.end - share.rows.start;
                let grad_y: &[E] = match (self.grad_y, &share.grad_x) {
                    (Some(all), _) => all.unit(share.group, rows.clone(), of_y),
                    (None, Some(held)) => held.unit(number, of_y),
                    (None, None) => &[],
                };
                let mut part = Backward::<Host, E>::new(saved, x, grad_y);
                let residual = self.residual;
                part.residual =
                    residual.map(|all| all.unit(share.group, rows.clone(), of_residual));
                backward_one(cpu, &cut.shape(rows.len()), part, Some(&mut own[..2 * n]))?;
                sums::add_f64(simd, sums, &own[..2 * n]);
            }
            Ok(())
        })
    }

    /// What lies between the passes over a group: the sums of its parts become those of all.
    fn finish(&self, group: &mut Group<'_, E>, sums: &mut [f64]) -> Vec<E::Acc> {
        let Self { simd, cut, accumulates, .. } = *self;
        let n = cut.channels();
        let (all, others) = sums.split_at_mut(2 * n);
        others.chunks_exact(2 * n).for_each(|own| sums::add_f64(simd, all, own));
        let (of_bias, of_weight) = all.split_at(n);
        for (to, from) in [(&mut group.grad_bias, of_bias), (&mut group.grad_weight, of_weight)] {
            if let Some(to) = to {
                sums::store(simd, to, accumulates, from);
            }
        }
        let m = cut.shape(cut.rows).per_channel() as f64;
        all.iter().copied().chain([m]).map(E::Acc::from_f64).collect()
    }

    /// The second pass over a share.
    fn write(&self, share: &mut Share<'_, E>, total: &[E::Acc]) -> Result<()> {
        let Self { cpu, cut, .. } = *self;
        let Share { group, rows: all, grad_x, grad_residual } = share;
        if grad_x.is_none() && grad_residual.is_none() {
            return Ok(());
        }
        let mut of_units = self.of.of(*group);
        cpu.with_workspace(cut.side_len::<E>(5), |memory| {
            let [of_x, of_residual, of_y, to_x, to_residual] = cut.sides(memory);
            for rows in cut.units(all.clone()) {
                let own = rows.start - all.start..rows.end - all.start;
                let saved = of_units.of(rows.clone())?;
                let x = self.x.unit(*group, rows.clone(), of_x);
                let grad_y = match self.grad_y {
                    Some(all) => Input::View(all.unit(*group, rows.clone(), of_y)),
                    None => Input::InPlace,
                };
                let holds = grad_y.is_in_place();
                let mut part = Backward::<Host, E>::with_input(saved, x, grad_y);
                let residual = self.residual;
                part.residual = residual.map(|all| all.unit(*group, rows.clone(), of_residual));
                part.grad_x = grad_x.as_mut().map(|to| to.begin(own.clone(), to_x, holds));
                let to = grad_residual.as_mut();
                part.grad_residual = to.map(|to| to.begin(own.clone(), to_residual, false));
                part.total_sums = Some(total);
                backward_one(cpu, &cut.shape(rows.len()), part, None)?;
                for (to, side) in [(&mut *grad_x, &*to_x), (&mut *grad_residual, &*to_residual)] {
                    if let Some(to) = to {
                        to.end(own.clone(), side);
                    }
                }
            }
            Ok(())
        })
    }
}
