//! Versions, texts, and communicators from their beginning to their end.

use std::{
    ffi::{CStr, c_char, c_int, c_uint},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use softlibrary::{Nudge, Queue};

use super::{on_rank, put, required};
use crate::{
    rank::{LOG, Phase, RANKS, Rank, alone, call, found, refusing},
    status::{Refusal, Status, text},
    world,
};

/// An `ncclUniqueId`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Id([u8; 128]);

/// The part of an `ncclConfig_t` that all versions begin with.
#[repr(C)]
#[derive(Clone, Copy)]
struct Config {
    size: usize,
    magic: c_uint,
    version: c_uint,
    blocking: c_int,
}

const MAGIC: c_uint = 0xcafe_beef;
/// What marks an id as one of this library.
const MARK: &[u8; 8] = b"softnccl";

#[unsafe(no_mangle)]
unsafe extern "C" fn ncclGetVersion(out: *mut c_int) -> Status {
    // SAFETY: the caller's pointer, as the documentation demands.
    call("ncclGetVersion", || unsafe { put(out, LOG.version() as c_int) }.map(|()| Status::SUCCESS))
}

#[unsafe(no_mangle)]
extern "C" fn ncclGetErrorString(status: u32) -> *const c_char {
    text(status).as_ptr()
}

/// The last refusal of this thread; valid until it asks again.
#[unsafe(no_mangle)]
extern "C" fn ncclGetLastError(_comm: usize) -> *const c_char {
    thread_local! {
        static LAST: std::cell::RefCell<std::ffi::CString> = std::cell::RefCell::default();
    }
    let text = LOG.last_refusal().unwrap_or_default().replace('\0', " ");
    LAST.with_borrow_mut(|last| {
        *last = std::ffi::CString::new(text).unwrap_or_default();
        CStr::as_ptr(last)
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ncclGetUniqueId(out: *mut Id) -> Status {
    static LAST: AtomicU64 = AtomicU64::new(0);
    call("ncclGetUniqueId", || {
        let mut id = [0; 128];
        id[..8].copy_from_slice(MARK);
        id[120..].copy_from_slice(&LAST.fetch_add(1, Ordering::Relaxed).to_le_bytes());
        // SAFETY: the caller's pointer, as the documentation demands.
        unsafe { put(out, Id(id)) }.map(|()| Status::SUCCESS)
    })
}

fn joined(ranks: c_int, id: Id, rank: c_int, is_blocking: bool) -> Result<Rank, Refusal> {
    let usage = |reason: String| (Status::INVALID_USAGE, reason);
    let (Ok(size), Ok(at)) = (usize::try_from(ranks), usize::try_from(rank)) else {
        return Status::INVALID_ARGUMENT.because(format!("rank {rank} of {ranks}"));
    };
    if size == 0 || at >= size {
        return Status::INVALID_ARGUMENT.because(format!("rank {rank} of {ranks}"));
    }
    if !id.0.starts_with(MARK) {
        return Status::INVALID_ARGUMENT.because("the id is not one of ncclGetUniqueId");
    }
    let mut number = [0; 8];
    number.copy_from_slice(&id.0[120..]);
    let queue = Queue::new().or_else(|reason| Status::CUDA.because(reason))?;
    let nudge = Nudge::new().or_else(|reason| Status::CUDA.because(reason))?;
    let context =
        queue.driver().current_context().map_err(|error| (Status::CUDA, error.to_string()))?;
    let world = world::of_id(u64::from_le_bytes(number), size);
    world.join(at, size, context, nudge).map_err(usage)?;
    let (is_connected, settles) = (false, 0);
    let phase = Phase::Gathers;
    Ok(Rank { world, rank: at, is_blocking, queue, phase, is_connected, settles, error: None })
}

/// Of a configuration the first fields alone count.
#[unsafe(no_mangle)]
unsafe extern "C" fn ncclCommInitRankConfig(
    out: *mut usize,
    ranks: c_int,
    id: Id,
    rank: c_int,
    config: *const Config,
) -> Status {
    call("ncclCommInitRankConfig", || {
        required(out, "comm")?;
        required(config, "config")?;
        // SAFETY: not null, and valid as the documentation demands.
        let config = unsafe { config.read() };
        if config.magic != MAGIC || config.size < size_of::<Config>() {
            return Status::INVALID_ARGUMENT.because("the configuration was not initialized");
        }
        if config.version < 21_400 {
            return Status::INVALID_ARGUMENT.because("before 2.14 none was non-blocking");
        }
        let is_blocking = config.blocking != 0;
        let rank = joined(ranks, id, rank, is_blocking)?;
        let world = Arc::clone(&rank.world);
        let comm = RANKS.insert(rank);
        // SAFETY: the caller's pointer, as the documentation demands.
        unsafe { put(out, comm) }?;
        Ok(if is_blocking { world.gathered() } else { Status::IN_PROGRESS })
    })
}

/// A failure that a test asks for becomes the state, as do errors of ranks that do not come together.
#[unsafe(no_mangle)]
unsafe extern "C" fn ncclCommGetAsyncError(comm: usize, out: *mut Status) -> Status {
    const NAME: &str = "ncclCommGetAsyncError";
    refusing(NAME, || {
        required(out, "asyncError")?;
        let rank = found(comm)?;
        let mut rank = alone(&rank)?;
        if let Some(status) = LOG.failure(NAME).and_then(Status::from_number) {
            rank.error = Some(status);
        }
        // SAFETY: the caller's pointer, as the documentation demands.
        unsafe { put(out, rank.state()) }.map(|()| Status::SUCCESS)
    })
}

/// Not done before all ranks have called it.
#[unsafe(no_mangle)]
extern "C" fn ncclCommFinalize(comm: usize) -> Status {
    call("ncclCommFinalize", || {
        on_rank(comm, |rank| {
            rank.world.finalize(rank.rank);
            rank.phase = Phase::Finalizes;
            Ok(if rank.is_blocking { Status::SUCCESS } else { Status::IN_PROGRESS })
        })
    })
}

#[unsafe(no_mangle)]
extern "C" fn ncclCommDestroy(comm: usize) -> Status {
    call("ncclCommDestroy", || {
        let rank = found(comm)?;
        let mut this = alone(&rank)?;
        if this.phase != Phase::Finalizes || this.state() != Status::SUCCESS {
            return Status::INVALID_USAGE.because("the communicator has not been finalized");
        }
        end(comm, &this)
    })
}

/// Ends a communicator as it is; what its streams wait for, they wait for no longer.
#[unsafe(no_mangle)]
extern "C" fn ncclCommAbort(comm: usize) -> Status {
    call("ncclCommAbort", || {
        let rank = found(comm)?;
        let this = alone(&rank)?;
        this.world.abort(this.rank);
        end(comm, &this)
    })
}

/// Frees what a communicator has, behind its work.
fn end(comm: usize, rank: &Rank) -> Result<Status, Refusal> {
    RANKS.remove(comm).or_else(|reason| Status::INVALID_ARGUMENT.because(reason))?;
    rank.queue.close();
    rank.world.leave(rank.rank);
    Ok(Status::SUCCESS)
}
