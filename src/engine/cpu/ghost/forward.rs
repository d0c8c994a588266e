//! The training forward.
use super::super::forward::forward_train as forward_one;
use super::super::kernels::ghost::{Forward, ForwardStrip, NARROW, Published, Rows, Update, WIDE};
use super::super::moments::small_squares;
use super::super::simd::{GROUP, Simd};
use super::super::table::{Parameters, split_mut};
use super::super::tiles::by_range::{Channels, OfTiles};
use super::super::tiles::{Columns, Elements, Slots, TileMut, for_each_tile, numbers_mut};
use super::{Cpu, Failure, Memory, Strips, elements, plan, rows_of};
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

/// What a task has of its channels, in the order of [`Strips`].
struct Kept<'w, A> {
    /// Weights and biases.
    parameters: [&'w mut [A]; 2],
    /// Running mean and variance, or their sums: before a group and after it, by turns.
    running: [[&'w mut [f64]; 2]; 2],
    rows: &'w mut [f64],
}

impl<E: Element> Task<'_, E> {
    /// Arrays of its channels that a task works on.
    const ARRAYS: usize = 6;

    /// All groups of some channels, with their weights and biases.
    fn run(
        &self,
        cols: Range<usize>,
        parameters: [&[E::Acc]; 2],
        (mut y, mut saved): (TileMut<'_, E>, [TileMut<'_, E::Acc>; 3]),
        moved: Option<[&mut [E::Acc]; 2]>,
        work: &mut [f64],
    ) -> Result<()> {
        let strips = Strips::new(cols.len());
        let n = strips.len();
        let Memory { rows, arrays } = Memory::new(work, 1);
        let (running, of_parameters) = arrays.split_at_mut(4 * n);
        let [mean, var, next_mean, next_var] = split_mut(running, n);
        let parameters_of = split_mut(numbers_mut(of_parameters), n);
        let running = [[mean, var], [next_mean, next_var]];
        let mut kept = Kept { parameters: parameters_of, running, rows };
        for (to, from) in kept.parameters.iter_mut().zip(parameters) {
            strips.gather(from, to);
        }
        for (k, to) in kept.running[0].iter_mut().enumerate() {
            match (&moved, self.moves) {
                (Some(moved), Moves::Each(_)) => strips.gather(&*moved[k], to),
                _ => to.fill(0.0),
            }
        }
        let (mut wide, mut narrow, mut one) = (
            ForwardStrip::<_, WIDE>::new(),
            ForwardStrip::<_, NARROW>::new(),
            ForwardStrip::<_, 1>::new(),
        );
        for k in 0..self.groups.count {
            let (rows, to) = (rows_of(self.shape, self.groups, k), (&mut y, &mut saved));
            for (place, channel) in strips.wide() {
                let at = (k, place, cols.start + channel);
                self.strip(rows, at, &mut kept, &mut wide, (to.0, to.1))?;
            }
            for (place, channel) in strips.narrow() {
                let at = (k, place, cols.start + channel);
                self.strip(rows, at, &mut kept, &mut narrow, (to.0, to.1))?;
            }
            for (place, channel) in strips.ones() {
                let at = (k, place, cols.start + channel);
                self.strip(rows, at, &mut kept, &mut one, (to.0, to.1))?;
            }
        }
        let Some(moved) = moved else { return Ok(()) };
        let running = &mut kept.running[self.groups.count % 2];
        if let Moves::Average((factor, var_factor), groups) = self.moves {
            // In place of the weights, which nobody takes any more.
            let old = &mut *kept.parameters[0];
            let of_both = moved.iter().zip(&mut *running).zip([factor, var_factor]);
            for ((moved, sums), factor) in of_both {
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
    /// A strip of group `k`, its values from `place` on and its columns from `column` on.
    fn strip<const G: usize>(
        &self,
        rows: Rows,
        (k, place, column): (usize, usize, usize),
        kept: &mut Kept<'_, E::Acc>,
        memory: &mut ForwardStrip<E::Acc, G>,
        (y, saved): (&mut TileMut<'_, E>, &mut [TileMut<'_, E::Acc>; 3]),
    ) -> Result<()> {
        let here = place..place + G * GROUP;
        let by = kept.parameters.each_ref().map(|parameters| &parameters[here.clone()]);
        let [even, odd] = &mut kept.running;
        let (before, after) = if k.is_multiple_of(2) { (even, odd) } else { (odd, even) };
        let update = match (self.counts[usize::from(k + 1 == self.groups.count)], self.moves) {
            (Some(count), Moves::Each(weights)) => Update::Blend { weights: weights[k], count },
            (Some(count), Moves::Average(..)) => Update::Add { count },
            (None, _) => Update::None,
        };
        let saved = saved.each_mut().map(|saved| saved.row_mut(k, column..column + here.len()));
        let before = before.each_ref().map(|running| &running[here.clone()]);
        let after = after.each_mut().map(|running| &mut running[here.clone()]);
        let mut to = Published { saved, running: (before, after), update };
        let values = super::strips(kept.rows);
        if self.kernel.run(self.simd, (rows, column), by, (memory, values), (y, &mut to)) {
            return Ok(());
        }
        self.is_odd.store(true, Ordering::Relaxed);
        for g in 0..G {
            let by = by.map(|by| &by[g * GROUP..(g + 1) * GROUP]);
            self.one(rows, column + g * GROUP, by, (g, &mut to), y)?;
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
