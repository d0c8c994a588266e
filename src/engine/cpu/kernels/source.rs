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
mod tests {
    use super::super::super::simd::tests::every_store;
    use super::super::super::simd::{BLOCK, LINE};
    use super::super::super::table::Table;
    use super::super::super::tiles::numbers_mut;
    use super::super::elementwise::{At, Work, normalize};
    use super::*;
    use crate::engine::cpu::plan::Plan;
    use crate::{Element, Shape};

    /// No count of lanes is cut to fewer bits before it is compared.
    #[test]
    fn a_run_of_any_length_has_its_own_coefficients() {
        let mut fields = vec![0.0; Table::<f32>::FIELDS * 2];
        numbers_mut::<f32>(&mut fields)[..2].copy_from_slice(&[1.0, 2.0]); // the means
        let mut strip = Strip::<f32>::new();
        strip.load_channels(0..2, &Table::new(&fields, 0..2), false);
        for left in [16, usize::MAX >> 33, usize::MAX >> 32, usize::MAX >> 31, usize::MAX / 2] {
            let runs = Runs { strip: &strip, channel: 0, left, inner: left };
            let lanes = runs.group(0);
            assert!((0..GROUP).all(|lane| lanes.at(lane).mean == 1.0), "{left}");
        }
    }

    /// Of every number of columns, in and past the cache, at any address, against one value at a time.
    #[test]
    fn columns_have_their_coefficients_again_and_again() {
        fn all<E: Element>() {
            const MOST: usize = 128;
            for columns in (GROUP..=MOST).step_by(GROUP) {
                let mut fields = vec![0.0; Table::<E::Acc>::FIELDS * columns];
                for (i, v) in numbers_mut(&mut fields).iter_mut().enumerate() {
                    *v = E::Acc::from_f64(1.0 + i as f64 / 8.0);
                }
                let (plan, cols) =
                    (Plan::new(&Shape::new(&[64, columns], 1).unwrap(), 4, 1), 0..2 * columns);
                let mut strip = Strip::new();
                strip.load(&plan, &cols, &Table::new(&fields, 0..columns), false);
                let x: Vec<E> =
                    (0..2 * BLOCK).map(|i| E::narrow(E::Acc::from_f64(i as f64))).collect();
                for (start, n) in [(0, 2 * BLOCK), (3, 5 * columns + 7), (7, 130), (9, 40), (1, 5)]
                {
                    let n = n.min(2 * BLOCK);
                    let expected: Vec<E> = (0..n)
                        .map(|i| E::narrow(strip.at(i % columns).normalize(x[i].widen())))
                        .collect();
                    every_store(
                        2 * BLOCK + LINE,
                        |store, memory: &mut [E]| {
                            let (from, out) = ([&x[..n]; 2], &mut memory[start..start + n]);
                            let (at, ahead) = (At::Again(&strip, columns), [std::ptr::null(); 2]);
                            let work = Work::Piece { store, at, from, out, ahead };
                            normalize(store.simd, (false, false), work);
                        },
                        |memory| {
                            assert_eq!(memory[start..start + n], expected, "{columns} {start} {n}");
                            let mut outside = memory[..start].iter().chain(&memory[start + n..]);
                            assert!(outside.all(|v| *v == E::default()));
                        },
                    );
                }
            }
        }
        all::<f32>();
        all::<f64>();
        all::<half::f16>();
        all::<half::bf16>();
    }

    /// Every cut of runs of every length, in and past the cache, at any address, against one value at a
    /// time.
    #[test]
    fn runs_have_the_coefficients_of_their_channel() {
        fn all<E: Element>() {
            const CHANNELS: usize = 16;
            let mut fields = vec![0.0; Table::<E::Acc>::FIELDS * CHANNELS];
            for (i, v) in numbers_mut(&mut fields).iter_mut().enumerate() {
                *v = E::Acc::from_f64(1.0 + i as f64 / 8.0);
            }
            let mut strip = Strip::new();
            strip.load_channels(0..CHANNELS, &Table::new(&fields, 0..CHANNELS), false);
            let values = |scale: f64| -> Vec<E> {
                (0..2 * BLOCK).map(|i| E::narrow(E::Acc::from_f64(scale * i as f64))).collect()
            };
            let (all_x, all_r) = (values(1.0), values(-0.5));
            for inner in [16, 17, 25, 31, 33, 49, 64, 100] {
                for from in [0, 1, inner - 1, inner, 2 * inner + 5] {
                    for n in [1, 7, 15, 16, 17, 40, 127, 128, 130, 3 * inner, 5 * inner + 3] {
                        let runs = Runs {
                            strip: &strip,
                            channel: from / inner,
                            left: inner - from % inner,
                            inner,
                        };
                        let start = (from * 7 + n) % LINE;
                        let (x, other) = (&all_x[..n], &all_r[..n]);
                        let expected: Vec<E> = (0..n)
                            .map(|i| {
                                let z = strip.at((from + i) / inner).normalize(x[i].widen());
                                E::narrow(z + other[i].widen())
                            })
                            .collect();
                        let own = start..start + n;
                        every_store(
                            2 * BLOCK + LINE,
                            |store, memory: &mut [E]| {
                                let (at, out) = (At::Runs(runs), &mut memory[own.clone()]);
                                let (from, ahead) = ([x, other], [std::ptr::null(); 2]);
                                let work = Work::Piece { store, at, from, out, ahead };
                                normalize(store.simd, (true, false), work);
                            },
                            |memory| {
                                assert_eq!(memory[own.clone()], expected, "{inner} {from} {n}");
                                let mut outside = memory[..start].iter().chain(&memory[own.end..]);
                                assert!(outside.all(|v| *v == E::default()));
                            },
                        );
                    }
                }
            }
        }
        all::<f32>();
        all::<f64>();
        all::<half::f16>();
        all::<half::bf16>();
    }
}
