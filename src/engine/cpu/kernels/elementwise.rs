//! Elementwise loops: `out[i] = op(coefficients of i, x[i], other[i])`.
use super::super::simd::{GROUP, Simd, Store, prefetch, to_line};
use super::super::table::{Coef, Lanes, Strip};
use super::source::{Runs, Source};
use crate::{Element, Real};

/// Blocks from here on are worth to be brought to the start of a cache line: vectors that straddle
/// two lines cost up to a tenth of a long run.
const ALIGNED: usize = 128;

/// Where the coefficients of a block come from.
#[derive(Clone, Copy)]
pub enum At<'a, A> {
    /// One channel's.
    Channel(Coef<A>),
    /// Several channels'.
    Runs(Runs<'a, A>),
    /// Every value has its own.
    Columns(&'a Strip<A>),
}

/// What loops ask for ahead of themselves where they store past the cache: where the same columns of
/// later rows start, of two tensors or twice of one. Nothing is read there.
pub type Ahead<E> = [*const E; 2];

/// What is done in one place.
pub struct Piece<'a, E: Element> {
    pub store: Store,
    pub at: At<'a, E::Acc>,
    pub x: &'a [E],
    /// A residual or a gradient; x where there is neither.
    pub other: &'a [E],
    pub out: &'a mut [E],
    pub ahead: Ahead<E>,
}

/// Several, or one.
pub trait Pieces<E: Element> {
    /// Calls `take` for each; must be `#[inline(always)]`, as `take` is.
    fn each(self, take: impl FnMut(Piece<'_, E>));
}
impl<E: Element> Pieces<E> for Piece<'_, E> {
    #[inline(always)]
    fn each(self, mut take: impl FnMut(Piece<'_, E>)) {
        take(self);
    }
}

/// Maps every piece.
#[inline(always)]
fn map_each<E: Element>(
    simd: Simd,
    pieces: impl Pieces<E>,
    op: impl Fn(Coef<E::Acc>, E::Acc, E::Acc) -> E::Acc + Copy,
) {
    pieces.each(
        #[inline(always)]
        |Piece { store, at, x, other, out, ahead }| {
            map(store.compiled_for(simd), at, [x, other], out, ahead, op);
        },
    );
}

/// `y = relu(normalize(x) [+ residual])`, or without the ReLU.
pub fn normalize<E: Element>(simd: Simd, residual: bool, relu: bool, pieces: impl Pieces<E>) {
    // Without a ReLU everything is at least minus infinity.
    let least = if relu { E::Acc::default() } else { E::Acc::from_f64(f64::NEG_INFINITY) };
    simd.vectorize(
        #[inline(always)]
        |simd| match residual {
            false => map_each(
                simd,
                pieces,
                #[inline(always)]
                move |coef, x, _| at_least(least, coef.normalize(x)),
            ),
            true => map_each(
                simd,
                pieces,
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
    pieces: impl Pieces<E>,
) {
    simd.vectorize(
        #[inline(always)]
        |simd| match (through, relu) {
            (Through::Statistics, false) => map_each(
                simd,
                pieces,
                #[inline(always)]
                |s, x, g| s.scale * (g - s.mean_g - (x - s.mean) * s.slope),
            ),
            (Through::Statistics, true) => map_each(
                simd,
                pieces,
                #[inline(always)]
                |s, x, g| {
                    let g = gate::<E, true>(s, x, g);
                    s.scale * (g - s.mean_g - (x - s.mean) * s.slope)
                },
            ),
            (Through::Constants, false) => map_each(
                simd,
                pieces,
                #[inline(always)]
                |s, _, g| s.scale * g,
            ),
            (Through::Constants, true) => map_each(
                simd,
                pieces,
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
    op: impl Fn(Coef<E::Acc>, E::Acc, E::Acc) -> E::Acc,
) {
    match at {
        At::Channel(coef) => groups(store, coef, from, out, |_| (), op),
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
    op: impl Fn(Coef<E::Acc>, E::Acc, E::Acc) -> E::Acc,
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
            let values = group(store, [x, other], source.group(at), &op);
            let lanes = own.start - at..own.end - at;
            store.put_lanes(&values, to[at..].first_chunk_mut().unwrap(), lanes);
            if store.is_past_cache() {
                ahead(at);
            }
        }
        if whole.is_empty() {
            continue;
        }
        let [xs, others] = [x, other].map(
            #[inline(always)]
            |values| values[whole.clone()].as_chunks().0,
        );
        let outs = to[whole.clone()].as_chunks_mut().0;
        source.each(
            whole.start,
            xs.iter().zip(others).zip(outs).enumerate(),
            #[inline(always)]
            |(i, ((x, other), out)), coef| {
                store.put(
                    &group(store, [x, other], coef, &op),
                    out,
                    #[inline(always)]
                    || ahead(whole.start + i * GROUP),
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
    from: [&[E; GROUP]; 2],
    coef: impl Lanes<E::Acc>,
    op: &impl Fn(Coef<E::Acc>, E::Acc, E::Acc) -> E::Acc,
) -> [E::Acc; GROUP] {
    let [x, other] = from.map(
        #[inline(always)]
        |values| store.simd.widen(values),
    );
    let mut values = [E::Acc::default(); GROUP];
    for l in 0..GROUP {
        values[l] = op(coef.at(l), x[l], other[l]);
    }
    values
}
