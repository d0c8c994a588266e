//! The backward's steps: the sums of every channel, then the gradients of x and residual.
use super::coefs::{At, Strip};
use super::lanes::{self, BLOCK, GROUP, Lanes, Scratch};
use super::normalize::{Step, column_coefs};
use super::plan::{Plan, Tile};
use super::simd::prefetch;
use super::tiles::{Writer, clipped};
use crate::{Element, Real};
use std::ops::Range;

/// Values summed in the accumulating type before they are added up in f64.
const SEGMENT: usize = 4096;
/// Rows of a strip summed likewise.
const STRIP_ROWS: usize = 32;

/// What decides whether a gradient passes the ReLU.
#[derive(Debug, Clone, Copy)]
pub(super) enum Gate<'a> {
    /// There is no ReLU.
    Open,
    /// The output, computed again from x.
    Recompute,
    /// The bits that the forward left.
    Mask(&'a [u8]),
}

impl Gate<'_> {
    /// Whether the loops are to compute the output again.
    #[inline(always)]
    fn recomputes(self) -> bool {
        matches!(self, Gate::Recompute)
    }
    /// `grad_y` where the mask lets it pass, 0 elsewhere; without a mask, all of it.
    #[inline(always)]
    fn masked<'s, A: Real>(
        self,
        plan: &Plan,
        row: usize,
        cols: &Range<usize>,
        grad_y: &'s [A],
        g: &'s mut [A],
    ) -> &'s [A] {
        let Gate::Mask(mask) = self else { return grad_y };
        let g = &mut g[..grad_y.len()];
        let bytes = clipped(row, plan.mask_cols(cols), plan.mask_width(), mask.len());
        lanes::gate_masked(&mask[bytes], grad_y, g);
        g
    }
}

/// What both steps read.
#[derive(Clone, Copy)]
pub(super) struct Read<'a, E> {
    pub plan: &'a Plan,
    pub x: &'a [E],
    pub gate: Gate<'a>,
}

impl<'a, E: Element> Read<'a, E> {
    /// x and what a mask lets pass of `grad_y`, widened.
    #[inline(always)]
    fn load<'s>(
        &self,
        row: usize,
        cols: &Range<usize>,
        grad_y: &'s [E],
        scratch: &'s mut Scratch<E::Acc>,
    ) -> (&'s [E::Acc], &'s [E::Acc])
    where
        'a: 's,
    {
        let Read { plan, x, gate } = *self;
        let x = &x[clipped(row, cols.clone(), plan.width, plan.len())];
        let grad_y = E::widened(grad_y, &mut scratch.other);
        let g = gate.masked(plan, row, cols, grad_y, &mut scratch.g);
        (E::widened(x, &mut scratch.x), g)
    }
}

/// `sum(g)` (first half of `slot`) and `sum(g * (x - mean))` (second half) of a tile's channels,
/// or of its columns where runs are short.
#[inline(always)]
pub(super) fn sums<'g, E: Element>(
    read: Read<'_, E>,
    tile: &Tile,
    grad_y: impl Fn(usize, Range<usize>) -> &'g [E],
    coefs: impl Fn(Range<usize>, &mut Strip<E::Acc>) + Copy,
    slot: &mut [f64],
) {
    slot.fill(0.0);
    let half = slot.len() / 2;
    let (sums, products) = slot.split_at_mut(half);
    let Read { plan, gate, .. } = read;
    let zero = E::ROUNDS_TO_ZERO;
    let mut scratch: [Scratch<E::Acc>; 2] = [Scratch::new(), Scratch::new()];
    let mut strip = Strip::new();
    if plan.long_runs {
        let run = plan.inner().min(tile.cols.len());
        for (k, start) in tile.cols.clone().step_by(run).enumerate() {
            let c = start / plan.inner();
            if k % BLOCK == 0 {
                let after = tile.cols.end.div_ceil(plan.inner());
                coefs(c..(c + BLOCK).min(after), &mut strip);
            }
            let coef = strip.at(k % BLOCK);
            let (mut sum, mut product, mut count) = (Lanes::new(), Lanes::new(), 0);
            for row in tile.rows.clone() {
                for at in (start..start + run).step_by(BLOCK) {
                    let cols = at..(at + BLOCK).min(start + run);
                    let (x, g) = read.load(row, &cols, grad_y(row, cols.clone()), &mut scratch[0]);
                    let to = (&mut sum, &mut product);
                    match gate.recomputes() {
                        true => lanes::gradient_sums::<_, true>(x, g, coef, zero, to.0, to.1),
                        false => lanes::gradient_sums::<_, false>(x, g, coef, zero, to.0, to.1),
                    }
                    count += x.len();
                    if count >= SEGMENT {
                        sums[k] += std::mem::replace(&mut sum, Lanes::new()).total();
                        products[k] += std::mem::replace(&mut product, Lanes::new()).total();
                        count = 0;
                    }
                }
            }
            sums[k] += sum.total();
            products[k] += product.total();
        }
        return;
    }
    let full = tile.rows.end - usize::from(plan.has_short_row(tile));
    let mut own = Strip::new();
    let zeros = [E::Acc::default(); BLOCK];
    let (mut sum, mut product) = (zeros, zeros);
    for start in tile.cols.clone().step_by(BLOCK) {
        let cols = start..(start + BLOCK).min(tile.cols.end);
        let n = cols.len();
        column_coefs(plan, &cols, false, coefs, &mut own, &mut strip);
        let sums = &mut sums[start - tile.cols.start..][..n];
        let products = &mut products[start - tile.cols.start..][..n];
        for first in tile.rows.clone().step_by(STRIP_ROWS) {
            sum[..n].fill(E::Acc::default());
            product[..n].fill(E::Acc::default());
            let end = (first + STRIP_ROWS).min(tile.rows.end);
            let pairs = end.min(full);
            let mut row = first;
            // A shorter last row goes alone.
            while row + 2 <= pairs {
                let [one, two] = &mut scratch;
                let ahead = [row, row + 1].map(
                    #[inline(always)]
                    |row| {
                        let (row, cols) = tile.ahead(row, &cols);
                        let x = &read.x[clipped(row, cols.clone(), plan.width, plan.len())];
                        (x, grad_y(row, cols))
                    },
                );
                let ahead = |j: usize| {
                    for (x, g) in ahead {
                        prefetch(x, j, GROUP);
                        prefetch(g, j, GROUP);
                    }
                };
                let (x, g) = read.load(row, &cols, grad_y(row, cols.clone()), one);
                let (x2, g2) = read.load(row + 1, &cols, grad_y(row + 1, cols.clone()), two);
                let (x, g) = ([x, x2], [g, g2]);
                let to = (&mut sum, &mut product);
                match gate.recomputes() {
                    true => lanes::add_columns::<_, true, 2>(x, g, &strip, zero, to.0, to.1, ahead),
                    false => {
                        lanes::add_columns::<_, false, 2>(x, g, &strip, zero, to.0, to.1, ahead)
                    }
                }
                row += 2;
            }
            while row < end {
                let (x, g) = read.load(row, &cols, grad_y(row, cols.clone()), &mut scratch[0]);
                let (x, g, none) = ([x], [g], |_| ());
                let to = (&mut sum, &mut product);
                match gate.recomputes() {
                    true => lanes::add_columns::<_, true, 1>(x, g, &strip, zero, to.0, to.1, none),
                    false => {
                        lanes::add_columns::<_, false, 1>(x, g, &strip, zero, to.0, to.1, none)
                    }
                }
                row += 1;
            }
            for (total, sum) in sums.iter_mut().zip(&sum) {
                *total += sum.to_f64();
            }
            for (total, product) in products.iter_mut().zip(&product) {
                *total += product.to_f64();
            }
        }
    }
}

/// Adds up the slots of all tiles of a block, which are overwritten: `sum(g)` of its channels in
/// the first half of `kept`, `sum(g * (x - mean))` in the second.
#[inline(always)]
pub(super) fn merge(plan: &Plan, slots: &mut [f64], kept: &mut [f64]) {
    let half = plan.slot_len() / 2;
    let (first, others) = slots.split_at_mut(2 * half);
    for slot in others.chunks(2 * half) {
        add(first, slot);
    }
    let into = kept.len() / 2;
    for (columns, into) in first.chunks_mut(half).zip(kept.chunks_mut(into)) {
        if plan.is_joined() {
            let (columns, more) = columns.split_at_mut(plan.row());
            more.chunks(plan.row()).for_each(|more| add(columns, more));
        }
        if plan.long_runs || plan.inner() == 1 {
            into.copy_from_slice(&columns[..into.len()]);
        } else {
            for (into, columns) in into.iter_mut().zip(columns.chunks(plan.inner())) {
                *into = lanes::total(columns, |v| v);
            }
        }
    }
}

#[inline(always)]
fn add(sums: &mut [f64], more: &[f64]) {
    for (sum, more) in sums.iter_mut().zip(more) {
        *sum += more;
    }
}

/// `grad_x` and `grad_residual` over a tile.
pub(super) struct Gradients<'a, 'p, E: Element> {
    pub read: Read<'a, E>,
    /// Absent where `grad_x` holds it.
    pub grad_y: Option<&'a [E]>,
    /// Whether the statistics are constants; then x is not read but by a gate that needs it.
    pub frozen: bool,
    pub grad_x: Option<Writer<'p, E>>,
    pub grad_residual: Option<Writer<'p, E>>,
    pub scratch: Scratch<E::Acc>,
}

impl<E: Element> Step<E::Acc> for Gradients<'_, '_, E> {
    type Element = E;
    const GRADIENT: bool = true;
    #[inline(always)]
    fn to_line(&self, tile: &Tile) -> usize {
        match (self.read.gate, &self.grad_x) {
            (Gate::Open | Gate::Recompute, Some(grad_x)) => grad_x.to_line(tile),
            _ => 0,
        }
    }
    #[inline(always)]
    fn piece(&mut self, row: usize, cols: Range<usize>, at: impl At<E::Acc>) {
        let Read { plan, x, gate } = self.read;
        let range = clipped(row, cols.clone(), plan.width, plan.len());
        let scratch = &mut self.scratch;
        let x = match gate {
            Gate::Open | Gate::Mask(_) if self.frozen => &scratch.x[..range.len()],
            _ => E::widened(&x[range.clone()], &mut scratch.x),
        };
        let grad_y = match (self.grad_y, &self.grad_x) {
            (Some(grad_y), _) => E::widened(&grad_y[range], &mut scratch.other),
            (None, grad_x) => {
                let grad_y = &mut scratch.other[..range.len()];
                if let Some(grad_x) = grad_x {
                    let held = grad_x.held(row, cols.clone());
                    grad_y.copy_from_slice(E::widened(held, &mut scratch.out));
                }
                grad_y
            }
        };
        let g = gate.masked(plan, row, &cols, grad_y, &mut scratch.g);
        if let Some(grad_residual) = &mut self.grad_residual {
            grad_residual.write(
                row,
                cols.clone(),
                &mut scratch.out,
                #[inline(always)]
                |out| out.copy_from_slice(g),
            );
        }
        if let Some(grad_x) = &mut self.grad_x {
            let (frozen, recomputes, zero) = (self.frozen, gate.recomputes(), E::ROUNDS_TO_ZERO);
            grad_x.write(
                row,
                cols,
                &mut scratch.out,
                #[inline(always)]
                |out| match (frozen, recomputes) {
                    (true, true) => lanes::frozen_gradient::<_, true>(x, g, at, zero, out),
                    (true, false) => lanes::frozen_gradient::<_, false>(x, g, at, zero, out),
                    (false, true) => lanes::input_gradient::<_, true>(x, g, at, zero, out),
                    (false, false) => lanes::input_gradient::<_, false>(x, g, at, zero, out),
                },
            );
        }
    }
}
