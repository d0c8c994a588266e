//! The backward: the sums of every channel, then what they make of the gradients.
use super::Cpu;
use super::counted;
use super::elementwise::walk;
use super::extremes::{self, Extreme};
use super::gate::Gate;
use super::gradients::{self, Gradients, Parts, Read, elements_of_grad_y, wide_sums};
use super::kernels::elementwise::Through;
use super::kernels::sums;
use super::masked::Masked;
use super::plan::{Plan, Tile};
use super::schedule::{Part, TwoPass, two_pass, workspace_len};
use super::simd::Simd;
use super::slots::Sums;
use super::table::{self, Parameters, Statistics, Table, TableMut, finite, split_mut};
use super::tiles::by_range::{ByRange, Channels, all_channels};
use super::tiles::{Elements, for_each_tile};
use crate::engine::saved::Buffers;
use crate::engine::{Backward, Derivative, Input};
use crate::{DType, Element, Host, Real, Result, Shape};
use std::sync::{Mutex, PoisonError};

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
        results.set(simd, shape, (&zeros, &zeros));
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
    let is_loop = matches!(gate, Gate::Open | Gate::Recompute) && places.is_none();
    let plan = &if is_loop { plan.summing_runs() } else { *plan };
    let counts = args.saved.counted().map(|counted| &counted.counts[..]);
    Masked::with((cpu, simd), (shape, plan), places, x, counts, |mask| {
        let read = Read { simd, plan, x, grad_y, gate, mask };
        let through = match forward.batch_statistics || total_sums.is_some() {
            true => Through::Statistics,
            false => Through::Constants,
        };
        let coefs = Coefs { simd, shape, saved, total_sums, mask };
        let writes = grad_x.is_some() || grad_residual.is_some();
        let own_sums = forward.batch_statistics && total_sums.is_none();
        let (accumulate, extremes) = (results.accumulate, Mutex::default());
        let gradients =
            SumsAndGradients { read, shape, coefs, through, writes, accumulate, extremes };
        if !(results.any() || own_sums && grad_x.is_some()) {
            let extremes = &Extreme::of_saved(simd, saved)[..];
            // What the loops are about to overwrite.
            let held = match (grad_y, &grad_x) {
                (Some(grad_y), _) => extremes::elements(extremes, shape, grad_y),
                (None, Some(grad_x)) => extremes::elements(extremes, shape, grad_x),
                (None, None) => vec![],
            };
            let of_x = grad_x.as_deref_mut().map(Elements::new);
            let of_residual = grad_residual.as_deref_mut().map(Elements::new);
            gradients.write_only(cpu, &mut (of_x, of_residual));
            let apart = extremes::Backward { shape, plan, x, gate, grad_y: held, mask };
            for (k, e) in extremes.iter().enumerate() {
                let to = (grad_x.as_deref_mut(), grad_residual.as_deref_mut());
                apart.write(e, k, coefs.of_total(e.c), to);
            }
            return;
        }
        cpu.with_workspace(workspace_len(plan, &gradients), |workspace| {
            let of_x = grad_x.as_deref_mut().map(Elements::new);
            let of_residual = grad_residual.as_deref_mut().map(Elements::new);
            let mut results = results.by_range(shape);
            two_pass(plan, &gradients, &mut (of_x, of_residual), &mut results, workspace);
        });
        let mut found = gradients.extremes.into_inner().unwrap_or_else(PoisonError::into_inner);
        found.sort_by_key(|found| found.extreme.c);
        let held = found.iter_mut().map(|found| std::mem::take(&mut found.grad_y)).collect();
        let apart = extremes::Backward { shape, plan, x, gate, grad_y: held, mask };
        for (k, Found { extreme: e, sums: (sum, product), .. }) in found.iter().enumerate() {
            let own = forward.batch_statistics.then(|| coefs.of_own(e.c, *sum, *product));
            let to = (grad_x.as_deref_mut(), grad_residual.as_deref_mut());
            apart.write(e, k, coefs.of_total(e.c).or(own), to);
        }
    })
}

/// An extreme channel as a task has found it.
struct Found<E> {
    extreme: Extreme,
    /// `sum(g)` and `sum(g * xhat)`.
    sums: (f64, f64),
    /// In the order of its elements, which the second pass may overwrite.
    grad_y: Vec<E>,
}

/// The steps of the backward.
struct SumsAndGradients<'a, E: Element> {
    read: Read<'a, E>,
    shape: &'a Shape,
    coefs: Coefs<'a, E::Acc>,
    through: Through,
    writes: bool,
    /// Whether gradients of parameters are added to what is there.
    accumulate: bool,
    /// In any order.
    extremes: Mutex<Vec<Found<E>>>,
}

impl<'a, E: Element> SumsAndGradients<'a, E> {
    /// Writes the gradients that take no sums of this batch, in one pass.
    fn write_only(
        &self,
        cpu: &Cpu,
        outputs: &mut (Option<Elements<'a, E>>, Option<Elements<'a, E>>),
    ) {
        let (plan, channels) = (&Plan::once(self.shape), 0..self.shape.channels());
        let read = Read { plan, ..self.read };
        cpu.with_workspace(Table::<E::Acc>::FIELDS * channels.len(), |memory| {
            let mut table = TableMut::new(memory, channels.clone());
            self.coefs.forward(table.reborrow());
            self.coefs.gradient(None, table);
            let table = Table::new(memory, channels);
            for_each_tile(plan, false, outputs, |tile, outputs: Parts<'_, E>| {
                walk(plan, &tile, &table, &mut Gradients::new(read, self.through, outputs));
            });
        });
    }
}

impl<'a, E: Element> TwoPass<{ table::FIELDS }> for SumsAndGradients<'a, E> {
    /// `grad_x`, which may hold `grad_y`, and `grad_residual`.
    type Outputs = (Option<Elements<'a, E>>, Option<Elements<'a, E>>);
    type Results = Arrays<'a, E::Acc>;
    type Number = E::Acc;

    fn summed(&self, _: &Plan) -> Plan {
        self.read.summed()
    }
    /// `sum(g)` and `sum(g * xhat)`.
    fn work_len(&self) -> usize {
        2
    }
    fn prepare(&self, table: TableMut<'_, E::Acc>) {
        self.coefs.forward(table);
    }
    fn reduce(
        &self,
        tile: &Tile,
        outputs: &Part<'_, Self, { table::FIELDS }>,
        table: &Table<'_, E::Acc>,
        slot: &mut [f64],
    ) {
        counted::values(2 * tile.len());
        gradients::sums(&self.read, tile, &outputs.0, table, slot);
    }
    fn merge(
        &self,
        of_tiles: Sums<'_>,
        outputs: &Part<'_, Self, { table::FIELDS }>,
        mut table: TableMut<'_, E::Acc>,
        work: &mut [f64],
        results: ArraysOf<'_, 'a, E::Acc>,
    ) {
        let Read { simd, .. } = self.read;
        let Coefs { saved, .. } = self.coefs;
        let channels = of_tiles.channels.clone();
        gradients::merge(simd, &self.read.summed(), of_tiles, work);
        let (sums, products) = work.split_at_mut(channels.len());
        let by = Statistics::saved(saved, channels.clone());
        for (k, product) in products.iter_mut().enumerate() {
            // The tasks have subtracted the rounded mean.
            let less = finite(by.rest[k].to_f64() * sums[k]);
            *product = (*product - less) * by.invstd[k].to_f64();
        }
        // Mean, invstd and weight.
        counted::values(3 * channels.len());
        let extremes = Extreme::among(simd, channels.clone(), Parameters::saved(saved), by);
        for (k, c) in channels.enumerate() {
            let extreme = extremes.iter().find(|e| e.c == c);
            if extreme.is_some() || is_lost::<E>(sums[k], products[k]) {
                let coef = table.read().at(c);
                let normalize = |x: E::Acc| match extreme {
                    Some(extreme) => extreme.normalize(x.to_f64()),
                    None => coef.normalize(x).to_f64(),
                };
                let by = Extreme::of_channel(saved, c);
                let elements = self.shape.channel(c);
                (sums[k], products[k]) =
                    wide_sums(&self.read, elements, &outputs.0, normalize, |x| by.xhat(x));
            }
            if let Some(extreme) = extreme {
                let grad_y = elements_of_grad_y(&self.read, self.shape.channel(c), &outputs.0);
                let sums = (sums[k], products[k]);
                let mut found = self.extremes.lock().unwrap_or_else(PoisonError::into_inner);
                found.push(Found { extreme: *extreme, sums, grad_y });
            }
        }
        self.coefs.gradient(Some((sums, products)), table.reborrow());
        write(simd, self.accumulate, (sums, products), results);
    }
    fn write(
        &self,
        tile: &Tile,
        outputs: Part<'_, Self, { table::FIELDS }>,
        table: &Table<'_, E::Acc>,
    ) {
        counted::values(3 * tile.len());
        let mut step = Gradients::new(self.read, self.through, outputs);
        walk(self.read.plan, tile, table, &mut step);
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
    /// What the forward took.
    fn forward(self, table: TableMut<'_, A>) {
        let by = Statistics::saved(self.saved, table.channels.clone());
        // Five arrays that are read, and three that are written.
        counted::values(8 * table.channels.len());
        table.forward(self.simd, by, Parameters::saved(self.saved));
    }
    /// And what the gradient of the statistics takes, if it is asked for and their sums are known: those
    /// of all parts, or `own`, of this batch.
    fn gradient(self, own: Option<(&[f64], &[f64])>, table: TableMut<'_, A>) {
        let channels = table.channels.clone();
        let by = Statistics::saved(self.saved, channels.clone());
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
    /// The arrays, for tasks to write by channels. How many values a channel has is no channel's: it is written.
    fn by_range(&mut self, shape: &Shape) -> Arrays<'_, A> {
        let all = shape.channels();
        let sums = self.sums.as_deref_mut().map(|sums| {
            sums[2 * all] = A::from_f64(shape.per_channel() as f64);
            split_mut(sums, all).map(Channels::new)
        });
        let kept = self.kept.as_deref_mut().map(|kept| split_mut(kept, all).map(Channels::new));
        let weight = self.grad_weight.as_deref_mut().map(Channels::new);
        (sums, kept, weight, self.grad_bias.as_deref_mut().map(Channels::new))
    }
    /// Writes `sum(g)` and `sum(g * xhat)` of all channels.
    pub fn set(&mut self, simd: Simd, shape: &Shape, sums: (&[f64], &[f64])) {
        let accumulate = self.accumulate;
        let mut arrays = self.by_range(shape);
        write(simd, accumulate, sums, all_channels(&mut arrays, shape.channels()));
    }
}

/// The arrays of [`Results`]: both sums, both that are kept, gradients of weight and of bias.
type Arrays<'a, A> = (
    Option<[Channels<'a, A>; 2]>,
    Option<[Channels<'a, f64>; 2]>,
    Option<Channels<'a, A>>,
    Option<Channels<'a, A>>,
);
/// Those of some channels.
type ArraysOf<'o, 'a, A> = <Arrays<'a, A> as ByRange>::Part<'o>;

/// Writes the sums of some channels.
fn write<A: Real>(
    simd: Simd,
    accumulate: bool,
    (sums, products): (&[f64], &[f64]),
    (of_sums, kept, grad_weight, grad_bias): ArraysOf<'_, '_, A>,
) {
    if let Some([to_sums, to_products]) = of_sums {
        sums::store(simd, to_sums, false, sums);
        sums::store(simd, to_products, false, products);
    }
    if let Some([to_sums, to_products]) = kept {
        to_sums.copy_from_slice(sums);
        to_products.copy_from_slice(products);
    }
    for (to, by) in [(grad_weight, products), (grad_bias, sums)] {
        if let Some(to) = to {
            sums::store(simd, to, accumulate, by);
        }
    }
}
