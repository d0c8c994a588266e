#!/usr/bin/env bash
# Asks a real libcudnn, without a GPU, what can be asked of it there: whether it exports every function that the
# `Cudnn` engine calls, with a version that the engine takes, and whether descriptors, the derived ones above all, are
# what the engine and the software cuDNN make of them.
#
#   scripts/check-cudnn.sh [LIBCUDNN]    without one, the wheel of scripts/cudnn-requirements.txt (370 MB) is
#                                        installed once into a cache folder
set -euo pipefail
cd "$(dirname "$0")/.."
requirements=scripts/cudnn-requirements.txt
pin=$(sha256sum "$requirements" | cut -c1-16)
cache=${BATCHNORM_CUDNN_WHEEL:-${XDG_CACHE_HOME:-$HOME/.cache}/batchnorm/cudnn-$pin}
library=${1:-$cache/nvidia/cudnn/lib/libcudnn.so.9}

if [ $# = 0 ] && [ ! -e "$library" ]; then
    echo "installing cuDNN (370 MB, once) into $cache"
    mkdir -p "$(dirname "$cache")"
    new=$(mktemp -d "$cache.XXXXXX")
    trap 'rm -rf "$new"' EXIT
    PIP_ROOT_USER_ACTION=ignore python3 -m pip install --quiet --disable-pip-version-check --no-deps \
        --only-binary=:all: --require-hashes --requirement "$requirements" --target "$new"
    mv -T "$new" "$cache" 2>/dev/null || true # another one was faster
fi
[ -e "$library" ] || {
    echo "check-cudnn: there is no $library" >&2
    exit 1
}

python3 scripts/check_cudnn.py "$library"
SOFTCUDNN_COMPARE=$library cargo test --quiet --locked -p softcudnn --test descriptors
