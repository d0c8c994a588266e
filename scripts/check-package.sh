#!/usr/bin/env bash
# Packs the library as for crates.io, and type-checks what is packed, alone: with default features, with none, with each, and
# for other systems. What is packed is at most 1.5 MB, and 4 MB of machine code in the crate that a feature adds.
#
#   scripts/check-package.sh [cargo's options, as --offline]
set -euo pipefail
cd "$(dirname "$0")/.."
crates=(batchnorm batchnorm-cubins)
most=(1500000 4000000)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
fail() {
    printf 'check-package: %s\n' "$*" >&2
    exit 1
}

CARGO_TARGET_DIR=$scratch cargo package --quiet "${crates[@]/#/--package=}" --no-verify --allow-dirty --locked "$@"
for i in 0 1; do
    packed=$(ls "$scratch/package/${crates[i]}"-[0-9]*.crate)
    size=$(stat -c %s "$packed")
    echo "${crates[i]}: $(tar -tzf "$packed" | wc -l) files, $size bytes"
    [ "$size" -le "${most[i]}" ] || fail "$size bytes are more than ${most[i]}"
    tar -xzf "$packed" -C "$scratch"
done
# As if the second were on crates.io.
mkdir "$scratch/.cargo"
printf '[patch.crates-io]\nbatchnorm-cubins.path = "%s"\n' "$scratch"/batchnorm-cubins-[0-9]* >"$scratch/.cargo/config.toml"
cd "$scratch"/batchnorm-[0-9]*
cargo tree --quiet "$@" >/dev/null # has the lock file say so
# Where there is no repository to link to, a link leads into the package or to a site.
for target in $(grep -oE '\]\([^)]+\)' README.md | sed 's/.*](//; s/)$//' | grep -vE '^(https?:|#)'); do
    [ -e "$target" ] || fail "README.md links to $target, which is not packed"
done

export CARGO_TARGET_DIR=$scratch/target CARGO_PROFILE_DEV_DEBUG=0
features=$(cargo metadata --no-deps --format-version 1 "$@" | python3 -c '
import json, sys
print(*sorted(json.load(sys.stdin)["packages"][0]["features"].keys() - {"default"}))')
check() {
    echo "-- cargo check $*"
    cargo check "$@" --quiet --lib --locked "${options[@]}"
}
options=("$@")
check
check --no-default-features
for feature in $features; do check --no-default-features --features "$feature"; done
for target in wasm32-unknown-unknown x86_64-pc-windows-gnu aarch64-unknown-linux-gnu; do
    if ! rustup target add "$target" >/dev/null 2>&1; then
        echo "-- not checked for $target: rustup cannot get its standard library here"
        continue
    fi
    # There are threads to wait for there only where the browser has them, and no CUDA.
    case $target in
        wasm32-*) check --target "$target" --no-default-features --features safetensors && check --target "$target" --no-default-features ;;
        *) check --target "$target" ;;
    esac
done
