//! Moments, and how those of tiles, columns and runs become those of channels: by Chan's formula, in
//! f64.
use super::extremes::power_below;
use super::kernels::convert::{finite, finite_f64};
use super::kernels::moments as merging;
use super::plan::Plan;
use super::simd::Simd;
use super::slots::{Columns, Step, Sums};
use super::table::split_mut;
use crate::{DType, Element, Real, Shape};

/// Count, mean, and sum of squared differences from the mean.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Moments {
    pub count: f64,
    /// A value near the mean: the same one in all that are merged.
    pub base: f64,
    /// Mean less `base`. In two numbers the mean keeps digits that one f64 has not.
    pub offset: f64,
    pub squares: f64,
}

impl Moments {
    /// What a record says of a channel.
    pub fn of_record(record: &[f64], channels: usize, c: usize) -> Self {
        let [base, offset, var] = [0, 1, 2].map(|k| record[k * channels + c]);
        let count = record[3 * channels];
        Self { count, base, offset, squares: var * count }
    }
    /// Writes it into the arrays of a record, all but the count, as channel `k` of theirs.
    pub fn write(&self, [means, rests, vars]: &mut [&mut [f64]; 3], k: usize) {
        (means[k], rests[k]) = self.mean_and_rest();
        vars[k] = self.var();
    }
    /// The same, its mean as a distance from another value.
    pub fn counted_from(self, base: f64) -> Self {
        Self { base, offset: (self.base - base) + self.offset, ..self }
    }
    /// Chan's formula. What is empty changes nothing.
    pub fn merge(&mut self, other: Moments) {
        if other.count == 0.0 {
            return;
        }
        let count = self.count + other.count;
        let (delta, share) = (other.offset - self.offset, other.count / count);
        self.offset += delta * share;
        self.squares += other.squares + delta * delta * self.count * share;
        self.count = count;
    }
    /// As `merge`; an empty `self` may have a mean that is a guess.
    pub fn append(&mut self, other: Moments) {
        match self.count > 0.0 {
            true => self.merge(other),
            false => *self = other,
        }
    }
    pub fn mean(&self) -> f64 {
        self.base + self.offset
    }
    /// The mean rounded to `A`, and what that leaves; nothing where it is not finite.
    pub fn mean_and_rest<A: Real>(&self) -> (A, A) {
        let mean = A::from_f64(self.mean());
        let rest = (self.base - mean.to_f64()) + self.offset;
        (mean, A::from_f64(if rest.is_finite() { rest } else { 0.0 }))
    }
    /// Biased; 0 for an empty batch.
    pub fn var(&self) -> f64 {
        self.squares / self.count.max(1.0)
    }
}

/// What the offsets of a channel's mean count from: its first value.
pub(super) fn base<E: Element>(plan: &Plan, x: &[E], c: usize) -> f64 {
    finite(x[c * plan.inner()])
}

/// What the channels of some memory come to, an array for each field.
#[derive(Clone, Copy)]
pub(super) struct Merged<'a> {
    pub base: &'a [f64],
    pub offset: &'a [f64],
    pub squares: &'a [f64],
    /// Once for the coefficients and for what is saved.
    pub invstd: &'a [f64],
    count: f64,
}

impl<'a> Merged<'a> {
    /// Arrays that it consists of.
    pub const FIELDS: usize = 4;
    /// Room for them.
    pub fn split_mut(memory: &mut [f64]) -> [&mut [f64]; Merged::FIELDS] {
        let n = memory.len() / Merged::FIELDS;
        split_mut(memory, n)
    }
    /// What [`merge`] has written.
    pub fn new(memory: &'a [f64], shape: &Shape) -> Self {
        let (base, rest) = memory.split_at(memory.len() / Self::FIELDS);
        let (offset, rest) = rest.split_at(base.len());
        let (squares, invstd) = rest.split_at(base.len());
        Self { base, offset, squares, invstd, count: shape.per_channel() as f64 }
    }
    /// The moments of the `k`th.
    pub fn get(&self, k: usize) -> Moments {
        let Self { base, offset, squares, count, .. } = *self;
        Moments { count, base: base[k], offset: offset[k], squares: squares[k] }
    }
}

/// Merges the sums of some channels into `merged`, which has room for them: see [`Merged`].
pub(super) fn merge<E: Element>(
    simd: Simd,
    (shape, plan): (&Shape, &Plan),
    sums: Sums<'_>,
    (x, eps): (&[E], f64),
    merged: &mut [f64],
) {
    let channels = sums.channels.clone();
    let [bases, offsets, squares, _] = Merged::split_mut(merged);
    merge_sums(simd, plan, sums, x, [bases, offsets, squares]);
    let values = |k: usize| shape.channel(channels.start + k).map(|i| x[i].widen().to_f64());
    invert::<E::Acc, _>(simd, (shape.per_channel() as f64, eps), merged, values);
}

/// The same, as they are: bases, offsets and sums of squares, of which some may have left the range of a type.
pub(super) fn merge_sums<E: Element>(
    simd: Simd,
    plan: &Plan,
    sums: Sums<'_>,
    x: &[E],
    [bases, offsets, squares]: [&mut [f64]; 3],
) {
    finite_f64(simd, &x[sums.channels.start * plan.inner()..], plan.inner(), bases);
    merge_tiles(simd, plan, sums, (offsets, squares));
}

/// Sets the invstds of channels whose moments are merged, of `count` values each, and makes moments again that have left
/// the range of a type: `values` are those of a channel, by its number among these.
pub(super) fn invert<A: Real, I: Iterator<Item = f64>>(
    simd: Simd,
    (count, eps): (f64, f64),
    merged: &mut [f64],
    values: impl Fn(usize) -> I,
) {
    let [bases, offsets, squares, invstds] = Merged::split_mut(merged);
    merging::invstds(simd, squares, count.max(1.0), eps, invstds);
    let (has_small_eps, small_var) = small_squares::<A>(eps);
    for k in 0..bases.len() {
        // Squares below the type matter beside an eps that is as small; those in f32 end at 1e-45, and
        // have lost digits from 1e-38 on.
        let is_small = has_small_eps && squares[k] < count * small_var;
        if is_small || !squares[k].is_finite() {
            // From 0 where distances may overflow; else from the first value, so that a constant
            // channel keeps variance 0.
            let from = if is_small { bases[k] } else { 0.0 };
            let (all, std) = wide_moments_of(|| values(k), count, from);
            (bases[k], offsets[k], squares[k]) = (all.base, all.offset, all.squares);
            invstds[k] = 1.0 / f64::hypot(std, eps.sqrt());
        }
    }
}

/// Whether an eps is so small that squares below the type matter beside it, and what variances are then.
pub(super) fn small_squares<A: Real>(eps: f64) -> (bool, f64) {
    let (small_eps, small_var) = match A::DTYPE {
        DType::F64 => (1e-270, 1e-265),
        _ => (1e-30, 1e-25),
    };
    (eps > 0.0 && eps < small_eps, small_var)
}

/// The same, for offsets and sums of squares alone: no type's own.
fn merge_tiles(
    simd: Simd,
    plan: &Plan,
    mut sums: Sums<'_>,
    (into_offsets, into_squares): (&mut [f64], &mut [f64]),
) {
    let tiles = plan.tiles_per_block();
    // Of a shorter last row, columns of these joined rows have one value less than the others.
    let is_short = |row: usize| plan.is_joined() && row * plan.row() >= plan.last_row();
    let of_rows = |row: usize| {
        let each = if plan.by_run { plan.inner() } else { 1 };
        (plan.rows * each - usize::from(is_short(row))) as f64
    };
    let (mut of_tiles, mut of_all) = (0.0, of_rows(0));
    let columns = Columns::of(plan);
    let [offsets, squares] = sums.merged(0, columns, |[offsets, squares], from, step| {
        let (before, count) = match step {
            Step::Tile(k, row) => {
                if k == 1 {
                    of_tiles = plan.count_in(0) as f64;
                }
                let less = usize::from(k + 1 == tiles && is_short(row));
                (&mut of_tiles, (plan.count_in(k) - less) as f64)
            }
            Step::Row(row) => (&mut of_all, of_rows(row)),
        };
        let [offset, square] = from;
        merging::merge(simd, *before, (offsets, squares), count, (offset, square));
        *before += count;
    });
    if columns.inner == 1 {
        into_offsets.copy_from_slice(offsets);
        into_squares.copy_from_slice(squares);
    } else {
        let (inner, each) = (plan.inner(), plan.per_channel() as f64 / plan.inner() as f64);
        let columns = offsets.chunks(inner).zip(squares.chunks(inner));
        for (k, (offset, square)) in columns.enumerate() {
            let mean = merging::total(simd, offset) / inner as f64;
            let between = merging::squares_from(simd, offset, mean);
            into_offsets[k] = mean;
            into_squares[k] = merging::total(simd, square) + each * between;
        }
    }
}

/// The definition, of `count` values, for channels whose sums are not finite (an infinity or a NaN among the values, or
/// squares beyond the type) or whose squares may be below it; and the deviation, which is in the range of f64 where the
/// squares are not. The mean counts from `base`.
pub(super) fn wide_moments_of<I: Iterator<Item = f64>>(
    values: impl Fn() -> I,
    count: f64,
    base: f64,
) -> (Moments, f64) {
    // In units of powers of two, so that neither sums nor squares leave f64.
    let largest = values().filter(|x| x.is_finite()).fold(base.abs(), |max, x| x.abs().max(max));
    let unit = power_below(largest);
    let (each, from) = (unit.recip(), base / unit);
    let offset = values().map(|x| x * each - from).sum::<f64>() / count;
    let distance = |x: f64| x * each - from - offset;
    let finer = power_below(values().fold(0.0, |max, x| distance(x).abs().max(max)));
    let squares = values().map(|x| (distance(x) / finer).powi(2)).sum::<f64>();
    let std = (squares / count).sqrt() * finer * unit;
    let squares = squares * finer * finer * unit * unit;
    (Moments { count, base, offset: offset * unit, squares }, std)
}
