#!/usr/bin/env bash
# Runs tests of the CPU engine under Miri, by tree borrows: its unsafe code, and races between its threads. Without
# the vector instructions that Miri takes for absent: what `simd.rs` and `store.rs` do with them the library's own
# tests show. Needs nightly with Miri; `.ci/run` does not call it.
#
#   scripts/miri.sh              tiles on threads, stores, and what of the engine takes seconds: about three minutes
#   scripts/miri.sh FILTER...    others, such as interpreted::columns: a call of the engine takes about a second, and
#                                each of these makes many; none of them but interpreted::empty has been seen to end
set -euo pipefail
cd "$(dirname "$0")/.."
cargo +nightly miri --version >/dev/null 2>&1 || {
    echo "miri: missing: rustup toolchain install nightly --component miri --component rust-src" >&2
    exit 1
}
# Isolation: the clock and the number of processors. Leaks: rayon's pool ends with the process. Provenance: rayon's
# queues cast integers to pointers.
export MIRIFLAGS="-Zmiri-tree-borrows -Zmiri-disable-isolation -Zmiri-ignore-leaks -Zmiri-permissive-provenance ${MIRIFLAGS:-}"
export RAYON_NUM_THREADS=2
miri() { cargo +nightly miri test --locked --no-default-features "$@" --test-threads 1; }
if [ $# -gt 0 ]; then
    miri --test suite -- "$@"
    exit
fi
miri --lib -- cpu::tiles simd::store
miri --test suite -- definition::cpu interpreted::empty
