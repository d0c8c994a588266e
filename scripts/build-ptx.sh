#!/usr/bin/env bash
# Compiles CUDA kernels to the PTX that is committed beside them, FOLDER/NAME.cu to FOLDER/ptx/NAME.sm_XX.ptx.gz (of the
# kernels that ship to NAME+NAME.sm_XX.sm_YY.ptx.lzma, by scripts/ptx_files.py), and assembles that with the newest and the
# oldest ptxas that must take it. Where two targets need the same instructions, the lower one's file serves both, as a
# driver compiles it for the device it has.
#
#   scripts/build-ptx.sh [FOLDER..]           builds (all folders of kernels, where none is given)
#   scripts/build-ptx.sh --check [FOLDER..]   builds elsewhere, and fails where that text differs from what is committed
#   scripts/build-ptx.sh --wheels             installs the compiler alone, and prints its folder
#   scripts/build-ptx.sh --show NAME          prints PTX: split_f32.sm_90, say, or every target's with split_f32
#
# Building needs python3 with pip, and a host gcc; no GPU, no driver, no CUDA toolkit. The compiler comes from the wheels
# of scripts/ptx-requirements.txt, installed once into a cache folder (BATCHNORM_CUDA_WHEELS names another one).
set -euo pipefail
cd "$(dirname "$0")/.."

targets=(75 80 90)
# What nvcc 13.0 writes runs on drivers from 580 on. Our kernels need nothing that is newer than 7.8, which drivers
# from 520 on take; ptxas makes the same machine code of both.
written='.version 9.0' wanted='.version 7.8'

all=(kernels examples/kernels benches/kernels softcuda/kernels)

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
fail() {
    printf 'build-ptx: %s\n' "$*" >&2
    exit 1
}

# unpack FOLDER OUT: what is committed, as text.
unpack() {
    mkdir -p "$2"
    if [ "$1" = kernels ]; then scripts/ptx_files.py unpack "$1/ptx" "$2"; return; fi
    local file
    for file in "$1"/ptx/*.ptx.gz; do
        [ ! -e "$file" ] || gzip -cd "$file" >"$2/$(basename "$file" .gz)"
    done
}

# pack MADE FOLDER: the texts of a folder, each in a file of its own, of the kernels that ship a module's in one. What has
# not changed keeps its file, whatever version of the packer made that.
pack() {
    if [ "$2" = kernels ]; then scripts/ptx_files.py pack "$1" "$2/ptx"; return; fi
    local file to
    mkdir -p "$2/ptx"
    for file in "$1"/*.ptx; do
        to=$2/ptx/$(basename "$file").gz
        if [ ! -e "$to" ] || ! gzip -cd "$to" | cmp -s - "$file"; then gzip -9nc <"$file" >"$to"; fi
    done
    for to in "$2"/ptx/*; do
        [[ $to == *.gz && -e "$1/$(basename "$to" .gz)" ]] || rm "$to"
    done
}

# show NAME[.sm_XX]: what a device of that target is given, or every text of that name.
show() {
    local name=${1%%.*} target=${1##*.sm_} files=() file
    for folder in "${all[@]}"; do unpack "$folder" "$scratch/shown/$folder"; done
    mapfile -t files < <(find "$scratch/shown" -name "$name.sm_*.ptx" | sort -V)
    [ ${#files[@]} -gt 0 ] || fail "no $name: there are" $(find "$scratch/shown" -name '*.ptx' -printf '%f\n' | sed 's/[.]ptx$//' | sort -V)
    if [ "$target" != "$1" ]; then
        local served=()
        for file in "${files[@]}"; do
            [ "$(target_of "$file")" -gt "$target" ] || served=("$file")
        done
        [ ${#served[@]} -gt 0 ] || fail "no $name for sm_$target"
        files=("${served[@]: -1}")
    fi
    for file in "${files[@]}"; do
        echo "${file#"$scratch"/shown/}" >&2
        cat "$file"
    done
}

# target_of FILE: 90 of NAME.sm_90.ptx, packed or not
target_of() { sed 's/.*[.]sm_\([0-9]*\)[.].*/\1/' <<<"$1"; }

# instructions FILE: all but the line that names the target.
instructions() { grep -v '^\.target ' "$1"; }

check=false wheels_only=false
case ${1:-} in
    --wheels) wheels_only=true && shift ;;
    --show)
        [ $# = 2 ] || fail "--show takes a name"
        show "$2"
        exit
        ;;
    --check) check=true && shift ;;
esac
folders=("$@")
if [ ${#folders[@]} = 0 ]; then folders=("${all[@]}"); fi

requirements=scripts/ptx-requirements.txt
pins=$(sha256sum "$requirements" | cut -c1-16)
wheels=${BATCHNORM_CUDA_WHEELS:-${XDG_CACHE_HOME:-$HOME/.cache}/batchnorm/cuda-wheels-$pins}

install_wheels() {
    echo "installing nvcc and ptxas (125 MB, once) into $wheels" >&2
    mkdir -p "$(dirname "$wheels")"
    local new
    new=$(mktemp -d "$wheels.XXXXXX")
    if ! PIP_ROOT_USER_ACTION=ignore python3 -m pip install --quiet --disable-pip-version-check --no-deps --only-binary=:all: --require-hashes \
        --requirement "$requirements" --target "$new"; then
        rm -rf "$new"
        fail "no CUDA compiler: the wheels of $requirements could not be installed. Without a network, have them" \
            "downloaded elsewhere (python3 -m pip download -r $requirements -d DIR) and set PIP_FIND_LINKS=DIR" \
            "PIP_NO_INDEX=1; or copy $wheels from a machine that has it."
    fi
    mv -T "$new" "$wheels" 2>/dev/null || rm -rf "$new" # another build was faster
}
[ -d "$wheels" ] || install_wheels
if $wheels_only; then echo "$wheels" && exit; fi
nvcc=$wheels/nvidia/cu13/bin/nvcc
assemblers=("13.0 $wheels/nvidia/cu13/bin/ptxas" "11.8 $wheels/nvidia/cuda_nvcc/bin/ptxas")
command -v gcc >/dev/null || fail "nvcc needs a host compiler: no gcc on the PATH"

# compile SOURCE TARGET OUT
compile() {
    "$nvcc" -ptx -std=c++17 -arch="compute_$2" "$1" -o "$3"
    grep -qxF -- "$written" "$3" || fail "$1: expected PTX with $written"
    sed -i -e "s/^$written\$/$wanted/" -e '/\.pragma "used_bytes_mask/d' "$3"
    # Names of things that have internal linkage hold a hash of the source's path.
    if grep -nE '_INTERNAL_|GLOBAL__N' "$3" >&2; then
        fail "$1: the names above change with the path: no static or anonymous namespace in device code"
    fi
    # What ships is packed.
    if [[ $1 == kernels/* ]]; then scripts/ptx_files.py tidy "$3"; fi
}

# assemble PTX TARGET: the registers of every kernel; fails if those do not suffice it.
assemble() {
    local version ptxas log=$scratch/log
    for assembler in "${assemblers[@]}"; do
        read -r version ptxas <<<"$assembler"
        "$ptxas" -v -arch="sm_$2" "$1" -o "$scratch/cubin" >"$log" 2>&1 ||
            { cat "$log" >&2 && fail "$1: ptxas $version does not take it"; }
        awk '
            /Compiling entry function/ { split($0, quoted, "\047"); kernel = quoted[2] }
            /bytes stack frame/ { frame = $1; spilled = $5 + $9 } # arrays that are not in registers, too
            /Used [0-9]+ registers/ {
                match($0, /Used [0-9]+/)
                print kernel, substr($0, RSTART + 5, RLENGTH - 5) (spilled ? " SPILLS " spilled " BYTES" : frame ? " KEEPS " frame " BYTES LOCAL" : "")
            }' "$log" | sort >"$scratch/registers.$version"
        [ -s "$scratch/registers.$version" ] || fail "$1: no kernel"
    done
    join "$scratch/registers.13.0" "$scratch/registers.11.8" | while read -r kernel registers; do
        printf '  %-24s %s\n' "$kernel" "$registers"
    done
    # The software device is tested with local memory, too.
    local wrong='SPILLS|KEEPS'
    if [[ $1 == */softcuda/kernels/* ]]; then wrong=SPILLS; fi
    if grep -E "$wrong" "$scratch"/registers.* >&2; then fail "$1: a kernel needs more registers than it has"; fi
}

stale=0
for folder in "${folders[@]}"; do
    folder=${folder%/}
    sources=("$folder"/*.cu)
    [ -e "${sources[0]}" ] || fail "$folder: expected *.cu files, got none"
    made=$scratch/made/$folder
    mkdir -p "$made"
    for source in "${sources[@]}"; do
        lower=
        for target in "${targets[@]}"; do
            name=$(basename "$source" .cu).sm_$target.ptx
            compile "$source" "$target" "$scratch/$name"
            if [ -n "$lower" ] && cmp -s <(instructions "$lower") <(instructions "$scratch/$name"); then
                echo "$name: the instructions of $(basename "$lower")"
                assemble "$lower" "$target" >/dev/null
                continue
            fi
            lower=$made/$name
            mv "$scratch/$name" "$lower"
            echo "$name: registers by ptxas 13.0, 11.8"
            assemble "$lower" "$target"
        done
    done
    if $check; then
        unpack "$folder" "$scratch/committed/$folder"
        diff -ru "$scratch/committed/$folder" "$made" || stale=1
    else
        pack "$made" "$folder"
    fi
done
if [ $stale = 1 ]; then fail "what is committed differs from what its sources make: run scripts/build-ptx.sh"; fi
