//! What a library has to tell, and failures that tests ask for. All of it belongs to the thread that made the call, so
//! that tests of one process, which run side by side, do not see each other's.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread::{self, ThreadId},
};

/// Lists of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum List {
    /// Calls that were refused, and why.
    Refusals,
    /// What queued work found wrong, when no call was there to be refused.
    Faults,
    /// Handles and descriptors that exist.
    Live,
    /// Calls that were made, by name, in their order.
    Calls,
}

#[derive(Debug)]
struct Failure {
    thread: ThreadId,
    call: String,
    before: u64,
    status: u32,
}

#[derive(Debug)]
struct Inner {
    messages: Vec<(ThreadId, List, String)>,
    calls: Vec<(ThreadId, String)>,
    failures: Vec<Failure>,
}

/// The log of a library; a static of it.
#[derive(Debug)]
pub struct Log {
    name: &'static str,
    inner: Mutex<Inner>,
    version: AtomicUsize,
}

impl Log {
    /// The log of the library of this name, which says that it has this version.
    #[must_use]
    pub const fn new(name: &'static str, version: usize) -> Self {
        let inner = Inner { messages: Vec::new(), calls: Vec::new(), failures: Vec::new() };
        Self { name, inner: Mutex::new(inner), version: AtomicUsize::new(version) }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a message of a thread, and prints it.
    pub fn note(&self, thread: ThreadId, list: List, message: String) {
        eprintln!("{}: {message}", self.name);
        self.inner().messages.push((thread, list, message));
    }

    /// A message of this thread.
    #[must_use]
    pub fn message(&self, list: List, index: usize) -> Option<String> {
        let this = thread::current().id();
        let inner = self.inner();
        if list == List::Calls {
            let mut own = inner.calls.iter().filter(|(thread, _)| *thread == this);
            return own.nth(index).map(|(_, call)| call.clone());
        }
        let mut own = inner.messages.iter().filter(|(thread, l, _)| *thread == this && *l == list);
        own.nth(index).map(|(_, _, message)| message.clone())
    }

    /// The last refusal of this thread.
    #[must_use]
    pub fn last_refusal(&self) -> Option<String> {
        let this = thread::current().id();
        let inner = self.inner();
        let mut own = inner.messages.iter().rev();
        own.find(|(thread, list, _)| *thread == this && *list == List::Refusals)
            .map(|(_, _, message)| message.clone())
    }

    /// Makes a call of this thread fail: the next one of that name, or with `before` others before it.
    pub fn fail(&self, call: &str, before: u64, status: u32) {
        let thread = thread::current().id();
        self.inner().failures.push(Failure { thread, call: call.into(), before, status });
    }

    /// Notes a call of this thread, and tells whether it is one that fails.
    #[must_use]
    pub fn failure(&self, call: &str) -> Option<u32> {
        let this = thread::current().id();
        let mut inner = self.inner();
        inner.calls.push((this, call.into()));
        let failures = &mut inner.failures;
        let is_meant = |failure: &Failure| failure.thread == this && failure.call == call;
        let due = failures.iter().position(|failure| is_meant(failure) && failure.before == 0);
        let status = due.map(|at| failures.remove(at).status);
        for failure in failures.iter_mut().filter(|failure| is_meant(failure)) {
            failure.before = failure.before.saturating_sub(1);
        }
        status
    }

    /// Forgets messages, calls and requested failures of this thread.
    pub fn reset(&self) {
        let this = thread::current().id();
        let mut inner = self.inner();
        inner.messages.retain(|(thread, ..)| *thread != this);
        inner.calls.retain(|(thread, _)| *thread != this);
        inner.failures.retain(|failure| failure.thread != this);
    }

    /// The version that the library says it has.
    #[must_use]
    pub fn version(&self) -> usize {
        self.version.load(Ordering::Relaxed)
    }

    /// Sets it, for the process.
    pub fn set_version(&self, version: usize) {
        self.version.store(version, Ordering::Relaxed);
    }
}
