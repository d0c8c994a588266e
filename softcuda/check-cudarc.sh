#!/usr/bin/env bash
# Runs cudarc's own tests of its driver and NVRTC modules on the software device, with a real NVRTC: code that others wrote,
# as cargo has it from the registry. It fails where one fails that is not named below.
#
#   softcuda/check-cudarc.sh [names of tests, or parts of them]
#
# It needs python3 with pip and network once (90 MB, into the cache folder; SOFTCUDA_NVRTC names another one). Not called
# by .ci/run: its slowest tests run 4 000 000 000 instructions each, which takes minutes.
set -euo pipefail
cd "$(dirname "$0")"

# Before modules had variables, functions and managed memory, 33 passed and 20 failed.
# These compare how long things take, which nothing here says.
timed=(
    driver::safe::core::tests::test_default_pinned_host_reads_are_faster_than_write_combined
    driver::safe::launch::tests::test_par_launch
)

pins=$(sha256sum nvrtc-requirements.txt | cut -c1-16)
nvrtc=${SOFTCUDA_NVRTC:-${XDG_CACHE_HOME:-$HOME/.cache}/batchnorm/nvrtc-$pins}
if [ ! -d "$nvrtc" ]; then
    mkdir -p "$(dirname "$nvrtc")"
    new=$(mktemp -d "$nvrtc.XXXXXX")
    PIP_ROOT_USER_ACTION=ignore python3 -m pip install --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
        --require-hashes --requirement nvrtc-requirements.txt --target "$new"
    ln -s libnvrtc.so.12 "$new/nvidia/cuda_nvrtc/lib/libnvrtc.so"
    mv -T "$new" "$nvrtc" 2>/dev/null || rm -rf "$new" # another one was faster
fi

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
read -r cudarc target < <(cargo metadata --format-version 1 --locked | python3 -c 'import json, os, sys
said = json.load(sys.stdin)
package = next(p for p in said["packages"] if p["name"] == "cudarc")
print(os.path.dirname(package["manifest_path"]), said["target_directory"])')
cp -r "$cudarc" "$scratch/cudarc"
chmod -R u+w "$scratch/cudarc"
echo "[workspace]" >>"$scratch/cudarc/Cargo.toml"
# Where its tests expect CUDA's headers.
grep -rl '"/usr/include"' "$scratch/cudarc/src" |
    xargs sed -i "s#\"/usr/include\"#\"$nvrtc/nvidia/cuda_runtime/include\"#"

./link-folder.sh "$scratch/links"
rm "$scratch/links/libnvrtc.so" # the real one
cd "$scratch/cudarc"
export CARGO_TARGET_DIR=$target/cudarc
tests=("$@")
if [ $# = 0 ]; then tests=(driver:: nvrtc::); fi
features=std,driver,nvrtc,f16,dynamic-loading,cuda-12080
cargo test --quiet --no-run --lib --no-default-features --features $features
# Its kernel `slow_worker` takes 8 000 000 000 instructions, and all its threads write one result to one place.
export SOFTCUDA_BUDGET=40000000000 SOFTCUDA_EQUAL_WRITES=1
export LD_LIBRARY_PATH=$scratch/links:$nvrtc/nvidia/cuda_nvrtc/lib
cargo test --lib --no-default-features --features $features -- "${tests[@]}" 2>&1 |
    tee "$scratch/log" || true
grep -q '^test result: ' "$scratch/log" || { echo "check-cudarc: the tests did not end" >&2 && exit 1; }
wrong=0
for test in $(sed -n 's/^test \(.*\) [.][.][.] FAILED$/\1/p' "$scratch/log"); do
    if [[ " ${timed[*]} " != *" $test "* ]]; then echo "check-cudarc: $test failed" >&2 && wrong=1; fi
done
exit $wrong
