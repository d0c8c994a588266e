//! Blocks of which some values count.
use super::super::simd::{BLOCK, GROUP, Simd};
use super::super::table::Lanes;
use super::elementwise::{At, gate};
use super::moments::Columns;
use super::source::Source;
use crate::{Element, Real};

/// Adds `d = x - pivot` and its square to the lanes where a value counts: those that do not add 0.
pub fn distances<E: Element>(
    simd: Simd,
    x: &[E],
    counts: &[u8],
    pivot: E::Acc,
    [sum, squares]: [&mut [E::Acc; GROUP]; 2],
) {
    let zero = E::Acc::default();
    simd.vectorize(
        #[inline(always)]
        |simd| {
            let ((groups, rest), (counts, counts_rest)) =
                (x.as_chunks::<GROUP>(), counts.as_chunks::<GROUP>());
            let (mut s, mut q) = (*sum, *squares);
            for (x, counts) in groups.iter().zip(counts) {
                let x = simd.widen(x);
                for l in 0..GROUP {
                    let d = if counts[l] != 0 { x[l] - pivot } else { zero };
                    s[l] += d;
                    q[l] += d * d;
                }
            }
            for (l, (x, counts)) in rest.iter().zip(counts_rest).enumerate() {
                let d = if *counts != 0 { x.widen() - pivot } else { zero };
                s[l] += d;
                q[l] += d * d;
            }
            (*sum, *squares) = (s, q);
        },
    );
}

/// Some columns of a row, and which of them count.
pub type Row<'x, E> = (&'x [E], &'x [u8]);

/// The same of the columns of rows of equal length, several at a time, and the numbers of those that count.
pub fn column_distances<E: Element, const ROWS: usize>(
    simd: Simd,
    rows: [Row<'_, E>; ROWS],
    pivot: &[E::Acc; BLOCK],
    [sum, squares, count]: [&mut [E::Acc; BLOCK]; 3],
) {
    let n = rows[0].0.len();
    assert!(n <= BLOCK);
    let rows = rows.map(|(x, counts)| (&x[..n], &counts[..n]));
    let (zero, one) = (E::Acc::default(), E::Acc::from_f64(1.0));
    simd.vectorize(
        #[inline(always)]
        |simd| {
            let pivots = pivot.as_chunks::<GROUP>().0;
            #[allow(clippy::needless_range_loop)] // of seven arrays
            for i in 0..n / GROUP {
                let [mut s, mut q, mut c] = [&*sum, &*squares, &*count].map(
                    #[inline(always)]
                    |to| to.as_chunks::<GROUP>().0[i],
                );
                for (x, counts) in rows {
                    let x = simd.widen(&x.as_chunks::<GROUP>().0[i]);
                    let counts = &counts.as_chunks::<GROUP>().0[i];
                    for l in 0..GROUP {
                        let d = if counts[l] != 0 { x[l] - pivots[i][l] } else { zero };
                        s[l] += d;
                        q[l] += d * d;
                        c[l] += if counts[l] != 0 { one } else { zero };
                    }
                }
                sum.as_chunks_mut().0[i] = s;
                squares.as_chunks_mut().0[i] = q;
                count.as_chunks_mut().0[i] = c;
            }
            for j in n - n % GROUP..n {
                for (x, counts) in rows {
                    let d = if counts[j] != 0 { x[j].widen() - pivot[j] } else { zero };
                    sum[j] += d;
                    squares[j] += d * d;
                    count[j] += if counts[j] != 0 { one } else { zero };
                }
            }
        },
    );
}

/// The gradient of x, of which what flows through the statistics reaches those that count; with `relu`, behind one
/// that is computed again.
pub fn input_gradient<E: Element>(
    simd: Simd,
    relu: bool,
    at: At<'_, E::Acc>,
    from: [&[E]; 2],
    counts: &[u8],
    out: &mut [E],
) {
    simd.vectorize(
        #[inline(always)]
        |simd| match (at, relu) {
            (At::Runs(runs), false) => gradients::<E, false>(simd, runs, from, counts, out),
            (At::Runs(runs), true) => gradients::<E, true>(simd, runs, from, counts, out),
            (At::Columns(strip), false) => gradients::<E, false>(simd, strip, from, counts, out),
            (At::Columns(strip), true) => gradients::<E, true>(simd, strip, from, counts, out),
        },
    );
}

#[inline(always)]
fn gradients<E: Element, const RELU: bool>(
    simd: Simd,
    source: impl Source<E::Acc>,
    [x, g]: [&[E]; 2],
    counts: &[u8],
    out: &mut [E],
) {
    let n = out.len();
    let (x, g, counts) = (&x[..n], &g[..n], &counts[..n]);
    let ((xs, x_rest), (gs, g_rest)) = (x.as_chunks::<GROUP>(), g.as_chunks::<GROUP>());
    let ((ks, k_rest), (outs, out_rest)) =
        (counts.as_chunks::<GROUP>(), out.as_chunks_mut::<GROUP>());
    for (i, out) in outs.iter_mut().enumerate() {
        *out = gradient::<E, RELU>(simd, source.group(i * GROUP), [&xs[i], &gs[i]], &ks[i]);
    }
    if !out_rest.is_empty() {
        let left = out_rest.len();
        let (mut x, mut g, mut k) = ([E::default(); GROUP], [E::default(); GROUP], [0; GROUP]);
        x[..left].copy_from_slice(x_rest);
        g[..left].copy_from_slice(g_rest);
        k[..left].copy_from_slice(k_rest);
        let values = gradient::<E, RELU>(simd, source.group(n - left), [&x, &g], &k);
        out_rest.copy_from_slice(&values[..left]);
    }
}

/// Of a group.
#[inline(always)]
fn gradient<E: Element, const RELU: bool>(
    simd: Simd,
    coef: impl Lanes<E::Acc>,
    from: [&[E; GROUP]; 2],
    counts: &[u8; GROUP],
) -> [E; GROUP] {
    let [x, g] = from.map(
        #[inline(always)]
        |values| simd.widen(values),
    );
    let mut values = [E::Acc::default(); GROUP];
    for l in 0..GROUP {
        let coef = coef.at(l);
        let g = gate::<E, RELU>(coef, x[l], g[l]);
        let through = coef.mean_g + (x[l] - coef.mean) * coef.slope;
        let through = if counts[l] != 0 { through } else { E::Acc::default() };
        values[l] = coef.scale * (g - through);
    }
    simd.narrow::<E, GROUP>(&values)
}

/// As [`merge_columns`](super::moments::merge_columns), of columns that have a number of values each; `totals`
/// are the numbers before, and those after.
pub fn merge_columns<A: Real>(
    simd: Simd,
    counts: &[A],
    from: &Columns<'_, A>,
    pivot: &mut [A],
    [offsets, squares, totals]: [&mut [f64]; 3],
) {
    let n = offsets.len();
    let (pivot, squares, totals) = (&mut pivot[..n], &mut squares[..n], &mut totals[..n]);
    let (sums, products, bases) = (&from.sums[..n], &from.squares[..n], &from.bases[..n]);
    let counts = &counts[..n];
    simd.vectorize(
        #[inline(always)]
        |_| {
            for j in 0..n {
                let (sum, count, before) = (sums[j].to_f64(), counts[j].to_f64(), totals[j]);
                let each = 1.0 / if count > 0.0 { count } else { 1.0 };
                let all = before + count;
                let share = count / if all > 0.0 { all } else { 1.0 };
                let offset = (pivot[j].to_f64() - bases[j]) + sum * each;
                let own = products[j].to_f64() - sum * sum * each;
                // Of none nothing changes, whatever the pivot is.
                let delta = if count > 0.0 { offset - offsets[j] } else { 0.0 };
                offsets[j] += delta * share;
                squares[j] += if own < 0.0 { 0.0 } else { own } + delta * delta * before * share;
                totals[j] = all;
                let mean = A::from_f64(bases[j] + offsets[j]);
                pivot[j] = if all > 0.0 { mean } else { pivot[j] };
            }
        },
    );
}

/// Brings pivots to the mean of some values.
pub fn guess_columns<A: Real>(simd: Simd, pivot: &mut [A], sums: &[A], counts: &[A]) {
    let one = A::from_f64(1.0);
    simd.vectorize(
        #[inline(always)]
        |_| {
            for ((pivot, sum), count) in pivot.iter_mut().zip(sums).zip(counts) {
                *pivot += *sum / if *count > one { *count } else { one };
            }
        },
    );
}
