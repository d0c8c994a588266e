//! What both passes read; blocks of it, brought to the accumulating type.
use super::super::kernels::activation::{Block, Kinks};
use super::super::kernels::convert;
use super::super::kernels::double_backward::{self as kernel, Values};
use super::super::plan::Plan;
use super::super::simd::Simd;
use super::super::tiles::clipped;
use crate::Element;
use crate::engine::Activation;
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
    /// Brings a block to the accumulating type, and computes xhat, z and what flows through an activation that is
    /// curved. Returns how many values there are.
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
        to.differentiate(simd, activation, Kinks::of::<E>(), n);
        widen(self.v_x, &mut to.v);
        widen(self.v_residual, &mut to.r);
        to.end(n);
        n
    }
}
