//! How NCCL is called: functions of the library that is loaded, and what becomes of the results that they answer.
//!
//! A result is a number here, not cudarc's enum, for which one that a newer library has would be undefined behaviour.
use crate::engine::pointers::Pointers;
use crate::memory::refused;
use crate::{DType, Error, Real, Result, library};
use cudarc::driver::sys::{CUresult::CUDA_ERROR_NOT_READY, cuStreamQuery};
use cudarc::driver::{CudaContext, CudaStream, CudaView, CudaViewMut, DriverError};
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::{Arc, OnceLock};

/// What every rank of a communicator is given by one of them: an `ncclUniqueId`.
pub type Id = [u8; 128];

/// An `ncclUniqueId` as it is passed.
#[repr(C)]
struct RawId(Id);

/// The `ncclConfig_t` of version 2.18, of which later ones take the fields that follow as unset.
#[repr(C)]
struct Config {
    size: usize,
    magic: c_uint,
    version: c_uint,
    blocking: c_int,
    cga_cluster_size: c_int,
    min_ctas: c_int,
    max_ctas: c_int,
    net_name: *const c_char,
    split_share: c_int,
}

/// `NCCL_CONFIG_UNDEF_INT` of nccl.h.
const UNSET: c_int = c_int::MIN;

impl Config {
    const NON_BLOCKING: Self = Self {
        size: size_of::<Self>(),
        magic: 0xcafe_beef, // NCCL_API_MAGIC
        version: 21_800,
        blocking: 0,
        cga_cluster_size: UNSET,
        min_ctas: UNSET,
        max_ctas: UNSET,
        net_name: std::ptr::null(),
        split_share: UNSET,
    };
}

const SUCCESS: u32 = 0;
const IN_PROGRESS: u32 = 7;

/// The handle of a communicator.
type Comm = *mut c_void;

macro_rules! functions {
    ($($field:ident = $name:ident($($type:ty),*) -> $answer:ty;)*) => {
        /// Every function of NCCL that is called here.
        const SYMBOLS: &[&str] = &[$(stringify!($name)),*];

        struct Functions {
            $($field: unsafe extern "C" fn($($type),*) -> $answer,)*
        }
        impl Functions {
            fn of(library: &libloading::Library) -> std::result::Result<Self, libloading::Error> {
                Ok(Self {
                    // SAFETY: so it is declared in nccl.h.
                    $($field: *unsafe { library.get(stringify!($name)) }?,)*
                })
            }
        }
    };
}
functions! {
    abort = ncclCommAbort(Comm) -> u32;
    all_gather = ncclAllGather(u64, u64, usize, c_int, Comm, *mut c_void) -> u32;
    all_reduce = ncclAllReduce(u64, u64, usize, c_int, c_int, Comm, *mut c_void) -> u32;
    async_error = ncclCommGetAsyncError(Comm, *mut u32) -> u32;
    destroy = ncclCommDestroy(Comm) -> u32;
    finalize = ncclCommFinalize(Comm) -> u32;
    init = ncclCommInitRankConfig(*mut Comm, c_int, RawId, c_int, *mut Config) -> u32;
    last_error = ncclGetLastError(Comm) -> *const c_char;
    text = ncclGetErrorString(u32) -> *const c_char;
    unique_id = ncclGetUniqueId(*mut RawId) -> u32;
    version = ncclGetVersion(*mut c_int) -> u32;
}

fn functions() -> Result<&'static Functions> {
    static FUNCTIONS: OnceLock<Functions> = OnceLock::new();
    if let Some(functions) = FUNCTIONS.get() {
        return Ok(functions);
    }
    let functions = Functions::of(library::nccl(SYMBOLS)?);
    let functions = functions
        .map_err(|error| Error::LibraryUnfit { library: "NCCL", reason: error.to_string() })?;
    Ok(FUNCTIONS.get_or_init(|| functions))
}

/// Makes sure that there is an NCCL to call.
pub fn find() -> Result<()> {
    functions().map(drop)
}

/// The version of the library, 23000 for 2.30.0.
pub fn version() -> Result<usize> {
    let (functions, mut version) = (functions()?, 0);
    // SAFETY: the version can be written.
    let status = unsafe { (functions.version)(&mut version) };
    functions.answer("ncclGetVersion", status, std::ptr::null_mut())?;
    Ok(usize::try_from(version).unwrap_or_default())
}

/// A new id.
pub fn unique_id() -> Result<Id> {
    let (functions, mut id) = (functions()?, RawId([0; 128]));
    // SAFETY: the id can be written.
    let status = unsafe { (functions.unique_id)(&mut id) };
    functions.answer("ncclGetUniqueId", status, std::ptr::null_mut())?;
    Ok(id.0)
}

impl Functions {
    /// What becomes of the result that a call answered: whether it is done, and not in progress.
    fn answer(&self, call: &str, status: u32, comm: Comm) -> Result<bool> {
        match status {
            SUCCESS => Ok(true),
            IN_PROGRESS => Ok(false),
            status => Err(self.error(call, status, comm)),
        }
    }
    fn error(&self, call: &str, status: u32, comm: Comm) -> Error {
        let text = |text: *const c_char| match text.is_null() {
            true => String::new(),
            // SAFETY: a text of the library that ends in 0, copied before anything else is asked.
            false => unsafe { CStr::from_ptr(text) }.to_string_lossy().trim().to_string(),
        };
        // SAFETY: any number has a text; the last error is told of any communicator that lives, and of none.
        let (what, last) = unsafe { (text((self.text)(status)), text((self.last_error)(comm))) };
        let last = if last.is_empty() { last } else { format!(": {last}") };
        Error::collective(None, format!("{call} answered {status}, {what}{last}"))
    }
}

/// A communicator that does not block the host. Whoever drops it leaks it: it ends by [`destroy`](Self::destroy) or
/// [`abort`](Self::abort).
pub struct Communicator {
    functions: &'static Functions,
    comm: Comm,
    context: Arc<CudaContext>,
    ranks: usize,
}

// SAFETY: a communicator belongs to no thread; it is used by one at a time, as it is not `Sync`.
unsafe impl Send for Communicator {}

impl Communicator {
    /// That of one rank, on a device; in progress until its [state](Self::is_settled) says otherwise.
    pub fn new(context: &Arc<CudaContext>, ranks: usize, id: Id, rank: usize) -> Result<Self> {
        bind(context)?;
        let functions = functions()?;
        let int = |what, value: usize| {
            let reason = || format!("expected at most {}, got {value}", c_int::MAX);
            c_int::try_from(value).map_err(|_| Error::invalid(what, reason()))
        };
        let (all, rank) = (int("ranks", ranks)?, int("rank", rank)?);
        let (mut comm, mut config) = (std::ptr::null_mut(), Config::NON_BLOCKING);
        // SAFETY: both can be written; the fields that a configuration begins with are what its version says.
        let status = unsafe { (functions.init)(&mut comm, all, RawId(id), rank, &mut config) };
        let done = functions.answer("ncclCommInitRankConfig", status, std::ptr::null_mut());
        if let Err(error) = done {
            if !comm.is_null() {
                // SAFETY: the handle that the call gave, which nobody has.
                let _ = unsafe { (functions.abort)(comm) };
            }
            return Err(error);
        }
        Ok(Self { functions, comm, context: context.clone(), ranks })
    }

    /// Whether the last call is done; an error where it, or what it has queued, has failed.
    pub fn is_settled(&self) -> Result<bool> {
        const CALL: &str = "ncclCommGetAsyncError";
        let mut state = SUCCESS;
        // SAFETY: the communicator lives, and the state can be written.
        let status = unsafe { (self.functions.async_error)(self.comm, &mut state) };
        self.answer(CALL, status)?;
        match state {
            SUCCESS => Ok(true),
            IN_PROGRESS => Ok(false),
            state => Err(self.functions.error("a call before", state, self.comm)),
        }
    }

    /// Queues a gather on the stream of `pointers`, which keep the arguments for it.
    pub fn all_gather<'a>(
        &mut self,
        (part, all): (CudaView<'a, f64>, CudaViewMut<'a, f64>),
        pointers: &mut Pointers<'a>,
    ) -> Result<bool> {
        let (count, got) = (part.len(), all.len());
        let expected = count.saturating_mul(self.ranks);
        if got != expected {
            return Err(Error::Length { what: "all", expected, got });
        }
        let stream = self.stream(pointers)?;
        let (from, to) = (pointers.read(part).address(), pointers.write(all).address());
        let (call, kind) = (self.functions.all_gather, data_type::<f64>());
        // SAFETY: memory of those lengths, kept until the stream has done it, and both of the communicator's context;
        // the communicator lives.
        let status = unsafe { call(from, to, count, kind, self.comm, stream) };
        self.answer("ncclAllGather", status)
    }

    /// Queues the addition over all ranks, in place, on the stream of `pointers`.
    pub fn all_reduce<'a, P: Real>(
        &mut self,
        sums: CudaViewMut<'a, P>,
        pointers: &mut Pointers<'a>,
    ) -> Result<bool> {
        const SUM: c_int = 0;
        let (count, stream) = (sums.len(), self.stream(pointers)?);
        let at = pointers.write(sums).address();
        let (call, kind) = (self.functions.all_reduce, data_type::<P>());
        // SAFETY: as of the gather.
        let status = unsafe { call(at, at, count, kind, SUM, self.comm, stream) };
        self.answer("ncclAllReduce", status)
    }
    /// The stream of some pointers, if it is of this context.
    fn stream(&self, pointers: &Pointers<'_>) -> Result<*mut c_void> {
        let (here, there) = (&self.context, pointers.stream().context());
        if here == there {
            return Ok(pointers.stream().cu_stream().cast());
        }
        let (here, there) = (here.ordinal(), there.ordinal());
        let reason =
            format!("expected a stream of device {here}, this rank's, got one of device {there}");
        Err(Error::invalid("on", reason))
    }

    /// Says that no call follows, on every rank; in progress until all have.
    pub fn finalize(&mut self) -> Result<bool> {
        // SAFETY: the communicator lives.
        let status = unsafe { (self.functions.finalize)(self.comm) };
        self.answer("ncclCommFinalize", status)
    }
    /// Frees one that is finalized.
    pub fn destroy(self) -> Result<()> {
        // SAFETY: the communicator lives, and nobody has it after this.
        let status = unsafe { (self.functions.destroy)(self.comm) };
        self.answer("ncclCommDestroy", status).map(drop)
    }
    /// Frees one whatever it waits for.
    pub fn abort(self) {
        // SAFETY: the communicator lives, and nobody has it after this. There is nobody to tell what it answers.
        let _ = unsafe { (self.functions.abort)(self.comm) };
    }

    fn answer(&self, call: &str, status: u32) -> Result<bool> {
        self.functions.answer(call, status, self.comm)
    }
}

/// Makes a context the current one of this thread.
pub fn bind(context: &Arc<CudaContext>) -> Result<()> {
    context.bind_to_thread().map_err(refused("cuCtxSetCurrent"))
}

/// Whether a stream has done all that it was given.
pub fn is_done(stream: &CudaStream) -> Result<bool> {
    bind(stream.context())?;
    // SAFETY: the stream lives, and its context is current.
    match unsafe { cuStreamQuery(stream.cu_stream()) }.result() {
        Ok(()) => Ok(true),
        Err(DriverError(CUDA_ERROR_NOT_READY)) => Ok(false),
        Err(error) => Err(refused("cuStreamQuery")(error)),
    }
}

/// Of `ncclDataType_t`.
fn data_type<P: Real>() -> c_int {
    match P::DTYPE {
        DType::F64 => 8,
        _ => 7,
    }
}
