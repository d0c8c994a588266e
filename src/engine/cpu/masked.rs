//! A mask as tasks ask for it: which values of some columns of a row count.
use super::Cpu;
use super::kernels::convert::finite;
use super::kernels::masked::number;
use super::plan::Plan;
use super::simd::{BLOCK, GROUP, ROOM, Simd, TWICE};
use super::tiles::{clipped, numbers_mut};
use crate::engine::ops::MaskRules;
use crate::engine::places::Places;
use crate::{AllMasked, Element, Result, Shape};
use std::ops::Range;

/// A mask, and what its channels come to.
pub(super) struct Masked<'a> {
    simd: Simd,
    bytes: &'a [u8],
    places: Places,
    patterns: Option<Patterns<'a>>,
    /// How many values count of every [`BLOCK`] of a row's long run, which every channel has again.
    blocks: Vec<usize>,
    count_eps: f64,
    pub all_masked: AllMasked,
    /// Of every channel: how many values count, and the first of them, which means are counted from.
    channels: Vec<(f64, f64)>,
}

/// Bytes of values that all count, or of which none does.
static ONES: [u8; ROOM] = [1; ROOM];
static ZEROS: [u8; ROOM] = [0; ROOM];

/// Which of some values count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keep<'m> {
    All,
    None,
    /// A byte for each, 0 where it does not.
    Some(&'m [u8]),
}

/// A task's memory for the bytes of a block, and room for a vector behind them.
pub(super) struct Counts([u8; ROOM + GROUP]);

impl Counts {
    pub fn new() -> Self {
        Self([0; ROOM + GROUP])
    }
}

impl<'m> Keep<'m> {
    fn of(simd: Simd, bytes: &'m [u8]) -> Self {
        // Of a few a call would take longer.
        let number = match bytes.len() {
            ..GROUP => bytes.iter().map(|byte| usize::from(*byte)).sum(),
            _ => number(simd, bytes),
        };
        Self::counted(number, bytes)
    }
    /// Bytes of which so many are 1.
    fn counted(number: usize, bytes: &'m [u8]) -> Self {
        match number {
            0 => Keep::None,
            n if n == bytes.len() => Keep::All,
            _ => Keep::Some(bytes),
        }
    }
}

/// The bytes of rows of several short runs: a run's, again and again, for as many columns as a step takes
/// wherever it begins, so that no step has to bring them together.
pub(super) struct Patterns<'a> {
    all: &'a [u8],
    /// Bytes of a row.
    len: usize,
    inner: usize,
    /// How many values count of a row's run, which is shorter than a byte can say.
    counts: &'a [u8],
}

impl<'a> Patterns<'a> {
    /// Bytes of every row's pattern, where there are patterns.
    fn len(plan: &Plan, places: Places) -> Option<usize> {
        let of_positions = matches!(places, Places::Positions { .. });
        let has = of_positions && !plan.long_runs && !plan.is_joined() && plan.inner() > 1;
        has.then(|| plan.row().min(TWICE) + plan.inner())
    }
    fn new(simd: Simd, plan: &Plan, len: usize, bytes: &[u8], memory: &'a mut [u8]) -> Self {
        let inner = plan.inner();
        let (all, counts) = memory.split_at_mut(plan.rows * len);
        let counts = &mut counts[..plan.rows];
        let rows = all.chunks_mut(len).zip(bytes.chunks(inner)).zip(counts.iter_mut());
        for ((to, run), count) in rows {
            *count = number(simd, run) as u8;
            to[..inner].copy_from_slice(run);
            let mut done = inner;
            while done < len {
                let more = done.min(len - done);
                to.copy_within(..more, done);
                done += more;
            }
        }
        Self { all, len, inner, counts }
    }
    /// How many values count of a run of a row.
    pub fn count(&self, row: usize) -> usize {
        usize::from(self.counts[row])
    }
    /// Which values of columns of a row count.
    pub fn keep(&self, row: usize, cols: &Range<usize>) -> Keep<'_> {
        match self.count(row) {
            0 => Keep::None,
            n if n == self.inner => Keep::All,
            _ => Keep::Some(&self.all[row * self.len + cols.start % self.inner..][..cols.len()]),
        }
    }
}

impl<'a> Masked<'a> {
    /// Runs `f` with what a mask of x comes to, if there is one; with these numbers of values that count, where x
    /// is a part of the batch.
    pub fn with<E: Element, R>(
        (cpu, simd): (&Cpu, Simd),
        (shape, plan): (&Shape, &Plan),
        mask: Option<(MaskRules, &[u8])>,
        x: &[E],
        counts: Option<&[f64]>,
        f: impl FnOnce(Option<&Masked<'_>>) -> R,
    ) -> Result<R> {
        let places = mask.map(|(rules, _)| Places::new(shape, rules.last)).transpose()?;
        let len = places.and_then(|places| Patterns::len(plan, places));
        let len = len.map_or(0, |len| (plan.rows * (len + 1)).div_ceil(size_of::<f64>()));
        cpu.with_workspace(len, |memory| {
            let mask = places.zip(mask).map(|(places, (rules, bytes))| {
                let mut mask = Masked::new(simd, (shape, plan), (rules, places, bytes), x, memory);
                let own = mask.channels.iter_mut().zip(counts.into_iter().flatten());
                own.for_each(|((own, _), count)| *own = *count);
                mask
            });
            Ok(f(mask.as_ref()))
        })
    }
    fn new<E: Element>(
        simd: Simd,
        (shape, plan): (&Shape, &Plan),
        (rules, places, bytes): (MaskRules, Places, &'a [u8]),
        x: &[E],
        memory: &'a mut [f64],
    ) -> Self {
        let MaskRules { count_eps, all_masked, .. } = rules;
        let (channels, inner) = (shape.channels(), shape.inner());
        let first = |i: Option<usize>| i.map_or(0.0, |i| finite(x[i]));
        let channels = match places {
            Places::Positions { .. } => {
                let n = number(simd, bytes) as f64;
                let place = bytes.iter().position(|byte| *byte != 0);
                let of = |c| place.map(|at| (at / inner * channels + c) * inner + at % inner);
                (0..channels).map(|c| (n, first(of(c)))).collect()
            }
            Places::Neighbours(each) if each > inner => {
                // Some of a position's channels have one.
                let apart = channels / each;
                let of = |at: usize| {
                    let of_rows = bytes.iter().skip(at).step_by(apart);
                    let n = of_rows.clone().filter(|byte| **byte != 0).count();
                    (n as f64, of_rows.clone().position(|byte| *byte != 0))
                };
                let of: Vec<_> = (0..apart).map(of).collect();
                let of = |c: usize| {
                    let (n, row) = of[c / each];
                    (n, first(row.map(|row| row * channels + c)))
                };
                (0..channels).map(of).collect()
            }
            Places::Neighbours(each) => {
                let run = inner / each;
                let of = |c: usize| {
                    let runs = (0..shape.outer()).map(move |o| (o * channels + c) * run);
                    let runs = runs.map(|at| (at, &bytes[at..at + run]));
                    let n: usize = runs.clone().map(|(_, bytes)| number(simd, bytes)).sum();
                    let place = runs.clone().find_map(|(at, bytes)| {
                        Some(at + bytes.iter().position(|byte| *byte != 0)?)
                    });
                    ((n * each) as f64, first(place.map(|at| at * each)))
                };
                (0..channels).map(of).collect()
            }
        };
        let patterns = Patterns::len(plan, places);
        let patterns =
            patterns.map(|len| Patterns::new(simd, plan, len, bytes, numbers_mut(memory)));
        let blocks = match places {
            Places::Positions { inner, .. } if plan.long_runs => {
                let blocks = bytes.chunks(inner).flat_map(|run| run.chunks(BLOCK));
                blocks.map(|block| number(simd, block)).collect()
            }
            _ => Vec::new(),
        };
        Self { simd, bytes, places, patterns, blocks, count_eps, all_masked, channels }
    }
    /// How many values of a channel count.
    pub fn count(&self, c: usize) -> f64 {
        self.channels[c].0
    }
    /// What its mean is counted from.
    pub fn base(&self, c: usize) -> f64 {
        self.channels[c].1
    }
    /// What divides its sums.
    pub fn divisor(&self, c: usize) -> f64 {
        self.over(self.count(c)).max(f64::MIN_POSITIVE)
    }
    /// The same of another number.
    pub fn over(&self, count: f64) -> f64 {
        count + self.count_eps
    }
    /// Of that, what is no value: the share of the mean by which it is less than that of the values.
    pub fn share(&self, c: usize) -> f64 {
        self.count_eps / self.divisor(c)
    }
    /// Whether the element at `i` counts.
    pub fn keeps(&self, i: usize) -> bool {
        self.bytes[self.places.of(i)] != 0
    }

    /// The bytes of positions whose channels lie together, if they are enough to be taken by themselves: also
    /// where rows are joined.
    pub fn of_positions(&self, plan: &Plan) -> Option<&'a [u8]> {
        let is = matches!(self.places, Places::Positions { inner: 1, .. });
        (is && plan.row() >= 2 * GROUP).then_some(self.bytes)
    }
    /// Whether all values of a row count, or none of them does, or some, where channels lie together.
    pub fn of_rows(&self, plan: &Plan) -> Option<impl Fn(usize) -> Option<bool> + use<'a>> {
        let is = matches!(self.places, Places::Positions { inner: 1, .. });
        let (bytes, joined) = (self.bytes, plan.width / plan.row());
        is.then_some(move |row: usize| {
            let all = &bytes[row * joined..((row + 1) * joined).min(bytes.len())];
            let number: usize = all.iter().map(|byte| usize::from(*byte)).sum();
            (number == 0 || number == all.len()).then_some(number > 0)
        })
    }
    /// Where rows are of several runs of the same positions that are worth a vector.
    pub fn of_runs(&self) -> Option<&Patterns<'a>> {
        self.patterns.as_ref().filter(|patterns| patterns.inner >= GROUP)
    }
    /// Whether [`keep`](Self::keep) finds its bytes where they are, of as many as [`TWICE`] columns then.
    pub fn is_found(&self, plan: &Plan) -> bool {
        plan.long_runs && matches!(self.places, Places::Positions { .. }) || self.patterns.is_some()
    }

    /// The bytes of columns of a long run, where they lie together, and how many of them are 1: counted once for all
    /// channels where they are whole blocks, which is a fifth of a step of 400 positions by a mask in 16 bits.
    pub fn of_run(
        &self,
        plan: &Plan,
        row: usize,
        cols: &Range<usize>,
    ) -> Option<(&'a [u8], usize)> {
        let bytes = self.of_each_run(plan, row, cols).filter(|_| plan.long_runs)?;
        let (inner, start) = (plan.inner(), cols.start % plan.inner());
        let end = start + cols.len();
        let is_whole = start.is_multiple_of(BLOCK) && (end.is_multiple_of(BLOCK) || end == inner);
        let number = match is_whole {
            true => {
                let first = row * inner.div_ceil(BLOCK);
                self.blocks[first + start / BLOCK..first + end.div_ceil(BLOCK)].iter().sum()
            }
            false => number(self.simd, bytes),
        };
        Some((bytes, number))
    }
    /// The same of columns of any run, which are those of the same columns of the row's others.
    pub fn of_each_run(&self, plan: &Plan, row: usize, cols: &Range<usize>) -> Option<&'a [u8]> {
        match self.places {
            Places::Positions { inner, .. } if plan.has_runs() => {
                Some(&self.bytes[row * inner + cols.start % inner..][..cols.len()])
            }
            _ => None,
        }
    }
    /// A byte for each of columns of a row, of [`ROOM`] at most.
    pub fn of_columns<'m>(
        &'m self,
        plan: &Plan,
        row: usize,
        cols: &Range<usize>,
        counts: &'m mut Counts,
    ) -> &'m [u8] {
        let n = clipped(row, cols.clone(), plan.width, plan.len()).len();
        let keep = match self.places {
            Places::Positions { inner: 1, .. } if !plan.is_joined() => match self.bytes[row] {
                0 => Keep::None,
                _ => Keep::All,
            },
            _ => self.keep(plan, row, cols, counts),
        };
        match keep {
            Keep::All => &ONES[..n],
            Keep::None => &ZEROS[..n],
            Keep::Some(bytes) => bytes,
        }
    }
    /// Which values of columns of a row count, of [`ROOM`] at most.
    pub fn keep<'m>(
        &'m self,
        plan: &Plan,
        row: usize,
        cols: &Range<usize>,
        counts: &'m mut Counts,
    ) -> Keep<'m> {
        if let Some(patterns) = &self.patterns {
            return patterns.keep(row, cols);
        }
        if let Some((bytes, number)) = self.of_run(plan, row, cols) {
            return Keep::counted(number, bytes);
        }
        let all = clipped(row, cols.clone(), plan.width, plan.len());
        if all.is_empty() {
            return Keep::None;
        }
        match self.places {
            Places::Neighbours(1) => Keep::of(self.simd, &self.bytes[all]),
            Places::Neighbours(each) => self.spread(each, all, counts),
            Places::Positions { channels, inner: 1 } => self.spread(channels, all, counts),
            Places::Positions { channels, inner } => {
                let row = all.start / (channels * inner);
                let (mut start, mut within) = (row * inner, all.start % inner);
                // Run by run, without another division.
                let (mut at, mut end) = (all.start, (row + 1) * channels * inner);
                while at < all.end {
                    let len = (inner - within).min(all.end - at);
                    let bytes = &self.bytes[start + within..][..len];
                    counts.0[at - all.start..][..len].copy_from_slice(bytes);
                    (at, within) = (at + len, 0);
                    if at == end {
                        (start, end) = (start + inner, end + channels * inner);
                    }
                }
                Keep::of(self.simd, &counts.0[..all.len()])
            }
        }
    }
    /// The same of elements of which so many neighbours have one byte.
    fn spread<'m>(&self, each: usize, all: Range<usize>, counts: &'m mut Counts) -> Keep<'m> {
        let bytes = &self.bytes[all.start / each..=(all.end - 1) / each];
        let some = match Keep::of(self.simd, bytes) {
            Keep::All => return Keep::All,
            Keep::None => return Keep::None,
            Keep::Some(bytes) => bytes,
        };
        let (mut at, mut end) = (0, each - all.start % each);
        for byte in some {
            // Whole vectors: what they write too much the next ones overwrite.
            let (vector, last) = ([*byte; GROUP], end.min(all.len()));
            while at < last {
                let Some(to) = counts.0[at..].first_chunk_mut() else { break };
                *to = vector;
                at += GROUP;
            }
            (at, end) = (last, end + each);
        }
        Keep::Some(&counts.0[..all.len()])
    }
}
