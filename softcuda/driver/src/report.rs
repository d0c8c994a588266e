//! What tests ask about afterwards: launches, faults, leaks; and failures that they ask for.

pub use ptx_vm::report::{Report, Traffic};

use crate::code::Code;

/// A launch that was carried out without a fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaunchReport {
    /// The kernel.
    pub kernel: String,
    /// Blocks along each axis.
    pub grid: [u32; 3],
    /// Threads of a block along each axis.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory of each block.
    pub dynamic_shared: u32,
    /// Whether it was launched cooperatively.
    pub cooperative: bool,
    /// How many blocks ran at a time, at most.
    pub resident: u32,
    /// The seed that ordered its blocks and warps.
    pub seed: u64,
    /// What was counted.
    pub counts: Report,
}

/// Lists of messages that a device keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Messages {
    /// What kernels and queued copies did wrong; each has poisoned a context.
    Faults,
    /// What was still allocated when its context ended.
    Leaks,
    /// Calls that were refused for a reason worth telling, PTX that does not load among them.
    Refusals,
    /// What kernels have printed: a text for each launch that did.
    Printed,
}

/// Where a failure can be injected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum FailurePoint {
    /// Allocations of device memory, of all kinds.
    Allocation,
    /// Launches of kernels, of all kinds, those that a capture records included.
    Launch,
    /// Copies and fills, of all kinds.
    Copy,
    /// Loading of modules.
    Module,
}

/// A failure that a test has asked for.
#[derive(Debug)]
pub struct Failure {
    pub point: FailurePoint,
    /// How many calls go through before the one that fails.
    pub before: u64,
    pub code: Code,
}

/// What a device has to tell.
#[derive(Debug, Default)]
pub struct Log {
    pub launches: Vec<LaunchReport>,
    lists: [Vec<String>; 4],
    pub failures: Vec<Failure>,
}

impl Log {
    /// Keeps a message, and prints it.
    pub fn note(&mut self, list: Messages, message: String) {
        eprintln!("softcuda: {message}");
        self.lists[list as usize].push(message);
    }

    /// Keeps what a kernel has printed, and prints it as a driver does.
    pub fn print(&mut self, text: String) {
        if !text.is_empty() {
            print!("{text}");
            self.lists[Messages::Printed as usize].push(text);
        }
    }

    pub fn list(&self, list: Messages) -> &[String] {
        &self.lists[list as usize]
    }

    /// Counts a call at `point`, and tells whether it is one that fails.
    pub fn failure(&mut self, point: FailurePoint) -> Option<Code> {
        let due = self.failures.iter().position(|f| f.point == point && f.before == 0);
        let code = due.map(|at| self.failures.remove(at).code);
        for failure in self.failures.iter_mut().filter(|failure| failure.point == point) {
            failure.before = failure.before.saturating_sub(1);
        }
        code
    }
}
