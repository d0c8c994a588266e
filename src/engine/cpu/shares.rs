//! Which task a thread takes next.
use std::sync::atomic::{AtomicUsize, Ordering};

/// Numbers of tasks, each to be taken once.
///
/// Every thread begins with a share of neighbours, the same in every call, and takes from the others' when it has
/// done: so what fits the caches of the cores is found there by the next call. `backwards` says that numbers
/// count from the end, so that the first share is what the last thread had.
pub(super) struct Shares {
    tasks: usize,
    shares: usize,
    backwards: bool,
    /// Of each share.
    taken: [AtomicUsize; Shares::MOST],
}

impl Shares {
    /// Most shares that tasks are cut into; threads beyond have one together with another.
    pub const MOST: usize = 64;

    pub fn new(tasks: usize, threads: usize, backwards: bool) -> Self {
        let taken = [const { AtomicUsize::new(0) }; Self::MOST];
        Self { tasks, shares: threads.min(Self::MOST), backwards, taken }
    }
    /// The next one for a thread that has found so many shares `empty`, none at first.
    pub fn next(&self, thread: usize, empty: &mut usize) -> Option<usize> {
        let own = thread % self.shares;
        let first = if self.backwards { self.shares - 1 - own } else { own };
        while *empty < self.shares {
            let share = (first + *empty) % self.shares;
            let [start, end] = [share, share + 1].map(|share| share * self.tasks / self.shares);
            match start + self.taken[share].fetch_add(1, Ordering::Relaxed) {
                task if task < end => return Some(task),
                _ => *empty += 1,
            }
        }
        None
    }
}
