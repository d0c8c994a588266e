//! Blocks for the activations that the loops do not know: brought to the accumulating type in memory
//! that stays in the first cache, where the activation is a loop of its own. So loops for a layout and
//! loops for an activation do not multiply.
use super::kernels::activation::{self, Block, Kinks};
use super::kernels::convert;
use super::kernels::elementwise::{At, Work, normalize};
use super::simd::{ROOM, Simd};
use crate::engine::Activation;
use crate::{Element, Real};

/// A task's blocks, if it turns out that it needs any.
pub(super) struct Staged<A>(Option<Blocks<A>>);

struct Blocks<A> {
    x: Block<A>,
    residual: Block<A>,
    z: Block<A>,
    g: Block<A>,
}

/// What a derivative is multiplied by.
#[derive(Debug, Clone, Copy)]
pub(super) enum Derivative<'a, E> {
    /// Of z, which is computed from x and a residual.
    Of(Activation, Option<&'a [E]>),
    /// 1 or a slope, by the bits of a mask.
    ByMask(&'a [u8], f64),
}

impl<A: Real> Staged<A> {
    pub fn new() -> Self {
        Self(None)
    }
    fn blocks(&mut self) -> &mut Blocks<A> {
        self.0.get_or_insert_with(|| {
            let zeros = [A::default(); ROOM];
            Blocks { x: zeros, residual: zeros, z: zeros, g: zeros }
        })
    }

    /// `activation(normalize(x) [+ residual])`, not rounded. With a mask, also the bits of where the
    /// derivative is 1.
    pub fn values<E: Element<Acc = A>>(
        &mut self,
        simd: Simd,
        at: At<'_, A>,
        (x, residual): (&[E], Option<&[E]>),
        activation: Activation,
        mask: Option<&mut [u8]>,
    ) -> &[A] {
        let n = x.len();
        let blocks = self.blocks();
        blocks.normalize(simd, at, x, residual);
        let Blocks { x: ones, z, .. } = blocks;
        if let Some(mask) = mask {
            *ones = *z;
            activation::ones(simd, activation, Kinks::of::<E>(), ones, n);
            convert::bits_of_positive(simd, &ones[..n], mask);
        }
        activation::values(simd, activation, z, n);
        &z[..n]
    }

    /// x and `grad_y * activation'(z)`, both in the accumulating type.
    pub fn gradients<E: Element<Acc = A>>(
        &mut self,
        simd: Simd,
        at: At<'_, A>,
        (x, grad_y): (&[E], &[E]),
        derivative: Derivative<'_, E>,
    ) -> (&[A], &[A]) {
        let n = x.len();
        let blocks = self.blocks();
        convert::widen(simd, grad_y, &mut blocks.g[..n]);
        match derivative {
            Derivative::Of(activation, residual) => {
                blocks.normalize(simd, at, x, residual);
                let kinks = Kinks::of::<E>();
                activation::differentiate(simd, activation, kinks, &blocks.z, &mut blocks.g, n);
            }
            Derivative::ByMask(mask, slope) => {
                convert::widen(simd, x, &mut blocks.x[..n]);
                convert::slope(simd, mask, A::from_f64(slope), &mut blocks.g[..n]);
            }
        }
        (&blocks.x[..n], &blocks.g[..n])
    }
}

impl<A: Real> Blocks<A> {
    /// Widens x, and computes z of it.
    fn normalize<E: Element<Acc = A>>(
        &mut self,
        simd: Simd,
        at: At<'_, A>,
        x: &[E],
        residual: Option<&[E]>,
    ) {
        let n = x.len();
        convert::widen(simd, x, &mut self.x[..n]);
        let residual = residual.map(|residual| {
            convert::widen(simd, residual, &mut self.residual[..n]);
            &self.residual[..n]
        });
        let (x, z) = (&self.x[..n], &mut self.z[..n]);
        let work = Work::piece(simd, at, [x, residual.unwrap_or(x)], z);
        normalize(simd, (residual.is_some(), false), work);
    }
}
