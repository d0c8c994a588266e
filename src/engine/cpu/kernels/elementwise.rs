//! Elementwise loops: `out[i] = op(coefficients of i, x[i], other[i])`.
use super::super::simd::{GROUP, QUARTER, Store, prefetch, to_line};
use super::super::table::{Coef, Lanes, Strip};
use crate::{Element, Real};

/// Blocks from here on are worth to be brought to the start of a cache line: vectors that straddle
/// two lines cost up to a tenth of a long run.
const ALIGNED: usize = 128;

/// So few values of a short run are not worth a group: a vector that straddles two lines is slow to
/// store, and in rows of 7 x 7 every one does.
const FEW: usize = 4;

/// Where the coefficients of a block come from.
#[derive(Clone, Copy)]
pub enum At<'a, A> {
    /// One channel's.
    Channel(Coef<A>),
    /// Runs of values that have their channel's coefficients in common.
    Runs {
        strip: &'a Strip<A>,
        /// Of the first value: its place in the strip.
        channel: usize,
        /// Values of that channel's run from the first one on.
        left: usize,
        /// Values of a run.
        inner: usize,
    },
    /// Every value has its own.
    Columns(&'a Strip<A>),
}

impl<A: Real> At<'_, A> {
    /// Whether a block of `n` values can be stored past the cache as it is computed: in whole lines, so
    /// not where short runs end within one.
    pub fn has_lines<E>(&self, n: usize) -> bool {
        match self {
            At::Channel(_) => true,
            At::Runs { left, inner, .. } => {
                *left >= n || (inner * size_of::<E>()).is_multiple_of(QUARTER)
            }
            At::Columns(_) => true,
        }
    }
}
/// What loops ask for ahead of themselves where they store past the cache: where the same columns of
/// later rows start, of two tensors or twice of one. Nothing is read there.
pub type Ahead<E> = [*const E; 2];

/// `y = relu(normalize(x) [+ residual])`, or without the ReLU.
pub fn normalize<E: Element>(
    store: Store,
    at: At<'_, E::Acc>,
    (x, residual): (&[E], Option<&[E]>),
    relu: bool,
    y: &mut [E],
    ahead: Ahead<E>,
) {
    // Without a ReLU everything is at least minus infinity.
    let least = if relu { E::Acc::default() } else { E::Acc::from_f64(f64::NEG_INFINITY) };
    store.simd.vectorize(
        #[inline(always)]
        |simd| {
            let store = store.compiled_for(simd);
            match residual {
                None => map(
                    store,
                    at,
                    [x, x],
                    y,
                    ahead,
                    #[inline(always)]
                    move |coef, x, _| at_least(least, coef.normalize(x)),
                ),
                Some(residual) => map(
                    store,
                    at,
                    [x, residual],
                    y,
                    ahead,
                    #[inline(always)]
                    move |coef, x, r| at_least(least, coef.normalize(x) + r),
                ),
            }
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
    store: Store,
    at: At<'_, E::Acc>,
    (x, grad_y): (&[E], &[E]),
    (through, relu): (Through, bool),
    grad_x: &mut [E],
    ahead: Ahead<E>,
) {
    let from = [x, grad_y];
    store.simd.vectorize(
        #[inline(always)]
        |simd| {
            let store = store.compiled_for(simd);
            match (through, relu) {
                (Through::Statistics, false) => map(
                    store,
                    at,
                    from,
                    grad_x,
                    ahead,
                    #[inline(always)]
                    |s, x, g| s.scale * (g - s.mean_g - (x - s.mean) * s.slope),
                ),
                (Through::Statistics, true) => map(
                    store,
                    at,
                    from,
                    grad_x,
                    ahead,
                    #[inline(always)]
                    |s, x, g| {
                        let g = gate::<E, true>(s, x, g);
                        s.scale * (g - s.mean_g - (x - s.mean) * s.slope)
                    },
                ),
                (Through::Constants, false) => map(
                    store,
                    at,
                    from,
                    grad_x,
                    ahead,
                    #[inline(always)]
                    |s, _, g| s.scale * g,
                ),
                (Through::Constants, true) => map(
                    store,
                    at,
                    from,
                    grad_x,
                    ahead,
                    #[inline(always)]
                    |s, x, g| s.scale * gate::<E, true>(s, x, g),
                ),
            }
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
    op: impl Fn(Coef<E::Acc>, E::Acc, E::Acc) -> E::Acc + Copy,
) {
    let n = out.len();
    let (runs, mut channel, left, inner) = match at {
        At::Columns(strip) => {
            return groups(
                store,
                from,
                out,
                #[inline(always)]
                |i, count| strip.groups(i, count),
                #[inline(always)]
                |i| ahead.iter().for_each(|row| prefetch(row.wrapping_add(i))),
                op,
            );
        }
        At::Channel(coef) => (Err(coef), 0, n, n),
        At::Runs { strip, channel, left, inner } => (Ok(strip), channel, left, inner),
    };
    let (mut start, mut end) = (0, left.min(n));
    while start < n {
        let coef = match runs {
            Ok(strip) => strip.at(channel),
            Err(coef) => coef,
        };
        let (from, out) = (
            from.map(
                #[inline(always)]
                |values| &values[start..end],
            ),
            &mut out[start..end],
        );
        let next = (end, (end + inner).min(n), channel + 1);
        if !store.is_past_cache() && (GROUP..ALIGNED).contains(&out.len()) {
            short(store, from, out, coef, op);
            (start, end, channel) = next;
            continue;
        }
        groups(
            store,
            from,
            out,
            #[inline(always)]
            |_, _| {
                #[inline(always)]
                move |_| coef
            },
            |_| (),
            op,
        );
        (start, end, channel) = next;
    }
}

/// Groups of a short run, the last of which ends where `out` does: they may overlap, as nothing that is
/// written is read. Inference over runs of 49 values takes a quarter fewer instructions so than by
/// [`groups`].
#[inline(always)]
fn short<E: Element>(
    store: Store,
    [x, other]: [&[E]; 2],
    out: &mut [E],
    coef: Coef<E::Acc>,
    op: impl Fn(Coef<E::Acc>, E::Acc, E::Acc) -> E::Acc,
) {
    let n = out.len();
    let (x, other) = (&x[..n], &other[..n]);
    let (xs, others, outs) = (x.as_chunks::<GROUP>().0, other.as_chunks().0, out.as_chunks_mut().0);
    for ((x, other), out) in xs.iter().zip(others).zip(outs) {
        store.put_to_cache(&group(store, [x, other], coef, &op), out);
    }
    match n % GROUP {
        0 => (),
        1..=FEW => last::<E, FEW>(store, [x, other], out, coef, op),
        _ => last::<E, GROUP>(store, [x, other], out, coef, op),
    }
}
/// The last values, of `N` at least.
#[inline(always)]
fn last<E: Element, const N: usize>(
    store: Store,
    [x, other]: [&[E]; 2],
    out: &mut [E],
    coef: Coef<E::Acc>,
    op: impl Fn(Coef<E::Acc>, E::Acc, E::Acc) -> E::Acc,
) {
    let last = (x.last_chunk::<N>(), other.last_chunk(), out.last_chunk_mut());
    if let (Some(x), Some(other), Some(out)) = last {
        store.put_to_cache(&group(store, [x, other], coef, &op), out);
    }
}

/// A group that ends where one in `out` starts at its own size or at a cache line, whole groups
/// from there on, a last one that ends where `out` does. They overlap, which is harmless as nothing
/// that is read is written; stores past the cache leave out what another group writes.
#[inline(always)]
fn groups<E: Element, L: Lanes<E::Acc>, C: Fn(usize) -> L>(
    store: Store,
    [mut x, mut other]: [&[E]; 2],
    out: &mut [E],
    coefs: impl Fn(usize, usize) -> C,
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
            let values = group(store, [x, other], coefs(at, 1)(0), &op);
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
        let coefs = coefs(whole.start, whole.len() / GROUP);
        for i in 0..outs.len() {
            let values = group(store, [&xs[i], &others[i]], coefs(i), &op);
            store.put(
                &values,
                &mut outs[i],
                #[inline(always)]
                || ahead(whole.start + i * GROUP),
            );
        }
    }
    if let Some([.., short]) = &short {
        out.copy_from_slice(&short[..n]);
    }
}

#[inline(always)]
fn group<E: Element, const N: usize>(
    store: Store,
    from: [&[E; N]; 2],
    coef: impl Lanes<E::Acc>,
    op: &impl Fn(Coef<E::Acc>, E::Acc, E::Acc) -> E::Acc,
) -> [E::Acc; N] {
    let [x, other] = from.map(
        #[inline(always)]
        |values| store.simd.widen(values),
    );
    let mut values = [E::Acc::default(); N];
    for l in 0..N {
        values[l] = op(coef.at(l), x[l], other[l]);
    }
    values
}
