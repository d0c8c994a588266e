//! The public calls of the CUDA driver that the libraries are made of, whoever the driver is.

use std::{
    ffi::{c_uint, c_void},
    sync::{Mutex, OnceLock},
};

use libloading::Library;

/// A call that the driver has refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{call} answered {code}")]
pub struct Refused {
    /// The call.
    pub call: &'static str,
    /// Its `CUresult`.
    pub code: u32,
}

/// A function of the host that a stream calls.
pub(crate) type HostFunction = unsafe extern "C" fn(*mut c_void);

macro_rules! driver {
    ($($field:ident = $symbol:literal ($($argument:ident: $type:ty),*);)*) => {
        /// The driver.
        #[derive(Debug)]
        pub struct Driver {
            $($field: unsafe extern "C" fn($($type),*) -> u32,)*
        }

        impl Driver {
            fn from(library: &Library) -> Result<Self, libloading::Error> {
                Ok(Self {
                    $(
                        // SAFETY: the driver's function of this name has this type.
                        $field: *unsafe { library.get(concat!($symbol, "\0").as_bytes()) }?,
                    )*
                })
            }

            $(
                /// # Safety
                /// What the driver's documentation demands of pointers and handles.
                pub(crate) unsafe fn $field(&self, $($argument: $type),*) -> Result<(), Refused> {
                    // SAFETY: by the contract of this function.
                    match unsafe { (self.$field)($($argument),*) } {
                        0 => Ok(()),
                        code => Err(Refused { call: $symbol, code }),
                    }
                }
            )*
        }
    };
}

driver! {
    current = "cuCtxGetCurrent"(context: *mut usize);
    push = "cuCtxPushCurrent_v2"(context: usize);
    pop = "cuCtxPopCurrent_v2"(context: *mut usize);
    finish_context = "cuCtxSynchronize"();
    context_of = "cuStreamGetCtx"(stream: usize, context: *mut usize);
    is_capturing = "cuStreamIsCapturing"(stream: usize, status: *mut c_uint);
    query = "cuStreamQuery"(stream: usize);
    finish = "cuStreamSynchronize"(stream: usize);
    launch = "cuLaunchHostFunc"(stream: usize, function: HostFunction, data: *mut c_void);
    allocate_host = "cuMemHostAlloc"(address: *mut usize, bytes: usize, flags: c_uint);
    free_host = "cuMemFreeHost"(address: usize);
    download = "cuMemcpyDtoHAsync_v2"(target: usize, source: u64, bytes: usize, stream: usize);
    upload = "cuMemcpyHtoDAsync_v2"(target: u64, source: usize, bytes: usize, stream: usize);
    allocate = "cuMemAlloc_v2"(address: *mut u64, bytes: usize);
    free = "cuMemFree_v2"(address: u64);
    create_stream = "cuStreamCreate"(stream: *mut usize, flags: c_uint);
    destroy_stream = "cuStreamDestroy_v2"(stream: usize);
    fill = "cuMemsetD8Async"(target: u64, value: u8, bytes: usize, stream: usize);
    create_event = "cuEventCreate"(event: *mut usize, flags: c_uint);
    record = "cuEventRecord"(event: usize, stream: usize);
    finish_event = "cuEventSynchronize"(event: usize);
    destroy_event = "cuEventDestroy_v2"(event: usize);
}

impl Driver {
    /// The driver of this process, by the names that callers usually ask the loader for.
    ///
    /// # Errors
    /// Why there is none.
    pub fn get() -> Result<&'static Self, String> {
        static DRIVER: OnceLock<Driver> = OnceLock::new();
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _guard = ONE_AT_A_TIME.lock();
        if let Some(driver) = DRIVER.get() {
            return Ok(driver);
        }
        let names = ["libcuda.so", "libcuda.so.1"];
        // SAFETY: the driver, whose loading only sets up its own state.
        let found = names.iter().find_map(|name| unsafe { Library::new(*name) }.ok());
        let library = found.ok_or_else(|| format!("the loader finds none of {names:?}"))?;
        let driver = Self::from(&library).map_err(|error| error.to_string())?;
        // It stays for as long as the process lives, as its functions are kept.
        std::mem::forget(library);
        Ok(DRIVER.get_or_init(|| driver))
    }

    /// The current context, 0 for none.
    ///
    /// # Errors
    /// What the driver refuses.
    pub fn current_context(&self) -> Result<usize, Refused> {
        let mut context = 0;
        // SAFETY: `context` can be written.
        unsafe { self.current(&mut context) }?;
        Ok(context)
    }

    /// The context of a stream.
    ///
    /// # Errors
    /// What the driver refuses.
    pub fn stream_context(&self, stream: usize) -> Result<usize, Refused> {
        let mut context = 0;
        // SAFETY: `context` can be written; the driver checks the stream.
        unsafe { self.context_of(stream, &mut context) }?;
        Ok(context)
    }

    /// Whether all work of a stream is done.
    ///
    /// # Errors
    /// What the driver refuses.
    pub fn is_done(&self, stream: usize) -> Result<bool, Refused> {
        const NOT_READY: u32 = 600;
        // SAFETY: the driver checks the stream.
        match unsafe { self.query(stream) } {
            Err(Refused { code: NOT_READY, .. }) => Ok(false),
            other => other.map(|()| true),
        }
    }

    /// Waits for a stream.
    ///
    /// # Errors
    /// What the driver refuses, and failures of work that was queued before.
    pub fn wait(&self, stream: usize) -> Result<(), Refused> {
        // SAFETY: the driver checks the stream.
        unsafe { self.finish(stream) }
    }
}
