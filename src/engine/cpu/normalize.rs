//! Step 2 of the forwards: normalize, add, activate, round, note what the ReLU let through.
use super::coefs::{At, LINE, Runs, Same, Strip};
use super::lanes::{self, BLOCK, Scratch};
use super::plan::{Plan, Tile};
use super::tiles::{TileMut, Writer, clipped};
use crate::{Element, Real};
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
    fn piece(&mut self, row: usize, cols: Range<usize>, at: impl At<A>);
}

/// Takes `step` over a tile, in the order of memory. `coefs` sets those of some channels, at most
/// [`BLOCK`].
#[inline(always)]
pub(super) fn walk<A: Real, S: Step<A>>(
    plan: &Plan,
    tile: &Tile,
    coefs: impl Fn(Range<usize>, &mut Strip<A>) + Copy,
    step: &mut S,
) {
    let mut strip = Strip::new();
    if plan.has_runs() {
        let (inner, cols) = (plan.inner(), &tile.cols);
        let piece = plan.piece_of_runs();
        let channels = cols.start / inner..cols.end.div_ceil(inner);
        for first in channels.clone().step_by(BLOCK) {
            let channels = first..(first + BLOCK).min(channels.end);
            coefs(channels.clone(), &mut strip);
            let (start, end) = (cols.start.max(first * inner), cols.end.min(channels.end * inner));
            for row in tile.rows.clone() {
                if piece > inner {
                    for at in (start..end).step_by(piece) {
                        let runs = Runs { strip: &strip, inner, start: at - first * inner };
                        step.piece(row, at..(at + piece).min(end), runs);
                    }
                    continue;
                }
                for c in channels.clone() {
                    let same = Same(strip.at(c - first));
                    let (start, end) = (start.max(c * inner), end.min((c + 1) * inner));
                    for at in (start..end).step_by(BLOCK) {
                        step.piece(row, at..(at + BLOCK).min(end), same);
                    }
                }
            }
        }
        return;
    }
    // Two strips at a time: rows up to that long are taken in the order of memory.
    let mut own = Strip::new();
    let mut next = (tile.cols.len() > BLOCK).then(Strip::new);
    // Vectors that straddle cache lines cost 5 to 8 %; a short piece pays in longer rows only.
    let aligns = next.is_some() && (plan.width * size_of::<S::Element>()).is_multiple_of(LINE);
    let head = if aligns { step.to_line(tile) } else { 0 };
    let head = tile.cols.start..tile.cols.start + head.min(tile.cols.len());
    let strips = (head.end..tile.cols.end).step_by(2 * BLOCK);
    for start in (!head.is_empty()).then_some(head.start).into_iter().chain(strips) {
        let end = if start < head.end { head.end } else { tile.cols.end };
        let cols = start..(start + BLOCK).min(end);
        let more = cols.end..(cols.end + BLOCK).min(end);
        column_coefs(plan, &cols, S::GRADIENT, coefs, &mut own, &mut strip);
        let mut next = next.as_mut().filter(|_| !more.is_empty());
        if let Some(next) = &mut next {
            column_coefs(plan, &more, S::GRADIENT, coefs, &mut own, next);
        }
        for row in tile.rows.clone() {
            step.piece(row, cols.clone(), &strip);
            if let Some(next) = &next {
                step.piece(row, more.clone(), &**next);
            }
        }
    }
}

/// Sets the coefficients of columns; `own` is for those of their channels.
#[inline(always)]
pub(super) fn column_coefs<A: Real>(
    plan: &Plan,
    cols: &Range<usize>,
    gradient: bool,
    coefs: impl Fn(Range<usize>, &mut Strip<A>) + Copy,
    own: &mut Strip<A>,
    strip: &mut Strip<A>,
) {
    if plan.inner() == 1 && !plan.is_joined() {
        return coefs(cols.clone(), strip);
    }
    coefs(plan.channels_in(cols), own);
    strip.from(own, gradient, |values, out| plan.expand(cols, values, out));
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
    pub scratch: Scratch<E::Acc>,
}

impl<E: Element> Step<E::Acc> for Normalize<'_, '_, E> {
    type Element = E;
    const GRADIENT: bool = false;
    #[inline(always)]
    fn to_line(&self, tile: &Tile) -> usize {
        if self.mask.is_some() { 0 } else { self.y.to_line(tile) }
    }
    #[inline(always)]
    fn piece(&mut self, row: usize, cols: Range<usize>, at: impl At<E::Acc>) {
        let range = clipped(row, cols.clone(), self.plan.width, self.plan.len());
        let scratch = &mut self.scratch;
        let x = match self.x {
            Some(x) => E::widened(&x[range.clone()], &mut scratch.x),
            None => {
                let held = self.y.held(row, cols.clone());
                let x = &mut scratch.x[..held.len()];
                x.copy_from_slice(E::widened(held, &mut scratch.out));
                x
            }
        };
        let residual = self.residual.map(|r| E::widened(&r[range], &mut scratch.other));
        let mask = self.mask.as_mut().map(|m| m.row_mut(row, self.plan.mask_cols(&cols)));
        let relu = self.relu;
        self.y.write(
            row,
            cols,
            &mut scratch.out,
            #[inline(always)]
            |y| {
                match relu {
                    true => lanes::normalize::<_, true>(x, residual, at, y),
                    false => lanes::normalize::<_, false>(x, residual, at, y),
                }
                if let Some(mask) = mask {
                    lanes::mask_of(y, E::ROUNDS_TO_ZERO, mask);
                }
            },
        );
    }
}
