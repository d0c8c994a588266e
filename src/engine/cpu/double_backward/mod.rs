//! The double backward: the sums of every channel, then what they make of the elements. Blocks are brought
//! to the accumulating type in memory that stays in the first cache, where everything is a loop of its own.
//!
//! x, the gradient of y and `v_x` are read twice and two results are written, 8 tensors where a backward moves 5; once
//! where the plan holds channels whole in the second cache. Sums that nobody asks for, through frozen statistics, are
//! not made: then all is read once.
use super::Cpu;
use super::extremes::Extreme;
use super::gate::Gate;
use super::kernels::activation::Block;
use super::kernels::convert::narrow;
use super::kernels::double_backward::{self as kernel, Many, One, SUMS, Values};
use super::kernels::sums::{STRIP_ROWS, add_widened};
use super::plan::{Plan, Tile};
use super::schedule::{TwoPass, two_pass, workspace_len};
use super::simd::{BLOCK, GROUP, ROOM};
use super::tiles::{Elements, TileMut, Writer, for_each_tile};
use crate::engine::saved::{Buffers, ByChannel};
use crate::engine::{Derivative, DoubleBackward};
use crate::{Element, Host, Real, Result, Shape};
use coefs::{Channel, Coefs, FIELDS, FORWARD, Table, TableMut};
use read::Read;
use std::ops::Range;
use steps::SumsAndGradients;

mod coefs;
mod read;
mod steps;
mod wide;

/// Values summed in the accumulating type before they are added up in f64.
const SEGMENT: usize = 4096;

pub(super) fn double_backward<E: Element>(
    cpu: &Cpu,
    shape: &Shape,
    mut args: DoubleBackward<'_, Host, E>,
) -> Result<()> {
    args.check(cpu, shape)?;
    let simd = cpu.simd()?;
    let (forward, saved) = args.saved.made()?;
    let DoubleBackward { x, grad_y, v_x, v_residual, v_weight, v_bias, .. } = args;
    let DoubleBackward { mut gg_grad_y, mut gg_x, mut gg_residual, .. } = args;
    let mut results =
        Results { weight: args.gg_weight, bias: args.gg_bias, accumulate: args.accumulate };
    let channels = shape.channels();
    if shape.is_empty() {
        (0..channels).for_each(|c| results.set(c, 0.0, 0.0));
        return Ok(());
    }
    let (activation, batch) = (forward.activation, forward.batch_statistics);
    let takes = activation.derivative_from(forward.residual);
    let plan = Plan::new(shape, size_of::<E>(), 3);
    let mask = saved.reserve.as_ref().filter(|_| takes == Derivative::FromMask);
    let mask = mask.map(|mask| &mask[..plan.mask_len()]);
    let residual = args.residual.filter(|_| takes == Derivative::FromResidual);
    let gate = Gate::new(activation, mask, residual);
    let read = Read { simd, plan: &plan, x, grad_y, v_x, v_residual, activation, mask, residual };
    let given = Given { saved, v_weight, v_bias };
    let sums =
        batch || results.weight.is_some() || results.bias.is_some() && activation.is_curved();
    let extremes = &Extreme::of_saved(simd, saved)[..];
    let tensors = 2
        + [v_x, v_residual, residual].iter().flatten().count()
        + [&gg_grad_y, &gg_x, &gg_residual].iter().filter(|to| to.is_some()).count();
    let work = Work { read, shape, gate, given, extremes, batch, tensors };
    let writes = gg_grad_y.is_some() || gg_x.is_some() || gg_residual.is_some();
    let mut outputs = (
        gg_grad_y.as_deref_mut().map(Elements::new),
        gg_x.as_deref_mut().map(Elements::new),
        gg_residual.as_deref_mut().map(Elements::new),
    );
    let mut extreme_coefs = Vec::new();
    if sums {
        let steps = SumsAndGradients { work, writes };
        cpu.with_workspace(workspace_len(&plan, &steps), |workspace| {
            let cached = two_pass(&plan, &steps, &mut outputs, workspace);
            for (block, cached) in cached.chunks(steps.cached_len()).enumerate() {
                for (k, c) in plan.channels(block).enumerate() {
                    let coefs = work.coefs(c, &steps.sums_of(cached, k));
                    results.set(c, coefs.gg_weight, coefs.gg_bias);
                    if extremes.iter().any(|e| e.c == c) {
                        extreme_coefs.push(coefs);
                    }
                }
            }
        });
    } else {
        work.write_only(cpu, &mut outputs);
        (0..channels).for_each(|c| results.set(c, 0.0, 0.0));
        extreme_coefs.extend(extremes.iter().map(|e| work.coefs(e.c, &[0.0; SUMS])));
    }
    for (e, coefs) in extremes.iter().zip(&extreme_coefs) {
        let to = [gg_grad_y.as_deref_mut(), gg_x.as_deref_mut(), gg_residual.as_deref_mut()];
        work.write_wide(e, coefs, to);
    }
    Ok(())
}

/// What is given of every channel.
#[derive(Clone, Copy)]
struct Given<'a, A: Real> {
    saved: &'a Buffers<Host, A>,
    v_weight: Option<&'a [A]>,
    v_bias: Option<&'a [A]>,
}

impl<A: Real> Given<'_, A> {
    fn of(&self, c: usize) -> Channel {
        let ByChannel { mean, mean_rest, invstd, weight, bias } = self.saved.by_channel();
        let [mean, rest, invstd, weight, bias] =
            [mean, mean_rest, invstd, weight, bias].map(|array| array[c].to_f64());
        let of = |given: Option<&[A]>| given.map_or(0.0, |given| given[c].to_f64());
        let (v_weight, v_bias) = (of(self.v_weight), of(self.v_bias));
        Channel { mean, rest, invstd, weight, bias, v_weight, v_bias }
    }
}

/// All that an element takes.
#[derive(Clone, Copy)]
struct Work<'a, E: Element> {
    read: Read<'a, E>,
    shape: &'a Shape,
    gate: Gate<'a, E>,
    given: Given<'a, E::Acc>,
    extremes: &'a [Extreme],
    /// Whether gradients flow through the statistics.
    batch: bool,
    /// Tensors that are read and written.
    tensors: usize,
}

/// `gg_grad_y`, `gg_x`, `gg_residual`, those that are asked for.
type Outputs<'a, E> = (Option<Elements<'a, E>>, Option<Elements<'a, E>>, Option<Elements<'a, E>>);
type Tiles<'p, E> = (Option<TileMut<'p, E>>, Option<TileMut<'p, E>>, Option<TileMut<'p, E>>);

impl<E: Element> Work<'_, E> {
    fn coefs(&self, c: usize, sums: &[f64; SUMS]) -> Coefs {
        self.given.of(c).coefs(sums, self.shape.per_channel() as f64, self.batch)
    }
    /// The same, cut in another way.
    fn by_plan<'b>(&'b self, plan: &'b Plan) -> Work<'b, E> {
        let work: Work<'b, E> = *self;
        Work { read: Read { plan, ..work.read }, ..work }
    }
    /// Writes what takes no sums, in one pass.
    fn write_only(&self, cpu: &Cpu, outputs: &mut Outputs<'_, E>) {
        let (plan, channels) = (&Plan::once(self.shape), 0..self.shape.channels());
        let work = self.by_plan(plan);
        cpu.with_workspace(FIELDS * channels.len(), |memory| {
            let mut table = TableMut::<E::Acc>::new(memory, channels.clone());
            for c in channels.clone() {
                table.forward(c, &work.given.of(c));
                table.gradient(c, &work.coefs(c, &[0.0; SUMS]));
            }
            let table = Table::new(memory, channels);
            for_each_tile(plan, false, outputs, |tile, outputs: Tiles<'_, E>| {
                work.write_tile(&tile, outputs, &table);
            });
        });
    }

    /// The first pass: `K` sums of a tile's channels, or of its columns where runs are short.
    fn sum_tile<const K: usize>(&self, tile: &Tile, table: &Table<'_, E::Acc>, slot: &mut [f64]) {
        slot.fill(0.0);
        let part = slot.len() / K;
        match self.read.plan.long_runs {
            true => self.sum_runs::<K>(tile, table, slot, part),
            false => self.sum_columns::<K>(tile, table, slot, part),
        }
    }
    fn sum_runs<const K: usize>(
        &self,
        tile: &Tile,
        table: &Table<'_, E::Acc>,
        slot: &mut [f64],
        part: usize,
    ) {
        let Read { simd, plan, .. } = self.read;
        let run = plan.inner().min(tile.cols.len());
        let (mut values, zeros) = (Values::new(), [[E::Acc::default(); GROUP]; K]);
        for (channel, start) in tile.cols.clone().step_by(run).enumerate() {
            let coefs = One(table.at(start / plan.inner()));
            let (mut sums, mut count) = (zeros, 0);
            let mut flush = |sums: &mut [[E::Acc; GROUP]; K]| {
                for (k, lanes) in std::mem::replace(sums, zeros).iter().enumerate() {
                    let total: f64 = lanes.iter().map(|v| v.to_f64()).sum();
                    slot[k * part + channel] += total;
                }
            };
            for row in tile.rows.clone() {
                for at in (start..start + run).step_by(BLOCK) {
                    let cols = at..(at + BLOCK).min(start + run);
                    let n = self.read.stage(row, &cols, coefs, &mut values);
                    values.add_to_lanes(simd, &mut sums, n);
                    count += n;
                    if count >= SEGMENT {
                        flush(&mut sums);
                        count = 0;
                    }
                }
            }
            flush(&mut sums);
        }
    }
    fn sum_columns<const K: usize>(
        &self,
        tile: &Tile,
        table: &Table<'_, E::Acc>,
        slot: &mut [f64],
        part: usize,
    ) {
        let Read { simd, plan, .. } = self.read;
        let zero = E::Acc::default();
        let (mut values, mut sums) = (Values::new(), [[zero; ROOM]; K]);
        let mut fields = [[zero; ROOM]; FIELDS];
        for start in tile.cols.clone().step_by(BLOCK) {
            let cols = start..(start + BLOCK).min(tile.cols.end);
            expand(plan, &cols, table, FORWARD, &mut fields);
            for first in tile.rows.clone().step_by(STRIP_ROWS) {
                for row in first..(first + STRIP_ROWS).min(tile.rows.end) {
                    let n = self.read.stage(row, &cols, Many(&fields), &mut values);
                    values.add_to_columns(simd, &mut sums, n);
                }
                for (k, sums) in sums.iter_mut().enumerate() {
                    let to = &mut slot[k * part + start - tile.cols.start..][..cols.len()];
                    add_widened(simd, to, &sums[..cols.len()]);
                    sums.fill(zero);
                }
            }
        }
    }

    /// The second pass.
    fn write_tile(&self, tile: &Tile, to: Tiles<'_, E>, table: &Table<'_, E::Acc>) {
        let Read { plan, .. } = self.read;
        let [grad_y, x, residual] =
            [to.0, to.1, to.2].map(|to| to.map(|to| Writer::new(plan, to, self.tensors, false)));
        let mut to = Writers { grad_y, x, residual };
        let zero = E::Acc::default();
        let mut values = (Values::new(), [zero; ROOM], [zero; ROOM]);
        if plan.long_runs {
            let run = plan.inner().min(tile.cols.len());
            for start in tile.cols.clone().step_by(run) {
                let coefs = One(table.at(start / plan.inner()));
                for row in tile.rows.clone() {
                    for at in (start..start + run).step_by(BLOCK) {
                        let cols = at..(at + BLOCK).min(start + run);
                        self.write_block(row, cols, coefs, &mut values, &mut to);
                    }
                }
            }
            return;
        }
        let mut fields = [[zero; ROOM]; FIELDS];
        for start in tile.cols.clone().step_by(BLOCK) {
            let cols = start..(start + BLOCK).min(tile.cols.end);
            expand(plan, &cols, table, FIELDS, &mut fields);
            for row in tile.rows.clone() {
                self.write_block(row, cols.clone(), Many(&fields), &mut values, &mut to);
            }
        }
    }
    fn write_block(
        &self,
        row: usize,
        cols: Range<usize>,
        coefs: impl kernel::Coefs<E::Acc>,
        (values, u, x): &mut Blocks<E::Acc>,
        to: &mut Writers<'_, E>,
    ) {
        let (read, simd) = (self.read, self.read.simd);
        let n = read.stage(row, &cols, coefs, values);
        let curved = read.activation.is_curved();
        values.gradients(simd, coefs, (self.batch, curved), (u, x), n);
        if let Some(to) = &mut to.x {
            to.write(simd, row, cols.clone(), false, |_, out| narrow(simd, &x[..n], out));
        }
        if let Some(to) = &mut to.residual {
            // Where nothing is curved, `q` has stayed 0.
            let h = &values.q[..n];
            to.write(simd, row, cols.clone(), false, |_, out| narrow(simd, h, out));
        }
        if let Some(to) = &mut to.grad_y {
            read.pass(row, &cols, &values.z, u, n);
            to.write(simd, row, cols, false, |_, out| narrow(simd, &u[..n], out));
        }
    }
}

/// What a task computes in: what it reads, u, and the gradient of x.
type Blocks<A> = (Values<A>, Block<A>, Block<A>);

/// How a task writes.
struct Writers<'p, E> {
    grad_y: Option<Writer<'p, E>>,
    x: Option<Writer<'p, E>>,
    residual: Option<Writer<'p, E>>,
}

/// The first `count` coefficients of every column.
fn expand<A: Real>(
    plan: &Plan,
    cols: &Range<usize>,
    table: &Table<'_, A>,
    count: usize,
    fields: &mut [Block<A>; FIELDS],
) {
    let of_channels = table.fields(plan.channels_in(cols));
    for (values, to) in of_channels.into_iter().zip(fields).take(count) {
        plan.expand(cols, values, to);
    }
}

/// The outputs that are one value per channel.
struct Results<'a, A> {
    weight: Option<&'a mut [A]>,
    bias: Option<&'a mut [A]>,
    accumulate: bool,
}

impl<A: Real> Results<'_, A> {
    fn set(&mut self, c: usize, of_weight: f64, of_bias: f64) {
        for (to, sum) in [(&mut self.weight, of_weight), (&mut self.bias, of_bias)] {
            if let Some(to) = to {
                let before = if self.accumulate { to[c].to_f64() } else { 0.0 };
                to[c] = A::from_f64(before + sum);
            }
        }
    }
}
