//! The backward.
use super::super::Cpu;
use super::super::backward::is_lost;
use super::super::elementwise::{Strips, walk_on};
use super::super::extremes::{self, Extreme};
use super::super::gate::Gate;
use super::super::gradients::{self, Gradients, OfColumns, Parts, Read, wide_sums};
use super::super::kernels::elementwise::Through;
use super::super::kernels::sums;
use super::super::plan::Plan;
use super::super::schedule::slot_len;
use super::super::simd::Simd;
use super::super::slots::{Sums, scratch_len};
use super::super::table::{Parameters, Statistics, Table, TableMut, finite, split_mut};
use super::super::tiles::{Elements, Slots, at_once, for_each_tile};
use super::{Cut, Rows, RowsMut, refused};
use crate::engine::saved::{Buffers, Forward};
use crate::engine::{Backward, Derivative, Input};
use crate::{Element, Host, Real, Result, Shape};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

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
    let takes = forward.activation.derivative_from(forward.residual);
    let residual = args.residual.filter(|_| takes == Derivative::FromResidual);
    let masks = saved.reserve.as_ref().filter(|_| takes == Derivative::FromMask);
    let grad_y = match args.grad_y {
        Input::View(grad_y) => Some(Rows::new(cut, grad_y)),
        Input::InPlace => None,
    };
    let task = Task {
        cpu,
        simd,
        cut,
        forward,
        saved,
        masks: masks.map(|masks| &masks[..]),
        x: Rows::new(cut, args.x),
        residual: residual.map(|residual| Rows::new(cut, residual)),
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
            number,
            shares: shares.collect(),
            grad_weight: weights.as_mut().and_then(Iterator::next),
            grad_bias: biases.as_mut().and_then(Iterator::next),
            extremes: vec![],
        }
    };
    task.run((0..cut.groups).map(group).collect())
}

/// A group, and the gradients of its parameters.
struct Group<'a, E: Element> {
    number: usize,
    shares: Vec<Share<'a, E>>,
    grad_weight: Option<&'a mut [E::Acc]>,
    grad_bias: Option<&'a mut [E::Acc]>,
    extremes: Vec<Found>,
}

/// An extreme channel, and the means of `g` and `g * xhat`.
struct Found {
    extreme: Extreme,
    means: (f64, f64),
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
    forward: &'a Forward,
    saved: &'a Buffers<Host, E::Acc>,
    /// What the forward has left, where a derivative takes it.
    masks: Option<&'a [u8]>,
    x: Rows<'a, E>,
    /// Likewise.
    residual: Option<Rows<'a, E>>,
    /// Absent where `grad_x` holds it.
    grad_y: Option<Rows<'a, E>>,
    accumulates: bool,
}

/// What is read of a unit: x, and what a derivative takes.
type Unit<'s, E> = (&'s [E], Gate<'s, E>);

impl<E: Element> Task<'_, E> {
    fn run(&self, mut groups: Vec<Group<'_, E>>) -> Result<()> {
        let Self { cpu, cut, .. } = *self;
        let (n, together) = (cut.channels(), cut.together());
        let (of_share, table_len) = (2 * n, Table::<E::Acc>::FIELDS * n);
        let of_group = of_share * cut.shares();
        if cut.shares() == 1 {
            return at_once(&mut groups, together, |group| {
                cpu.with_workspace(of_share + table_len, |memory| {
                    let (sums, table) = memory.split_at_mut(of_share);
                    self.prepare(group, table);
                    let read = &Table::new(table, 0..n);
                    group.shares.iter().for_each(|share| self.reduce(share, read, sums));
                    self.finish(group, sums, table);
                    let Group { shares, extremes, .. } = group;
                    let table = &Table::new(table, 0..n);
                    shares.iter_mut().for_each(|share| self.write(share, table, extremes));
                });
                Ok(())
            });
        }
        cpu.with_workspace(groups.len() * (of_group + table_len), |memory| {
            let (sums, tables) = memory.split_at_mut(groups.len() * of_group);
            for (group, table) in groups.iter().zip(tables.chunks_mut(table_len)) {
                self.prepare(group, table);
            }
            let shares = groups.iter().zip(tables.chunks(table_len));
            let shares = shares
                .flat_map(|(group, table)| group.shares.iter().map(move |share| (share, table)));
            let mut calls: Vec<_> = shares.zip(sums.chunks_mut(of_share)).collect();
            at_once(&mut calls, together, |((share, table), sums)| {
                self.reduce(share, &Table::new(table, 0..n), sums);
                Ok(())
            })?;
            let of_groups = sums.chunks_mut(of_group).zip(tables.chunks_mut(table_len));
            let mut calls: Vec<_> = groups.iter_mut().zip(of_groups).collect();
            at_once(&mut calls, together, |(group, (sums, table))| {
                self.finish(group, sums, table);
                Ok(())
            })?;
            let shares = groups.iter_mut().zip(tables.chunks(table_len));
            let shares = shares.flat_map(|(Group { shares, extremes, .. }, table)| {
                let extremes = &extremes[..];
                shares.iter_mut().map(move |share| (share, table, extremes))
            });
            let mut calls: Vec<_> = shares.collect();
            at_once(&mut calls, together, |(share, table, extremes)| {
                self.write(share, &Table::new(table, 0..n), extremes);
                Ok(())
            })
        })
    }

    /// What a group was normalized by.
    fn of_group(&self, number: usize) -> (Statistics<'_, E::Acc>, Parameters<'_, E::Acc>) {
        let channels = self.cut.channels_of(number);
        let parameters = Parameters::saved(self.saved).of(channels.clone());
        (Statistics::saved(self.saved, channels), parameters)
    }
    /// Sets the coefficients that the first pass takes.
    fn prepare(&self, group: &Group<'_, E>, table: &mut [f64]) {
        let (by, parameters) = self.of_group(group.number);
        TableMut::new(table, 0..self.cut.channels()).forward(self.simd, by, parameters);
    }
    /// What is read of a unit of a group.
    fn unit<'s>(
        &'s self,
        group: usize,
        rows: Range<usize>,
        [of_x, of_residual]: [&'s mut [E]; 2],
    ) -> Unit<'s, E> {
        let Self { cut, forward, masks, .. } = *self;
        let x = self.x.unit(group, rows.clone(), of_x);
        let before = group * cut.masks_of(cut.rows) + cut.masks_of(rows.start);
        let mask = masks.map(|masks| &masks[before..before + cut.mask_of(rows.len())]);
        let residual = self.residual.as_ref();
        let residual = residual.map(|all| all.unit(group, rows, of_residual));
        (x, Gate::new(forward.activation, mask, residual))
    }
    /// The gradient of y of some rows of a share.
    fn grad_y<'s>(
        &'s self,
        share: &'s Share<'_, E>,
        rows: Range<usize>,
        side: &'s mut [E],
    ) -> &'s [E] {
        match (&self.grad_y, &share.grad_x) {
            (Some(all), _) => all.unit(share.group, rows, side),
            (None, Some(held)) => {
                held.unit(rows.start - share.rows.start..rows.end - share.rows.start, side)
            }
            (None, None) => &[],
        }
    }

    /// The first pass over a share: `sum(g)` of every channel, then `sum(g * (x - mean))`.
    fn reduce(&self, share: &Share<'_, E>, table: &Table<'_, E::Acc>, sums: &mut [f64]) {
        let Self { cpu, cut, .. } = *self;
        // The last unit may have fewer rows, by a plan of its own.
        let (rows, n) = (share.rows.clone(), cut.channels());
        let whole = rows.start..rows.end - rows.len() % cut.unit;
        let rest = whole.end..rows.end;
        sums.fill(0.0);
        for rows in [whole, rest].into_iter().filter(|rows| !rows.is_empty()) {
            let len = rows.len().min(cut.unit);
            let plan = &Plan::new(&cut.shape(len), size_of::<E>(), 2);
            let side_len = cut.side_len::<E>(3);
            // Of a plan by whose columns no sums are kept there are as many values or more.
            let slots_len = plan.tiles() * slot_len(plan, 2);
            let work_len = n * (2 + scratch_len(plan, 2));
            cpu.with_workspace(side_len + slots_len + work_len, |memory| {
                let (sides, rest) = memory.split_at_mut(side_len);
                let (slots, work) = rest.split_at_mut(slots_len);
                self.sum_units(share, (plan, rows), table, (sides, slots, work), sums);
            });
        }
    }
    /// Adds the sums of units of the same size.
    fn sum_units(
        &self,
        share: &Share<'_, E>,
        (plan, rows): (&Plan, Range<usize>),
        table: &Table<'_, E::Acc>,
        (sides, slots, work): (&mut [f64], &mut [f64], &mut [f64]),
        sums: &mut [f64],
    ) {
        let Self { simd, cut, .. } = *self;
        let [of_x, of_residual, of_y] = cut.sides(sides);
        slots.fill(0.0);
        let of_columns = Mutex::new(OfColumns::new());
        let mut summed = *plan;
        for rows in cut.units(rows) {
            let (x, gate) = self.unit(share.group, rows.clone(), [of_x, of_residual]);
            let grad_y = Some(self.grad_y(share, rows, of_y));
            let read = Read { simd, plan, x, grad_y, gate, mask: None };
            summed = read.summed();
            let len = slot_len(&summed, 2);
            let own = &mut slots[..plan.tiles() * len];
            for_each_tile(plan, false, &mut Slots::new(own, len), |tile, slot| {
                let mut memory = of_columns.lock().unwrap_or_else(PoisonError::into_inner);
                gradients::add_sums(&read, &tile, &None, (table, &mut memory), slot);
            });
        }
        let n = cut.channels();
        let [all, all_products] = split_mut(sums, n);
        let len = slot_len(&summed, 2);
        for block in 0..plan.blocks() {
            let channels = plan.channels(block);
            let (own, scratch) = work.split_at_mut(2 * channels.len());
            let slots = &slots[block * plan.tiles_per_block() * len..];
            let slots = &slots[..plan.tiles_per_block() * len];
            let of_tiles = Sums::new(&summed, (block, channels.clone()), (slots, len), scratch);
            gradients::merge(simd, &summed, of_tiles, own);
            let (sums, products) = own.split_at(channels.len());
            sums::add_f64(simd, &mut all[channels.clone()], sums);
            sums::add_f64(simd, &mut all_products[channels], products);
        }
    }

    /// What lies between the passes over a group.
    fn finish(&self, group: &mut Group<'_, E>, sums: &mut [f64], table: &mut [f64]) {
        let Self { simd, cut, accumulates, .. } = *self;
        let (n, m) = (cut.channels(), cut.shape(cut.rows).per_channel() as f64);
        let (all, others) = sums.split_at_mut(2 * n);
        others.chunks_exact(2 * n).for_each(|own| sums::add_f64(simd, all, own));
        let (sums, products) = all.split_at_mut(n);
        let (by, parameters) = self.of_group(group.number);
        for (k, product) in products.iter_mut().enumerate() {
            // The tasks have subtracted the rounded mean.
            let less = finite(by.rest[k].to_f64() * sums[k]);
            *product = (*product - less) * by.invstd[k].to_f64();
        }
        let extremes = Extreme::among(simd, 0..n, parameters, by);
        for c in 0..n {
            let extreme = extremes.iter().find(|e| e.c == c);
            if extreme.is_some() || is_lost::<E>(sums[c], products[c]) {
                let table = Table::new(table, 0..n);
                (sums[c], products[c]) = self.wide_sums(group, c, extreme, &table);
            }
        }
        let found = |extreme: Extreme| {
            let means = (sums[extreme.c] / m, products[extreme.c] / m);
            Found { extreme, means }
        };
        group.extremes = extremes.into_iter().map(found).collect();
        TableMut::new(table, 0..n).gradient(simd, by, (&*sums, &*products), m);
        for (to, from) in [(&mut group.grad_bias, &*sums), (&mut group.grad_weight, &*products)] {
            if let Some(to) = to {
                sums::store(simd, to, accumulates, from);
            }
        }
    }
    /// The sums of a channel of a group in f64, one element at a time.
    fn wide_sums(
        &self,
        group: &Group<'_, E>,
        c: usize,
        extreme: Option<&Extreme>,
        table: &Table<'_, E::Acc>,
    ) -> (f64, f64) {
        let Self { cpu, simd, cut, .. } = *self;
        let (coef, mut sums) = (table.at(c), (0.0, 0.0));
        let by = Extreme::of_channel(self.saved, cut.channels_of(group.number).start + c);
        let normalize = |x: E::Acc| match extreme {
            Some(extreme) => extreme.normalize(x.to_f64()),
            None => coef.normalize(x).to_f64(),
        };
        cpu.with_workspace(cut.side_len::<E>(3), |memory| {
            let [of_x, of_residual, of_y] = cut.sides(memory);
            for share in &group.shares {
                for rows in cut.units(share.rows.clone()) {
                    let shape = &cut.shape(rows.len());
                    let (x, gate) = self.unit(share.group, rows.clone(), [of_x, of_residual]);
                    let grad_y = Some(self.grad_y(share, rows, of_y));
                    let plan = &Plan::once(shape);
                    let read = Read { simd, plan, x, grad_y, gate, mask: None };
                    let xhat = |x| by.xhat(x);
                    let own = wide_sums(&read, shape.channel(c), &None, normalize, xhat);
                    sums = (sums.0 + own.0, sums.1 + own.1);
                }
            }
        });
        sums
    }

    /// The second pass over a share.
    fn write(&self, share: &mut Share<'_, E>, table: &Table<'_, E::Acc>, extremes: &[Found]) {
        let Self { cpu, simd, cut, .. } = *self;
        if share.grad_x.is_none() && share.grad_residual.is_none() {
            return;
        }
        let of_channels: Vec<Extreme> = extremes.iter().map(|found| found.extreme).collect();
        cpu.with_workspace(cut.side_len::<E>(5), |memory| {
            let [of_x, of_residual, of_y, to_x, to_residual] = cut.sides(memory);
            let Share { group, rows: all, grad_x, grad_residual } = share;
            let strips = Mutex::new(Strips::new());
            for rows in cut.units(all.clone()) {
                let (shape, own) =
                    (&cut.shape(rows.len()), rows.start - all.start..rows.end - all.start);
                let (x, gate) = self.unit(*group, rows.clone(), [of_x, of_residual]);
                let grad_y = self.grad_y.as_ref().map(|all| all.unit(*group, rows, of_y));
                let holds = grad_y.is_none();
                let mut own_x = grad_x.as_mut().map(|to| to.begin(own.clone(), to_x, holds));
                let mut own_residual =
                    grad_residual.as_mut().map(|to| to.begin(own.clone(), to_residual, false));
                let from = grad_y.or(own_x.as_deref()).unwrap_or_default();
                let held = extremes::elements(&of_channels, shape, from);
                let plan = &Plan::once(shape);
                let read = Read { simd, plan, x, grad_y, gate, mask: None };
                let mut outputs = (
                    own_x.as_deref_mut().map(Elements::new),
                    own_residual.as_deref_mut().map(Elements::new),
                );
                for_each_tile(plan, false, &mut outputs, |tile, outputs: Parts<'_, E>| {
                    let mut step = Gradients::new(read, Through::Statistics, outputs);
                    let mut strips = strips.lock().unwrap_or_else(PoisonError::into_inner);
                    walk_on(plan, &tile, table, &mut step, &mut strips);
                });
                let apart = extremes::Backward { shape, plan, x, gate, grad_y: held, mask: None };
                for (k, Found { extreme, means }) in extremes.iter().enumerate() {
                    let to = (own_x.as_deref_mut(), own_residual.as_deref_mut());
                    apart.write(extreme, k, Some(*means), to);
                }
                for (to, side) in [(&mut *grad_x, &*to_x), (&mut *grad_residual, &*to_residual)] {
                    if let Some(to) = to {
                        to.end(own.clone(), side);
                    }
                }
            }
        });
    }
}
