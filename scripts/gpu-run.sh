#!/usr/bin/env bash
# Runs everything in this bundle on a CUDA host: needs a driver, bash, coreutils and gzip; finds the NVIDIA libraries
# that pip has installed. Every step runs, whatever became of those before it.
#
#   ./run.sh [RESULTS]     RESULTS (here, unless named): report.txt, and what every step wrote
#   ./run.sh --lease ..    what a host that is there for minutes answers first: gpu-lease.sh says more
set -uo pipefail
from=$PWD
cd "$(dirname "$0")" || exit

# Libraries that pip installs: site-packages/nvidia/cudnn/lib and the like.
pip_libraries=$(python3 - 2>/dev/null <<'PYTHON'
import glob, os, site, sys
folders = dict.fromkeys(sys.path + [site.getusersitepackages()])
print(":".join(lib for f in folders for lib in sorted(glob.glob(os.path.join(f, "nvidia", "*", "lib")))))
PYTHON
)
export BATCHNORM_REQUIRE_GPU=${BATCHNORM_REQUIRE_GPU:-1} # the device of this host, or a failure
export LD_LIBRARY_PATH=$pip_libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}

# The same in the report: machine, device, driver, libraries.
versions() {
    cat built.txt
    date -u '+%Y-%m-%d %H:%M UTC'
    uname -srm
    grep -m 1 'model name' /proc/cpuinfo
    ldd --version 2>&1 | head -n 1
    if command -v nvidia-smi >/dev/null; then
        nvidia-smi --query-gpu=name,driver_version,memory.total,compute_cap --format=csv
        nvidia-smi | grep -o 'CUDA Version: [0-9.]*'
    else
        echo 'no nvidia-smi'
    fi
    echo "libraries of pip: ${pip_libraries:-none}"
    local folders
    IFS=: read -ra folders <<<"$pip_libraries"
    [ -z "$pip_libraries" ] || find "${folders[@]}" -maxdepth 1 -name 'lib*.so*' -printf '%f\n' | sort -u
    /sbin/ldconfig -p | grep -E 'lib(cuda|cudnn|cublas|nccl)\.so'
    for program in bin/*; do [[ $program == *.xz ]] || { echo "$program:" && ldd "$program"; }; done
}

if [ "${1:-}" = --lease ]; then
    [ -e gpu-lease.sh ] || { echo 'packed without --lease' >&2 && exit 2; }
    shift
    . ./gpu-lease.sh
    lease "$from" "$@" # which exits
fi
[ ! -e bin ] || [ -e bin/train ] || { echo 'packed for --lease alone' >&2 && exit 2; }
results=${1:-results}
mkdir -p "$results"
results=$(cd "$results" && pwd)
report=$results/report.txt
failed=0

# step NAME SECONDS COMMAND..: its output in NAME.log, a line in the report.
step() {
    local name=$1 limit=$2 start=$SECONDS status
    shift 2
    echo "$name: $*"
    timeout --kill-after=10 "$limit" "$@" >"$results/$name.log" 2>&1 </dev/null
    case $? in
    0) status=ok ;;
    3) status='NO DEVICE' ;;
    124 | 137) status="TIMED OUT" ;;
    *) status=FAILED ;;
    esac
    [ "$status" = ok ] || failed=$((failed + 1))
    printf '%-24s %-10s %6d s\n' "$name" "$status" $((SECONDS - start)) >>"$report"
    grep . "$results/$name.log" | tail -n 1 | cut -c 1-160
}

printf 'batchnorm, %s\n\n' "$(head -n 1 built.txt)" >"$report"
versions >"$results/versions.log" 2>&1
gzip -dc kernels.safetensors.gz >"$results/kernels.safetensors"
step kernels 300 bin/compare_kernels --compare "$results/kernels.safetensors"
step suite 600 bin/test-suite --skip ::cudnn:: --skip ::gpu::
step allocation 120 bin/test-allocation
# Without the modules that need the software cuDNN: they make calls fail, and look into it.
step cudnn 900 bin/test-suite ::cudnn::
step refusals 300 bin/test-cudnn refusals::
step gpu 900 bin/test-suite ::gpu::
step golden 300 bin/conformance --engine all tests/golden tests/golden/frameworks
for folder in golden/*/; do
    [ -d "$folder" ] && step "golden-$(basename "$folder")" 600 bin/conformance --engine all "$folder"
done
# The suite's own inputs, under every tool; one engine's tests, as the others launch nothing.
if sanitizer=$(command -v compute-sanitizer); then
    for tool in memcheck racecheck initcheck synccheck; do
        step "$tool" 900 "$sanitizer" --tool $tool --error-exitcode 9 \
            bin/conformance --engine cuda tests/golden
    done
    step memcheck-suite 1800 "$sanitizer" --tool memcheck --error-exitcode 9 bin/test-suite cuda::every_shape
else
    printf '%-24s %s\n' sanitizer 'not here' >>"$report"
fi
step speed 900 bin/speed --engine cuda --json
grep '^{' "$results/speed.log" >"$results/speed.jsonl"
step speed-cpu 900 bin/speed --quick --json
grep '^{' "$results/speed-cpu.log" >"$results/speed-cpu.jsonl"
# On the device, and on the CPU beside it: the same curves within rounding. Needs cuBLAS.
for device in cuda cpu; do
    step "train-$device" 300 bin/train --device $device --steps 200 --out "$results/train-$device"
    for layout in nchw nhwc; do
        step "cnn-$layout-$device" 300 bin/cnn --device $device --layout $layout
    done
done

{
    printf '\n%d of the steps above did not end well\n\n' "$failed"
    sed '/^bin\//,$d' "$results/versions.log"
} >>"$report"
cat "$report"
[ "$failed" = 0 ]
