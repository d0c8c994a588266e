//! Step 2 of the forwards: normalize, add, activate, round, note what the ReLU let through.
use super::lanes::{self, At, BLOCK, Coef, Same, Scratch, Strip};
use super::plan::{Plan, Tile};
use super::tiles::{TileMut, Writer, clipped};
use crate::{Element, Real};
use std::ops::Range;

/// What is done with some columns of a row that share their coefficients' source.
pub(super) trait Step<A> {
    fn piece(&mut self, row: usize, cols: Range<usize>, at: impl At<A>);
}

/// Takes `step` over a tile, the values read last first: those are still in cache.
#[inline(always)]
pub(super) fn walk<A: Real>(
    plan: &Plan,
    tile: &Tile,
    coef: impl Fn(usize) -> Coef<A>,
    step: &mut impl Step<A>,
) {
    if plan.lone_runs {
        let run = plan.run().min(tile.cols.len());
        for start in tile.cols.clone().step_by(run).rev() {
            let same = Same(coef(plan.channel(start)));
            for row in tile.rows.clone().rev() {
                for at in (start..start + run).step_by(BLOCK) {
                    step.piece(row, at..(at + BLOCK).min(start + run), same);
                }
            }
        }
        return;
    }
    let mut strip = Strip::new();
    for start in tile.cols.clone().step_by(BLOCK).rev() {
        let cols = start..(start + BLOCK).min(tile.cols.end);
        for (i, col) in cols.clone().enumerate() {
            strip.set(i, coef(plan.channel(col)));
        }
        for row in tile.rows.clone().rev() {
            step.piece(row, cols.clone(), &strip);
        }
    }
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
