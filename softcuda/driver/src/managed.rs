//! Managed memory: one address for host and device.
//!
//! The host has pages at the address that the device's allocation has. Before a piece of the device's work their bytes go
//! to the device, and behind it those that the work has changed go back, so that each side sees what the other has done
//! before. What the host does meanwhile is seen by the next piece of work. All bytes count as written: what the host
//! writes nobody sees.

use std::{
    ffi::{c_int, c_void},
    ptr,
};

use crate::{
    code::Code,
    device::{Allocation, Device, State},
    driver::{Id, Locked},
};

/// The origin of its allocations.
const ORIGIN: &str = "cuMemAllocManaged";
/// What pages of the host are a multiple of, at most.
const PAGE: u64 = 1 << 16;

/// Who may use managed memory on a device that shares none with the host at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attached {
    /// Any stream.
    Global,
    /// The host alone.
    Host,
    /// One stream.
    Stream(Id),
}

/// One allocation.
#[derive(Debug)]
pub struct Managed {
    pub context: Id,
    device: usize,
    attached: Attached,
    pages: Pages,
}

/// The bytes that the device's allocations have before a piece of work, by their addresses.
pub type Before = Vec<(u64, Vec<u8>)>;

impl Locked {
    /// `cuMemAllocManaged`: memory that exists at once, all 0.
    pub fn allocate_managed(
        &mut self,
        context: Id,
        bytes: u64,
        attached: Attached,
    ) -> Result<u64, Code> {
        self.check_no_capture()?;
        if bytes == 0 {
            return Err(Code::InvalidValue);
        }
        self.check_room(context, bytes)?;
        let device = self.device_of(context)?;
        let (ordinal, state) = (device.ordinal, State::Live);
        let allocation =
            Allocation { bytes, context, state, pool: None, graph: false, origin: ORIGIN };
        let address = device.reserve_at(PAGE, allocation)?;
        self.wait_for_memory(ordinal);
        let device = &mut self.devices[ordinal];
        let memory = device.memory();
        let placed =
            memory.alloc_at(address, bytes).and_then(|()| memory.fill(address, 0, 1, bytes));
        let Some(pages) = placed.ok().and_then(|()| Pages::at(address, bytes)) else {
            _ = device.memory().free(address);
            device.allocations.remove(&address);
            return Err(Code::OutOfMemory);
        };
        self.managed.insert(address, Managed { context, device: ordinal, attached, pages });
        Ok(address)
    }

    /// `cuStreamAttachMemAsync`, which takes effect when what the stream has been given is done. `bytes`: all, or 0 for
    /// all.
    pub fn attach(
        &mut self,
        stream: Id,
        address: u64,
        bytes: u64,
        attached: Attached,
    ) -> Result<(), Code> {
        const CALL: &str = "cuStreamAttachMemAsync";
        let context = self.streams[&stream].context;
        let reason = match self.managed.get(&address) {
            None => format!("{address:#x} is not the beginning of managed memory"),
            Some(managed) if bytes != 0 && bytes != managed.pages.bytes => {
                format!("{bytes} bytes of {}: only all can be attached", managed.pages.bytes)
            }
            Some(_) if attached == Attached::Stream(self.contexts[&context].legacy) => {
                "memory cannot be attached to the null stream alone".into()
            }
            Some(_) => {
                let work = self.stream_work(stream)?;
                self.finish(&work);
                self.check_context(context)?;
                if let Some(managed) = self.managed.get_mut(&address) {
                    managed.attached = attached;
                }
                return Ok(());
            }
        };
        self.device_of(context)?.refuse(CALL, reason);
        Err(Code::InvalidValue)
    }

    /// The managed memory that holds all of these bytes.
    pub fn check_managed(
        &mut self,
        context: Id,
        call: &str,
        address: u64,
        bytes: u64,
    ) -> Result<(), Code> {
        let found = self.managed.range(..=address).next_back();
        let holds = found.is_some_and(|(start, managed)| {
            address - start < managed.pages.bytes
                && bytes <= managed.pages.bytes - (address - start)
        });
        if holds {
            return Ok(());
        }
        let reason = format!("{bytes} bytes at {address:#x} are not managed memory");
        self.device_of(context)?.refuse(call, reason);
        Err(Code::InvalidValue)
    }

    /// Refuses managed memory that is attached elsewhere to work of a stream, on a device that does not share such memory
    /// with the host at the same time.
    pub fn check_attached(
        &mut self,
        stream: Id,
        call: &str,
        addresses: impl IntoIterator<Item = u64>,
    ) -> Result<(), Code> {
        if self.managed.is_empty() {
            return Ok(());
        }
        let context = self.streams[&stream].context;
        if self.device_of(context)?.profile.concurrent_managed {
            return Ok(());
        }
        for address in addresses {
            let Some((start, managed)) = self.managed.range(..=address).next_back() else {
                continue;
            };
            if address - start >= managed.pages.bytes {
                continue;
            }
            let to = match managed.attached {
                Attached::Global => continue,
                Attached::Stream(own) if own == stream => continue,
                Attached::Stream(_) => "another stream",
                Attached::Host => "the host",
            };
            let reason = format!(
                "managed memory at {address:#x} is attached to {to}, and this device does not share it"
            );
            self.device_of(context)?.refuse(call, reason);
            return Err(Code::InvalidValue);
        }
        Ok(())
    }

    /// Gives these devices what the host has written.
    pub fn pull_managed(&mut self, devices: &[usize]) -> Before {
        let mut before = Vec::new();
        if self.managed.is_empty() {
            return before;
        }
        let driver = &mut **self;
        for (address, managed) in &driver.managed {
            if devices.contains(&managed.device) {
                let bytes = managed.pages.read();
                let memory = driver.devices[managed.device].memory();
                memory.write(*address, &bytes).expect("allocated as long as it is managed");
                before.push((*address, bytes));
            }
        }
        before
    }

    /// Gives the host what the device has changed since.
    pub fn push_managed(&mut self, before: Before) {
        for (address, old) in before {
            let Some(managed) = self.managed.get(&address) else { continue };
            let mut new = vec![0; old.len()];
            let Some(memory) = self.devices[managed.device].memory.as_ref() else { continue };
            memory.read(address, &mut new).expect("allocated as long as it is managed");
            managed.pages.write_changes(&old, &new);
        }
    }
}

impl Attached {
    /// Of the flags of a call.
    pub fn from_flags(flags: u32, stream: Option<Id>) -> Result<Self, Code> {
        match (flags, stream) {
            (1, _) => Ok(Self::Global),
            (2, _) => Ok(Self::Host),
            (4, Some(stream)) => Ok(Self::Stream(stream)),
            _ => Err(Code::InvalidValue),
        }
    }
}

impl Device {
    /// The devices that work on these addresses concerns.
    pub fn of_addresses(addresses: impl Iterator<Item = u64>) -> Vec<usize> {
        addresses.filter_map(Device::of_address).collect()
    }
}

/// Pages of the host at an address of its choosing.
#[derive(Debug)]
struct Pages {
    address: usize,
    bytes: u64,
}

// As Linux has them on all of its 64-bit targets with these numbers.
const PROT_READ: c_int = 1;
const PROT_WRITE: c_int = 2;
const MAP_PRIVATE: c_int = 2;
const MAP_ANONYMOUS: c_int = 0x20;
const MAP_NORESERVE: c_int = 0x4000;
const MAP_FIXED_NOREPLACE: c_int = 0x10_0000;

unsafe extern "C" {
    fn mmap(
        address: *mut c_void,
        bytes: usize,
        protection: c_int,
        flags: c_int,
        file: c_int,
        offset: i64,
    ) -> *mut c_void;
    fn munmap(address: *mut c_void, bytes: usize) -> c_int;
}

impl Pages {
    /// Pages of zeros there; `None` where something else is.
    fn at(address: u64, bytes: u64) -> Option<Self> {
        let (wanted, length) = (usize::try_from(address).ok()?, usize::try_from(bytes).ok()?);
        let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE;
        let hint = ptr::with_exposed_provenance_mut(wanted);
        // SAFETY: new pages, and by the last flag none in the place of others.
        let mapped = unsafe { mmap(hint, length, PROT_READ | PROT_WRITE, flags, -1, 0) };
        if mapped.addr() == usize::MAX {
            return None;
        }
        let pages = Self { address: mapped.expose_provenance(), bytes };
        // A kernel that does not know the flag may choose another place: those are given back.
        (pages.address == wanted).then_some(pages)
    }

    fn read(&self) -> Vec<u8> {
        let mut copy = vec![0; self.bytes as usize];
        let source = ptr::with_exposed_provenance::<u8>(self.address);
        // SAFETY: pages of this many bytes, mapped as long as `self` lives; the copy is fresh memory.
        unsafe { ptr::copy_nonoverlapping(source, copy.as_mut_ptr(), copy.len()) };
        copy
    }

    /// Writes the bytes of `new` that differ from `old`, and leaves the others to the host.
    fn write_changes(&self, old: &[u8], new: &[u8]) {
        let mut at = 0;
        while let Some(first) = (at..new.len()).find(|i| new[*i] != old[*i]) {
            let end = (first..new.len()).find(|i| new[*i] == old[*i]).unwrap_or(new.len());
            let target = ptr::with_exposed_provenance_mut::<u8>(self.address + first);
            // SAFETY: within pages of as many bytes as `new`, mapped as long as `self` lives.
            unsafe { ptr::copy_nonoverlapping(new[first..end].as_ptr(), target, end - first) };
            at = end;
        }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        let pages = ptr::with_exposed_provenance_mut(self.address);
        // SAFETY: mapped by `at`, and given back here only.
        unsafe { munmap(pages, self.bytes as usize) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the host writes while the device works stays, where the device does not write.
    #[test]
    fn only_what_has_changed_is_written_back() {
        let pages = Pages::at(0x4f00_0000_0000, 100_000).unwrap();
        let all = |byte: u8| pages.write_changes(&[!byte; 100_000], &[byte; 100_000]);
        all(7);
        let old = pages.read();
        all(9);
        let mut new = old.clone();
        new[10..20].fill(1);
        new[99_999] = 2;
        pages.write_changes(&old, &new);
        for (i, byte) in pages.read().into_iter().enumerate() {
            let expected = match i {
                10..20 => 1,
                99_999 => 2,
                _ => 9,
            };
            assert_eq!(byte, expected, "{i}");
        }
        assert!(Pages::at(0x4f00_0000_0000, 1).is_none(), "something is there");
    }
}
