//! The backward: the sums of every channel, then what they make of the gradients.
use super::Cpu;
use super::elementwise::walk;
use super::extremes::{self, Extreme};
use super::gate::Gate;
use super::gradients::{self, Gradients, Parts, Read, wide_sums};
use super::kernels::elementwise::Through;
use super::kernels::sums;
use super::masked::Masked;
use super::plan::{Plan, Tile};
use super::schedule::{Part, TwoPass, two_pass, workspace_len};
use super::simd::Simd;
use super::table::{Parameters, Statistics, Table, TableMut, finite};
use super::tiles::{Elements, for_each_tile};
use crate::engine::saved::Buffers;
use crate::engine::{Backward, Derivative, Input};
use crate::{DType, Element, Host, Real, Result, Shape};
use std::ops::Range;

/// Keeps the sums of every channel in `kept` where that is given: of `g`, then of `g * xhat`.
pub(super) fn backward<E: Element>(
    cpu: &Cpu,
    shape: &Shape,
    mut args: Backward<'_, Host, E>,
    kept: Option<&mut [f64]>,
) -> Result<()> {
    args.check(cpu, shape)?;
    let simd = cpu.simd()?;
    let (forward, saved) = args.saved.made()?;
    let channels = shape.channels();
    let Backward { x, grad_y, mut grad_x, mut grad_residual, sums, total_sums, .. } = args;
    let mut results = Results {
        sums,
        grad_weight: args.grad_weight,
        grad_bias: args.grad_bias,
        kept,
        accumulate: args.accumulate,
    };
    if shape.is_empty() {
        let zeros = vec![0.0; channels];
        results.set(simd, shape, 0..channels, (&zeros, &zeros));
        return Ok(());
    }
    let plan = &Plan::new(shape, size_of::<E>(), 2);
    let takes = forward.activation.derivative_from(forward.residual);
    let mask = saved.reserve.as_ref().filter(|_| takes == Derivative::FromMask);
    let mask = mask.map(|mask| &mask[..plan.mask_len()]);
    let residual = args.residual.filter(|_| takes == Derivative::FromResidual);
    let gate = Gate::new(forward.activation, mask, residual);
    let grad_y = match grad_y {
        Input::View(grad_y) => Some(grad_y),
        Input::InPlace => None,
    };
    let places = forward.mask.zip(args.mask);
    let counts = args.saved.counted().map(|counted| &counted.counts[..]);
    Masked::with((cpu, simd), (shape, plan), places, x, counts, |mask| {
        let read = Read { simd, plan, x, grad_y, gate, mask };
        let through = match forward.batch_statistics || total_sums.is_some() {
            true => Through::Statistics,
            false => Through::Constants,
        };
        let coefs = Coefs { simd, shape, saved, total_sums, mask };
        let writes = grad_x.is_some() || grad_residual.is_some();
        let extremes = &Extreme::of_saved(simd, saved)[..];
        // What the loops are about to overwrite.
        let held = match (grad_y, &grad_x) {
            (Some(grad_y), _) => extremes::elements(extremes, shape, grad_y),
            (None, Some(grad_x)) => extremes::elements(extremes, shape, grad_x),
            (None, None) => vec![],
        };
        let apart = extremes::Backward { shape, plan, x, gate, grad_y: held, mask };
        let own_sums = forward.batch_statistics && total_sums.is_none();
        let gradients = SumsAndGradients { read, shape, coefs, extremes, through, writes };
        if !(results.any() || own_sums && grad_x.is_some()) {
            let of_x = grad_x.as_deref_mut().map(Elements::new);
            let of_residual = grad_residual.as_deref_mut().map(Elements::new);
            gradients.write_only(cpu, &mut (of_x, of_residual));
            for (k, e) in extremes.iter().enumerate() {
                let to = (grad_x.as_deref_mut(), grad_residual.as_deref_mut());
                apart.write(e, k, coefs.of_total(e.c), to);
            }
            return;
        }
        cpu.with_workspace(workspace_len(plan, &gradients), |workspace| {
            let of_x = grad_x.as_deref_mut().map(Elements::new);
            let of_residual = grad_residual.as_deref_mut().map(Elements::new);
            let cached = two_pass(plan, &gradients, &mut (of_x, of_residual), workspace);
            for (block, cached) in cached.chunks(gradients.cached_len()).enumerate() {
                let (sums, products) = gradients.sums(cached);
                let channels = plan.channels(block);
                results.set(simd, shape, channels.clone(), (sums, products));
                for (k, e) in extremes.iter().enumerate().filter(|(_, e)| channels.contains(&e.c)) {
                    let k_in = e.c - channels.start;
                    let own = || coefs.of_own(e.c, sums[k_in], products[k_in]);
                    let own = forward.batch_statistics.then(own);
                    let to = (grad_x.as_deref_mut(), grad_residual.as_deref_mut());
                    apart.write(e, k, coefs.of_total(e.c).or(own), to);
                }
            }
        });
    })
}

/// The steps of the backward. What is cached for a block: the sums of its channels, `sum(g)` and then
/// `sum(g * xhat)`, and the coefficients.
struct SumsAndGradients<'a, E: Element> {
    read: Read<'a, E>,
    shape: &'a Shape,
    coefs: Coefs<'a, E::Acc>,
    extremes: &'a [Extreme],
    through: Through,
    writes: bool,
}

impl<'a, E: Element> SumsAndGradients<'a, E> {
    fn sums_len(&self) -> usize {
        2 * self.read.plan.block_channels()
    }
    fn sums<'c>(&self, cached: &'c [f64]) -> (&'c [f64], &'c [f64]) {
        cached[..self.sums_len()].split_at(self.read.plan.block_channels())
    }
    fn table<'c>(&self, block: usize, cached: &'c [f64]) -> Table<'c, E::Acc> {
        Table::new(&cached[self.sums_len()..], self.read.plan.channels(block))
    }
    /// Writes the gradients that take no sums of this batch, in one pass.
    fn write_only(
        &self,
        cpu: &Cpu,
        outputs: &mut (Option<Elements<'a, E>>, Option<Elements<'a, E>>),
    ) {
        let (plan, channels) = (&Plan::once(self.shape), 0..self.shape.channels());
        let read = Read { plan, ..self.read };
        cpu.with_workspace(Table::<E::Acc>::FIELDS * channels.len(), |memory| {
            self.coefs.forward(channels.clone(), memory);
            self.coefs.gradient(channels.clone(), None, memory);
            let table = Table::new(memory, channels);
            for_each_tile(plan, false, outputs, |tile, outputs: Parts<'_, E>| {
                walk(plan, &tile, &table, &mut Gradients::new(read, self.through, outputs));
            });
        });
    }
}

impl<'a, E: Element> TwoPass for SumsAndGradients<'a, E> {
    /// `grad_x`, which may hold `grad_y`, and `grad_residual`.
    type Outputs = (Option<Elements<'a, E>>, Option<Elements<'a, E>>);

    fn cached_len(&self) -> usize {
        (2 + Table::<E::Acc>::FIELDS) * self.read.plan.block_channels()
    }
    fn prepare(&self, block: usize, cached: &mut [f64]) {
        let table = &mut cached[self.sums_len()..];
        self.coefs.forward(self.read.plan.channels(block), table);
    }
    fn reduce(&self, tile: &Tile, outputs: &Part<'_, Self>, cached: &[f64], slot: &mut [f64]) {
        gradients::sums(&self.read, tile, &outputs.0, &self.table(tile.block, cached), slot);
    }
    fn merge(&self, block: usize, outputs: &Part<'_, Self>, slots: &mut [f64], cached: &mut [f64]) {
        let Read { simd, plan, .. } = self.read;
        let Coefs { saved, .. } = self.coefs;
        let channels = plan.channels(block);
        let (both, memory) = cached.split_at_mut(self.sums_len());
        gradients::merge(simd, plan, slots, both);
        let (sums, products) = both.split_at_mut(plan.block_channels());
        let by = Statistics::saved(saved, channels.clone());
        for (k, product) in products[..channels.len()].iter_mut().enumerate() {
            // The tasks have subtracted the rounded mean.
            let less = finite(by.rest[k].to_f64() * sums[k]);
            *product = (*product - less) * by.invstd[k].to_f64();
        }
        for (k, c) in channels.clone().enumerate() {
            let extreme = self.extremes.iter().find(|e| e.c == c);
            if extreme.is_some() || is_lost::<E>(sums[k], products[k]) {
                let coef = Table::new(memory, channels.clone()).at(c);
                let normalize = |x: E::Acc| match extreme {
                    Some(extreme) => extreme.normalize(x.to_f64()),
                    None => coef.normalize(x).to_f64(),
                };
                let by = Extreme::of_channel(saved, c);
                let elements = self.shape.channel(c);
                (sums[k], products[k]) =
                    wide_sums(&self.read, elements, &outputs.0, normalize, |x| by.xhat(x));
            }
        }
        self.coefs.gradient(channels, Some((sums, products)), memory);
    }
    fn write(&self, tile: &Tile, outputs: Part<'_, Self>, cached: &[f64]) {
        let table = self.table(tile.block, cached);
        let mut step = Gradients::new(self.read, self.through, outputs);
        walk(self.read.plan, tile, &table, &mut step);
    }
    fn writes(&self) -> bool {
        self.writes
    }
}

/// Whether a channel's sums are to be made again, in f64: where they are not finite (an infinity or a
/// NaN among the values, or sums and products beyond the type). That of halves cannot be beyond f32.
pub(super) fn is_lost<E: Element>(sum: f64, product: f64) -> bool {
    if sum.is_finite() { !product.is_finite() } else { E::DTYPE != DType::F16 }
}

/// Where coefficients come from.
#[derive(Clone, Copy)]
struct Coefs<'a, A: Real> {
    simd: Simd,
    shape: &'a Shape,
    saved: &'a Buffers<Host, A>,
    total_sums: Option<&'a [A]>,
    mask: Option<&'a Masked<'a>>,
}

impl<A: Real> Coefs<'_, A> {
    /// Means of a channel's `g` and `g * xhat` over all parts of a batch.
    fn of_total(self, c: usize) -> Option<(f64, f64)> {
        let (total, count) = (self.total_sums?, self.shape.channels());
        let (sum, product) = (total[c].to_f64(), total[count + c].to_f64());
        if self.mask.is_some() {
            return Some(self.of_own(c, sum, product));
        }
        let m = total[2 * count].to_f64();
        Some((sum / m, product / m))
    }
    /// What a channel's sums come to over this batch, or those of all parts by a mask: what [`Extreme`] subtracts
    /// of a gradient.
    fn of_own(self, c: usize, sum: f64, product: f64) -> (f64, f64) {
        let Some(mask) = self.mask else {
            let m = self.shape.per_channel() as f64;
            return (sum / m, product / m);
        };
        let n = mask.divisor(c);
        let by = Statistics::saved(self.saved, c..c + 1);
        let of_x = product / n * by.invstd[0].to_f64();
        let mean = by.mean[0].to_f64() + by.rest[0].to_f64();
        (sum / n - of_x * mask.share(c) * mean, product / n)
    }
    /// What the forward took, in a table's memory.
    fn forward(self, channels: Range<usize>, memory: &mut [f64]) {
        let by = Statistics::saved(self.saved, channels.clone());
        TableMut::new(memory, channels).forward(self.simd, by, Parameters::saved(self.saved));
    }
    /// And what the gradient of the statistics takes, if it is asked for and their sums are known: those
    /// of all parts, or `own`, of this batch.
    fn gradient(self, channels: Range<usize>, own: Option<(&[f64], &[f64])>, memory: &mut [f64]) {
        let by = Statistics::saved(self.saved, channels.clone());
        let table = TableMut::new(memory, channels.clone());
        if let Some(total) = self.total_sums {
            let count = self.shape.channels();
            let sums = (&total[channels.clone()], &total[count..][channels]);
            match self.mask {
                Some(mask) => table.masked_gradient(by, sums, mask),
                None => table.gradient(self.simd, by, sums, total[2 * count].to_f64()),
            }
        } else if let Some((mask, own)) = self.mask.zip(own) {
            table.masked_gradient(by, own, mask);
        } else if let Some(own) = own {
            table.gradient(self.simd, by, own, self.shape.per_channel() as f64);
        }
    }
}

/// The outputs that are one value per channel.
pub(super) struct Results<'a, A> {
    pub sums: Option<&'a mut [A]>,
    pub grad_weight: Option<&'a mut [A]>,
    pub grad_bias: Option<&'a mut [A]>,
    /// Both sums of every channel, for somebody who adds them up.
    pub kept: Option<&'a mut [f64]>,
    pub accumulate: bool,
}

impl<A: Real> Results<'_, A> {
    fn any(&self) -> bool {
        let Self { sums, grad_weight, grad_bias, kept, .. } = self;
        sums.is_some() || grad_weight.is_some() || grad_bias.is_some() || kept.is_some()
    }
    /// `sum(g)` and `sum(g * xhat)` of some channels, first of all.
    pub fn set(
        &mut self,
        simd: Simd,
        shape: &Shape,
        channels: Range<usize>,
        (sums, products): (&[f64], &[f64]),
    ) {
        let (n, all) = (channels.len(), shape.channels());
        let (sums, products) = (&sums[..n], &products[..n]);
        if let Some(to) = &mut self.sums {
            let (of_sums, rest) = to.split_at_mut(all);
            sums::store(simd, &mut of_sums[channels.clone()], false, sums);
            sums::store(simd, &mut rest[channels.clone()], false, products);
            rest[all] = A::from_f64(shape.per_channel() as f64);
        }
        if let Some(kept) = &mut self.kept {
            let (of_sums, rest) = kept.split_at_mut(all);
            of_sums[channels.clone()].copy_from_slice(sums);
            rest[channels.clone()].copy_from_slice(products);
        }
        for (to, by) in [(&mut self.grad_weight, products), (&mut self.grad_bias, sums)] {
            if let Some(to) = to {
                sums::store(simd, &mut to[channels.clone()], self.accumulate, by);
            }
        }
    }
}
