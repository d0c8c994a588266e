//! Sums of channels that have a short run in each of a few rows, as small ghost batches of planes do: by runs, as
//! sums by columns take more for each column than for its few values, and many channels in one loop, as a call for
//! every run would take longer than its sums.
use super::super::simd::{GROUP, Simd, prefetch};
use super::super::table::{Coef, Table};
use super::convert::finite;
use super::elementwise::gate;
use super::source::LANE;
use crate::{Element, Real};
use std::hint::select_unpredictable;
use std::sync::atomic::{Ordering, compiler_fence};

/// Channels whose sums are in memory before they are totalled. Sums that are totalled where they are made are taken
/// apart for it, and the loop that makes them runs in the shortest vectors: three times as long.
const TOGETHER: usize = 8;
/// Channels from a run to the one in the same row that a loop asks for.
const AHEAD: usize = 4;

/// Two sums of a channel in lanes: those of whole groups, and those of what is left behind them.
#[derive(Clone, Copy)]
struct Sums<A>([[A; GROUP]; 4]);

impl<A: Real> Sums<A> {
    /// Of `terms` of the values of two tensors.
    #[inline(always)]
    fn of<'x, E: Element<Acc = A> + 'x>(
        simd: Simd,
        rows: impl Iterator<Item = [&'x [E]; 2]>,
        is_one: bool,
        terms: impl Fn(A, A) -> (A, A),
    ) -> Self {
        let none = [A::default(); GROUP];
        let [mut a, mut b, mut left_a, mut left_b] = [none; 4];
        for [x, g] in rows {
            let later = AHEAD * x.len();
            let (groups, groups_g) = (x.as_chunks().0, g.as_chunks().0);
            for (x, g) in groups.iter().zip(groups_g) {
                prefetch(x.as_ptr().wrapping_add(later));
                if !is_one {
                    prefetch(g.as_ptr().wrapping_add(later));
                }
                let (x, g) = (simd.widen::<E, GROUP>(x), simd.widen::<E, GROUP>(g));
                for l in 0..GROUP {
                    let terms = terms(x[l], g[l]);
                    a[l] += terms.0;
                    b[l] += terms.1;
                }
            }
            // The last values together with some that have been added, which count as 0.
            let first = (GROUP - x.len() % GROUP) as i32;
            if let Some((x, g)) = x.last_chunk().zip(g.last_chunk()) {
                let (x, g) = (simd.widen::<E, GROUP>(x), simd.widen::<E, GROUP>(g));
                for l in 0..GROUP {
                    let terms = terms(x[l], g[l]);
                    left_a[l] += select_unpredictable(LANE[l] >= first, terms.0, A::default());
                    left_b[l] += select_unpredictable(LANE[l] >= first, terms.1, A::default());
                }
            }
        }
        Self([a, b, left_a, left_b])
    }
    /// Both totals.
    #[inline(always)]
    fn totals(&self) -> [f64; 2] {
        let [a, b, left_a, left_b] = &self.0;
        [total(a, left_a), total(b, left_b)]
    }
}

/// As a tree, as [`Lanes`](super::sums::Lanes) are totalled.
#[inline(always)]
fn total<A: Real>(lanes: &[A; GROUP], left: &[A; GROUP]) -> f64 {
    let mut sums = [0.0; GROUP];
    for l in 0..GROUP {
        sums[l] = lanes[l].to_f64() + left[l].to_f64();
    }
    let mut half = GROUP / 2;
    while half > 0 {
        for l in 0..half {
            sums[l] += sums[l + half];
        }
        half /= 2;
    }
    sums[0]
}

/// The sums of some channels, then their totals.
#[inline(always)]
fn totals_of<A: Real>(count: usize, sums_of: impl Fn(usize) -> Sums<A>) -> [[f64; 2]; TOGETHER] {
    let mut sums = [Sums([[A::default(); GROUP]; 4]); TOGETHER];
    for (c, to) in sums[..count].iter_mut().enumerate() {
        *to = sums_of(c);
        compiler_fence(Ordering::SeqCst);
    }
    let mut totals = [[0.0; 2]; TOGETHER];
    for (to, sums) in totals[..count].iter_mut().zip(&sums) {
        *to = sums.totals();
        // A channel by itself: not lanes of eight channels, gathered from memory.
        compiler_fence(Ordering::SeqCst);
    }
    totals
}

/// Offsets of the means from the first values, and sums of squares, of as many channels as there is room for. `rows`
/// start with the first one's run. Distances are from the mean of the first row.
pub fn few_runs<E: Element>(
    simd: Simd,
    rows: &[&[E]],
    run: usize,
    (offsets, squares): (&mut [f64], &mut [f64]),
) {
    let to = offsets.chunks_mut(TOGETHER).zip(squares.chunks_mut(TOGETHER));
    let count = (rows.len() * run) as f64;
    simd.vectorize(
        #[inline(always)]
        |simd| {
            for (k, (offsets, squares)) in to.enumerate() {
                let (first, n) = (k * TOGETHER, offsets.len());
                let (mut bases, mut pivots) = ([0.0; TOGETHER], [E::Acc::default(); TOGETHER]);
                for c in 0..n {
                    let value = rows[0][(first + c) * run];
                    (bases[c], pivots[c]) = (finite(value), value.widen());
                }
                let few = totals_of(
                    n,
                    #[inline(always)]
                    |c| distances(simd, &rows[..1], (run, first + c), pivots[c]),
                );
                for c in 0..n {
                    let offset = (pivots[c].to_f64() - bases[c]) + few[c][0] / run as f64;
                    pivots[c] = E::Acc::from_f64(bases[c] + offset);
                }
                let all = totals_of(
                    n,
                    #[inline(always)]
                    |c| distances(simd, rows, (run, first + c), pivots[c]),
                );
                for c in 0..n {
                    let [sum, square] = all[c];
                    let square = square - sum * sum / count;
                    squares[c] = if square < 0.0 { 0.0 } else { square }; // NaN stays
                    offsets[c] = (pivots[c].to_f64() - bases[c]) + sum / count;
                }
            }
        },
    );
}

/// Sums of a channel's distances from a pivot, and of their squares.
#[inline(always)]
fn distances<E: Element>(
    simd: Simd,
    rows: &[&[E]],
    (run, channel): (usize, usize),
    pivot: E::Acc,
) -> Sums<E::Acc> {
    let runs = rows.iter().map(
        #[inline(always)]
        |row| {
            let x = &row[channel * run..][..run];
            [x, x]
        },
    );
    Sums::of(
        simd,
        runs,
        true,
        #[inline(always)]
        |x, _| {
            let d = x - pivot;
            (d, d * d)
        },
    )
}

/// Sums of `g` and of `g * (x - mean)` of as many channels as there is room for, `g` being `grad_y` where a ReLU that is
/// computed again passes it, or all of it. `rows` are x and `grad_y` of each row, from the first one's run on;
/// `channel` is the first one's number.
pub fn few_gradients<E: Element>(
    simd: Simd,
    rows: &[[&[E]; 2]],
    (run, relu): (usize, bool),
    (table, channel): (&Table<'_, E::Acc>, usize),
    (sums, products): (&mut [f64], &mut [f64]),
) {
    let to = sums.chunks_mut(TOGETHER).zip(products.chunks_mut(TOGETHER));
    simd.vectorize(
        #[inline(always)]
        |simd| {
            for (k, (sums, products)) in to.enumerate() {
                let (first, n) = (k * TOGETHER, sums.len());
                let first_of_all = channel + first;
                let totals = match relu {
                    true => totals_of(
                        n,
                        #[inline(always)]
                        |c| {
                            gradients::<E, true>(
                                simd,
                                rows,
                                (run, first + c),
                                table.at(first_of_all + c),
                            )
                        },
                    ),
                    false => totals_of(
                        n,
                        #[inline(always)]
                        |c| {
                            gradients::<E, false>(
                                simd,
                                rows,
                                (run, first + c),
                                table.at(first_of_all + c),
                            )
                        },
                    ),
                };
                for c in 0..n {
                    [sums[c], products[c]] = totals[c];
                }
            }
        },
    );
}

/// Those of a channel.
#[inline(always)]
fn gradients<E: Element, const RELU: bool>(
    simd: Simd,
    rows: &[[&[E]; 2]],
    (run, channel): (usize, usize),
    coef: Coef<E::Acc>,
) -> Sums<E::Acc> {
    let runs = rows.iter().map(
        #[inline(always)]
        |[x, g]| [&x[channel * run..][..run], &g[channel * run..][..run]],
    );
    Sums::of(
        simd,
        runs,
        false,
        #[inline(always)]
        |x, g| {
            let g = gate::<E, RELU>(coef, x, g);
            (g, g * (x - coef.mean))
        },
    )
}

#[cfg(test)]
#[path = "few_runs_tests.rs"]
mod tests;
