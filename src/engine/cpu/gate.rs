//! How a backward gets through the activation: by what the loops know, or by blocks that are
//! [staged](super::staged).
use super::plan::Plan;
use crate::engine::Activation;
use crate::{Element, Real};

/// What a gradient is multiplied by on its way through the activation.
#[derive(Debug, Clone, Copy)]
pub(super) enum Gate<'a, E> {
    /// There is no activation.
    Open,
    /// 0 or 1: of a ReLU, whose input the loops compute again from x.
    Recompute,
    /// 0 or 1, by the bits that the forward left.
    Mask(&'a [u8]),
    /// 1 or a slope, by these bits.
    Slope(&'a [u8], f64),
    /// The derivative of another activation. Its input is computed again from x, and from the residual
    /// where there was one.
    Derivative(Activation, Option<&'a [E]>),
}

impl<'a, E: Element> Gate<'a, E> {
    /// What the backward of a forward takes.
    pub fn new(activation: Activation, mask: Option<&'a [u8]>, residual: Option<&'a [E]>) -> Self {
        match (activation, mask) {
            (Activation::Identity, _) => Gate::Open,
            (Activation::LeakyRelu { negative_slope }, Some(mask)) => {
                Gate::Slope(mask, negative_slope)
            }
            (_, Some(mask)) => Gate::Mask(mask),
            (Activation::Relu, None) => Gate::Recompute,
            (_, None) => Gate::Derivative(activation, residual),
        }
    }
    /// Whether the loops are to compute the output again.
    pub fn recomputes(self) -> bool {
        matches!(self, Gate::Recompute)
    }
    /// Whether blocks are brought to the accumulating type: see [`Staged`](super::staged::Staged).
    pub fn is_staged(self) -> bool {
        matches!(self, Gate::Slope(..) | Gate::Derivative(..))
    }
    /// `grad_y` of element `i` on the other side of the activation; `z` is what the normalization gives.
    pub fn pass(self, plan: &Plan, i: usize, z: impl FnOnce() -> f64, grad_y: f64) -> f64 {
        let is_one = |mask: &[u8]| {
            let (byte, bit) = plan.mask_bit(i / plan.width, i % plan.width);
            mask[byte] >> bit & 1 == 1
        };
        let derivative = match self {
            Gate::Open => 1.0,
            Gate::Recompute => Activation::Relu.derivative::<E>(z()),
            Gate::Mask(mask) => f64::from(u8::from(is_one(mask))),
            Gate::Slope(mask, slope) => {
                if is_one(mask) {
                    1.0
                } else {
                    slope
                }
            }
            Gate::Derivative(activation, residual) => {
                let residual = residual.map_or(0.0, |r| r[i].widen().to_f64());
                activation.derivative::<E>(z() + residual)
            }
        };
        // 0 stops what is not finite, too.
        if derivative == 0.0 { 0.0 } else { grad_y * derivative }
    }
}
