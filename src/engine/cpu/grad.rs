//! The backward's steps: the sums of every channel, then the gradients of x and residual.
use super::coefs::{At, Strip};
use super::lanes::{self, BLOCK, Lanes, Scratch};
use super::normalize::{Step, ahead_of};
use super::plan::{Plan, Tile};
use super::simd::Simd;
use super::store::prefetch;
use super::table::Table;
use super::tiles::{TileMut, Writer, clipped};
use crate::{Element, Real};
use std::hint::black_box;
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
    /// Whether a mask stops the gradient at a column of a row.
    pub fn is_masked(self, plan: &Plan, row: usize, col: usize) -> bool {
        let Gate::Mask(mask) = self else { return false };
        let (byte, bit) = plan.mask_bit(row, col);
        mask[byte] >> bit & 1 == 0
    }
    /// `grad_y` where the mask lets it pass, 0 elsewhere; without a mask, all of it.
    #[inline(always)]
    fn masked<'s, E: Element>(
        self,
        simd: Simd,
        plan: &Plan,
        row: usize,
        cols: &Range<usize>,
        grad_y: &'s [E],
        gated: &'s mut Scratch<E>,
    ) -> &'s [E] {
        let Gate::Mask(mask) = self else { return grad_y };
        let bytes = clipped(row, plan.mask_cols(cols), plan.mask_width(), mask.len());
        let g = gated.values(grad_y.len());
        lanes::gate_masked(simd, &mask[bytes], grad_y, g);
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

/// Where `grad_y` stands.
#[derive(Clone, Copy)]
pub(super) enum Source<'a, 'p, E> {
    /// The whole tensor, or nothing, if nothing of it is read.
    View(&'a [E]),
    /// The tile, in what becomes `grad_x`.
    Held(&'a TileMut<'p, E>),
}

impl<'a, E: Element> Source<'a, '_, E> {
    #[inline(always)]
    fn row(self, plan: &Plan, row: usize, cols: Range<usize>) -> &'a [E] {
        match self {
            Source::View(all) => &all[clipped(row, cols, plan.width, all.len())],
            Source::Held(tile) => tile.row(row, cols),
        }
    }
}

/// `sum(g)` (first half of `slot`) and `sum(g * (x - mean))` (second half) of a tile's channels,
/// or of its columns where runs are short.
#[inline(always)]
pub(super) fn sums<E: Element>(
    simd: Simd,
    read: Read<'_, E>,
    tile: &Tile,
    grad_y: Source<'_, '_, E>,
    table: &Table<'_, E::Acc>,
    slot: &mut [f64],
) {
    slot.fill(0.0);
    let half = slot.len() / 2;
    let (sums, products) = slot.split_at_mut(half);
    let Read { plan, gate, .. } = read;
    let mut gated = [Scratch::new(), Scratch::new()];
    if plan.long_runs {
        let run = plan.inner().min(tile.cols.len());
        for (k, start) in tile.cols.clone().step_by(run).enumerate() {
            let coef = table.at(start / plan.inner());
            let (mut sum, mut product, mut count) = (Lanes::new(), Lanes::new(), 0);
            for row in tile.rows.clone() {
                for at in (start..start + run).step_by(BLOCK) {
                    let cols = at..(at + BLOCK).min(start + run);
                    let gate = black_box(gate); // as in `piece`
                    let x = &read.x[clipped(row, cols.clone(), plan.width, plan.len())];
                    let grad_y = grad_y.row(plan, row, cols.clone());
                    let g = gate.masked(simd, plan, row, &cols, grad_y, &mut gated[0]);
                    let to = (&mut sum, &mut product);
                    match gate.recomputes() {
                        true => lanes::gradient_sums::<_, true>(simd, x, g, coef, to.0, to.1),
                        false => lanes::gradient_sums::<_, false>(simd, x, g, coef, to.0, to.1),
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
    let mut strip = Strip::new();
    let zeros = [E::Acc::default(); BLOCK];
    let (mut sum, mut product) = (zeros, zeros);
    for start in tile.cols.clone().step_by(BLOCK) {
        let cols = start..(start + BLOCK).min(tile.cols.end);
        let n = cols.len();
        strip.load(plan, &cols, table, false);
        let sums = &mut sums[start - tile.cols.start..][..n];
        let products = &mut products[start - tile.cols.start..][..n];
        for first in tile.rows.clone().step_by(STRIP_ROWS) {
            sum[..n].fill(E::Acc::default());
            product[..n].fill(E::Acc::default());
            let end = (first + STRIP_ROWS).min(tile.rows.end);
            let mut row = first;
            // A shorter last row goes alone.
            while row < end {
                let to = (&mut sum, &mut product);
                let gated = &mut gated;
                row += match row + 2 <= end.min(full) {
                    true => {
                        add_rows::<_, 2>(simd, read, tile, row, &cols, grad_y, &strip, gated, to)
                    }
                    false => {
                        add_rows::<_, 1>(simd, read, tile, row, &cols, grad_y, &strip, gated, to)
                    }
                };
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

/// Adds the columns of `R` rows; returns how many these were.
#[inline(always)]
#[allow(clippy::too_many_arguments)] // the loops' state
fn add_rows<E: Element, const R: usize>(
    simd: Simd,
    read: Read<'_, E>,
    tile: &Tile,
    row: usize,
    cols: &Range<usize>,
    grad_y: Source<'_, '_, E>,
    strip: &Strip<E::Acc>,
    gated: &mut [Scratch<E>; 2],
    (sum, product): (&mut [E::Acc; BLOCK], &mut [E::Acc; BLOCK]),
) -> usize {
    let Read { plan, x, gate } = black_box(read); // as in `piece`
    let none = &x[..0];
    let (mut xs, mut gs, mut ahead) = ([none; R], [none; R], [[none; 2]; R]);
    for (r, gated) in gated.iter_mut().take(R).enumerate() {
        let row = row + r;
        xs[r] = &x[clipped(row, cols.clone(), plan.width, plan.len())];
        gs[r] = gate.masked(simd, plan, row, cols, grad_y.row(plan, row, cols.clone()), gated);
        let (row, cols) = tile.ahead(row, cols);
        let x = &x[clipped(row, cols.clone(), plan.width, plan.len())];
        ahead[r] = [x, grad_y.row(plan, row, cols)];
    }
    let (x, g) = (xs, gs);
    let ahead = |j: usize| {
        if R > 1 {
            ahead.as_flattened().iter().for_each(|row| prefetch(row, j));
        }
    };
    match gate.recomputes() {
        true => lanes::add_columns::<_, true, R>(simd, x, g, strip, sum, product, ahead),
        false => lanes::add_columns::<_, false, R>(simd, x, g, strip, sum, product, ahead),
    }
    R
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

/// `sum(g)` and `sum(g * xhat)` of a channel by the definition, in f64; `normalize` decides for a
/// ReLU that is recomputed.
pub(super) fn wide_sums<E: Element>(
    read: Read<'_, E>,
    elements: impl Iterator<Item = usize>,
    grad_y: Source<'_, '_, E>,
    normalize: impl Fn(E::Acc) -> E::Acc,
    xhat: impl Fn(f64) -> f64,
) -> (f64, f64) {
    let Read { plan, x, gate } = read;
    let (mut sum, mut product) = (0.0, 0.0);
    for i in elements {
        let (row, col, x) = (i / plan.width, i % plan.width, x[i].widen());
        let is_stopped = match gate {
            Gate::Recompute => normalize(x) <= E::ROUNDS_TO_ZERO,
            gate => gate.is_masked(plan, row, col),
        };
        let g = if is_stopped { E::default() } else { grad_y.row(plan, row, col..col + 1)[0] };
        let g = g.widen().to_f64();
        sum += g;
        product += g * xhat(x.to_f64()); // 0 times infinity is NaN here, too
    }
    (sum, product)
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
    /// For what `grad_x` held.
    pub held: Scratch<E>,
    /// For what passes the mask.
    pub gated: Scratch<E>,
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
    fn piece<C: At<E::Acc>>(
        &mut self,
        simd: Simd,
        tile: &Tile,
        row: usize,
        cols: Range<usize>,
        at: C,
    ) {
        let this = black_box(self); // as in the forward
        let Read { plan, x, gate } = this.read;
        let range = clipped(row, cols.clone(), plan.width, plan.len());
        let (frozen, recomputes) = (this.frozen, gate.recomputes());
        let reads_x = !frozen || recomputes;
        let grad_y = match (this.grad_y, &this.grad_x) {
            (Some(grad_y), _) => &grad_y[range.clone()],
            (None, Some(grad_x)) => this.held.copy(grad_x.held(row, cols.clone())),
            (None, None) => return,
        };
        let ahead = match this.grad_y {
            Some(g) if C::BY_COLUMN => {
                ahead_of(plan, [if reads_x { x } else { g }, g], tile, row, &cols)
            }
            _ => [grad_y; 2],
        };
        let g = gate.masked(simd, plan, row, &cols, grad_y, &mut this.gated);
        if let Some(grad_residual) = &mut this.grad_residual {
            grad_residual.write(
                simd,
                row,
                cols.clone(),
                true,
                #[inline(always)]
                |store, out| store.copy(g, out),
            );
        }
        if let Some(grad_x) = &mut this.grad_x {
            let x = if reads_x { &x[range] } else { g };
            grad_x.write(
                simd,
                row,
                cols,
                at.lines::<E>(),
                #[inline(always)]
                |to, out| match (frozen, recomputes) {
                    (true, true) => lanes::frozen_gradient::<_, true>(to, x, g, at, out, ahead),
                    (true, false) => lanes::frozen_gradient::<_, false>(to, x, g, at, out, ahead),
                    (false, true) => lanes::input_gradient::<_, true>(to, x, g, at, out, ahead),
                    (false, false) => lanes::input_gradient::<_, false>(to, x, g, at, out, ahead),
                },
            );
        }
    }
}
