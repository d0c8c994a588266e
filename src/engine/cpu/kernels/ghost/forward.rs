//! The training forward of a strip of a group.
use super::super::super::simd::{GROUP, Simd};
use super::super::super::tiles::TileMut;
use super::{Group, MOST_ROWS, Strip, WIDE, is_exact, load, prefetch_strip, strip, strip_mut};
use crate::{DType, Element, Real};
use statistics::Rules;
pub use statistics::{Published, Update};

/// Rows whose mean is the pivot of the distances.
const FIRST_ROWS: usize = MOST_ROWS / 4;
/// Rows whose terms are added up before they are added to the sums.
const TOGETHER: usize = 4;

mod statistics;

/// What all groups have in common.
pub struct Forward<'a, E: Element> {
    pub x: &'a [E],
    pub residual: Option<&'a [E]>,
    /// Elements of a row.
    pub width: usize,
    pub eps: f64,
    pub relu: bool,
    /// Least variance that has its digits beside eps.
    pub least_var: f64,
}

/// What a strip is made in, of any width.
#[repr(align(64))] // a cache line
pub struct ForwardStrip<A> {
    pivot: Strip<A, WIDE>,
    /// Of distances from the pivots, and of their squares.
    sums: Strip<A, WIDE>,
    products: Strip<A, WIDE>,
    /// Coefficients of x.
    means: Strip<A, WIDE>,
    scales: Strip<A, WIDE>,
    biases: Strip<A, WIDE>,
}

impl<A: Real> ForwardStrip<A> {
    pub fn new() -> Self {
        let none = [[A::default(); GROUP]; WIDE];
        let (sums, products, means) = (none, none, none);
        Self { pivot: none, sums, products, means, scales: none, biases: none }
    }
}

impl<E: Element> Forward<'_, E> {
    /// Takes the strip from `column` on through all steps, by its channels' weights and biases: y, and all of `to`.
    /// False where some number of some channel is not finite or out of the range of its type: what has been written
    /// is to be written again then.
    #[inline(always)]
    pub fn run<const G: usize>(
        &self,
        simd: Simd,
        (group, column): (impl Group, usize),
        by: [&[E::Acc]; 2],
        (memory, x): (&mut ForwardStrip<E::Acc>, &mut [Strip<E::Acc, G>]),
        (y, to): (&mut TileMut<'_, E>, &mut Published<'_, E::Acc>),
    ) -> bool {
        simd.vectorize(
            #[inline(always)]
            |simd| {
                let x = &mut x[..group.rows().count];
                load(simd, (self.x, self.width), (group, column), x);
                for row in group.rows().each() {
                    prefetch_strip::<E, G>(y.row(row, column..column + G * GROUP));
                }
                let is_ordinary = self.statistics(group, by, (memory, x), to);
                self.normalize(simd, (group, column), (x, memory), y);
                is_ordinary
            },
        )
    }
    /// Statistics, coefficients and running statistics of a strip; whether they can be trusted.
    #[inline(always)]
    fn statistics<R: Group, const G: usize>(
        &self,
        group: R,
        by: [&[E::Acc]; 2],
        (memory, x): (&mut ForwardStrip<E::Acc>, &[Strip<E::Acc, G>]),
        to: &mut Published<'_, E::Acc>,
    ) -> bool {
        let rows = group.counted();
        if !R::ALL && rows == 0 {
            // A mean and a variance of 0.
            let none = [[E::Acc::default(); GROUP]; WIDE];
            (memory.pivot, memory.sums, memory.products) = (none, none, none);
            let of = Rules::new(1, self.eps, self.least_var, to.update);
            let first = strip(none.as_flattened());
            return !memory.finish::<G, false, false>(&of, first, by, to).is_odd;
        }
        let (x, first) = (&x[..rows], &x[0]);
        memory.sum(x);
        let of = Rules::new(rows, self.eps, self.least_var, to.update);
        if E::Acc::DTYPE == DType::F32 {
            // Groups of a mask have other numbers each, of which nobody can predict a branch.
            let done = match R::ALL && is_exact(rows) {
                true => memory.finish::<G, true, true>(&of, first, by, to),
                false => memory.finish::<G, true, false>(&of, first, by, to),
            };
            if !done.is_doubtful {
                return !done.is_odd;
            }
        }
        !memory.finish::<G, false, false>(&of, first, by, to).is_odd
    }
    #[inline(always)]
    fn normalize<const G: usize>(
        &self,
        simd: Simd,
        (group, column): (impl Group, usize),
        (x, memory): (&[Strip<E::Acc, G>], &ForwardStrip<E::Acc>),
        y: &mut TileMut<'_, E>,
    ) {
        // Without a ReLU everything is at least minus infinity.
        let least = if self.relu { 0.0 } else { f64::NEG_INFINITY };
        let least = E::Acc::from_f64(least);
        let ForwardStrip { means, scales, biases, .. } = memory;
        let rows = group.rows();
        for (k, x) in group.order().zip(x) {
            let row = rows.at(k);
            let y: &mut Strip<E, G> = strip_mut(y.row_mut(row, column..column + G * GROUP));
            let residual: Option<&Strip<E, G>> = self.residual.map(
                #[inline(always)]
                |residual| strip(&residual[row * self.width + column..]),
            );
            for g in 0..G {
                let mut z = [E::Acc::default(); GROUP];
                for l in 0..GROUP {
                    z[l] = (x[g][l] - means[g][l]) * scales[g][l] + biases[g][l];
                }
                if let Some(residual) = residual {
                    let r = simd.widen(&residual[g]);
                    for l in 0..GROUP {
                        z[l] += r[l];
                    }
                }
                for z in &mut z {
                    // The larger one, z where it is NaN: see the elementwise loops.
                    *z = if least > *z { least } else { *z };
                }
                y[g] = simd.narrow::<E, GROUP>(&z);
            }
        }
    }
}

impl<A: Real> ForwardStrip<A> {
    /// Sums of the distances of rows from the mean of the first ones, and of their squares.
    #[inline(always)]
    fn sum<const G: usize>(&mut self, x: &[Strip<A, G>]) {
        let few = &x[..x.len().min(FIRST_ROWS)];
        let each = A::from_f64(1.0 / few.len() as f64);
        for g in 0..G {
            let mut pivot = x[0][g];
            let [sum, _] = distances(few, g, &pivot);
            for l in 0..GROUP {
                pivot[l] += sum[l] * each;
            }
            self.pivot[g] = pivot;
            [self.sums[g], self.products[g]] = distances(x, g, &pivot);
        }
    }
}

/// Sums of the distances of a group of channels of some rows from its pivots, and of their squares.
#[inline(always)]
fn distances<A: Real, const G: usize>(
    x: &[Strip<A, G>],
    g: usize,
    pivot: &[A; GROUP],
) -> [[A; GROUP]; 2] {
    let zeros = [A::default(); GROUP];
    let (mut sum, mut squares) = (zeros, zeros);
    let (fours, rest) = x.as_chunks::<TOGETHER>();
    for four in fours {
        let (mut s, mut q) = (zeros, zeros);
        for x in four {
            for l in 0..GROUP {
                let d = x[g][l] - pivot[l];
                s[l] += d;
                q[l] += d * d;
            }
        }
        for l in 0..GROUP {
            sum[l] += s[l];
            squares[l] += q[l];
        }
    }
    for x in rest {
        for l in 0..GROUP {
            let d = x[g][l] - pivot[l];
            sum[l] += d;
            squares[l] += d * d;
        }
    }
    [sum, squares]
}
