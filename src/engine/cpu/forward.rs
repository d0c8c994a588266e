//! The forwards: statistics of the batch, or given ones, then normalization.
use super::elementwise::{Cut, Step, by_piece, walk};
use super::extremes::{self, Extreme};
use super::kernels::convert::{bits_of_positive, narrow};
use super::kernels::elementwise::{At, Work, ahead_of, normalize};
use super::kernels::moments as merging;
use super::masked::Masked;
use super::masked_stats;
use super::moments::{self, Merged, Moments};
use super::plan::{Plan, Tile};
use super::schedule::{Part, TwoPass, two_pass, workspace_len};
use super::simd::{Scratch, Simd};
use super::staged::Staged;
use super::table::{Parameters, Statistics, Strip, Table, TableMut};
use super::tiles::{Elements, TileMut, Writer, clipped, for_each_tile};
use super::{Cpu, stats, update, update_by};
use crate::engine::saved::{Buffers, Opened};
use crate::engine::{Activation, Derivative, ForwardEval, ForwardTrain, Input, OneValue, Running};
use crate::{AllMasked, Element, Host, Real, Result, Shape, engine};
use std::ops::Range;

/// Keeps the moments of every channel in `kept` where that is given: means, then sums of squares.
pub(super) fn forward_train<E: Element>(
    cpu: &Cpu,
    shape: &Shape,
    mut args: ForwardTrain<'_, Host, E>,
    kept: Option<&mut [f64]>,
) -> Result<()> {
    args.check(&Host, shape)?;
    let simd = cpu.simd()?;
    let mut saved = args.open(cpu, shape)?.map(Opened::filled);
    let parameters = Parameters { weight: args.weight, bias: args.bias };
    saved.iter_mut().for_each(|saved| parameters.save(saved));
    let (x, y, eps) = (args.x, args.y, args.eps);
    if shape.is_empty() {
        if let Some(saved) = saved {
            let saved = saved.by_channel_mut();
            let is_nan = args.mask.as_ref().is_some_and(|m| m.all_masked == AllMasked::Nan);
            let (mean, invstd) =
                if is_nan { (f64::NAN, f64::NAN) } else { (0.0, 1.0 / eps.sqrt()) };
            saved.mean.fill(Real::from_f64(mean));
            saved.mean_rest.fill(Real::from_f64(0.0));
            saved.invstd.fill(Real::from_f64(invstd));
        }
        if let (Some(running), Some(mask)) = (&mut args.running, &args.mask) {
            let rules = (args.one_value, mask.all_masked);
            let channels = 0..shape.channels();
            channels.for_each(|c| running.update_masked(c, 0.0, 0.0, |_| 0.0, rules));
            return Ok(());
        }
        let none = |_| Moments::default();
        update(&mut args.running, 0..shape.channels(), none, args.one_value);
        return Ok(());
    }
    let plan = &Plan::new(shape, size_of::<E>(), 1);
    let (residual, activation) = (args.residual, args.activation);
    let output = Output { simd, shape, plan, x: Some(x), residual, activation };
    let mask = args.mask.as_ref().map(|mask| (mask.rules(), mask.places));
    Masked::with((cpu, simd), (shape, plan), mask, x, None, |mask| {
        let train = Train { output, x, parameters, eps, mask };
        train.run(cpu, (&mut args.running, args.one_value), y, saved, kept);
    })
}

impl<E: Element> Train<'_, E> {
    fn run(
        &self,
        cpu: &Cpu,
        (running, one_value): (&mut Option<Running<'_, Host, E::Acc>>, OneValue),
        y: &mut [E],
        mut saved: Option<&mut Buffers<Host, E::Acc>>,
        mut kept: Option<&mut [f64]>,
    ) {
        let Self { output, x, parameters, mask, .. } = *self;
        let Output { simd, shape, plan, .. } = output;
        cpu.with_workspace(workspace_len(plan, self), |workspace| {
            let of_mask = output.mask(saved.as_deref_mut()).map(Elements::mask);
            let mut outputs = (Elements::new(&mut *y), of_mask);
            let cached = two_pass(plan, self, &mut outputs, workspace);
            let mut extremes = vec![];
            for (block, cached) in cached.chunks(self.cached_len()).enumerate() {
                let channels = plan.channels(block);
                let [merged, statistics, _] = self.split(cached);
                let statistics = Statistics::split(statistics, channels.len());
                if let Some(saved) = &mut saved {
                    statistics.save(saved, channels.clone());
                }
                extremes.extend(Extreme::among(simd, channels.clone(), parameters, statistics));
                let merged = Merged::new(merged, shape);
                if let Some(mask) = mask {
                    masked_stats::update(running, channels, &merged, mask, one_value);
                    continue;
                }
                let (n, squares) = (channels.len(), &merged.squares[..channels.len()]);
                let (base, offset) = (&merged.base[..n], &merged.offset[..n]);
                let mean = |k: usize| base[k] + offset[k];
                if let Some(kept) = &mut kept {
                    let (means, to) = kept.split_at_mut(shape.channels());
                    let means = means[channels.clone()].iter_mut().enumerate();
                    means.for_each(|(k, to)| *to = mean(k));
                    to[channels.clone()].copy_from_slice(squares);
                }
                let m = shape.per_channel() as f64;
                update_by(simd, running, channels, m, mean, squares, one_value);
            }
            let x = extremes::elements(&extremes, shape, x);
            output.write_extremes(&extremes, x, y, saved);
        });
    }
}

pub(super) fn forward_eval<E: Element>(
    cpu: &Cpu,
    shape: &Shape,
    mut args: ForwardEval<'_, Host, E>,
) -> Result<()> {
    args.check(&Host, shape)?;
    let simd = cpu.simd()?;
    let mut saved = args.open(cpu, shape)?.map(Opened::filled);
    let parameters = Parameters { weight: args.weight, bias: args.bias };
    let plan = &Plan::once(shape);
    let x = match args.x {
        Input::View(x) => Some(x),
        Input::InPlace => None,
    };
    let (residual, activation) = (args.residual, args.activation);
    let output = Output { simd, shape, plan, x, residual, activation };
    let (n, y) = (shape.channels(), args.y);
    let statistics_len = Statistics::<E::Acc>::FIELDS * n;
    cpu.with_workspace(statistics_len + Table::<E::Acc>::FIELDS * n, |workspace| {
        let (memory, of_table) = workspace.split_at_mut(statistics_len);
        given(simd, args.statistics, args.eps, Statistics::split_mut(memory, n));
        let statistics = Statistics::split(memory, n);
        if let Some(saved) = &mut saved {
            parameters.save(saved);
            statistics.save(saved, 0..n);
        }
        let extremes = Extreme::among(simd, 0..n, parameters, statistics);
        TableMut::new(of_table, 0..n).forward(simd, statistics, parameters);
        let table = Table::new(of_table, 0..n);
        // In place, before the loops overwrite it.
        let x = extremes::elements(&extremes, shape, output.x.unwrap_or(y));
        let of_mask = output.mask(saved.as_deref_mut()).map(Elements::mask);
        let mut outputs = (Elements::new(&mut *y), of_mask);
        for_each_tile(plan, false, &mut outputs, |tile, outputs| {
            output.write(&tile, &table, outputs);
        });
        output.write_extremes(&extremes, x, y, saved);
    });
    Ok(())
}

/// Writes what a forward normalizes by, of statistics that it is given.
fn given<A: Real>(
    simd: Simd,
    statistics: engine::Statistics<'_, Host, A>,
    eps: f64,
    [mean, rest, invstd]: [&mut [A]; 3],
) {
    let n = mean.len();
    match statistics {
        engine::Statistics::Given { mean: given, var } => {
            mean.copy_from_slice(&given[..n]);
            rest.fill(A::default());
            merging::invstds_of(simd, &var[..n], eps, invstd);
        }
        engine::Statistics::Record(record) => {
            for (c, (mean, rest)) in mean.iter_mut().zip(rest).enumerate() {
                (*mean, *rest) = moments::Moments::of_record(record, n, c).mean_and_rest();
            }
            merging::invstds_of(simd, &record[2 * n..3 * n], eps, invstd);
        }
    }
}

/// The steps of the training forward. What is cached for a block: the moments of its channels, what
/// follows from them for a backward, and the coefficients.
struct Train<'a, E: Element> {
    output: Output<'a, E>,
    x: &'a [E],
    parameters: Parameters<'a, E::Acc>,
    eps: f64,
    /// Absent where all values count.
    mask: Option<&'a Masked<'a>>,
}

impl<E: Element> Train<'_, E> {
    /// Lengths of the parts of what is cached: of [`Merged`], [`Statistics`] and [`Table`].
    fn lens(&self) -> [usize; 3] {
        let n = self.output.plan.block_channels();
        [Merged::FIELDS, Statistics::<E::Acc>::FIELDS, Table::<E::Acc>::FIELDS].map(|len| len * n)
    }
    fn split<'c>(&self, cached: &'c [f64]) -> [&'c [f64]; 3] {
        let [merged, statistics, _] = self.lens();
        let (merged, rest) = cached.split_at(merged);
        let (statistics, table) = rest.split_at(statistics);
        [merged, statistics, table]
    }
}

impl<'a, E: Element> TwoPass for Train<'a, E> {
    /// y, and the mask.
    type Outputs = (Elements<'a, E>, Option<Elements<'a, u8>>);

    fn cached_len(&self) -> usize {
        self.lens().iter().sum()
    }
    /// Of a mask a number of values beside the two sums.
    fn sums(&self) -> usize {
        if self.mask.is_some() { 3 } else { 2 }
    }
    fn prepare(&self, _: usize, _: &mut [f64]) {}
    fn reduce(&self, tile: &Tile, _: &Part<'_, Self>, _: &[f64], slot: &mut [f64]) {
        let Output { simd, plan, .. } = self.output;
        match self.mask {
            Some(mask) => masked_stats::moments(simd, plan, tile, (self.x, mask), slot),
            None => stats::moments(simd, plan, tile, self.x, slot),
        }
    }
    fn merge(&self, block: usize, _: &Part<'_, Self>, slots: &mut [f64], cached: &mut [f64]) {
        let Output { simd, shape, plan, .. } = self.output;
        let channels = plan.channels(block);
        let n = channels.len();
        let [of_moments, of_statistics, _] = self.lens();
        let (memory, rest) = cached.split_at_mut(of_moments);
        let (statistics, table) = rest.split_at_mut(of_statistics);
        match self.mask {
            Some(mask) => {
                let of = (self.x, mask, self.eps);
                masked_stats::merge(simd, (shape, plan), block, of, slots, memory);
            }
            None => moments::merge(simd, (shape, plan), block, (self.x, self.eps), slots, memory),
        }
        let Merged { base, offset, invstd, .. } = Merged::new(memory, shape);
        merging::round(
            simd,
            (base, offset, invstd),
            Statistics::<E::Acc>::split_mut(statistics, n),
        );
        let statistics = Statistics::split(statistics, n);
        TableMut::new(table, channels).forward(simd, statistics, self.parameters);
    }
    fn write(&self, tile: &Tile, outputs: Part<'_, Self>, cached: &[f64]) {
        let [_, _, table] = self.split(cached);
        let table = Table::new(table, self.output.plan.channels(tile.block));
        self.output.write(tile, &table, outputs);
    }
}

/// How both forwards write y and the mask.
#[derive(Clone, Copy)]
struct Output<'a, E> {
    simd: Simd,
    shape: &'a Shape,
    plan: &'a Plan,
    /// Absent where y holds it.
    x: Option<&'a [E]>,
    residual: Option<&'a [E]>,
    activation: Activation,
}

impl<E: Element> Output<'_, E> {
    /// The reserve space as a mask to write, where a backward takes one.
    fn mask<'s>(&self, saved: Option<&'s mut Buffers<Host, E::Acc>>) -> Option<&'s mut [u8]> {
        let takes = self.activation.derivative_from(self.residual.is_some());
        let has_mask = takes == Derivative::FromMask;
        let reserve = saved.filter(|_| has_mask)?.reserve.as_mut()?;
        Some(&mut reserve[..self.plan.mask_len()])
    }
    /// Writes extreme channels again; `x` holds their elements.
    fn write_extremes(
        &self,
        extremes: &[Extreme],
        x: Vec<Vec<E>>,
        y: &mut [E],
        saved: Option<&mut Buffers<Host, E::Acc>>,
    ) {
        let Output { shape, plan, residual, activation, .. } = *self;
        let forward = extremes::Forward { shape, plan, x, residual, activation };
        forward.write(extremes, y, self.mask(saved));
    }
    /// Writes a tile.
    fn write(
        &self,
        tile: &Tile,
        table: &Table<'_, E::Acc>,
        (y, mask): (TileMut<'_, E>, Option<TileMut<'_, u8>>),
    ) {
        let y = Writer::new(self.plan, y, 2, self.x.is_none());
        let (held, staged) = (Scratch::new(), Staged::new());
        let mut step = Normalize { output: *self, y, mask, held, staged };
        walk(self.plan, tile, table, &mut step);
    }
}

/// `y = activation(normalize(x) [+ residual])` over a tile.
struct Normalize<'a, 'p, E: Element> {
    output: Output<'a, E>,
    y: Writer<'p, E>,
    mask: Option<TileMut<'p, u8>>,
    /// For what y held.
    held: Scratch<E>,
    staged: Staged<E::Acc>,
}

impl<'a, E: Element> Normalize<'a, '_, E> {
    /// x, and whether there is a ReLU, where a loop does all that is to be done.
    fn plain(&self) -> Option<(&'a [E], bool)> {
        let x = self.output.x.filter(|_| self.mask.is_none())?;
        match self.output.activation {
            Activation::Identity => Some((x, false)),
            Activation::Relu => Some((x, true)),
            _ => None,
        }
    }
}

impl<E: Element> Step<E::Acc> for Normalize<'_, '_, E> {
    type Element = E;
    const GRADIENT: bool = false;
    fn to_line(&self, tile: &Tile) -> usize {
        if self.mask.is_some() { 0 } else { self.y.to_line(tile) }
    }
    fn cut(&self) -> Cut {
        let is_loop = matches!(self.output.activation, Activation::Identity | Activation::Relu);
        match (self.plain(), self.output.x) {
            (Some(_), _) => Cut::Row,
            (None, Some(_)) if is_loop => Cut::Twice,
            _ => Cut::Held,
        }
    }
    fn columns(&mut self, tile: &Tile, strips: &[(Range<usize>, &Strip<E::Acc>)]) {
        let Output { simd, plan, residual, .. } = self.output;
        match self.plain() {
            Some((x, relu)) => {
                let from = [x, residual.unwrap_or(x)];
                let (rows, out) = (tile.rows.clone(), &mut self.y);
                let work = Work::Rows { plan, tile, rows, strips, from, out };
                normalize(simd, (residual.is_some(), relu), work);
            }
            None => by_piece(self, tile, strips),
        }
    }
    #[inline(always)]
    fn piece(&mut self, tile: &Tile, row: usize, cols: Range<usize>, at: At<'_, E::Acc>) {
        let Output { simd, plan, x: all_x, residual, activation, .. } = self.output;
        let range = clipped(row, cols.clone(), plan.width, plan.len());
        let x = match all_x {
            Some(x) => &x[range.clone()],
            None => self.held.copy(self.y.held(row, cols.clone())),
        };
        let residual = residual.map(|r| &r[range]);
        let ahead = ahead_of([x, residual.unwrap_or(x)], tile.ahead(row, &cols, plan.width));
        let mask = self.mask.as_mut().map(|m| m.row_mut(row, plan.mask_cols(&cols)));
        let relu = match activation {
            Activation::Identity => false,
            Activation::Relu => true,
            _ => {
                let values = self.staged.values(simd, at, (x, residual), activation, mask);
                return self.y.write(simd, row, cols, false, |_, y| narrow(simd, values, y));
            }
        };
        self.y.write(simd, row, cols, mask.is_none(), |store, y| {
            let (from, out) = ([x, residual.unwrap_or(x)], &mut *y);
            let work = Work::Piece { store, at, from, out, ahead };
            normalize(simd, (residual.is_some(), relu), work);
            if let Some(mask) = mask {
                bits_of_positive(simd, y, mask);
            }
        });
    }
}
