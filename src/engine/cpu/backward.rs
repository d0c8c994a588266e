//! The backward: sums, then gradients, of a tile while it is in cache.
use super::extremes::{self, Extreme};
use super::grad::{self, Gate, Gradients, Read, Source};
use super::lanes::Scratch;
use super::normalize::walk;
use super::plan::{Plan, Tile};
use super::simd::Simd;
use super::tiles::{Elements, Slots, TileMut, Writer, for_each_tile};
use super::{Cpu, Parameters, Table, TableMut};
use crate::engine::saved::{Buffers, Forward};
use crate::engine::{Activation, Backward, Input};
use crate::{DType, Element, Host, Real, Shape};
use std::ops::Range;

impl Cpu {
    /// All gradients asked for, after all checks.
    pub(super) fn gradients<E: Element>(
        &self,
        simd: Simd,
        shape: &Shape,
        forward: &Forward,
        saved: &Buffers<Host, E::Acc>,
        args: Backward<'_, Host, E>,
    ) {
        let channels = shape.channels();
        let Backward { x, grad_y, mut grad_x, mut grad_residual, sums, total_sums, .. } = args;
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
            (_, _) => Gate::Recompute,
        };
        let read = Read { plan, x, gate };
        let grad_y = match grad_y {
            Input::View(grad_y) => Some(grad_y),
            Input::InPlace => None,
        };
        let parameters = Parameters::saved(saved);
        let through_own_sums = forward.batch_statistics && total_sums.is_none();
        let frozen = !forward.batch_statistics && total_sums.is_none();
        let coefs = Coefs { shape, parameters, saved, total_sums };
        let writes_tensors = grad_x.is_some() || grad_residual.is_some();
        let extremes = &Extreme::of_saved(simd, saved)[..];
        // What the loops are about to overwrite.
        let held = match (grad_y, &grad_x) {
            (Some(grad_y), _) => extremes::held(extremes, shape, grad_y),
            (None, Some(grad_x)) => extremes::held(extremes, shape, grad_x),
            (None, None) => vec![],
        };
        let apart = extremes::Backward { shape, plan, x, gate, grad_y: held };
        let outputs = Outputs { read, grad_y, frozen };
        if !(results.any() || through_own_sums && grad_x.is_some()) {
            let plan = &Plan::once(shape);
            let outputs = Outputs { read: Read { plan, ..read }, ..outputs };
            let of_x = grad_x.as_deref_mut().map(Elements::new);
            let tensors = (of_x, grad_residual.as_deref_mut().map(Elements::new));
            self.with_workspace(Table::<E::Acc>::LEN * channels, |memory| {
                coefs.forward(simd, 0..channels, memory);
                coefs.gradient(simd, 0..channels, None, memory);
                let table = Table::new(memory, 0..channels);
                for_each_tile(plan, false, tensors, |tile, tensors| {
                    outputs.write(simd, &tile, &table, tensors);
                });
            });
            for (k, e) in extremes.iter().enumerate() {
                let through = coefs.of_total(e.c);
                let to = (grad_x.as_deref_mut(), grad_residual.as_deref_mut());
                apart.write(e, k, through, to);
            }
            return;
        }
        let (slot_len, most) = (plan.slot_len(), plan.block_channels());
        let kept_len = (2 + Table::<E::Acc>::LEN) * most;
        let block_len = slot_len * plan.tiles_per_block();
        let slots_len = plan.tiles() * slot_len;
        let start = |block: usize, kept: &mut [f64]| {
            coefs.forward(simd, plan.channels(block), &mut kept[2 * most..]);
        };
        let sums = |tile: &Tile, grad_y: Source<'_, '_, E>, kept: &[f64], slot: &mut [f64]| {
            let table = Table::new(&kept[2 * most..], plan.channels(tile.block));
            sums_of(simd, read, tile, grad_y, &table, slot);
        };
        let merge = |block, grad_y: Source<'_, '_, E>, slots: &mut [f64], kept: &mut [f64]| {
            let (kept, memory) = kept.split_at_mut(2 * most);
            merge_sums(simd, plan, block, saved, slots, kept);
            for (k, c) in plan.channels(block).enumerate() {
                let extreme = extremes.iter().find(|e| e.c == c);
                if extreme.is_some() || is_lost::<E>(kept[k], kept[most + k]) {
                    let coef = Table::new(memory, plan.channels(block)).at(c);
                    let normalize = |x| extreme.map_or(coef.normalize(x), |e| e.normalize(x));
                    let by = Extreme::of_channel(saved, c);
                    let elements = shape.channel(c);
                    let xhat = |x| by.xhat(x);
                    (kept[k], kept[most + k]) =
                        grad::wide_sums(read, elements, grad_y, normalize, xhat);
                }
            }
            coefs.gradient(simd, plan.channels(block), Some(kept.split_at(most)), memory);
        };
        let write = |tile: &Tile, kept: &[f64], tensors: Parts<'_, E>| {
            let table = Table::new(&kept[2 * most..], plan.channels(tile.block));
            outputs.write(simd, tile, &table, tensors);
        };
        self.with_workspace(slots_len + plan.blocks() * kept_len, |workspace| {
            let (slots, kept) = workspace.split_at_mut(slots_len);
            if plan.whole_channels() {
                let of_x = grad_x.as_deref_mut().map(Elements::new);
                let tensors = (of_x, grad_residual.as_deref_mut().map(Elements::new));
                let kept = Slots::new(kept, kept_len);
                let all = (Slots::new(slots, slot_len), kept, tensors);
                for_each_tile(plan, false, all, |tile, (slot, kept, tensors)| {
                    let grad_y = match (grad_y, &tensors.0) {
                        (Some(g), _) => Source::View(g),
                        (None, Some(grad_x)) => Source::Held(grad_x),
                        (None, None) => Source::View(&[]),
                    };
                    start(tile.block, kept);
                    sums(&tile, grad_y, kept, slot);
                    merge(tile.block, grad_y, slot, kept);
                    if writes_tensors {
                        write(&tile, kept, tensors);
                    }
                });
            } else {
                let held = grad_y.or(grad_x.as_deref()).unwrap_or_default();
                let of = |tile: &Tile| tile.block * kept_len..(tile.block + 1) * kept_len;
                kept.chunks_mut(kept_len).enumerate().for_each(|(block, kept)| start(block, kept));
                for_each_tile(plan, false, Slots::new(slots, slot_len), |tile, slot| {
                    sums(&tile, Source::View(held), &kept[of(&tile)], slot);
                });
                let blocks = slots.chunks_mut(block_len).zip(kept.chunks_mut(kept_len));
                for (block, (slots, kept)) in blocks.enumerate() {
                    merge(block, Source::View(held), slots, kept);
                }
                if writes_tensors {
                    let of_x = grad_x.as_deref_mut().map(Elements::new);
                    let tensors = (of_x, grad_residual.as_deref_mut().map(Elements::new));
                    for_each_tile(plan, true, tensors, |tile, tensors| {
                        write(&tile, &kept[of(&tile)], tensors);
                    });
                }
            }
            for (block, kept) in kept.chunks(kept_len).enumerate() {
                let (sums, products) = kept[..2 * most].split_at(most);
                let channels = plan.channels(block);
                let sums = channels.zip(sums.iter().zip(products));
                for (c, (sum, product)) in sums {
                    results.set(shape, c, *sum, *product);
                    let Some(k) = extremes.iter().position(|e| e.c == c) else { continue };
                    let m = shape.per_channel() as f64;
                    let own = forward.batch_statistics.then_some((sum / m, product / m));
                    let through = coefs.of_total(c).or(own);
                    let to = (grad_x.as_deref_mut(), grad_residual.as_deref_mut());
                    apart.write(&extremes[k], k, through, to);
                }
            }
        });
    }
}

/// Step 1 of a tile, compiled once for all cases.
fn sums_of<E: Element>(
    simd: Simd,
    read: Read<'_, E>,
    tile: &Tile,
    grad_y: Source<'_, '_, E>,
    table: &Table<'_, E::Acc>,
    slot: &mut [f64],
) {
    simd.vectorize(
        #[inline(always)]
        |simd| grad::sums(simd, read, tile, grad_y, table, slot),
    );
}

/// And of a block: `sum(g)` and `sum(g * xhat)`. The tasks subtract the rounded mean.
fn merge_sums<A: Real>(
    simd: Simd,
    plan: &Plan,
    block: usize,
    saved: &Buffers<Host, A>,
    slots: &mut [f64],
    kept: &mut [f64],
) {
    simd.vectorize(
        #[inline(always)]
        |_| {
            grad::merge(plan, slots, kept);
            let (sums, products) = kept.split_at_mut(plan.block_channels());
            let channels = plan.channels(block);
            let by = saved.mean_rest[channels.clone()].iter().zip(&saved.invstd[channels]);
            for ((sum, product), (rest, invstd)) in sums.iter().zip(products).zip(by) {
                *product = (*product - finite(rest.to_f64() * sum)) * invstd.to_f64();
            }
        },
    );
}

/// Whether a channel's sums are to be made again, in f64: where they are not finite (an infinity or a
/// NaN among the values, or sums and products beyond the type). That of halves cannot be beyond f32.
fn is_lost<E: Element>(sum: f64, product: f64) -> bool {
    if sum.is_finite() { !product.is_finite() } else { E::DTYPE != DType::F16 }
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
    /// Means of a channel's `g` and `g * xhat` over all parts of a batch.
    fn of_total(self, c: usize) -> Option<(f64, f64)> {
        let (total, count) = (self.total_sums?, self.shape.channels());
        let m = total[2 * count].to_f64();
        Some((total[c].to_f64() / m, total[count + c].to_f64() / m))
    }
    /// What the forward took, in a table's memory.
    fn forward(self, simd: Simd, channels: Range<usize>, memory: &mut [f64]) {
        let Buffers { mean, mean_rest, invstd, .. } = self.saved;
        let [mean, rest, invstd] = [mean, mean_rest, invstd].map(|field| &field[channels.clone()]);
        simd.vectorize(
            #[inline(always)]
            |_| {
                TableMut::new(memory, channels).forward(
                    self.parameters,
                    #[inline(always)]
                    |k| (mean[k], rest[k], invstd[k]),
                );
            },
        );
    }
    /// And what the gradient of the statistics takes, if it is asked for and their sums are known:
    /// `kept` are those of this batch, and their products.
    fn gradient(
        self,
        simd: Simd,
        channels: Range<usize>,
        kept: Option<(&[f64], &[f64])>,
        memory: &mut [f64],
    ) {
        let Buffers { mean_rest, invstd, .. } = self.saved;
        let (rest, invstd) = (&mean_rest[channels.clone()], &invstd[channels.clone()]);
        let table = TableMut::new(memory, channels.clone());
        simd.vectorize(
            #[inline(always)]
            |_| {
                if let Some(total) = self.total_sums {
                    let count = self.shape.channels();
                    let m = total[2 * count].to_f64();
                    let (sum, product) =
                        (&total[channels.clone()], &total[count..][channels.clone()]);
                    table.gradient(
                        #[inline(always)]
                        |k| {
                            let slope = product[k].to_f64() / m * invstd[k].to_f64();
                            gradient(sum[k].to_f64() / m, slope, rest[k])
                        },
                    );
                } else if let Some((sum, product)) = kept {
                    let m = self.shape.per_channel() as f64;
                    table.gradient(
                        #[inline(always)]
                        |k| {
                            let invstd = invstd[k].to_f64();
                            gradient(sum[k] / m, product[k] / m * invstd, rest[k])
                        },
                    );
                }
            },
        );
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

/// A tile's part of the gradients of x and the residual.
type Parts<'a, E> = (Option<TileMut<'a, E>>, Option<TileMut<'a, E>>);

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
        simd: Simd,
        tile: &Tile,
        table: &Table<'_, E::Acc>,
        (grad_x, grad_residual): Parts<'_, E>,
    ) {
        let Outputs { read, grad_y, frozen } = *self;
        let grad_x = grad_x.map(|tile| Writer::new(read.plan, tile, 3, grad_y.is_none()));
        let grad_residual = grad_residual.map(|tile| Writer::new(read.plan, tile, 3, false));
        let (held, gated) = (Scratch::new(), Scratch::new());
        let mut step = Gradients { read, grad_y, frozen, grad_x, grad_residual, held, gated };
        simd.vectorize(
            #[inline(always)]
            |simd| walk(simd, read.plan, tile, table, &mut step),
        );
    }
}
