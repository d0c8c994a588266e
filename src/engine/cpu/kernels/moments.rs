//! Means and sums of squares of many columns or channels at once, in f64, merged by Chan's formula.
use super::super::simd::Simd;
use crate::Real;

/// `to[i] += share * by[i]`.
pub fn add_share<A: Real>(simd: Simd, to: &mut [A], by: &[A], share: A) {
    simd.vectorize(
        #[inline(always)]
        |_| to.iter_mut().zip(by).for_each(|(to, by)| *to += *by * share),
    );
}

/// Columns of a strip: sums of distances from their pivots, and of the squares of those.
pub struct Columns<'a, A> {
    pub sums: &'a [A],
    pub squares: &'a [A],
    /// What the means are counted from.
    pub bases: &'a [f64],
}

/// Merges `count` rows of columns, whose distances are from `pivot`, into the means (as offsets from
/// their bases) and sums of squares of `before` rows; the pivots become the new means.
pub fn merge_columns<A: Real>(
    simd: Simd,
    before: f64,
    count: f64,
    from: &Columns<'_, A>,
    pivot: &mut [A],
    (offsets, squares): (&mut [f64], &mut [f64]),
) {
    simd.vectorize(
        #[inline(always)]
        |_| match before == 0.0 {
            // There is nothing to load, so no zeros have to be written first.
            true => merge_columns_into::<A, true>(before, count, from, pivot, offsets, squares),
            false => merge_columns_into::<A, false>(before, count, from, pivot, offsets, squares),
        },
    );
}

#[inline(always)]
fn merge_columns_into<A: Real, const FIRST: bool>(
    before: f64,
    count: f64,
    from: &Columns<'_, A>,
    pivot: &mut [A],
    offsets: &mut [f64],
    squares: &mut [f64],
) {
    let n = offsets.len();
    let (pivot, squares) = (&mut pivot[..n], &mut squares[..n]);
    let (sums, products, bases) = (&from.sums[..n], &from.squares[..n], &from.bases[..n]);
    let each = 1.0 / count;
    // Of the first rows both are what a merge with nothing gives.
    let (share, both) = (count / (before + count), before * count / (before + count));
    for j in 0..n {
        // All is loaded before anything is stored: a load that a processor takes for one from where a
        // store before it goes, by the address within a page, waits for that (four fifths of this loop).
        let (sum, own, pivot_of, base) =
            (sums[j].to_f64(), products[j].to_f64(), pivot[j].to_f64(), bases[j]);
        let [before, squares_before] = if FIRST { [0.0; 2] } else { [offsets[j], squares[j]] };
        let own = own - sum * sum * each;
        let delta = (pivot_of - base) + sum * each - before;
        let offset = before + delta * share;
        let more = if own < 0.0 { 0.0 } else { own } + delta * delta * both;
        offsets[j] = offset;
        squares[j] = squares_before + more;
        pivot[j] = A::from_f64(base + offset);
    }
}

/// Chan's formula for slices of offsets and sums of squares, each of one count.
pub fn merge(
    simd: Simd,
    before: f64,
    (offsets, squares): (&mut [f64], &mut [f64]),
    count: f64,
    (offset, square): (&[f64], &[f64]),
) {
    if count == 0.0 {
        return;
    }
    let n = offsets.len();
    let (squares, offset, square) = (&mut squares[..n], &offset[..n], &square[..n]);
    let (share, both) = (count / (before + count), before * count / (before + count));
    simd.vectorize(
        #[inline(always)]
        |_| {
            for j in 0..n {
                let delta = offset[j] - offsets[j];
                offsets[j] += delta * share;
                squares[j] += square[j] + delta * delta * both;
            }
        },
    );
}

/// Offsets from some bases become those from others.
pub fn count_from(simd: Simd, offsets: &mut [f64], from: &[f64], to: &[f64]) {
    let n = offsets.len();
    let (from, to) = (&from[..n], &to[..n]);
    simd.vectorize(
        #[inline(always)]
        |_| (0..n).for_each(|k| offsets[k] += from[k] - to[k]),
    );
}

/// The sum of values in eight lanes.
pub fn total(simd: Simd, values: &[f64]) -> f64 {
    simd.vectorize(
        #[inline(always)]
        |_| {
            total_of(
                values,
                #[inline(always)]
                |v| v,
            )
        },
    )
}

/// The sum of their squared distances from a value.
pub fn squares_from(simd: Simd, values: &[f64], from: f64) -> f64 {
    simd.vectorize(
        #[inline(always)]
        |_| {
            total_of(
                values,
                #[inline(always)]
                |v| (v - from) * (v - from),
            )
        },
    )
}

#[inline(always)]
fn total_of(values: &[f64], term: impl Fn(f64) -> f64) -> f64 {
    let mut lanes = [0.0; 8];
    let (groups, rest) = values.as_chunks::<8>();
    for group in groups {
        for l in 0..8 {
            lanes[l] += term(group[l]);
        }
    }
    // Apart: lanes of which some are added to go through memory, where a load waits for all stores.
    rest.iter().fold(lanes.iter().sum(), |total, v| total + term(*v))
}

/// `invstd = 1 / sqrt(squares / count + eps)`.
pub fn invstds(simd: Simd, squares: &[f64], count: f64, eps: f64, invstd: &mut [f64]) {
    simd.vectorize(
        #[inline(always)]
        |_| {
            for (invstd, squares) in invstd.iter_mut().zip(squares) {
                *invstd = 1.0 / (squares / count + eps).sqrt();
            }
        },
    );
}

/// Means, given as a base and an offset, rounded; what that leaves (nothing where it is not finite);
/// and invstd, rounded.
pub fn round<A: Real>(
    simd: Simd,
    (bases, offsets, invstds): (&[f64], &[f64], &[f64]),
    [mean, rest, invstd]: [&mut [A]; 3],
) {
    let n = mean.len();
    let (bases, offsets, invstds) = (&bases[..n], &offsets[..n], &invstds[..n]);
    let (rest, invstd) = (&mut rest[..n], &mut invstd[..n]);
    simd.vectorize(
        #[inline(always)]
        |_| {
            for k in 0..n {
                mean[k] = A::from_f64(bases[k] + offsets[k]);
                let left = (bases[k] - mean[k].to_f64()) + offsets[k];
                rest[k] = A::from_f64(if left.is_finite() { left } else { 0.0 });
                invstd[k] = A::from_f64(invstds[k]);
            }
        },
    );
}

/// `invstd = 1 / sqrt(var + eps)` of variances that are given.
pub fn invstds_of<A: Real, V: Real>(simd: Simd, var: &[V], eps: f64, invstd: &mut [A]) {
    simd.vectorize(
        #[inline(always)]
        |_| {
            for (invstd, var) in invstd.iter_mut().zip(var) {
                *invstd = A::from_f64(1.0 / (var.to_f64() + eps).sqrt());
            }
        },
    );
}

/// `to = (1 - factor) * to + factor * (base + offset)`; a factor of 1 replaces what is not finite, too.
pub fn blend_sums<A: Real>(
    simd: Simd,
    to: &mut [A],
    factor: f64,
    (bases, offsets): (&[f64], &[f64]),
) {
    simd.vectorize(
        #[inline(always)]
        |_| {
            let all = to.iter_mut().zip(bases.iter().zip(offsets));
            match factor == 1.0 {
                true => all.for_each(
                    #[inline(always)]
                    |(to, (base, offset))| *to = A::from_f64(base + offset),
                ),
                false => all.for_each(
                    #[inline(always)]
                    |(to, (base, offset))| {
                        *to = A::from_f64((1.0 - factor) * to.to_f64() + factor * (base + offset));
                    },
                ),
            }
        },
    );
}

/// `to = (1 - factor) * to + factor * new / over`, as [`blend_sums`] does.
pub fn blend_over<A: Real>(simd: Simd, to: &mut [A], factor: f64, new: &[f64], over: f64) {
    simd.vectorize(
        #[inline(always)]
        |_| match factor == 1.0 {
            true => to.iter_mut().zip(new).for_each(
                #[inline(always)]
                |(to, new)| *to = A::from_f64(new / over),
            ),
            false => to.iter_mut().zip(new).for_each(
                #[inline(always)]
                |(to, new)| *to = A::from_f64((1.0 - factor) * to.to_f64() + factor * (new / over)),
            ),
        },
    );
}
