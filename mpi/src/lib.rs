#![doc = include_str!("../README.md")]
use batchnorm::{Collective, Error, Host, Rank, Real, Result, Words};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

#[allow(unsafe_code)]
mod raw;

use raw::Communicator;

/// The processes of an MPI job as ranks; clones are the same ranks.
///
/// Numbers are added in the order of ranks, so that a sum has the same bits on every rank and each time. Up to 16
/// ranks gather all of them for that; more reduce them to one rank, which tells the others, in the order that the
/// MPI library takes.
#[derive(Clone)]
pub struct Mpi(Arc<Ranks>);

struct Ranks {
    communicator: Mutex<State>,
    rank: usize,
    size: usize,
    limit: Duration,
}

/// Calls of a communicator are matched by their order: one at a time.
struct State {
    communicator: Communicator,
    /// Why no call is made any more.
    end: Option<Error>,
}

/// So many ranks add numbers by gathering them.
const GATHERS: usize = 16;

/// Initializes MPI, has the closure do this rank's work, and ends MPI. A rank waits for the others for at most so
/// long in every call.
///
/// An error of the closure is printed, and it ends the job on all ranks, as does a panic, or a call that was given up: ranks that wait for this
/// one would wait for ever otherwise, in the end of MPI if nowhere else. To be called once in a process, by the
/// thread that is its main one.
pub fn run<E: fmt::Display>(
    limit: Duration,
    work: impl FnOnce(&Mpi) -> std::result::Result<(), E>,
) -> std::process::ExitCode {
    let universe = match raw::Universe::begin() {
        Ok(universe) => universe,
        Err(error) => {
            eprintln!("error: {error}");
            return std::process::ExitCode::FAILURE;
        }
    };
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        before(panic);
        raw::abort();
    }));
    let done = Mpi::of(universe.world(), limit).map_err(|error| error.to_string());
    let done = done.and_then(|ranks| match work(&ranks) {
        Ok(()) => Ok(()),
        Err(error) => Err(format!("rank {} of {}: {error}", ranks.rank(), ranks.size())),
    });
    let done = done.and_then(|()| match raw::has_given_up() {
        true => Err("a call was given up, for which the end of MPI would wait".into()),
        false => Ok(()),
    });
    if let Err(error) = done {
        eprintln!("error: {error}");
        raw::abort();
    }
    universe.end();
    std::process::ExitCode::SUCCESS
}

impl Mpi {
    fn of(communicator: Result<Communicator>, limit: Duration) -> Result<Self> {
        let communicator = communicator?;
        let (rank, size) = (communicator.rank()?, communicator.size()?);
        let state = Mutex::new(State { communicator, end: None });
        Ok(Self(Arc::new(Ranks { communicator: state, rank, size, limit })))
    }
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.communicator.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// A call that is made now, unless an earlier one has failed; if it fails, none is made any more.
    fn call<T>(&self, call: impl FnOnce(&Communicator) -> Result<T>) -> Result<T> {
        let mut state = self.state();
        if let Some(end) = &state.end {
            return Err(end.clone());
        }
        let done = call(&state.communicator);
        if let Err(error) = &done {
            state.end = Some(error.clone());
        }
        done
    }
    /// Everybody's bytes, one after the other, as many of each.
    fn gather(&self, mine: Vec<u8>) -> Result<Vec<u8>> {
        self.call(|communicator| communicator.gather(mine, self.0.size, self.0.limit))
    }

    /// The bytes of rank `from`, on every rank; the others' are overwritten, and are as many.
    ///
    /// # Errors
    /// [`Error::Collective`]; [`Error::Invalid`] where there is no such rank.
    pub fn broadcast(&self, from: usize, bytes: &mut [u8]) -> Result<()> {
        let Ranks { size, limit, .. } = *self.0;
        if from >= size {
            let reason = format!("expected a rank below {size}, got {from}");
            return Err(Error::Invalid { what: "from", reason });
        }
        let all = self.call(|communicator| communicator.broadcast(from, bytes.to_vec(), limit))?;
        bytes.copy_from_slice(&all);
        Ok(())
    }
    /// The most that a call waits for other ranks.
    pub fn limit(&self) -> Duration {
        self.0.limit
    }
}

impl fmt::Debug for Mpi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Ranks { rank, size, limit, .. } = &*self.0;
        f.debug_struct("Mpi")
            .field("rank", rank)
            .field("size", size)
            .field("limit", limit)
            .finish_non_exhaustive()
    }
}

impl Rank for Mpi {
    fn rank(&self) -> usize {
        self.0.rank
    }
    fn size(&self) -> usize {
        self.0.size
    }
    fn exchange(&self, mine: Words) -> Result<Vec<Words>> {
        let all = self.gather(mine.iter().flat_map(|word| word.to_ne_bytes()).collect())?;
        let words = |bytes: &[[u8; 8]]| {
            let mut words = [0; 8];
            words.iter_mut().zip(bytes).for_each(|(word, of)| *word = u64::from_ne_bytes(*of));
            words
        };
        Ok(all.as_chunks::<8>().0.chunks_exact(8).map(words).collect())
    }
    fn split(&self, color: usize) -> Result<Self> {
        // The split itself cannot be given up: all ranks are here before it.
        self.exchange([color as u64; 8])?;
        let part = self.call(|communicator| communicator.split(color, self.0.rank));
        Self::of(part, self.0.limit)
    }
}

impl Collective<Host> for Mpi {
    fn all_gather(&self, _: &Host, part: &[f64], all: &mut [f64]) -> Result<()> {
        let expected = part.len().saturating_mul(self.0.size);
        let bytes = self.gather(to_bytes(part))?;
        if all.len() != expected {
            return Err(Error::Length { what: "all", expected, got: all.len() });
        }
        all.iter_mut().zip(from_bytes(&bytes)).for_each(|(to, value)| *to = value);
        Ok(())
    }
    fn all_reduce<P: Real>(&self, _: &Host, sums: &mut [P]) -> Result<()> {
        let mine: Vec<f64> = sums.iter().map(|sum| sum.to_f64()).collect();
        if self.0.size > GATHERS {
            let limit = self.0.limit;
            let total = self.call(|communicator| {
                let total = communicator.reduce(0, mine, limit)?;
                communicator.broadcast(0, to_bytes(&total), limit)
            })?;
            let total = from_bytes(&total);
            sums.iter_mut().zip(total).for_each(|(sum, total)| *sum = P::from_f64(total));
            return Ok(());
        }
        let bytes = self.gather(to_bytes(&mine))?;
        for (k, sum) in sums.iter_mut().enumerate() {
            let parts = bytes.chunks_exact(mine.len() * 8);
            let parts = parts.flat_map(|part| from_bytes(&part[8 * k..8 * (k + 1)]));
            *sum = P::from_f64(parts.sum());
        }
        Ok(())
    }
}

fn to_bytes(values: &[f64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_ne_bytes()).collect()
}
fn from_bytes(bytes: &[u8]) -> impl Iterator<Item = f64> {
    bytes.as_chunks::<8>().0.iter().map(|bytes| f64::from_ne_bytes(*bytes))
}
