//! The gradients of a backward: those of every unit as a part of its group's batch, by the sums of all.
use super::super::Cpu;
use super::super::double_backward::double_backward as one;
use super::super::kernels::double_backward::SUMS;
use super::super::tiles::at_once;
use super::{Cut, Rows, RowsMut};
use crate::engine::saved::{Buffers, ByChannel, Forward, Opened};
use crate::engine::{Derivative, DoubleBackward};
use crate::{Element, Host, Real, Result, Saved, Shape};
use std::ops::Range;

pub(in super::super) fn double_backward<E: Element>(
    cpu: &Cpu,
    shape: &Shape,
    mut args: DoubleBackward<'_, Host, E>,
) -> Result<()> {
    args.check(cpu, shape)?;
    let cut = &Cut::new(shape);
    let (forward, saved) = args.saved.made()?;
    let (given, accumulate) = ([args.v_weight, args.v_bias], args.accumulate);
    let rows = |all| Rows::new(cut, all);
    let read = Read {
        cut,
        tensors: [Some(args.x), Some(args.grad_y), args.residual, args.v_x, args.v_residual]
            .map(|tensor| tensor.map(rows)),
    };
    let mut to = [args.gg_grad_y, args.gg_x, args.gg_residual]
        .map(|tensor| RowsMut::deal_some(&Cut { share: cut.rows, ..*cut }, tensor));
    let mut of_parameters =
        [args.gg_weight, args.gg_bias].map(|all| all.map(|all| all.chunks_mut(cut.channels())));
    let groups = (0..cut.groups).map(|number| Group {
        number,
        to: to.each_mut().map(|to| to.next().flatten()),
        given: given.map(|of| of.map(|of| &of[cut.channels_of(number)])),
        parameters: of_parameters.each_mut().map(|all| all.as_mut().and_then(Iterator::next)),
    });
    let mut groups: Vec<Group<'_, E>> = groups.collect();
    let of = OfGroups { cut, forward, saved };
    let run = |group: &mut Group<'_, E>| group.run(cpu, &read, of, accumulate);
    // Of few groups a thread takes a unit's tiles, not a group.
    match cut.shares() == 1 {
        true => at_once(&mut groups, cut.together(), run),
        false => groups.iter_mut().try_for_each(run),
    }
}

/// The tensors that are read: x, `grad_y`, residual, `v_x`, `v_residual`.
struct Read<'a, E> {
    cut: &'a Cut,
    tensors: [Option<Rows<'a, E>>; 5],
}

impl<E: Element> Read<'_, E> {
    /// What a call for some rows of a group is given.
    fn unit<'s>(
        &'s self,
        saved: &'s Saved<Host, E::Acc>,
        (group, rows): (usize, Range<usize>),
        sides: [&'s mut [E]; 5],
    ) -> DoubleBackward<'s, Host, E> {
        let tensors = self.tensors.iter().zip(sides);
        let mut units =
            tensors.map(|(all, side)| all.as_ref().map(|all| all.unit(group, rows.clone(), side)));
        let mut next = || units.next().flatten();
        let (x, grad_y) = (next().unwrap_or_default(), next().unwrap_or_default());
        let mut part = DoubleBackward::<Host, E>::new(saved, x, grad_y);
        (part.residual, part.v_x, part.v_residual) = (next(), next(), next());
        part
    }
}

/// What the forward has left of all groups.
#[derive(Clone, Copy)]
struct OfGroups<'a, P: Real> {
    cut: &'a Cut,
    forward: &'a Forward,
    saved: &'a Buffers<Host, P>,
}

impl<'a, P: Real> OfGroups<'a, P> {
    /// What a forward of some units of a group would have left, of one after the other.
    pub fn of(self, group: usize) -> OfUnits<'a, P> {
        OfUnits { all: self, group, saved: Saved::new(), is_new: true }
    }
}

/// What a forward of units of a group would have left.
struct OfUnits<'a, P: Real> {
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

/// What is written of a group, and what is given of its channels.
struct Group<'a, E: Element> {
    number: usize,
    /// `gg_grad_y`, `gg_x`, `gg_residual`.
    to: [Option<RowsMut<'a, E>>; 3],
    /// `v_weight`, `v_bias`.
    given: [Option<&'a [E::Acc]>; 2],
    /// `gg_weight`, `gg_bias`.
    parameters: [Option<&'a mut [E::Acc]>; 2],
}

impl<E: Element> Group<'_, E> {
    fn run(
        &mut self,
        cpu: &Cpu,
        read: &Read<'_, E>,
        of: OfGroups<'_, E::Acc>,
        accumulate: bool,
    ) -> Result<()> {
        let Self { number, to, given, parameters } = self;
        let (cut, n) = (read.cut, SUMS * read.cut.channels());
        let (mut of_units, side_len) = (of.of(*number), cut.side_len::<E>(8));
        cpu.with_workspace(side_len + n, |memory| {
            let (sides, sums) = memory.split_at_mut(side_len);
            let [a, b, c, d, e, grad_y, x, residual] = cut.sides(sides);
            let mut sides = [a, b, c, d, e];
            for rows in cut.units(0..cut.rows) {
                let saved = of_units.of(rows.clone())?;
                let sides = sides.each_mut().map(|side| &mut **side);
                let mut part = read.unit(saved, (*number, rows.clone()), sides);
                (part.v_weight, part.v_bias) = (given[0], given[1]);
                (part.sums, part.accumulate) = (Some(&mut sums[..n]), rows.start > 0);
                one(cpu, &cut.shape(rows.len()), part)?;
            }
            let m = cut.shape(cut.rows).per_channel();
            let mut written = [grad_y, x, residual];
            for rows in cut.units(0..cut.rows) {
                let is_first = rows.start == 0;
                if !is_first && to.iter().all(Option::is_none) {
                    break;
                }
                let saved = of_units.of(rows.clone())?;
                let sides = sides.each_mut().map(|side| &mut **side);
                let mut part = read.unit(saved, (*number, rows.clone()), sides);
                (part.v_weight, part.v_bias) = (given[0], given[1]);
                part.total_sums = Some((&sums[..n], m));
                // Of the sums of all: once, by whichever unit.
                let parameters = parameters.each_mut().map(|to| to.as_deref_mut());
                let [weight, bias] = parameters.map(|to| to.filter(|_| is_first));
                (part.gg_weight, part.gg_bias, part.accumulate) = (weight, bias, accumulate);
                let pairs = to.iter_mut().zip(&mut written);
                let mut pieces = pairs
                    .map(|(to, side)| to.as_mut().map(|to| to.begin(rows.clone(), side, false)));
                let mut next = || pieces.next().flatten();
                (part.gg_grad_y, part.gg_x, part.gg_residual) = (next(), next(), next());
                one(cpu, &cut.shape(rows.len()), part)?;
                for (to, side) in to.iter_mut().zip(&written) {
                    if let Some(to) = to {
                        to.end(rows.clone(), side);
                    }
                }
            }
            Ok(())
        })
    }
}
