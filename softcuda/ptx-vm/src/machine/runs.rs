//! The places that the lanes of a warp access in one instruction, as few runs of neighbours.

use super::warp::lanes;

/// Lanes next to each other that access places next to each other.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Run {
    /// The first place.
    pub(crate) address: u64,
    /// The first lane.
    pub(crate) lane: u32,
    /// How many.
    pub(crate) count: u32,
    /// Not 0: these lanes all access the one place.
    pub(crate) together: u32,
}

impl Run {
    /// The lanes.
    #[inline]
    pub(crate) fn lanes(&self) -> u32 {
        if self.together != 0 { self.together } else { (!0 >> (32 - self.count)) << self.lane }
    }

    /// The place of one of the lanes.
    pub(crate) fn address_of(&self, lane: u32, width: usize) -> u64 {
        self.address + u64::from(lane - self.lane) * width as u64
    }

    /// What the lanes of `mask` access at `bases` plus `offset`, if it is plain to see that it is one run: most
    /// accesses are, so that it is looked for first and without a list.
    #[inline(always)]
    pub(crate) fn single(
        bases: &[u64; 32],
        offset: u64,
        mask: u32,
        width: usize,
        reads: bool,
    ) -> Option<Self> {
        let (width, lane, count) = (width as u64, mask.trailing_zeros(), mask.count_ones());
        let first = bases[lane as usize];
        let address = first.wrapping_add(offset);
        let run = Self { address, lane, count, together: 0 };
        // What is off, of all lanes: a sum has no branches, and a plain loop is compiled for the caller's level.
        let mut off = 0;
        if mask == !0 {
            for (i, base) in bases.iter().enumerate() {
                off |= base ^ first.wrapping_add(i as u64 * width);
            }
        } else if mask >> lane == !0 >> (32 - count) {
            for (i, base) in bases[lane as usize..(lane + count) as usize].iter().enumerate() {
                off |= base ^ first.wrapping_add(i as u64 * width);
            }
        } else {
            off = 1;
        }
        if off == 0 {
            return Some(run);
        }
        if !reads {
            return None;
        }
        let mut apart = 0;
        for (i, base) in bases.iter().enumerate() {
            apart |= (base ^ first) & 0u64.wrapping_sub(u64::from(mask) >> i & 1);
        }
        (apart == 0).then_some(Self { count: 1, together: mask, ..run })
    }
}

/// All of an instruction's.
#[derive(Debug)]
pub(crate) struct Runs {
    runs: [Run; 32],
    len: usize,
}

impl Runs {
    /// Of accesses of `width` bytes by the lanes of `mask`. `reads` may share one place.
    pub(crate) fn new(addresses: &[u64; 32], mask: u32, width: usize, reads: bool) -> Self {
        let width = width as u64;
        let mut all = Self { runs: [Run::default(); 32], len: 1 };
        let first = mask.trailing_zeros();
        let address = addresses[first as usize];
        let next = |lane: usize| address.wrapping_add(lane as u64 * width);
        if mask == !0 && (0..32).fold(true, |all, lane| all & (addresses[lane] == next(lane))) {
            all.runs[0] = Run { address, lane: 0, count: 32, together: 0 };
            return all;
        }
        if reads
            && mask.count_ones() > 1
            && lanes(mask).all(|lane| addresses[lane as usize] == address)
        {
            all.runs[0] = Run { address, lane: first, count: 1, together: mask };
            return all;
        }
        all.len = 0;
        for lane in lanes(mask) {
            let address = addresses[lane as usize];
            if let Some(last) = all.runs[..all.len].last_mut()
                && last.lane + last.count == lane
                && last.address.wrapping_add(u64::from(last.count) * width) == address
            {
                last.count += 1;
                continue;
            }
            all.runs[all.len] = Run { address, lane, count: 1, together: 0 };
            all.len += 1;
        }
        all
    }

    pub(crate) fn as_slice(&self) -> &[Run] {
        &self.runs[..self.len]
    }
}

/// Distinct sectors of 32 bytes that runs of accesses of `width` bytes touch.
#[inline]
pub(crate) fn sectors(runs: &[Run], width: usize) -> u64 {
    let range = |run: &Run| {
        let end = run.address.wrapping_add(u64::from(run.count) * width as u64 - 1);
        (run.address / 32, end / 32)
    };
    if let [run] = runs {
        let (first, last) = range(run);
        return last - first + 1;
    }
    let mut ranges = [(0, 0); 32];
    let ranges = &mut ranges[..runs.len()];
    ranges.iter_mut().zip(runs).for_each(|(to, run)| *to = range(run));
    ranges.sort_unstable();
    let (mut count, mut next) = (0, 0);
    for (first, last) in ranges.iter() {
        let first = (*first).max(next);
        if first <= *last {
            count += last - first + 1;
            next = last + 1;
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The runs, whichever way they are found, and their sectors.
    fn runs(address: impl Fn(u64) -> u64, mask: u32, width: usize, reads: bool) -> (Vec<Run>, u64) {
        let addresses = std::array::from_fn(|lane| address(lane as u64));
        let all = Runs::new(&addresses, mask, width, reads).as_slice().to_vec();
        let bases = addresses.map(|address| address - 32);
        let single = Run::single(&bases, 32, mask, width, reads);
        assert_eq!(single.as_slice(), if all.len() == 1 { &all[..] } else { &[] });
        let sectors = sectors(&all, width);
        (all, sectors)
    }

    #[test]
    fn a_warp_of_neighbours_is_one_run() {
        let all = runs(|lane| 1024 + 16 * lane, !0, 16, true);
        assert_eq!(all, (vec![Run { address: 1024, lane: 0, count: 32, together: 0 }], 16));
        assert_eq!(runs(|lane| 1028 + 4 * lane, !0, 4, true).1, 5);
        assert_eq!(runs(|lane| 1024 + 4 * lane, 0xff00, 4, true).1, 1);
        let run = Run { address: 1056, lane: 8, count: 8, together: 0 };
        assert_eq!(runs(|lane| 1024 + 4 * lane, 0xff00, 4, false), (vec![run], 1));
    }

    #[test]
    fn gaps_and_turns_split_runs() {
        let all = runs(|lane| 64 + 4 * (lane % 4), 0xf7, 4, true);
        let run = |address, lane, count| Run { address, lane, count, together: 0 };
        assert_eq!(all, (vec![run(64, 0, 3), run(64, 4, 4)], 1));
        assert_eq!(runs(|lane| 4096 - 64 * lane, !0, 4, true).1, 32);
        assert_eq!(runs(|lane| 64 + 16 * lane, !0, 4, true).1, 16);
        // Only the last of the lanes is elsewhere.
        assert_eq!(runs(|lane| 1024 + 4 * lane + lane / 31, !0, 4, true).0.len(), 2);
    }

    #[test]
    fn one_place_is_read_once_but_written_by_each() {
        let all = runs(|_| 96, 0xf0, 8, true);
        assert_eq!(all, (vec![Run { address: 96, lane: 4, count: 1, together: 0xf0 }], 1));
        assert_eq!(runs(|_| 96, 0x10, 8, true).0[0].together, 0);
        let (all, sectors) = runs(|_| 96, 0xf0, 8, false);
        assert_eq!((all.len(), sectors), (4, 1));
    }
}
