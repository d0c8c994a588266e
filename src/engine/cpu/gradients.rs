//! The backward's two passes over a tile: the sums of every channel, then the gradients of x and
//! residual.
use super::elementwise::{Cut, Step, by_piece};
use super::gate::Gate;
use super::kernels::convert::{copy, keep, narrow};
use super::kernels::elementwise::{At, Through, Work, ahead_of, input_gradient};
use super::kernels::masked;
use super::masked::{Counts, Keep, Masked};
use super::plan::{Plan, Tile};
use super::simd::{Scratch, Simd, TWICE};
use super::staged::{Derivative, Staged};
use super::table::Strip;
use super::tiles::{TileMut, Writer, clipped};
use crate::Element;
use crate::engine::Activation;
use std::ops::Range;
pub(super) use sums::{OfColumns, add_sums, merge, sums, wide_sums};

mod sums;

/// What both passes read.
#[derive(Clone, Copy)]
pub(super) struct Read<'a, E> {
    pub simd: Simd,
    pub plan: &'a Plan,
    pub x: &'a [E],
    /// Absent where `grad_x` holds it.
    pub grad_y: Option<&'a [E]>,
    pub gate: Gate<'a, E>,
    /// Absent where all values count.
    pub mask: Option<&'a Masked<'a>>,
}

impl<'a, E: Element> Read<'a, E> {
    fn x(&self, row: usize, cols: Range<usize>) -> &'a [E] {
        &self.x[clipped(row, cols, self.plan.width, self.plan.len())]
    }
    /// `grad_y`, which `grad_x` holds if nothing else does; nothing if there is neither.
    pub fn grad_y<'s>(
        &self,
        grad_x: &'s Option<TileMut<'_, E>>,
        row: usize,
        cols: Range<usize>,
    ) -> &'s [E]
    where
        'a: 's,
    {
        match (self.grad_y, grad_x) {
            (Some(all), _) => &all[clipped(row, cols, self.plan.width, all.len())],
            (None, Some(tile)) => tile.row(row, cols),
            (None, None) => &[],
        }
    }
    /// The plan by which the first pass keeps sums. By wide rows where it reads bits by them, or by blocks.
    pub fn summed(&self) -> Plan {
        match self.gate {
            Gate::Open | Gate::Recompute => self.plan.narrow(),
            _ => *self.plan,
        }
    }
    /// Columns of a row of the mask.
    fn mask<'m>(&self, mask: &'m [u8], row: usize, cols: &Range<usize>) -> &'m [u8] {
        &mask[clipped(row, self.plan.mask_cols(cols), self.plan.mask_width(), mask.len())]
    }
    /// `grad_y` where the mask lets it pass, 0 elsewhere; without a mask, all of it.
    fn masked<'s, const N: usize>(
        &self,
        row: usize,
        cols: &Range<usize>,
        grad_y: &'s [E],
        gated: &'s mut Scratch<E, N>,
    ) -> &'s [E] {
        let Gate::Mask(mask) = self.gate else { return grad_y };
        let g = gated.values(grad_y.len());
        keep(self.simd, self.mask(mask, row, cols), grad_y, g);
        g
    }
    /// x and `g` in the accumulating type, of a gate that is staged.
    fn staged<'s>(
        &self,
        row: usize,
        cols: &Range<usize>,
        at: At<'_, E::Acc>,
        grad_y: &[E],
        staged: &'s mut Staged<E::Acc>,
    ) -> (&'s [E::Acc], &'s [E::Acc]) {
        let x = self.x(row, cols.clone());
        let derivative = match self.gate {
            Gate::Slope(mask, slope) => Derivative::ByMask(self.mask(mask, row, cols), slope),
            Gate::Derivative(activation, residual) => {
                let of = |r: &'a [E]| &r[clipped(row, cols.clone(), self.plan.width, r.len())];
                Derivative::Of(activation, residual.map(of))
            }
            _ => Derivative::Of(Activation::Identity, None),
        };
        staged.gradients(self.simd, at, (x, grad_y), derivative)
    }
}

/// Some elements of `grad_y`.
pub(super) fn elements_of_grad_y<E: Element>(
    read: &Read<'_, E>,
    elements: impl Iterator<Item = usize>,
    grad_x: &Option<TileMut<'_, E>>,
) -> Vec<E> {
    let at = |i: usize| (i / read.plan.width, i % read.plan.width);
    elements.map(at).map(|(row, col)| read.grad_y(grad_x, row, col..col + 1)[0]).collect()
}

/// The second pass: `grad_x` and `grad_residual` over a tile.
pub(super) struct Gradients<'a, 'p, E: Element> {
    read: Read<'a, E>,
    /// Where the statistics are constants, x is not read but by a gate that needs it.
    through: Through,
    grad_x: Option<Writer<'p, E>>,
    grad_residual: Option<Writer<'p, E>>,
    /// For what `grad_x` held.
    held: Scratch<E>,
    /// For what passes the mask.
    gated: Scratch<E, TWICE>,
    staged: Staged<E::Acc>,
    /// For gradients of the accumulating type.
    wide: Scratch<E::Acc>,
    /// Which values count.
    counts: Counts,
}

/// A tile of `grad_x` and of `grad_residual`.
pub(super) type Parts<'a, E> = (Option<TileMut<'a, E>>, Option<TileMut<'a, E>>);

impl<'a, 'p, E: Element> Gradients<'a, 'p, E> {
    pub fn new(read: Read<'a, E>, through: Through, (grad_x, grad_residual): Parts<'p, E>) -> Self {
        let holds = read.grad_y.is_none();
        let grad_x = grad_x.map(|tile| Writer::new(read.plan, tile, 3, holds));
        let grad_residual = grad_residual.map(|tile| Writer::new(read.plan, tile, 3, false));
        Self {
            read,
            through,
            grad_x,
            grad_residual,
            held: Scratch::new(),
            gated: Scratch::new(),
            staged: Staged::new(),
            wide: Scratch::new(),
            counts: Counts::new(),
        }
    }
}

impl<E: Element> Gradients<'_, '_, E> {
    /// Some rows of the tile, of which everything flows so.
    fn rows(
        &mut self,
        tile: &Tile,
        strips: &[(Range<usize>, &Strip<E::Acc>)],
        rows: Range<usize>,
        through: Through,
    ) {
        let Read { simd, plan, x, gate, grad_y, .. } = self.read;
        let is_loop = matches!(gate, Gate::Open | Gate::Recompute) && self.grad_residual.is_none();
        let (Some(grad_y), Some(out), true) = (grad_y, &mut self.grad_x, is_loop) else {
            return by_piece(self, &Tile { rows, ..tile.clone() }, strips);
        };
        let recomputes = gate.recomputes();
        let x = if through == Through::Statistics || recomputes { x } else { grad_y };
        // Two tensors at once in the order of memory come by themselves, unless there is more to do with a value.
        let asks = recomputes || through == Through::Constants;
        let work = Work::rows(simd, (plan, tile, rows), strips, [x, grad_y], (out, asks));
        input_gradient(simd, (through, recomputes), work);
    }
}

impl<E: Element> Step<E::Acc> for Gradients<'_, '_, E> {
    type Element = E;
    const GRADIENT: bool = true;
    fn to_line(&self, tile: &Tile) -> usize {
        match (self.read.gate, &self.grad_x) {
            (Gate::Open | Gate::Recompute, Some(grad_x)) => grad_x.to_line(tile),
            _ => 0,
        }
    }
    fn cut(&self) -> Cut {
        let Read { gate, grad_y, .. } = self.read;
        let is_loop = matches!(gate, Gate::Open | Gate::Recompute);
        let (is_masked, is_found) = match self.read.mask {
            Some(mask) => (true, mask.is_found(self.read.plan)),
            None => (false, true),
        };
        match (grad_y, &self.grad_residual) {
            _ if !is_found => Cut::Held,
            (Some(_), None) if is_loop && !is_masked => Cut::Row,
            (Some(_), _) if !gate.is_staged() => Cut::Twice,
            _ => Cut::Held,
        }
    }
    fn columns(&mut self, tile: &Tile, strips: &[(Range<usize>, &Strip<E::Acc>)]) {
        let Read { plan, mask, .. } = self.read;
        let mask = mask.filter(|_| self.through == Through::Statistics);
        let Some(of_rows) = mask.map_or(Some(None), |mask| mask.of_rows(plan).map(Some)) else {
            return by_piece(self, tile, strips);
        };
        let Some(keeps) = of_rows else {
            return self.rows(tile, strips, tile.rows.clone(), self.through);
        };
        let mut row = tile.rows.start;
        while row < tile.rows.end {
            let (start, kept) = (row, keeps(row));
            while row < tile.rows.end && keeps(row) == kept {
                row += 1;
            }
            match kept {
                Some(true) => self.rows(tile, strips, start..row, self.through),
                Some(false) => self.rows(tile, strips, start..row, Through::Constants),
                None => by_piece(self, &Tile { rows: start..row, ..tile.clone() }, strips),
            }
        }
    }
    #[inline(always)]
    fn piece(&mut self, tile: &Tile, row: usize, cols: Range<usize>, at: At<'_, E::Acc>) {
        let read = self.read;
        let Read { simd, plan, x, gate, .. } = read;
        let range = clipped(row, cols.clone(), plan.width, plan.len());
        let keep = match read.mask.filter(|_| self.through == Through::Statistics) {
            Some(mask) => mask.keep(plan, row, &cols, &mut self.counts),
            None => Keep::All,
        };
        // Through the statistics flows nothing to what does not count.
        let through = if keep == Keep::None { Through::Constants } else { self.through };
        let counts = if let Keep::Some(counts) = keep { Some(counts) } else { None };
        let recomputes = gate.recomputes();
        let reads_x = through == Through::Statistics || recomputes;
        let grad_y = match (read.grad_y, &self.grad_x) {
            (Some(grad_y), _) => &grad_y[range.clone()],
            (None, Some(grad_x)) => self.held.copy(grad_x.held(row, cols.clone())),
            (None, None) => return,
        };
        if gate.is_staged() {
            let (x, g) = read.staged(row, &cols, at, grad_y, &mut self.staged);
            if let Some(grad_residual) = &mut self.grad_residual {
                grad_residual.write(simd, row, cols.clone(), false, |_, out| narrow(simd, g, out));
            }
            if let Some(grad_x) = &mut self.grad_x {
                let wide = self.wide.values(g.len());
                match counts {
                    Some(counts) => {
                        let work = Work::piece(simd, at, [x, g], wide);
                        masked::input_gradient(simd, false, counts, work);
                    }
                    None => {
                        let work = Work::piece(simd, at, [x, g], wide);
                        input_gradient(simd, (through, false), work);
                    }
                }
                grad_x.write(simd, row, cols, false, |_, out| narrow(simd, wide, out));
            }
            return;
        }
        let reads = [if reads_x { &x[range.clone()] } else { grad_y }, grad_y];
        let ahead = ahead_of(reads, tile.ahead(row, &cols, plan.width));
        let g = read.masked(row, &cols, grad_y, &mut self.gated);
        if let Some(grad_residual) = &mut self.grad_residual {
            grad_residual.write(simd, row, cols.clone(), true, |store, out| copy(store, g, out));
        }
        if let Some(grad_x) = &mut self.grad_x {
            let x = if reads_x { &x[range] } else { g };
            grad_x.write(simd, row, cols, true, |store, out| {
                let work = Work::Piece { store, at, from: [x, g], out, ahead };
                match counts {
                    Some(counts) => masked::input_gradient(simd, recomputes, counts, work),
                    None => input_gradient(simd, (through, recomputes), work),
                }
            });
        }
    }
}
