//! How many values the steps of an operation touch: for tests of how it divides among threads, and nothing else.
//! Elsewhere it compiles to nothing.

/// A step is about to touch so many values.
#[inline(always)]
pub(super) fn values(_count: usize) {
    #[cfg(test)]
    trace::add(_count);
}

/// Runs what other tasks of the round may wait for.
#[inline(always)]
pub(super) fn awaited<R>(task: impl FnOnce() -> R) -> R {
    #[cfg(test)]
    let task = || trace::within(trace::Place::Awaited, task);
    task()
}

/// Runs a task of a round; `is_first` begins another round. A round of one thread is none.
#[inline(always)]
pub(super) fn task(_is_first: bool, _is_alone: bool, task: impl FnOnce()) {
    #[cfg(test)]
    let task = || trace::within(trace::Place::task(_is_first, _is_alone), task);
    task();
}

#[cfg(test)]
pub(super) mod trace {
    use std::cell::RefCell;

    /// What a thread has counted.
    #[derive(Debug, Clone, Default, PartialEq)]
    pub struct Trace {
        /// Outside of rounds of tasks.
        pub serial: usize,
        /// What tasks wait for, the most of each round.
        pub awaited: usize,
        /// Every round's tasks.
        pub rounds: Vec<Vec<usize>>,
        of_round: usize,
        place: Place,
    }
    #[derive(Debug, Clone, Copy, Default, PartialEq)]
    pub enum Place {
        #[default]
        Serial,
        Awaited,
        Task {
            is_first: bool,
        },
    }
    impl Place {
        pub fn task(is_first: bool, is_alone: bool) -> Self {
            if is_alone { Self::Serial } else { Self::Task { is_first } }
        }
    }
    thread_local! {
        static TRACE: RefCell<Option<Trace>> = const { RefCell::new(None) };
    }
    fn with(change: impl FnOnce(&mut Trace)) {
        TRACE.with_borrow_mut(|trace| trace.as_mut().map(change));
    }

    /// What `operation` counts on this thread, where it has no others.
    pub fn of(operation: impl FnOnce()) -> Trace {
        TRACE.set(Some(Trace::default()));
        operation();
        TRACE.take().unwrap_or_default()
    }
    pub fn add(count: usize) {
        with(|trace| match (trace.place, trace.rounds.last_mut().and_then(|r| r.last_mut())) {
            (Place::Task { .. }, Some(task)) => *task += count,
            (Place::Awaited, _) => trace.of_round += count,
            _ => trace.serial += count,
        });
    }
    pub fn within<R>(place: Place, run: impl FnOnce() -> R) -> R {
        let mut before = Place::Serial;
        with(|trace| {
            before = std::mem::replace(&mut trace.place, place);
            match (place, trace.rounds.last_mut()) {
                (Place::Task { is_first: true }, _) | (Place::Task { .. }, None) => {
                    trace.rounds.push(vec![0]);
                }
                (Place::Task { .. }, Some(round)) => round.push(0),
                (Place::Awaited, _) => trace.of_round = 0,
                (Place::Serial, _) => {}
            }
        });
        let result = run();
        with(|trace| {
            trace.awaited = trace.awaited.max(trace.of_round);
            trace.place = before;
        });
        result
    }
}
