//! Blocks as they are: copied, masked, turned into bits, brought to another type.
use super::super::simd::{GROUP, Simd, Store};
use crate::{Element, Real};
use std::sync::atomic::{Ordering, compiler_fence};

/// Copies a block.
pub fn copy<E: Element>(store: Store, from: &[E], to: &mut [E]) {
    store.simd.vectorize(
        #[inline(always)]
        |simd| store.compiled_for(simd).copy(from, to),
    );
}

/// A block in the accumulating type.
pub fn widen<E: Element>(simd: Simd, from: &[E], to: &mut [E::Acc]) {
    simd.vectorize(
        #[inline(always)]
        |simd| {
            let ((groups, rest), (to, to_rest)) = (from.as_chunks(), to.as_chunks_mut());
            for (from, to) in groups.iter().zip(to) {
                *to = simd.widen::<E, GROUP>(from);
                compiler_fence(Ordering::SeqCst);
            }
            to_rest.iter_mut().zip(rest).for_each(|(to, from)| *to = from.widen());
        },
    );
}

/// A block of the accumulating type, rounded.
pub fn narrow<E: Element>(simd: Simd, from: &[E::Acc], to: &mut [E]) {
    simd.vectorize(
        #[inline(always)]
        |simd| {
            let ((groups, rest), (to, to_rest)) = (from.as_chunks(), to.as_chunks_mut());
            for (from, to) in groups.iter().zip(to) {
                *to = simd.narrow::<E, GROUP>(from);
                compiler_fence(Ordering::SeqCst);
            }
            to_rest.iter_mut().zip(rest).for_each(|(to, from)| *to = E::narrow(*from));
        },
    );
}

/// `g = slope * g` where the mask has a 0; 0 if the slope is.
pub fn slope<A: Real>(simd: Simd, mask: &[u8], slope: A, g: &mut [A]) {
    let is_zero = slope == A::default();
    simd.vectorize(
        #[inline(always)]
        |simd| {
            let (eights, rest) = g.as_chunks_mut::<8>();
            let whole = eights.len();
            for (g, &bits) in eights.iter_mut().zip(mask) {
                let mut less = *g;
                for less in &mut less {
                    *less = if is_zero { slope } else { *less * slope };
                }
                let (ones, others) = (simd.keep(bits, g), simd.keep(!bits, &less));
                for l in 0..8 {
                    g[l] = ones[l] + others[l];
                }
            }
            for (k, g) in rest.iter_mut().enumerate() {
                let less = if is_zero { slope } else { *g * slope };
                *g = if mask[whole] >> k & 1 == 1 { *g } else { less };
            }
        },
    );
}

/// `g = grad_y` where the mask has a 1, else 0.
pub fn keep<E: Element>(simd: Simd, mask: &[u8], grad_y: &[E], g: &mut [E]) {
    simd.vectorize(
        #[inline(always)]
        |simd| {
            let (eights, rest) = g.as_chunks_mut::<8>();
            let (eights_y, rest_y) = grad_y.as_chunks::<8>();
            for ((g, grad_y), &bits) in eights.iter_mut().zip(eights_y).zip(mask) {
                *g = simd.keep(bits, grad_y);
            }
            for (k, (g, grad_y)) in rest.iter_mut().zip(rest_y).enumerate() {
                *g = if mask[eights_y.len()] >> k & 1 == 1 { *grad_y } else { E::default() };
            }
        },
    );
}

/// One bit for each output of a ReLU: whether its gradient passes. NaN passes.
pub fn bits_of_positive<E: Element>(simd: Simd, y: &[E], mask: &mut [u8]) {
    simd.vectorize(
        #[inline(always)]
        |simd| {
            let (eights, rest) = y.as_chunks::<8>();
            for (y, bits) in eights.iter().zip(&mut *mask) {
                *bits = simd.positive(&simd.widen(y));
            }
            if !rest.is_empty() {
                let mut last = [E::Acc::default(); 8];
                last.iter_mut().zip(rest).for_each(|(last, y)| *last = y.widen());
                mask[eights.len()] = simd.positive(&last);
            }
        },
    );
}

/// Every `step`th value in f64, 0 for those that are not finite.
pub fn finite_f64<E: Element>(simd: Simd, values: &[E], step: usize, to: &mut [f64]) {
    if step > 1 {
        let values = values.iter().step_by(step);
        return to.iter_mut().zip(values).for_each(|(to, v)| *to = finite(*v));
    }
    simd.vectorize(
        #[inline(always)]
        |_| {
            for (to, v) in to.iter_mut().zip(values) {
                *to = finite(*v);
            }
        },
    );
}

/// The value in f64, 0 if it is not finite.
#[inline(always)]
pub fn finite<E: Element>(value: E) -> f64 {
    let value = value.widen().to_f64();
    if value.is_finite() { value } else { 0.0 }
}
