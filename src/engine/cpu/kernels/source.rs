//! Where loops find the coefficients of a group of values.
use super::super::simd::GROUP;
use super::super::table::{Coef, Lanes, Strip};
use crate::Real;
use std::hint::select_unpredictable;

/// The coefficients of a block of values, by groups.
pub trait Source<A> {
    type Lanes: Lanes<A>;
    /// Those of the group that starts with value `at`.
    fn group(&self, at: usize) -> Self::Lanes;
    /// Calls `take` for every one of `groups`, the first one of which starts with value `at`, with where
    /// it starts. Must be `#[inline(always)]`, as `take` is.
    fn each<E>(
        &self,
        at: usize,
        groups: Groups<'_, E>,
        take: impl FnMut(usize, One<'_, E>, Self::Lanes),
    );
}

/// Groups of values that follow each other, of what is read and of what is written.
pub struct Groups<'a, E> {
    pub from: [&'a [[E; GROUP]]; 2],
    pub out: &'a mut [[E; GROUP]],
}
/// One of them.
type One<'a, E> = ([&'a [E; GROUP]; 2], &'a mut [E; GROUP]);

impl<'a, E> Groups<'a, E> {
    /// Takes the first `n`, or all.
    #[inline(always)]
    fn take(&mut self, n: usize) -> Self {
        let n = n.min(self.out.len());
        let ((x, more_x), (other, more)) = (self.from[0].split_at(n), self.from[1].split_at(n));
        let (out, more_out) = std::mem::take(&mut self.out).split_at_mut(n);
        *self = Self { from: [more_x, more], out: more_out };
        Self { from: [x, other], out }
    }
    #[inline(always)]
    fn each(self) -> impl ExactSizeIterator<Item = One<'a, E>> {
        let Self { from: [x, other], out } = self;
        x.iter().zip(other).zip(out).map(
            #[inline(always)]
            |((x, other), out)| ([x, other], out),
        )
    }
}

/// Every value has its own.
impl<A: Real> Source<A> for &Strip<A> {
    type Lanes = [[A; GROUP]; 5];
    #[inline(always)]
    fn group(&self, at: usize) -> Self::Lanes {
        self.groups(at, 1)(0)
    }
    #[inline(always)]
    fn each<E>(
        &self,
        at: usize,
        groups: Groups<'_, E>,
        mut take: impl FnMut(usize, One<'_, E>, Self::Lanes),
    ) {
        let coefs = self.groups(at, groups.out.len());
        for (i, group) in groups.each().enumerate() {
            take(at + i * GROUP, group, coefs(i));
        }
    }
}

/// The first `columns` of a strip, whole groups, again and again. The strip has as many behind them.
#[derive(Clone, Copy)]
pub struct Again<'a, A> {
    pub strip: &'a Strip<A>,
    pub columns: usize,
}

impl<A: Real> Source<A> for Again<'_, A> {
    type Lanes = [[A; GROUP]; 5];
    #[inline(always)]
    fn group(&self, at: usize) -> Self::Lanes {
        self.strip.groups(at % self.columns, 1)(0)
    }
    #[inline(always)]
    fn each<E>(
        &self,
        mut at: usize,
        mut groups: Groups<'_, E>,
        mut take: impl FnMut(usize, One<'_, E>, Self::Lanes),
    ) {
        let n = self.columns / GROUP;
        let coefs = self.strip.groups(at % self.columns, n);
        while !groups.out.is_empty() {
            for (i, group) in groups.take(n).each().enumerate() {
                take(at, group, coefs(i));
                at += GROUP;
            }
        }
    }
}

/// Runs of values that have their channel's coefficients in common, of a group's length at least.
#[derive(Clone, Copy)]
pub struct Runs<'a, A> {
    pub strip: &'a Strip<A>,
    /// Of the first value: its place in the strip.
    pub channel: usize,
    /// Values of that channel's run from the first one on.
    pub left: usize,
    /// Values of a run.
    pub inner: usize,
}

impl<A> Runs<'_, A> {
    /// The place in the strip of value `at`, and the value behind its run.
    #[inline(always)]
    fn run(&self, at: usize) -> (usize, usize) {
        let Self { channel, left, inner, .. } = *self;
        let runs = if at < left { 0 } else { 1 + (at - left) / inner };
        (channel + runs, left + runs * inner)
    }
}

impl<A: Real> Source<A> for Runs<'_, A> {
    type Lanes = Two<A>;
    #[inline(always)]
    fn group(&self, at: usize) -> Two<A> {
        let (channel, end) = self.run(at);
        let left = (end - at).min(GROUP);
        Two::new([self.strip.at(channel), self.strip.at(channel + 1)], left)
    }
    /// The whole groups of a run, then the one that it shares with the next: so every group is stored once
    /// and where it is aligned, however long the runs are.
    #[inline(always)]
    fn each<E>(
        &self,
        mut at: usize,
        mut groups: Groups<'_, E>,
        mut take: impl FnMut(usize, One<'_, E>, Two<A>),
    ) {
        let (mut channel, mut end) = self.run(at);
        let mut first = self.strip.at(channel);
        loop {
            for group in groups.take((end - at) / GROUP).each() {
                take(at, group, Two::new([first, first], GROUP));
                at += GROUP;
            }
            if groups.out.is_empty() {
                return;
            }
            channel += 1;
            let second = self.strip.at(channel);
            if at < end {
                for group in groups.take(1).each() {
                    take(at, group, Two::new([first, second], end - at));
                    at += GROUP;
                }
            }
            (first, end) = (second, end + self.inner);
        }
    }
}

/// The number of every lane: read, for one that was cast would be compared as the `usize` that it was, in twice as
/// many vectors.
pub(super) static LANE: [i32; GROUP] = {
    let mut lanes = [0; GROUP];
    let mut lane = 0;
    while lane < GROUP {
        lanes[lane] = lane as i32;
        lane += 1;
    }
    lanes
};

/// Those of two channels.
pub struct Two<A> {
    coefs: [Coef<A>; 2],
    /// Lanes of the first. No `usize`, for one vector of lanes to be compared as it is.
    left: i32,
}
impl<A> Two<A> {
    /// `left` is a group's lanes at most.
    #[inline(always)]
    fn new(coefs: [Coef<A>; 2], left: usize) -> Self {
        Self { coefs, left: left as i32 }
    }
}
impl<A: Real> Lanes<A> for Two<A> {
    #[inline(always)]
    fn at(&self, lane: usize) -> Coef<A> {
        let Self { coefs: [first, second], left } = *self;
        // A select, for a branch by lanes would make no vector.
        let of = |first, second| select_unpredictable(LANE[lane] < left, first, second);
        Coef {
            mean: of(first.mean, second.mean),
            scale: of(first.scale, second.scale),
            bias: of(first.bias, second.bias),
            mean_g: of(first.mean_g, second.mean_g),
            slope: of(first.slope, second.slope),
        }
    }
}

#[cfg(test)]
#[path = "source_tests.rs"]
mod tests;
