#!/usr/bin/env bash
# batchnorm-mpi: its lints and documentation, the network of its example on 1, 2 and 3 processes of this machine, and what
# becomes of a job when a process refuses, differs, is missing or panics. Installs Open MPI and libclang where they are missing.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! command -v mpirun >/dev/null || ! command -v mpicc >/dev/null || ! ls /usr/lib/llvm-*/lib/libclang*.so* >/dev/null 2>&1; then
    if ! command -v apt-get >/dev/null; then
        echo "expected mpirun, mpicc and libclang, or apt-get to install them: found none" >&2
        exit 1
    fi
    sudo=$([ "$(id -u)" = 0 ] || echo sudo)
    $sudo apt-get update -qq
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq libopenmpi-dev openmpi-bin libclang-dev >/dev/null
fi

# With what the example has for CUDA devices; it is built without, to run here.
cargo clippy -p batchnorm-mpi --all-targets --locked --features cuda -- -D warnings
RUSTDOCFLAGS="-D warnings" cargo doc -p batchnorm-mpi --no-deps --locked
cargo build -p batchnorm-mpi --examples --locked
target=${CARGO_TARGET_DIR:-target}/debug/examples

# On loopback alone, and as root, as in a container; more processes than processors are fine.
on() {
    local ranks=$1 && shift
    OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_btl_tcp_if_include=lo \
        OMPI_MCA_oob_tcp_if_include=lo RAYON_NUM_THREADS=1 timeout 120 mpirun -n "$ranks" "$@"
}

for ranks in 1 2 3; do
    on "$ranks" "$target/distributed" --epochs 2
done
# Enough that records are gathered in steps, by parts of the ranks, and sums reduced.
on 18 "$target/distributed" --epochs 1
# That the comparison sees what it is there for.
if on 2 "$target/distributed" --epochs 2 --unsynced >/dev/null 2>&1; then
    echo "expected processes with statistics of their own to differ from one process, got that they do not" >&2
    exit 1
fi

# As torchrun would start it.
if said=$(WORLD_SIZE=4 on 1 "$target/distributed" --epochs 1 2>&1) || ! grep -q "WORLD_SIZE: expected 4" <<<"$said"; then
    echo "expected 1 process of 4 that torchrun speaks of to be refused, got: $said" >&2
    exit 1
fi

for kind in refuse differ; do
    on 2 "$target/faults" $kind
done
for kind in skip panic; do
    begin=$SECONDS
    if said=$(on 2 "$target/faults" $kind 2>&1); then
        echo "$kind: expected the job to fail, got that it did not: $said" >&2
        exit 1
    fi
    took=$((SECONDS - begin))
    if [ $took -gt 60 ]; then
        echo "$kind: expected the end of the job within 60 s, got it after $took" >&2
        exit 1
    fi
    case $kind in
        skip) grep -q "rank 0, skip: ranks: expected all ranks" <<<"$said" ;;
        panic) grep -q "a panic of rank 1" <<<"$said" ;;
    esac || { echo "$kind: expected its message, got: $said" >&2 && exit 1; }
    echo "$kind: the job ended after $took s"
done
