#!/usr/bin/env bash
# Profiles one launch of a kernel, the second, by Nsight Compute, and ends the program there.
#
#   scripts/ncu.sh KERNEL PROGRAM ARGUMENTS..
set -uo pipefail
kernel=$1
shift
command -v ncu >/dev/null || { echo 'no ncu' && exit 127; }
sections=()
for section in SpeedOfLight MemoryWorkloadAnalysis SchedulerStats WarpStateStats InstructionStats Occupancy LaunchStats; do
    sections+=(--section "$section")
done
# The device's clocks are left as they are. A program that is ended has no status that says anything.
profile=$(ncu --clock-control none "${sections[@]}" --page details --print-units base \
    --kernel-name "$kernel" --launch-skip 1 --launch-count 1 --kill yes "$@" 2>&1)
printf '%s\n' "$profile"
grep -q 'DRAM Throughput' <<<"$profile"
