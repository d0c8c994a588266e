#!/usr/bin/env bash
# Tries gpu-lease.sh with steps that only pretend: seconds, kills, what is kept. Needs no device, takes some seconds.
#
#   scripts/check-gpu-lease.sh
set -euo pipefail
cd "$(dirname "$0")"
unset BATCHNORM_REQUIRE_GPU
scratch=$(mktemp -d)
trap 'jobs -p | xargs -r kill 2>/dev/null; rm -rf "$scratch"' EXIT
fail() {
    printf 'check-gpu-lease: %s\n' "$*" >&2
    if [ -f "$scratch/printed" ]; then cat "$scratch/printed" >&2; fi
    exit 1
}
# run STATUS ARGUMENTS..: the runner ends with that status.
run() {
    local wanted=$1 code=0
    shift
    timeout -k 2 30 ./gpu-run.sh --lease "$@" >"$scratch/printed" 2>&1 || code=$?
    [ "$code" = "$wanted" ] || fail "exit status $code, not $wanted: $*"
}
# says FOLDER PATTERN: a line of its summary.
says() { grep -qE "$2" "$scratch/$1/summary.txt" || fail "$1/summary.txt does not say $2"; }
# keeps FOLDER STEP TEXT: in the archive.
keeps() {
    tar -xzOf "$scratch/$1/lease.tar.gz" "lease/$2.log" | grep -a "$3" >/dev/null || fail "$1: the archive has no $3 of $2"
}

# The real steps fit their deadline; too many seconds, and lines that are no steps, are noticed.
run 0 --list
run 1 --list --deadline 400
echo 'one ten any true' >"$scratch/odd"
run 1 --list --steps "$scratch/odd"

# A host without a driver: an end at once, in one line.
export LD_LIBRARY_PATH='' # no software one either
if ! python3 gpu_probe.py device >/dev/null; then
    run 3 "$scratch/none"
    says none '^NO DEVICE: .*libcuda'
    # Each step all the same: those that need a device say so, those that are wrong do not.
    printf '%s\n' 'asks 5 any python3 gpu_probe.py copy' 'asks-late 5 real echo "no CUDA driver here"; exit 1' \
        'wrong 5 any echo "no such option"; exit 2' >"$scratch/without"
    run 1 --steps "$scratch/without" --anyway "$scratch/anyway"
    says anyway '^asks +NO DEVICE +3 '
    says anyway '^asks-late +NO DEVICE +1 '
    says anyway '^wrong +FAILED +2 '
fi

# Time is up: the step is cut short, those after it are skipped. Meanwhile, the others.
export BATCHNORM_REQUIRE_GPU=0
printf '%s 60 any sleep 60\n' first second >"$scratch/long"
timeout -k 2 30 ./gpu-run.sh --lease --steps "$scratch/long" --deadline 6 "$scratch/late" >/dev/null 2>&1 &
late=$!

# What fails, hangs, is not there or says too much does not keep the next from running.
cat >"$scratch/steps" <<'STEPS'
# NAME SECONDS DEVICE COMMAND
fails 5 any echo half done; exit 7
hangs 1 any echo begun; trap '' TERM; while :; do sleep 1; done
absent 5 any there-is-no-such-tool
module 5 any python3 -c 'import no_such_module'
panics 5 any printf '\nthread (1) panicked at a.rs:1:2:\nwhat it says\nnote: more\n'; exit 101
loud 5 any head -c 3000000 /dev/zero | tr '\0' x; echo "the end"
device 5 real touch "$kept/ran"
well 5 any echo "kept in $kept" | tee "$kept/numbers.jsonl"
STEPS
run 1 --steps "$scratch/steps" "$scratch/some"
says some '^fails +FAILED +7 '
says some '^hangs +TIMED OUT +137 +[1-4] s'
says some '^absent +NOT HERE +127 '
says some '^module +NOT HERE +1 .*no_such_module'
says some '^panics +FAILED +101 .*what it says$'
says some '^loud +ok '
says some '^device +NOT TRIED'
says some '^well +ok '
says some '^5 steps did not end well'
keeps some fails 'half done'
keeps some hangs begun
keeps some loud 'bytes are cut out here'
keeps some loud 'the end'
[ "$(find "$scratch/some" -type f | wc -l)" = 2 ] || fail 'more than the archive and the summary'
tar -tzf "$scratch/some/lease.tar.gz" | grep numbers.jsonl >/dev/null || fail 'a file of a step is lost'

code=0
wait "$late" || code=$?
[ "$code" = 1 ] || fail "late: exit status $code"
says late '^first +TIMED OUT'
says late '^second +SKIPPED'

# Ended from outside: what was found is there, and the step has ended too.
printf 'quick 5 any echo found\nslow 60 any echo $$ >"%s/pid"; sleep 61\n' "$scratch" >"$scratch/two"
./gpu-run.sh --lease --steps "$scratch/two" "$scratch/ended" >/dev/null 2>&1 &
runner=$!
for _ in {1..50}; do [ -s "$scratch/pid" ] || sleep 0.1; done
kill "$runner"
code=0
wait "$runner" || code=$?
[ "$code" = 143 ] || fail "ended from outside with $code"
says ended '^ENDED FROM OUTSIDE'
keeps ended quick found
if kill -0 "$(cat "$scratch/pid")" 2>/dev/null; then fail 'a step goes on'; fi
