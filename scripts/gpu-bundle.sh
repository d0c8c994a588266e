#!/usr/bin/env bash
# Packs what a CUDA host without Rust needs to test and measure: release binaries, golden cases, a record of what the
# test kernels compute on the software device, and run.sh, which runs all of it and leaves one report.
#
#   scripts/gpu-bundle.sh OUT [GOLDEN..]    OUT: a new folder; GOLDEN: more folders of golden cases
#   scripts/gpu-bundle.sh --lease OUT       less, for `run.sh --lease` on a host that is there for minutes
set -euo pipefail
lease=0 most=60 # MB
[ "${1:-}" != --lease ] || { lease=1 most=45 && shift; }
[ $# -eq 1 ] || { [ $# -gt 1 ] && [ "$lease" = 0 ]; } || { sed -n '2,6s/^# \{0,1\}//p' "$0" >&2 && exit 2; }
out=$(realpath -m "$1")
shift
golden=()
for folder in "$@"; do golden+=("$(realpath "$folder")"); done
cd "$(dirname "$0")/.."
checkout=$PWD
fail() {
    printf 'gpu-bundle: %s\n' "$*" >&2
    exit 1
}
[ ! -e "$out" ] || fail "$out is there already"

# Binaries without paths of this machine, in a target folder of their own as they are built with other flags.
cargo_home=${CARGO_HOME:-$HOME/.cargo}
export CARGO_TARGET_DIR=$checkout/target/bundle
export RUSTFLAGS="--remap-path-prefix=$checkout=batchnorm --remap-path-prefix=$cargo_home=cargo"
export CARGO_PROFILE_RELEASE_STRIP=symbols CARGO_INCREMENTAL=0
tests=(suite allocation cudnn)
examples=(cnn conformance speed train)
if [ "$lease" = 1 ]; then
    tests=(suite)
    examples=(conformance report speed)
    scripts/gpu-run.sh --lease --list >/dev/null || fail 'the steps of a lease exceed its deadline'
fi
mkdir -p "$out"/{bin,golden}
# With the machine code that ships, as kernels/machine-code.txt tells of; the suite goes by PTX.
cargo build --release --locked -p examples -p conformance --features batchnorm/cubins "${examples[@]/#/--bin=}"
# Apart: both workspaces make a libsoftcuda.so.
cargo build --release --locked --manifest-path softcuda/Cargo.toml --target-dir "$CARGO_TARGET_DIR/softcuda" \
    -p softcuda --example compare_kernels
for example in "${examples[@]}"; do cp "$CARGO_TARGET_DIR/release/$example" "$out/bin/"; done
cp "$CARGO_TARGET_DIR/softcuda/release/examples/compare_kernels" "$out/bin/"
built=$(cargo test --release --locked --no-run --message-format=json "${tests[@]/#/--test=}")
for test in "${tests[@]}"; do
    program=$(python3 -c '
import json, sys
for message in map(json.loads, sys.stdin):
    if message.get("executable") and message["target"]["name"] == sys.argv[1]:
        print(message["executable"])' "$test" <<<"$built")
    cp "$program" "$out/bin/test-$test"
done

# What they read, where they look for it.
mkdir -p "$out/tests/cudnn"
cp -r tests/golden tests/state "$out/tests/"
cp tests/cudnn/refused.txt "$out/tests/cudnn/"
for folder in "${golden[@]}"; do cp -rL "$folder" "$out/golden/"; done
"$out/bin/compare_kernels" --software --record "$out/kernels.safetensors"
gzip "$out/kernels.safetensors" # a third
cp scripts/gpu-run.sh "$out/run.sh"
runs=$out/run.sh
if [ "$lease" = 1 ]; then
    mkdir -p "$out"/{ptx,cubins,reads,software,scripts,benches/table}
    cp scripts/gpu-lease.sh scripts/lease-steps.txt "$out/"
    cp scripts/gpu_probe.py scripts/bench_pytorch.py scripts/ncu.sh "$out/scripts/"
    cp benches/table/table.json "$out/benches/table/" # where bench_pytorch.py looks for it
    cp kernels/ptx/*.ptx.lzma "$out/ptx/"
    cp cubins/packed/*.cubins.lzma "$out/cubins/"
    cp benches/kernels/ptx/reads.*.ptx.gz "$out/reads/"
    # What the software device makes of the golden cases, for a comparison of bits.
    BATCHNORM_REQUIRE_GPU=0 LD_LIBRARY_PATH=$CARGO_TARGET_DIR/release \
        "$out/bin/conformance" --engine cuda --out "$out/software" "$out/tests/golden" >/dev/null
    runs=$out/lease-steps.txt
fi
{
    echo "commit $(git rev-parse HEAD)$(git diff --quiet HEAD || echo ', with changes')"
    rustc --version
    echo "needs $(objdump -T "$out"/bin/* | grep -o 'GLIBC_[0-9.]*' | sort -uV | tail -n 1)"
} >"$out/built.txt"

# A path of this machine says where somebody worked; a driver's function that is exported would stand in for the
# real one.
for program in "$out"/bin/*; do
    if strings -a "$program" | grep -F -e "$checkout" -e "$cargo_home" >&2; then
        fail "$program holds the paths above"
    fi
    if nm -D --defined-only "$program" | grep -E ' cu[A-Z]' >&2; then fail "$program exports a driver"; fi
done
diff <(grep -o ' bin/[a-z_-]\+' "$runs" | tr -d ' ' | sort -u) <(cd "$out" && ls -d bin/*) >&2 ||
    fail "$runs (left) does not run what is packed (right)"
# A third: gpu-lease.sh unpacks them.
if [ "$lease" = 1 ]; then
    python3 - "$out"/bin/* <<'PYTHON'
import lzma, pathlib, sys
for path in map(pathlib.Path, sys.argv[1:]):
    path.with_name(path.name + ".xz").write_bytes(lzma.compress(path.read_bytes()))
    path.unlink()
PYTHON
fi
size=$(du -sm --apparent-size "$out" | cut -f1)
[ "$size" -le "$most" ] || fail "$out is $size MB: more than $most MB"
start=run.sh
[ "$lease" = 0 ] || start='run.sh --lease'
echo "$out: $size MB; copy it to a CUDA host and start $start"
