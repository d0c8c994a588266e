//! Blocks of which some values count.
use super::super::simd::{BLOCK, GROUP, Simd, prefetch};
use super::super::table::{Coef, Lanes as OfLanes};
use super::elementwise::{Op, Work, gate, map_groups};
use super::moments::Columns;
use super::sums::{Lanes, STRIP_ROWS};
use crate::{Element, Real};
use std::marker::PhantomData;

/// How many of some bytes are 1; they are 0 and 1.
pub fn number(simd: Simd, bytes: &[u8]) -> usize {
    const LANES: usize = 64;
    simd.vectorize(
        #[inline(always)]
        |_| {
            let mut all = 0;
            // Sums of so many fit a byte, which makes whole vectors of them.
            for part in bytes.chunks(LANES * 255) {
                let (groups, rest) = part.as_chunks::<LANES>();
                let mut lanes = [0u8; LANES];
                lanes[..rest.len()].copy_from_slice(rest);
                for group in groups {
                    for l in 0..LANES {
                        lanes[l] += group[l];
                    }
                }
                all += usize::from(lanes.iter().map(|sum| u16::from(*sum)).sum::<u16>());
            }
            all
        },
    )
}

/// Adds `d = x - pivot` and its square to the lanes where a value counts: those that do not add 0.
pub fn distances<E: Element>(
    simd: Simd,
    x: &[E],
    counts: &[u8],
    pivot: E::Acc,
    (sum, squares): (&mut Lanes<E::Acc>, &mut Lanes<E::Acc>),
) {
    simd.vectorize(
        #[inline(always)]
        |simd| {
            let ((groups, rest), (counts, counts_rest)) =
                (x.as_chunks::<GROUP>(), counts.as_chunks::<GROUP>());
            let (pairs, last) = groups.as_chunks::<2>();
            let (count_pairs, last_counts) = counts.as_chunks::<2>();
            let ([mut s0, mut s1], [mut q0, mut q1]) = (sum.0, squares.0);
            for (x, counts) in pairs.iter().zip(count_pairs) {
                add_group(simd, (&x[0], &counts[0]), pivot, (&mut s0, &mut q0));
                add_group(simd, (&x[1], &counts[1]), pivot, (&mut s1, &mut q1));
            }
            for of in last.iter().zip(last_counts) {
                add_group(simd, of, pivot, (&mut s0, &mut q0));
            }
            if !rest.is_empty() {
                let (mut x, mut counts) = ([E::default(); GROUP], [0; GROUP]);
                x[..rest.len()].copy_from_slice(rest);
                counts[..rest.len()].copy_from_slice(counts_rest);
                add_group(simd, (&x, &counts), pivot, (&mut s1, &mut q1));
            }
            (sum.0, squares.0) = ([s0, s1], [q0, q1]);
        },
    );
}

#[inline(always)]
fn add_group<E: Element>(
    simd: Simd,
    (x, counts): (&[E; GROUP], &[u8; GROUP]),
    pivot: E::Acc,
    (sum, squares): (&mut [E::Acc; GROUP], &mut [E::Acc; GROUP]),
) {
    let mut d = simd.widen(x);
    for d in &mut d {
        *d = *d - pivot;
    }
    let d = simd.counted(counts, &d);
    for l in 0..GROUP {
        sum[l] += d[l];
        squares[l] += d[l] * d[l];
    }
}

/// Columns of a row, which of them count, and what to ask for when they are read.
#[derive(Clone, Copy)]
pub struct Row<'x, E> {
    pub x: &'x [E],
    pub counts: &'x [u8],
    pub ahead: *const E,
}

/// Some rows, of [`STRIP_ROWS`] at most.
pub struct SomeRows<'x, E> {
    rows: [Row<'x, E>; STRIP_ROWS],
    len: usize,
}

impl<'x, E: Element> SomeRows<'x, E> {
    pub fn new() -> Self {
        let none = Row { x: &[][..], counts: &[][..], ahead: std::ptr::null() };
        Self { rows: [none; STRIP_ROWS], len: 0 }
    }
    pub fn push(&mut self, row: Row<'x, E>) {
        self.rows[self.len] = row;
        self.len += 1;
    }
    pub fn rows(&self) -> &[Row<'x, E>] {
        &self.rows[..self.len]
    }
}

/// The same of the columns of rows of equal length, several at a time: sums in memory cost as much as the
/// arithmetic of one row.
pub fn column_distances<E: Element>(
    simd: Simd,
    rows: &[Row<'_, E>],
    pivot: &[E::Acc; BLOCK],
    sums: [&mut [E::Acc; BLOCK]; 2],
) {
    columns::<E, false>(simd, rows, pivot, sums, &mut [0; BLOCK]);
}

/// The same, and adds the numbers of values that count to those of the columns.
pub fn counted_distances<E: Element>(
    simd: Simd,
    rows: &[Row<'_, E>],
    pivot: &[E::Acc; BLOCK],
    sums: [&mut [E::Acc; BLOCK]; 2],
    count: &mut [u8; BLOCK],
) {
    columns::<E, true>(simd, rows, pivot, sums, count);
}

#[inline(always)]
fn columns<E: Element, const COUNTED: bool>(
    simd: Simd,
    rows: &[Row<'_, E>],
    pivot: &[E::Acc; BLOCK],
    [sum, squares]: [&mut [E::Acc; BLOCK]; 2],
    count: &mut [u8; BLOCK],
) {
    simd.vectorize(
        #[inline(always)]
        |simd| {
            let (several, rest) = rows.as_chunks::<4>();
            for rows in several {
                add_distances::<E, COUNTED, 4>(
                    simd,
                    rows,
                    pivot,
                    [&mut *sum, &mut *squares],
                    count,
                );
            }
            for row in rest {
                let (rows, to) = (std::array::from_ref(row), [&mut *sum, &mut *squares]);
                add_distances::<E, COUNTED, 1>(simd, rows, pivot, to, count);
            }
        },
    );
}

#[inline(always)]
fn add_distances<E: Element, const COUNTED: bool, const ROWS: usize>(
    simd: Simd,
    rows: &[Row<'_, E>; ROWS],
    pivot: &[E::Acc; BLOCK],
    [sum, squares]: [&mut [E::Acc; BLOCK]; 2],
    count: &mut [u8; BLOCK],
) {
    let n = rows[0].x.len();
    assert!(n <= BLOCK);
    let rows = rows.map(
        #[inline(always)]
        |Row { x, counts, ahead }| (&x[..n], &counts[..n], ahead),
    );
    let whole = n / GROUP;
    let groups = rows.map(
        #[inline(always)]
        |(x, counts, ahead)| {
            (&x.as_chunks::<GROUP>().0[..whole], &counts.as_chunks::<GROUP>().0[..whole], ahead)
        },
    );
    let pivots = pivot.as_chunks::<GROUP>().0;
    let (sums, squared) = (sum.as_chunks_mut::<GROUP>().0, squares.as_chunks_mut::<GROUP>().0);
    let numbers = count.as_chunks_mut::<GROUP>().0;
    for i in 0..whole {
        let (mut s, mut q) = (sums[i], squared[i]);
        let mut number = u128::from_ne_bytes(numbers[i]);
        for (x, counts, ahead) in groups {
            prefetch(ahead.wrapping_add(GROUP * i));
            let mut d = simd.widen(&x[i]);
            for l in 0..GROUP {
                d[l] = d[l] - pivots[i][l];
            }
            let d = simd.counted(&counts[i], &d);
            for l in 0..GROUP {
                s[l] += d[l];
                q[l] += d[l] * d[l];
            }
            if COUNTED {
                // No sum leaves its byte.
                number += u128::from_ne_bytes(counts[i]);
            }
        }
        (sums[i], squared[i]) = (s, q);
        if COUNTED {
            numbers[i] = number.to_ne_bytes();
        }
    }
    for j in n - n % GROUP..n {
        for (x, counts, _) in rows {
            let d = if counts[j] != 0 { x[j].widen() - pivot[j] } else { E::Acc::default() };
            sum[j] += d;
            squares[j] += d * d;
            count[j] += counts[j];
        }
    }
}

/// The sum of every run of values.
pub fn totals_of_runs<A: Real>(simd: Simd, values: &[A], run: usize, totals: &mut [f64]) {
    simd.vectorize(
        #[inline(always)]
        |_| {
            for (total, values) in totals.iter_mut().zip(values.chunks(run)) {
                let mut lanes = [0.0; 8];
                let (groups, rest) = values.as_chunks::<8>();
                for group in groups {
                    for l in 0..8 {
                        lanes[l] += group[l].to_f64();
                    }
                }
                // Apart, as lanes of which some are added to go through memory.
                *total = rest.iter().fold(lanes.iter().sum(), |total, v| total + v.to_f64());
            }
        },
    );
}

/// The gradient of x of a piece, of which what flows through the statistics reaches those that count; with
/// `relu`, behind one that is computed again.
pub fn input_gradient<E: Element>(simd: Simd, relu: bool, counts: &[u8], work: Work<'_, '_, E>) {
    // Less than a group is brought to memory of a group, here as in the loop.
    let mut short = [0; GROUP];
    let counts = if counts.len() < GROUP {
        short[..counts.len()].copy_from_slice(counts);
        &short
    } else {
        counts
    };
    simd.vectorize(
        #[inline(always)]
        |simd| match relu {
            false => map_groups(simd, work, OfSome::<E, false>(counts, PhantomData)),
            true => map_groups(simd, work, OfSome::<E, true>(counts, PhantomData)),
        },
    );
}

/// [`Through::Statistics`](super::elementwise::Through) where a value counts, and through constants elsewhere.
#[derive(Clone, Copy)]
struct OfSome<'a, E, const RELU: bool>(&'a [u8], PhantomData<E>);

impl<E: Element, const RELU: bool> Op<E::Acc> for OfSome<'_, E, RELU> {
    #[inline(always)]
    fn group(
        &self,
        simd: Simd,
        at: usize,
        coef: impl OfLanes<E::Acc>,
        x: [E::Acc; GROUP],
        g: [E::Acc; GROUP],
    ) -> [E::Acc; GROUP] {
        let mut mean = [E::Acc::default(); GROUP];
        let (mut of_x, mut values) = (mean, mean);
        for l in 0..GROUP {
            let coef: Coef<E::Acc> = coef.at(l);
            mean[l] = coef.mean_g;
            of_x[l] = (x[l] - coef.mean) * coef.slope;
        }
        let Some(counts) = self.0[at..].first_chunk() else { return values };
        let (mean, of_x) = (simd.counted(counts, &mean), simd.counted(counts, &of_x));
        for l in 0..GROUP {
            let coef = coef.at(l);
            let g = gate::<E, RELU>(coef, x[l], g[l]);
            values[l] = coef.scale * (g - mean[l] - of_x[l]);
        }
        values
    }
}

/// As [`merge_columns`](super::moments::merge_columns), of columns that have a number of values each; `totals`
/// are the numbers before, and those after.
pub fn merge_columns<A: Real>(
    simd: Simd,
    counts: &[u8],
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
                let (sum, count, before) = (sums[j].to_f64(), f64::from(counts[j]), totals[j]);
                let all = before + count;
                // One division for both, which are most of what this takes.
                let counted = if count > 0.0 { count } else { 1.0 };
                let either = 1.0 / (counted * if all > 0.0 { all } else { 1.0 });
                let (each, share) = (either * all, either * count * counted);
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

/// Chan's formula for offsets, sums of squares and numbers of values.
pub fn merge(
    simd: Simd,
    [offsets, squares, totals]: [&mut [f64]; 3],
    [offset, square, total]: [&[f64]; 3],
) {
    let n = offsets.len();
    let (squares, totals) = (&mut squares[..n], &mut totals[..n]);
    let (offset, square, total) = (&offset[..n], &square[..n], &total[..n]);
    simd.vectorize(
        #[inline(always)]
        |_| {
            for j in 0..n {
                let (before, count) = (totals[j], total[j]);
                let all = before + count;
                let share = count / if all > 0.0 { all } else { 1.0 };
                let delta = if count > 0.0 { offset[j] - offsets[j] } else { 0.0 };
                offsets[j] += delta * share;
                squares[j] += square[j] + delta * delta * before * share;
                totals[j] = all;
            }
        },
    );
}

/// Brings pivots to the mean of some values.
pub fn guess_columns<A: Real>(simd: Simd, pivot: &mut [A], sums: &[A], counts: &[u8]) {
    let one = A::from_f64(1.0);
    simd.vectorize(
        #[inline(always)]
        |_| {
            for ((pivot, sum), count) in pivot.iter_mut().zip(sums).zip(counts) {
                let count = A::from_f64(f64::from(*count));
                *pivot += *sum / if count > one { count } else { one };
            }
        },
    );
}
