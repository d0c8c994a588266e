//! What a test has in its hands after [`install`](crate::install): the loaded driver's own entry points, safe.
//!
//! The copy of this crate that is linked into the test and the one that is loaded as the driver do not share state:
//! all of it lives in the loaded one, and is reached through the functions here.

use std::{
    collections::BTreeMap,
    ffi::CStr,
    ops::Deref,
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::{
    code::Code,
    profile::{PROFILES, Profile},
    report::{FailurePoint, LaunchReport, Messages, Report, Traffic},
};

/// Marks both copies with the sources that they were built from.
pub const SOURCES: &CStr = match CStr::from_bytes_with_nul(
    concat!("softcuda sources ", env!("SOFTCUDA_SOURCES"), "\0").as_bytes(),
) {
    Ok(text) => text,
    Err(_) => panic!("one 0, at the end"),
};

/// How many numbers a [`Report`] has.
pub const COUNTS: usize = 16;

/// A [`LaunchReport`] on its way from one copy to the other.
#[repr(C)]
#[derive(Clone, Debug, Default)]
pub struct RawLaunch {
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub dynamic_shared: u32,
    pub cooperative: u32,
    pub resident: u32,
    pub padding: u32,
    pub seed: u64,
    pub counts: [u64; COUNTS],
}

/// The numbers of a report, in a fixed order.
pub fn pack(report: &Report) -> [u64; COUNTS] {
    let Report {
        thread_instructions,
        warp_instructions,
        global_loads,
        global_stores,
        polls,
        atomics,
        shared_loads,
        shared_stores,
        barriers,
        high_water,
    } = *report;
    let [l, s, p] = [global_loads, global_stores, polls].map(|t| [t.bytes, t.sectors, t.requests]);
    [
        thread_instructions,
        warp_instructions,
        l[0],
        l[1],
        l[2],
        s[0],
        s[1],
        s[2],
        p[0],
        p[1],
        p[2],
        atomics,
        shared_loads,
        shared_stores,
        barriers,
        high_water,
    ]
}

/// The report of those numbers.
fn unpack(n: &[u64; COUNTS]) -> Report {
    let traffic = |at: usize| Traffic { bytes: n[at], sectors: n[at + 1], requests: n[at + 2] };
    Report {
        thread_instructions: n[0],
        warp_instructions: n[1],
        global_loads: traffic(2),
        global_stores: traffic(5),
        polls: traffic(8),
        atomics: n[11],
        shared_loads: n[12],
        shared_stores: n[13],
        barriers: n[14],
        high_water: n[15],
    }
}

/// The loaded driver's own entry points.
#[derive(Debug)]
pub(crate) struct Calls {
    pub seed: extern "C" fn(u32) -> u64,
    pub set_seed: extern "C" fn(u32, u64),
    pub set_all_seeds: extern "C" fn(u64),
    pub set_budget: extern "C" fn(u32, u64),
    pub let_equal_writes_pass: extern "C" fn(u32, bool),
    pub set_shared_taken: extern "C" fn(u32, u32),
    pub launch_count: extern "C" fn(u32) -> usize,
    pub launch: unsafe extern "C" fn(u32, usize, *mut RawLaunch) -> bool,
    pub launch_kernel: unsafe extern "C" fn(u32, usize, *mut u8, usize) -> usize,
    pub message: unsafe extern "C" fn(u32, u32, usize, *mut u8, usize) -> usize,
    pub fail: extern "C" fn(u32, u32, u64, u32) -> bool,
    pub reset: extern "C" fn(u32),
    pub used: extern "C" fn(u32) -> u64,
    pub calls: unsafe extern "C" fn(usize, *mut u64, *mut u8, usize) -> usize,
    pub forget_calls: extern "C" fn(),
}

/// The driver of this process, once it is [installed](crate::install).
#[derive(Debug)]
pub struct Softcuda {
    pub(crate) calls: Calls,
}

impl Softcuda {
    /// Sets the seed of all devices, those included that a test has to itself. It is 1 at first, or what the
    /// environment variable `SOFTCUDA_SEED` says.
    pub fn set_seed(&self, seed: u64) {
        (self.calls.set_all_seeds)(seed);
    }

    /// The calls of the driver that this thread makes in `f`: how often each, by its name (`cuLaunchKernel`). Those of
    /// other threads, and those that the driver makes of itself, do not count.
    pub fn count_calls<T>(&self, f: impl FnOnce() -> T) -> (T, BTreeMap<String, u64>) {
        (self.calls.forget_calls)();
        let result = f();
        let call = |index: usize| {
            let mut count = 0;
            let at = &raw mut count;
            // SAFETY: `count` can be written, and `text` gives as much room as it says.
            let name = text(|out, room| unsafe { (self.calls.calls)(index, at, out, room) })?;
            Some((name, count))
        };
        (result, (0..).map_while(call).collect())
    }

    /// A device, without a claim to have it alone.
    ///
    /// # Panics
    /// If there is no such ordinal.
    pub fn device(&'static self, ordinal: usize) -> Device {
        assert!(ordinal < PROFILES.len(), "ordinals go up to {}", PROFILES.len() - 1);
        Device { calls: &self.calls, ordinal: ordinal as u32 }
    }

    /// A device that no other test in this process has at the same time, just reset. Tests that ask for lists,
    /// request failures, expect faults or set a seed need it so: tests of one process run side by side, and share their devices.
    ///
    /// # Panics
    /// If there is no such ordinal.
    pub fn exclusive(&'static self, ordinal: usize) -> Exclusive {
        static LOCKS: [Mutex<()>; PROFILES.len()] = [const { Mutex::new(()) }; PROFILES.len()];
        let device = self.device(ordinal);
        let lock = LOCKS[ordinal].lock().unwrap_or_else(PoisonError::into_inner);
        device.reset();
        Exclusive { device, _lock: lock }
    }
}

/// A device, for asking what it has done and telling it what to fail at.
#[derive(Clone, Copy, Debug)]
pub struct Device {
    calls: &'static Calls,
    ordinal: u32,
}

impl Device {
    /// The ordinal, as `CudaContext::new` takes it.
    pub fn ordinal(&self) -> usize {
        self.ordinal as usize
    }

    /// What it is like.
    pub fn profile(&self) -> &'static Profile {
        &PROFILES[self.ordinal()]
    }

    /// The launches that have been carried out without a fault, in that order, since the last reset. Work is carried
    /// out when it is waited for: synchronise first.
    pub fn launches(&self) -> Vec<LaunchReport> {
        (0..(self.calls.launch_count)(self.ordinal)).filter_map(|at| self.launch(at)).collect()
    }

    /// The last of [`Device::launches`].
    pub fn last_launch(&self) -> Option<LaunchReport> {
        self.launch((self.calls.launch_count)(self.ordinal).checked_sub(1)?)
    }

    fn launch(&self, index: usize) -> Option<LaunchReport> {
        let mut raw = RawLaunch::default();
        // SAFETY: `raw` can be written.
        if !unsafe { (self.calls.launch)(self.ordinal, index, &mut raw) } {
            return None;
        }
        // SAFETY: `text` gives as much room as it says.
        let kernel = text(|out, room| unsafe {
            (self.calls.launch_kernel)(self.ordinal, index, out, room)
        })?;
        Some(LaunchReport {
            kernel,
            grid: raw.grid,
            block: raw.block,
            dynamic_shared: raw.dynamic_shared,
            cooperative: raw.cooperative != 0,
            resident: raw.resident,
            seed: raw.seed,
            counts: unpack(&raw.counts),
        })
    }

    /// What kernels and queued copies did wrong: kernel, PTX line, block and thread; and the seed.
    pub fn faults(&self) -> Vec<String> {
        self.messages(Messages::Faults)
    }

    /// What was still there when its context ended.
    pub fn leaks(&self) -> Vec<String> {
        self.messages(Messages::Leaks)
    }

    /// Why calls were refused, where the error code alone does not tell.
    pub fn refusals(&self) -> Vec<String> {
        self.messages(Messages::Refusals)
    }

    /// What kernels have printed: a text for each launch that did. It goes to standard output, too.
    pub fn printed(&self) -> Vec<String> {
        self.messages(Messages::Printed)
    }

    fn messages(&self, list: Messages) -> Vec<String> {
        let message = |at: usize| {
            text(|out, room| {
                // SAFETY: `text` gives as much room as it says.
                unsafe { (self.calls.message)(self.ordinal, list as u32, at, out, room) }
            })
        };
        (0..).map_while(message).collect()
    }

    /// Makes a call at `point` fail with `code`: the next one, or with `before` others before it. A code that a device
    /// gives for work that has begun makes the context unusable, as there.
    ///
    /// # Panics
    /// If `code` is success.
    pub fn fail(&self, point: FailurePoint, before: u64, code: Code) {
        let is_set = (self.calls.fail)(self.ordinal, point as u32, before, code as u32);
        assert!(is_set, "success is no failure");
    }

    /// The seed of all choices here: the order of streams, and of blocks and warps in launches.
    pub fn seed(&self) -> u64 {
        (self.calls.seed)(self.ordinal)
    }

    /// Sets the seed of this device, until the next reset, and starts its choices anew.
    pub fn set_seed(&self, seed: u64) {
        (self.calls.set_seed)(self.ordinal, seed);
    }

    /// Sets how many instructions, summed over its threads, a launch may take before it counts as hanging, until the
    /// next reset. It is 4 000 000 000 at first, or what the environment variable `SOFTCUDA_BUDGET` says.
    pub fn set_budget(&self, instructions: u64) {
        (self.calls.set_budget)(self.ordinal, instructions);
    }

    /// Whether threads may write the value to a place that another thread has written there, with nothing to order the
    /// two, from now on. To PTX that is a race, and so it is to this device at first, unless the environment variable
    /// `SOFTCUDA_EQUAL_WRITES` is set; compute-sanitizer lets it pass.
    pub fn let_equal_writes_pass(&self, yes: bool) {
        (self.calls.let_equal_writes_pass)(self.ordinal, yes);
    }

    /// Takes so many bytes of shared memory from every multiprocessor, until the next reset, as a debugger, another
    /// process or a larger cache does: fewer blocks run at a time, while the device's attributes stay as they are.
    pub fn set_shared_taken(&self, bytes: u32) {
        (self.calls.set_shared_taken)(self.ordinal, bytes);
    }

    /// Forgets launches, messages and requested failures, and what was set for this device alone. Memory and contexts
    /// stay as they are.
    pub fn reset(&self) {
        (self.calls.reset)(self.ordinal);
    }

    /// Bytes allocated, each allocation rounded up to 256.
    pub fn used(&self) -> u64 {
        (self.calls.used)(self.ordinal)
    }
}

/// A text that is copied into the room it is given, whose length is answered.
fn text(copy: impl Fn(*mut u8, usize) -> usize) -> Option<String> {
    let mut room = vec![0; 512];
    loop {
        let length = copy(room.as_mut_ptr(), room.len());
        if length == usize::MAX {
            return None;
        }
        if length <= room.len() {
            room.truncate(length);
            return Some(String::from_utf8_lossy(&room).into_owned());
        }
        room.resize(length, 0);
    }
}

/// A device that nobody else in this process has through [`Softcuda::exclusive`].
#[derive(Debug)]
pub struct Exclusive {
    device: Device,
    _lock: MutexGuard<'static, ()>,
}

impl Deref for Exclusive {
    type Target = Device;

    fn deref(&self) -> &Device {
        &self.device
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_survives_the_way() {
        let numbers: [u64; COUNTS] = std::array::from_fn(|i| 1000 + i as u64);
        assert_eq!(pack(&unpack(&numbers)), numbers);
    }
}
