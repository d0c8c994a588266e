//! Channels whose numbers leave the range of their type, in f64 and one element at a time.
use super::super::extremes::Extreme;
use super::super::kernels::double_backward::SUMS;
use super::Work;
use super::coefs::{Coefs, Table};
use crate::{Element, Real};

/// What an element takes part with.
struct One {
    xhat: f64,
    /// The derivative of the activation.
    slope: f64,
    g: f64,
    v: f64,
    q: f64,
    r: f64,
    /// Whether the value is one of those that the statistics are of.
    counts: bool,
}

/// A factor of 0 stops what is not finite, too.
fn times(by: f64, value: f64) -> f64 {
    if by == 0.0 { 0.0 } else { by * value }
}

impl<E: Element> Work<'_, E> {
    /// `z` is what the normalization gives.
    fn one(&self, i: usize, xhat: f64, z: f64) -> One {
        let wide = |tensor: Option<&[E]>| tensor.map_or(0.0, |t| t[i].widen().to_f64());
        let read = &self.read;
        let grad_y = wide(Some(read.grad_y));
        let slope = self.gate.pass(read.plan, i, || z, 1.0);
        let second = read.activation.second_derivative::<E>(z + wide(read.residual));
        let (g, q) = (times(slope, grad_y), times(second, grad_y));
        let counts = read.places.is_none_or(|places| places.keeps(i));
        One { xhat, slope, g, v: wide(read.v_x), q, r: wide(read.v_residual), counts }
    }

    /// The sums of a channel; by a `table` z is what the loops compute, else what an extreme channel has.
    pub(super) fn wide_sums(&self, c: usize, table: Option<&Table<'_, E::Acc>>) -> [f64; SUMS] {
        let by = Extreme::of_channel(self.given.saved, c);
        let mut sums = [0.0; SUMS];
        for i in self.shape.channel(c) {
            let x = self.read.x[i].widen();
            let z = match table {
                Some(table) => table.normalize(c, x).to_f64(),
                None => by.normalize(x.to_f64()),
            };
            let One { xhat, g, v, q, r, counts, .. } = self.one(i, by.xhat(x.to_f64()), z);
            let counted = if counts { v } else { 0.0 };
            let of_g = [g, g * xhat, counted, counted * xhat, v * g];
            let of_q = [q, q * xhat, q * xhat * xhat, q * v, q * v * xhat, q * r, q * r * xhat];
            for (sum, term) in sums.iter_mut().zip(of_g.into_iter().chain(of_q)) {
                *sum += term;
            }
        }
        sums
    }

    /// Writes what is asked for of an extreme channel: `gg_grad_y`, `gg_x`, `gg_residual`.
    pub(super) fn write_wide(&self, by: &Extreme, coefs: &Coefs, to: [Option<&mut [E]>; 3]) {
        let narrow = |v: f64| E::narrow(E::Acc::from_f64(v));
        let [mut grad_y, mut x, mut residual] = to;
        for i in self.shape.channel(by.c) {
            let value = self.read.x[i].widen().to_f64();
            let One { xhat, slope, g, v, q, r, counts } =
                self.one(i, by.xhat(value), by.normalize(value));
            let u = coefs.scale * v + coefs.u_xhat * xhat + coefs.u_one + r;
            let h = times(q, u);
            if let Some(to) = &mut grad_y {
                to[i] = narrow(times(slope, u));
            }
            if let Some(to) = &mut x {
                let through = match self.batch && counts {
                    true => coefs.x_v * v + coefs.x_xhat * xhat + coefs.x_one,
                    false => 0.0,
                };
                let curved = if self.read.activation.is_curved() { coefs.scale * h } else { 0.0 };
                to[i] = narrow(coefs.x_g * g + through + curved);
            }
            if let Some(to) = &mut residual {
                to[i] = narrow(h);
            }
        }
    }
}
