//! The training forward.
use super::super::elementwise::Strips;
use super::super::extremes::{self, Extreme};
use super::super::forward::Output;
use super::super::kernels::moments as merging;
use super::super::moments::{self, Merged};
use super::super::plan::Plan;
use super::super::simd::Simd;
use super::super::table::{Parameters, Statistics, Table, TableMut, split_mut};
use super::super::tiles::{Elements, at_once, for_each_tile};
use super::super::{Cpu, stats, update_by};
use super::{Cut, Rows, RowsMut, refused, take};
use crate::engine::saved::{ByChannel, Opened};
use crate::engine::{Activation, Derivative, ForwardTrain, OneValue, Running};
use crate::{Element, Host, Real, Result, Shape};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// Arrays of moments of a share: bases, offsets, sums of squares.
const MOMENTS: usize = 3;

pub(in super::super) fn forward_train<E: Element>(
    cpu: &Cpu,
    shape: &Shape,
    mut args: ForwardTrain<'_, Host, E>,
) -> Result<()> {
    args.check(&Host, shape)?;
    if args.mask.is_some() {
        return Err(refused("mask"));
    }
    let simd = cpu.simd()?;
    let cut = &Cut::new(shape);
    let mut saved = args.open(cpu, shape)?.map(Opened::filled);
    let parameters = Parameters { weight: args.weight, bias: args.bias };
    if let Some(saved) = &mut saved {
        parameters.save(saved);
    }
    let (activation, residual) = (args.activation, args.residual);
    let takes = activation.derivative_from(residual.is_some());
    let (statistics, masks) = match saved {
        Some(saved) => {
            let (ByChannel { mean, mean_rest, invstd, .. }, reserve) = saved.with_reserve_mut();
            (Some([mean, mean_rest, invstd]), reserve.filter(|_| takes == Derivative::FromMask))
        }
        None => (None, None),
    };
    let rules = args.running.as_ref().map(|of| of.of_channels(&mut [], &mut [], None));
    let moved = args.running.map(|Running { mean, var, .. }| (mean, var));
    let task = Task {
        cpu,
        simd,
        cut,
        x: Rows::new(cut, args.x),
        residual: residual.map(|residual| Rows::new(cut, residual)),
        parameters,
        activation,
        eps: args.eps,
        one_value: args.one_value,
        rules,
    };
    task.run(groups(cut, args.y, masks, statistics, moved))
}

/// Running means and variances.
type Moved<'a, A> = (&'a mut [A], &'a mut [A]);

/// The parts of all groups.
fn groups<'a, E: Element>(
    cut: &Cut,
    y: &'a mut [E],
    mut masks: Option<&'a mut [u8]>,
    statistics: Option<[&'a mut [E::Acc]; 3]>,
    moved: Option<Moved<'a, E::Acc>>,
) -> Vec<Group<'a, E>> {
    let mut y = RowsMut::deal(cut, y);
    let mut statistics = statistics.map(|all| all.map(|all| all.chunks_mut(cut.channels())));
    let mut moved =
        moved.map(|(mean, var)| (mean.chunks_mut(cut.channels()), var.chunks_mut(cut.channels())));
    let group = |number: usize| {
        let shares = (0..cut.shares()).map_while(|share| {
            let rows = cut.share(share);
            let masks = take(&mut masks, cut.masks_of(rows.len()));
            Some(Share { group: number, rows, y: y.next()?, masks })
        });
        Group {
            number,
            shares: shares.collect(),
            statistics: statistics
                .as_mut()
                .map(|all| all.each_mut().map(|all| all.next().unwrap_or_default())),
            moved: moved.as_mut().and_then(|(mean, var)| mean.next().zip(var.next())),
            extremes: vec![],
        }
    };
    (0..cut.groups).map(group).collect()
}

/// A group, and what becomes of its statistics.
struct Group<'a, E: Element> {
    number: usize,
    shares: Vec<Share<'a, E>>,
    /// Mean, what rounding left of it, invstd.
    statistics: Option<[&'a mut [E::Acc]; 3]>,
    /// Running mean and variance.
    moved: Option<Moved<'a, E::Acc>>,
    extremes: Vec<Extreme>,
}

/// Some rows of a group.
struct Share<'a, E> {
    group: usize,
    rows: Range<usize>,
    y: RowsMut<'a, E>,
    masks: Option<&'a mut [u8]>,
}

/// What all groups have in common.
struct Task<'a, E: Element> {
    cpu: &'a Cpu,
    simd: Simd,
    cut: &'a Cut,
    x: Rows<'a, E>,
    residual: Option<Rows<'a, E>>,
    parameters: Parameters<'a, E::Acc>,
    activation: Activation,
    eps: f64,
    one_value: OneValue,
    /// How running statistics move, without their arrays.
    rules: Option<Running<'static, Host, E::Acc>>,
}

impl<E: Element> Task<'_, E> {
    fn run(&self, mut groups: Vec<Group<'_, E>>) -> Result<()> {
        let Self { cpu, cut, .. } = *self;
        let (n, together) = (cut.channels(), cut.together());
        let table_len = Table::<E::Acc>::FIELDS * n;
        let of_share = MOMENTS * n;
        if cut.shares() == 1 {
            return at_once(&mut groups, together, |group| {
                cpu.with_workspace(of_share + table_len, |memory| {
                    let (moments, table) = memory.split_at_mut(of_share);
                    group.shares.iter().for_each(|share| self.reduce(share, moments));
                    self.finish(group, moments, table);
                    let Group { shares, extremes, .. } = group;
                    let table = Table::new(table, 0..n);
                    shares.iter_mut().for_each(|share| self.write(share, &table, extremes));
                });
                Ok(())
            });
        }
        let of_group = cut.shares() * of_share;
        cpu.with_workspace(groups.len() * (of_group + table_len), |memory| {
            let (moments, tables) = memory.split_at_mut(groups.len() * of_group);
            let shares = groups.iter().flat_map(|group| &group.shares);
            let mut calls: Vec<_> = shares.zip(moments.chunks_mut(of_share)).collect();
            at_once(&mut calls, together, |(share, moments)| {
                self.reduce(share, moments);
                Ok(())
            })?;
            let of_groups = moments.chunks_mut(of_group).zip(tables.chunks_mut(table_len));
            let mut calls: Vec<_> = groups.iter_mut().zip(of_groups).collect();
            at_once(&mut calls, together, |(group, (moments, table))| {
                self.finish(group, moments, table);
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

    /// Values of a channel in so many rows.
    fn count(&self, rows: usize) -> f64 {
        self.cut.shape(rows).per_channel() as f64
    }

    /// The first pass over a share.
    fn reduce(&self, share: &Share<'_, E>, moments: &mut [f64]) {
        let Self { cpu, simd, cut, x, .. } = *self;
        let n = cut.channels();
        let [bases, offsets, squares] = split_mut(moments, n);
        let side_len = cut.side_len::<E>(1);
        cpu.with_workspace(side_len + MOMENTS * n, |memory| {
            let (side, own) = memory.split_at_mut(side_len);
            let [side] = cut.sides(side);
            let (mut done, mut strip) = (0, stats::Strip::new(simd));
            for rows in cut.units(share.rows.clone()) {
                let (shape, len) = (&cut.shape(rows.len()), rows.len());
                let x = x.unit(share.group, rows, side);
                if done == 0 {
                    let to = [&mut *bases, &mut *offsets, &mut *squares];
                    stats::of_part((cpu, &mut strip), shape, x, to);
                } else {
                    let mut own: [_; MOMENTS] = split_mut(own, n);
                    let to = own.each_mut().map(|own| &mut **own);
                    stats::of_part((cpu, &mut strip), shape, x, to);
                    self.merge(done, [bases, offsets, squares], len, own);
                }
                done += len;
            }
        });
    }
    /// Merges the moments of so many rows into those of so many before.
    fn merge(
        &self,
        before: usize,
        [bases, offsets, squares]: [&mut [f64]; MOMENTS],
        rows: usize,
        [own_bases, own_offsets, own_squares]: [&mut [f64]; MOMENTS],
    ) {
        merging::count_from(self.simd, own_offsets, own_bases, bases);
        let (to, own) = ((offsets, squares), (&*own_offsets, &*own_squares));
        merging::merge(self.simd, self.count(before), to, self.count(rows), own);
    }

    /// What lies between the passes over a group.
    fn finish(&self, group: &mut Group<'_, E>, moments: &mut [f64], table: &mut [f64]) {
        let Self { cpu, simd, cut, parameters, eps, one_value, .. } = *self;
        let n = cut.channels();
        let (first, others) = moments.split_at_mut(MOMENTS * n);
        let mut done = cut.share(0).len();
        for (k, own) in others.chunks_exact_mut(MOMENTS * n).enumerate() {
            let len = cut.share(k + 1).len();
            self.merge(done, split_mut(first, n), len, split_mut(own, n));
            done += len;
        }
        let of_group = (Merged::FIELDS + Statistics::<E::Acc>::FIELDS) * n;
        cpu.with_workspace(of_group, |memory| {
            let (merged, of_statistics) = memory.split_at_mut(Merged::FIELDS * n);
            merged[..MOMENTS * n].copy_from_slice(first);
            let (shape, m) = (&cut.shape(cut.rows), self.count(cut.rows));
            let row = cut.shape(1);
            let values = |c: usize| {
                let rows = (0..cut.rows).map(|k| self.x.row(group.number, k));
                rows.flat_map(move |x| row.channel(c).map(|i| x[i].widen().to_f64()))
            };
            moments::invert::<E::Acc, _>(simd, (m, eps), merged, values);
            let merged = Merged::new(merged, shape);
            let of = (merged.base, merged.offset, merged.invstd);
            merging::round(simd, of, Statistics::<E::Acc>::split_mut(of_statistics, n));
            let statistics = Statistics::<E::Acc>::split(of_statistics, n);
            let parameters = parameters.of(cut.channels_of(group.number));
            TableMut::new(table, 0..n).forward(simd, statistics, parameters);
            group.extremes = Extreme::among(simd, 0..n, parameters, statistics);
            if let Some([mean, rest, invstd]) = &mut group.statistics {
                mean.copy_from_slice(statistics.mean);
                rest.copy_from_slice(statistics.rest);
                invstd.copy_from_slice(statistics.invstd);
            }
            if let Some(((mean, var), rules)) = group.moved.as_mut().zip(self.rules.as_ref()) {
                let mut running = rules.of_channels(mean, var, None);
                let means = (merged.base, Some(merged.offset));
                update_by(simd, &mut running, m, means, merged.squares, one_value);
            }
        });
    }

    /// The second pass over a share.
    fn write(&self, share: &mut Share<'_, E>, table: &Table<'_, E::Acc>, extremes: &[Extreme]) {
        let Self { cpu, simd, cut, x, residual, activation, .. } = *self;
        cpu.with_workspace(cut.side_len::<E>(3), |memory| {
            let [of_x, of_residual, of_y] = cut.sides(memory);
            let Share { group, rows: all, y: to, masks } = share;
            let mut masks = masks.as_deref_mut();
            let strips = Mutex::new(Strips::new());
            for rows in cut.units(all.clone()) {
                let own = rows.start - all.start..rows.end - all.start;
                let mut mask = take(&mut masks, cut.mask_of(rows.len()));
                let shape = &cut.shape(rows.len());
                let x = x.unit(*group, rows.clone(), of_x);
                let residual = residual.map(|all| all.unit(*group, rows, of_residual));
                let plan = &Plan::once(shape);
                let output = Output { simd, shape, plan, x: Some(x), residual, activation };
                let of_extremes = extremes::elements(extremes, shape, x);
                let y = to.begin(own.clone(), of_y, false);
                let of_mask = output.mask(mask.as_deref_mut()).map(Elements::mask);
                let mut outputs = (Elements::new(&mut *y), of_mask);
                for_each_tile(plan, false, &mut outputs, |tile, outputs| {
                    let mut strips = strips.lock().unwrap_or_else(PoisonError::into_inner);
                    output.write_on(&tile, table, outputs, &mut strips);
                });
                output.write_extremes(extremes, of_extremes, y, mask);
                to.end(own, of_y);
            }
        });
    }
}
