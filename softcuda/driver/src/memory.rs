//! Allocation, and the checks that calls on memory have in common.

use std::collections::BTreeMap;

use crate::{
    code::Code,
    device::{Allocation, Device, State},
    driver::{Id, Locked},
    host::Pinned,
    report::FailurePoint,
    variables::VARIABLE,
    work::Work,
};

/// A memory pool. All pools of a device share its memory; a pool only counts.
#[derive(Debug)]
pub struct Pool {
    pub device: usize,
    /// What `cuMemPoolSetAttribute` was given.
    pub attributes: BTreeMap<u32, u64>,
    /// The most bytes that were in use at once.
    pub high_water: u64,
}

impl Pool {
    pub fn new(device: usize) -> Self {
        Self { device, attributes: BTreeMap::new(), high_water: 0 }
    }
}

impl Locked {
    /// Memory that exists at once.
    pub fn allocate(&mut self, context: Id, bytes: u64) -> Result<u64, Code> {
        self.check_no_capture()?;
        if bytes == 0 {
            return Err(Code::InvalidValue);
        }
        self.check_room(context, bytes)?;
        let device = self.device_of(context)?;
        let pointer = device.reserve(Allocation {
            bytes,
            context,
            state: State::Live,
            pool: None,
            graph: false,
            origin: "cuMemAlloc",
        })?;
        let ordinal = device.ordinal;
        self.wait_for_memory(ordinal);
        let memory = self.devices[ordinal].memory();
        memory.alloc_at(pointer, bytes).map_err(|_| Code::OutOfMemory)?;
        Ok(pointer)
    }

    /// Memory that exists from then on that the stream comes to this point; the null address for no bytes.
    pub fn allocate_async(
        &mut self,
        stream: Id,
        bytes: u64,
        pool: Option<Id>,
    ) -> Result<u64, Code> {
        let context = self.streams[&stream].context;
        let device = self.device_of(context)?;
        if !device.profile.pools {
            return Err(Code::NotSupported);
        }
        let pool = pool.unwrap_or(device.current_pool);
        if self.pools.get(&pool).is_none_or(|pool| pool.device != self.contexts[&context].device) {
            return Err(Code::InvalidHandle);
        }
        if bytes == 0 {
            return Ok(0);
        }
        let graph = self.streams[&stream].capture.is_some();
        self.check_room(context, bytes)?;
        let device = self.device_of(context)?;
        let pointer = device.reserve(Allocation {
            bytes,
            context,
            state: if graph { State::Unbacked } else { State::Live },
            pool: Some(pool),
            graph,
            origin: "cuMemAllocAsync",
        })?;
        let used = device.used_of_pool(pool);
        if let Err(code) = self.enqueue(stream, Work::Allocate { pointer, bytes }) {
            self.device_of(context)?.allocations.remove(&pointer);
            return Err(code);
        }
        // Another thread may have destroyed it while work was done to make room.
        if let Some(pool) = self.pools.get_mut(&pool) {
            pool.high_water = pool.high_water.max(used);
        }
        Ok(pointer)
    }

    /// Sees that `bytes` more bytes fit, if need be after what is queued is done.
    pub fn check_room(&mut self, context: Id, bytes: u64) -> Result<(), Code> {
        if let Some(code) = self.device_of(context)?.log.failure(FailurePoint::Allocation) {
            return Err(self.injected(context, code));
        }
        if !self.device_of(context)?.fits(bytes) {
            let device = self.contexts[&context].device;
            let queued: Vec<_> = self.queue.of_device(device).map(|(op, _)| op).collect();
            self.finish(&queued);
            self.check_context(context)?;
        }
        if self.device_of(context)?.fits(bytes) { Ok(()) } else { Err(Code::OutOfMemory) }
    }

    /// Frees after all work of the context, as this call waits for it.
    pub fn free(&mut self, context: Id, pointer: u64) -> Result<(), Code> {
        self.check_no_capture()?;
        if pointer == 0 {
            return Ok(());
        }
        let ordinal = self.free_check("cuMemFree", pointer)?;
        let queued: Vec<_> = self.queue.of_device(ordinal).map(|(op, _)| op).collect();
        self.finish(&queued);
        self.check_context(context)?;
        self.wait_for_memory(ordinal);
        self.devices[ordinal].memory().free(pointer).map_err(|_| Code::InvalidValue)?;
        self.managed.remove(&pointer);
        let device = &mut self.devices[ordinal];
        match device.allocations.get_mut(&pointer) {
            Some(allocation) if allocation.graph => allocation.state = State::Unbacked,
            _ => {
                device.allocations.remove(&pointer);
            }
        }
        Ok(())
    }

    /// Frees when the stream comes to this point. Work elsewhere that is given this memory and that the stream does
    /// not wait for is an error.
    pub fn free_async(&mut self, stream: Id, pointer: u64) -> Result<(), Code> {
        const CALL: &str = "cuMemFreeAsync";
        if pointer == 0 {
            return Ok(());
        }
        let capture = self.streams[&stream].capture;
        let found = self.allocation_device(pointer).ok().map(|device| device.ordinal);
        if let (Some(capture), Some(device)) = (capture, found) {
            if !self.devices[device].allocations[&pointer].graph {
                self.devices[device]
                    .refuse(CALL, format!("{pointer:#x}: the captured graph did not allocate it"));
                self.invalidate(&[capture]);
                return Err(Code::InvalidValue);
            }
            return self.submit(stream, Work::Free { pointer });
        }
        let device = self.free_check(CALL, pointer)?;
        let allocation = &self.devices[device].allocations[&pointer];
        let bytes = allocation.bytes;
        if allocation.pool.is_none() {
            self.devices[device]
                .refuse(CALL, format!("{pointer:#x} was not allocated in a stream"));
            return Err(Code::InvalidValue);
        }
        let waited = self.queue.closure(&self.frontier(stream));
        let pending = self
            .queue
            .of_device(device)
            .find(|(op, queued)| !waited.contains(op) && queued.work.uses(pointer, bytes))
            .map(|(_, queued)| queued.work.name());
        if let Some(name) = pending {
            self.devices[device].refuse(
                CALL,
                format!(
                    "{pointer:#x} is used by {name} in another stream, which is not waited for"
                ),
            );
            return Err(Code::InvalidValue);
        }
        let allocation = self.devices[device].allocations.get_mut(&pointer).expect("found above");
        allocation.state = if allocation.graph { State::Unbacked } else { State::Freed };
        self.enqueue(stream, Work::Free { pointer })
    }

    /// The device of an allocation that may be freed.
    fn free_check(&mut self, call: &str, pointer: u64) -> Result<usize, Code> {
        let Some(ordinal) = Device::of_address(pointer).filter(|d| *d < self.devices.len()) else {
            return Err(Code::InvalidValue);
        };
        let device = &mut self.devices[ordinal];
        device.check(call, pointer, 1, false)?;
        if !device.allocations.contains_key(&pointer) {
            device.refuse(call, format!("{pointer:#x} is not the beginning of an allocation"));
            return Err(Code::InvalidValue);
        }
        if device.allocations[&pointer].origin == VARIABLE {
            device.refuse(call, format!("{pointer:#x} is a variable of a module"));
            return Err(Code::InvalidValue);
        }
        Ok(ordinal)
    }

    /// Checks memory that a copy or a fill in a stream is given: of any device, as addresses tell theirs.
    pub fn check_range(
        &mut self,
        stream: Id,
        call: &str,
        address: u64,
        bytes: u64,
    ) -> Result<(), Code> {
        self.check_attached(stream, call, [address])?;
        let stream = &self.streams[&stream];
        let (own, in_capture) = (self.contexts[&stream.context].device, stream.capture.is_some());
        let device = Device::of_address(address).filter(|d| *d < self.devices.len()).unwrap_or(own);
        self.devices[device].check(call, address, bytes, in_capture)
    }

    /// Whether a copy or a fill has been made to fail.
    pub fn check_copy(&mut self, context: Id) -> Result<(), Code> {
        match self.device_of(context)?.log.failure(FailurePoint::Copy) {
            Some(code) => Err(self.injected(context, code)),
            None => Ok(()),
        }
    }

    /// A failure that a test has asked for: one that comes from work poisons the context as work does.
    pub fn injected(&mut self, context: Id, code: Code) -> Code {
        if code.is_sticky() {
            self.queue.forget(context);
            if let Some(context) = self.contexts.get_mut(&context) {
                context.sticky = Some(code);
            }
        }
        code
    }

    /// Waits until no kernel has the memory of a device.
    pub fn wait_for_memory(&mut self, device: usize) {
        while self.devices[device].memory.is_none() {
            self.wait();
        }
    }

    pub fn allocate_host(&mut self, context: Id, bytes: usize) -> Result<usize, Code> {
        let pinned = Pinned::new(bytes).ok_or(if bytes == 0 {
            Code::InvalidValue
        } else {
            Code::OutOfMemory
        })?;
        let address = pinned.address();
        self.pinned.insert(address, (context, pinned));
        Ok(address)
    }

    pub fn free_host(&mut self, context: Id, address: usize) -> Result<(), Code> {
        let bytes = self.pinned.get(&address).ok_or(Code::InvalidValue)?.1.bytes();
        let device = self.contexts[&context].device;
        let user = self
            .queue
            .of_device(device)
            .find(|(_, op)| op.work.touches_host(address, bytes))
            .map(|(_, op)| op.work.name());
        if let Some(user) = user {
            self.devices[device].refuse("cuMemFreeHost", format!("{user} has yet to use it"));
            return Err(Code::InvalidValue);
        }
        self.pinned.remove(&address);
        Ok(())
    }

    /// Whether all of that host memory was allocated here, and so stays where it is while work is queued.
    pub fn is_pinned(&self, address: usize, bytes: usize) -> bool {
        self.pinned
            .range(..=address)
            .next_back()
            .is_some_and(|(start, (_, pinned))| address + bytes <= start + pinned.bytes())
    }
}

impl Device {
    /// Bytes that a pool has given away.
    pub fn used_of_pool(&self, pool: Id) -> u64 {
        self.allocations
            .values()
            .filter(|a| a.pool == Some(pool) && a.state == State::Live)
            .map(|a| a.bytes)
            .sum()
    }
}
