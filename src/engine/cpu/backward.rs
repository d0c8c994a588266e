//! The backward: sums, then gradients, of a tile while it is in cache.
use super::grad::{self, Gate, Gradients, Read};
use super::lanes::{Coef, Scratch};
use super::normalize::walk;
use super::plan::{Plan, Tile};
use super::simd::vectorized;
use super::tiles::{Elements, Slots, TileMut, Writer, clipped, for_each_tile};
use super::{Cpu, Parameters, stats};
use crate::engine::saved::{Buffers, Forward};
use crate::engine::{Activation, Backward, Input};
use crate::{Element, Host, Real, Shape};
use std::ops::Range;

/// Values kept of every channel: `sum(g)`, `sum(g * (x - mean))`.
const KEPT: usize = 2;

impl Cpu {
    /// All gradients asked for, after all checks.
    pub(super) fn gradients<E: Element>(
        &self,
        shape: &Shape,
        forward: &Forward,
        saved: &Buffers<Host, E::Acc>,
        args: Backward<'_, Host, E>,
    ) {
        let (channels, m) = (shape.channels(), shape.per_channel() as f64);
        let Backward { x, grad_y, grad_x, grad_residual, sums, total_sums, .. } = args;
        let mut results = Results {
            sums,
            grad_weight: args.grad_weight,
            grad_bias: args.grad_bias,
            accumulate: args.accumulate,
        };
        if shape.is_empty() {
            return (0..channels).for_each(|c| results.set(shape, c, 0.0, 0.0));
        }
        let plan = &Plan::new(shape, size_of::<E>(), 2);
        let gate = match (forward.activation, &saved.reserve) {
            (Activation::Identity, _) => Gate::Open,
            (Activation::Relu, Some(mask)) if forward.residual => {
                Gate::Mask(&mask[..plan.mask_len()])
            }
            (Activation::Relu, _) => Gate::Recompute,
        };
        let read = Read { plan, x, gate };
        let grad_y = match grad_y {
            Input::View(grad_y) => Some(grad_y),
            Input::InPlace => None,
        };
        let parameters = Parameters { weight: args.weight, bias: args.bias };
        let coef =
            |c: usize| parameters.coef(c, saved.mean[c], saved.mean_rest[c], saved.invstd[c]);
        let through_own_sums = forward.batch_statistics && total_sums.is_none();
        let frozen = !forward.batch_statistics && total_sums.is_none();
        let with_sums = |c: usize, sum: f64, product: f64| -> Coef<E::Acc> {
            let invstd = saved.invstd[c].to_f64();
            let (mean_g, slope) = match total_sums {
                Some(total) => {
                    let m = total[2 * channels].to_f64();
                    (total[c].to_f64() / m, total[channels + c].to_f64() / m * invstd)
                }
                None => (sum / m, product / m * invstd * invstd),
            };
            let mean_g = mean_g - rest_of(saved, c, slope);
            let (mean_g, slope) = (Real::from_f64(mean_g), Real::from_f64(slope));
            Coef { mean_g, slope, ..coef(c) }
        };
        let writes_tensors = grad_x.is_some() || grad_residual.is_some();
        let outputs = Outputs { read, grad_y, frozen };
        if !(results.any() || through_own_sums && grad_x.is_some()) {
            let tensors = (grad_x.map(Elements::new), grad_residual.map(Elements::new));
            return for_each_tile(plan, false, tensors, |tile, tensors| {
                outputs.write(&tile, |c| with_sums(c, 0.0, 0.0), tensors);
            });
        }
        let (slot_len, in_block) = (stats::slot_len(plan), plan.block_channels());
        let slots_len = plan.tiles() * slot_len;
        let kept_len = plan.blocks() * KEPT * in_block;
        self.with_workspace(slots_len + kept_len, |workspace| {
            let (slots, kept) = workspace.split_at_mut(slots_len);
            let keep = |block: usize, kept: &mut [f64], c: usize, (sum, product): (f64, f64)| {
                let k = c - plan.channels(block).start;
                // The tasks subtract the rounded mean.
                let product = product - rest_of(saved, c, sum);
                (kept[k], kept[in_block + k]) = (sum, product);
            };
            let kept_of = |block: usize, kept: &[f64], c: usize| -> (f64, f64) {
                let k = c - plan.channels(block).start;
                (kept[k], kept[in_block + k])
            };
            if plan.whole_channels() {
                let tensors = (grad_x.map(Elements::new), grad_residual.map(Elements::new));
                let kept = Slots::new(kept, KEPT * in_block);
                let all = (Slots::new(slots, slot_len), kept, tensors);
                for_each_tile(plan, false, all, |tile, (slot, kept, tensors)| {
                    let held = |row: usize, cols: Range<usize>| match (grad_y, &tensors.0) {
                        (Some(g), _) => &g[clipped(row, cols, plan.width, g.len())],
                        (None, Some(grad_x)) => grad_x.row(row, cols),
                        (None, None) => &[],
                    };
                    vectorized(
                        #[inline(always)]
                        || grad::sums(read, &tile, held, coef, slot),
                    );
                    for c in plan.channels(tile.block) {
                        keep(tile.block, kept, c, grad::merged(plan, tile.block, c, |_| slot));
                    }
                    if writes_tensors {
                        let coef = |c: usize| {
                            let (sum, product) = kept_of(tile.block, kept, c);
                            with_sums(c, sum, product)
                        };
                        outputs.write(&tile, coef, tensors);
                    }
                });
            } else {
                let held = grad_y.or(grad_x.as_deref()).unwrap_or_default();
                for_each_tile(plan, false, Slots::new(slots, slot_len), |tile, slot| {
                    let held = |row: usize, cols: Range<usize>| {
                        &held[clipped(row, cols, plan.width, held.len())]
                    };
                    vectorized(
                        #[inline(always)]
                        || grad::sums(read, &tile, held, coef, slot),
                    );
                });
                for (block, kept) in kept.chunks_mut(KEPT * in_block).enumerate() {
                    let slot = |index: usize| &slots[index * slot_len..][..slot_len];
                    for c in plan.channels(block) {
                        keep(block, kept, c, grad::merged(plan, block, c, slot));
                    }
                }
                if writes_tensors {
                    let tensors = (grad_x.map(Elements::new), grad_residual.map(Elements::new));
                    for_each_tile(plan, true, tensors, |tile, tensors| {
                        let kept = &kept[tile.block * KEPT * in_block..][..KEPT * in_block];
                        let coef = |c: usize| {
                            let (sum, product) = kept_of(tile.block, kept, c);
                            with_sums(c, sum, product)
                        };
                        outputs.write(&tile, coef, tensors);
                    });
                }
            }
            for (block, kept) in kept.chunks(KEPT * in_block).enumerate() {
                for c in plan.channels(block) {
                    let (sum, product) = kept_of(block, kept, c);
                    results.set(shape, c, sum, product * saved.invstd[c].to_f64());
                }
            }
        });
    }
}

/// What the rounded mean of a channel makes of `factor`, and the mean does not; nothing where it is
/// not finite, for NaN would hide an infinity.
fn rest_of<A: Real>(saved: &Buffers<Host, A>, c: usize, factor: f64) -> f64 {
    let rest = saved.mean_rest[c].to_f64() * factor;
    if rest.is_finite() { rest } else { 0.0 }
}

/// The outputs that are one value per channel.
struct Results<'a, A> {
    sums: Option<&'a mut [A]>,
    grad_weight: Option<&'a mut [A]>,
    grad_bias: Option<&'a mut [A]>,
    accumulate: bool,
}

impl<A: Real> Results<'_, A> {
    fn any(&self) -> bool {
        self.sums.is_some() || self.grad_weight.is_some() || self.grad_bias.is_some()
    }
    /// `sum(g)` and `sum(g * xhat)` of channel `c`.
    fn set(&mut self, shape: &Shape, c: usize, sum_g: f64, sum_g_xhat: f64) {
        let channels = shape.channels();
        if let Some(sums) = &mut self.sums {
            (sums[c], sums[channels + c]) = (A::from_f64(sum_g), A::from_f64(sum_g_xhat));
            sums[2 * channels] = A::from_f64(shape.per_channel() as f64);
        }
        for (out, sum) in [(&mut self.grad_weight, sum_g_xhat), (&mut self.grad_bias, sum_g)] {
            if let Some(out) = out {
                let before = if self.accumulate { out[c].to_f64() } else { 0.0 };
                out[c] = A::from_f64(before + sum);
            }
        }
    }
}

/// How the tensors are written.
#[derive(Clone, Copy)]
struct Outputs<'a, E> {
    read: Read<'a, E>,
    grad_y: Option<&'a [E]>,
    frozen: bool,
}

impl<E: Element> Outputs<'_, E> {
    fn write(
        &self,
        tile: &Tile,
        coef: impl Fn(usize) -> Coef<E::Acc>,
        (grad_x, grad_residual): (Option<TileMut<'_, E>>, Option<TileMut<'_, E>>),
    ) {
        let Outputs { read, grad_y, frozen } = *self;
        let scratch = Scratch::new();
        let grad_x = grad_x.map(|tile| Writer::new(read.plan, tile, grad_y.is_none()));
        let grad_residual = grad_residual.map(|tile| Writer::new(read.plan, tile, false));
        let mut step = Gradients { read, grad_y, frozen, grad_x, grad_residual, scratch };
        vectorized(
            #[inline(always)]
            || walk(read.plan, tile, coef, &mut step),
        );
    }
}
