//! What calls MPI. The communicators of the `mpi` crate are neither `Send` nor `Sync`, and its non-blocking calls
//! borrow memory for as long as they run, where a call that is given up runs for ever: so its bindings are called.
use batchnorm::{Error, Result};
use mpi::ffi;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// MPI allows one call at a time: which threads make them is nothing to it.
static MPI: Mutex<()> = Mutex::new(());

fn one_call() -> MutexGuard<'static, ()> {
    MPI.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether a call was given up, after which the end of MPI would wait for it.
static GIVEN_UP: AtomicBool = AtomicBool::new(false);

pub fn has_given_up() -> bool {
    GIVEN_UP.load(Ordering::Relaxed)
}

/// MPI, initialized.
pub struct Universe(mpi::environment::Universe);

impl Universe {
    pub fn begin() -> Result<Self> {
        let begun = mpi::initialize_with_threading(mpi::Threading::Serialized);
        let error = |reason: &str| Err(Error::collective(None, reason));
        match begun {
            None => error("expected an MPI that nobody has initialized, got one that is"),
            Some((_, got)) if got < mpi::Threading::Serialized => error(
                "expected an MPI whose calls may come from several threads, got one of one thread",
            ),
            Some((universe, _)) => Ok(Self(universe)),
        }
    }
    /// All processes, apart from whatever else speaks to them.
    pub fn world(&self) -> Result<Communicator> {
        let _one = one_call();
        let mut own = MaybeUninit::uninit();
        // SAFETY: MPI is initialized, and writes the communicator. Errors are returned from then on, of both: an error
        // that MPI raises on the world ends the process otherwise.
        unsafe {
            check(
                "MPI_Comm_set_errhandler",
                ffi::MPI_Comm_set_errhandler(ffi::RSMPI_COMM_WORLD, ffi::RSMPI_ERRORS_RETURN),
            )?;
            check("MPI_Comm_dup", ffi::MPI_Comm_dup(ffi::RSMPI_COMM_WORLD, own.as_mut_ptr()))?;
            Communicator::own(own.assume_init())
        }
    }
    /// Waits for all processes to come here.
    pub fn end(self) {
        drop(self.0);
    }
}

/// Ends the job, this process first.
pub fn abort() -> ! {
    // No lock: a call that another thread is in may never end.
    // SAFETY: MPI is initialized; where it is not any more, the process ends all the same.
    unsafe { ffi::MPI_Abort(ffi::RSMPI_COMM_WORLD, 1) };
    std::process::abort()
}

/// A communicator of this library's own.
pub struct Communicator(ffi::MPI_Comm);

// SAFETY: a handle, which any thread may use, one call at a time (`one_call`), as MPI was initialized for.
unsafe impl Send for Communicator {}

impl Communicator {
    /// # Safety
    /// A live communicator, of which nobody else knows.
    unsafe fn own(raw: ffi::MPI_Comm) -> Result<Self> {
        // SAFETY: it is live.
        let code = unsafe { ffi::MPI_Comm_set_errhandler(raw, ffi::RSMPI_ERRORS_RETURN) };
        check("MPI_Comm_set_errhandler", code)?;
        Ok(Self(raw))
    }
    pub fn rank(&self) -> Result<usize> {
        let (_one, mut rank) = (one_call(), 0);
        // SAFETY: it is live.
        check("MPI_Comm_rank", unsafe { ffi::MPI_Comm_rank(self.0, &mut rank) })?;
        Ok(rank as usize)
    }
    pub fn size(&self) -> Result<usize> {
        let (_one, mut size) = (one_call(), 0);
        // SAFETY: it is live.
        check("MPI_Comm_size", unsafe { ffi::MPI_Comm_size(self.0, &mut size) })?;
        Ok(size as usize)
    }
    /// The ranks of this color, in the order of their ranks here; waits for all.
    pub fn split(&self, color: usize, rank: usize) -> Result<Self> {
        let (_one, mut part) = (one_call(), MaybeUninit::uninit());
        // SAFETY: it is live, and MPI writes the communicator.
        unsafe {
            let (color, rank) = (count(color)?, count(rank)?);
            check("MPI_Comm_split", ffi::MPI_Comm_split(self.0, color, rank, part.as_mut_ptr()))?;
            Self::own(part.assume_init())
        }
    }

    /// Everybody's bytes.
    pub fn gather(&self, mut mine: Vec<u8>, ranks: usize, limit: Duration) -> Result<Vec<u8>> {
        let (each, mut all) = (count(mine.len())?, vec![0u8; mine.len().saturating_mul(ranks)]);
        let (from, to) = (mine.as_mut_ptr(), all.as_mut_ptr());
        let started = self.start("MPI_Iallgather", |comm, request| {
            // SAFETY: `to` has room for the bytes of all ranks, and both stay where they are until the call is over,
            // or for ever (`wait`).
            unsafe {
                let byte = ffi::RSMPI_UINT8_T;
                ffi::MPI_Iallgather(from.cast(), each, byte, to.cast(), each, byte, comm, request)
            }
        });
        wait(started, limit, (mine, all)).map(|(_, all)| all)
    }
    /// The bytes of one rank.
    pub fn broadcast(&self, from: usize, mut bytes: Vec<u8>, limit: Duration) -> Result<Vec<u8>> {
        let (len, from, at) = (count(bytes.len())?, count(from)?, bytes.as_mut_ptr());
        let started = self.start("MPI_Ibcast", |comm, request| {
            // SAFETY: as in `gather`.
            unsafe { ffi::MPI_Ibcast(at.cast(), len, ffi::RSMPI_UINT8_T, from, comm, request) }
        });
        wait(started, limit, bytes)
    }
    /// The sums of everybody's numbers on one rank; what comes back on others is anything.
    pub fn reduce(&self, to: usize, mut mine: Vec<f64>, limit: Duration) -> Result<Vec<f64>> {
        let (len, to, mut all) = (count(mine.len())?, count(to)?, vec![0f64; mine.len()]);
        let (from, at) = (mine.as_mut_ptr(), all.as_mut_ptr());
        let started = self.start("MPI_Ireduce", |comm, request| {
            // SAFETY: as in `gather`.
            unsafe {
                let (double, sum) = (ffi::RSMPI_DOUBLE, ffi::RSMPI_SUM);
                ffi::MPI_Ireduce(from.cast(), at.cast(), len, double, sum, to, comm, request)
            }
        });
        wait(started, limit, (mine, all)).map(|(_, all)| all)
    }

    fn start(
        &self,
        call: &'static str,
        start: impl FnOnce(ffi::MPI_Comm, *mut ffi::MPI_Request) -> i32,
    ) -> Result<(&'static str, ffi::MPI_Request)> {
        // SAFETY: a constant of the library.
        let mut request = unsafe { ffi::RSMPI_REQUEST_NULL };
        let _one = one_call();
        check(call, start(self.0, &mut request))?;
        Ok((call, request))
    }
}

/// What is exchanged, once it has been. A call of all ranks cannot be taken back: where it is given up, MPI keeps its
/// memory.
fn wait<T>(
    started: Result<(&'static str, ffi::MPI_Request)>,
    limit: Duration,
    memory: T,
) -> Result<T> {
    let (call, mut request) = match started {
        Ok(started) => started,
        Err(error) => {
            GIVEN_UP.store(true, Ordering::Relaxed);
            std::mem::forget(memory);
            return Err(error);
        }
    };
    let begin = Instant::now();
    loop {
        let mut is_done = 0;
        let code = {
            let _one = one_call();
            // SAFETY: the request is that of a call which was started and has not been over yet.
            unsafe { ffi::MPI_Test(&mut request, &mut is_done, ffi::RSMPI_STATUS_IGNORE) }
        };
        let done = check(call, code);
        if done.is_ok() && is_done != 0 {
            return Ok(memory);
        }
        let late = begin.elapsed() > limit;
        if done.is_err() || late {
            GIVEN_UP.store(true, Ordering::Relaxed);
            std::mem::forget(memory);
            done?;
            let reason =
                format!("expected all ranks in {call} within {limit:?}, got not all of them");
            return Err(Error::collective(None, reason));
        }
        std::thread::yield_now();
    }
}

/// As MPI counts.
fn count(len: usize) -> Result<i32> {
    i32::try_from(len).map_err(|_| {
        let reason = format!("expected at most {} bytes or ranks in a call, got {len}", i32::MAX);
        Error::collective(None, reason)
    })
}

fn check(call: &'static str, code: i32) -> Result<()> {
    if code == ffi::MPI_SUCCESS as i32 {
        return Ok(());
    }
    let (mut text, mut len) = ([0u8; 1024], 0);
    // SAFETY: there is room for more than MPI_MAX_ERROR_STRING.
    unsafe { ffi::MPI_Error_string(code, text.as_mut_ptr().cast(), &mut len) };
    let text = String::from_utf8_lossy(&text[..(len as usize).min(text.len())]).into_owned();
    Err(Error::collective(None, format!("{call}: {text}")))
}
