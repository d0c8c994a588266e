#!/usr/bin/env bash
# Formats the CUDA kernels as .clang-format says.
#
#   scripts/format-kernels.sh [--check]    --check: shows what is not formatted, and fails
#
# The formatter comes from a wheel (2 MB), installed once into a cache folder; CLANG_FORMAT names another one of that version.
set -euo pipefail
cd "$(dirname "$0")/.."
version=21.1.8
tool=${CLANG_FORMAT:-}
if [ -z "$tool" ]; then
    wheel=${XDG_CACHE_HOME:-$HOME/.cache}/batchnorm/clang-format-$version
    if [ ! -d "$wheel" ]; then
        new=$(mktemp -d)
        trap 'rm -rf "$new"' EXIT
        # A pinned version, but not its hash: there is a wheel for each system.
        PIP_ROOT_USER_ACTION=ignore python3 -m pip install --quiet --disable-pip-version-check --no-deps \
            --only-binary=:all: --target "$new/wheel" "clang-format==$version"
        mkdir -p "$(dirname "$wheel")"
        mv -T "$new/wheel" "$wheel" 2>/dev/null || [ -d "$wheel" ] # another run was faster
    fi
    tool=$wheel/clang_format/data/bin/clang-format
fi
shopt -s nullglob
files=({kernels,examples/kernels,benches/kernels,softcuda/kernels}/*.{cu,cuh})
if [ "${1:-}" = --check ]; then
    for file in "${files[@]}"; do "$tool" "$file" | diff -u --label "$file" --label "$file, formatted" "$file" - || wrong=1; done
    [ -z "${wrong:-}" ] || { echo "format-kernels: run scripts/format-kernels.sh" >&2 && exit 1; }
else
    "$tool" -i "${files[@]}"
fi
