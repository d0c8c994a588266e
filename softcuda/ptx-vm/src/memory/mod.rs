//! Device memory: allocations that know which of their bytes were ever written.

mod bits;

use std::fmt;

pub(crate) use bits::Bits;

use crate::race::Shadow;

/// Where the first allocation begins.
const FIRST: u64 = 0x5000_0000_0000;
/// Every allocation begins at a multiple of this many bytes, as the driver promises.
const ALIGNMENT: u64 = 256;
/// Bytes at least between two allocations: an access past the end hits nothing.
const GUARD: u64 = 1 << 20;
/// How many freed ranges are remembered, for messages.
const FREED: usize = 256;

/// What can be wrong with a request to [`Memory`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MemoryError {
    /// An allocation of no bytes.
    Empty,
    /// More than is left.
    OutOfMemory {
        /// Bytes asked for.
        bytes: u64,
        /// Bytes left.
        free: u64,
    },
    /// The bytes lie in no allocation, or not all of them in one.
    OutOfBounds {
        /// The first byte.
        address: u64,
        /// How many.
        bytes: u64,
        /// What lies near, in words.
        near: String,
    },
    /// Freeing what is not the beginning of an allocation.
    NotAnAllocation {
        /// The address.
        address: u64,
        /// What lies near, in words.
        near: String,
    },
    /// Reading bytes that were never written. They were copied all the same.
    Uninitialised {
        /// The first such byte.
        address: u64,
        /// Where it lies, in words.
        near: String,
        /// How many of the bytes read were never written.
        count: u64,
        /// How many bytes were read.
        bytes: u64,
    },
}

impl fmt::Display for MemoryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => write!(f, "an allocation of no bytes"),
            Self::OutOfMemory { bytes, free } => {
                write!(f, "out of memory: {bytes} bytes wanted, {free} free")
            }
            Self::OutOfBounds { address, bytes, near } => {
                write!(f, "{bytes} bytes at {address:#x} are out of bounds: {near}")
            }
            Self::NotAnAllocation { address, near } => {
                write!(f, "{address:#x} is not the beginning of an allocation: {near}")
            }
            Self::Uninitialised { address, near, count, bytes } => write!(
                f,
                "{count} of {bytes} bytes read were never written, the first at {address:#x}: {near}"
            ),
        }
    }
}

impl std::error::Error for MemoryError {}

/// One allocation.
pub(crate) struct Allocation {
    pub(crate) base: u64,
    pub(crate) data: Vec<u8>,
    pub(crate) written: Bits,
    pub(crate) shadow: Shadow,
}

impl Allocation {
    fn new(base: u64, bytes: u64) -> Self {
        let bytes = bytes as usize;
        let (data, written) = (vec![0; bytes], Bits::new(bytes));
        Self { base, data, written, shadow: Shadow::default() }
    }

    /// The address behind the last byte.
    #[inline]
    pub(crate) fn end(&self) -> u64 {
        self.base + self.data.len() as u64
    }
}

/// The memory of a device.
pub struct Memory {
    /// By address.
    allocations: Vec<Allocation>,
    /// Where the next allocation begins: addresses are not used again, so that a dangling pointer hits nothing.
    next: u64,
    capacity: u64,
    used: u64,
    high_water: u64,
    freed: Vec<(u64, u64)>,
    launches: u32,
    printed: String,
    equal_writes: bool,
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ranges: Vec<_> = self.allocations().collect();
        f.debug_struct("Memory")
            .field("capacity", &self.capacity)
            .field("allocations", &ranges)
            .finish()
    }
}

impl Memory {
    /// Memory of `capacity` bytes. The host's is taken as it is touched, not before.
    pub fn new(capacity: u64) -> Self {
        Self {
            allocations: Vec::new(),
            next: FIRST,
            capacity,
            used: 0,
            high_water: 0,
            freed: Vec::new(),
            launches: 0,
            printed: String::new(),
            equal_writes: false,
        }
    }

    /// New memory of that many bytes, none of them written. It begins at a multiple of 256.
    pub fn alloc(&mut self, bytes: u64) -> Result<u64, MemoryError> {
        if bytes == 0 {
            return Err(MemoryError::Empty);
        }
        let rounded = bytes.checked_next_multiple_of(ALIGNMENT);
        let free = self.capacity - self.used;
        let Some(rounded) = rounded.filter(|&rounded| rounded <= free) else {
            return Err(MemoryError::OutOfMemory { bytes, free });
        };
        let base = self.next;
        self.next = (base + rounded + GUARD).next_multiple_of(ALIGNMENT);
        self.used += rounded;
        self.high_water = self.high_water.max(self.used);
        self.allocations.push(Allocation::new(base, bytes));
        Ok(base)
    }

    /// New memory at an address that the caller has kept free, a multiple of 256: none of its bytes are allocated, and
    /// [`Memory::alloc`] gives only addresses behind it from then on.
    pub fn alloc_at(&mut self, address: u64, bytes: u64) -> Result<(), MemoryError> {
        if bytes == 0 {
            return Err(MemoryError::Empty);
        }
        let taken = |a: &Allocation| a.base < address + bytes && address < a.end();
        if !address.is_multiple_of(ALIGNMENT) || self.allocations.iter().any(taken) {
            let near = self.describe(address);
            return Err(MemoryError::OutOfBounds { address, bytes, near });
        }
        let free = self.capacity - self.used;
        let rounded = bytes.checked_next_multiple_of(ALIGNMENT);
        let Some(rounded) = rounded.filter(|&rounded| rounded <= free) else {
            return Err(MemoryError::OutOfMemory { bytes, free });
        };
        self.next = self.next.max((address + rounded + GUARD).next_multiple_of(ALIGNMENT));
        self.used += rounded;
        self.high_water = self.high_water.max(self.used);
        let at = self.allocations.partition_point(|a| a.base < address);
        self.allocations.insert(at, Allocation::new(address, bytes));
        Ok(())
    }

    /// Gives an allocation back.
    pub fn free(&mut self, address: u64) -> Result<(), MemoryError> {
        let index = self
            .allocations
            .binary_search_by_key(&address, |a| a.base)
            .map_err(|_| MemoryError::NotAnAllocation { address, near: self.describe(address) })?;
        let gone = self.allocations.remove(index);
        self.used -= (gone.data.len() as u64).next_multiple_of(ALIGNMENT);
        if self.freed.len() == FREED {
            self.freed.remove(0);
        }
        self.freed.push((gone.base, gone.end()));
        Ok(())
    }

    /// Copies bytes to the host. Where some were never written they are copied, and the answer says so.
    pub fn read(&self, address: u64, into: &mut [u8]) -> Result<(), MemoryError> {
        if into.is_empty() {
            return Ok(());
        }
        let index = self.range(address, into.len() as u64)?;
        let from = &self.allocations[index];
        let start = (address - from.base) as usize;
        into.copy_from_slice(&from.data[start..start + into.len()]);
        match from.written.first_clear(start, into.len()) {
            None => Ok(()),
            Some(first) => Err(MemoryError::Uninitialised {
                address: from.base + first as u64,
                near: self.describe(from.base + first as u64),
                count: from.written.count_clear(start, into.len()) as u64,
                bytes: into.len() as u64,
            }),
        }
    }

    /// Copies bytes from the host.
    pub fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), MemoryError> {
        if bytes.is_empty() {
            return Ok(());
        }
        let index = self.range(address, bytes.len() as u64)?;
        let into = &mut self.allocations[index];
        let start = (address - into.base) as usize;
        into.data[start..start + bytes.len()].copy_from_slice(bytes);
        into.written.set(start, bytes.len());
        Ok(())
    }

    /// Writes the low `width` bytes (1, 2 or 4) of a pattern `count` times.
    ///
    /// # Panics
    ///
    /// If `width` is another.
    pub fn fill(
        &mut self,
        address: u64,
        pattern: u32,
        width: usize,
        count: u64,
    ) -> Result<(), MemoryError> {
        assert!([1, 2, 4].contains(&width), "a fill pattern has 1, 2 or 4 bytes");
        if count == 0 {
            return Ok(());
        }
        let bytes = count.saturating_mul(width as u64);
        let index = self.range(address, bytes)?;
        let into = &mut self.allocations[index];
        let start = (address - into.base) as usize;
        let part = &mut into.data[start..start + bytes as usize];
        let pattern = &pattern.to_le_bytes()[..width];
        if pattern.iter().all(|byte| *byte == pattern[0]) {
            part.fill(pattern[0]);
        } else {
            part.chunks_exact_mut(width).for_each(|chunk| chunk.copy_from_slice(pattern));
        }
        into.written.set(start, bytes as usize);
        Ok(())
    }

    /// Copies within the device, overlapping ranges too. What was never written stays so at its new place.
    pub fn copy(&mut self, to: u64, from: u64, bytes: u64) -> Result<(), MemoryError> {
        if bytes == 0 {
            return Ok(());
        }
        let (source, target) = (self.range(from, bytes)?, self.range(to, bytes)?);
        let start = (from - self.allocations[source].base) as usize;
        let at = (to - self.allocations[target].base) as usize;
        let bytes = bytes as usize;
        let marks = self.allocations[source].written.cut_out(start, bytes);
        if source == target {
            self.allocations[source].data.copy_within(start..start + bytes, at);
        } else {
            let [from, to] = self.allocations.get_disjoint_mut([source, target]).unwrap();
            to.data[at..at + bytes].copy_from_slice(&from.data[start..start + bytes]);
        }
        self.allocations[target].written.paste(at, &marks, bytes);
        Ok(())
    }

    /// The allocation an address lies in: its first address and its bytes.
    pub fn find(&self, address: u64) -> Option<(u64, u64)> {
        let allocation = &self.allocations[self.index(address)?];
        Some((allocation.base, allocation.data.len() as u64))
    }

    /// Bytes allocated, each allocation rounded up to 256.
    pub fn used(&self) -> u64 {
        self.used
    }

    /// Bytes in all.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// The most bytes that were ever allocated at once.
    pub fn high_water(&self) -> u64 {
        self.high_water
    }

    /// Every allocation: its first address and its bytes.
    pub fn allocations(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.allocations.iter().map(|a| (a.base, a.data.len() as u64))
    }

    /// Where an address lies, in words.
    pub fn describe(&self, address: u64) -> String {
        if let Some(index) = self.index(address) {
            let a = &self.allocations[index];
            let (at, len) = (address - a.base, a.data.len());
            return format!("byte {at} of an allocation of {len} bytes at {:#x}", a.base);
        }
        if let Some((base, end)) = self.freed.iter().find(|(b, e)| (*b..*e).contains(&address)) {
            let (at, len) = (address - base, end - base);
            return format!("byte {at} of an allocation of {len} bytes that was freed");
        }
        let after = self.allocations.partition_point(|a| a.base <= address);
        let below = after.checked_sub(1).map(|i| &self.allocations[i]);
        let above = self.allocations.get(after);
        let below = below.map(|a| (address - a.end(), a));
        match (below, above) {
            (Some((by, a)), _) if by < GUARD => {
                let len = a.data.len();
                format!("{by} bytes past the end of an allocation of {len} bytes at {:#x}", a.base)
            }
            (_, Some(a)) if a.base - address <= GUARD => {
                let (by, len) = (a.base - address, a.data.len());
                format!("{by} bytes before an allocation of {len} bytes at {:#x}", a.base)
            }
            _ => "no allocation is near".to_owned(),
        }
    }

    /// Whether threads may write the value to a place that another thread has written there, with nothing to order the
    /// two. To PTX that is a race; compute-sanitizer lets it pass, and so does this from now on if `yes`.
    pub fn let_equal_writes_pass(&mut self, yes: bool) {
        self.equal_writes = yes;
    }

    /// See [`Memory::let_equal_writes_pass`].
    pub(crate) fn equal_writes_pass(&self) -> bool {
        self.equal_writes
    }

    /// Adds to what kernels have printed.
    pub(crate) fn say(&mut self, text: &str) {
        self.printed += text;
    }

    /// What kernels have printed since this was last asked.
    pub fn take_printed(&mut self) -> String {
        std::mem::take(&mut self.printed)
    }

    /// A number for the launch that begins: what earlier ones did happens before it.
    pub(crate) fn begin_launch(&mut self) -> u32 {
        self.launches += 1;
        self.launches
    }

    /// The index of the allocation that holds an address.
    #[inline]
    pub(crate) fn index(&self, address: u64) -> Option<usize> {
        let after = self.allocations.partition_point(|a| a.base <= address);
        let index = after.checked_sub(1)?;
        (address < self.allocations[index].end()).then_some(index)
    }

    /// The allocation of that index.
    #[inline]
    pub(crate) fn allocation_mut(&mut self, index: usize) -> &mut Allocation {
        &mut self.allocations[index]
    }

    /// The allocation of that index.
    #[inline]
    pub(crate) fn allocation(&self, index: usize) -> &Allocation {
        &self.allocations[index]
    }

    /// How many allocations there are.
    pub(crate) fn count(&self) -> usize {
        self.allocations.len()
    }

    /// The index of the allocation that holds all of these bytes.
    fn range(&self, address: u64, bytes: u64) -> Result<usize, MemoryError> {
        let index = self.index(address);
        let fits = |&i: &usize| bytes <= self.allocations[i].end() - address;
        index.filter(fits).ok_or_else(|| {
            // Name the first byte outside.
            let outside = index.map_or(address, |i| self.allocations[i].end());
            MemoryError::OutOfBounds { address, bytes, near: self.describe(outside) }
        })
    }
}

#[cfg(test)]
mod tests;
