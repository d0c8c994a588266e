//! Elementwise steps over a tile: which columns of which rows are taken at a time, with coefficients
//! from where.
use super::kernels::elementwise::At;
use super::kernels::source::Runs;
use super::plan::{Plan, Tile};
use super::simd::{BLOCK, GROUP, LINE, TWICE};
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
    /// How runs are cut.
    fn cut(&self) -> Cut;
    fn piece(&mut self, tile: &Tile, row: usize, cols: Range<usize>, at: At<'_, A>);
    /// The same columns of all rows of the tile, a strip beside the other: [`by_piece`], or better.
    fn columns(&mut self, tile: &Tile, strips: &[(Range<usize>, &Strip<A>)]);
}

/// Takes columns a piece after the other, in the order of memory.
pub(super) fn by_piece<A, S: Step<A>>(
    step: &mut S,
    tile: &Tile,
    strips: &[(Range<usize>, &Strip<A>)],
) {
    for row in tile.rows.clone() {
        for (cols, strip) in strips {
            step.piece(tile, row, cols.clone(), At::Columns(strip));
        }
    }
}

/// How runs of channels are cut into pieces. Long ones save what it costs to begin and to end within a
/// cache line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cut {
    /// Not at all: what a tile has of a row.
    Row,
    /// To [`TWICE`] values, and whole bytes of a mask.
    Twice,
    /// To blocks that fit [`ROOM`](super::simd::ROOM), and whole bytes of a mask.
    Held,
}

/// The coefficients of a step's strips, for several tiles of the same table that have the same columns.
pub(super) struct Strips<A> {
    first: Strip<A>,
    second: Option<Strip<A>>,
    /// Those of which columns there are, and where the first of them that starts a cache line is.
    held: Option<(Range<usize>, usize)>,
}

impl<A: Real> Strips<A> {
    #[inline(always)]
    pub fn new() -> Self {
        Self { first: Strip::new(), second: None, held: None }
    }
}

/// Takes `step` over a tile, in the order of memory.
pub(super) fn walk<A: Real, S: Step<A>>(
    plan: &Plan,
    tile: &Tile,
    table: &Table<'_, A>,
    step: &mut S,
) {
    walk_on(plan, tile, table, step, &mut Strips::new());
}

/// The same with coefficients that a tile before it has left, where it has the same columns.
#[inline(always)]
pub(super) fn walk_on<A: Real, S: Step<A>>(
    plan: &Plan,
    tile: &Tile,
    table: &Table<'_, A>,
    step: &mut S,
    strips: &mut Strips<A>,
) {
    match plan.has_runs() {
        true => walk_runs(plan, tile, table, step, strips),
        false => walk_columns(plan, tile, table, step, strips),
    }
}

/// Channels' runs, several or a part of one at a time.
#[inline(always)]
fn walk_runs<A: Real, S: Step<A>>(
    plan: &Plan,
    tile: &Tile,
    table: &Table<'_, A>,
    step: &mut S,
    Strips { first: strip, held, .. }: &mut Strips<A>,
) {
    let (inner, Range { start, end }) = (plan.inner(), tile.cols.clone());
    *held = None;
    strip.align(0);
    let pieces_of = |most: usize| {
        let piece = plan.piece_of_runs(most);
        (piece > inner, piece.min(most))
    };
    let (several, most) = match step.cut() {
        Cut::Row => (true, usize::MAX),
        Cut::Twice => pieces_of(TWICE),
        Cut::Held => pieces_of(BLOCK),
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
                    let (channel, left) = (at / inner - first, inner - at % inner);
                    let runs = At::Runs(Runs { strip: &*strip, channel, left, inner });
                    step.piece(tile, row, at..at.saturating_add(most).min(to), runs);
                }
            }
        }
    }
}

/// Columns with coefficients of their own.
#[inline(always)]
fn walk_columns<A: Real, S: Step<A>>(
    plan: &Plan,
    tile: &Tile,
    table: &Table<'_, A>,
    step: &mut S,
    Strips { first: strip, second, held }: &mut Strips<A>,
) {
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
    let mut at = start;
    let own = (tile.cols.clone(), head);
    let is_held = held.as_ref() == Some(&own);
    while at < end {
        let (is_first, cols) = (at == start, strip_from(at));
        let more = strip_from(cols.end);
        if !is_held {
            strip.align(if is_first { head } else { 0 });
            strip.load(plan, &cols, table, S::GRADIENT);
            if !more.is_empty() {
                second.get_or_insert_with(Strip::new).load(plan, &more, table, S::GRADIENT);
            }
        }
        at = more.end;
        *held = (is_first && at == end).then(|| own.clone());
        // One place that calls, whether there are two or one.
        let most = 2 - usize::from(more.is_empty());
        let strips = [(cols, &*strip), (more, second.as_ref().unwrap_or(strip))];
        step.columns(tile, &strips[..most]);
    }
}
