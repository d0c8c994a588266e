//! Engines are made while nothing is captured: before its first stream cudarc waits for all work of a context, which
//! the driver refuses where any of its streams is captured, and the capture is lost.
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// How many make an engine, and how many capture.
static NOW: Mutex<[usize; 2]> = Mutex::new([0; 2]);
static CHANGED: Condvar = Condvar::new();
const MAKING: usize = 0;
const CAPTURING: usize = 1;

fn now() -> MutexGuard<'static, [usize; 2]> {
    NOW.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One of those, until it is dropped.
pub struct Pass(usize);

fn pass(kind: usize, other: usize) -> Pass {
    let waited = CHANGED.wait_while(now(), |now| now[other] > 0);
    waited.unwrap_or_else(PoisonError::into_inner)[kind] += 1;
    Pass(kind)
}

/// Waits until nobody captures; who captures later waits.
pub fn making() -> Pass {
    pass(MAKING, CAPTURING)
}
/// Waits until nobody makes an engine. Any number may capture at a time, so ranks that wait for each other come
/// together.
pub fn capturing() -> Pass {
    pass(CAPTURING, MAKING)
}

impl Drop for Pass {
    fn drop(&mut self) {
        now()[self.0] -= 1;
        CHANGED.notify_all();
    }
}
