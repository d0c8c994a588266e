//! The training forward: statistics, then normalization, of a tile while it is in cache.
use super::extremes::{self, Extreme};
use super::moments::{self, Merged};
use super::plan::{Plan, Tile};
use super::simd::Simd;
use super::stats;
use super::tiles::{Elements, Slots, for_each_tile};
use super::{Cpu, Output, Parameters, Table, TableMut, mask};
use crate::engine::saved::Buffers;
use crate::{Element, Host, Real, Shape};
use std::ops::Range;

impl Cpu {
    /// Writes y and what is saved; hands every channel's moments to `publish`, in order.
    #[allow(clippy::too_many_arguments)] // after the checks they are just values
    pub(super) fn train<E: Element>(
        &self,
        simd: Simd,
        shape: &Shape,
        x: &[E],
        output: Output<'_, E>,
        parameters: Parameters<'_, E::Acc>,
        eps: f64,
        y: &mut [E],
        mut saved: Option<&mut Buffers<Host, E::Acc>>,
        mut publish: impl FnMut(Range<usize>, Merged<'_>),
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
        let (slot_len, most) = (plan.slot_len(), plan.block_channels());
        let (merged_len, kept_len) =
            (Merged::LEN * most, (Merged::LEN + Table::<E::Acc>::LEN) * most);
        let block_len = slot_len * plan.tiles_per_block();
        let slots_len = plan.tiles() * slot_len;
        let merge = |block: usize, slots: &mut [f64], kept: &mut [f64]| {
            let (merged, memory) = kept.split_at_mut(merged_len);
            merge(simd, shape, plan, block, (x, eps), slots, merged);
            let (channels, merged) = (plan.channels(block), Merged::new(merged, shape));
            simd.vectorize(
                #[inline(always)]
                |_| {
                    TableMut::new(memory, channels).forward(
                        parameters,
                        #[inline(always)]
                        |k| merged.saved(k),
                    );
                },
            );
        };
        self.with_workspace(slots_len + plan.blocks() * kept_len, |workspace| {
            let (slots, kept) = workspace.split_at_mut(slots_len);
            let write = |tile: &Tile, kept: &[f64], (y, mask)| {
                let table = Table::new(&kept[merged_len..], plan.channels(tile.block));
                output.write(simd, plan, tile, &table, y, mask);
            };
            let of_mask = mask(plan, output.masks(), saved.as_deref_mut()).map(Elements::mask);
            let tensors = (Elements::new(&mut *y), of_mask);
            if plan.whole_channels() {
                let outputs = (Slots::new(slots, slot_len), Slots::new(kept, kept_len), tensors);
                for_each_tile(plan, false, outputs, |tile, (slot, kept, tensors)| {
                    moments_of(simd, plan, &tile, x, slot);
                    merge(tile.block, slot, kept);
                    write(&tile, kept, tensors);
                });
            } else {
                for_each_tile(plan, false, Slots::new(slots, slot_len), |tile, slot| {
                    moments_of(simd, plan, &tile, x, slot);
                });
                let blocks = slots.chunks_mut(block_len).zip(kept.chunks_mut(kept_len));
                for (block, (slots, kept)) in blocks.enumerate() {
                    merge(block, slots, kept);
                }
                for_each_tile(plan, true, tensors, |tile, tensors| {
                    write(&tile, &kept[tile.block * kept_len..][..kept_len], tensors);
                });
            }
            let mut extremes = vec![];
            for (block, kept) in kept.chunks(kept_len).enumerate() {
                let (channels, merged) =
                    (plan.channels(block), Merged::new(&kept[..merged_len], shape));
                simd.vectorize(
                    #[inline(always)]
                    |_| {
                        if let Some(saved) = &mut saved {
                            let mean = saved.mean[channels.clone()].iter_mut();
                            let rest = saved.mean_rest[channels.clone()].iter_mut();
                            let invstds = saved.invstd[channels.clone()].iter_mut();
                            for (k, ((mean, rest), saved)) in
                                mean.zip(rest).zip(invstds).enumerate()
                            {
                                (*mean, *rest, *saved) = merged.saved(k);
                            }
                        }
                        extremes.extend(Extreme::among(
                            channels.clone(),
                            parameters,
                            #[inline(always)]
                            |k| merged.mean_and_invstd(k),
                            |k| merged.saved::<E::Acc>(k).1,
                        ));
                        publish(channels, merged);
                    },
                );
            }
            let x = extremes::held(&extremes, shape, x);
            let mask = mask(plan, output.masks(), saved);
            output.write_apart(shape, plan, &extremes, x, y, mask);
        });
    }

    /// Every channel's moments, in order.
    pub(super) fn moments<E: Element>(
        &self,
        simd: Simd,
        shape: &Shape,
        x: &[E],
        mut publish: impl FnMut(Range<usize>, Merged<'_>),
    ) {
        let plan = &Plan::new(shape, size_of::<E>(), 1);
        let (slot_len, kept_len) = (plan.slot_len(), Merged::LEN * plan.block_channels());
        let slots_len = plan.tiles() * slot_len;
        self.with_workspace(slots_len + kept_len, |workspace| {
            let (slots, kept) = workspace.split_at_mut(slots_len);
            for_each_tile(plan, false, Slots::new(slots, slot_len), |tile, slot| {
                moments_of(simd, plan, &tile, x, slot);
            });
            let blocks = slots.chunks_mut(slot_len * plan.tiles_per_block());
            for (block, slots) in blocks.enumerate() {
                merge(simd, shape, plan, block, (x, 0.0), slots, kept);
                publish(plan.channels(block), Merged::new(kept, shape));
            }
        });
    }
}

/// Step 1 of a tile, compiled once for all operations.
fn moments_of<E: Element>(simd: Simd, plan: &Plan, tile: &Tile, x: &[E], slot: &mut [f64]) {
    simd.vectorize(
        #[inline(always)]
        |simd| stats::moments(simd, plan, tile, x, slot),
    );
}

/// And of a block.
fn merge<E: Element>(
    simd: Simd,
    shape: &Shape,
    plan: &Plan,
    block: usize,
    (x, eps): (&[E], f64),
    slots: &mut [f64],
    kept: &mut [f64],
) {
    simd.vectorize(
        #[inline(always)]
        |_| moments::merge(shape, plan, block, (x, eps), slots, kept),
    );
}
