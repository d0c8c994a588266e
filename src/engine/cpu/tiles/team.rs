//! Threads of the pool that a thread runs rounds of work with.
//!
//! A round is over when all is done that anybody has begun: nobody waits for a thread that has not woken yet. And who
//! has worked waits a moment for the next round, awake: an operation has two or three, and another one follows.
//! Waking a thread takes as long as a small tensor's whole round.
use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, Thread};

/// Work of a round, by the number of the thread: 0 is who began it.
type Work<'w> = dyn Fn(usize) + Sync + 'w;

/// Runs `work` on this thread and on others of the pool, up to so many `threads` in all, each with a number of its
/// own below that; it may end without any other. A panic of one of them is one of this thread, when all have ended.
/// Within another round of the same thread it runs on this thread alone.
pub(super) fn run(threads: usize, work: &Work<'_>) {
    thread_local! {
        static TEAM: (Cell<bool>, Arc<Team>) = (Cell::new(false), Arc::new(Team::new()));
    }
    let ran = TEAM.try_with(|(is_busy, team)| {
        let is_free = !is_busy.replace(true);
        let ended = is_free.then(|| team.round(threads, work));
        is_busy.set(!is_free);
        ended
    });
    match ran {
        Ok(Some(Some(panic))) => resume_unwind(panic),
        Ok(Some(None)) => (),
        // In a round, or where the thread ends.
        Ok(None) | Err(_) => work(0),
    }
}

/// A thread and those that work for it.
struct Team {
    /// [`OPEN`], [`WAITING`], how many are at work on the round ([`AT_WORK`] each) and how many others there are,
    /// at work, waiting for it, or being woken ([`MEMBER`] each). One number, for a thread goes only if no round
    /// has begun, and begins only if the round is not over.
    state: Apart,
    /// The round: everybody takes part in one once. Written, as the two fields behind it, while none is open and
    /// nobody is at work.
    number: AtomicUsize,
    threads: AtomicUsize,
    work: UnsafeCell<Option<*const Work<'static>>>,
    /// Numbers of threads that are given.
    given: AtomicUsize,
    owner: Thread,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}
/// A number that threads look at all the time, in cache lines that nothing else is in: what the owner writes about a
/// round would have to be fetched back from them.
#[repr(align(128))]
struct Apart(AtomicUsize);

impl std::ops::Deref for Apart {
    type Target = AtomicUsize;
    fn deref(&self) -> &AtomicUsize {
        &self.0
    }
}

// SAFETY: `work` is written by the owner alone, while nobody is at work, and read by who is; what it points to may be
// called by any thread. The rest is shared as it is.
unsafe impl Send for Team {}
// SAFETY: the same.
unsafe impl Sync for Team {}

/// There is a round that threads may begin to work on.
const OPEN: usize = 1;
/// The owner sleeps until nobody is at work.
const WAITING: usize = 2;
const AT_WORK: usize = 4;
const MEMBER: usize = 1 << 17;
/// Most threads beside the owner.
const MOST: usize = (1 << 15) - 1;

fn at_work(state: usize) -> usize {
    state / AT_WORK % (MEMBER / AT_WORK)
}

/// How often a thread looks whether all have ended before it sleeps: few enough that a thread which has lost its
/// processor is not waited for at full speed.
const SPINS: usize = 10_000;
/// How often a thread looks for another round before it goes: some tens of microseconds.
const LINGER: usize = 2_000;

impl Team {
    fn new() -> Self {
        let [state, number, threads, given] = [const { AtomicUsize::new(0) }; 4];
        let (work, panic) = (UnsafeCell::new(None), Mutex::new(None));
        Self { state: Apart(state), number, threads, work, given, owner: thread::current(), panic }
    }

    /// Runs a round, as the owner.
    fn round(self: &Arc<Self>, threads: usize, work: &Work<'_>) -> Option<Box<dyn Any + Send>> {
        let work_of_all: *const Work<'_> = work;
        // SAFETY: no round is open and nobody is at work, so nobody reads it; the lifetime is another one, but nobody
        // calls it who has not begun before `end` returns.
        unsafe {
            *self.work.get() =
                Some(std::mem::transmute::<*const Work<'_>, *const Work<'static>>(work_of_all));
        }
        self.threads.store(threads, Ordering::Relaxed);
        self.given.store(1, Ordering::Relaxed);
        self.number.fetch_add(1, Ordering::Relaxed);
        let members = self.state.fetch_or(OPEN, Ordering::AcqRel) / MEMBER;
        for _ in members..threads.saturating_sub(1).min(MOST) {
            self.state.fetch_add(MEMBER, Ordering::Relaxed);
            let team = Arc::clone(self);
            rayon::spawn(move || team.serve());
        }
        let own = catch_unwind(AssertUnwindSafe(|| work(0)));
        self.end();
        let others = self.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        own.err().or(others)
    }
    /// Closes the round and waits until nobody is at work.
    fn end(&self) {
        let mut state = self.state.fetch_and(!OPEN, Ordering::AcqRel);
        for _ in 0..SPINS {
            if at_work(state) == 0 {
                return;
            }
            std::hint::spin_loop();
            state = self.state.load(Ordering::Acquire);
        }
        state = self.state.fetch_or(WAITING, Ordering::AcqRel);
        while at_work(state) > 0 {
            thread::park();
            state = self.state.load(Ordering::Acquire);
        }
        self.state.fetch_and(!WAITING, Ordering::Relaxed);
    }

    /// Works as another thread, until no round has come for a while.
    fn serve(&self) {
        let (mut last, mut idle) = (0, 0);
        loop {
            if let Some(number) = self.begin(last) {
                (last, idle) = (number, 0);
                continue;
            }
            idle += 1;
            if idle > LINGER && self.go(last) {
                return;
            }
            std::hint::spin_loop();
        }
    }
    /// Takes part in the open round, if there is one after the `last`, whose number it returns.
    fn begin(&self, last: usize) -> Option<usize> {
        let state = self.state.load(Ordering::Acquire);
        if state & OPEN == 0 || self.number.load(Ordering::Relaxed) == last {
            return None;
        }
        let begun = state + AT_WORK;
        let order = (Ordering::AcqRel, Ordering::Relaxed);
        self.state.compare_exchange(state, begun, order.0, order.1).ok()?;
        // Of a round that is open, and not over while this thread is at work: perhaps a later one than it saw.
        let (number, threads) =
            (self.number.load(Ordering::Relaxed), self.threads.load(Ordering::Relaxed));
        let thread =
            if number == last { threads } else { self.given.fetch_add(1, Ordering::Relaxed) };
        if thread < threads {
            // SAFETY: the round is open, so it is written, and this thread is at work, so that the owner, who has
            // lent it, does not return from `end`.
            let ended = unsafe {
                let work = (*self.work.get()).map(|work| &*work);
                catch_unwind(AssertUnwindSafe(|| work.map(|work| work(thread))))
            };
            if let Err(panic) = ended {
                *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
            }
        }
        let before = self.state.fetch_sub(AT_WORK, Ordering::AcqRel);
        if before & WAITING != 0 && at_work(before) == 1 {
            self.owner.unpark();
        }
        Some(number)
    }
    /// Leaves the team, unless a round after the `last` is open.
    fn go(&self, last: usize) -> bool {
        let state = self.state.load(Ordering::Acquire);
        if state & OPEN != 0 && self.number.load(Ordering::Relaxed) != last {
            return false;
        }
        let order = (Ordering::AcqRel, Ordering::Relaxed);
        self.state.compare_exchange(state, state - MEMBER, order.0, order.1).is_ok()
    }
}

#[cfg(test)]
#[path = "team_tests.rs"]
mod tests;
