//! The backward's steps: the sums of every channel, then the gradients of x and residual.
use super::lanes::{self, At, BLOCK, Coef, Lanes, Same, Scratch, Strip};
use super::normalize::Step;
use super::plan::{Plan, Tile};
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
    /// `grad_y` where the ReLU passed, 0 elsewhere.
    #[inline(always)]
    fn apply<'s, E: Element>(
        self,
        plan: &Plan,
        (row, cols): (usize, Range<usize>),
        x: &[E::Acc],
        grad_y: &'s [E::Acc],
        at: impl At<E::Acc>,
        g: &'s mut [E::Acc],
    ) -> &'s [E::Acc] {
        let g = &mut g[..grad_y.len()];
        match self {
            Gate::Open => return grad_y,
            Gate::Recompute => lanes::gate_recomputed(x, grad_y, at, E::ROUNDS_TO_ZERO, g),
            Gate::Mask(mask) => {
                let bytes = clipped(row, plan.mask_cols(&cols), plan.mask_width(), mask.len());
                lanes::gate_masked(&mask[bytes], grad_y, g);
            }
        }
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

/// `sum(g)` (first half of `slot`) and `sum(g * (x - mean))` (second half) of a tile's channels,
/// or of its columns where runs are short.
#[inline(always)]
pub(super) fn sums<'g, E: Element>(
    read: Read<'_, E>,
    tile: &Tile,
    grad_y: impl Fn(usize, Range<usize>) -> &'g [E],
    coef: impl Fn(usize) -> Coef<E::Acc>,
    slot: &mut [f64],
) {
    slot.fill(0.0);
    let half = slot.len() / 2;
    let (sums, products) = slot.split_at_mut(half);
    let Read { plan, x, gate } = read;
    let mut scratch = Scratch::<E::Acc>::new();
    let load = |row: usize, cols: Range<usize>| {
        (&x[clipped(row, cols.clone(), plan.width, plan.len())], grad_y(row, cols))
    };
    if plan.lone_runs {
        let run = plan.run().min(tile.cols.len());
        for (k, start) in tile.cols.clone().step_by(run).enumerate() {
            let same = Same(coef(plan.channel(start)));
            let (mut sum, mut product, mut count) = (Lanes::new(), Lanes::new(), 0);
            for row in tile.rows.clone() {
                for at in (start..start + run).step_by(BLOCK) {
                    let cols = at..(at + BLOCK).min(start + run);
                    let (x, grad_y) = load(row, cols.clone());
                    let x = E::widened(x, &mut scratch.x);
                    let grad_y = E::widened(grad_y, &mut scratch.other);
                    let g = gate.apply::<E>(plan, (row, cols), x, grad_y, same, &mut scratch.g);
                    lanes::gradient_sums(x, g, same.0.mean, &mut sum, &mut product);
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
    let mut strip = Strip::new();
    for start in tile.cols.clone().step_by(BLOCK) {
        let cols = start..(start + BLOCK).min(tile.cols.end);
        let first_channel = plan.channels(tile.block).start;
        let slot_of = |col: usize| match plan.long_runs {
            true => plan.channel(col) - first_channel,
            false => col - tile.cols.start,
        };
        for (i, col) in cols.clone().enumerate() {
            strip.set(i, coef(plan.channel(col)));
        }
        for first in tile.rows.clone().step_by(STRIP_ROWS) {
            let zeros = [E::Acc::default(); BLOCK];
            let (mut sum, mut product) = (zeros, zeros);
            for row in first..(first + STRIP_ROWS).min(tile.rows.end) {
                let (x, grad_y) = load(row, cols.clone());
                let x = E::widened(x, &mut scratch.x);
                let grad_y = E::widened(grad_y, &mut scratch.other);
                let place = (row, cols.clone());
                let g = gate.apply::<E>(plan, place, x, grad_y, &strip, &mut scratch.g);
                lanes::add_columns(x, g, &strip, &mut sum, &mut product);
            }
            for (j, col) in cols.clone().enumerate() {
                sums[slot_of(col)] += sum[j].to_f64();
                products[slot_of(col)] += product[j].to_f64();
            }
        }
    }
}

/// Both sums of channel `c` from the slots of all tiles of its block.
#[inline(always)]
pub(super) fn merged<'s>(
    plan: &Plan,
    block: usize,
    c: usize,
    slot: impl Fn(usize) -> &'s [f64],
) -> (f64, f64) {
    let (per_block, first) = (plan.tiles_per_block(), plan.channels(block).start);
    let (mut sum, mut product) = (0.0, 0.0);
    for index in block * per_block..(block + 1) * per_block {
        let slot = slot(index);
        let half = slot.len() / 2;
        if plan.long_runs {
            sum += slot[c - first];
            product += slot[half + c - first];
            continue;
        }
        let tile = plan.tile(index);
        for col in plan.columns_of(&tile, c) {
            sum += slot[col - tile.cols.start];
            product += slot[half + col - tile.cols.start];
        }
    }
    (sum, product)
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
        let g = gate.apply::<E>(plan, (row, cols.clone()), x, grad_y, at, &mut scratch.g);
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
            let frozen = self.frozen;
            grad_x.write(
                row,
                cols,
                &mut scratch.out,
                #[inline(always)]
                |out| match frozen {
                    true => lanes::frozen_gradient(g, at, out),
                    false => lanes::input_gradient(x, g, at, out),
                },
            );
        }
    }
}
