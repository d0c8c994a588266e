//! What a step works in beside its arguments.
use super::plan::Plan;
use super::pointers::Ptr;
use crate::memory::refused;
use crate::{Device, Error, Memory, Result};
use cudarc::driver::{CudaSlice, DevicePtr};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Memory for the steps of one stream. It grows to the largest step and never moves: what it has
/// outgrown stays, because a captured graph may work in it.
///
/// Steps follow each other on the stream, so that one room serves all; the lock keeps the launches
/// of two threads apart. Nothing of another stream ever waits for it, so it goes by addresses,
/// without events.
pub(super) struct Workspace {
    rooms: Mutex<Vec<CudaSlice<u8>>>,
    /// The bytes of a `u32`.
    nonfinite: Mutex<CudaSlice<u8>>,
    nonfinite_at: u64,
}

/// The workspace while a step is launched.
pub(super) struct Room<'a> {
    address: u64,
    layout: Layout,
    _launching: MutexGuard<'a, Vec<CudaSlice<u8>>>,
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
    pub fn new(memory: &Device) -> Result<Self> {
        let nonfinite = memory.zeros::<u8>(size_of::<u32>())?;
        let nonfinite_at = nonfinite.device_ptr(memory.stream()).0;
        Ok(Self { rooms: Mutex::default(), nonfinite: Mutex::new(nonfinite), nonfinite_at })
    }

    /// Room for a step; made now if there is none as large.
    pub fn room(&self, memory: &Device, layout: Layout) -> Result<Room<'_>> {
        let mut rooms = self.rooms.lock().unwrap_or_else(PoisonError::into_inner);
        let largest = rooms.last().map_or(0, CudaSlice::len);
        let bytes = usize::try_from(layout.bytes()).map_err(|_| {
            let reason = format!("a workspace of {} bytes has no address", layout.bytes());
            Error::Unsupported { engine: super::NAME, reason }
        })?;
        if largest < bytes {
            // By half at least, so that what is outgrown adds up to no more than twice the last.
            rooms.push(memory.uninitialized(bytes.max(largest + largest / 2))?);
        }
        let address = rooms.last().map_or(0, |room| room.device_ptr(memory.stream()).0);
        Ok(Room { address, layout, _launching: rooms })
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
