//! The driver's state behind one lock, and what each thread has of its own.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, HashMap},
    ops::{Deref, DerefMut},
    sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError},
    thread::ThreadId,
};

use crate::{
    code::Code,
    device::Device,
    graph::{Capture, Executable, Graph},
    host::Pinned,
    managed::Managed,
    memory::Pool,
    module::{Function, Module},
    profile::PROFILES,
    queue::Queue,
    stream::{Event, Stream},
};

/// What a handle is: a number that no two objects share, whatever their kind.
pub type Id = u64;

/// The seed where neither a test nor the environment (`SOFTCUDA_SEED`) chooses one.
const DEFAULT_SEED: u64 = 1;

#[derive(Debug)]
pub struct Context {
    pub device: usize,
    pub is_primary: bool,
    /// Set once queued work has failed: what every later call answers.
    pub sticky: Option<Code>,
    /// The stream that handle 0 stands for.
    pub legacy: Id,
    /// The streams that handle 2 stands for.
    pub per_thread: HashMap<ThreadId, Id>,
    pub limits: BTreeMap<u32, usize>,
    pub cache_config: u32,
    pub flags: u32,
}

#[derive(Debug)]
pub struct Driver {
    pub is_initialised: bool,
    /// The seed of a device that has not been given one of its own.
    pub seed: u64,
    pub devices: Vec<Device>,
    pub contexts: BTreeMap<Id, Context>,
    pub streams: BTreeMap<Id, Stream>,
    pub events: BTreeMap<Id, Event>,
    pub modules: BTreeMap<Id, Module>,
    pub functions: BTreeMap<Id, Function>,
    /// What texts that were loaded before say.
    pub texts: HashMap<Box<str>, ptx_vm::Module>,
    pub captures: BTreeMap<Id, Capture>,
    pub graphs: BTreeMap<Id, Arc<Graph>>,
    pub executables: BTreeMap<Id, Executable>,
    pub pools: BTreeMap<Id, Pool>,
    pub pinned: BTreeMap<usize, (Id, Pinned)>,
    /// By the address that host and device have in common.
    pub managed: BTreeMap<u64, Managed>,
    pub queue: Queue,
    last: Id,
}

impl Driver {
    fn new() -> Self {
        let seed = std::env::var("SOFTCUDA_SEED").ok().and_then(|seed| seed.parse().ok());
        let mut driver = Self {
            is_initialised: false,
            seed: seed.unwrap_or(DEFAULT_SEED),
            devices: Vec::new(),
            contexts: BTreeMap::new(),
            streams: BTreeMap::new(),
            events: BTreeMap::new(),
            modules: BTreeMap::new(),
            functions: BTreeMap::new(),
            texts: HashMap::new(),
            captures: BTreeMap::new(),
            graphs: BTreeMap::new(),
            executables: BTreeMap::new(),
            pools: BTreeMap::new(),
            pinned: BTreeMap::new(),
            managed: BTreeMap::new(),
            queue: Queue::default(),
            last: 0x1000,
        };
        for (ordinal, profile) in PROFILES.iter().enumerate() {
            let pool = driver.fresh();
            driver.pools.insert(pool, Pool::new(ordinal));
            let mut device = Device::new(ordinal, profile, pool, driver.seed);
            device
                .memory()
                .let_equal_writes_pass(std::env::var_os("SOFTCUDA_EQUAL_WRITES").is_some());
            driver.devices.push(device);
        }
        driver
    }

    /// A number that no object has had.
    pub fn fresh(&mut self) -> Id {
        self.last += 0x10;
        self.last
    }

    /// The device of a context that exists.
    pub fn device_of(&mut self, context: Id) -> Result<&mut Device, Code> {
        let device = self.contexts.get(&context).ok_or(Code::InvalidContext)?.device;
        Ok(&mut self.devices[device])
    }

    /// The device of that number.
    pub fn device(&mut self, device: i32) -> Result<&mut Device, Code> {
        let device = usize::try_from(device).map_err(|_| Code::InvalidDevice)?;
        self.devices.get_mut(device).ok_or(Code::InvalidDevice)
    }

    /// An error if the context is gone or its work has failed.
    pub fn check_context(&self, context: Id) -> Result<(), Code> {
        match self.contexts.get(&context) {
            None => Err(Code::ContextIsDestroyed),
            Some(context) => context.sticky.map_or(Ok(()), Err),
        }
    }
}

static DRIVER: LazyLock<Mutex<Driver>> = LazyLock::new(|| Mutex::new(Driver::new()));
static CHANGED: Condvar = Condvar::new();

thread_local! {
    static CURRENT: RefCell<Vec<Id>> = const { RefCell::new(Vec::new()) };
    static IN_CALLBACK: Cell<bool> = const { Cell::new(false) };
}

/// Works on the stack of current contexts of this thread.
pub fn with_current<T>(f: impl FnOnce(&mut Vec<Id>) -> T) -> T {
    CURRENT.with_borrow_mut(f)
}

/// Whether this thread runs a host function for the driver, where no call is allowed.
pub fn in_callback() -> bool {
    IN_CALLBACK.get()
}

/// Says that this thread runs a host function.
pub fn enter_callback() {
    IN_CALLBACK.set(true);
}

/// The driver, locked. The lock can be let go for a while, but never by accident.
pub struct Locked(Option<MutexGuard<'static, Driver>>);

impl Locked {
    pub fn new() -> Self {
        Self(Some(DRIVER.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    /// Lets other threads in until one of them changes something.
    pub fn wait(&mut self) {
        let guard = self.0.take().expect("locked");
        self.0 = Some(CHANGED.wait(guard).unwrap_or_else(PoisonError::into_inner));
    }

    /// Does something without the lock.
    pub fn unlocked<T>(&mut self, f: impl FnOnce() -> T) -> T {
        self.0 = None;
        let result = f();
        *self = Self::new();
        result
    }

    /// Wakes those that wait.
    pub fn changed(&self) {
        CHANGED.notify_all();
    }
}

impl Deref for Locked {
    type Target = Driver;

    fn deref(&self) -> &Driver {
        self.0.as_ref().expect("locked")
    }
}

impl DerefMut for Locked {
    fn deref_mut(&mut self) -> &mut Driver {
        self.0.as_mut().expect("locked")
    }
}
