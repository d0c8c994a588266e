//! The first pass of a training forward with a mask: mean and variance of the values that count.
//!
//! What [`stats`](super::stats) does, with a number of values beside every sum. Rows and blocks of which all
//! values count are read as they are, those of which none does are not read, and in others what does not count has
//! a distance of 0.
use super::Cpu;
use super::kernels::masked;
use super::masked::Masked;
use super::moments::{Merged, Moments, small_squares, wide_moments_of};
use super::plan::{Plan, Tile};
use super::ranges::ChannelRanges;
use super::simd::Simd;
use super::slots::{self, Columns, scratch_len};
use super::table::split_mut;
use super::tiles::by_range::{Channels, for_each_range};
use super::tiles::{Slots, for_each_tile};
use crate::engine::ops::MaskRules;
use crate::engine::{Mask, OneValue, Running};
use crate::{AllMasked, Element, Host, Real, Result, Shape};
use std::ops::Range;

mod columns;
mod runs;
mod segments;

/// What a task reads.
#[derive(Clone, Copy)]
struct Read<'a, E> {
    simd: Simd,
    plan: &'a Plan,
    x: &'a [E],
    mask: &'a Masked<'a>,
}

/// Offsets of the mean, sums of squares and numbers of values, for each channel or column of a tile.
type Sums<'s> = [&'s mut [f64]; 3];

/// Whether sums are made for each channel, or for each column.
fn by_channel(plan: &Plan, mask: &Masked<'_>) -> bool {
    plan.long_runs || mask.of_runs().is_some()
}

/// [`Sums`] of a tile's channels, or of its columns, each at the start of a third of `slot`.
pub(super) fn moments<E: Element>(
    simd: Simd,
    plan: &Plan,
    tile: &Tile,
    (x, mask): (&[E], &Masked<'_>),
    slot: &mut [f64],
) {
    slot.fill(0.0);
    let read = Read { simd, plan, x, mask };
    let third = slot.len() / 3;
    let (offsets, rest) = slot.split_at_mut(third);
    let (squares, totals) = rest.split_at_mut(third);
    let to = [offsets, squares, totals];
    if plan.long_runs {
        segments::sums(read, tile, to);
    } else if let Some(patterns) = mask.of_runs() {
        runs::sums(read, patterns, tile, to);
    } else if let Some(bytes) = mask.of_positions(plan) {
        columns::sums_of_positions(read, bytes, tile, to);
    } else {
        columns::sums(read, tile, to);
    }
}

/// Some values: the sums of their distances from a pivot, and of the squares of those.
fn moments_about(base: f64, pivot: f64, (sum, squares, count): (f64, f64, f64)) -> Moments {
    if count == 0.0 {
        return Moments { base, ..Moments::default() };
    }
    let squares = squares - sum * sum / count;
    let squares = if squares < 0.0 { 0.0 } else { squares }; // NaN stays
    Moments { count, base, offset: (pivot - base) + sum / count, squares }
}

/// Merges the sums of some channels into `merged`, which has room for them, mean and squares by the mask's own
/// count: see [`Merged`].
pub(super) fn merge<E: Element>(
    simd: Simd,
    (shape, plan): (&Shape, &Plan),
    mut sums: slots::Sums<'_>,
    (x, mask, eps): (&[E], &Masked<'_>, f64),
    merged: &mut [f64],
) {
    let channels = sums.channels.clone();
    let [bases, offsets, squares, invstds] = Merged::split_mut(merged);
    let (has_small_eps, small_var) = small_squares::<E::Acc>(eps);
    let of_channel = merge_tiles(simd, (plan, mask), &mut sums);
    for (k, c) in channels.enumerate() {
        let (base, count) = (mask.base(c), mask.count(c));
        if count == 0.0 {
            let value = if mask.all_masked == AllMasked::Nan { f64::NAN } else { 0.0 };
            (bases[k], offsets[k], squares[k]) = (0.0, value, value);
            invstds[k] = 1.0 / (value + eps).sqrt();
            continue;
        }
        let mut all = of_channel(k, base);
        let mut std = None;
        let is_small = has_small_eps && all.squares < count * small_var;
        if is_small || !all.squares.is_finite() {
            let from = if is_small { base } else { 0.0 };
            let values = || shape.channel(c).filter(|&i| mask.keeps(i));
            let values = || values().map(|i| x[i].widen().to_f64());
            let (wide, of_all) = wide_moments_of(values, count, from);
            (all, std) = (wide, Some(of_all));
        }
        let n = mask.divisor(c);
        let less = all.mean() * mask.share(c);
        let more = if less == 0.0 { 0.0 } else { count * less * less };
        (bases[k], offsets[k], squares[k]) = (all.base, all.offset - less, all.squares + more);
        invstds[k] = match std {
            Some(std) => {
                let std = std * (count / n).sqrt();
                1.0 / f64::hypot(f64::hypot(std, less * (count / n).sqrt()), eps.sqrt())
            }
            None => 1.0 / (squares[k] / n + eps).sqrt(),
        };
    }
}

/// The same, for what tasks have summed: the moments of these channels, counted from a base that is given.
fn merge_tiles<'s>(
    simd: Simd,
    (plan, mask): (&Plan, &Masked<'_>),
    sums: &'s mut slots::Sums<'_>,
) -> impl Fn(usize, f64) -> Moments + use<'s> {
    let columns = match (by_channel(plan, mask), mask.of_positions(plan).is_some()) {
        (true, _) => Columns::CHANNELS,
        // Sums of positions are those of all joined rows.
        (false, true) => Columns { joined: 1, ..Columns::of(plan) },
        (false, false) => Columns::of(plan),
    };
    let [offsets, squares, totals] =
        sums.merged(0, columns, |to, from, _| masked::merge(simd, to, from));
    move |k, base| {
        let mut all = Moments { base, ..Moments::default() };
        for j in k * columns.inner..(k + 1) * columns.inner {
            let (offset, squares, count) = (offsets[j], squares[j], totals[j]);
            all.append(Moments { count, base, offset, squares });
        }
        all
    }
}

/// Means, their rests, biased variances and numbers of the values that count, length 4C.
pub(super) fn stats<E: Element>(
    cpu: &Cpu,
    shape: &Shape,
    x: &[E],
    mask: &Mask<'_, Host>,
) -> Result<Vec<f64>> {
    let (simd, channels) = (cpu.simd()?, shape.channels());
    let mut all = vec![0.0; 4 * channels];
    if shape.is_empty() {
        return Ok(all);
    }
    let plan = &Plan::new(shape, size_of::<E>(), 1);
    // A count of its own is for whoever knows those of all parts.
    let rules = MaskRules { count_eps: 0.0, all_masked: AllMasked::Keep, ..mask.rules() };
    let given = Some((rules, mask.places));
    Masked::with((cpu, simd), (shape, plan), given, x, None, |mask| {
        let Some(mask) = mask else { return };
        let (slot_len, each) = (plan.slot_len() / 2 * 3, Merged::FIELDS + scratch_len(plan, 3));
        let slots_len = plan.tiles() * slot_len;
        cpu.with_workspace(slots_len + channels * each, |workspace| {
            let ranges = ChannelRanges::new(plan, workspace.len());
            let (slots, work) = workspace.split_at_mut(slots_len);
            for_each_tile(plan, false, &mut Slots::new(slots, slot_len), |tile, slot| {
                moments(simd, plan, &tile, (x, mask), slot);
            });
            let fields: [_; 4] = split_mut(&mut all, channels);
            let mut parts = (fields.map(Channels::new), Channels::several(work, each));
            for_each_range(&ranges, &mut parts, |i, ([means, rests, vars, counts], work)| {
                let channels = ranges.channels(i);
                let (merged, scratch) = work.split_at_mut(channels.len() * Merged::FIELDS);
                let sums = slots::Sums::of_range(&ranges, i, (slots, slot_len), scratch);
                // No invstd is wanted.
                merge(simd, (shape, plan), sums, (x, mask, 0.0), merged);
                let (merged, mut record) = (Merged::new(merged, shape), [means, rests, vars]);
                for (k, c) in channels.enumerate() {
                    counts[k] = mask.count(c);
                    Moments { count: counts[k], ..merged.get(k) }.write(&mut record, k);
                }
            });
        });
    })?;
    Ok(all)
}

/// A record of them by the mask's own rules.
pub(super) fn record<E: Element>(
    cpu: &Cpu,
    shape: &Shape,
    x: &[E],
    mask: &Mask<'_, Host>,
    record: &mut [f64],
) -> Result<()> {
    let (channels, rules, all) = (shape.channels(), mask.rules(), stats(cpu, shape, x, mask)?);
    for c in 0..channels {
        let by = rules.statistics([0, 1, 2, 3].map(|k| all[k * channels + c]));
        (0..3).for_each(|k| record[k * channels + c] = by[k]);
    }
    record[3 * channels] = rules.recorded(all[3 * channels]);
    Ok(())
}

/// Moves the running statistics of some channels by what [`merge`] has written of them.
pub(super) fn update<P: Real>(
    running: &mut Running<'_, Host, P>,
    channels: Range<usize>,
    merged: &Merged<'_>,
    mask: &Masked<'_>,
    one_value: OneValue,
) {
    for (k, c) in channels.enumerate() {
        let (mean, squares) = (merged.base[k] + merged.offset[k], merged.squares[k]);
        let rules = (one_value, mask.all_masked);
        let var_over = |over: f64| squares / mask.over(over);
        running.update_masked(k, mask.count(c), mean, var_over, rules);
    }
}
