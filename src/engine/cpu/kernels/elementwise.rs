//! Elementwise loops: `out[i] = op(coefficients of i, x[i], other[i])`.
use super::super::plan::{Plan, Tile};
use super::super::policy::AHEAD;
use super::super::simd::{GROUP, Simd, Store, prefetch, to_line};
use super::super::table::{Coef, Lanes, Strip};
use super::super::tiles::{Writer, clipped, of_rows};
use super::source::{Again, Groups, Runs, Source};
use crate::{Element, Real};
use std::ops::Range;

/// Blocks from here on are worth to be brought to the start of a cache line: vectors that straddle
/// two lines cost up to a tenth of a long run.
const ALIGNED: usize = 128;

/// Where the coefficients of a block come from.
#[derive(Clone, Copy)]
pub enum At<'a, A> {
    /// One channel's, or several ones'.
    Runs(Runs<'a, A>),
    /// Every value has its own.
    Columns(&'a Strip<A>),
    /// The first so many of a strip, whole groups, again and again.
    Again(&'a Strip<A>, usize),
}

/// What loops ask for ahead of themselves where they store past the cache: where the same columns of
/// later rows start, of two tensors or twice of one. Nothing is read there.
pub type Ahead<E> = [*const E; 2];

/// What a call works on. It reads x and, beside it, a residual or a gradient, or twice x.
pub enum Work<'a, 'p, E: Element> {
    /// Values that lie together.
    Piece {
        store: Store,
        at: At<'a, E::Acc>,
        from: [&'a [E]; 2],
        out: &'a mut [E],
        ahead: Ahead<E>,
    },
    /// Columns of rows of a tile of tensors, a strip beside the other, written as lines: a call
    /// for each piece of them would take longer than its arithmetic.
    Rows {
        plan: &'a Plan,
        tile: &'a Tile,
        rows: Range<usize>,
        strips: &'a [(Range<usize>, &'a Strip<E::Acc>)],
        from: [&'a [E]; 2],
        out: &'a mut Writer<'p, E>,
    },
}

impl<'a, 'p, E: Element> Work<'a, 'p, E> {
    /// A piece that is written to the cache.
    pub fn piece(simd: Simd, at: At<'a, E::Acc>, from: [&'a [E]; 2], out: &'a mut [E]) -> Self {
        let (store, ahead) = (Store::to_cache(simd), [std::ptr::null(); 2]);
        Work::Piece { store, at, from, out, ahead }
    }
    /// Some rows of a tile: in one piece where rows are joined and few columns repeat. A loop that begins anew with each row
    /// and reads coefficients of all its columns takes up to 1.1 times as long, in cache and in memory. `asks` says that a
    /// piece asks for what comes.
    pub fn rows(
        simd: Simd,
        (plan, tile, rows): (&'a Plan, &'a Tile, Range<usize>),
        strips: &'a [(Range<usize>, &'a Strip<E::Acc>)],
        from: [&'a [E]; 2],
        (out, asks): (&'a mut Writer<'p, E>, bool),
    ) -> Self {
        let columns = plan.narrow().width;
        if columns == plan.width {
            return Work::Rows { plan, tile, rows, strips, from, out };
        }
        let range = of_rows(&rows, plan.width, plan.len());
        let from = from.map(|tensor| &tensor[range.clone()]);
        let ahead = match asks {
            true => ahead_of(from, (AHEAD * plan.width).cast_signed()),
            false => [std::ptr::null(); 2],
        };
        let (store, out) = out.whole_rows(simd, rows);
        Work::Piece { store, at: At::Again(strips[0].1, columns), from, out, ahead }
    }
}

/// What is computed of a group of values, by coefficients and two tensors. Must be `#[inline(always)]`.
pub trait Op<A: Real>: Copy {
    /// That of the group that starts with value `at` of a block.
    fn group(
        &self,
        simd: Simd,
        at: usize,
        coef: impl Lanes<A>,
        x: [A; GROUP],
        other: [A; GROUP],
    ) -> [A; GROUP];
}

/// Every value's own.
impl<A: Real, F: Fn(Coef<A>, A, A) -> A + Copy> Op<A> for F {
    #[inline(always)]
    fn group(
        &self,
        _: Simd,
        _: usize,
        coef: impl Lanes<A>,
        x: [A; GROUP],
        other: [A; GROUP],
    ) -> [A; GROUP] {
        let mut values = [A::default(); GROUP];
        for l in 0..GROUP {
            values[l] = self(coef.at(l), x[l], other[l]);
        }
        values
    }
}

/// Maps every piece, value by value.
#[inline(always)]
fn map_all<E: Element>(
    simd: Simd,
    work: Work<'_, '_, E>,
    op: impl Fn(Coef<E::Acc>, E::Acc, E::Acc) -> E::Acc + Copy,
) {
    map_groups(simd, work, op);
}

/// Maps every piece.
#[inline(always)]
pub(super) fn map_groups<E: Element>(simd: Simd, mut work: Work<'_, '_, E>, op: impl Op<E::Acc>) {
    let (rows, strips) = match &work {
        Work::Piece { .. } => (0..1, 1),
        Work::Rows { rows, strips, .. } => (rows.clone(), strips.len()),
    };
    for row in rows {
        for k in 0..strips {
            // One place that maps: the loops are compiled into it.
            let (store, at, from, out, ahead) = match &mut work {
                Work::Piece { store, at, from, out, ahead } => {
                    (*store, *at, *from, &mut **out, *ahead)
                }
                Work::Rows { plan, tile, strips, from, out, .. } => {
                    let (cols, strip) = &strips[k];
                    let range = clipped(row, cols.clone(), plan.width, plan.len());
                    let from = [&from[0][range.clone()], &from[1][range]];
                    let ahead = ahead_of(from, tile.ahead(row, cols, plan.width));
                    let (store, out) = out.lines(simd, row, cols.clone());
                    (store, At::Columns(strip), from, out, ahead)
                }
            };
            map(store.compiled_for(simd), at, from, out, ahead, op);
        }
    }
}

/// What a loop over columns should ask for: `distance` elements later than where it reads.
#[inline(always)]
pub fn ahead_of<E>(reads: [&[E]; 2], distance: isize) -> Ahead<E> {
    reads.map(
        #[inline(always)]
        |values| values.as_ptr().wrapping_offset(distance),
    )
}

/// `y = relu(normalize(x) [+ residual])`, or without the ReLU.
pub fn normalize<E: Element>(simd: Simd, (residual, relu): (bool, bool), work: Work<'_, '_, E>) {
    // Without a ReLU everything is at least minus infinity.
    let least = if relu { E::Acc::default() } else { E::Acc::from_f64(f64::NEG_INFINITY) };
    simd.vectorize(
        #[inline(always)]
        |simd| match residual {
            false => map_all(
                simd,
                work,
                #[inline(always)]
                move |coef, x, _| at_least(least, coef.normalize(x)),
            ),
            true => map_all(
                simd,
                work,
                #[inline(always)]
                move |coef, x, r| at_least(least, coef.normalize(x) + r),
            ),
        },
    );
}

/// The larger one, `v` where it is NaN or a zero beside a zero: what one instruction does.
#[inline(always)]
fn at_least<A: Real>(least: A, v: A) -> A {
    if least > v { least } else { v }
}

/// `grad_y` where there is no ReLU or the forward's output rounds to more than zero or is NaN, else
/// 0.
#[inline(always)]
pub fn gate<E: Element, const RELU: bool>(coef: Coef<E::Acc>, x: E::Acc, grad_y: E::Acc) -> E::Acc {
    if RELU && coef.normalize(x) <= E::ROUNDS_TO_ZERO { E::Acc::default() } else { grad_y }
}

/// How a gradient flows to x.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Through {
    /// Through statistics of the batch: `scale * (g - mean_g - (x - mean) * slope)`.
    Statistics,
    /// Where they are constants: `scale * g`.
    Constants,
}

/// `grad_x`, `g` being `grad_y` where a ReLU that is computed again from x passes it, or all of it.
pub fn input_gradient<E: Element>(
    simd: Simd,
    (through, relu): (Through, bool),
    work: Work<'_, '_, E>,
) {
    simd.vectorize(
        #[inline(always)]
        |simd| match (through, relu) {
            (Through::Statistics, false) => map_all(
                simd,
                work,
                #[inline(always)]
                |s, x, g| s.scale * (g - s.mean_g - (x - s.mean) * s.slope),
            ),
            (Through::Statistics, true) => map_all(
                simd,
                work,
                #[inline(always)]
                |s, x, g| {
                    let g = gate::<E, true>(s, x, g);
                    s.scale * (g - s.mean_g - (x - s.mean) * s.slope)
                },
            ),
            (Through::Constants, false) => map_all(
                simd,
                work,
                #[inline(always)]
                |s, _, g| s.scale * g,
            ),
            (Through::Constants, true) => map_all(
                simd,
                work,
                #[inline(always)]
                |s, x, g| s.scale * gate::<E, true>(s, x, g),
            ),
        },
    );
}

#[inline(always)]
fn map<E: Element>(
    store: Store,
    at: At<'_, E::Acc>,
    from: [&[E]; 2],
    out: &mut [E],
    ahead: Ahead<E>,
    op: impl Op<E::Acc>,
) {
    match at {
        At::Runs(runs) => groups(store, runs, from, out, |_| (), op),
        At::Columns(strip) => groups(
            store,
            strip,
            from,
            out,
            #[inline(always)]
            |i| ahead.iter().for_each(|row| prefetch(row.wrapping_add(i))),
            op,
        ),
        At::Again(strip, columns) => groups(
            store,
            Again { strip, columns },
            from,
            out,
            #[inline(always)]
            |i| {
                if !ahead[0].is_null() {
                    ahead.iter().for_each(|later| prefetch(later.wrapping_add(i)));
                }
            },
            op,
        ),
    }
}

/// `out[i] = op(coefficients of i, x[i], other[i])`, in groups: a first one that starts at its own size or
/// at a cache line, whole groups from there on, a last one that ends where `out` does. They overlap, which
/// is harmless as nothing that is read is written; stores past the cache leave out what another group
/// writes.
#[inline(always)]
fn groups<E: Element>(
    store: Store,
    source: impl Source<E::Acc>,
    [mut x, mut other]: [&[E]; 2],
    out: &mut [E],
    ahead: impl Fn(usize),
    op: impl Op<E::Acc>,
) {
    let n = out.len();
    (x, other) = (&x[..n], &other[..n]);
    // Less than a group is brought to memory of a group.
    let mut short = None;
    let to = if n < GROUP {
        let [short_x, short_other, to] = short.insert([[E::default(); GROUP]; 3]);
        short_x[..n].copy_from_slice(x);
        short_other[..n].copy_from_slice(other);
        (x, other) = (short_x, short_other);
        &mut to[..]
    } else {
        &mut *out
    };
    let len = to.len();
    let head = if len < ALIGNED { 0 } else { to_line(to) % GROUP };
    let whole = head..len - (len - head) % GROUP;
    // What lies before the whole groups, then they, then what lies behind them.
    let ends = [(0, 0..head, whole.clone()), (len - GROUP, whole.end..len, 0..0)];
    for (at, own, whole) in ends {
        if !own.is_empty() {
            let [x, other] = [x, other].map(
                #[inline(always)]
                |values| values[at..].first_chunk().unwrap(),
            );
            let values = group(store, at, [x, other], source.group(at), op);
            let lanes = own.start - at..own.end - at;
            store.put_lanes(&values, to[at..].first_chunk_mut().unwrap(), lanes);
            if store.is_past_cache() {
                ahead(at);
            }
        }
        if whole.is_empty() {
            continue;
        }
        let from = [x, other].map(
            #[inline(always)]
            |values| values[whole.clone()].as_chunks().0,
        );
        let out = to[whole.clone()].as_chunks_mut().0;
        source.each(
            whole.start,
            Groups { from, out },
            #[inline(always)]
            |at, (from, out), coef| {
                store.put(
                    &group(store, at, from, coef, op),
                    out,
                    #[inline(always)]
                    || ahead(at),
                );
            },
        );
    }
    if let Some([.., short]) = &short {
        out.copy_from_slice(&short[..n]);
    }
}

#[inline(always)]
fn group<E: Element>(
    store: Store,
    at: usize,
    from: [&[E; GROUP]; 2],
    coef: impl Lanes<E::Acc>,
    op: impl Op<E::Acc>,
) -> [E::Acc; GROUP] {
    // Not by `map`: what it calls is compiled apart, without the loop's vector instructions.
    let (x, other) = (store.simd.widen(from[0]), store.simd.widen(from[1]));
    op.group(store.simd, at, coef, x, other)
}
