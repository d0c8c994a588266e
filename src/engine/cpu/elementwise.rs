//! Elementwise steps over a tile: which columns of which rows are taken at a time, with coefficients
//! from where.
use super::kernels::elementwise::{Ahead, At};
use super::plan::{Plan, Tile};
use super::simd::{BLOCK, GROUP, LINE};
use super::table::{Strip, Table};
use crate::Real;
use std::ops::Range;

/// What is done with some columns of a row that have one source of coefficients.
pub(super) trait Step<A> {
    /// What is written.
    type Element;
    /// Whether it takes all fields of the coefficients, or what the forward takes.
    const GRADIENT: bool;
    /// Values of the tile's first row until its output starts a cache line, if pieces may begin
    /// there.
    fn to_line(&self, tile: &Tile) -> usize;
    /// Whether pieces wait in scratch memory, and so must fit [`ROOM`](super::simd::ROOM). Longer ones,
    /// of one channel, save what it costs to begin and to end within a cache line.
    fn is_held(&self) -> bool;
    fn piece(&mut self, tile: &Tile, row: usize, cols: Range<usize>, at: At<'_, A>);
}

/// Values of one channel that a step takes at a time, unless it holds them: of two tensors and f32,
/// what fits the first cache, for a step may read them twice.
const LONG_PIECE: usize = 8 * BLOCK;

/// Takes `step` over a tile, in the order of memory.
pub(super) fn walk<A: Real, S: Step<A>>(
    plan: &Plan,
    tile: &Tile,
    table: &Table<'_, A>,
    step: &mut S,
) {
    match plan.has_runs() {
        true => walk_runs(plan, tile, table, step),
        false => walk_columns(plan, tile, table, step),
    }
}

/// Channels' runs, several or a part of one at a time.
fn walk_runs<A: Real, S: Step<A>>(plan: &Plan, tile: &Tile, table: &Table<'_, A>, step: &mut S) {
    let (inner, Range { start, end }) = (plan.inner(), tile.cols.clone());
    let mut strip = Strip::new();
    let piece = plan.piece_of_runs();
    let several = piece > inner;
    let most = match several {
        true => piece,
        false if step.is_held() => BLOCK,
        false => LONG_PIECE,
    };
    let channels = start / inner..end.div_ceil(inner);
    for first in channels.clone().step_by(BLOCK) {
        let channels = first..(first + BLOCK).min(channels.end);
        strip.load_channels(channels.clone(), table, S::GRADIENT);
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
                            At::Runs { strip: &strip, channel, left, inner }
                        }
                        false => At::Channel(strip.at(k)),
                    };
                    step.piece(tile, row, at..(at + most).min(to), coefs);
                }
            }
        }
    }
}

/// Columns with coefficients of their own.
fn walk_columns<A: Real, S: Step<A>>(plan: &Plan, tile: &Tile, table: &Table<'_, A>, step: &mut S) {
    let Range { start, end } = tile.cols.clone();
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
    let (mut strip, mut next, mut at) = (Strip::new(), Strip::new(), start);
    while at < end {
        strip.align(if at == start { head } else { 0 });
        let cols = strip_from(at);
        let more = strip_from(cols.end);
        strip.load(plan, &cols, table, S::GRADIENT);
        if !more.is_empty() {
            next.load(plan, &more, table, S::GRADIENT);
        }
        at = more.end;
        let strips = [(cols, &strip), (more, &next)];
        let strips = if strips[1].0.is_empty() { &strips[..1] } else { &strips[..] };
        for row in tile.rows.clone() {
            for (cols, strip) in strips {
                step.piece(tile, row, cols.clone(), At::Columns(strip));
            }
        }
    }
}

/// What a loop over columns should ask for: `distance` elements later than where it reads.
pub(super) fn ahead_of<E>(reads: [&[E]; 2], distance: isize) -> Ahead<E> {
    reads.map(|values| values.as_ptr().wrapping_offset(distance))
}
