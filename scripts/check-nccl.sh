#!/usr/bin/env bash
# Asks a real libnccl, without a GPU, what can be asked of it there: whether it exports every function that `Nccl` calls,
# with a version that it takes, makes ids, and knows the results and the configuration that `Nccl` and the software NCCL
# count on.
#
#   scripts/check-nccl.sh [LIBNCCL]    without one, the wheel of scripts/nccl-requirements.txt (305 MB) is installed once
#                                      into a cache folder
set -euo pipefail
cd "$(dirname "$0")/.."
requirements=scripts/nccl-requirements.txt
pin=$(sha256sum "$requirements" | cut -c1-16)
cache=${BATCHNORM_NCCL_WHEEL:-${XDG_CACHE_HOME:-$HOME/.cache}/batchnorm/nccl-$pin}
library=${1:-$cache/nvidia/nccl/lib/libnccl.so.2}

if [ $# = 0 ] && [ ! -e "$library" ]; then
    echo "installing NCCL (305 MB, once) into $cache"
    mkdir -p "$(dirname "$cache")"
    new=$(mktemp -d "$cache.XXXXXX")
    trap 'rm -rf "$new"' EXIT
    PIP_ROOT_USER_ACTION=ignore python3 -m pip install --quiet --disable-pip-version-check --no-deps \
        --only-binary=:all: --require-hashes --requirement "$requirements" --target "$new"
    mv -T "$new" "$cache" 2>/dev/null || true # another one was faster
fi
[ -e "$library" ] || {
    echo "check-nccl: there is no $library" >&2
    exit 1
}

# It listens for ranks where it makes an id: on loopback alone.
NCCL_SOCKET_IFNAME=lo timeout 120 python3 scripts/check_nccl.py "$library"
