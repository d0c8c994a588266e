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
}

/// All of an instruction's.
#[derive(Debug)]
pub(crate) struct Runs {
    runs: [Run; 32],
    len: usize,
    width: u64,
}

impl Runs {
    /// Of accesses of `width` bytes by the lanes of `mask`. `reads` may share one place.
    pub(crate) fn new(addresses: &[u64; 32], mask: u32, width: usize, reads: bool) -> Self {
        let width = width as u64;
        let mut all = Self { runs: [Run::default(); 32], len: 1, width };
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

    /// Distinct sectors of 32 bytes.
    pub(crate) fn sectors(&self) -> u64 {
        let range = |run: &Run| {
            let end = run.address.wrapping_add(u64::from(run.count) * self.width - 1);
            (run.address / 32, end / 32)
        };
        if let [run] = self.as_slice() {
            let (first, last) = range(run);
            return last - first + 1;
        }
        let mut ranges = [(0, 0); 32];
        let ranges = &mut ranges[..self.len];
        ranges.iter_mut().zip(self.as_slice()).for_each(|(to, run)| *to = range(run));
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
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(address: impl Fn(u64) -> u64, mask: u32, width: usize, reads: bool) -> Runs {
        Runs::new(&std::array::from_fn(|lane| address(lane as u64)), mask, width, reads)
    }

    #[test]
    fn a_warp_of_neighbours_is_one_run() {
        let all = runs(|lane| 1024 + 16 * lane, !0, 16, true);
        assert_eq!(all.as_slice(), [Run { address: 1024, lane: 0, count: 32, together: 0 }]);
        assert_eq!(all.sectors(), 16);
        assert_eq!(runs(|lane| 1028 + 4 * lane, !0, 4, true).sectors(), 5);
        assert_eq!(runs(|lane| 1024 + 4 * lane, 0xff00, 4, true).sectors(), 1);
    }

    #[test]
    fn gaps_and_turns_split_runs() {
        let all = runs(|lane| 64 + 4 * (lane % 4), 0xf7, 4, true);
        let run = |address, lane, count| Run { address, lane, count, together: 0 };
        assert_eq!(all.as_slice(), [run(64, 0, 3), run(64, 4, 4)]);
        assert_eq!(all.sectors(), 1);
        assert_eq!(runs(|lane| 4096 - 64 * lane, !0, 4, true).sectors(), 32);
        assert_eq!(runs(|lane| 16 * lane, !0, 4, true).sectors(), 16);
    }

    #[test]
    fn one_place_is_read_once_but_written_by_each() {
        let all = runs(|_| 96, 0xf0, 8, true);
        assert_eq!(all.as_slice(), [Run { address: 96, lane: 4, count: 1, together: 0xf0 }]);
        assert_eq!(all.sectors(), 1);
        let all = runs(|_| 96, 0xf0, 8, false);
        assert_eq!((all.as_slice().len(), all.sectors()), (4, 1));
    }
}
