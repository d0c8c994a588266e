//! The first pass: sums over runs, in lanes, and over columns.
use super::super::super::simd::{GROUP, Simd, prefetch};
use super::super::double_backward::{One, PLAIN};
use super::{ABOVE, BITS, LEAKING, NOTHING, WITHIN};
use super::{By, COLUMNS, From, Many, OfColumns, Passing, Runs, padded, wide};
use crate::Element;

/// Sums of a channel, in lanes.
pub type OfChannel<A> = [[A; GROUP]; PLAIN];

/// Adds the terms of runs' values to the lanes of their channels.
pub fn add_runs<E: Element>(
    simd: Simd,
    from: From<'_, E>,
    runs: Runs<'_, E::Acc>,
    passing: &Passing<E::Acc>,
    sums: &mut [OfChannel<E::Acc>],
) {
    simd.vectorize(
        #[inline(always)]
        |simd| match passing.by {
            By::Nothing => add_runs_of::<E, NOTHING>(simd, from, runs, passing, sums),
            By::Above => add_runs_of::<E, ABOVE>(simd, from, runs, passing, sums),
            By::Within => add_runs_of::<E, WITHIN>(simd, from, runs, passing, sums),
            By::Leaking => add_runs_of::<E, LEAKING>(simd, from, runs, passing, sums),
            By::Bits => add_runs_of::<E, BITS>(simd, from, runs, passing, sums),
        },
    );
}

#[inline(always)]
fn add_runs_of<E: Element, const BY: u8>(
    simd: Simd,
    from: From<'_, E>,
    Runs { inner, bits, coefs }: Runs<'_, E::Acc>,
    passing: &Passing<E::Acc>,
    sums: &mut [OfChannel<E::Acc>],
) {
    for (k, (coefs, sums)) in coefs.iter().zip(sums).enumerate() {
        let first_bit = from.first_bit + k * bits;
        let from = From { first_bit, ..from.part(k * inner..(k + 1) * inner) };
        let coefs = (One(*coefs), 0);
        let [mut a, mut b, mut c, mut d, mut e] = *sums;
        let [x, grad_y, v] = from.groups();
        for i in 0..x.len() {
            let bits = from.bits::<BY>(i * GROUP);
            let wide = wide::<E, BY>(simd, [&x[i], &grad_y[i], &v[i]], bits, coefs, passing);
            wide.add([&mut a, &mut b, &mut c, &mut d, &mut e]);
        }
        // What is left, in a group that ends with it if there is one.
        let rest = inner % GROUP;
        if inner < GROUP {
            let [x, grad_y, v] = [padded(from.x), padded(from.grad_y), padded(from.v)];
            let bits = from.bits::<BY>(0);
            let wide = wide::<E, BY>(simd, [&x, &grad_y, &v], bits, coefs, passing);
            wide.only(0..rest).add([&mut a, &mut b, &mut c, &mut d, &mut e]);
        } else if rest > 0 {
            let at = inner - GROUP;
            let bits = from.bits::<BY>(at);
            let wide = wide::<E, BY>(simd, from.group(at), bits, coefs, passing);
            wide.only(GROUP - rest..GROUP).add([&mut a, &mut b, &mut c, &mut d, &mut e]);
        }
        *sums = [a, b, c, d, e];
    }
}

/// Adds the terms of some rows' columns to theirs, and asks for what lies so many elements behind each row.
pub fn add_columns<E: Element, const ROWS: usize>(
    simd: Simd,
    rows: &[(From<'_, E>, isize); ROWS],
    coefs: Many<'_, E::Acc>,
    passing: &Passing<E::Acc>,
    sums: &mut [OfColumns<E::Acc>; PLAIN],
) {
    simd.vectorize(
        #[inline(always)]
        |simd| match passing.by {
            By::Nothing => add_columns_of::<E, NOTHING, ROWS>(simd, rows, coefs, passing, sums),
            By::Above => add_columns_of::<E, ABOVE, ROWS>(simd, rows, coefs, passing, sums),
            By::Within => add_columns_of::<E, WITHIN, ROWS>(simd, rows, coefs, passing, sums),
            By::Leaking => add_columns_of::<E, LEAKING, ROWS>(simd, rows, coefs, passing, sums),
            By::Bits => add_columns_of::<E, BITS, ROWS>(simd, rows, coefs, passing, sums),
        },
    );
}

#[inline(always)]
fn add_columns_of<E: Element, const BY: u8, const ROWS: usize>(
    simd: Simd,
    rows: &[(From<'_, E>, isize); ROWS],
    coefs: Many<'_, E::Acc>,
    passing: &Passing<E::Acc>,
    sums: &mut [OfColumns<E::Acc>; PLAIN],
) {
    let n = rows[0].0.x.len();
    assert!(n <= COLUMNS);
    let [a, b, c, d, e] = sums;
    let (a, b, c) = (groups_mut(a), groups_mut(b), groups_mut(c));
    let (d, e) = (groups_mut(d), groups_mut(e));
    for i in 0..n / GROUP {
        let (mut s, mut t, mut u, mut v, mut w) = (a[i], b[i], c[i], d[i], e[i]);
        for (from, ahead) in rows {
            for read in [from.x, from.grad_y, from.v] {
                prefetch(read.as_ptr().wrapping_add(i * GROUP).wrapping_offset(*ahead));
            }
            let [x, g, v_x] = from.groups();
            let bits = from.bits::<BY>(i * GROUP);
            let wide = wide::<E, BY>(simd, [&x[i], &g[i], &v_x[i]], bits, (coefs, i), passing);
            wide.add([&mut s, &mut t, &mut u, &mut v, &mut w]);
        }
        (a[i], b[i], c[i], d[i], e[i]) = (s, t, u, v, w);
    }
    if !n.is_multiple_of(GROUP) {
        let i = n / GROUP;
        let (mut s, mut t, mut u, mut v, mut w) = (a[i], b[i], c[i], d[i], e[i]);
        for (from, _) in rows {
            let from = from.part(i * GROUP..n);
            let [x, g, v_x] = [padded(from.x), padded(from.grad_y), padded(from.v)];
            let bits = from.bits::<BY>(0);
            let wide = wide::<E, BY>(simd, [&x, &g, &v_x], bits, (coefs, i), passing);
            wide.only(0..n % GROUP).add([&mut s, &mut t, &mut u, &mut v, &mut w]);
        }
        (a[i], b[i], c[i], d[i], e[i]) = (s, t, u, v, w);
    }
}

#[inline(always)]
fn groups_mut<A>(columns: &mut OfColumns<A>) -> &mut [[A; GROUP]; COLUMNS / GROUP] {
    columns.as_chunks_mut().0.first_chunk_mut().unwrap()
}
