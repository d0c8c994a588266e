//! How far threads know each other to have come: vector clocks, folded where a whole warp is at one time.
//!
//! The time of a warp advances at each of its synchronising instructions. That a thread knows lane `l` of a warp up to
//! time `t` means: all that the lane did up to and including `t` happens before what the thread does now.

use std::rc::Rc;

/// Counts the synchronising instructions of a warp, from 1.
pub(crate) type Time = u32;

/// Up to when the lanes of a warp are known.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum WarpTime {
    /// All of them alike.
    Uniform(Time),
    /// Each on its own.
    Lanes(Rc<[Time; 32]>),
}

impl Default for WarpTime {
    fn default() -> Self {
        Self::Uniform(0)
    }
}

impl WarpTime {
    /// Up to when a lane is known.
    #[inline]
    pub(crate) fn of(&self, lane: u32) -> Time {
        match self {
            Self::Uniform(time) => *time,
            Self::Lanes(times) => times[lane as usize],
        }
    }

    /// Up to when every lane is known.
    pub(crate) fn least(&self) -> Time {
        match self {
            Self::Uniform(time) => *time,
            Self::Lanes(times) => *times.iter().min().expect("32 lanes"),
        }
    }

    fn all(&self) -> [Time; 32] {
        match self {
            Self::Uniform(time) => [*time; 32],
            Self::Lanes(times) => **times,
        }
    }

    fn from_all(times: [Time; 32]) -> Self {
        if times.iter().all(|time| *time == times[0]) {
            Self::Uniform(times[0])
        } else {
            Self::Lanes(Rc::new(times))
        }
    }

    /// Takes on what `other` knows.
    pub(crate) fn join(&mut self, other: &Self) {
        match (&mut *self, other) {
            (Self::Uniform(mine), Self::Uniform(theirs)) => *mine = (*mine).max(*theirs),
            (Self::Lanes(mine), Self::Lanes(theirs)) if Rc::ptr_eq(mine, theirs) => {}
            _ => {
                let (mut times, theirs) = (self.all(), other.all());
                times.iter_mut().zip(theirs).for_each(|(mine, theirs)| *mine = (*mine).max(theirs));
                *self = Self::from_all(times);
            }
        }
    }

    /// Makes those lanes known up to `time`.
    pub(crate) fn raise(&mut self, lanes: u32, time: Time) {
        if lanes == !0 {
            return self.join(&Self::Uniform(time));
        }
        let mut times = self.all();
        for (lane, at) in times.iter_mut().enumerate() {
            if lanes >> lane & 1 == 1 {
                *at = (*at).max(time);
            }
        }
        *self = Self::from_all(times);
    }
}

/// The warps of a block.
pub(crate) type BlockTimes = Rc<[WarpTime]>;

/// Joins two blocks' times, sharing where one of them is enough.
pub(crate) fn join_blocks(mine: &mut BlockTimes, theirs: &BlockTimes) {
    if Rc::ptr_eq(mine, theirs) || mine == theirs {
        return;
    }
    let mut joined: Vec<_> = mine.to_vec();
    joined.iter_mut().zip(theirs.iter()).for_each(|(mine, theirs)| mine.join(theirs));
    *mine = joined.into();
}

/// What is known of several blocks; a block that is missing is not known at all.
#[derive(Clone, Debug, Default)]
pub(crate) struct Clock {
    /// By number of the block.
    blocks: Rc<Vec<(u32, BlockTimes)>>,
}

impl Clock {
    /// What is known of a block.
    #[inline]
    pub(crate) fn block(&self, block: u32) -> Option<&BlockTimes> {
        // After a barrier of the grid, all are there.
        if let Some((number, times)) = self.blocks.get(block as usize)
            && *number == block
        {
            return Some(times);
        }
        let index = self.blocks.binary_search_by_key(&block, |(number, _)| *number).ok()?;
        Some(&self.blocks[index].1)
    }

    /// Whether nothing is known.
    pub(crate) fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// Takes on what is known of one block.
    pub(crate) fn join_block(&mut self, block: u32, times: &BlockTimes) {
        let blocks = Rc::make_mut(&mut self.blocks);
        match blocks.binary_search_by_key(&block, |(number, _)| *number) {
            Ok(index) => join_blocks(&mut blocks[index].1, times),
            Err(index) => blocks.insert(index, (block, times.clone())),
        }
    }

    /// Takes on what `other` knows, except of the block `except`.
    pub(crate) fn join(&mut self, other: &Self, except: Option<u32>) {
        if Rc::ptr_eq(&self.blocks, &other.blocks) || other.is_empty() {
            return;
        }
        if self.is_empty() && except.is_none_or(|block| other.block(block).is_none()) {
            *self = other.clone();
            return;
        }
        let mut joined = Vec::with_capacity(self.blocks.len().max(other.blocks.len()));
        let mut mine = self.blocks.iter().peekable();
        for (block, times) in other.blocks.iter().filter(|(block, _)| Some(*block) != except) {
            while let Some(before) = mine.next_if(|(number, _)| number < block) {
                joined.push(before.clone());
            }
            let mut both = times.clone();
            if let Some((_, known)) = mine.next_if(|(number, _)| number == block) {
                both = known.clone();
                join_blocks(&mut both, times);
            }
            joined.push((*block, both));
        }
        joined.extend(mine.cloned());
        self.blocks = Rc::new(joined);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(warps: &[Time]) -> BlockTimes {
        warps.iter().map(|time| WarpTime::Uniform(*time)).collect()
    }

    #[test]
    fn lanes_fold_when_they_are_at_one_time() {
        let mut time = WarpTime::Uniform(3);
        time.raise(1, 5);
        assert_eq!((time.of(0), time.of(1), time.least()), (5, 3, 3));
        time.raise(!1, 5);
        assert_eq!(time, WarpTime::Uniform(5));
        time.raise(2, 4);
        assert_eq!(time, WarpTime::Uniform(5), "time does not go back");
    }

    #[test]
    fn a_join_takes_the_later_of_each() {
        let mut a = WarpTime::Uniform(3);
        a.raise(1, 9);
        let mut b = WarpTime::Uniform(4);
        b.raise(2, 8);
        a.join(&b);
        assert_eq!((a.of(0), a.of(1), a.of(2)), (9, 8, 4));
    }

    #[test]
    fn clocks_join_block_by_block() {
        let (mut a, mut b) = (Clock::default(), Clock::default());
        a.join_block(7, &times(&[1, 5]));
        a.join_block(2, &times(&[1, 1]));
        b.join_block(7, &times(&[4, 2]));
        b.join_block(3, &times(&[6, 6]));
        b.join_block(9, &times(&[1, 1]));
        a.join(&b, Some(9));
        assert_eq!(a.block(7), Some(&times(&[4, 5])));
        assert_eq!((a.block(2), a.block(3)), (Some(&times(&[1, 1])), Some(&times(&[6, 6]))));
        assert_eq!(a.block(9), None);
    }
}
