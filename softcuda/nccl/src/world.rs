//! The ranks of an id: who has come, and what each has brought to which collective.

use std::{
    collections::BTreeMap,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, ThreadId},
    time::Duration,
};

use softlibrary::{List, Nudge, Number};

use crate::{rank::LOG, status::Status};

/// A collective, as far as it must be the same on all ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    pub kind: Kind,
    pub number: Number,
    /// Numbers that each rank brings.
    pub count: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Gather,
    Sum,
}

/// The ranks of an id.
#[derive(Debug)]
pub struct World {
    pub size: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    seats: Vec<Option<Seat>>,
    /// Why the ranks do not come together.
    refused: Option<Status>,
    rounds: BTreeMap<u64, Round>,
}

/// The place of a rank that has come.
#[derive(Debug)]
struct Seat {
    context: usize,
    nudge: Option<Arc<Nudge>>,
    /// Who made the communicator: messages are that thread's.
    thread: ThreadId,
    /// Collectives that its stream has come to.
    rounds: u64,
    is_finalized: bool,
    is_aborted: bool,
}

/// One collective: what each rank has brought, and what has become of it.
#[derive(Debug)]
struct Round {
    brought: Vec<Option<(Call, Vec<u8>)>>,
    outcome: Option<Arc<Vec<u8>>>,
    /// How many ranks have it.
    taken: usize,
}

static WORLDS: Mutex<BTreeMap<u64, Arc<World>>> = Mutex::new(BTreeMap::new());

/// The ranks of an id that have not all come yet.
pub fn of_id(id: u64, size: usize) -> Arc<World> {
    let mut worlds = WORLDS.lock().unwrap_or_else(PoisonError::into_inner);
    let seats = (0..size).map(|_| None).collect();
    let new = || World {
        size,
        state: Mutex::new(State { seats, ..State::default() }),
        changed: Condvar::new(),
    };
    worlds.entry(id).or_insert_with(|| Arc::new(new())).clone()
}

impl World {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A rank comes, with its context and what keeps its device at work.
    ///
    /// # Errors
    /// Why it may not; those who have come are refused with it.
    pub fn join(
        &self,
        rank: usize,
        size: usize,
        context: usize,
        nudge: Nudge,
    ) -> Result<(), String> {
        let mut state = self.state();
        let reason = if size != self.size {
            Some(format!("{size} ranks, where another rank of the same id says {}", self.size))
        } else if rank >= size {
            Some(format!("rank {rank} of {size}"))
        } else if state.seats[rank].is_some() {
            Some(format!("another one is rank {rank} of the same id"))
        } else if state.seats.iter().flatten().any(|seat| seat.context == context) {
            Some("another rank has the same device".into())
        } else {
            None
        };
        if let Some(reason) = reason {
            state.refused = Some(Status::INVALID_USAGE);
            self.changed.notify_all();
            return Err(reason);
        }
        state.seats[rank] = Some(Seat {
            context,
            nudge: Some(Arc::new(nudge)),
            thread: thread::current().id(),
            rounds: 0,
            is_finalized: false,
            is_aborted: false,
        });
        self.changed.notify_all();
        Ok(())
    }

    /// Whether all ranks have come, or why they will not.
    pub fn gathering(&self) -> Status {
        let state = self.state();
        match state.refused {
            Some(refused) => refused,
            None if state.seats.iter().all(Option::is_some) => Status::SUCCESS,
            None => Status::IN_PROGRESS,
        }
    }

    /// Waits until it is known.
    pub fn gathered(&self) -> Status {
        let state = self.state();
        let is_open =
            |state: &mut State| state.refused.is_none() && !state.seats.iter().all(Option::is_some);
        drop(self.changed.wait_while(state, is_open));
        self.gathering()
    }

    /// A rank has made its last call.
    pub fn finalize(&self, rank: usize) {
        if let Some(seat) = &mut self.state().seats[rank] {
            seat.is_finalized = true;
        }
    }

    /// Whether all ranks have made their last call.
    pub fn is_finalized(&self) -> bool {
        self.state().seats.iter().flatten().all(|seat| seat.is_finalized)
    }

    /// A rank waits for nothing any more. The others do not learn of it.
    pub fn abort(&self, rank: usize) {
        if let Some(seat) = &mut self.state().seats[rank] {
            seat.is_aborted = true;
        }
        self.changed.notify_all();
    }

    /// A rank's communicator has ended, and its device is driven no longer.
    pub fn leave(&self, rank: usize) {
        let nudge = self.state().seats[rank].as_mut().and_then(|seat| seat.nudge.take());
        drop(nudge); // which calls the driver
    }

    /// The stream of a rank has come to a collective with these bytes, and waits for the other ranks: what becomes of
    /// them, or nothing if the rank is aborted.
    pub fn meet(self: &Arc<Self>, rank: usize, call: Call, bytes: Vec<u8>) -> Option<Arc<Vec<u8>>> {
        let mut state = self.state();
        let seat = state.seats[rank].as_mut()?;
        let at = seat.rounds;
        seat.rounds += 1;
        let size = self.size;
        let new = || Round { brought: (0..size).map(|_| None).collect(), outcome: None, taken: 0 };
        let round = state.rounds.entry(at).or_insert_with(new);
        let is_first = round.brought.iter().all(Option::is_none);
        round.brought[rank] = Some((call, bytes));
        if round.brought.iter().all(Option::is_some) {
            state.conclude(at);
            self.changed.notify_all();
        } else if is_first {
            let world = Arc::clone(self);
            thread::spawn(move || world.drive(at));
        }
        loop {
            if state.seats[rank].as_ref()?.is_aborted {
                return None;
            }
            let round = state.rounds.get_mut(&at)?;
            if let Some(outcome) = round.outcome.clone() {
                round.taken += 1;
                if round.taken == size {
                    state.rounds.remove(&at);
                }
                return Some(outcome);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Has the devices of ranks that have not come to a collective go on with their work, until they have or those who
    /// wait are aborted.
    fn drive(&self, at: u64) {
        const PAUSE: Duration = Duration::from_micros(100);
        loop {
            let late: Vec<Arc<Nudge>> = {
                let state = self.state();
                let Some(round) = state.rounds.get(&at) else { return };
                let seats = || state.seats.iter().zip(&round.brought);
                let waits = seats().any(|(seat, brought)| {
                    brought.is_some() && seat.as_ref().is_some_and(|seat| !seat.is_aborted)
                });
                if !waits || round.brought.iter().all(Option::is_some) {
                    return;
                }
                let late = seats().filter(|(_, brought)| brought.is_none());
                late.filter_map(|(seat, _)| seat.as_ref()?.nudge.clone()).collect()
            };
            late.iter().for_each(|nudge| nudge.push());
            thread::sleep(PAUSE);
        }
    }
}

impl State {
    /// What becomes of a collective to which all have come: nothing, for ever, where they have not come to the same one.
    fn conclude(&mut self, at: u64) {
        let Some(round) = self.rounds.get_mut(&at) else { return };
        let brought: Vec<&(Call, Vec<u8>)> = round.brought.iter().flatten().collect();
        let first = brought[0].0;
        if let Some(rank) = brought.iter().position(|(call, _)| *call != first) {
            let other = brought[rank].0;
            let message = format!("rank 0 has come to {first:?}, rank {rank} to {other:?}");
            for seat in self.seats.iter().flatten() {
                LOG.note(seat.thread, List::Faults, message.clone());
            }
            return;
        }
        let parts = brought.iter().map(|(_, bytes)| bytes);
        round.outcome = Some(Arc::new(match first.kind {
            Kind::Gather => parts.flatten().copied().collect(),
            Kind::Sum => {
                let mut sums = vec![0.0; first.count];
                for part in parts {
                    let values = first.number.load(part);
                    sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
                }
                let mut bytes = vec![0; first.count * first.number.width()];
                first.number.store(&sums, &mut bytes);
                bytes
            }
        }));
    }
}
