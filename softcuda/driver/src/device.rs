//! One device: its memory, what is allocated there, and what it has to tell.

use std::collections::BTreeMap;

use ptx_vm::{
    fault::FaultKind,
    memory::{Memory, MemoryError},
};

use crate::{
    code::Code,
    driver::Id,
    profile::Profile,
    report::{Log, Messages},
    rng::Rng,
};

/// Where the addresses of the first device begin, and how far apart those of two devices lie: an address tells its
/// device, as with unified addressing.
const FIRST_ADDRESS: u64 = 0x5000_0000_0000;
/// Room for 4 million allocations of a process: none is used again.
const ADDRESSES: u64 = 1 << 42;
/// Bytes between two allocations at least, so that a wrong index meets none.
const GUARD: u64 = 1 << 20;
const ALIGNMENT: u64 = 256;
/// What a launch may take where a test sets no other bound.
const DEFAULT_BUDGET: u64 = 4_000_000_000;

/// [`DEFAULT_BUDGET`], or what the environment says.
fn default_budget() -> u64 {
    let set = std::env::var("SOFTCUDA_BUDGET").ok().and_then(|set| set.parse().ok());
    set.unwrap_or(DEFAULT_BUDGET)
}

/// What calls may do with an allocation. This runs ahead of [`Memory`], which follows when the queued work is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Live,
    /// It belongs to a graph that has not been launched, or has freed it since.
    Unbacked,
    /// A free of it is queued.
    Freed,
}

#[derive(Clone, Debug)]
pub struct Allocation {
    pub bytes: u64,
    pub context: Id,
    pub state: State,
    /// Whether it was allocated in the order of a stream, and by which pool.
    pub pool: Option<Id>,
    /// Whether a graph allocates it, at each launch anew.
    pub graph: bool,
    /// The call that made it, for messages.
    pub origin: &'static str,
}

#[derive(Debug)]
pub struct Device {
    pub ordinal: usize,
    pub profile: &'static Profile,
    /// Away while a kernel runs.
    pub memory: Option<Memory>,
    pub allocations: BTreeMap<u64, Allocation>,
    next_address: u64,
    /// Of all choices: the order of streams here, of blocks and warps in launches.
    seed: u64,
    pub rng: Rng,
    /// Instructions, summed over its threads, after which a launch counts as hanging.
    pub budget: u64,
    /// Bytes of every multiprocessor's shared memory that launches do not get.
    pub shared_taken: u32,
    pub primary: Option<Id>,
    pub primary_count: u32,
    pub default_pool: Id,
    pub current_pool: Id,
    pub log: Log,
}

/// What went wrong with queued work, and the code that its context answers with from then on.
#[derive(Debug)]
pub struct Failed {
    pub code: Code,
    pub message: String,
}

impl From<MemoryError> for Failed {
    fn from(error: MemoryError) -> Self {
        let code = match error {
            MemoryError::Uninitialised { .. } => Code::LaunchFailed,
            _ => Code::IllegalAddress,
        };
        Self { code, message: error.to_string() }
    }
}

/// The code that hardware would give for a fault; 719 for what it would not notice.
pub fn fault_code(kind: FaultKind) -> Code {
    match kind {
        FaultKind::OutOfBounds => Code::IllegalAddress,
        FaultKind::Misaligned => Code::MisalignedAddress,
        FaultKind::Assertion => Code::Assert,
        FaultKind::Hang | FaultKind::Deadlock => Code::LaunchTimeout,
        FaultKind::InvalidLaunch => Code::InvalidValue,
        _ => Code::LaunchFailed,
    }
}

impl Device {
    pub fn new(ordinal: usize, profile: &'static Profile, pool: Id, seed: u64) -> Self {
        Self {
            ordinal,
            profile,
            memory: Some(Memory::new(profile.memory)),
            allocations: BTreeMap::new(),
            next_address: FIRST_ADDRESS + ordinal as u64 * ADDRESSES,
            seed,
            rng: Rng::new(seed),
            budget: default_budget(),
            shared_taken: 0,
            primary: None,
            primary_count: 0,
            default_pool: pool,
            current_pool: pool,
            log: Log::default(),
        }
    }

    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Sets the seed, and starts its choices anew.
    pub fn set_seed(&mut self, seed: u64) {
        self.seed = seed;
        self.rng = Rng::new(seed);
    }

    /// Forgets what a test may have left behind, memory and contexts aside.
    pub fn reset(&mut self, seed: u64) {
        self.log = Log::default();
        self.budget = default_budget();
        self.shared_taken = 0;
        self.set_seed(seed);
    }

    /// What launches get of the device: its profile without what is taken.
    pub fn available(&self) -> Profile {
        let shared = self.profile.shared_per_multiprocessor.saturating_sub(self.shared_taken);
        Profile { shared_per_multiprocessor: shared, ..self.profile.clone() }
    }

    /// The device that an address belongs to.
    pub fn of_address(address: u64) -> Option<usize> {
        address.checked_sub(FIRST_ADDRESS).map(|offset| (offset / ADDRESSES) as usize)
    }

    /// Bytes that are given away, or will be when queued work is done, each allocation rounded up as [`Memory`] does.
    pub fn used(&self) -> u64 {
        self.allocations
            .values()
            .filter(|a| a.state != State::Unbacked)
            .map(|a| a.bytes.next_multiple_of(ALIGNMENT))
            .sum()
    }

    /// Whether that many more bytes fit.
    pub fn fits(&self, bytes: u64) -> bool {
        bytes
            .checked_next_multiple_of(ALIGNMENT)
            .is_some_and(|bytes| bytes <= self.profile.memory - self.used())
    }

    /// An address for `allocation` that was never given away before; there is an end to them.
    pub fn reserve(&mut self, allocation: Allocation) -> Result<u64, Code> {
        self.reserve_at(ALIGNMENT, allocation)
    }

    /// [`Device::reserve`] of an address that is a multiple of `align`.
    pub fn reserve_at(&mut self, align: u64, allocation: Allocation) -> Result<u64, Code> {
        let address = self.next_address.next_multiple_of(align);
        let next = (address + allocation.bytes + GUARD).next_multiple_of(ALIGNMENT);
        if Self::of_address(next) != Some(self.ordinal) {
            return Err(Code::OutOfMemory);
        }
        self.next_address = next;
        self.allocations.insert(address, allocation);
        Ok(address)
    }

    /// The allocation that holds all of these bytes, and where it begins.
    pub fn find(&self, address: u64, bytes: u64) -> Option<(u64, &Allocation)> {
        let (base, allocation) = self.allocations.range(..=address).next_back()?;
        let end = base + allocation.bytes;
        (address < end && bytes <= end - address).then_some((*base, allocation))
    }

    /// Whether a call may be given these bytes; if not, the reason is noted. What a graph allocates may be used
    /// `in_capture`, before it is there.
    pub fn check(
        &mut self,
        call: &str,
        address: u64,
        bytes: u64,
        in_capture: bool,
    ) -> Result<(), Code> {
        let reason = match self.find(address, bytes) {
            Some((_, allocation)) => match allocation.state {
                State::Live => return Ok(()),
                State::Unbacked if in_capture => return Ok(()),
                State::Unbacked => "its graph has not been launched, or has freed it",
                State::Freed => "it has been freed",
            },
            None if self.find(address, 0).is_some() => "the allocation ends before",
            None => "no allocation is there",
        };
        self.refuse(call, format!("{bytes} bytes at {address:#x}: {reason}"));
        Err(Code::InvalidValue)
    }

    /// Notes why a call was refused.
    pub fn refuse(&mut self, call: &str, reason: String) {
        self.log.note(Messages::Refusals, format!("{call}: {reason}"));
    }

    /// The memory, for work that is done while no kernel runs.
    pub fn memory(&mut self) -> &mut Memory {
        self.memory.as_mut().expect("work waits while a kernel has the memory")
    }
}
