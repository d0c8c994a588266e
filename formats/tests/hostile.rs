//! Files that are cut off or damaged: an error or some numbers, never a panic, a hang, or more memory
//! than the file can justify. `BATCHNORM_FUZZ_ROUNDS=100000` damages each file more often.
#![allow(unsafe_code)] // an allocator that counts

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

#[path = "suite/support.rs"]
#[allow(dead_code)] // what the other tests compare with
mod support;

use batchnorm_formats::npy;
use support::{Any, FILES, data};

/// What `scripts/formats_fixtures.py` made, of systems by themselves.
const MORE: [&str; 8] = [
    "more_checkpoint.pt",
    "more_protocol_4.pt",
    "more_nested.keras",
    "more_nested.h5",
    "more_nested.weights.h5",
    "more_many.weights.h5",
    "more_float16.weights.h5",
    "more_bfloat16.weights.h5",
];

thread_local! {
    static LIVE: Cell<usize> = const { Cell::new(0) };
    static PEAK: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.get().wrapping_add(layout.size());
        LIVE.set(live);
        PEAK.set(PEAK.get().max(live));
        // SAFETY: the caller's promises are those that `System` asks for.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.set(LIVE.get().wrapping_sub(layout.size()));
        // SAFETY: the pointer is of `System`, and the layout that of its allocation.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Reads all that there is, for bytes that may be anything.
fn read_anything(file: &str, bytes: &[u8]) {
    if file.ends_with("npy") {
        let _ = npy::read(bytes);
        return;
    }
    let Ok(mut any) = Any::read(file, bytes) else { return };
    for name in any.layers().unwrap_or_default() {
        if let Ok(state) = any.layer(&name) {
            let _ = any.set_layer(&name, &state);
        }
    }
    let _ = any.to_bytes();
}

/// Reads these bytes, and says what they were where that took too long or too much.
fn try_out(file: &str, what: &str, bytes: &[u8]) {
    LIVE.set(0);
    PEAK.set(0);
    let start = Instant::now();
    read_anything(file, bytes);
    let (peak, took) = (PEAK.get(), start.elapsed());
    // The fixtures take 50 KB at most; reading one takes some copies of it, what deflate makes of a
    // part of it, and the parser's own tables.
    let most = (4 << 20) + 64 * bytes.len();
    assert!(peak <= most, "{file}, {what}: {peak} bytes of memory for {} of file", bytes.len());
    assert!(took < Duration::from_secs(10), "{file}, {what}: {took:?}");
}

/// A file's name, what was done to it, and its bytes then.
type Attempt = (&'static str, String, Vec<u8>);

/// Tries out what `make` sends, on all processors: what a file takes is counted by thread.
fn try_all(make: impl FnOnce(mpsc::SyncSender<Attempt>)) {
    let (sender, attempts) = mpsc::sync_channel::<Attempt>(64);
    let attempts = Arc::new(Mutex::new(attempts));
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            let attempts = Arc::clone(&attempts);
            scope.spawn(move || {
                let next = || attempts.lock().unwrap().recv();
                while let Ok((file, what, bytes)) = next() {
                    try_out(file, &what, &bytes);
                }
            });
        }
        drop(attempts); // so that sending fails, and does not wait, once every thread has
        make(sender);
    });
}

fn files() -> impl Iterator<Item = &'static str> {
    FILES.into_iter().chain(["keras3_moving_variance.npy"]).chain(MORE)
}

#[test]
fn truncated_files_are_errors_or_numbers() {
    try_all(|attempts| {
        for file in files() {
            let bytes = data(file);
            for len in 0..bytes.len() {
                let what = format!("the first {len} bytes");
                attempts.send((file, what, bytes[..len].to_vec())).unwrap();
            }
        }
    });
}

#[test]
fn damaged_files_are_errors_or_numbers() {
    // A fixed sequence (xorshift), so that a failure comes again.
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 16) as usize % below
    };
    let rounds = std::env::var("BATCHNORM_FUZZ_ROUNDS").map_or(2000, |n| n.parse().unwrap());
    try_all(|attempts| {
        for file in files() {
            let good = data(file);
            for round in 0..rounds {
                let mut bytes = good.clone();
                let mut places = Vec::new();
                for _ in 0..=random(3) {
                    let place = random(bytes.len());
                    bytes[place] = match random(4) {
                        0 => 0xff,
                        1 => 0,
                        2 => random(256) as u8,
                        _ => bytes[place] ^ (1 << random(8)),
                    };
                    places.push((place, bytes[place]));
                }
                let what = format!("round {round}, with {places:?}");
                attempts.send((file, what, bytes)).unwrap();
            }
            // Bytes by themselves as the largest there is: lengths and counts above all.
            for place in (0..good.len()).step_by(1 + good.len() / 4000) {
                let mut bytes = good.clone();
                bytes[place] = 0xff;
                attempts.send((file, format!("255 at {place}"), bytes)).unwrap();
            }
        }
    });
}

#[test]
fn arbitrary_bytes_are_errors() {
    let mut state = 1u64;
    for file in files() {
        for len in 0..200 {
            let bytes: Vec<u8> = (0..len)
                .map(|_| {
                    state =
                        state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    (state >> 56) as u8
                })
                .collect();
            try_out(file, &format!("{bytes:?}"), &bytes);
        }
    }
}
