//! Batches of few rows of a value per channel, as ghost batches of N x C are: a group of channels goes through all
//! steps at once, its sums, moments and coefficients in registers. The arithmetic is that of the loops over blocks,
//! in their order, so that the bits are theirs. Steps in groups of 4 and of 32 rows of 64 channels take a
//! third of the time of those loops.
use super::super::simd::{GROUP, Simd};
use super::super::table::{Lanes, finite};
use super::convert;
use super::elementwise::gate;
use super::sums::STRIP_ROWS;
use crate::{Element, Real};

/// Most rows: those that are summed in the accumulating type.
pub const MOST_ROWS: usize = STRIP_ROWS;
/// Rows whose mean is the pivot of the distances.
pub const FIRST_ROWS: usize = STRIP_ROWS / 4;
/// Rows whose terms are added up before they are added to the sums: of moments, and of gradients.
const MOMENTS: usize = 4;
const GRADIENTS: usize = 2;

/// A training forward, whose every array has a value per channel unless another length is said. There are a group's
/// channels at least.
pub struct Forward<'a, E: Element> {
    /// Of all rows.
    pub x: &'a [E],
    pub residual: Option<&'a [E]>,
    pub y: &'a mut [E],
    pub weight: Option<&'a [E::Acc]>,
    pub bias: Option<&'a [E::Acc]>,
    pub eps: f64,
    pub relu: bool,
    /// The mean, what rounding left of it, and invstd.
    pub statistics: [&'a mut [E::Acc]; 3],
    /// For the running statistics: means, and sums of squares.
    pub moments: [&'a mut [f64]; 2],
}

/// Where groups of so many channels start; the last one may overlap the one before.
#[inline(always)]
fn starts(channels: usize) -> impl Iterator<Item = usize> {
    (0..channels.div_ceil(GROUP)).map(
        #[inline(always)]
        move |i| (i * GROUP).min(channels - GROUP),
    )
}
#[inline(always)]
fn group<T>(values: &[T], at: usize) -> &[T; GROUP] {
    values[at..].first_chunk().unwrap()
}
#[inline(always)]
fn group_mut<T>(values: &mut [T], at: usize) -> &mut [T; GROUP] {
    values[at..].first_chunk_mut().unwrap()
}

impl<E: Element> Forward<'_, E> {
    /// Computes all of it.
    pub fn run(self, simd: Simd) {
        simd.vectorize(
            #[inline(always)]
            |simd| match (self.relu, self.residual.is_some()) {
                (false, false) => self.run_of::<false, false>(simd),
                (false, true) => self.run_of::<false, true>(simd),
                (true, false) => self.run_of::<true, false>(simd),
                (true, true) => self.run_of::<true, true>(simd),
            },
        );
    }
    #[inline(always)]
    fn run_of<const RELU: bool, const RESIDUAL: bool>(mut self, simd: Simd) {
        let channels = self.statistics[0].len();
        for c in starts(channels) {
            let coef = self.statistics_of(simd, c);
            for at in (c..self.x.len()).step_by(channels) {
                let x = simd.widen(group(self.x, at));
                let r = match self.residual {
                    Some(residual) if RESIDUAL => simd.widen(group(residual, at)),
                    _ => [E::Acc::default(); GROUP],
                };
                let mut y = [E::Acc::default(); GROUP];
                for l in 0..GROUP {
                    let z = coef.at(l).normalize(x[l]);
                    let z = if RESIDUAL { z + r[l] } else { z };
                    // As the larger one: see `normalize` of the elementwise loops.
                    y[l] = if RELU && E::Acc::default() > z { E::Acc::default() } else { z };
                }
                *group_mut(self.y, at) = simd.narrow::<E, GROUP>(&y);
            }
        }
    }
    /// Sums of the distances of the first `rows` rows from a pivot, and of their squares.
    #[inline(always)]
    fn distances(
        &self,
        simd: Simd,
        (c, rows): (usize, usize),
        pivot: &[E::Acc; GROUP],
    ) -> [[E::Acc; GROUP]; 2] {
        let (zeros, channels) = ([E::Acc::default(); GROUP], self.statistics[0].len());
        let (mut sum, mut squares, mut row) = (zeros, zeros, 0);
        while row < rows {
            let some = if row + MOMENTS <= rows { MOMENTS } else { 1 };
            let (mut s, mut q) = (zeros, zeros);
            for k in 0..some {
                let x = simd.widen(group(self.x, c + (row + k) * channels));
                for l in 0..GROUP {
                    let d = x[l] - pivot[l];
                    s[l] += d;
                    q[l] += d * d;
                }
            }
            for l in 0..GROUP {
                sum[l] += s[l];
                squares[l] += q[l];
            }
            row += some;
        }
        [sum, squares]
    }
    /// Sets the statistics of the group of channels from `c` on; its coefficients.
    #[inline(always)]
    fn statistics_of(&mut self, simd: Simd, c: usize) -> Coefs<E::Acc> {
        let rows = self.x.len() / self.statistics[0].len();
        let few = rows.min(FIRST_ROWS);
        let first = group(self.x, c);
        let mut pivot = simd.widen(first);
        let [guess, _] = self.distances(simd, (c, few), &pivot);
        let each = E::Acc::from_f64(1.0 / few as f64);
        for l in 0..GROUP {
            pivot[l] += guess[l] * each;
        }
        let [sum, squares] = self.distances(simd, (c, rows), &pivot);
        let (count, each) = (rows as f64, 1.0 / rows as f64);
        let (mut base, mut offset, mut square) = ([0.0; GROUP], [0.0; GROUP], [0.0; GROUP]);
        let mut invstd = [0.0; GROUP];
        for l in 0..GROUP {
            base[l] = convert::finite(first[l]);
            let sum = sum[l].to_f64();
            let own = squares[l].to_f64() - sum * sum * each;
            offset[l] = 0.0 + ((pivot[l].to_f64() - base[l]) + sum * each);
            square[l] = if own < 0.0 { 0.0 } else { own };
            invstd[l] = 1.0 / (square[l] / count + self.eps).sqrt();
        }
        let [means, to_squares] = &mut self.moments;
        let (means, to_squares) = (group_mut(means, c), group_mut(to_squares, c));
        let [to_mean, to_rest, to_invstd] = &mut self.statistics;
        let (to_mean, to_rest) = (group_mut(to_mean, c), group_mut(to_rest, c));
        let to_invstd = group_mut(to_invstd, c);
        for l in 0..GROUP {
            means[l] = base[l] + offset[l];
            to_squares[l] = square[l];
            to_mean[l] = E::Acc::from_f64(means[l]);
            let left = (base[l] - to_mean[l].to_f64()) + offset[l];
            to_rest[l] = E::Acc::from_f64(finite(left));
            to_invstd[l] = E::Acc::from_f64(invstd[l]);
        }
        let (mean, rest, invstd) = (*to_mean, *to_rest, *to_invstd);
        let weight = self.weight.map(
            #[inline(always)]
            |weight| *group(weight, c),
        );
        let bias = match self.bias {
            Some(bias) => *group(bias, c),
            None => [E::Acc::default(); GROUP],
        };
        coefs(mean, rest, invstd, weight, bias)
    }
}

/// Coefficients of a group of channels: mean, scale, bias, and those of a gradient.
type Coefs<A> = [[A; GROUP]; 5];

/// What a forward takes of channels.
#[inline(always)]
fn coefs<A: Real>(
    mean: [A; GROUP],
    rest: [A; GROUP],
    invstd: [A; GROUP],
    weight: Option<[A; GROUP]>,
    bias: [A; GROUP],
) -> Coefs<A> {
    let (mut scales, mut biases, zeros) = (invstd, bias, [A::default(); GROUP]);
    for l in 0..GROUP {
        let scale = match &weight {
            Some(weight) => weight[l] * invstd[l],
            None => invstd[l],
        };
        // A scale that is infinite times no rest would be NaN.
        let less = bias[l] - rest[l] * scale;
        biases[l] = if rest[l] == A::default() { bias[l] } else { less };
        scales[l] = scale;
    }
    [mean, scales, biases, zeros, zeros]
}

/// A backward through statistics of the batch, by what its forward saved.
pub struct Backward<'a, E: Element> {
    /// Of all rows.
    pub x: &'a [E],
    pub grad_y: &'a [E],
    pub grad_x: &'a mut [E],
    /// The mean, what rounding left of it, invstd, weight and bias.
    pub saved: [&'a [E::Acc]; 5],
    /// Whether there was a ReLU, which is computed again.
    pub relu: bool,
    /// `sum(g)` and `sum(g * xhat)`.
    pub sums: [&'a mut [f64]; 2],
}

impl<E: Element> Backward<'_, E> {
    /// Computes all of it.
    pub fn run(self, simd: Simd) {
        simd.vectorize(
            #[inline(always)]
            |simd| match self.relu {
                false => self.run_of::<false>(simd),
                true => self.run_of::<true>(simd),
            },
        );
    }
    #[inline(always)]
    fn run_of<const RELU: bool>(mut self, simd: Simd) {
        let channels = self.saved[0].len();
        for c in starts(channels) {
            let coef = self.coefs::<RELU>(simd, c);
            for at in (c..self.x.len()).step_by(channels) {
                let x = simd.widen(group(self.x, at));
                let g = simd.widen(group(self.grad_y, at));
                let mut to = [E::Acc::default(); GROUP];
                for l in 0..GROUP {
                    let s = coef.at(l);
                    let g = gate::<E, RELU>(s, x[l], g[l]);
                    to[l] = s.scale * (g - s.mean_g - (x[l] - s.mean) * s.slope);
                }
                *group_mut(self.grad_x, at) = simd.narrow::<E, GROUP>(&to);
            }
        }
    }
    /// Sets the sums of the group of channels from `c` on; its coefficients.
    #[inline(always)]
    fn coefs<const RELU: bool>(&mut self, simd: Simd, c: usize) -> Coefs<E::Acc> {
        let (zeros, channels) = ([E::Acc::default(); GROUP], self.saved[0].len());
        let [mean, rest, invstd, weight, bias] = self.saved;
        let (mean, rest, invstd) = (*group(mean, c), *group(rest, c), *group(invstd, c));
        let mut coef = coefs(mean, rest, invstd, Some(*group(weight, c)), *group(bias, c));
        let rows = self.x.len() / channels;
        let (mut sum, mut product, mut row) = (zeros, zeros, 0);
        while row < rows {
            let some = if row + GRADIENTS <= rows { GRADIENTS } else { 1 };
            let (mut s, mut p) = (zeros, zeros);
            for k in 0..some {
                let start = c + (row + k) * channels;
                let x = simd.widen(group(self.x, start));
                let g = simd.widen(group(self.grad_y, start));
                for l in 0..GROUP {
                    let at = coef.at(l);
                    let g = gate::<E, RELU>(at, x[l], g[l]);
                    s[l] += g;
                    p[l] += g * (x[l] - at.mean);
                }
            }
            for l in 0..GROUP {
                sum[l] += s[l];
                product[l] += p[l];
            }
            row += some;
        }
        let m = rows as f64;
        let [sums, products] = &mut self.sums;
        let (sums, products) = (group_mut(sums, c), group_mut(products, c));
        for l in 0..GROUP {
            let (rest, invstd) = (rest[l].to_f64(), invstd[l].to_f64());
            sums[l] = 0.0 + sum[l].to_f64();
            // The loop has subtracted the rounded mean.
            products[l] = (0.0 + product[l].to_f64() - finite(rest * sums[l])) * invstd;
            let of_x = products[l] / m * invstd;
            coef[3][l] = E::Acc::from_f64(sums[l] / m - finite(rest * of_x));
            coef[4][l] = E::Acc::from_f64(of_x);
        }
        coef
    }
}
