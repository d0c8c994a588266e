#!/usr/bin/env bash
# Runs candle's CUDA backend without a GPU: its own kernels, compiled by the pinned nvcc, and the tests of batchnorm-candle's
# feature `cuda` (candle/tests/cuda), on the software device.
#
#   scripts/check-candle-softcuda.sh [arguments of the test program]
#
# candle is linked with NVIDIA's libraries, so a folder of links to the software ones stands on the linker's path and the
# loader's (softcuda/link-folder.sh). Its kernels take minutes to compile, once: they are kept in a cache folder.
# BATCHNORM_CANDLE_KERNELS names another one. What candle compiles to machine code (mixtures of experts, products of
# quantized matrices) is not there: calling it ends the program.
set -euo pipefail
cd "$(dirname "$0")/.."

lock=$(mktemp)
cp Cargo.lock "$lock"
trap 'mv "$lock" Cargo.lock' EXIT # the patch below is noted there
cargo fetch --locked
read -r source target < <(cargo metadata --format-version 1 --locked --features batchnorm-candle/cuda |
    python3 -c 'import json, os, sys
said = json.load(sys.stdin)
manifest = next(p["manifest_path"] for p in said["packages"] if p["name"] == "candle-kernels")
print(os.path.dirname(manifest), said["target_directory"])')

wheels=$(scripts/build-ptx.sh --wheels)
ptx=${BATCHNORM_CANDLE_KERNELS:-${XDG_CACHE_HOME:-$HOME/.cache}/batchnorm/$(basename "$source")-$(basename "$wheels")}
mkdir -p "$ptx"
modules=$(sed -n 's#.*"/\(.*\)[.]ptx".*#\1#p' "$source/src/ptx.rs")
for module in $modules; do
    [ -e "$ptx/$module.ptx" ] && continue
    echo "compiling candle's $module.cu"
    "$wheels/nvidia/cu13/bin/nvcc" -ptx -w -arch=compute_80 --expt-relaxed-constexpr -std=c++17 -O3 -I"$source/src" \
        "$source/src/$module.cu" -o "$ptx/$module.new"
    mv "$ptx/$module.new" "$ptx/$module.ptx"
done

# candle-kernels without nvcc: the texts that were compiled above, and functions that end the program.
# What has been written before stays as it is, so that cargo has nothing to do again.
stub=$target/candle-softcuda/$(basename "$source")
if [ ! -d "$stub/candle-kernels" ]; then
    mkdir -p "$stub"
    cp -r "$source" "$stub/new"
    chmod -R u+w "$stub/new"
    mv "$stub/new" "$stub/candle-kernels"
fi
sed -n 's/.*pub fn \([a-zA-Z0-9_]*\)(.*/\1/p' "$source/src/ffi.rs" >"$stub/functions"
{
    printf '#include <stdio.h>\n#include <stdlib.h>\n'
    sed 's/\(.*\)/void \1(void) { fputs("candle: \1 is not compiled here\\n", stderr); abort(); }/' "$stub/functions"
} >"$stub/moe.c"
cc -c -fPIC "$stub/moe.c" -o "$stub/moe.o"
ar rcs "$stub/libmoe.a" "$stub/moe.o"
python3 - "$stub" "$ptx" <<'PYTHON'
import pathlib, re, sys
stub, ptx = map(pathlib.Path, sys.argv[1:])
crate = stub / "candle-kernels"

def write(name, text):
    if (crate / name).read_text() != text:
        (crate / name).write_text(text)

write("build.rs", f"""fn main() {{
    println!("cargo:rerun-if-changed={ptx}");
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR").unwrap());
    for file in std::fs::read_dir("{ptx}").unwrap() {{
        let file = file.unwrap();
        std::fs::copy(file.path(), out.join(file.file_name())).unwrap();
    }}
    std::fs::copy("src/ptx.rs", out.join("ptx.rs")).unwrap();
    println!("cargo:rustc-link-search={stub}");
    println!("cargo:rustc-link-lib=static=moe");
}}
""")
manifest = (crate / "Cargo.toml").read_text()
if "[workspace]" not in manifest:
    write("Cargo.toml", re.sub(r"\[build-dependencies\.cudaforge\][^\[]*", "", manifest) + "\n[workspace]\n")
PYTHON

cargo=(--features batchnorm-candle/cuda --config "patch.crates-io.candle-kernels.path = '$stub/candle-kernels'")
export LIBRARY_PATH=$stub/links LD_LIBRARY_PATH=$stub/links
# The libraries first, as dependencies of the tests without that feature: their links have to be there when those are linked.
cargo test --quiet -p batchnorm-candle --test cuda --no-run --locked
softcuda/link-folder.sh "$stub/links" "$target/debug/deps"
cargo test -p batchnorm-candle --test cuda "${cargo[@]}" -- "$@"
