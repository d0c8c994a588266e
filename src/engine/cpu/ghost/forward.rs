//! The training forward.
use super::super::forward::forward_train as forward_one;
use super::super::kernels::ghost::{
    Forward, ForwardStrip, Group, MOST_ROWS, Published, Rows, Update,
};
use super::super::moments::small_squares;
use super::super::simd::{GROUP, Simd};
use super::super::table::{Parameters, split_mut};
use super::super::tiles::by_range::{Channels, OfTiles};
use super::super::tiles::{Columns, Elements, Slots, TileMut, for_each_tile, numbers_mut};
use super::{Cpu, Failure, Memory, Strips, TakesStrips, elements, for_each_strip, places_of, plan};
use crate::engine::saved::{ByChannel, Opened};
use crate::engine::{Activation, ForwardTrain, GroupRows};
use crate::{AllMasked, Element, Host, Mask, OneValue, Real, Result, Saved, Shape};
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

/// Groups of one call, each by its own statistics, of the rows that count for a mask with a place for each. Running
/// statistics move by each in its turn, by its pair of `factors`, or by the average of all where that is one pair.
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
    let ForwardTrain { x, y, residual, activation, eps, mask, mut running, one_value, .. } = args;
    let (is_small, small_var) = small_squares::<E::Acc>(eps);
    let (relu, least_var) =
        (activation == Activation::Relu, if is_small { small_var } else { 0.0 });
    let kernel = Forward { x, residual, width: channels, eps, relu, least_var };
    let mask = mask.map(|mask| (mask.places, mask.all_masked));
    let keeps_all = mask.is_some_and(|(_, rule)| rule == AllMasked::Keep);
    let moved = |rows: usize| {
        let running = running.as_ref()?;
        let keeps_var = rows == 1 && one_value == OneValue::KeepVariance;
        Some(match rows {
            0 => Moved { over: 1.0, keeps: [keeps_all; 2] },
            1 if keeps_var => Moved { over: 1.0, keeps: [false, true] },
            _ => Moved { over: running.moves_plainly(rows as f64, one_value)?, keeps: [false; 2] },
        })
    };
    let moved = std::array::from_fn(moved);
    let moves = match factors {
        [average] if groups.count > 1 => Moves::Average(*average, groups.count as f64),
        each => Moves::Each(each),
    };
    let is_odd = &AtomicBool::new(false);
    let kernel = &kernel;
    let task = Task { cpu, simd, shape, groups, mask, kernel, activation, moves, moved, is_odd };
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
    mask: Option<(&'a [u8], AllMasked)>,
    kernel: &'a Forward<'a, E>,
    activation: Activation,
    moves: Moves<'a>,
    /// By groups of which so many rows count.
    moved: [Option<Moved>; MOST_ROWS + 1],
    /// Whether a strip has taken the way of every batch.
    is_odd: &'a AtomicBool,
}

/// What a group does to running statistics.
#[derive(Clone, Copy)]
struct Moved {
    /// What sums of squares are divided by.
    over: f64,
    /// Whether the mean stays, and the variance.
    keeps: [bool; 2],
}

/// What a task has of its channels, in the order of [`Strips`], and what it writes.
struct Running<'t, 'p, 'a, E: Element> {
    task: &'t Task<'a, E>,
    weight: &'t mut [E::Acc],
    bias: &'t mut [E::Acc],
    /// Running mean and variance, or their sums: before a group and after it, by turns.
    means: [&'t mut [f64]; 2],
    vars: [&'t mut [f64]; 2],
    /// How many groups have kept them.
    kept: [usize; 2],
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
        let mut gathered: [_; 2] = split_mut(numbers_mut(of_parameters), n);
        for (to, from) in gathered.iter_mut().zip(parameters) {
            strips.gather(from, to);
        }
        for (k, to) in [&mut *mean, &mut *var].into_iter().enumerate() {
            match (&moved, self.moves) {
                (Some(moved), Moves::Each(_)) => strips.gather(&*moved[k], to),
                _ => to.fill(0.0),
            }
        }
        let ([weight, bias], kept) = (gathered, [0; 2]);
        let (means, vars, memory) = ([mean, next_mean], [var, next_var], ForwardStrip::new());
        let mut state =
            Running { task: self, weight, bias, means, vars, kept, rows, memory, y, saved };
        let places = self.mask.map(|(places, _)| places);
        for_each_strip((self.shape, self.groups, places), &cols, &mut state)?;
        let Some(moved) = moved else { return Ok(()) };
        let Running { weight: old, means, vars, kept, .. } = state;
        let last = self.groups.count % 2;
        let [means, vars] = [means, vars].map(|[even, odd]| if last == 0 { even } else { odd });
        let mut running = [means, vars];
        if let Moves::Average((factor, var_factor), groups) = self.moves {
            let of_both = moved.iter().zip(&mut running).zip([factor, var_factor]).zip(kept);
            for (((moved, sums), factor), kept) in of_both {
                // In place of the weights, which nobody takes any more.
                strips.gather(moved, old);
                for (sum, old) in sums.iter_mut().zip(&*old) {
                    let old = old.to_f64();
                    let share = if kept == 0 { 0.0 } else { kept as f64 * old };
                    let new = (*sum + share) / groups;
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
        (g, to, keeps): (usize, &mut Published<'_, E::Acc>, [bool; 2]),
        y: &mut TileMut<'_, E>,
    ) -> Result<()> {
        let Forward { x, residual, width, eps, .. } = *self.kernel;
        let (cols, here) = (column..column + GROUP, g * GROUP..(g + 1) * GROUP);
        let own_x = elements(x, width, rows, &cols);
        let own_residual = residual.map(|residual| elements(residual, width, rows, &cols));
        let (mut own_y, mut saved) = (vec![E::default(); own_x.len()], Saved::new());
        let shape = Shape::new(&[rows.count, GROUP], 1)?;
        let own_mask = self.mask.map(|(places, rule)| (places_of(places, rows), rule));
        let mut part = ForwardTrain::<Host, E>::new(&own_x, &mut own_y);
        part.residual = own_residual.as_deref();
        part.mask = own_mask.as_ref().map(|(own, rule)| Mask::new(&own[..]).all_masked(*rule));
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
        to.update(here, kept.split_at(GROUP), keeps);
        Ok(())
    }
}

impl<E: Element> TakesStrips for Running<'_, '_, '_, E> {
    // Arrays of slices are written out: what `map` returns of them is stored in halves and loaded whole, and that load
    // waits for every store before it, a quarter of the time of groups of 4 rows.
    fn strip<R: Group, const G: usize>(
        &mut self,
        k: usize,
        group: R,
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
        let (counted, moved) = (group.counted(), task.moved[group.counted()]);
        let keeps = moved.map_or([false; 2], |moved| moved.keeps);
        let update = match (moved, task.moves) {
            // By a mean of 0 and no variance.
            (Some(Moved { over, keeps: [true, _] }), Moves::Each(_)) => {
                Update::Blend { weights: (0.0, 0.0), count: over }
            }
            (Some(Moved { over, .. }), Moves::Each(weights)) => {
                Update::Blend { weights: weights[k], count: over }
            }
            (Some(Moved { over, .. }), Moves::Average(..)) => Update::Add { count: over },
            (None, _) => Update::None,
        };
        if place == 0 {
            // Of each group there is one such strip.
            (0..2).for_each(|which| self.kept[which] += usize::from(keeps[which]));
        }
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
        let is_apart = !R::ALL
            && (keeps == [false, true]
                || counted == 0 && task.mask.is_some_and(|(_, rule)| rule == AllMasked::Nan));
        let at = (group, column);
        if !is_apart && task.kernel.run(task.simd, at, by, (memory, values), (&mut self.y, &mut to))
        {
            return Ok(());
        }
        task.is_odd.store(true, Ordering::Relaxed);
        for g in 0..G {
            let by = by.map(|by| &by[g * GROUP..(g + 1) * GROUP]);
            task.one(group.rows(), column + g * GROUP, by, (g, &mut to, keeps), &mut self.y)?;
        }
        Ok(())
    }
}
