//! Reductions: sums over runs, in lanes.
use super::super::simd::{LINE, Simd, prefetch};
use super::super::table::Coef;
use super::elementwise::gate;
use crate::{Element, Real};

/// Most rows of a strip that are summed in the accumulating type.
pub const STRIP_ROWS: usize = 32;

/// Independent partial sums, in halves: loops over more than the widest vector are not unrolled, and
/// sums that are not stay in memory.
const LANES: usize = 32;
const HALF: usize = LANES / 2;

/// Partial sums over many runs.
#[derive(Clone, Copy)]
pub struct Lanes<A>(pub(super) [[A; HALF]; 2]);

impl<A: Real> Lanes<A> {
    pub fn new() -> Self {
        Self([[A::default(); HALF]; 2])
    }
    /// Their sum.
    pub fn total(&self) -> f64 {
        // As a tree, which a processor has done while it would still wait for a chain of additions: a tenth of the
        // statistics of channels of 1,568 values.
        let mut sums = [0.0; HALF];
        for ((sum, a), b) in sums.iter_mut().zip(self.0[0]).zip(self.0[1]) {
            *sum = a.to_f64() + b.to_f64();
        }
        let mut half = HALF / 2;
        while half > 0 {
            for l in 0..half {
                sums[l] += sums[l + half];
            }
            half /= 2;
        }
        sums[0]
    }
}

/// Adds both terms of every pair of values to the lanes: whole groups of lanes become vectors, and
/// the sums stay in registers. It asks for what lies at `ahead`, twice the same if one is enough.
#[inline(always)]
fn each_lane<E: Element>(
    simd: Simd,
    x: &[E],
    g: &[E],
    (a, b): (&mut Lanes<E::Acc>, &mut Lanes<E::Acc>),
    ahead: [*const E; 2],
    terms: impl Fn(E::Acc, E::Acc) -> (E::Acc, E::Acc),
) {
    let (all, all_g) = (x, &g[..x.len()]);
    let (groups, groups_g) = (all.as_chunks::<LANES>().0, all_g.as_chunks::<LANES>().0);
    let ([mut a0, mut a1], [mut b0, mut b1]) = (a.0, b.0);
    for (i, (x, g)) in groups.iter().zip(groups_g).enumerate() {
        // A group's call asks for a line at least, which has both halves of 16-bit numbers.
        let calls = if HALF * size_of::<E>() < LINE { 1 } else { 2 };
        for at in (i * LANES..i * LANES + calls * HALF).step_by(HALF) {
            prefetch(ahead[0].wrapping_add(at));
            if ahead[1] != ahead[0] {
                prefetch(ahead[1].wrapping_add(at));
            }
        }
        let ([x0, x1], [g0, g1]) = (halves(simd, x), halves(simd, g));
        for l in 0..HALF {
            let terms = terms(x0[l], g0[l]);
            a0[l] += terms.0;
            b0[l] += terms.1;
        }
        for l in 0..HALF {
            let terms = terms(x1[l], g1[l]);
            a1[l] += terms.0;
            b1[l] += terms.1;
        }
    }
    // What is left, in vectors, too: half of the lanes, and then the last values together with some that have been
    // added, which count as 0.
    let at = groups.len() * LANES;
    let left = all.len() - at;
    if let Some((x, g)) = all[at..].first_chunk().zip(all_g[at..].first_chunk()) {
        let (x, g) = (simd.widen::<E, HALF>(x), simd.widen::<E, HALF>(g));
        for l in 0..HALF {
            let terms = terms(x[l], g[l]);
            a0[l] += terms.0;
            b0[l] += terms.1;
        }
    }
    let rest = left % HALF;
    if rest > 0 {
        if let Some((x, g)) = all.last_chunk().zip(all_g.last_chunk()) {
            let (x, g) = (simd.widen::<E, HALF>(x), simd.widen::<E, HALF>(g));
            for l in 0..HALF {
                let terms = terms(x[l], g[l]);
                let is_new = l >= HALF - rest;
                a1[l] += if is_new { terms.0 } else { E::Acc::default() };
                b1[l] += if is_new { terms.1 } else { E::Acc::default() };
            }
        } else {
            for (l, (x, g)) in all.iter().zip(all_g).enumerate() {
                let terms = terms(x.widen(), g.widen());
                a1[l] += terms.0;
                b1[l] += terms.1;
            }
        }
    }
    (a.0, b.0) = ([a0, a1], [b0, b1]);
}

#[inline(always)]
fn halves<E: Element>(simd: Simd, group: &[E; LANES]) -> [[E::Acc; HALF]; 2] {
    let halves = group.as_chunks::<HALF>().0;
    [simd.widen(&halves[0]), simd.widen(&halves[1])]
}

/// Adds `d = x - pivot` and its square to the lanes. `ahead` is where the run starts that comes next.
pub fn distances<E: Element>(
    simd: Simd,
    (x, ahead): (&[E], *const E),
    pivot: E::Acc,
    sums: (&mut Lanes<E::Acc>, &mut Lanes<E::Acc>),
) {
    simd.vectorize(
        #[inline(always)]
        |simd| {
            each_lane(
                simd,
                x,
                x,
                sums,
                [ahead; 2],
                #[inline(always)]
                |x, _| {
                    let d = x - pivot;
                    (d, d * d)
                },
            );
        },
    );
}

/// Adds `g` and `g * (x - mean)` to the lanes, `g` being `grad_y` where a ReLU that is computed again
/// passes it, or all of it. `ahead` is where the runs start that come next.
pub fn gradients<E: Element>(
    simd: Simd,
    (x, grad_y): (&[E], &[E]),
    ahead: [*const E; 2],
    coef: Coef<E::Acc>,
    relu: bool,
    sums: (&mut Lanes<E::Acc>, &mut Lanes<E::Acc>),
) {
    simd.vectorize(
        #[inline(always)]
        |simd| match relu {
            true => each_lane(
                simd,
                x,
                grad_y,
                sums,
                ahead,
                #[inline(always)]
                |x, g| {
                    let g = gate::<E, true>(coef, x, g);
                    (g, g * (x - coef.mean))
                },
            ),
            false => each_lane(
                simd,
                x,
                grad_y,
                sums,
                ahead,
                #[inline(always)]
                |x, g| (g, g * (x - coef.mean)),
            ),
        },
    );
}

/// Writes sums, or adds them to what is there.
pub fn store<A: Real>(simd: Simd, to: &mut [A], accumulate: bool, sums: &[f64]) {
    simd.vectorize(
        #[inline(always)]
        |_| {
            for (to, sum) in to.iter_mut().zip(sums) {
                let before = if accumulate { to.to_f64() } else { 0.0 };
                *to = A::from_f64(before + sum);
            }
        },
    );
}

/// Adds up f64 values, element by element.
pub fn add_f64(simd: Simd, sums: &mut [f64], more: &[f64]) {
    simd.vectorize(
        #[inline(always)]
        |_| {
            for (sum, more) in sums.iter_mut().zip(more) {
                *sum += more;
            }
        },
    );
}

/// Adds values of the accumulating type to sums in f64.
pub fn add_widened<A: Real>(simd: Simd, sums: &mut [f64], more: &[A]) {
    simd.vectorize(
        #[inline(always)]
        |_| {
            for (sum, more) in sums.iter_mut().zip(more) {
                *sum += more.to_f64();
            }
        },
    );
}
