//! The training forward.
use super::super::forward::forward_train as forward_one;
use super::super::kernels::ghost::{Forward, ForwardStrip, Published, Rows, Update};
use super::super::moments::small_squares;
use super::super::simd::{GROUP, Simd};
use super::super::table::{Parameters, split_mut};
use super::super::tiles::by_range::{Channels, OfTiles};
use super::super::tiles::{Columns, Elements, Slots, TileMut, for_each_tile, numbers_mut};
use super::{Cpu, Failure, Memory, Strips, TakesStrips, elements, for_each_strip, plan, rows_of};
use crate::engine::saved::{ByChannel, Opened};
use crate::engine::{Activation, ForwardTrain, GroupRows};
use crate::{Element, Host, Real, Result, Saved, Shape};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

/// How groups move running statistics.
#[derive(Clone, Copy)]
enum Moves<'f> {
    /// Each by its weights.
    Each(&'f [(f64, f64)]),
    /// Together, by the average of so many.
    Average((f64, f64), f64),
}

/// Groups of one call, each by its own statistics. Running statistics move by each in its turn, by its pair of
/// `factors`, or by the average of all where that is one pair.
pub(in super::super) fn forward_train<E: Element>(
    cpu: &Cpu,
    shape: &Shape,
    groups: GroupRows,
    mut args: ForwardTrain<'_, Host, E>,
    factors: &[(f64, f64)],
) -> Result<()> {
    args.check(&Host, shape)?;
    let simd = cpu.simd()?;
    let channels = shape.channels();
    let Some(saved) = args.open_groups(cpu, shape, groups.count, 1)?.map(Opened::filled) else {
        return Ok(());
    };
    let parameters = Parameters { weight: args.weight, bias: args.bias };
    let ForwardTrain { x, y, residual, activation, eps, mut running, one_value, .. } = args;
    let (is_small, small_var) = small_squares::<E::Acc>(eps);
    let (relu, least_var) =
        (activation == Activation::Relu, if is_small { small_var } else { 0.0 });
    let kernel = Forward { x, residual, width: channels, eps, relu, least_var };
    let counts = [0, groups.count - 1].map(|k| {
        let rows = rows_of(shape, groups, k).count as f64;
        running.as_ref().and_then(|running| running.moves_plainly(rows, one_value))
    });
    let moves = match factors {
        [average] if groups.count > 1 => Moves::Average(*average, groups.count as f64),
        each => Moves::Each(each),
    };
    let is_odd = &AtomicBool::new(false);
    let task =
        Task { cpu, simd, shape, groups, kernel: &kernel, activation, moves, counts, is_odd };
    let (ByChannel { mean, mean_rest, invstd, weight, bias }, reserve) = saved.with_reserve_mut();
    // Of all groups alike: there once.
    parameters.write(&mut weight[..channels], &mut bias[..channels]);
    let plan = &plan::<E>(shape);
    let work_len = Memory::len(plan, 1, Task::<E>::ARRAYS);
    let failure = Failure::default();
    cpu.with_workspace(plan.tiles() * work_len, |work| {
        let [mean, rest, invstd] = [mean, mean_rest, invstd].map(|array| {
            let (values, _) = array.split_at_mut(groups.count * channels);
            Columns::new(values, groups.count)
        });
        let moved = running
            .as_mut()
            .map(|running| [Channels::new(&mut *running.mean), Channels::new(&mut *running.var)]);
        let of_channels = (OfTiles(moved), Slots::new(work, work_len));
        let mut outputs = (Elements::new(y), (mean, rest, invstd), of_channels);
        for_each_tile(plan, false, &mut outputs, |tile, (y, saved, (moved, work))| {
            let (weight, bias) = (&weight[tile.cols.clone()], &bias[tile.cols.clone()]);
            let to = (y, [saved.0, saved.1, saved.2]);
            failure.note(task.run(tile.cols, [weight, bias], to, moved, work));
        });
    });
    if let Some(flag) = reserve.and_then(|reserve| reserve.first_mut()) {
        *flag = is_odd.load(Ordering::Relaxed).into();
    }
    failure.result()
}

/// What tasks have in common.
struct Task<'a, E: Element> {
    cpu: &'a Cpu,
    simd: Simd,
    shape: &'a Shape,
    groups: GroupRows,
    kernel: &'a Forward<'a, E>,
    activation: Activation,
    moves: Moves<'a>,
    /// What sums of squares of the first group are divided by, and of the last one.
    counts: [Option<f64>; 2],
    /// Whether a strip has taken the way of every batch.
    is_odd: &'a AtomicBool,
}

/// What a task has of its channels, in the order of [`Strips`], and what it writes.
struct Running<'t, 'p, 'a, E: Element> {
    task: &'t Task<'a, E>,
    weight: &'t mut [E::Acc],
    bias: &'t mut [E::Acc],
    /// Running mean and variance, or their sums: before a group and after it, by turns.
    means: [&'t mut [f64]; 2],
    vars: [&'t mut [f64]; 2],
    rows: &'t mut [f64],
    memory: ForwardStrip<E::Acc>,
    y: TileMut<'p, E>,
    saved: [TileMut<'p, E::Acc>; 3],
}

impl<E: Element> Task<'_, E> {
    /// Arrays of its channels that a task works on.
    const ARRAYS: usize = 6;

    /// All groups of some channels, with their weights and biases.
    fn run(
        &self,
        cols: Range<usize>,
        parameters: [&[E::Acc]; 2],
        (y, saved): (TileMut<'_, E>, [TileMut<'_, E::Acc>; 3]),
        moved: Option<[&mut [E::Acc]; 2]>,
        work: &mut [f64],
    ) -> Result<()> {
        let strips = Strips::new(cols.len());
        let n = strips.len();
        let Memory { rows, arrays } = Memory::new(work, 1);
        let (running, of_parameters) = arrays.split_at_mut(4 * n);
        let [mean, var, next_mean, next_var] = split_mut(running, n);
        let mut kept: [_; 2] = split_mut(numbers_mut(of_parameters), n);
        for (to, from) in kept.iter_mut().zip(parameters) {
            strips.gather(from, to);
        }
        for (k, to) in [&mut *mean, &mut *var].into_iter().enumerate() {
            match (&moved, self.moves) {
                (Some(moved), Moves::Each(_)) => strips.gather(&*moved[k], to),
                _ => to.fill(0.0),
            }
        }
        let [weight, bias] = kept;
        let (means, vars, memory) = ([mean, next_mean], [var, next_var], ForwardStrip::new());
        let mut state = Running { task: self, weight, bias, means, vars, rows, memory, y, saved };
        for_each_strip((self.shape, self.groups), &cols, &mut state)?;
        let Some(moved) = moved else { return Ok(()) };
        let Running { weight: old, means, vars, .. } = state;
        let last = self.groups.count % 2;
        let [means, vars] = [means, vars].map(|[even, odd]| if last == 0 { even } else { odd });
        let mut running = [means, vars];
        if let Moves::Average((factor, var_factor), groups) = self.moves {
            let of_both = moved.iter().zip(&mut running).zip([factor, var_factor]);
            for ((moved, sums), factor) in of_both {
                // In place of the weights, which nobody takes any more.
                strips.gather(moved, old);
                for (sum, old) in sums.iter_mut().zip(&*old) {
                    let (new, old) = (*sum / groups, old.to_f64());
                    *sum = if factor == 1.0 { new } else { (1.0 - factor) * old + factor * new };
                }
            }
        }
        for (moved, running) in moved.into_iter().zip(running) {
            strips.scatter(running, moved);
        }
        Ok(())
    }
    /// A group of channels of a group of rows by the way of every batch: group `g` of a strip.
    fn one(
        &self,
        rows: Rows,
        column: usize,
        [weight, bias]: [&[E::Acc]; 2],
        (g, to): (usize, &mut Published<'_, E::Acc>),
        y: &mut TileMut<'_, E>,
    ) -> Result<()> {
        let Forward { x, residual, width, eps, .. } = *self.kernel;
        let (cols, here) = (column..column + GROUP, g * GROUP..(g + 1) * GROUP);
        let own_x = elements(x, width, rows, &cols);
        let own_residual = residual.map(|residual| elements(residual, width, rows, &cols));
        let (mut own_y, mut saved) = (vec![E::default(); own_x.len()], Saved::new());
        let shape = Shape::new(&[rows.count, GROUP], 1)?;
        let mut part = ForwardTrain::<Host, E>::new(&own_x, &mut own_y);
        part.residual = own_residual.as_deref();
        let part = part.weight(weight).bias(bias).activation(self.activation).eps(eps);
        let mut kept = [0.0; 2 * GROUP];
        forward_one(self.cpu, &shape, part.saved(&mut saved), Some(&mut kept))?;
        for (row, own) in rows.each().zip(own_y.chunks(GROUP)) {
            y.row_mut(row, cols.clone()).copy_from_slice(own);
        }
        let ByChannel { mean, mean_rest, invstd, .. } = saved.made()?.1.by_channel();
        for (to, own) in to.saved.iter_mut().zip([mean, mean_rest, invstd]) {
            to[here.clone()].copy_from_slice(own);
        }
        to.update(here, kept.split_at(GROUP));
        Ok(())
    }
}

impl<E: Element> TakesStrips for Running<'_, '_, '_, E> {
    // Arrays of slices are written out: what `map` returns of them is stored in halves and loaded whole, and that load
    // waits for every store before it, a quarter of the time of groups of 4 rows.
    fn strip<const G: usize>(
        &mut self,
        k: usize,
        rows: Rows,
        place: usize,
        column: usize,
    ) -> Result<()> {
        let (task, here) = (self.task, place..place + G * GROUP);
        let by = [&self.weight[here.clone()], &self.bias[here.clone()]];
        let ([even_mean, odd_mean], [even_var, odd_var]) = (&mut self.means, &mut self.vars);
        let (old_mean, mean, old_var, var) = match k.is_multiple_of(2) {
            true => (even_mean, odd_mean, even_var, odd_var),
            false => (odd_mean, even_mean, odd_var, even_var),
        };
        let update = match (task.counts[usize::from(k + 1 == task.groups.count)], task.moves) {
            (Some(count), Moves::Each(weights)) => Update::Blend { weights: weights[k], count },
            (Some(count), Moves::Average(..)) => Update::Add { count },
            (None, _) => Update::None,
        };
        let (old, new) = (
            [&old_mean[here.clone()], &old_var[here.clone()]],
            [&mut mean[here.clone()], &mut var[here.clone()]],
        );
        let (columns, [mean, rest, invstd]) = (column..column + G * GROUP, &mut self.saved);
        let saved = [
            mean.row_mut(k, columns.clone()),
            rest.row_mut(k, columns.clone()),
            invstd.row_mut(k, columns),
        ];
        let mut to = Published { saved, running: (old, new), update };
        let (memory, values) = (&mut self.memory, super::strips::<_, G>(self.rows));
        let done = task.kernel.run(
            task.simd,
            (rows, column),
            by,
            (memory, values),
            (&mut self.y, &mut to),
        );
        if done {
            return Ok(());
        }
        task.is_odd.store(true, Ordering::Relaxed);
        for g in 0..G {
            let by = by.map(|by| &by[g * GROUP..(g + 1) * GROUP]);
            task.one(rows, column + g * GROUP, by, (g, &mut to), &mut self.y)?;
        }
        Ok(())
    }
}
