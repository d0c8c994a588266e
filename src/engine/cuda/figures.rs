//! What plans depend on.
use super::costs::{Costs, Model};
use crate::Result;
use crate::memory::refused;
use cudarc::driver::CudaContext;
use cudarc::driver::sys::CUdevice_attribute as Attribute;

/// What of a device decides a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Figures {
    pub multiprocessors: u32,
    /// At a time, of each multiprocessor.
    pub threads: u32,
    /// Bytes of shared memory of each.
    pub shared: u32,
    /// Of these, for a block at most.
    pub shared_block: u32,
    /// What each block takes beside its own.
    pub shared_reserved: u32,
    /// Bytes of the cache that all share.
    pub cache: u32,
    /// Whether blocks of a launch may wait for each other.
    pub cooperative: bool,
    /// What launches cost beside the memory they move.
    pub costs: Costs,
}

impl Figures {
    /// Of no device, for plans that are the same on all.
    pub const ANY: Self = Self {
        multiprocessors: 128,
        threads: 2048,
        shared: 0,
        shared_block: 0,
        shared_reserved: 0,
        cache: 0,
        cooperative: false,
        costs: Costs::H200,
    };

    /// Those of a context's device.
    pub fn of(context: &CudaContext) -> Result<Self> {
        let attribute = |attribute| {
            let value = context.attribute(attribute).map_err(refused("cuDeviceGetAttribute"))?;
            Ok(u32::try_from(value).unwrap_or(0))
        };
        let multiprocessors =
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?.max(1);
        let model = Model {
            name: &context.name().map_err(refused("cuDeviceGetName"))?,
            capability: (
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            ),
            multiprocessors,
            memory_clock: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE)?,
            memory_width: attribute(Attribute::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH)?,
        };
        let threads = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR)?;
        let of_block = Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
        let reserved = Attribute::CU_DEVICE_ATTRIBUTE_RESERVED_SHARED_MEMORY_PER_BLOCK;
        Ok(Self {
            multiprocessors,
            threads: threads.max(1),
            shared: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR)?,
            shared_block: attribute(of_block)?,
            shared_reserved: attribute(reserved)?,
            cache: attribute(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?,
            cooperative: attribute(Attribute::CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH)? != 0,
            costs: Costs::of(&model)?,
        })
    }

    /// Steps of so many bytes that a multiprocessor reads in twice the time that the sums of their tile take, where
    /// these do not hide: so they cost half a pass at most.
    pub fn steps_of_sums(&self, bytes: u64) -> u64 {
        let share = self.costs.bytes(2 * u64::from(self.costs.tile)) as u64
            / u64::from(self.multiprocessors);
        share / bytes
    }
}
