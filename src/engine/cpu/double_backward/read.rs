//! What both passes read; blocks of it, brought to the accumulating type.
use super::super::gate::Gate;
use super::super::kernels::activation::{Block, Kinks};
use super::super::kernels::convert;
use super::super::kernels::double_backward::{self as kernel, Values};
use super::super::kernels::double_backward_plain::{By, Passing};
use super::super::masked::{Counts, Keep, Masked};
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
    /// Which values the statistics are of.
    pub places: Option<&'a Masked<'a>>,
}

impl<E: Element> Read<'_, E> {
    /// What a gradient is multiplied by on its way through an activation that is not curved.
    pub fn passing(&self, gate: Gate<'_, E>) -> Passing<E::Acc> {
        let by = match (gate, self.activation) {
            (Gate::Open, _) => By::Nothing,
            (Gate::Mask(_) | Gate::Slope(..), _) => By::Bits,
            (_, Activation::Relu6) => By::Within,
            (_, Activation::LeakyRelu { .. }) => By::Leaking,
            _ => By::Above,
        };
        let Kinks { zero, six, .. } = Kinks::of::<E>();
        Passing { by, zero, six, slope: Real::from_f64(self.activation.negative_slope()) }
    }
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
        if let Some(places) = self.places {
            let mut counts = Counts::new();
            let (one, of_counts) = (E::Acc::from_f64(1.0), &mut to.counts[..n]);
            match places.keep(plan, row, cols, &mut counts) {
                Keep::All => of_counts.fill(one),
                Keep::None => of_counts.fill(zero),
                Keep::Some(bytes) => {
                    let numbers = bytes.iter().map(|byte| if *byte != 0 { one } else { zero });
                    of_counts.iter_mut().zip(numbers).for_each(|(to, number)| *to = number);
                }
            }
        }
        to.end(n);
        n
    }
}
