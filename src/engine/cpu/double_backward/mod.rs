//! The double backward: the sums of every channel, then what they make of the elements. Behind an activation that
//! is curved, blocks are brought to the accumulating type in memory that stays in the first cache, where everything
//! is a loop of its own; elsewhere a loop does all that a pass does.
//!
//! x, the gradient of y and `v_x` are read twice and two results are written, 8 tensors where a backward moves 5; once
//! where the plan holds channels whole in the second cache. Sums that nobody asks for, through frozen statistics, are
//! not made: then all is read once.
use super::Cpu;
use super::extremes::Extreme;
use super::gate::Gate;
use super::kernels::double_backward::{FIELDS, SUMS};
use super::kernels::sums::store;
use super::masked::Masked;
use super::plan::{Plan, Tile};
use super::schedule::{two_pass, workspace_len};
use super::simd::Simd;
use super::table::split_mut;
use super::tiles::by_range::{Channels, all_channels};
use super::tiles::{Elements, TileMut, for_each_tile};
use crate::engine::saved::{Buffers, ByChannel};
use crate::engine::{Derivative, DoubleBackward};
use crate::{Element, Host, Real, Result, Shape};
use coefs::{Channel, Coefs, Counted, Table, TableMut};
use read::Read;
use std::sync::{Mutex, PoisonError};
use steps::SumsAndGradients;

mod bytes;
mod coefs;
mod curved;
mod plain;
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
    let mut results = Results {
        weight: args.gg_weight,
        bias: args.gg_bias,
        sums: args.sums,
        accumulate: args.accumulate,
    };
    let total = args.total_sums;
    let channels = shape.channels();
    if shape.is_empty() {
        results.zero(simd, channels);
        return Ok(());
    }
    let (activation, batch) = (forward.activation, forward.batch_statistics || total.is_some());
    let per_channel = total.map_or(shape.per_channel(), |(_, m)| m) as f64;
    let takes = activation.derivative_from(forward.residual);
    let plan = Plan::new(shape, size_of::<E>(), 3);
    let mask = saved.reserve.as_ref().filter(|_| takes == Derivative::FromMask);
    let mask = mask.map(|mask| &mask[..plan.mask_len()]);
    let residual = args.residual.filter(|_| takes == Derivative::FromResidual);
    let gate = Gate::new(activation, mask, residual);
    let read = Read {
        simd,
        plan: &plan,
        x,
        grad_y,
        v_x,
        v_residual,
        activation,
        mask,
        residual,
        places: None,
    };
    let given = Given { saved, by_channel: saved.by_channel(), v_weight, v_bias };
    let of_parameters =
        results.weight.is_some() || results.bias.is_some() && activation.is_curved();
    let sums = total.is_none() && (batch || of_parameters) || results.sums.is_some();
    let total = total.map(|(sums, _)| sums);
    let tensors = 2
        + [v_x, v_residual, residual].iter().flatten().count()
        + [&gg_grad_y, &gg_x, &gg_residual].iter().filter(|to| to.is_some()).count();
    let writes = gg_grad_y.is_some() || gg_x.is_some() || gg_residual.is_some();
    let places = forward.mask.zip(args.mask);
    let counts = args.saved.counted().map(|counted| &counted.counts[..]);
    Masked::with((cpu, simd), (shape, &plan), places, x, counts, |places| {
        let read = Read { places, ..read };
        let work = Work { read, shape, gate, given, batch, per_channel, total, tensors };
        let mut outputs = (
            gg_grad_y.as_deref_mut().map(Elements::new),
            gg_x.as_deref_mut().map(Elements::new),
            gg_residual.as_deref_mut().map(Elements::new),
        );
        // They are written again, in the order of channels whoever has found them.
        let extremes = if sums {
            let steps = SumsAndGradients {
                work,
                writes,
                accumulate: results.accumulate,
                of_extremes: Mutex::default(),
            };
            cpu.with_workspace(workspace_len(&plan, &steps), |workspace| {
                two_pass(&plan, &steps, &mut outputs, &mut results.by_range(channels), workspace);
            });
            let mut found = steps.of_extremes.into_inner().unwrap_or_else(PoisonError::into_inner);
            found.sort_by_key(|(e, _)| e.c);
            found
        } else {
            if writes {
                work.write_only(cpu, &mut outputs);
            }
            match total {
                Some(_) => results.set(simd, (0..channels).map(|c| work.known(c))),
                None => results.zero(simd, channels),
            }
            let extremes = Extreme::of_saved(simd, saved).into_iter();
            extremes.map(|e| (e, work.known(e.c))).collect()
        };
        for (e, coefs) in &extremes {
            let to = [gg_grad_y.as_deref_mut(), gg_x.as_deref_mut(), gg_residual.as_deref_mut()];
            work.write_wide(e, coefs, to);
        }
    })
}

/// What is given of every channel.
#[derive(Clone, Copy)]
struct Given<'a, A: Real> {
    saved: &'a Buffers<Host, A>,
    by_channel: ByChannel<&'a [A]>,
    v_weight: Option<&'a [A]>,
    v_bias: Option<&'a [A]>,
}

impl<A: Real> Given<'_, A> {
    #[inline]
    fn of(&self, c: usize) -> Channel {
        let ByChannel { mean, mean_rest, invstd, weight, bias } = self.by_channel;
        let (mean, rest, invstd) = (mean[c].to_f64(), mean_rest[c].to_f64(), invstd[c].to_f64());
        let (weight, bias) = (weight[c].to_f64(), bias[c].to_f64());
        let of = |given: Option<&[A]>| given.map_or(0.0, |given| given[c].to_f64());
        let (v_weight, v_bias) = (of(self.v_weight), of(self.v_bias));
        Channel { mean, rest, invstd, weight, bias, v_weight, v_bias, counted: None }
    }
}

/// All that an element takes.
#[derive(Clone, Copy)]
struct Work<'a, E: Element> {
    read: Read<'a, E>,
    shape: &'a Shape,
    gate: Gate<'a, E>,
    given: Given<'a, E::Acc>,
    /// Whether gradients flow through the statistics.
    batch: bool,
    /// Values of a channel in all parts of the batch.
    per_channel: f64,
    /// The sums of all parts, where they are given.
    total: Option<&'a [f64]>,
    /// Tensors that are read and written.
    tensors: usize,
}

/// `gg_grad_y`, `gg_x`, `gg_residual`, those that are asked for.
type Outputs<'a, E> = (Option<Elements<'a, E>>, Option<Elements<'a, E>>, Option<Elements<'a, E>>);
type Tiles<'p, E> = (Option<TileMut<'p, E>>, Option<TileMut<'p, E>>, Option<TileMut<'p, E>>);

impl<E: Element> Work<'_, E> {
    fn coefs(&self, c: usize, sums: &[f64; SUMS]) -> Coefs {
        let counted = self.read.places.map(|mask| Counted {
            count: mask.count(c),
            n: mask.divisor(c),
            share: mask.share(c),
        });
        let of = Channel { counted, ..self.given.of(c) };
        of.coefs(sums, self.per_channel, self.batch)
    }
    /// The same where sums are given, or none are taken.
    fn known(&self, c: usize) -> Coefs {
        let channels = self.shape.channels();
        let of = |k: usize| self.total.map_or(0.0, |total| total[k * channels + c]);
        self.coefs(c, &std::array::from_fn(of))
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
                table.gradient(c, &work.known(c));
            }
            let table = Table::new(memory, channels);
            for_each_tile(plan, false, outputs, |tile, outputs: Tiles<'_, E>| {
                work.write_tile(&tile, outputs, &table);
            });
        });
    }

    /// The first pass: the sums of a tile's channels, or of its columns where runs are short.
    fn sum_tile(&self, tile: &Tile, table: &Table<'_, E::Acc>, slot: &mut [f64]) {
        slot.fill(0.0);
        let plan = self.read.plan;
        let part = plan.slot_len() / 2;
        match self.read.activation.is_curved() {
            true if plan.long_runs => self.sum_curved_runs(tile, table, slot, part),
            true => self.sum_curved_columns(tile, table, slot, part),
            false if plan.has_runs() => self.sum_plain_runs(tile, table, slot, part),
            false => self.sum_plain_columns(tile, table, slot, part),
        }
    }
    /// The second pass.
    fn write_tile(&self, tile: &Tile, to: Tiles<'_, E>, table: &Table<'_, E::Acc>) {
        match self.read.activation.is_curved() {
            true => self.write_curved(tile, to, table),
            false => self.write_plain(tile, to, table),
        }
    }
}

/// The outputs that are one value per channel.
struct Results<'a, A> {
    weight: Option<&'a mut [A]>,
    bias: Option<&'a mut [A]>,
    /// The sums of a part of a batch, instead of these.
    sums: Option<&'a mut [f64]>,
    accumulate: bool,
}

impl<A: Real> Results<'_, A> {
    /// The arrays, for tasks to write by channels.
    fn by_range(&mut self, channels: usize) -> Arrays<'_, A> {
        let sums = self.sums.as_deref_mut();
        let gradients = [&mut self.weight, &mut self.bias];
        (
            gradients.map(|to| to.as_deref_mut().map(Channels::new)),
            sums.map(|sums| split_mut(sums, channels).map(Channels::new)),
        )
    }
    fn set(&mut self, simd: Simd, coefs: impl Iterator<Item = Coefs>) {
        let (weights, biases): (Vec<f64>, Vec<f64>) =
            coefs.map(|coefs| (coefs.gg_weight, coefs.gg_bias)).unzip();
        let (channels, accumulate) = (weights.len(), self.accumulate);
        let mut arrays = self.by_range(channels);
        let (to, _) = all_channels(&mut arrays, channels);
        set(simd, accumulate, [&weights, &biases], to);
    }
    fn zero(&mut self, simd: Simd, channels: usize) {
        if let Some(sums) = self.sums.as_mut().filter(|_| !self.accumulate) {
            sums.fill(0.0);
        }
        let (zeros, accumulate) = (vec![0.0; channels], self.accumulate);
        let mut arrays = self.by_range(channels);
        set(simd, accumulate, [&zeros, &zeros], all_channels(&mut arrays, channels).0);
    }
}

/// The arrays of [`Results`], weight before bias.
type Arrays<'a, A> = ([Option<Channels<'a, A>>; 2], Option<[Channels<'a, f64>; SUMS]>);
/// Those of weight and bias, of some channels.
type Gradients<'o, A> = [Option<&'o mut [A]>; 2];

/// Writes the results of some channels.
fn set<A: Real>(simd: Simd, accumulate: bool, from: [&[f64]; 2], to: Gradients<'_, A>) {
    for (to, from) in to.into_iter().zip(from) {
        if let Some(to) = to {
            store(simd, to, accumulate, from);
        }
    }
}
