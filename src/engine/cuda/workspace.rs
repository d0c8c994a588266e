//! What a step works in beside its arguments.
use super::plan::Plan;
use super::resident::Resident;
use crate::engine::pointers::Ptr;
use crate::memory::refused;
use crate::{Device, Error, Memory, Result};
use cudarc::driver::{CudaSlice, DevicePtr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Memory for the steps of one stream. It grows to the largest step and never moves: what it has
/// outgrown stays, because a captured graph may work in it.
///
/// Steps follow each other on the stream, so that one room serves all; the lock keeps the launches
/// of two threads apart. Nothing of another stream ever waits for it, so it goes by addresses,
/// without events.
pub(super) struct Workspace {
    rooms: Mutex<Rooms>,
    /// The bytes of a `u32`.
    nonfinite: Mutex<CudaSlice<u8>>,
    nonfinite_at: u64,
    words: Words,
}

/// What has been allocated, the largest last, and where that is: asked for once, since cudarc waits for and
/// records events whenever it tells an address.
#[derive(Default)]
struct Rooms {
    all: Vec<CudaSlice<u8>>,
    address: u64,
}

/// Where blocks that wait for each other count themselves: zeros, but for what a launch is doing.
struct Words {
    words: Mutex<CudaSlice<u8>>,
    at: u64,
    /// Whether a launch failed since they were zeros.
    spoilt: AtomicBool,
}

/// The workspace while a step is launched.
pub(super) struct Room<'a> {
    address: u64,
    layout: Layout,
    _launching: MutexGuard<'a, Rooms>,
}

/// What lies where: partials, then statistics, then coefficients.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    partials: u64,
    channels: u64,
    /// Bytes of a statistic.
    width: u64,
}

impl Layout {
    /// Room for a step of this plan whose statistics are `A`s.
    pub fn new<A>(plan: &Plan) -> Self {
        let channels = u64::from(plan.geometry.channels);
        Self { partials: plan.partials(), channels, width: size_of::<A>() as u64 }
    }
    /// The same without partials.
    pub fn of_channels<A>(plan: &Plan) -> Self {
        Self { partials: 0, ..Self::new::<A>(plan) }
    }
    /// The same of partials that count their values from bases of their own: four numbers instead of two.
    pub fn counted(self) -> Self {
        Self { partials: 2 * self.partials, ..self }
    }
    /// Room for partials alone, so many bytes.
    pub fn of_partials(partials: u64) -> Self {
        Self { partials, channels: 0, width: 0 }
    }
    /// Room for either, in case that tensors do not lie as this plan wants them.
    pub fn or(self, plan: Option<&Resident>) -> Self {
        Self { partials: self.partials.max(plan.map_or(0, Resident::partials)), ..self }
    }
    fn bytes(&self) -> u64 {
        self.partials + 5 * self.channels * self.width
    }
}

impl Room<'_> {
    pub fn partials(&self) -> Ptr<f64> {
        Ptr::at(self.address)
    }
    fn values<A>(&self, index: u64) -> Ptr<A> {
        let Layout { partials, channels, width } = self.layout;
        Ptr::at(self.address + partials + index * channels * width)
    }
    /// Mean, what rounding left of it, invstd, where the caller saves none.
    pub fn statistics<A>(&self) -> [Ptr<A>; 3] {
        [0, 1, 2].map(|index| self.values(index))
    }
    /// Two values for each channel.
    pub fn coefs<A>(&self) -> Ptr<A> {
        self.values(3)
    }
}

impl Workspace {
    pub fn new(memory: &Device, words_len: usize) -> Result<Self> {
        let nonfinite = memory.zeros::<u8>(size_of::<u32>())?;
        let nonfinite_at = nonfinite.device_ptr(memory.stream()).0;
        let words = memory.zeros::<u8>(words_len)?;
        let at = words.device_ptr(memory.stream()).0;
        let words = Words { words: Mutex::new(words), at, spoilt: AtomicBool::new(false) };
        let nonfinite = Mutex::new(nonfinite);
        Ok(Self { rooms: Mutex::default(), nonfinite, nonfinite_at, words })
    }

    /// Room for a step; made now if there is none as large.
    pub fn room(&self, memory: &Device, layout: Layout) -> Result<Room<'_>> {
        let mut rooms = self.rooms.lock().unwrap_or_else(PoisonError::into_inner);
        let largest = rooms.all.last().map_or(0, CudaSlice::len);
        let bytes = usize::try_from(layout.bytes()).map_err(|_| {
            let reason = format!("a workspace of {} bytes has no address", layout.bytes());
            Error::Unsupported { engine: super::NAME, reason }
        })?;
        if largest < bytes {
            // By half at least, so that what is outgrown adds up to no more than twice the last.
            let room = memory.uninitialized(bytes.max(largest + largest / 2))?;
            rooms.address = room.device_ptr(memory.stream()).0;
            rooms.all.push(room);
        }
        Ok(Room { address: rooms.address, layout, _launching: rooms })
    }

    /// Where the blocks of a launch count themselves.
    pub fn words(&self, memory: &Device) -> Result<Ptr<u32>> {
        let Words { words, at, spoilt } = &self.words;
        if spoilt.load(Ordering::Relaxed) {
            let mut words = words.lock().unwrap_or_else(PoisonError::into_inner);
            memory.stream().memset_zeros(&mut *words).map_err(refused("cuMemsetD8Async"))?;
            spoilt.store(false, Ordering::Relaxed);
        }
        Ok(Ptr::at(*at))
    }
    /// Says that a launch failed that counts there.
    pub fn spoil_words(&self) {
        self.words.spoilt.store(true, Ordering::Relaxed);
    }

    /// What becomes 1 where a step finds a statistic or a sum that is not finite.
    pub fn nonfinite(&self) -> Ptr<u32> {
        Ptr::at(self.nonfinite_at)
    }

    /// Whether it did since the last call; waits for the stream.
    pub fn take_nonfinite(&self, memory: &Device) -> Result<bool> {
        let mut flag = self.nonfinite.lock().unwrap_or_else(PoisonError::into_inner);
        let found = memory.download(flag.as_view())? != [0; 4];
        if found {
            memory.stream().memset_zeros(&mut *flag).map_err(refused("cuMemsetD8Async"))?;
        }
        Ok(found)
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use cudarc::driver::CudaContext;

    #[test]
    fn words_are_zeros_again_after_a_launch_that_failed() {
        softcuda::install().unwrap();
        let context = CudaContext::new(softcuda::ordinal("sm_75").unwrap()).unwrap();
        let memory = Device::new(context.new_stream().unwrap());
        let workspace = Workspace::new(&memory, 256).unwrap();
        let content = || memory.download(workspace.words.words.lock().unwrap().as_view()).unwrap();
        assert_eq!(content(), [0; 256]);
        let left = [7; 256];
        memory.write(&left, workspace.words.words.lock().unwrap().as_view_mut()).unwrap();
        let before = workspace.words(&memory).unwrap();
        assert_eq!(content(), left, "no launch failed");
        workspace.spoil_words();
        let after = workspace.words(&memory).unwrap();
        assert_eq!(content(), [0; 256]);
        assert_eq!(format!("{before:?}"), format!("{after:?}"), "they never move");
    }

    #[test]
    fn a_step_has_the_workspace_to_itself_while_it_is_launched() {
        softcuda::install().unwrap();
        let context = CudaContext::new(softcuda::ordinal("sm_75").unwrap()).unwrap();
        let memory = Device::new(context.new_stream().unwrap());
        let workspace = Workspace::new(&memory, 256).unwrap();
        let room = workspace.room(&memory, Layout::of_partials(100)).unwrap();
        assert!(workspace.rooms.try_lock().is_err());
        drop(room);
        assert!(workspace.rooms.try_lock().is_ok());
        // What is outgrown stays where it was; what is not, is taken again.
        let first = workspace.room(&memory, Layout::of_partials(50)).unwrap().partials();
        let grown = workspace.room(&memory, Layout::of_partials(1000)).unwrap().partials();
        let again = workspace.room(&memory, Layout::of_partials(100)).unwrap().partials();
        assert_eq!((first.address() == grown.address(), grown.address()), (false, again.address()));
    }
}
