//! Communicators, and what every call does first.

use std::{
    sync::{Arc, Mutex, MutexGuard},
    thread,
};

use softlibrary::{Job, List, Log, Number, Objects, Queue, Use};

use crate::{
    status::{Refusal, Status},
    world::{Call, Kind, World},
};

/// The version that it says it has: 2.30.0.
pub const VERSION: usize = 23_000;

pub static LOG: Log = Log::new("softnccl", VERSION);
pub static RANKS: Objects<Rank> = Objects::new("communicator", 1);

/// A communicator: one rank's place among all.
#[derive(Debug)]
pub struct Rank {
    pub world: Arc<World>,
    pub rank: usize,
    pub is_blocking: bool,
    pub queue: Queue,
    pub phase: Phase,
    /// Whether a collective has been called, of which the first connects the ranks.
    pub is_connected: bool,
    /// Questions about the state for which the last call is still in progress.
    pub settles: u32,
    /// The error that its state is from now on.
    pub error: Option<Status>,
}

/// What its last call has left to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Until all ranks have come.
    Gathers,
    Rests,
    /// Until all ranks have made their last call.
    Finalizes,
}

/// Questions that a first collective is in progress for.
const CONNECTS: u32 = 2;

impl Rank {
    /// What `ncclCommGetAsyncError` tells.
    pub fn state(&mut self) -> Status {
        if let Some(error) = self.error {
            return error;
        }
        if self.settles > 0 {
            self.settles -= 1;
            return Status::IN_PROGRESS;
        }
        match self.phase {
            Phase::Gathers => {
                let state = self.world.gathering();
                if state == Status::SUCCESS {
                    self.phase = Phase::Rests;
                }
                if state.is_error() {
                    self.error = Some(state);
                }
                state
            }
            Phase::Finalizes if !self.world.is_finalized() => Status::IN_PROGRESS,
            _ => Status::SUCCESS,
        }
    }

    /// Queues a collective that reads at `from` and writes at `to`.
    pub fn collective(
        &mut self,
        (kind, number, count): (Kind, Number, usize),
        (from, to): (u64, u64),
        stream: usize,
    ) -> Result<(), Refusal> {
        if count == 0 {
            return Ok(());
        }
        self.queue.check(stream).or_else(|reason| Status::INVALID_USAGE.because(reason))?;
        let (mut job, world, rank) = (Job::default(), Arc::clone(&self.world), self.rank);
        let mine = job.argument(Use::Read, from, number, count);
        let results = if kind == Kind::Gather { count * world.size } else { count };
        let all = job.argument(Use::Write, to, number, results);
        let call = Call { kind, number, count };
        let done = self.queue.push(stream, &job, move |memory| {
            const RUBBISH: u8 = 0xa5;
            let mine = memory.bytes(mine).to_vec();
            match world.meet(rank, call, mine) {
                Some(outcome) => memory.bytes(all).copy_from_slice(&outcome),
                None => memory.bytes(all).fill(RUBBISH),
            }
        });
        done.or_else(|refused| Status::CUDA.because(refused.to_string()))
    }

    /// What a collective that was queued answers: the first of a non-blocking communicator is in progress.
    pub fn connect(&mut self) -> Status {
        if self.is_connected || self.is_blocking {
            return Status::SUCCESS;
        }
        (self.is_connected, self.settles) = (true, CONNECTS);
        Status::IN_PROGRESS
    }
}

/// A call of this name: answers a failure that was asked for, or does its work.
pub fn call(name: &str, f: impl FnOnce() -> Result<Status, Refusal>) -> Status {
    if let Some(status) = LOG.failure(name) {
        return Status::from_number(status).unwrap_or(Status::INTERNAL_ERROR);
    }
    refusing(name, f)
}

/// The same of a call that fails otherwise.
pub fn refusing(name: &str, f: impl FnOnce() -> Result<Status, Refusal>) -> Status {
    match f() {
        Ok(status) => status,
        Err((status, reason)) => {
            LOG.note(thread::current().id(), List::Refusals, format!("{name}: {reason}"));
            status
        }
    }
}

/// The communicator of a number.
pub fn found(comm: usize) -> Result<Arc<Mutex<Rank>>, Refusal> {
    RANKS.get(comm).or_else(|reason| Status::INVALID_ARGUMENT.because(reason))
}

/// One that no other thread is in a call with.
pub fn alone(rank: &Mutex<Rank>) -> Result<MutexGuard<'_, Rank>, Refusal> {
    let used = "another thread is in a call with the same communicator";
    rank.try_lock().or_else(|_| Status::INVALID_USAGE.because(used))
}

pub fn live() -> Vec<String> {
    RANKS.live()
}
