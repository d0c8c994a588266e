//! The loops of the double backward behind an activation that is curved, over blocks that are in the
//! accumulating type.
use super::super::simd::{GROUP, ROOM, Simd};
use super::activation::{self, Block, Kinks};
use crate::Real;
use crate::engine::Activation;

/// Sums of a channel: of `g`, `g xhat`, `v`, `v xhat`, `v g`; and, q being `grad_y * a''`, where an activation
/// is curved, of `q`, `q xhat`, `q xhat^2`, `q v`, `q v xhat`, `q r`, `q r xhat`.
pub const SUMS: usize = 12;
/// Of them without one that is.
pub const PLAIN: usize = 5;
/// Coefficients of a value, in this order: mean, invstd, what a rounded mean adds to xhat, scale, bias; then
/// those of xhat and alone in u, and of `v_x`, `g`, xhat and alone in `gg_x`.
pub const FIELDS: usize = 11;
/// Of them what the sums take.
pub const FORWARD: usize = 5;

/// Where the coefficients of a value are.
pub trait Coefs<A>: Copy {
    fn field(self, field: usize, group: usize) -> [A; GROUP];
}
/// Of a run: one channel's.
#[derive(Clone, Copy)]
pub struct One<A>(pub [A; FIELDS]);
/// Of columns: each has its own.
#[derive(Clone, Copy)]
pub struct Many<'a, A>(pub &'a [Block<A>; FIELDS]);

impl<A: Real> Coefs<A> for One<A> {
    #[inline(always)]
    fn field(self, field: usize, _: usize) -> [A; GROUP] {
        [self.0[field]; GROUP]
    }
}
impl<A: Real> Coefs<A> for Many<'_, A> {
    #[inline(always)]
    fn field(self, field: usize, group: usize) -> [A; GROUP] {
        groups(&self.0[field])[group]
    }
}

#[inline(always)]
fn groups<A>(block: &Block<A>) -> &[[A; GROUP]; ROOM / GROUP] {
    const { assert!(ROOM.is_multiple_of(GROUP)) };
    block.as_chunks().0.first_chunk().unwrap()
}
#[inline(always)]
fn groups_mut<A>(block: &mut Block<A>) -> &mut [[A; GROUP]; ROOM / GROUP] {
    block.as_chunks_mut().0.first_chunk_mut().unwrap()
}

/// What the loops read of a block of values; zeros behind its end, to a whole group.
pub struct Values<A> {
    pub xhat: Block<A>,
    pub z: Block<A>,
    /// `a'(z)`.
    pub slope: Block<A>,
    /// `grad_y`, then that times the slope.
    pub g: Block<A>,
    pub v: Block<A>,
    /// `grad_y * a''(z)`.
    pub q: Block<A>,
    /// What is given for the residual's gradient.
    pub r: Block<A>,
    /// By a mask not 0 where a value counts.
    pub counts: Block<A>,
}

impl<A: Real> Values<A> {
    pub fn new() -> Self {
        let zeros = [A::default(); ROOM];
        Self {
            xhat: zeros,
            z: zeros,
            slope: zeros,
            g: zeros,
            v: zeros,
            q: zeros,
            r: zeros,
            counts: zeros,
        }
    }
    /// Brings the gradient of y through the activation, and through its slope.
    pub fn differentiate(&mut self, simd: Simd, activation: Activation, kinks: Kinks<A>, n: usize) {
        let both = (&mut self.slope, &mut self.q);
        activation::derivatives(simd, activation, kinks, &self.z, both, n);
        simd.vectorize(
            #[inline(always)]
            |_| {
                let (gs, qs) = (groups_mut(&mut self.g), groups_mut(&mut self.q));
                let slopes = groups(&self.slope);
                for i in 0..n.div_ceil(GROUP) {
                    let g = gs[i];
                    (gs[i], qs[i]) = (times(slopes[i], g), times(qs[i], g));
                }
            },
        );
    }
    /// Zeros from the `n`th value on, to a whole group.
    pub fn end(&mut self, n: usize) {
        let end = n.next_multiple_of(GROUP);
        for block in [&mut self.xhat, &mut self.g, &mut self.v, &mut self.q, &mut self.r] {
            block[n..end].fill(A::default());
        }
    }
    /// Of x, which lies in `xhat`, xhat and `z = weight * xhat + bias (+ r)`.
    pub fn normalize(&mut self, simd: Simd, coefs: impl Coefs<A>, residual: bool, n: usize) {
        let zero = A::default();
        simd.vectorize(
            #[inline(always)]
            |_| {
                let (xs, zs) = (groups_mut(&mut self.xhat), groups_mut(&mut self.z));
                let rs = groups(&self.r);
                for i in 0..n.div_ceil(GROUP) {
                    let (mean, invstd) = (coefs.field(0, i), coefs.field(1, i));
                    let (less, scale, bias) =
                        (coefs.field(2, i), coefs.field(3, i), coefs.field(4, i));
                    let (x, r) = (xs[i], rs[i]);
                    let (mut xhat, mut z) = ([zero; GROUP], [zero; GROUP]);
                    for l in 0..GROUP {
                        let distance = x[l] - mean[l];
                        xhat[l] = distance * invstd[l] + less[l];
                        z[l] = distance * scale[l] + bias[l];
                    }
                    if residual {
                        for l in 0..GROUP {
                            z[l] += r[l];
                        }
                    }
                    (xs[i], zs[i]) = (xhat, z);
                }
            },
        );
    }
    /// The terms of [`SUMS`] of a group.
    #[inline(always)]
    fn terms<const MASKED: bool>(&self, i: usize) -> [[A; GROUP]; SUMS] {
        let (g, xhat, v) = (groups(&self.g)[i], groups(&self.xhat)[i], groups(&self.v)[i]);
        let (q, r) = (groups(&self.q)[i], groups(&self.r)[i]);
        let mut terms = [[A::default(); GROUP]; SUMS];
        let counted = if MASKED { only(&groups(&self.counts)[i], v) } else { v };
        for l in 0..GROUP {
            terms[0][l] = g[l];
            terms[1][l] = g[l] * xhat[l];
            terms[2][l] = counted[l];
            terms[3][l] = counted[l] * xhat[l];
            terms[4][l] = v[l] * g[l];
        }
        for l in 0..GROUP {
            let (of_xhat, of_v, of_r) = (q[l] * xhat[l], q[l] * v[l], q[l] * r[l]);
            terms[5][l] = q[l];
            terms[6][l] = of_xhat;
            terms[7][l] = of_xhat * xhat[l];
            terms[8][l] = of_v;
            terms[9][l] = of_v * xhat[l];
            terms[10][l] = of_r;
            terms[11][l] = of_r * xhat[l];
        }
        terms
    }
    /// Adds the terms of `n` values, in lanes.
    pub fn add_to_lanes(&self, simd: Simd, by_mask: bool, sums: &mut [[A; GROUP]; SUMS], n: usize) {
        simd.vectorize(
            #[inline(always)]
            |_| match by_mask {
                true => self.add_lanes::<true>(sums, n),
                false => self.add_lanes::<false>(sums, n),
            },
        );
    }
    #[inline(always)]
    fn add_lanes<const MASKED: bool>(&self, sums: &mut [[A; GROUP]; SUMS], n: usize) {
        let mut all = *sums;
        for i in 0..n.div_ceil(GROUP) {
            let terms = self.terms::<MASKED>(i);
            for k in 0..SUMS {
                for l in 0..GROUP {
                    all[k][l] += terms[k][l];
                }
            }
        }
        *sums = all;
    }
    /// Adds the terms of `n` columns to theirs.
    pub fn add_to_columns(&self, simd: Simd, by_mask: bool, sums: &mut [Block<A>; SUMS], n: usize) {
        simd.vectorize(
            #[inline(always)]
            |_| match by_mask {
                true => self.add_columns::<true>(sums, n),
                false => self.add_columns::<false>(sums, n),
            },
        );
    }
    #[inline(always)]
    fn add_columns<const MASKED: bool>(&self, sums: &mut [Block<A>; SUMS], n: usize) {
        for i in 0..n.div_ceil(GROUP) {
            let terms = self.terms::<MASKED>(i);
            for (sums, terms) in sums.iter_mut().zip(terms) {
                let sums = &mut groups_mut(sums)[i];
                let mut all = *sums;
                for l in 0..GROUP {
                    all[l] += terms[l];
                }
                *sums = all;
            }
        }
    }
    /// u times the slope and the gradient of x of `n` values, whether gradients flow through statistics, and by a mask;
    /// `q` becomes the curved part.
    pub fn gradients(
        &mut self,
        simd: Simd,
        coefs: impl Coefs<A>,
        (batch, by_mask): (bool, bool),
        (u, x): (&mut Block<A>, &mut Block<A>),
        n: usize,
    ) {
        let values = self;
        simd.vectorize(
            #[inline(always)]
            |_| match (batch, by_mask) {
                (true, false) => values.gradients_of::<true, false>(coefs, u, x, n),
                (true, true) => values.gradients_of::<true, true>(coefs, u, x, n),
                (false, _) => values.gradients_of::<false, false>(coefs, u, x, n),
            },
        );
    }
    #[inline(always)]
    fn gradients_of<const BATCH: bool, const MASKED: bool>(
        &mut self,
        coefs: impl Coefs<A>,
        u: &mut Block<A>,
        x: &mut Block<A>,
        n: usize,
    ) {
        let zero = A::default();
        let (us, xs, qs) = (groups_mut(u), groups_mut(x), groups_mut(&mut self.q));
        for i in 0..n.div_ceil(GROUP) {
            let (g, xhat) = (groups(&self.g)[i], groups(&self.xhat)[i]);
            let (v, r) = (groups(&self.v)[i], groups(&self.r)[i]);
            let (scale, u_xhat, u_one) = (coefs.field(3, i), coefs.field(5, i), coefs.field(6, i));
            let (x_v, x_g) = (coefs.field(7, i), coefs.field(8, i));
            let (x_xhat, x_one) = (coefs.field(9, i), coefs.field(10, i));
            let (mut u, mut x, mut h) = ([zero; GROUP], [zero; GROUP], qs[i]);
            let mut through = [zero; GROUP];
            if MASKED {
                for l in 0..GROUP {
                    through[l] = x_v[l] * v[l] + x_xhat[l] * xhat[l] + x_one[l];
                }
                through = only(&groups(&self.counts)[i], through);
            }
            for l in 0..GROUP {
                u[l] = scale[l] * v[l] + u_xhat[l] * xhat[l] + u_one[l] + r[l];
                x[l] = x_g[l] * g[l];
                if MASKED {
                    x[l] += through[l];
                } else if BATCH {
                    x[l] = x[l] + x_v[l] * v[l] + x_xhat[l] * xhat[l] + x_one[l];
                }
                h[l] = if h[l] == zero { zero } else { h[l] * u[l] };
                x[l] += scale[l] * h[l];
            }
            (us[i], xs[i], qs[i]) = (times(groups(&self.slope)[i], u), x, h);
        }
    }
}

/// Values that count, and zeros.
#[inline(always)]
fn only<A: Real>(counts: &[A; GROUP], mut values: [A; GROUP]) -> [A; GROUP] {
    for l in 0..GROUP {
        values[l] = if counts[l] == A::default() { A::default() } else { values[l] };
    }
    values
}

/// A factor of 0 stops what is not finite, too.
#[inline(always)]
fn times<A: Real>(by: [A; GROUP], values: [A; GROUP]) -> [A; GROUP] {
    let mut products = values;
    for l in 0..GROUP {
        products[l] = if by[l] == A::default() { by[l] } else { values[l] * by[l] };
    }
    products
}
