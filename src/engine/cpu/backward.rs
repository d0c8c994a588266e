//! The backward: sums, then gradients, of a tile while it is in cache.
use super::coefs::Strip;
use super::grad::{self, Gate, Gradients, Read, Source};
use super::lanes::Scratch;
use super::normalize::walk;
use super::plan::{Plan, Tile};
use super::simd::vectorized;
use super::tiles::{Elements, Slots, TileMut, Writer, for_each_tile};
use super::{Cpu, Parameters};
use crate::engine::saved::{Buffers, Forward};
use crate::engine::{Activation, Backward, Input};
use crate::{Element, Host, Real, Shape};
use std::ops::Range;

impl Cpu {
    /// All gradients asked for, after all checks.
    pub(super) fn gradients<E: Element>(
        &self,
        shape: &Shape,
        forward: &Forward,
        saved: &Buffers<Host, E::Acc>,
        args: Backward<'_, Host, E>,
    ) {
        let channels = shape.channels();
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
        let through_own_sums = forward.batch_statistics && total_sums.is_none();
        let frozen = !forward.batch_statistics && total_sums.is_none();
        let coefs = Coefs { shape, parameters, saved, total_sums };
        let writes_tensors = grad_x.is_some() || grad_residual.is_some();
        let outputs = Outputs { read, grad_y, frozen };
        if !(results.any() || through_own_sums && grad_x.is_some()) {
            let plan = &Plan::once(shape);
            let outputs = Outputs { read: Read { plan, ..read }, ..outputs };
            let tensors = (grad_x.map(Elements::new), grad_residual.map(Elements::new));
            return for_each_tile(plan, false, tensors, |tile, tensors| {
                outputs.write(&tile, coefs, None, tensors);
            });
        }
        let (slot_len, kept_len) = (plan.slot_len(), 2 * plan.block_channels());
        let block_len = slot_len * plan.tiles_per_block();
        let slots_len = plan.tiles() * slot_len;
        // The tasks subtract the rounded mean.
        let merge = |block: usize, slots: &mut [f64], kept: &mut [f64]| {
            vectorized(
                #[inline(always)]
                |_| {
                    grad::merge(plan, slots, kept);
                    let (sums, products) = kept.split_at_mut(plan.block_channels());
                    let rests = &saved.mean_rest[plan.channels(block)];
                    for ((sum, product), rest) in sums.iter().zip(products).zip(rests) {
                        *product -= finite(rest.to_f64() * sum);
                    }
                },
            );
        };
        self.with_workspace(slots_len + plan.blocks() * kept_len, |workspace| {
            let (slots, kept) = workspace.split_at_mut(slots_len);
            if plan.whole_channels() {
                let tensors = (grad_x.map(Elements::new), grad_residual.map(Elements::new));
                let kept = Slots::new(kept, kept_len);
                let all = (Slots::new(slots, slot_len), kept, tensors);
                for_each_tile(plan, false, all, |tile, (slot, kept, tensors)| {
                    let grad_y = match (grad_y, &tensors.0) {
                        (Some(g), _) => Source::View(g),
                        (None, Some(grad_x)) => Source::Held(grad_x),
                        (None, None) => Source::View(&[]),
                    };
                    sums_of(read, &tile, grad_y, coefs, slot);
                    merge(tile.block, slot, kept);
                    if writes_tensors {
                        outputs.write(&tile, coefs, Some(kept), tensors);
                    }
                });
            } else {
                let held = grad_y.or(grad_x.as_deref()).unwrap_or_default();
                for_each_tile(plan, false, Slots::new(slots, slot_len), |tile, slot| {
                    sums_of(read, &tile, Source::View(held), coefs, slot);
                });
                let blocks = slots.chunks_mut(block_len).zip(kept.chunks_mut(kept_len));
                for (block, (slots, kept)) in blocks.enumerate() {
                    merge(block, slots, kept);
                }
                if writes_tensors {
                    let tensors = (grad_x.map(Elements::new), grad_residual.map(Elements::new));
                    for_each_tile(plan, true, tensors, |tile, tensors| {
                        let kept = &kept[tile.block * kept_len..][..kept_len];
                        outputs.write(&tile, coefs, Some(kept), tensors);
                    });
                }
            }
            for (block, kept) in kept.chunks(kept_len).enumerate() {
                let (sums, products) = kept.split_at(plan.block_channels());
                let channels = plan.channels(block);
                let sums = channels.zip(sums.iter().zip(products));
                for (c, (sum, product)) in sums {
                    results.set(shape, c, *sum, product * saved.invstd[c].to_f64());
                }
            }
        });
    }
}

/// Step 1 of a tile, compiled once for all cases.
fn sums_of<E: Element>(
    read: Read<'_, E>,
    tile: &Tile,
    grad_y: Source<'_, '_, E>,
    coefs: Coefs<'_, E::Acc>,
    slot: &mut [f64],
) {
    vectorized(
        #[inline(always)]
        |simd| {
            grad::sums(
                simd,
                read,
                tile,
                grad_y,
                #[inline(always)]
                |channels, strip: &mut _| coefs.set(channels, None, strip),
                slot,
            );
        },
    );
}

/// What the rounded mean of a channel makes of something, and the mean does not; nothing where it is
/// not finite, for NaN would hide an infinity.
#[inline(always)]
fn finite(rest: f64) -> f64 {
    if rest.is_finite() { rest } else { 0.0 }
}

/// Where coefficients come from.
#[derive(Clone, Copy)]
struct Coefs<'a, A: Real> {
    shape: &'a Shape,
    parameters: Parameters<'a, A>,
    saved: &'a Buffers<Host, A>,
    total_sums: Option<&'a [A]>,
}

impl<A: Real> Coefs<'_, A> {
    /// Sets those of some channels; `kept` are their sums and products, if they are known.
    #[inline(always)]
    fn set(self, channels: Range<usize>, kept: Option<(&[f64], &[f64])>, strip: &mut Strip<A>) {
        let saved = self.saved;
        let mean = &saved.mean[channels.clone()];
        let rest = &saved.mean_rest[channels.clone()];
        let invstd = &saved.invstd[channels.clone()];
        self.parameters.coefs(
            channels.clone(),
            #[inline(always)]
            |k| (mean[k], rest[k], invstd[k]),
            strip,
        );
        let count = self.shape.channels();
        let (sums, m) = match (self.total_sums, kept) {
            (Some(total), _) => (None, total[2 * count].to_f64()),
            (None, kept) => (kept, self.shape.per_channel() as f64),
        };
        if let Some(total) = self.total_sums {
            let (sum, product) = (&total[channels.clone()], &total[count..][channels.clone()]);
            strip.fill_gradient(
                channels.len(),
                #[inline(always)]
                |k| {
                    let slope = product[k].to_f64() / m * invstd[k].to_f64();
                    gradient(sum[k].to_f64() / m, slope, rest[k])
                },
            );
        } else if let Some((sum, product)) = sums {
            strip.fill_gradient(
                channels.len(),
                #[inline(always)]
                |k| {
                    let invstd = invstd[k].to_f64();
                    gradient(sum[k] / m, product[k] / m * invstd * invstd, rest[k])
                },
            );
        }
    }
}

/// `mean_g` and `slope` of a coefficient.
#[inline(always)]
fn gradient<A: Real>(mean_g: f64, slope: f64, rest: A) -> (A, A) {
    (A::from_f64(mean_g - finite(rest.to_f64() * slope)), A::from_f64(slope))
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
        coefs: Coefs<'_, E::Acc>,
        kept: Option<&[f64]>,
        (grad_x, grad_residual): (Option<TileMut<'_, E>>, Option<TileMut<'_, E>>),
    ) {
        let Outputs { read, grad_y, frozen } = *self;
        let grad_x = grad_x.map(|tile| Writer::new(read.plan, tile, 3, grad_y.is_none()));
        let grad_residual = grad_residual.map(|tile| Writer::new(read.plan, tile, 3, false));
        let (held, gated) = (Scratch::new(), Scratch::new());
        let mut step = Gradients { read, grad_y, frozen, grad_x, grad_residual, held, gated };
        let first = read.plan.channels(tile.block).start;
        vectorized(
            #[inline(always)]
            |simd| {
                walk(
                    simd,
                    read.plan,
                    tile,
                    #[inline(always)]
                    |channels: Range<usize>, strip: &mut _| {
                        let at = channels.start - first..channels.end - first;
                        let kept = kept.map(|kept| {
                            let (sums, products) = kept.split_at(kept.len() / 2);
                            (&sums[at.clone()], &products[at])
                        });
                        coefs.set(channels, kept, strip);
                    },
                    &mut step,
                );
            },
        );
    }
}
