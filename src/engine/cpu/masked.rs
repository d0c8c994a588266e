//! A mask as tasks ask for it: which values of some columns of a row count.
use super::kernels::convert::finite;
use super::plan::Plan;
use super::simd::ROOM;
use super::tiles::clipped;
use crate::engine::ops::MaskRules;
use crate::engine::places::Places;
use crate::{AllMasked, Element, Result, Shape};
use std::ops::Range;

/// A mask, and what its channels come to.
pub(super) struct Masked<'a> {
    bytes: &'a [u8],
    places: Places,
    count_eps: f64,
    pub all_masked: AllMasked,
    /// Of every channel: how many values count, and the first of them, which means are counted from.
    channels: Vec<(f64, f64)>,
}

/// Which of some values count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keep<'m> {
    All,
    None,
    /// A byte for each, 0 where it does not.
    Some(&'m [u8]),
}

/// A task's memory for the bytes of a block.
pub(super) struct Counts([u8; ROOM]);

impl Counts {
    pub fn new() -> Self {
        Self([0; ROOM])
    }
}

impl<'m> Keep<'m> {
    fn of(bytes: &'m [u8]) -> Self {
        match number(bytes) {
            0 => Keep::None,
            n if n == bytes.len() => Keep::All,
            _ => Keep::Some(bytes),
        }
    }
}

/// How many are not 0; they are 0 and 1.
pub(super) fn number(bytes: &[u8]) -> usize {
    const LANES: usize = 32;
    // Sums of so many fit a byte, which makes whole vectors of them.
    let parts = bytes.chunks(LANES * 255).map(|part| {
        let (groups, rest) = part.as_chunks::<LANES>();
        let mut lanes = [0u8; LANES];
        for group in groups {
            for l in 0..LANES {
                lanes[l] += group[l];
            }
        }
        lanes.iter().chain(rest).map(|sum| usize::from(*sum)).sum::<usize>()
    });
    parts.sum()
}

impl<'a> Masked<'a> {
    pub fn new<E: Element>(
        shape: &Shape,
        rules: MaskRules,
        bytes: &'a [u8],
        x: &[E],
    ) -> Result<Self> {
        let MaskRules { last, count_eps, all_masked } = rules;
        let places = Places::new(shape, last)?;
        let (channels, inner) = (shape.channels(), shape.inner());
        let first = |i: Option<usize>| i.map_or(0.0, |i| finite(x[i]));
        let channels = match places {
            Places::Positions { .. } => {
                let n = number(bytes) as f64;
                let place = bytes.iter().position(|byte| *byte != 0);
                let of = |c| place.map(|at| (at / inner * channels + c) * inner + at % inner);
                (0..channels).map(|c| (n, first(of(c)))).collect()
            }
            Places::Neighbours(each) => {
                let run = inner / each;
                let of = |c: usize| {
                    let runs = (0..shape.outer()).map(move |o| (o * channels + c) * run);
                    let runs = runs.map(|at| (at, &bytes[at..at + run]));
                    let n: usize = runs.clone().map(|(_, bytes)| number(bytes)).sum();
                    let place = runs.clone().find_map(|(at, bytes)| {
                        Some(at + bytes.iter().position(|byte| *byte != 0)?)
                    });
                    ((n * each) as f64, first(place.map(|at| at * each)))
                };
                (0..channels).map(of).collect()
            }
        };
        Ok(Self { bytes, places, count_eps, all_masked, channels })
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

    /// Which values of columns of a row count, of [`ROOM`] at most.
    pub fn keep<'m>(
        &'m self,
        plan: &Plan,
        row: usize,
        cols: &Range<usize>,
        counts: &'m mut Counts,
    ) -> Keep<'m> {
        let all = clipped(row, cols.clone(), plan.width, plan.len());
        if all.is_empty() {
            return Keep::None;
        }
        let to = &mut counts.0;
        // Runs of elements of one byte, or of bytes that lie together.
        let mut fill = |each: usize| {
            let mut at = all.start;
            while at < all.end {
                let end = ((at / each + 1) * each).min(all.end);
                to[at - all.start..end - all.start].fill(self.bytes[at / each]);
                at = end;
            }
        };
        match self.places {
            Places::Neighbours(1) => return Keep::of(&self.bytes[all]),
            Places::Neighbours(each) => fill(each),
            Places::Positions { channels, inner: 1 } => {
                if all.start / channels == (all.end - 1) / channels {
                    let counts = self.bytes[all.start / channels] != 0;
                    return if counts { Keep::All } else { Keep::None };
                }
                fill(channels);
            }
            Places::Positions { channels, inner } => {
                let row = all.start / (channels * inner);
                let (mut start, mut within) = (row * inner, all.start % inner);
                if within + all.len() <= inner {
                    return Keep::of(&self.bytes[start + within..][..all.len()]);
                }
                // Run by run, without another division.
                let (mut at, mut end) = (all.start, (row + 1) * channels * inner);
                while at < all.end {
                    let len = (inner - within).min(all.end - at);
                    let bytes = &self.bytes[start + within..][..len];
                    to[at - all.start..][..len].copy_from_slice(bytes);
                    (at, within) = (at + len, 0);
                    if at == end {
                        (start, end) = (start + inner, end + channels * inner);
                    }
                }
            }
        }
        Keep::of(&to[..all.len()])
    }
}
