//! Step 2 of the forwards: normalize, add, activate, round, note what the ReLU let through.
use super::coefs::{At, LINE, Runs, Same, Strip};
use super::lanes::{self, BLOCK, GROUP, Scratch};
use super::plan::{Plan, Tile};
use super::simd::Simd;
use super::table::Table;
use super::tiles::{TileMut, Writer, clipped};
use crate::{Element, Real};
use std::hint::black_box;
use std::ops::Range;

/// What is done with some columns of a row that share their coefficients' source.
pub(super) trait Step<A> {
    /// What is written.
    type Element;
    /// Whether it takes all fields of the coefficients, or what the forward takes.
    const GRADIENT: bool;
    /// Values of the tile's first row until its output starts a cache line, if pieces may begin
    /// there.
    fn to_line(&self, tile: &Tile) -> usize;
    fn piece<C: At<A>>(&mut self, simd: Simd, tile: &Tile, row: usize, cols: Range<usize>, at: C);
}

/// Takes `step` over a tile, in the order of memory.
#[inline(always)]
pub(super) fn walk<A: Real, S: Step<A>>(
    simd: Simd,
    plan: &Plan,
    tile: &Tile,
    table: &Table<'_, A>,
    step: &mut S,
) {
    let (inner, Range { start, end }) = (plan.inner(), tile.cols.clone());
    let mut strip = Strip::new();
    if plan.has_runs() {
        let piece = plan.piece_of_runs();
        let channels = start / inner..end.div_ceil(inner);
        for first in channels.clone().step_by(BLOCK) {
            let channels = first..(first + BLOCK).min(channels.end);
            strip.load_channels(channels.clone(), table, S::GRADIENT);
            let (start, end) = (start.max(first * inner), end.min(channels.end * inner));
            for row in tile.rows.clone() {
                if piece > inner {
                    for at in (start..end).step_by(piece) {
                        let runs = Runs { strip: &strip, inner, start: at - first * inner };
                        step.piece(simd, tile, row, at..(at + piece).min(end), runs);
                    }
                    continue;
                }
                for c in channels.clone() {
                    let same = Same(strip.at(c - first));
                    let (start, end) = (start.max(c * inner), end.min((c + 1) * inner));
                    for at in (start..end).step_by(BLOCK) {
                        step.piece(simd, tile, row, at..(at + BLOCK).min(end), same);
                    }
                }
            }
        }
        return;
    }
    // Strips after the first start cache lines, if all rows do so at the same columns.
    let line = LINE / size_of::<S::Element>();
    let aligns = plan.width.is_multiple_of(line);
    let head = if aligns { step.to_line(tile) } else { 0 };
    let strip_from = |start: usize| {
        let shorter = if head > 0 && start == tile.cols.start { line - head } else { 0 };
        let next = start + BLOCK - shorter;
        start..if next + GROUP < end { next } else { end }
    };
    // Two strips at a time: rows up to that long are taken in the order of memory.
    let (mut next, mut at) = (Strip::new(), start);
    while at < end {
        strip.align(if at == start { head } else { 0 });
        let cols = strip_from(at);
        let more = strip_from(cols.end);
        strip.load(plan, &cols, table, S::GRADIENT);
        if !more.is_empty() {
            next.load(plan, &more, table, S::GRADIENT);
        }
        let strips = [(cols, &strip), (more.clone(), &next)];
        let strips = black_box(&strips[..if more.is_empty() { 1 } else { 2 }]); // one loop body
        for row in tile.rows.clone() {
            for (cols, strip) in strips {
                step.piece(simd, tile, row, cols.clone(), *strip);
            }
        }
        at = more.end;
    }
}

/// What a loop over columns should ask for, of two tensors or twice of one.
#[inline(always)]
pub(super) fn ahead_of<'a, E: Element>(
    plan: &Plan,
    tensors: [&'a [E]; 2],
    tile: &Tile,
    row: usize,
    cols: &Range<usize>,
) -> [&'a [E]; 2] {
    let (row, cols) = tile.ahead(row, cols);
    tensors.map(
        #[inline(always)]
        |tensor| &tensor[clipped(row, cols.clone(), plan.width, plan.len())],
    )
}

/// `y = [relu](normalize(x) [+ residual])` over a tile.
pub(super) struct Normalize<'a, 'p, E: Element> {
    pub plan: &'a Plan,
    /// Absent where y holds it.
    pub x: Option<&'a [E]>,
    pub residual: Option<&'a [E]>,
    pub relu: bool,
    pub y: Writer<'p, E>,
    pub mask: Option<TileMut<'p, u8>>,
    pub held: Scratch<E>,
}

impl<E: Element> Step<E::Acc> for Normalize<'_, '_, E> {
    type Element = E;
    const GRADIENT: bool = false;
    #[inline(always)]
    fn to_line(&self, tile: &Tile) -> usize {
        if self.mask.is_some() { 0 } else { self.y.to_line(tile) }
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
        // Questions for every piece, not ones that the compiler asks before the loops over pieces, to
        // compile those for each combination of answers.
        let this = black_box(self);
        let plan = this.plan;
        let range = clipped(row, cols.clone(), plan.width, plan.len());
        let x = match this.x {
            Some(x) => &x[range.clone()],
            None => this.held.copy(this.y.held(row, cols.clone())),
        };
        let residual = this.residual.map(|r| &r[range]);
        let ahead = match (this.x, this.residual) {
            (Some(a), Some(b)) if C::BY_COLUMN => ahead_of(plan, [a, b], tile, row, &cols),
            (Some(a), None) if C::BY_COLUMN => ahead_of(plan, [a; 2], tile, row, &cols),
            _ => [x; 2],
        };
        let mask = this.mask.as_mut().map(|m| m.row_mut(row, plan.mask_cols(&cols)));
        let relu = this.relu;
        this.y.write(
            simd,
            row,
            cols,
            at.lines::<E>() && mask.is_none(),
            #[inline(always)]
            |store, y| {
                match relu {
                    true => lanes::normalize::<_, true>(store, x, residual, at, y, ahead),
                    false => lanes::normalize::<_, false>(store, x, residual, at, y, ahead),
                }
                if let Some(mask) = mask {
                    lanes::mask_of(simd, y, mask);
                }
            },
        );
    }
}
