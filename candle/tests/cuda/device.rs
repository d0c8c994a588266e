//! What the software device of this process has seen. The program is linked with it, so its own functions are called: the
//! crate `softcuda` beside it would be a second driver.

use std::{
    collections::BTreeMap,
    ffi::c_uint,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// A launch: the first numbers are its shape and how it ran.
#[repr(C)]
#[derive(Default)]
struct Launch {
    shape: [c_uint; 10],
    seed: u64,
    /// Of threads and warps; then of loads from global memory bytes, sectors, requests; then of stores.
    counts: [u64; 16],
}

unsafe extern "C" {
    safe fn softcuda_reset(device: c_uint);
    safe fn softcuda_set_seed(device: c_uint, seed: u64);
    safe fn softcuda_used(device: c_uint) -> u64;
    safe fn softcuda_launch_count(device: c_uint) -> usize;
    safe fn softcuda_forget_calls();
    fn softcuda_launch(device: c_uint, index: usize, out: *mut Launch) -> bool;
    fn softcuda_message(
        device: c_uint,
        list: c_uint,
        index: usize,
        out: *mut u8,
        room: usize,
    ) -> usize;
    fn softcuda_calls(index: usize, count: *mut u64, out: *mut u8, room: usize) -> usize;
}

/// The device of that number, in the hands of one test at a time, just reset.
pub struct Device {
    number: c_uint,
    _lock: MutexGuard<'static, ()>,
}

impl Device {
    pub fn exclusive(number: usize) -> Self {
        static LOCK: Mutex<()> = Mutex::new(());
        let lock = LOCK.lock().unwrap_or_else(PoisonError::into_inner);
        softcuda_reset(number as c_uint);
        Self { number: number as c_uint, _lock: lock }
    }

    pub fn set_seed(&self, seed: u64) {
        softcuda_set_seed(self.number, seed);
    }

    /// Bytes allocated.
    pub fn used(&self) -> u64 {
        softcuda_used(self.number)
    }

    /// Faults, leaks and refused calls.
    pub fn complaints(&self) -> Vec<String> {
        let message = |list: c_uint, index: usize| {
            // SAFETY: `text` gives as much room as it says.
            text(|out, room| unsafe { softcuda_message(self.number, list, index, out, room) })
        };
        (0..3).flat_map(|list| (0..).map_while(move |index| message(list, index))).collect()
    }

    /// Launches that have been carried out.
    pub fn launches(&self) -> usize {
        softcuda_launch_count(self.number)
    }

    /// Bytes that launches from that one on have loaded from global memory, and stored there.
    pub fn traffic(&self, first: usize) -> (u64, u64) {
        let mut sum = (0, 0);
        for index in first..self.launches() {
            let mut launch = Launch::default();
            // SAFETY: `launch` can be written, and is laid out as the device's.
            if unsafe { softcuda_launch(self.number, index, &mut launch) } {
                sum = (sum.0 + launch.counts[2], sum.1 + launch.counts[5]);
            }
        }
        sum
    }
}

/// The driver's calls that this thread makes in `f`, by their names.
pub fn count_calls<T>(f: impl FnOnce() -> T) -> (T, BTreeMap<String, u64>) {
    softcuda_forget_calls();
    let result = f();
    let call = |index: usize| {
        let mut count = 0;
        let at = &raw mut count;
        // SAFETY: `count` can be written, and `text` gives as much room as it says.
        let name = text(|out, room| unsafe { softcuda_calls(index, at, out, room) })?;
        Some((name, count))
    };
    (result, (0..).map_while(call).collect())
}

/// A text that is copied into the room it is given, whose length is answered.
fn text(copy: impl Fn(*mut u8, usize) -> usize) -> Option<String> {
    let mut room = vec![0; 4096];
    let length = copy(room.as_mut_ptr(), room.len());
    room.truncate(length);
    (length != usize::MAX).then(|| String::from_utf8_lossy(&room).into_owned())
}
