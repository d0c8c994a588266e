//! The forwards: statistics of the batch, or given ones, then normalization.
use super::elementwise::{Cut, Step, Strips, by_piece, walk_on};
use super::extremes::{self, Extreme};
use super::kernels::convert::{bits_of_positive, narrow};
use super::kernels::elementwise::{At, Work, ahead_of, normalize};
use super::kernels::moments as merging;
use super::masked::Masked;
use super::moments::{self, Moments};
use super::plan::{Plan, Tile};
use super::simd::{Scratch, Simd};
use super::staged::Staged;
use super::table::{Parameters, Statistics, Strip, Table, TableMut};
use super::tiles::{Elements, TileMut, Writer, clipped, for_each_tile};
use super::train::Train;
use super::{Cpu, update};
use crate::engine::saved::Opened;
use crate::engine::{Activation, Derivative, ForwardEval, ForwardTrain, Input};
use crate::{AllMasked, Element, Host, Real, Result, Shape, engine};
use std::ops::Range;
use std::sync::Mutex;

/// Keeps the moments of every channel in `kept` where that is given: means, then sums of squares.
pub(super) fn forward_train<E: Element>(
    cpu: &Cpu,
    shape: &Shape,
    mut args: ForwardTrain<'_, Host, E>,
    kept: Option<&mut [f64]>,
) -> Result<()> {
    args.check(&Host, shape)?;
    let simd = cpu.simd()?;
    let saved = args.open(cpu, shape)?.map(Opened::filled);
    let parameters = Parameters { weight: args.weight, bias: args.bias };
    let (x, y, eps) = (args.x, args.y, args.eps);
    if shape.is_empty() {
        if let Some(saved) = saved {
            parameters.save(saved);
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
    let plan = Plan::new(shape, size_of::<E>(), 1);
    let plan = &if args.mask.is_none() { plan.summing_runs() } else { plan };
    let (residual, activation) = (args.residual, args.activation);
    let output = Output { simd, shape, plan, x: Some(x), residual, activation };
    let mask = args.mask.as_ref().map(|mask| (mask.rules(), mask.places));
    Masked::with((cpu, simd), (shape, plan), mask, x, None, |mask| {
        let (running, one_value) = (args.running.as_mut(), args.one_value);
        let rules = running.as_ref().map(|of| of.of_channels(&mut [], &mut [], None));
        let extremes = Mutex::default();
        let train = Train { output, x, parameters, eps, mask, rules, one_value, extremes };
        train.run(cpu, running, y, saved, kept);
    })
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
        let mut reserve = saved.and_then(|saved| saved.reserve.as_mut()).map(|all| &mut all[..]);
        let of_mask = output.mask(reserve.as_deref_mut()).map(Elements::mask);
        let mut outputs = (Elements::new(&mut *y), of_mask);
        for_each_tile(plan, false, &mut outputs, |tile, outputs| {
            output.write(&tile, &table, outputs);
        });
        output.write_extremes(&extremes, x, y, reserve);
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

/// How both forwards write y and the mask.
#[derive(Clone, Copy)]
pub(super) struct Output<'a, E> {
    pub simd: Simd,
    pub shape: &'a Shape,
    pub plan: &'a Plan,
    /// Absent where y holds it.
    pub x: Option<&'a [E]>,
    pub residual: Option<&'a [E]>,
    pub activation: Activation,
}

impl<E: Element> Output<'_, E> {
    /// The reserve space as a mask to write, where a backward takes one.
    pub fn mask<'s>(&self, reserve: Option<&'s mut [u8]>) -> Option<&'s mut [u8]> {
        let takes = self.activation.derivative_from(self.residual.is_some());
        let has_mask = takes == Derivative::FromMask;
        Some(&mut reserve.filter(|_| has_mask)?[..self.plan.mask_len()])
    }
    /// Writes extreme channels again; `x` holds their elements.
    pub fn write_extremes(
        &self,
        extremes: &[Extreme],
        x: Vec<Vec<E>>,
        y: &mut [E],
        reserve: Option<&mut [u8]>,
    ) {
        let Output { shape, plan, residual, activation, .. } = *self;
        let forward = extremes::Forward { shape, plan, x, residual, activation };
        forward.write(extremes, y, self.mask(reserve));
    }
    /// Writes a tile.
    pub fn write(
        &self,
        tile: &Tile,
        table: &Table<'_, E::Acc>,
        outputs: (TileMut<'_, E>, Option<TileMut<'_, u8>>),
    ) {
        self.write_on(tile, table, outputs, &mut Strips::new());
    }
    /// The same with coefficients that a tile before it has left.
    #[inline(always)]
    pub fn write_on(
        &self,
        tile: &Tile,
        table: &Table<'_, E::Acc>,
        (y, mask): (TileMut<'_, E>, Option<TileMut<'_, u8>>),
        strips: &mut Strips<E::Acc>,
    ) {
        let y = Writer::new(self.plan, y, 2, self.x.is_none());
        let (held, staged) = (Scratch::new(), Staged::new());
        let mut step = Normalize { output: *self, y, mask, held, staged };
        walk_on(self.plan, tile, table, &mut step, strips);
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
                let work = Work::rows(simd, (plan, tile, rows), strips, from, (out, true));
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
