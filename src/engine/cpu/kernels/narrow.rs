//! Reductions: sums over the columns of narrow rows, one behind the other in memory.
//!
//! Two sums of 128 columns fill half of the registers of AVX-512, where they stay while rows pass: a loop that keeps
//! them in memory takes a third longer in cache, by itself in C. The order of additions is the same, row after row, in either.
use super::super::simd::{BLOCK, GROUP, Simd, SimdLevel, prefetch};
use super::super::table::{Lanes, Strip};
use super::elementwise::gate;
use crate::{Element, Real};

/// Rows of so many columns each, whole groups, of some tensors.
#[derive(Clone, Copy)]
pub struct Narrow<'x, E, const TENSORS: usize> {
    pub tensors: [&'x [E]; TENSORS],
    pub columns: usize,
    /// How many values later than where it reads a loop asks for what comes, or 0.
    pub ahead: usize,
}

/// Both sums of columns.
type Two<'s, A> = (&'s mut [A; BLOCK], &'s mut [A; BLOCK]);
/// The same of a group.
type TwoOf<A> = [[A; GROUP]; 2];

/// Sums of `d = x - pivot` and of its square by columns.
pub fn distances<E: Element>(
    simd: Simd,
    rows: Narrow<'_, E, 1>,
    pivot: &[E::Acc; BLOCK],
    sums: Two<'_, E::Acc>,
) {
    simd.vectorize(
        #[inline(always)]
        |simd| {
            let pivots = pivot.as_chunks::<GROUP>().0;
            // In registers it is no faster: LLVM takes some of the groups apart.
            in_memory::<E, 1, 4>(
                rows,
                sums,
                #[inline(always)]
                |i, [x], [s, q]| {
                    let (x, pivot) = (simd.widen(x), pivots[i]);
                    for l in 0..GROUP {
                        let d = x[l] - pivot[l];
                        s[l] += d;
                        q[l] += d * d;
                    }
                },
            );
        },
    );
}

/// Sums of `g` and of `g * (x - mean)` of rows of `[x, grad_y]` by columns: see
/// [`gradients`](super::sums::gradients).
pub fn gradients<E: Element>(
    simd: Simd,
    rows: Narrow<'_, E, 2>,
    at: &Strip<E::Acc>,
    relu: bool,
    sums: Two<'_, E::Acc>,
) {
    simd.vectorize(
        #[inline(always)]
        |simd| match relu {
            true => gradients_of::<E, true>(simd, rows, at, sums),
            false => gradients_of::<E, false>(simd, rows, at, sums),
        },
    );
}

#[inline(always)]
fn gradients_of<E: Element, const RELU: bool>(
    simd: Simd,
    rows: Narrow<'_, E, 2>,
    at: &Strip<E::Acc>,
    sums: Two<'_, E::Acc>,
) {
    let coefs = at.groups(0, BLOCK / GROUP);
    // Two tensors at once in the order of memory come by themselves, in 0.85 to 0.95 of the time in which they come by
    // being asked for, too, unless there is more to do with a value.
    let rows = Narrow { ahead: if RELU { rows.ahead } else { 0 }, ..rows };
    add_up(
        simd,
        rows,
        sums,
        #[inline(always)]
        |i, [x, g], [s, p]| {
            let coef = coefs(i);
            let (x, g) = (simd.widen(x), simd.widen(g));
            for l in 0..GROUP {
                let coef = Lanes::at(&coef, l);
                let g = gate::<E, RELU>(coef, x[l], g[l]);
                s[l] += g;
                p[l] += g * (x[l] - coef.mean);
            }
        },
    );
}

/// Lets `add` add the values of every group of every row to both of its sums: in registers, or two rows at a time in
/// memory.
#[inline(always)]
fn add_up<E: Element>(
    simd: Simd,
    rows: Narrow<'_, E, 2>,
    sums: Two<'_, E::Acc>,
    add: impl Fn(usize, [&[E; GROUP]; 2], &mut TwoOf<E::Acc>),
) {
    let fit = simd.level() == SimdLevel::Avx512 && size_of::<E::Acc>() == size_of::<f32>();
    match (fit, rows.columns / GROUP) {
        (true, 8) => in_registers::<E, 8>(rows, sums, add),
        (true, 7) => in_registers::<E, 7>(rows, sums, add),
        (true, 6) => in_registers::<E, 6>(rows, sums, add),
        (true, 5) => in_registers::<E, 5>(rows, sums, add),
        _ => in_memory::<E, 2, 2>(rows, sums, add),
    }
}

/// Asks for what comes later than a row, if anything.
#[inline(always)]
fn ask<E, const TENSORS: usize>(row: [&[[E; GROUP]]; TENSORS], i: usize, ahead: usize) {
    if ahead > 0 {
        for of_tensor in row {
            prefetch(of_tensor[i].as_ptr().wrapping_add(ahead));
        }
    }
}

#[inline(always)]
fn in_registers<E: Element, const N: usize>(
    Narrow { tensors, ahead, .. }: Narrow<'_, E, 2>,
    (sums, others): Two<'_, E::Acc>,
    add: impl Fn(usize, [&[E; GROUP]; 2], &mut TwoOf<E::Acc>),
) {
    // One by one: of a loop over them, they would be an array in memory. They begin with what any value is the sum
    // with, zeros of both signs, too.
    let zeros = [[E::Acc::from_f64(-0.0); GROUP]; 2];
    let (mut a, mut b, mut c, mut d) = (zeros, zeros, zeros, zeros);
    let (mut e, mut f, mut g, mut h) = (zeros, zeros, zeros, zeros);
    for row in 0..tensors[0].len() / (N * GROUP) {
        let row = groups_of_row(tensors, row, N);
        for i in 0..N {
            ask(row, i, ahead);
        }
        add_group((0, N), row, &mut a, &add);
        add_group((1, N), row, &mut b, &add);
        add_group((2, N), row, &mut c, &add);
        add_group((3, N), row, &mut d, &add);
        add_group((4, N), row, &mut e, &add);
        add_group((5, N), row, &mut f, &add);
        add_group((6, N), row, &mut g, &add);
        add_group((7, N), row, &mut h, &add);
    }
    let (sums, others) = (groups_of(sums), groups_of(others));
    for (i, [sum, other]) in [a, b, c, d, e, f, g, h][..N].iter().enumerate() {
        (sums[i], others[i]) = (*sum, *other);
    }
}

/// The same by sums in memory, of `ROWS` rows at a time.
#[inline(always)]
fn in_memory<E: Element, const TENSORS: usize, const ROWS: usize>(
    narrow: Narrow<'_, E, TENSORS>,
    (sums, others): Two<'_, E::Acc>,
    add: impl Fn(usize, [&[E; GROUP]; TENSORS], &mut TwoOf<E::Acc>),
) {
    let zeros = E::Acc::from_f64(-0.0);
    let columns = narrow.columns;
    sums[..columns].fill(zeros);
    others[..columns].fill(zeros);
    let rows = narrow.tensors[0].len() / columns;
    let several = rows - rows % ROWS;
    for first in (0..several).step_by(ROWS) {
        some_in_memory::<E, TENSORS, ROWS>(narrow, first, (sums, others), &add);
    }
    for first in several..rows {
        some_in_memory::<E, TENSORS, 1>(narrow, first, (sums, others), &add);
    }
}

#[inline(always)]
fn some_in_memory<E: Element, const TENSORS: usize, const ROWS: usize>(
    Narrow { tensors, columns, ahead }: Narrow<'_, E, TENSORS>,
    first: usize,
    (sums, others): Two<'_, E::Acc>,
    add: &impl Fn(usize, [&[E; GROUP]; TENSORS], &mut TwoOf<E::Acc>),
) {
    let n = columns / GROUP;
    let mut rows = [[&[][..]; TENSORS]; ROWS];
    for (k, row) in rows.iter_mut().enumerate() {
        *row = groups_of_row(tensors, first + k, n);
    }
    let (sums, others) = (&mut groups_of(sums)[..n], &mut groups_of(others)[..n]);
    for i in 0..n {
        let mut to = [sums[i], others[i]];
        for row in rows {
            ask(row, i, ahead);
            add_group((i, n), row, &mut to, add);
        }
        [sums[i], others[i]] = to;
    }
}

/// Group `i` of `n` of a row, if there are so many.
#[inline(always)]
fn add_group<E, A, const TENSORS: usize>(
    (i, n): (usize, usize),
    row: [&[[E; GROUP]]; TENSORS],
    to: &mut TwoOf<A>,
    add: &impl Fn(usize, [&[E; GROUP]; TENSORS], &mut TwoOf<A>),
) {
    if i < n {
        let mut group = [&row[0][i]; TENSORS];
        for t in 0..TENSORS {
            group[t] = &row[t][i];
        }
        add(i, group, to);
    }
}

/// Row `row` of `n` groups.
#[inline(always)]
fn groups_of_row<E, const TENSORS: usize>(
    tensors: [&[E]; TENSORS],
    row: usize,
    n: usize,
) -> [&[[E; GROUP]]; TENSORS] {
    let mut groups = [&[][..]; TENSORS];
    for (groups, tensor) in groups.iter_mut().zip(tensors) {
        *groups = &tensor[row * n * GROUP..][..n * GROUP].as_chunks().0[..n];
    }
    groups
}
#[inline(always)]
fn groups_of<A>(sums: &mut [A; BLOCK]) -> &mut [[A; GROUP]] {
    sums.as_chunks_mut().0
}

#[cfg(test)]
#[path = "narrow_tests.rs"]
mod tests;
