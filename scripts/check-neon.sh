#!/usr/bin/env bash
# Runs the CPU engine's tests by NEON on a machine that has none: compiled for aarch64, in QEMU. Not called by `.ci/run`,
# which would take minutes longer.
#
#   scripts/check-neon.sh              the library's tests of the engine, and those of the suite on `Cpu`
#   scripts/check-neon.sh --counts     what it executes for each element, beside AVX2 (neon_counts.py)
#   scripts/check-neon.sh FILTER...    these tests of the suite, such as cpu::layouts
#
# It needs Rust's standard library for aarch64, which rustup has, and the packages gcc-aarch64-linux-gnu and qemu-user of
# Debian or Ubuntu: where these are not installed, it unpacks them into a cache folder, and nothing is installed.
set -euo pipefail
cd "$(dirname "$0")/.."
target=aarch64-unknown-linux-gnu
fail() {
    echo "check-neon: $1" >&2
    exit 1
}

# Debian's packages, unpacked: the compiler and QEMU find there what is theirs.
unpack() {
    command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null ||
        fail "expected aarch64-linux-gnu-gcc and qemu-aarch64, or apt-get and dpkg-deb to fetch them: found neither"
    [ ! -e "$tools/done" ] || return 0
    echo "unpacking a compiler for aarch64 and QEMU (55 MB, once) into $tools"
    mkdir -p "$(dirname "$tools")"
    new=$(mktemp -d "$tools.XXXXXX")
    trap 'rm -rf "$new"' EXIT
    mkdir -p "$new/lists/partial" "$new/cache/archives/partial" "$new/debs"
    local apt=(apt-get -qq -o "Dir::State::Lists=$new/lists" -o "Dir::Cache=$new/cache" -o Debug::NoLocking=1)
    apt+=(-o "APT::Sandbox::User=$(id -un)")
    "${apt[@]}" update || fail "apt-get could not read its sources"
    local names
    names=$("${apt[@]}" -s install --no-install-recommends gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user) ||
        fail "apt-get knows no gcc-aarch64-linux-gnu, libc6-dev-arm64-cross or qemu-user"
    mapfile -t names < <(awk '/^Inst / { print $2 }' <<<"$names")
    [ ${#names[@]} != 0 ] || fail "gcc-aarch64-linux-gnu and qemu-user seem to be installed, but not in the usual places"
    (cd "$new/debs" && "${apt[@]}" download "${names[@]}") ||
        fail "apt-get could not fetch ${names[*]}"
    local package
    for package in "$new"/debs/*.deb; do dpkg-deb -x "$package" "$new"; done
    rm -rf "$new/lists" "$new/cache" "$new/debs"
    touch "$new/done"
    mv -T "$new" "$tools" 2>/dev/null || true # another one was faster
}

[ "$(uname -m)" != aarch64 ] || fail "this machine has NEON: cargo test --test suite -- ::cpu::"
rustup target add "$target" >/dev/null 2>&1 || [ -d "$(rustc --print sysroot)/lib/rustlib/$target/lib" ] ||
    fail "rustup cannot get the standard library for $target here"

gcc=$(command -v aarch64-linux-gnu-gcc) && qemu=$(command -v qemu-aarch64) && system=/usr/aarch64-linux-gnu &&
    [ -e "$system/lib/crt1.o" ] || {
    tools=${BATCHNORM_NEON_TOOLS:-${XDG_CACHE_HOME:-$HOME/.cache}/batchnorm/neon-tools}
    unpack
    system=$tools/usr/aarch64-linux-gnu
    qemu=$tools/qemu gcc=$tools/gcc
    for program in "qemu usr/bin/qemu-aarch64" "gcc usr/bin/aarch64-linux-gnu-gcc --sysroot=$tools"; do
        read -r name command <<<"$program"
        printf '#!/bin/sh\nLD_LIBRARY_PATH=%q exec %q/%s "$@"\n' \
            "$tools/usr/lib/$(uname -m)-linux-gnu" "$tools" "$command" >"$tools/$name"
        chmod +x "$tools/$name"
    done
}
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=$gcc
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="$qemu -L $system"
options=(--locked --target "$target" --no-default-features --features safetensors,serde)
if [ "${1:-}" = --counts ]; then
    cargo build --release --locked --target "$target" -p examples --bin speed --no-default-features
    program=${CARGO_TARGET_DIR:-target}/$target/release/speed
    exec python3 scripts/neon_counts.py "$program" "$qemu" -L "$system"
fi
[ $# = 0 ] || exec cargo test "${options[@]}" --test suite -- "$@"
cargo test "${options[@]}" --lib -- cpu
cargo test "${options[@]}" --test suite -- ::cpu::
