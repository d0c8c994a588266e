//! What both passes read: blocks, brought to the accumulating type.
use super::super::kernels::activation::{self, Block, Kinks};
use super::super::kernels::convert;
use super::super::kernels::double_backward::{self as kernel, Values};
use super::super::plan::Plan;
use super::super::simd::Simd;
use super::super::tiles::clipped;
use crate::engine::Activation;
use crate::{Element, Real};
use std::ops::Range;

/// The tensors that are read, and what a derivative is taken from.
#[derive(Clone, Copy)]
pub(super) struct Read<'a, E> {
    pub simd: Simd,
    pub plan: &'a Plan,
    pub x: &'a [E],
    pub grad_y: &'a [E],
    pub v_x: Option<&'a [E]>,
    pub v_residual: Option<&'a [E]>,
    pub activation: Activation,
    pub mask: Option<&'a [u8]>,
    /// Where the derivative takes it.
    pub residual: Option<&'a [E]>,
}

impl<E: Element> Read<'_, E> {
    /// Brings a block to the accumulating type, and computes xhat, z and what flows through the activation of
    /// it. Returns how many values there are.
    pub fn stage(
        &self,
        row: usize,
        cols: &Range<usize>,
        coefs: impl kernel::Coefs<E::Acc>,
        to: &mut Values<E::Acc>,
    ) -> usize {
        let Self { simd, plan, activation, .. } = *self;
        let range = clipped(row, cols.clone(), plan.width, plan.len());
        let (n, zero) = (range.len(), E::Acc::default());
        let widen = |from: Option<&[E]>, to: &mut Block<E::Acc>| match from {
            Some(from) => convert::widen(simd, &from[range.clone()], &mut to[..n]),
            None => to[..n].fill(zero),
        };
        widen(Some(self.x), &mut to.xhat);
        if self.residual.is_some() {
            widen(self.residual, &mut to.r);
        }
        to.normalize(simd, coefs, self.residual.is_some(), n);
        widen(Some(self.grad_y), &mut to.g);
        if activation.is_curved() {
            to.q = to.g;
            let kinks = Kinks::of::<E>();
            activation::differentiate_twice(simd, activation, kinks, &to.z, &mut to.q, n);
        }
        self.pass(row, cols, &to.z, &mut to.g, n);
        widen(self.v_x, &mut to.v);
        widen(self.v_residual, &mut to.r);
        to.end(n);
        n
    }
    /// Multiplies by the derivative of the activation.
    pub fn pass(
        &self,
        row: usize,
        cols: &Range<usize>,
        z: &Block<E::Acc>,
        g: &mut Block<E::Acc>,
        n: usize,
    ) {
        let Self { simd, plan, activation, .. } = *self;
        match self.mask {
            Some(mask) => {
                let cols = plan.mask_cols(cols);
                let mask = &mask[clipped(row, cols, plan.mask_width(), mask.len())];
                let slope = Real::from_f64(activation.negative_slope());
                convert::slope(simd, mask, slope, &mut g[..n]);
            }
            None => activation::differentiate(simd, activation, Kinks::of::<E>(), z, g, n),
        }
    }
}
