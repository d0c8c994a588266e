//! The backward of a strip of a group, through its statistics.
use super::super::super::extremes::Limits;
use super::super::super::simd::{GROUP, Simd};
use super::super::super::table::finite;
use super::super::super::tiles::TileMut;
use super::{Group, Strip, WIDE, divided, each, is_exact, load};
use super::{prefetch_strip, rounded, strip, strip_mut};
use crate::{Element, Real};

/// Rows whose terms are added up before they are added to the sums.
const TOGETHER: usize = 2;

/// What all groups have in common.
pub struct Backward<'a, E: Element> {
    pub x: &'a [E],
    /// Absent where the gradient of x holds it.
    pub grad_y: Option<&'a [E]>,
    /// Elements of a row.
    pub width: usize,
    /// Whether there was a ReLU, which is computed again.
    pub relu: bool,
    /// Whether parameters' gradients are rounded after every group, as calls one after the other would.
    pub is_rounded: bool,
}

/// `sum(g)` and `sum(g * xhat)` over all groups before, and after.
pub struct Sums<'t> {
    pub before: [&'t [f64]; 2],
    pub after: [&'t mut [f64]; 2],
}

/// What a strip is made in, of any width.
#[repr(align(64))] // a cache line
pub struct BackwardStrip<A> {
    scales: Strip<A, WIDE>,
    biases: Strip<A, WIDE>,
    sums: Strip<A, WIDE>,
    /// Of `g * (x - mean)`.
    products: Strip<A, WIDE>,
    /// Means of `g`, and slopes of x.
    means_g: Strip<A, WIDE>,
    slopes: Strip<A, WIDE>,
}

impl<A: Real> BackwardStrip<A> {
    pub fn new() -> Self {
        let none = [[A::default(); GROUP]; WIDE];
        let (scales, biases) = (none, none);
        Self { scales, biases, sums: none, products: none, means_g: none, slopes: none }
    }
}

/// Weights and biases of a strip's channels; the mean, what rounding left of it, and invstd.
type Given<'a, A> = ([&'a [A]; 2], [&'a [A]; 3]);
type Taken<'a, A, const G: usize> = ([&'a [A]; 2], [&'a Strip<A, G>; 3]);
/// x and `grad_y` of a strip's rows, in the accumulating type; in the order of rows, by which they are summed, whatever
/// counts.
type Values<'v, A, const G: usize> = [&'v mut [Strip<A, G>]; 2];

impl<E: Element> Backward<'_, E> {
    /// Takes the strip from `column` on through all steps, by its channels' weights and biases and what the forward
    /// has saved of them, the mean, what rounding left of it, and invstd: `grad_x`, and sums. Where numbers of some
    /// channel are not finite or out of the range of their type, no element is written: false then. `checks`: whether
    /// statistics may be.
    #[inline(always)]
    pub fn run<const G: usize>(
        &self,
        simd: Simd,
        (group, column, checks): (impl Group, usize, bool),
        (by, saved): Given<'_, E::Acc>,
        (memory, values): (&mut BackwardStrip<E::Acc>, Values<'_, E::Acc, G>),
        (grad_x, sums): (&mut Option<TileMut<'_, E>>, &mut Sums<'_>),
    ) -> bool {
        simd.vectorize(
            #[inline(always)]
            |simd| {
                let ([x, g], rows) = (values, group.rows());
                let (x, g) = (&mut x[..rows.count], &mut g[..rows.count]);
                load(simd, (self.x, self.width), (rows, column), x);
                match (self.grad_y, &*grad_x) {
                    (Some(grad_y), _) => load(simd, (grad_y, self.width), (rows, column), g),
                    (None, Some(tile)) => {
                        for (row, to) in rows.each().zip(&mut *g) {
                            let from = tile.row(row, column..column + G * GROUP);
                            let from: &Strip<E, G> = strip(from);
                            for g in 0..G {
                                to[g] = simd.widen(&from[g]);
                            }
                        }
                    }
                    (None, None) => {}
                }
                if let Some(grad_x) = grad_x {
                    for row in rows.each() {
                        prefetch_strip::<E, G>(grad_x.row(row, column..column + G * GROUP));
                    }
                }
                let [mean, rest, invstd] = saved;
                let saved = [strip(mean), strip(rest), strip(invstd)];
                if checks && !is_ordinary(saved, by[0]) {
                    return false;
                }
                let (at, values, of, to) =
                    ((group, column), [&*x, &*g], (by, saved), (grad_x, sums));
                match self.relu {
                    false => self.run_of::<_, G, false>(simd, at, values, of, memory, to),
                    true => self.run_of::<_, G, true>(simd, at, values, of, memory, to),
                }
            },
        )
    }
    #[inline(always)]
    fn run_of<R: Group, const G: usize, const RELU: bool>(
        &self,
        simd: Simd,
        at: (R, usize),
        [x, g]: [&[Strip<E::Acc, G>]; 2],
        (by, saved): Taken<'_, E::Acc, G>,
        memory: &mut BackwardStrip<E::Acc>,
        (grad_x, sums): (&mut Option<TileMut<'_, E>>, &mut Sums<'_>),
    ) -> bool {
        let mean = saved[0];
        memory.prepare(by, saved);
        memory.sum::<E, G, RELU>(mean, x, g);
        // Of nothing it is not looked at.
        let rows = at.0.counted().max(1);
        let count = (rows, self.is_rounded);
        let is_kept = match R::ALL && is_exact(rows) {
            true => memory.finish::<G, true>(count, saved, sums),
            false => memory.finish::<G, false>(count, saved, sums),
        };
        if let Some(grad_x) = grad_x.as_mut().filter(|_| is_kept) {
            memory.write::<E, R, G, RELU>(simd, at, (mean, x, g), grad_x);
        }
        is_kept
    }
}

/// Whether the loops can be trusted with such statistics.
#[inline(always)]
fn is_ordinary<A: Real, const G: usize>(
    [mean, _, invstd]: [&Strip<A, G>; 3],
    weight: &[A],
) -> bool {
    let (mean, invstd) = (mean.as_flattened(), invstd.as_flattened());
    let (limits, weight) = (Limits::new(), strip::<_, G>(weight).as_flattened());
    let mut is_odd = false;
    for j in 0..G * GROUP {
        is_odd |= !limits.include(mean[j], invstd[j], (weight[j], weight[j] * invstd[j]));
    }
    !is_odd
}

impl<A: Real> BackwardStrip<A> {
    /// What the forward took.
    #[inline(always)]
    fn prepare<const G: usize>(
        &mut self,
        [weight, bias]: [&[A]; 2],
        [_, rest, invstd]: [&Strip<A, G>; 3],
    ) {
        let (weight, bias) = (strip::<_, G>(weight), strip::<_, G>(bias));
        let (weight, bias) = (weight.as_flattened(), bias.as_flattened());
        let (rest, invstd) = (rest.as_flattened(), invstd.as_flattened());
        let (scales, biases) = (self.scales.as_flattened_mut(), self.biases.as_flattened_mut());
        for j in 0..G * GROUP {
            let scale = weight[j] * invstd[j];
            let less = bias[j] - rest[j] * scale;
            scales[j] = scale;
            biases[j] = if rest[j] == A::default() { bias[j] } else { less };
        }
    }
    /// Sums of `g` and of `g * (x - mean)`.
    #[inline(always)]
    fn sum<E: Element<Acc = A>, const G: usize, const RELU: bool>(
        &mut self,
        mean: &Strip<A, G>,
        x: &[Strip<A, G>],
        grad_y: &[Strip<A, G>],
    ) {
        let zeros = [A::default(); GROUP];
        let (pairs, rest) = x.as_chunks::<TOGETHER>();
        let (pairs_y, rest_y) = grad_y.as_chunks::<TOGETHER>();
        for g in 0..G {
            let coefs = (&mean[g], &self.scales[g], &self.biases[g]);
            let (mut sum, mut product) = (zeros, zeros);
            for (x, grad_y) in pairs.iter().zip(pairs_y) {
                let (mut s, mut p) = (zeros, zeros);
                for k in 0..TOGETHER {
                    let own = gated::<E, RELU>(coefs, &x[k][g], &grad_y[k][g]);
                    for l in 0..GROUP {
                        s[l] += own[l];
                        p[l] += own[l] * (x[k][g][l] - mean[g][l]);
                    }
                }
                for l in 0..GROUP {
                    sum[l] += s[l];
                    product[l] += p[l];
                }
            }
            for (x, grad_y) in rest.iter().zip(rest_y) {
                let own = gated::<E, RELU>(coefs, &x[g], &grad_y[g]);
                for l in 0..GROUP {
                    sum[l] += own[l];
                    product[l] += own[l] * (x[g][l] - mean[g][l]);
                }
            }
            (self.sums[g], self.products[g]) = (sum, product);
        }
    }
    /// Sums over groups, and coefficients; whether they are finite.
    #[inline(always)]
    fn finish<const G: usize, const EXACT: bool>(
        &mut self,
        (rows, is_rounded): (usize, bool),
        [_, rest, invstd]: [&Strip<A, G>; 3],
        all: &mut Sums<'_>,
    ) -> bool {
        let by = (rows as f64, 1.0 / rows as f64);
        let Sums { before: [sums_before, products_before], after: [all_sums, all_products] } = all;
        let sums_before: &Strip<f64, G> = strip(sums_before);
        let products_before: &Strip<f64, G> = strip(products_before);
        let all_sums: &mut Strip<f64, G> = strip_mut(all_sums);
        let all_products: &mut Strip<f64, G> = strip_mut(all_products);
        let (most, mut is_lost) = (Limits::<A>::most(), false);
        // Step by step for a group of channels: a processor finds no independent work beyond a few dozen instructions.
        for g in 0..G {
            let (rest, invstd) = (
                each(
                    #[inline(always)]
                    |l| rest[g][l].to_f64(),
                ),
                each(
                    #[inline(always)]
                    |l| invstd[g][l].to_f64(),
                ),
            );
            let sum = each(
                #[inline(always)]
                |l| 0.0 + self.sums[g][l].to_f64(),
            );
            let product = each(
                #[inline(always)]
                |l| 0.0 + self.products[g][l].to_f64(),
            );
            // The loop has subtracted the rounded mean.
            let product = each(
                #[inline(always)]
                |l| (product[l] - rest[l] * sum[l]) * invstd[l],
            );
            let of_x = each(
                #[inline(always)]
                |l| divided::<A, EXACT>(product[l], by) * invstd[l],
            );
            let less = each(
                #[inline(always)]
                |l| finite(rest[l] * of_x[l]),
            );
            let mean_g = each(
                #[inline(always)]
                |l| A::from_f64(divided::<A, EXACT>(sum[l], by) - less[l]),
            );
            let slope = each(
                #[inline(always)]
                |l| A::from_f64(of_x[l]),
            );
            for l in 0..GROUP {
                // Sums that are not finite leave no finite coefficients.
                is_lost |= !Limits::within(mean_g[l], most) | !Limits::within(slope[l], most);
            }
            let sum = each(
                #[inline(always)]
                |l| sums_before[g][l] + sum[l],
            );
            let product = each(
                #[inline(always)]
                |l| products_before[g][l] + product[l],
            );
            (self.means_g[g], self.slopes[g]) = (mean_g, slope);
            (all_sums[g], all_products[g]) = match is_rounded {
                true => (
                    each(
                        #[inline(always)]
                        |l| rounded::<A>(sum[l]),
                    ),
                    each(
                        #[inline(always)]
                        |l| rounded::<A>(product[l]),
                    ),
                ),
                false => (sum, product),
            };
        }
        !is_lost
    }
    #[inline(always)]
    fn write<E: Element<Acc = A>, R: Group, const G: usize, const RELU: bool>(
        &self,
        simd: Simd,
        (group, column): (R, usize),
        (mean, x, grad_y): (&Strip<A, G>, &[Strip<A, G>], &[Strip<A, G>]),
        grad_x: &mut TileMut<'_, E>,
    ) {
        let rows = group.rows();
        if R::ALL {
            for ((row, x), grad_y) in rows.each().zip(x).zip(grad_y) {
                self.row::<E, G, RELU, true>(simd, (row, column), (mean, x, grad_y), grad_x);
            }
            return;
        }
        for k in group.order().take(group.counted()) {
            let (at, of) = ((rows.at(k), column), (mean, &x[k], &grad_y[k]));
            self.row::<E, G, RELU, true>(simd, at, of, grad_x);
        }
        for k in group.order().skip(group.counted()) {
            let (at, of) = ((rows.at(k), column), (mean, &x[k], &grad_y[k]));
            self.row::<E, G, RELU, false>(simd, at, of, grad_x);
        }
    }
    /// The gradient of a row, which flows through the statistics, too, or not.
    #[inline(always)]
    fn row<E: Element<Acc = A>, const G: usize, const RELU: bool, const THROUGH: bool>(
        &self,
        simd: Simd,
        (row, column): (usize, usize),
        (mean, x, grad_y): (&Strip<A, G>, &Strip<A, G>, &Strip<A, G>),
        grad_x: &mut TileMut<'_, E>,
    ) {
        let grad_x = grad_x.row_mut(row, column..column + G * GROUP);
        let grad_x: &mut Strip<E, G> = strip_mut(grad_x);
        for g in 0..G {
            let coefs = (&mean[g], &self.scales[g], &self.biases[g]);
            let (mean_g, slope) = (&self.means_g[g], &self.slopes[g]);
            let own = gated::<E, RELU>(coefs, &x[g], &grad_y[g]);
            let mut to = [A::default(); GROUP];
            for l in 0..GROUP {
                let d = x[g][l] - mean[g][l];
                to[l] = self.scales[g][l]
                    * if THROUGH { own[l] - mean_g[l] - d * slope[l] } else { own[l] };
            }
            grad_x[g] = simd.narrow::<E, GROUP>(&to);
        }
    }
}

/// Means, scales and biases of a group of channels.
type Coefs<'c, A> = (&'c [A; GROUP], &'c [A; GROUP], &'c [A; GROUP]);

/// `grad_y` where there is no ReLU or the forward's output rounds to more than zero, else 0.
#[inline(always)]
fn gated<E: Element, const RELU: bool>(
    (mean, scale, bias): Coefs<'_, E::Acc>,
    x: &[E::Acc; GROUP],
    grad_y: &[E::Acc; GROUP],
) -> [E::Acc; GROUP] {
    let mut g = *grad_y;
    if RELU {
        for l in 0..GROUP {
            let z = (x[l] - mean[l]) * scale[l] + bias[l];
            g[l] = if z <= E::ROUNDS_TO_ZERO { E::Acc::default() } else { g[l] };
        }
    }
    g
}
