//! A rank's communicator, from its beginning to its end.
use super::raw::{Communicator, Id, bind, is_done};
use super::watch::Queued;
use crate::{Device, Error, Memory, Result};
use cudarc::driver::CudaStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

/// One rank's communicator. Its end is that of the communicator.
pub struct Member(Arc<Core>);

/// What the rank has in common with the thread that looks after what it has queued.
struct Core {
    stream: Arc<CudaStream>,
    rank: usize,
    limit: Duration,
    state: Mutex<State>,
    /// Of the state: there is something to look after, or the rank has ended.
    changed: Condvar,
}

struct State {
    /// None once it has ended. Dropping it leaks it.
    communicator: Option<Communicator>,
    /// Why no call is made any more.
    end: Option<Error>,
    queued: Queued,
    has_ended: bool,
}

impl Member {
    /// The communicator of this id, once all ranks have come.
    pub fn new(
        stream: Arc<CudaStream>,
        (rank, size): (usize, usize),
        id: Id,
        limit: Duration,
    ) -> Result<Self> {
        let communicator = Communicator::new(stream.context(), size, id, rank)?;
        let state = State {
            communicator: Some(communicator),
            end: None,
            queued: Queued::default(),
            has_ended: false,
        };
        let core = Core { stream, rank, limit, state: Mutex::new(state), changed: Condvar::new() };
        let core = Arc::new(core);
        core.call("ncclCommInitRankConfig", |_| Ok(false))?;
        let watched = core.clone();
        let name = format!("batchnorm-nccl-{rank}");
        let spawned = thread::Builder::new().name(name).spawn(move || watched.look_after());
        if let Err(error) = spawned {
            let error = Error::collective(Some(rank), format!("a thread: {error}"));
            core.give_up(&mut core.state(), error.clone());
            return Err(error);
        }
        Ok(Self(core))
    }
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.0.stream
    }
    pub fn limit(&self) -> Duration {
        self.0.limit
    }

    /// Whether calls are made still.
    pub fn check(&self) -> Result<()> {
        self.0.call("a check", |_| Ok(true))
    }

    /// Queues a collective of so many numbers on the stream of that memory.
    pub fn queue(
        &self,
        name: &'static str,
        on: &Device,
        count: usize,
        call: impl FnOnce(&mut Communicator) -> Result<bool>,
    ) -> Result<()> {
        let (here, there) = (self.stream().context(), on.stream().context());
        if here != there {
            let (here, there) = (here.ordinal(), there.ordinal());
            let reason =
                format!("expected memory of device {here}, this rank's, got device {there}");
            return Err(Error::invalid("on", reason));
        }
        if count == 0 {
            return self.check(); // nobody has anything to bring
        }
        let is_watched = !on.is_capturing()?;
        self.0.call(name, |state| {
            let (context, stream) = (on.stream().context(), on.stream());
            let around = match is_watched {
                true => Some(state.queued.before(context, stream)?),
                false => None,
            };
            let Some(communicator) = &mut state.communicator else { return Err(ended()) };
            if !call(communicator)? {
                self.0.settle(communicator, name)?;
            }
            if let Some(around) = around {
                state.queued.behind(name, around, stream)?;
                self.0.changed.notify_all();
            }
            Ok(true)
        })
    }

    pub fn wait(&self, limit: Duration) -> Result<()> {
        let core = &self.0;
        let begin = Instant::now();
        let mut pause = Pause::default();
        loop {
            let done = is_done(&core.stream);
            core.call("a wait", |_| Ok(true))?;
            if done? {
                return Ok(());
            }
            if begin.elapsed() > limit {
                let reason = format!(
                    "expected the stream to be done within {limit:?}, got that it is at work"
                );
                return Err(core.give_up(&mut core.state(), Error::collective(None, reason)));
            }
            pause.take();
        }
    }
}

fn ended() -> Error {
    Error::collective(None, "expected a communicator, got that it has ended")
}

/// Between two questions: short at first, as most are answered at once.
#[derive(Default)]
struct Pause(u32);

impl Pause {
    fn take(&mut self) {
        self.0 = (self.0 + 1).min(1 << 10);
        thread::sleep(Duration::from_micros(u64::from(self.0)));
    }
}

impl Core {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A call that is made now, unless an earlier one has failed, and has settled when this returns; if it fails, the
    /// communicator is aborted, and no call is made any more. A call answers whether it is done.
    fn call(
        &self,
        name: &'static str,
        call: impl FnOnce(&mut State) -> Result<bool>,
    ) -> Result<()> {
        let mut state = self.state();
        if let Some(end) = &state.end {
            return Err(end.clone());
        }
        let done = bind(self.stream.context()).and_then(|()| {
            let is_sound = state.communicator.as_ref().map(Communicator::is_settled);
            match is_sound {
                Some(Err(error)) => return Err(error),
                Some(Ok(_)) => {}
                None => return Err(ended()),
            }
            if !call(&mut state)?
                && let Some(communicator) = &state.communicator
            {
                self.settle(communicator, name)?;
            }
            Ok(())
        });
        done.map_err(|error| self.give_up(&mut state, error))
    }

    /// Waits until the last call is done: for the other ranks, if that call waits for them.
    fn settle(&self, communicator: &Communicator, name: &'static str) -> Result<()> {
        let (begin, mut pause) = (Instant::now(), Pause::default());
        while !communicator.is_settled()? {
            if begin.elapsed() > self.limit {
                return Err(self.late(name));
            }
            pause.take();
        }
        Ok(())
    }
    fn late(&self, name: &'static str) -> Error {
        let (limit, rank) = (self.limit, self.rank);
        let reason = format!(
            "expected all ranks in {name} within {limit:?}, got that rank {rank} waits for another"
        );
        Error::collective(None, reason)
    }

    /// Has no call made from now on, for this reason or an earlier one, and aborts the communicator.
    ///
    /// That may hang in the library itself: after the limit the communicator is left to its thread.
    fn give_up(&self, state: &mut State, error: Error) -> Error {
        let end = state.end.get_or_insert(error).clone();
        let Some(communicator) = state.communicator.take() else { return end };
        let context = self.stream.context().clone();
        let (done, is_done) = mpsc::channel();
        let aborts = thread::Builder::new().name("batchnorm-nccl-abort".into()).spawn(move || {
            let _ = bind(&context);
            communicator.abort();
            let _ = done.send(());
        });
        if aborts.is_ok() {
            let _ = is_done.recv_timeout(self.limit);
        }
        end
    }

    /// Looks at what is queued, until the rank has ended: aborts what is late, or has failed.
    fn look_after(&self) {
        // Often enough for the limit, and for whoever waits for an error of NCCL's.
        let pause = (self.limit / 16).clamp(Duration::from_millis(1), Duration::from_millis(200));
        let mut state = self.state();
        loop {
            if state.has_ended || state.end.is_some() {
                return;
            }
            if state.queued.is_empty() {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            // Another one may have been done with it meanwhile.
            let waited = self.changed.wait_timeout_while(state, pause, |state| !state.has_ended);
            state = waited.map_or_else(|error| error.into_inner().0, |(state, _)| state);
            if let Err(error) = self.look(&mut state) {
                self.give_up(&mut state, error);
            }
        }
    }
    fn look(&self, state: &mut State) -> Result<()> {
        bind(self.stream.context())?;
        if let Some(communicator) = &state.communicator {
            communicator.is_settled()?;
        }
        match state.queued.look(self.limit)? {
            Some(name) => Err(self.late(name)),
            None => Ok(()),
        }
    }

    /// Ends the communicator with those of the other ranks, behind all that is queued.
    fn close(&self, state: &mut State) -> Result<()> {
        let mut pause = Pause::default();
        while !state.queued.is_empty() {
            self.look(state)?;
            pause.take();
        }
        bind(self.stream.context())?;
        let Some(communicator) = &mut state.communicator else { return Ok(()) };
        if !communicator.finalize()? {
            self.settle(communicator, "the end")?;
        }
        match state.communicator.take() {
            Some(communicator) => communicator.destroy(),
            None => Ok(()),
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.has_ended = true;
        self.0.changed.notify_all();
        if state.end.is_some() {
            return;
        }
        let closed = match thread::panicking() {
            true => Err(Error::collective(Some(self.0.rank), "it has left by a panic")),
            false => self.0.close(&mut state),
        };
        if let Err(error) = closed {
            self.0.give_up(&mut state, error);
        }
    }
}
