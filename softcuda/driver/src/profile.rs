//! The devices: each ordinal is a profile.

/// What a device says about itself, and what it is held to.
///
/// [`PROFILES`] are listed in the README.
///
/// A block gets more than 48 KiB of shared memory only where the kernel's attribute asks for it, as on any device. From
/// capability 8.0 on, each block costs 1 KiB of its SM's shared memory beside its own. Memory is taken from the host
/// as it is allocated, not before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// What it is called here.
    pub name: &'static str,
    /// Compute capability, major and minor.
    pub capability: (u32, u32),
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of shared memory of one of them.
    pub shared_per_multiprocessor: u32,
    /// Bytes of shared memory that a block may have, where the kernel's attribute asks for them.
    pub shared_per_block_optin: u32,
    /// Bytes of shared memory that each block costs beside its own.
    pub shared_reserved: u32,
    /// Threads at a time of one multiprocessor.
    pub threads_per_multiprocessor: u32,
    /// Blocks at a time of one multiprocessor.
    pub blocks_per_multiprocessor: u32,
    /// Bytes of L2 cache, as an attribute only: no cache is modelled.
    pub l2: u32,
    /// Bytes of memory.
    pub memory: u64,
    /// Whether there are memory pools, that is stream-ordered allocation.
    pub pools: bool,
    /// Whether host and device may use managed memory at the same time. Where not, the device uses only what is attached to
    /// all streams or to the one at work.
    pub concurrent_managed: bool,
}

const KIB: u32 = 1 << 10;
const GIB: u64 = 1 << 30;

const SM_90: Profile = Profile {
    name: "sm_90",
    capability: (9, 0),
    multiprocessors: 132,
    shared_per_multiprocessor: 228 * KIB,
    shared_per_block_optin: 227 * KIB,
    shared_reserved: KIB,
    threads_per_multiprocessor: 2048,
    blocks_per_multiprocessor: 32,
    l2: 60 << 20,
    memory: 8 * GIB,
    pools: true,
    concurrent_managed: true,
};

/// The profiles, by ordinal.
pub const PROFILES: [Profile; 6] = [
    SM_90,
    Profile {
        name: "sm_80",
        capability: (8, 0),
        multiprocessors: 108,
        shared_per_multiprocessor: 164 * KIB,
        shared_per_block_optin: 163 * KIB,
        l2: 40 << 20,
        ..SM_90
    },
    Profile {
        name: "sm_75",
        capability: (7, 5),
        multiprocessors: 40,
        shared_per_multiprocessor: 64 * KIB,
        shared_per_block_optin: 64 * KIB,
        shared_reserved: 0,
        threads_per_multiprocessor: 1024,
        blocks_per_multiprocessor: 16,
        l2: 4 << 20,
        ..SM_90
    },
    Profile { name: "no pools", pools: false, concurrent_managed: false, ..SM_90 },
    Profile { name: "tiny memory", memory: 4 << 20, ..SM_90 },
    Profile {
        name: "mini",
        multiprocessors: 4,
        shared_per_multiprocessor: 16 * KIB,
        shared_per_block_optin: 15 * KIB,
        threads_per_multiprocessor: 1024,
        l2: 1 << 20,
        ..SM_90
    },
];

/// The ordinal of [`PROFILES`] of that name.
pub fn ordinal(name: &str) -> Option<usize> {
    PROFILES.iter().position(|profile| profile.name == name)
}

/// Threads of a block, at most.
pub const MAX_THREADS: u32 = 1024;
/// Threads of a block along each axis, at most.
pub const MAX_BLOCK: [u32; 3] = [1024, 1024, 64];
/// Blocks of a grid along each axis, at most.
pub const MAX_GRID: [u32; 3] = [i32::MAX as u32, 65535, 65535];
/// Registers of a thread, of every kernel: none are allocated here, so this is only a number to answer with.
pub const REGISTERS: u32 = 32;

/// The greatest number that is an attribute in the newest bindings of cudarc.
const LAST_ATTRIBUTE: u32 = 161;

impl Profile {
    /// Bytes of shared memory that a block may have without asking.
    pub fn shared_per_block(&self) -> u32 {
        self.shared_per_block_optin.min(48 * KIB)
    }

    /// `CU_DEVICE_ATTRIBUTE_...` of that number; 0 for what is not here (textures, clusters, clocks).
    pub fn attribute(&self, number: u32) -> Option<u32> {
        Some(match number {
            1 => MAX_THREADS,
            2..=4 => MAX_BLOCK[number as usize - 2],
            5..=7 => MAX_GRID[number as usize - 5],
            8 => self.shared_per_block(),
            9 => 64 * KIB,
            10 => 32,
            11 => i32::MAX as u32,
            12 | 82 => self.threads_per_multiprocessor * REGISTERS,
            14 => 512,
            15 | 31 | 41 | 78 | 79 | 80 | 83 | 90 | 95 => 1,
            89 => u32::from(self.concurrent_managed),
            16 => self.multiprocessors,
            38 => self.l2,
            39 => self.threads_per_multiprocessor,
            40 => 2,
            75 => self.capability.0,
            76 => self.capability.1,
            81 => self.shared_per_multiprocessor,
            97 => self.shared_per_block_optin,
            106 => self.blocks_per_multiprocessor,
            111 => self.shared_reserved,
            115 => u32::from(self.pools),
            _ if (1..=LAST_ATTRIBUTE).contains(&number) => 0,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table that users read is this one.
    #[test]
    fn the_readme_lists_the_profiles() {
        let readme = include_str!("../README.md");
        for (ordinal, profile) in PROFILES.iter().enumerate() {
            let (major, minor) = profile.capability;
            let memory = match profile.memory {
                bytes if bytes >= GIB => format!("{} GiB", bytes / GIB),
                bytes => format!("{} MiB", bytes >> 20),
            };
            let row = format!(
                "| {ordinal} | {} | {major}.{minor} | {} | {}, {} KiB | {} | {memory} | {} |",
                profile.name,
                profile.multiprocessors,
                profile.shared_per_multiprocessor / KIB,
                profile.shared_per_block_optin / KIB,
                profile.threads_per_multiprocessor,
                if profile.pools { "yes" } else { "no" },
            );
            assert!(readme.contains(&row), "{row}");
        }
    }
}
