//! What a stream is given to do.

use std::sync::Arc;

use ptx_vm::instr::Kernel;

use crate::host::{Callback, HostRange};

/// A kernel with everything that was fixed when it was launched.
#[derive(Debug)]
pub struct KernelLaunch {
    pub kernel: Arc<Kernel>,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub dynamic_shared: u32,
    pub params: Vec<u8>,
    pub cooperative: bool,
    /// Blocks that the device runs at a time, at most.
    pub capacity: u32,
}

impl KernelLaunch {
    pub fn blocks(&self) -> u64 {
        self.grid.iter().map(|n| u64::from(*n)).product()
    }
}

/// One piece of work.
#[derive(Clone, Debug)]
pub enum Work {
    Kernel(Arc<KernelLaunch>),
    Fill {
        target: u64,
        pattern: u32,
        width: u8,
        count: u64,
    },
    /// From bytes taken when the call was made: pageable memory is free again when the call returns.
    Write {
        target: u64,
        data: Arc<Vec<u8>>,
    },
    WriteFrom {
        target: u64,
        source: HostRange,
    },
    ReadTo {
        target: HostRange,
        source: u64,
    },
    Copy {
        target: u64,
        source: u64,
        bytes: u64,
    },
    Allocate {
        pointer: u64,
        bytes: u64,
    },
    Free {
        pointer: u64,
    },
    Host(Callback),
}

impl Work {
    /// What it does, for messages.
    pub fn name(&self) -> String {
        match self {
            Work::Kernel(launch) => format!("kernel {}", launch.kernel.name),
            Work::Fill { .. } => "a memset".into(),
            Work::Write { .. } | Work::WriteFrom { .. } => "a copy from the host".into(),
            Work::ReadTo { .. } => "a copy to the host".into(),
            Work::Copy { .. } => "a copy".into(),
            Work::Allocate { .. } => "an allocation".into(),
            Work::Free { .. } => "a free".into(),
            Work::Host(_) => "a host function".into(),
        }
    }

    /// Where it is given device memory, beside the parameters of a kernel: by these addresses, which tell the device.
    pub fn addresses(&self) -> impl Iterator<Item = u64> {
        let (first, second) = match *self {
            Work::Fill { target, .. }
            | Work::Write { target, .. }
            | Work::WriteFrom { target, .. } => (Some(target), None),
            Work::ReadTo { source, .. } => (Some(source), None),
            Work::Copy { target, source, .. } => (Some(target), Some(source)),
            Work::Allocate { pointer, .. } | Work::Free { pointer } => (Some(pointer), None),
            Work::Kernel(_) | Work::Host(_) => (None, None),
        };
        first.into_iter().chain(second)
    }

    /// All addresses that it is given. To a kernel that is whatever stands in its parameters where an address can, at
    /// multiples of 8 bytes, so that not all of them need be addresses.
    pub fn all_addresses(&self) -> impl Iterator<Item = u64> {
        let params: &[u8] = match self {
            Work::Kernel(launch) => &launch.params,
            _ => &[],
        };
        let words = params.chunks_exact(8);
        let words = words.map(|word| u64::from_le_bytes(word.try_into().expect("8 bytes")));
        self.addresses().chain(words)
    }

    /// Whether it uses memory among `bytes` bytes from `start` on, as far as the call tells.
    pub fn uses(&self, start: u64, bytes: u64) -> bool {
        !matches!(self, Work::Allocate { .. } | Work::Free { .. })
            && self.all_addresses().any(|address| (start..start + bytes).contains(&address))
    }

    /// Whether it reads or writes a byte of that host memory.
    pub fn touches_host(&self, address: usize, bytes: usize) -> bool {
        match self {
            Work::WriteFrom { source: range, .. } | Work::ReadTo { target: range, .. } => {
                range.touches(address, bytes)
            }
            _ => false,
        }
    }
}
