#!/usr/bin/env bash
# Makes a folder in which a linker and the loader find the software libraries under NVIDIA's names, for programs that are
# linked with those (cudarc's `dynamic-linking`, which candle turns on) and for programs in other languages.
#
#   softcuda/link-folder.sh FOLDER [BUILT]
#   LIBRARY_PATH=FOLDER LD_LIBRARY_PATH=FOLDER cargo test ...
#
# BUILT: the folder in which cargo has built libsoftcuda.so and those of libsoftcublas.so, libsoftcudnn.so and
# libsoftcurand.so that are wanted, target/debug/deps say. Without it they are built here, in this workspace. Such a program
# must not use the crate softcuda besides: what it is linked with is its driver.
#
# What a program is linked with and does not call (cuBLASLt, NVRTC) is an empty library in that folder, which fails at the
# first call; real ones that stand before it on the path are taken instead.
set -euo pipefail
[ $# -ge 1 ] || { sed -n '5,6s/^# *//p' "$0" >&2 && exit 2; }
mkdir -p "$1"
folder=$(cd "$1" && pwd)
if [ $# -ge 2 ]; then
    built=$(cd "$2" && pwd)
else
    cd "$(dirname "$0")"
    cargo build --quiet --locked -p softcuda -p softcublas -p softcudnn -p softcurand
    built=$(cargo metadata --format-version 1 --no-deps --locked |
        python3 -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])')/debug
fi
[ -e "$built/libsoftcuda.so" ] || { echo "link-folder: there is no libsoftcuda.so in $built" >&2 && exit 1; }

# provide NAME FILE..: under the names by which vendors' libraries are asked for.
provide() {
    local library=$1 name
    shift
    for name in "$@"; do ln -sf "$library" "$folder/$name"; done
}
provide "$built/libsoftcuda.so" libcuda.so libcuda.so.1
for library in cublas:12,13 cudnn:9 curand:10; do
    file=$built/libsoft${library%%:*}.so
    [ -e "$file" ] || continue
    provide "$file" "lib${library%%:*}.so"
    for version in $(tr , ' ' <<<"${library#*:}"); do provide "$file" "lib${library%%:*}.so.$version"; done
done
for library in cublasLt nvrtc cudart; do
    [ -e "$folder/lib$library.so" ] ||
        echo 'void softcuda_is_not_here(void) {}' | cc -shared -fPIC -xc - -Wl,-soname,lib$library.so -o "$folder/lib$library.so"
done
