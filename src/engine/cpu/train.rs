//! The training forward: statistics, then normalization, of a tile while it is in cache.
use super::lanes::Coef;
use super::plan::Plan;
use super::simd::vectorized;
use super::stats::{self, Moments};
use super::tiles::{Elements, Slots, for_each_tile};
use super::{Cpu, Output, Parameters, mask};
use crate::engine::saved::Buffers;
use crate::{Element, Host, Real, Shape};

/// Values kept of every channel: the mean as base and offset, the sum of squares, and
/// `1 / sqrt(var + eps)`.
const KEPT: usize = 4;

impl Cpu {
    /// Writes y and what is saved; hands every channel's moments to `publish`, in order.
    #[allow(clippy::too_many_arguments)] // after the checks they are just values
    pub(super) fn train<E: Element>(
        &self,
        shape: &Shape,
        x: &[E],
        output: Output<'_, E>,
        parameters: Parameters<'_, E::Acc>,
        eps: f64,
        y: &mut [E],
        mut saved: Option<&mut Buffers<Host, E::Acc>>,
        mut publish: impl FnMut(usize, Moments),
    ) {
        if shape.is_empty() {
            if let Some(saved) = saved {
                saved.mean.fill(Real::from_f64(0.0));
                saved.mean_rest.fill(Real::from_f64(0.0));
                saved.invstd.fill(Real::from_f64(1.0 / eps.sqrt()));
            }
            return;
        }
        let plan = &Plan::new(shape, size_of::<E>(), 1);
        let (slot_len, in_block) = (stats::slot_len(plan), plan.block_channels());
        let slots_len = plan.tiles() * slot_len;
        let kept_len = plan.blocks() * KEPT * in_block;
        self.with_workspace(slots_len + kept_len, |workspace| {
            let (slots, kept) = workspace.split_at_mut(slots_len);
            let count = shape.per_channel() as f64;
            let keep = |block: usize, kept: &mut [f64], c: usize, moments: Moments| {
                let Moments { base, offset, squares, .. } = moments;
                let invstd = 1.0 / (moments.var() + eps).sqrt();
                let k = c - plan.channels(block).start;
                for (field, value) in [base, offset, squares, invstd].into_iter().enumerate() {
                    kept[field * in_block + k] = value;
                }
            };
            let kept_of = |block: usize, kept: &[f64], c: usize| -> (Moments, E::Acc) {
                let k = c - plan.channels(block).start;
                let [base, offset, squares, invstd] =
                    [0, 1, 2, 3].map(|field| kept[field * in_block + k]);
                (Moments { count, base, offset, squares }, Real::from_f64(invstd))
            };
            let coef = |block: usize, kept: &[f64], c: usize| -> Coef<E::Acc> {
                let (moments, invstd) = kept_of(block, kept, c);
                let (mean, mean_rest) = moments.mean_and_rest();
                parameters.coef(c, mean, mean_rest, invstd)
            };
            let tensors = (Elements::new(y), mask(plan, output.masks(), saved.as_deref_mut()));
            if plan.whole_channels() {
                let outputs =
                    (Slots::new(slots, slot_len), Slots::new(kept, KEPT * in_block), tensors);
                for_each_tile(plan, false, outputs, |tile, (slot, kept, (y, mask))| {
                    vectorized(
                        #[inline(always)]
                        || stats::moments(plan, &tile, x, slot),
                    );
                    for c in plan.channels(tile.block) {
                        let moments = stats::merged(shape, plan, (tile.block, c), x, |_| slot);
                        keep(tile.block, kept, c, moments);
                    }
                    output.write(plan, &tile, |c| coef(tile.block, kept, c), y, mask);
                });
            } else {
                for_each_tile(plan, false, Slots::new(slots, slot_len), |tile, slot| {
                    vectorized(
                        #[inline(always)]
                        || stats::moments(plan, &tile, x, slot),
                    );
                });
                for (block, kept) in kept.chunks_mut(KEPT * in_block).enumerate() {
                    let slot = |index: usize| &slots[index * slot_len..][..slot_len];
                    for c in plan.channels(block) {
                        keep(block, kept, c, stats::merged(shape, plan, (block, c), x, slot));
                    }
                }
                for_each_tile(plan, true, tensors, |tile, (y, mask)| {
                    let kept = &kept[tile.block * KEPT * in_block..][..KEPT * in_block];
                    output.write(plan, &tile, |c| coef(tile.block, kept, c), y, mask);
                });
            }
            for (block, kept) in kept.chunks(KEPT * in_block).enumerate() {
                for c in plan.channels(block) {
                    let (moments, invstd) = kept_of(block, kept, c);
                    if let Some(saved) = &mut saved {
                        (saved.mean[c], saved.mean_rest[c]) = moments.mean_and_rest();
                        saved.invstd[c] = invstd;
                    }
                    publish(c, moments);
                }
            }
        });
    }

    /// Every channel's moments, in order.
    pub(super) fn moments<E: Element>(
        &self,
        shape: &Shape,
        x: &[E],
        mut publish: impl FnMut(usize, Moments),
    ) {
        if shape.is_empty() {
            return (0..shape.channels()).for_each(|c| publish(c, Moments::default()));
        }
        let plan = &Plan::new(shape, size_of::<E>(), 1);
        let slot_len = stats::slot_len(plan);
        self.with_workspace(plan.tiles() * slot_len, |slots| {
            for_each_tile(plan, false, Slots::new(slots, slot_len), |tile, slot| {
                vectorized(
                    #[inline(always)]
                    || stats::moments(plan, &tile, x, slot),
                );
            });
            for block in 0..plan.blocks() {
                let slot = |index: usize| &slots[index * slot_len..][..slot_len];
                for c in plan.channels(block) {
                    publish(c, stats::merged(shape, plan, (block, c), x, slot));
                }
            }
        });
    }
}
