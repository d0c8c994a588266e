//! The first pass: sums over runs, in lanes, and over columns.
use super::super::super::simd::{GROUP, Simd, prefetch};
use super::super::double_backward::{One, PLAIN};
use super::{ABOVE, ALL, BITS, LEAKING, NOTHING, WITHIN};
use super::{By, COLUMNS, From, Group, Many, OfColumns, Passing, Runs, wide};
use crate::Element;

/// Sums of a channel, in lanes.
pub type OfChannel<A> = [[A; GROUP]; PLAIN];

/// Adds the terms of runs' values to the lanes of their channels; where there are bytes, by them.
pub fn add_runs<E: Element>(
    simd: Simd,
    from: From<'_, E>,
    runs: Runs<'_, E::Acc>,
    passing: &Passing<E::Acc>,
    sums: &mut [OfChannel<E::Acc>],
) {
    match from.counts.is_empty() {
        true => add_some_runs::<E, false>(simd, from, runs, passing, sums),
        false => add_some_runs::<E, true>(simd, from, runs, passing, sums),
    }
}

fn add_some_runs<E: Element, const COUNTED: bool>(
    simd: Simd,
    from: From<'_, E>,
    runs: Runs<'_, E::Acc>,
    passing: &Passing<E::Acc>,
    sums: &mut [OfChannel<E::Acc>],
) {
    match passing.by {
        By::Nothing => add_runs_by::<E, NOTHING, COUNTED>(simd, from, runs, passing, sums),
        By::Above => add_runs_by::<E, ABOVE, COUNTED>(simd, from, runs, passing, sums),
        By::Within => add_runs_by::<E, WITHIN, COUNTED>(simd, from, runs, passing, sums),
        By::Leaking => add_runs_by::<E, LEAKING, COUNTED>(simd, from, runs, passing, sums),
        By::Bits => add_runs_by::<E, BITS, COUNTED>(simd, from, runs, passing, sums),
    }
}

fn add_runs_by<E: Element, const BY: u8, const COUNTED: bool>(
    simd: Simd,
    from: From<'_, E>,
    runs: Runs<'_, E::Acc>,
    passing: &Passing<E::Acc>,
    sums: &mut [OfChannel<E::Acc>],
) {
    simd.vectorize(
        #[inline(always)]
        |simd| add_runs_of::<E, BY, COUNTED>(simd, from, runs, passing, sums),
    );
}

#[inline(always)]
fn add_runs_of<E: Element, const BY: u8, const COUNTED: bool>(
    simd: Simd,
    all: From<'_, E>,
    runs: Runs<'_, E::Acc>,
    passing: &Passing<E::Acc>,
    sums: &mut [OfChannel<E::Acc>],
) {
    let inner = runs.inner;
    for (k, (coefs, sums)) in runs.coefs.iter().zip(sums).enumerate() {
        let from = all.run(k, &runs);
        let coefs = (One(*coefs), 0);
        let [mut a, mut b, mut c, mut d, mut e] = *sums;
        let ([x, grad_y, v], counts) = from.groups(COUNTED);
        for i in 0..x.len() {
            let bits = from.bits::<BY>(i * GROUP);
            let counts = if COUNTED { &counts[i] } else { ALL };
            let group = Group { values: [&x[i], &grad_y[i], &v[i]], bits, counts };
            let wide = wide::<E, BY>(simd, group, coefs, passing);
            wide.add::<COUNTED>(simd, counts, [&mut a, &mut b, &mut c, &mut d, &mut e]);
        }
        // What is left, in a group that ends with it if there is one.
        let rest = inner % GROUP;
        let to = [&mut a, &mut b, &mut c, &mut d, &mut e];
        if inner < GROUP {
            from.padded::<BY>(
                COUNTED,
                #[inline(always)]
                |group| {
                    let wide = wide::<E, BY>(simd, group, coefs, passing).only(0..rest);
                    wide.add::<COUNTED>(simd, group.counts, to);
                },
            );
        } else if rest > 0 {
            let group = from.group::<BY>(inner - GROUP, COUNTED);
            let wide = wide::<E, BY>(simd, group, coefs, passing).only(GROUP - rest..GROUP);
            wide.add::<COUNTED>(simd, group.counts, to);
        }
        *sums = [a, b, c, d, e];
    }
}

/// Adds the terms of some rows' columns to theirs, where there are bytes by them, and asks for what lies so many
/// elements behind each row.
pub fn add_columns<E: Element, const ROWS: usize>(
    simd: Simd,
    rows: &[(From<'_, E>, isize); ROWS],
    coefs: Many<'_, E::Acc>,
    passing: &Passing<E::Acc>,
    sums: &mut [OfColumns<E::Acc>; PLAIN],
) {
    match rows[0].0.counts.is_empty() {
        true => add_some_columns::<E, ROWS, false>(simd, rows, coefs, passing, sums),
        false => add_some_columns::<E, ROWS, true>(simd, rows, coefs, passing, sums),
    }
}

fn add_some_columns<E: Element, const ROWS: usize, const COUNTED: bool>(
    simd: Simd,
    rows: &[(From<'_, E>, isize); ROWS],
    coefs: Many<'_, E::Acc>,
    passing: &Passing<E::Acc>,
    sums: &mut [OfColumns<E::Acc>; PLAIN],
) {
    let to = (coefs, passing, sums);
    match passing.by {
        By::Nothing => add_columns_by::<E, NOTHING, ROWS, COUNTED>(simd, rows, to),
        By::Above => add_columns_by::<E, ABOVE, ROWS, COUNTED>(simd, rows, to),
        By::Within => add_columns_by::<E, WITHIN, ROWS, COUNTED>(simd, rows, to),
        By::Leaking => add_columns_by::<E, LEAKING, ROWS, COUNTED>(simd, rows, to),
        By::Bits => add_columns_by::<E, BITS, ROWS, COUNTED>(simd, rows, to),
    }
}

/// Coefficients of columns, and their sums.
type Columns<'s, A> = (Many<'s, A>, &'s Passing<A>, &'s mut [OfColumns<A>; PLAIN]);

fn add_columns_by<E: Element, const BY: u8, const ROWS: usize, const COUNTED: bool>(
    simd: Simd,
    rows: &[(From<'_, E>, isize); ROWS],
    to: Columns<'_, E::Acc>,
) {
    simd.vectorize(
        #[inline(always)]
        |simd| add_columns_of::<E, BY, ROWS, COUNTED>(simd, rows, to),
    );
}

#[inline(always)]
fn add_columns_of<E: Element, const BY: u8, const ROWS: usize, const COUNTED: bool>(
    simd: Simd,
    rows: &[(From<'_, E>, isize); ROWS],
    (coefs, passing, sums): Columns<'_, E::Acc>,
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
            let ([x, g, v_x], counts) = from.groups(COUNTED);
            let bits = from.bits::<BY>(i * GROUP);
            let counts = if COUNTED { &counts[i] } else { ALL };
            let group = Group { values: [&x[i], &g[i], &v_x[i]], bits, counts };
            let wide = wide::<E, BY>(simd, group, (coefs, i), passing);
            wide.add::<COUNTED>(simd, counts, [&mut s, &mut t, &mut u, &mut v, &mut w]);
        }
        (a[i], b[i], c[i], d[i], e[i]) = (s, t, u, v, w);
    }
    if !n.is_multiple_of(GROUP) {
        let i = n / GROUP;
        let (mut s, mut t, mut u, mut v, mut w) = (a[i], b[i], c[i], d[i], e[i]);
        for (from, _) in rows {
            from.part(i * GROUP..n).padded::<BY>(
                COUNTED,
                #[inline(always)]
                |group| {
                    let wide = wide::<E, BY>(simd, group, (coefs, i), passing).only(0..n % GROUP);
                    let to = [&mut s, &mut t, &mut u, &mut v, &mut w];
                    wide.add::<COUNTED>(simd, group.counts, to);
                },
            );
        }
        (a[i], b[i], c[i], d[i], e[i]) = (s, t, u, v, w);
    }
}

#[inline(always)]
fn groups_mut<A>(columns: &mut OfColumns<A>) -> &mut [[A; GROUP]; COLUMNS / GROUP] {
    columns.as_chunks_mut().0.first_chunk_mut().unwrap()
}
