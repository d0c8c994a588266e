//! Elementwise steps over a tile: which columns of which rows are taken at a time, with coefficients
//! from where.
use super::kernels::elementwise::{Ahead, At};
use super::kernels::source::Runs;
use super::plan::{Plan, Tile};
use super::simd::{BLOCK, GROUP};
use super::table::{Strip, Table};
use crate::Real;
use std::ops::Range;

/// How a tile is taken.
#[derive(Clone, Copy)]
pub(super) struct Walk<'a, A> {
    pub plan: &'a Plan,
    pub tile: &'a Tile,
    pub table: &'a Table<'a, A>,
    /// Whether all fields of the coefficients are taken, or what the forward takes.
    pub gradient: bool,
    /// Values of the tile's first row until its output starts a cache line, if pieces may begin there.
    pub to_line: usize,
    /// Elements of a cache line.
    pub line: usize,
    pub runs: Of,
}

/// How runs are cut into pieces. Long ones save what it costs to begin and to end within a cache line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Of {
    /// Not at all.
    Rows,
    /// What fits the first cache, of two tensors and f32: it is read twice.
    Long,
    /// What fits scratch memory: see [`ROOM`](super::simd::ROOM); whole bytes of a mask.
    Held,
}

impl<A: Real> Walk<'_, A> {
    /// Calls `piece` for the columns of a row that have one source of coefficients, all of the tile in the
    /// order of memory. Compiled into its caller, for the loops over pieces to be vector code as well: a
    /// call for each piece takes longer than the arithmetic of a short one.
    #[inline(always)]
    pub fn each(&self, piece: impl FnMut(usize, Range<usize>, At<'_, A>)) {
        match self.plan.has_runs() {
            true => self.runs(piece),
            false => self.columns(piece),
        }
    }

    /// Channels' runs, several or a part of one at a time.
    #[inline(always)]
    fn runs(&self, mut step: impl FnMut(usize, Range<usize>, At<'_, A>)) {
        let Self { plan, tile, table, .. } = *self;
        let (inner, Range { start, end }) = (plan.inner(), tile.cols.clone());
        let mut strip = Strip::new();
        let whole = plan.piece_of_runs();
        let (several, most) = match self.runs {
            Of::Rows => (true, usize::MAX),
            Of::Long => (true, 8 * BLOCK),
            Of::Held => (whole > inner, whole.min(BLOCK)),
        };
        let channels = start / inner..end.div_ceil(inner);
        for first in channels.clone().step_by(BLOCK) {
            let channels = first..(first + BLOCK).min(channels.end);
            strip.load_channels(channels.clone(), table, self.gradient);
            let (start, end) = (start.max(first * inner), end.min(channels.end * inner));
            for row in tile.rows.clone() {
                // One place that calls: the step is compiled into it.
                let parts = if several { 1 } else { channels.len() };
                for k in 0..parts {
                    let (from, to) = match several {
                        true => (start, end),
                        false => (start.max((first + k) * inner), end.min((first + k + 1) * inner)),
                    };
                    for at in (from..to).step_by(most) {
                        let coefs = match several {
                            true => {
                                let (channel, left) = (at / inner - first, inner - at % inner);
                                At::Runs(Runs { strip: &strip, channel, left, inner })
                            }
                            false => At::Channel(strip.at(k)),
                        };
                        step(row, at..at.saturating_add(most).min(to), coefs);
                    }
                }
            }
        }
    }

    /// Columns with coefficients of their own.
    #[inline(always)]
    fn columns(&self, mut step: impl FnMut(usize, Range<usize>, At<'_, A>)) {
        let Self { plan, tile, table, line, .. } = *self;
        let Range { start, end } = tile.cols.clone();
        // Strips after the first start cache lines, if all rows do so at the same columns.
        let aligns = plan.width.is_multiple_of(line);
        let head = if aligns { self.to_line } else { 0 };
        let strip_from = |start: usize| {
            let shorter = if head > 0 && start == tile.cols.start { line - head } else { 0 };
            let next = start + BLOCK - shorter;
            start..if next + GROUP < end { next } else { end }
        };
        // Two strips at a time: rows up to that long are taken in the order of memory.
        let (mut strip, mut next, mut at) = (Strip::new(), Strip::new(), start);
        while at < end {
            strip.align(if at == start { head } else { 0 });
            let cols = strip_from(at);
            let more = strip_from(cols.end);
            strip.load(plan, &cols, table, self.gradient);
            if !more.is_empty() {
                next.load(plan, &more, table, self.gradient);
            }
            at = more.end;
            let strips = [(cols, &strip), (more, &next)];
            let strips = if strips[1].0.is_empty() { &strips[..1] } else { &strips[..] };
            for row in tile.rows.clone() {
                for (cols, strip) in strips {
                    step(row, cols.clone(), At::Columns(strip));
                }
            }
        }
    }
}

/// What a loop over columns should ask for: `distance` elements later than where it reads.
#[inline(always)]
pub(super) fn ahead_of<E>(reads: [&[E]; 2], distance: isize) -> Ahead<E> {
    reads.map(|values| values.as_ptr().wrapping_offset(distance))
}
