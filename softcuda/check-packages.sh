#!/usr/bin/env bash
# Packs the crates as for a registry, and runs a test of a package that takes them from one: they build from what is
# packed alone, and the libraries are found under the hashed names that cargo gives those of a registry.
#
#   softcuda/check-packages.sh [cargo's options, as --offline]
set -euo pipefail
cd "$(dirname "$0")"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
crates=(softcuda-mark ptx-vm softlibrary softcuda softcublas softcudnn softcurand softnccl)

CARGO_TARGET_DIR=$scratch/packed cargo package --quiet --workspace --no-verify --allow-dirty --locked "$@" 2>/dev/null
# A registry in a folder: what the crates depend on, and the crates.
cargo vendor --quiet --locked "$@" "$scratch/registry" >/dev/null
for crate in "${crates[@]}"; do
    packed=$(ls "$scratch/packed/package/$crate"-[0-9]*.crate)
    tar -xzf "$packed" -C "$scratch/registry"
    sum=$(sha256sum "$packed" | cut -d' ' -f1)
    echo "{\"files\":{},\"package\":\"$sum\"}" >"$scratch/registry/$(basename "$packed" .crate)/.cargo-checksum.json"
done

mkdir -p "$scratch"/user/{src,tests,.cargo}
cat >"$scratch/user/.cargo/config.toml" <<END
[source.crates-io]
replace-with = "folder"
[source.folder]
directory = "$scratch/registry"
END
cat >"$scratch/user/Cargo.toml" <<END
[package]
name = "user"
version = "0.0.0"
edition = "2024"
[dev-dependencies]
softcuda = "0.1"
softcublas = "0.1"
softcudnn = "0.1"
softcurand = "0.1"
softnccl = "0.1"
END
touch "$scratch/user/src/lib.rs"
cat >"$scratch/user/tests/installs.rs" <<'END'
#[test]
fn every_library_is_found_under_its_hashed_name() {
    let softcuda = softcuda::install().unwrap();
    softcublas::install().unwrap();
    softcudnn::install().unwrap();
    softcurand::install().unwrap();
    softnccl::install().unwrap();
    assert_eq!(softcuda.device(0).faults(), [""; 0]);
    let loaded = std::fs::read_to_string("/proc/self/maps").unwrap();
    for name in ["libsoftcuda-", "libsoftcublas-", "libsoftcudnn-", "libsoftcurand-", "libsoftnccl-"] {
        assert!(loaded.contains(name), "{name}: {loaded}");
    }
}
END
cd "$scratch/user"
CARGO_TARGET_DIR=$scratch/target cargo test --quiet --offline
