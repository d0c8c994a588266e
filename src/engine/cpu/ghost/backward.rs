//! The backward.
use super::super::backward::backward as backward_one;
use super::super::kernels::ghost::{Backward as Kernel, BackwardStrip, Group, Rows, Sums};
use super::super::simd::{GROUP, Simd};
use super::super::table::split_mut;
use super::super::tiles::by_range::{Channels, OfTiles};
use super::super::tiles::{Elements, Slots, TileMut, for_each_tile, numbers_mut};
use super::{Cpu, Failure, Memory, Strips, TakesStrips, elements, for_each_strip, places_of, plan};
use crate::engine::saved::{Buffers, ByChannel, Forward, Opened};
use crate::engine::{Activation, Backward, GroupRows, Input, MaskRules};
use crate::{Element, Host, Real, Result, Saved, Shape};
use std::ops::Range;

/// The gradients asked for of a [`forward_train`](super::forward_train), which has left all that is saved in `saved`.
/// Those of parameters are summed over groups: rounded after each where groups are batches one after the other, else
/// after all.
pub(in super::super) fn backward<E: Element>(
    cpu: &Cpu,
    groups: GroupRows,
    saved: &Saved<Host, E::Acc>,
    args: Backward<'_, Host, E>,
) -> Result<()> {
    let simd = cpu.simd()?;
    let (forward, buffers) = saved.made()?;
    let (shape, width) = (&forward.shape, forward.shape.channels());
    let mut args = args;
    match (args.grad_residual.take(), &args.grad_y, &args.grad_x) {
        (Some(to), Input::View(grad_y), _) => to.copy_from_slice(grad_y),
        (Some(to), Input::InPlace, Some(held)) => to.copy_from_slice(held),
        _ => {}
    }
    let Backward { x, grad_y, grad_x, grad_weight, grad_bias, .. } = args;
    let grad_y = match grad_y {
        Input::View(grad_y) => Some(grad_y),
        Input::InPlace => None,
    };
    // Strips may overlap, and one would find what another has written.
    let held = match (grad_y, &grad_x) {
        (None, Some(held)) if !width.is_multiple_of(GROUP) => Some(held.to_vec()),
        _ => None,
    };
    let (grad_y, relu) = (held.as_deref().or(grad_y), forward.activation == Activation::Relu);
    let kernel = Kernel { x, grad_y, width, relu, is_rounded: !groups.is_strided };
    let checks = buffers.reserve.as_ref().is_none_or(|reserve| reserve.first() != Some(&0));
    let (kernel, accumulates) = (&kernel, args.accumulate);
    let places = args.mask;
    let task = Task { cpu, simd, forward, groups, places, buffers, kernel, checks, accumulates };
    let plan = &plan::<E>(shape);
    let work_len = Memory::len(plan, 2, Task::<E>::ARRAYS);
    let failure = Failure::default();
    cpu.with_workspace(plan.tiles() * work_len, |work| {
        let grads = (grad_bias.map(Channels::new), grad_weight.map(Channels::new));
        let of_x = grad_x.map(Elements::new);
        let mut outputs = (of_x, OfTiles(grads), Slots::new(work, work_len));
        for_each_tile(plan, false, &mut outputs, |tile, (grad_x, grads, work)| {
            failure.note(task.run(tile.cols, grad_x, [grads.0, grads.1], work));
        });
    });
    failure.result()
}

/// What tasks have in common.
struct Task<'a, E: Element> {
    cpu: &'a Cpu,
    simd: Simd,
    forward: &'a Forward,
    groups: GroupRows,
    /// Those of the forward's mask.
    places: Option<&'a [u8]>,
    /// Of every group and channel, but weight and bias, which are those of every channel.
    buffers: &'a Buffers<Host, E::Acc>,
    kernel: &'a Kernel<'a, E>,
    /// Whether statistics may be out of the range of their type.
    checks: bool,
    accumulates: bool,
}

/// What a task has of its channels, in the order of [`Strips`], and what it writes.
struct Running<'t, 'p, 'a, E: Element> {
    task: &'t Task<'a, E>,
    weight: &'t [E::Acc],
    bias: &'t [E::Acc],
    /// Of every group and channel.
    saved: [&'t [E::Acc]; 3],
    /// Sums over groups: before a group and after it, by turns.
    sums: [&'t mut [f64]; 2],
    products: [&'t mut [f64]; 2],
    rows: [&'t mut [f64]; 2],
    memory: BackwardStrip<E::Acc>,
    grad_x: Option<TileMut<'p, E>>,
}

impl<E: Element> Task<'_, E> {
    /// Arrays of its channels that a task works on.
    const ARRAYS: usize = 6;

    /// All groups of some channels; `grads` are those of the bias and of the weight.
    fn run(
        &self,
        cols: Range<usize>,
        grad_x: Option<TileMut<'_, E>>,
        grads: [Option<&mut [E::Acc]>; 2],
        work: &mut [f64],
    ) -> Result<()> {
        let strips = Strips::new(cols.len());
        let n = strips.len();
        let Memory { rows, arrays } = Memory::new(work, 2);
        let (sums, of_parameters) = arrays.split_at_mut(4 * n);
        let [sum, product, next_sum, next_product] = split_mut(sums, n);
        let mut parameters: [_; 2] = split_mut(numbers_mut(of_parameters), n);
        let ByChannel { mean, mean_rest, invstd, weight, bias } = self.buffers.by_channel();
        for (to, from) in parameters.iter_mut().zip([weight, bias]) {
            strips.gather(&from[cols.clone()], to);
        }
        for (to, before) in [&mut *sum, &mut *product].into_iter().zip(&grads) {
            match before {
                Some(before) if self.accumulates => strips.gather(before, to),
                _ => to.fill(0.0),
            }
        }
        let ([weight, bias], rows) = (parameters, rows.split_at_mut(Memory::ROWS).into());
        let (sums, products) = ([sum, next_sum], [product, next_product]);
        let (saved, memory) = ([mean, mean_rest, invstd], BackwardStrip::new());
        let mut state =
            Running { task: self, weight, bias, saved, sums, products, rows, memory, grad_x };
        for_each_strip((&self.forward.shape, self.groups, self.places), &cols, &mut state)?;
        let last = self.groups.count % 2;
        for (grad, sums) in grads.into_iter().zip([state.sums, state.products]) {
            if let Some(grad) = grad {
                strips.scatter(sums[last], grad);
            }
        }
        Ok(())
    }
    /// A group of channels of a group of rows by the way of every batch: some channels of a strip, with their weights,
    /// biases and what the forward has saved.
    fn one(
        &self,
        rows: Rows,
        column: usize,
        [weight, bias, mean, rest, invstd]: [&[E::Acc]; 5],
        (here, sums): (Range<usize>, &mut Sums<'_>),
        grad_x: &mut Option<TileMut<'_, E>>,
    ) -> Result<()> {
        let Kernel { x, grad_y, width, .. } = *self.kernel;
        let cols = column..column + GROUP;
        let own_x = elements(x, width, rows, &cols);
        let own_y = match (grad_y, &grad_x) {
            (Some(grad_y), _) => elements(grad_y, width, rows, &cols),
            (None, Some(held)) => {
                rows.each().flat_map(|row| held.row(row, cols.clone())).copied().collect()
            }
            (None, None) => vec![],
        };
        let shape = Shape::new(&[rows.count, GROUP], 1)?;
        let mut saved = Saved::new();
        let mask = self.forward.mask.map(|rules| MaskRules { last: None, ..rules });
        let forward = Forward { shape, mask, ..*self.forward };
        let own_places = self.places.map(|places| places_of(places, rows));
        let to = saved.open(&Host, forward, 0).map(Opened::filled)?.by_channel_mut();
        to.mean.copy_from_slice(mean);
        to.mean_rest.copy_from_slice(rest);
        to.invstd.copy_from_slice(invstd);
        to.weight.copy_from_slice(weight);
        to.bias.copy_from_slice(bias);
        let mut own_grad = vec![E::default(); own_x.len()];
        let mut kept = [0.0; 2 * GROUP];
        let mut part = Backward::<Host, E>::new(&saved, &own_x, &own_y);
        part.mask = own_places.as_deref();
        part.grad_x = grad_x.is_some().then_some(&mut own_grad[..]);
        backward_one(self.cpu, &shape, part, Some(&mut kept))?;
        if let Some(grad_x) = grad_x {
            for (row, own) in rows.each().zip(own_grad.chunks(GROUP)) {
                grad_x.row_mut(row, cols.clone()).copy_from_slice(own);
            }
        }
        for (k, own) in kept.chunks(GROUP).enumerate() {
            let (before, after) = (&sums.before[k][here.clone()], &mut sums.after[k][here.clone()]);
            for ((after, before), own) in after.iter_mut().zip(before).zip(own) {
                let sum = before + own;
                *after = match self.kernel.is_rounded {
                    true => E::Acc::from_f64(sum).to_f64(),
                    false => sum,
                };
            }
        }
        Ok(())
    }
}

impl<E: Element> TakesStrips for Running<'_, '_, '_, E> {
    // Arrays of slices are written out, as in the forward.
    fn strip<R: Group, const G: usize>(
        &mut self,
        k: usize,
        group: R,
        place: usize,
        column: usize,
    ) -> Result<()> {
        let (task, here) = (self.task, place..place + G * GROUP);
        let by = [&self.weight[here.clone()], &self.bias[here.clone()]];
        let (start, [mean, rest, invstd]) = (k * task.kernel.width + column, self.saved);
        let of_group = start..start + G * GROUP;
        let saved = [&mean[of_group.clone()], &rest[of_group.clone()], &invstd[of_group]];
        let ([even, odd], [even_product, odd_product]) = (&mut self.sums, &mut self.products);
        let (old, new, old_product, new_product) = match k.is_multiple_of(2) {
            true => (even, odd, even_product, odd_product),
            false => (odd, even, odd_product, even_product),
        };
        let mut sums = Sums {
            before: [&old[here.clone()], &old_product[here.clone()]],
            after: [&mut new[here.clone()], &mut new_product[here]],
        };
        let [x, g] = &mut self.rows;
        let values = [super::strips::<_, G>(x), super::strips::<_, G>(g)];
        let at = (group, column, task.checks);
        let to = (&mut self.grad_x, &mut sums);
        if task.kernel.run(task.simd, at, (by, saved), (&mut self.memory, values), to) {
            return Ok(());
        }
        for g in 0..G {
            let here = g * GROUP..(g + 1) * GROUP;
            let by = [by[0], by[1], saved[0], saved[1], saved[2]].map(|all| &all[here.clone()]);
            task.one(group.rows(), column + g * GROUP, by, (here, &mut sums), &mut self.grad_x)?;
        }
        Ok(())
    }
}
