//! How many blocks run at a time: from threads and shared memory, never from registers.

use crate::profile::{MAX_THREADS, Profile};

/// Blocks of `threads` threads and `shared` bytes of shared memory that one multiprocessor runs at a time.
pub fn blocks_per_multiprocessor(profile: &Profile, threads: u32, shared: u32) -> u32 {
    if threads == 0 || threads > MAX_THREADS || shared > profile.shared_per_block_optin {
        return 0;
    }
    let by_threads = profile.threads_per_multiprocessor / threads.next_multiple_of(32);
    let used = shared.next_multiple_of(128) + profile.shared_reserved;
    let by_shared = profile.shared_per_multiprocessor.checked_div(used).unwrap_or(u32::MAX);
    by_threads.min(by_shared).min(profile.blocks_per_multiprocessor)
}

/// Bytes of dynamic shared memory that each of `blocks` blocks of a multiprocessor may have, beside `fixed` bytes of
/// static ones; `None` where that many blocks do not fit at all.
pub fn dynamic_shared(profile: &Profile, blocks: u32, threads: u32, fixed: u32) -> Option<u32> {
    if blocks == 0 || blocks_per_multiprocessor(profile, threads, fixed) < blocks {
        return None;
    }
    let each = profile.shared_per_multiprocessor / blocks - profile.shared_reserved;
    Some((each / 128 * 128).min(profile.shared_per_block_optin).saturating_sub(fixed))
}

/// The block size, a multiple of 32 up to `limit`, with the most threads at a time, and the blocks that fill the
/// device with it; the larger size where two are alike. `shared` tells the bytes of shared memory at a block size.
pub fn best_block(
    profile: &Profile,
    limit: u32,
    shared: impl Fn(u32) -> u32,
) -> Option<(u32, u32)> {
    (1..=limit / 32)
        .map(|warps| warps * 32)
        .map(|threads| (blocks_per_multiprocessor(profile, threads, shared(threads)), threads))
        .filter(|(blocks, _)| *blocks > 0)
        .max_by_key(|(blocks, threads)| (blocks * threads, *threads))
        .map(|(blocks, threads)| (blocks * profile.multiprocessors, threads))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::PROFILES;

    #[test]
    fn threads_and_shared_memory_limit_the_blocks() {
        let [sm_90, _, sm_75, _, _, mini] = &PROFILES;
        assert_eq!(blocks_per_multiprocessor(sm_90, 256, 0), 8);
        assert_eq!(blocks_per_multiprocessor(sm_90, 33, 0), 32);
        assert_eq!(blocks_per_multiprocessor(sm_90, 256, 103 << 10), 2);
        assert_eq!(blocks_per_multiprocessor(sm_90, 256, 227 << 10), 1);
        assert_eq!(blocks_per_multiprocessor(sm_90, 256, (227 << 10) + 1), 0);
        assert_eq!(blocks_per_multiprocessor(sm_75, 1024, 64 << 10), 1);
        assert_eq!(blocks_per_multiprocessor(mini, 128, 7 << 10), 2);
        assert_eq!(blocks_per_multiprocessor(sm_90, 1025, 0), 0);
    }

    #[test]
    fn what_a_block_is_told_to_take_fits() {
        for profile in &PROFILES {
            for blocks in 1..=8 {
                if let Some(bytes) = dynamic_shared(profile, blocks, 128, 512) {
                    assert!(blocks_per_multiprocessor(profile, 128, bytes + 512) >= blocks);
                    let more = blocks_per_multiprocessor(profile, 128, bytes + 512 + 128);
                    assert!(more < blocks || bytes + 512 == profile.shared_per_block_optin);
                }
            }
        }
    }

    #[test]
    fn the_best_block_fills_a_multiprocessor() {
        assert_eq!(best_block(&PROFILES[0], 1024, |_| 0), Some((2 * 132, 1024)));
        assert_eq!(best_block(&PROFILES[0], 768, |_| 0), Some((4 * 132, 512)));
        assert_eq!(best_block(&PROFILES[0], 1024, |_| 1 << 20), None);
    }
}
