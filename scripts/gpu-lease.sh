# Sourced by gpu-run.sh: steps in order of what they answer, each with seconds of its own, under one deadline. Whatever
# fails, hangs or ends the run, what was found until then is kept.
#
#   run.sh --lease [--deadline SECONDS] [--steps FILE] [--only GLOB] [--anyway] [OUT]
#   run.sh --lease [..] --list     prints the steps; fails where their seconds exceed the deadline
#
# OUT (lease-results, unless named) gets summary.txt, and lease.tar.gz with every step's output, both written again
# after every step. Exit status: 0 where all steps ended well, 1 where some did not, 3 where there is no device.
# Without a device it ends at once, but with --anyway: every step begins then, and says that there is none.
# BATCHNORM_REQUIRE_GPU=0 tries it on the software device, where LD_LIBRARY_PATH leads to its libraries.
# shellcheck shell=bash
without=0 deadline=510 steps_file=lease-steps.txt only='*' list=0 anyway=0 out=lease-results
child='' failed=0

# A step's output beyond this is cut out of the middle; the archive holds many.
most_of_a_log=$((1 << 20))
most_of_an_archive=$((16 << 20))

lease() {
    local from=$1
    lease_arguments "$@"
    if [ "$list" = 1 ]; then lease_list; exit; fi
    case $out in /*) ;; *) out=$from/$out ;; esac
    if ! mkdir -p "$out" || ! scratch=$(mktemp -d); then exit 2; fi
    export kept=$scratch/lease work=$scratch/work software=''
    mkdir -p "$kept" "$work"
    [ "$BATCHNORM_REQUIRE_GPU" != 0 ] || software=--software
    # What the driver's compiler made once is there for the steps after it.
    export CUDA_CACHE_PATH=$work/cache CUDA_CACHE_MAXSIZE=$((1 << 30)) PYTHONUNBUFFERED=1
    export RUST_BACKTRACE=0 # the summary has room for the reason
    LD_LIBRARY_PATH+=$(lease_driver)
    for folder in /usr/local/cuda*/bin; do [ ! -d "$folder" ] || PATH+=:$folder; done
    summary=$kept/summary.txt
    trap lease_end EXIT
    trap 'exit 143' TERM INT HUP
    lease_unpack || exit 2
    { printf 'batchnorm, leased device, '; head -n 1 built.txt 2>/dev/null || echo 'not a bundle'; } >"$summary"
    lease_ready
    versions >"$kept/versions.log" 2>&1
    lease_archive
    while read -r name seconds device command; do
        lease_step "$name" "$seconds" "$device" "$command"
        lease_archive
    done < <(lease_steps)
    [ "$failed" = 0 ] || exit 1
    exit 0
}

lease_arguments() {
    local from=$1
    shift
    while [ $# -gt 0 ]; do
        case $1 in
        --deadline | --steps | --only)
            [ $# -ge 2 ] || lease_usage
            case $1 in
            --deadline) deadline=$2 ;;
            --only) only=$2 ;;
            --steps) case $2 in /*) steps_file=$2 ;; *) steps_file=$from/$2 ;; esac ;;
            esac
            shift
            ;;
        --list) list=1 ;;
        --anyway) anyway=1 ;;
        -*) lease_usage ;;
        *) out=$1 ;;
        esac
        shift
    done
    case $deadline in '' | *[!0-9]*) lease_usage ;; esac
    [ -r "$steps_file" ] || { echo "no steps: $steps_file" >&2 && exit 2; }
}

lease_usage() {
    sed -n '4,5s/^#   //p' gpu-lease.sh >&2
    exit 2
}

# The lines of the file that are steps and asked for.
lease_steps() {
    local name rest
    while read -r name rest; do
        # shellcheck disable=SC2254 # a glob is what it is
        case $name in '' | '#'*) ;; $only) printf '%s %s\n' "$name" "$rest" ;; esac
    done <"$steps_file"
}

lease_list() {
    local sum=0 name seconds device command
    while read -r name seconds device command; do
        case $seconds in '' | 0 | *[!0-9]*) echo "$name: no seconds: $seconds" >&2 && exit 1 ;; esac
        case $device in any | real) ;; *) echo "$name: any or real, not $device" >&2 && exit 1 ;; esac
        printf '%-18s %4d s  %-5s %s\n' "$name" "$seconds" "$device" "$command"
        sum=$((sum + seconds))
    done < <(lease_steps)
    printf '%-18s %4d s of %d\n' together "$sum" "$deadline"
    [ "$sum" -gt 0 ] && [ "$sum" -le "$deadline" ]
}

# The folder of a driver that a container mounts where the loader does not look.
lease_driver() {
    local folder
    if /sbin/ldconfig -p 2>/dev/null | grep -q 'libcuda\.so\.1'; then return; fi
    for folder in /usr/local/nvidia/lib64 /usr/local/nvidia/lib /usr/lib/x86_64-linux-gnu /usr/lib/wsl/lib; do
        if [ -e "$folder/libcuda.so.1" ]; then printf ':%s' "$folder" && return; fi
    done
}

# The programs, once.
lease_unpack() {
    local packed=(bin/*.xz)
    [ -e "${packed[0]}" ] || return 0
    python3 - "${packed[@]}" <<'PYTHON'
import lzma, pathlib, sys
for path in map(pathlib.Path, sys.argv[1:]):
    program = path.with_suffix("")
    if not program.exists():
        part = path.with_suffix(".part")
        part.write_bytes(lzma.decompress(path.read_bytes()))
        part.chmod(0o755)
        part.rename(program)
PYTHON
}

# Leaves in a line where nothing could be answered.
lease_ready() {
    local probe=scripts/gpu_probe.py found program
    [ -e "$probe" ] || probe=gpu_probe.py
    if [ "$BATCHNORM_REQUIRE_GPU" != 0 ]; then
        found=$(timeout -k 2 30 python3 "$probe" device 2>&1) || {
            found=$(printf '%s' "$found" | tail -n 1)
            lease_say "NO DEVICE: ${found:-the driver does not answer}; $(lease_files)"
            [ "$anyway" = 1 ] || exit 3
            without=1 found=''
        }
        [ -z "$found" ] || lease_say "$(printf '%s' "$found" | head -n 1)"
    else
        lease_say 'the software device: what passes says nothing of hardware'
    fi
    for program in bin/*; do
        [ -e "$program" ] && [[ $program != *.xz ]] || continue
        chmod +x "$program" 2>/dev/null
        found=$(timeout -k 2 10 "$program" --help 2>&1) || {
            lease_say "DOES NOT START: $program: $(printf '%s' "$found" | head -n 1); $(sed -n '/^needs/p' built.txt)"
            exit 2
        }
    done
}

lease_files() {
    local files=(/dev/nvidia[0-9]*)
    [ -e "${files[0]}" ] || files=('no /dev/nvidia0')
    printf '%s, ' "${files[@]}"
    command -v nvidia-smi || echo 'no nvidia-smi'
}

lease_say() { printf '%s\n' "$*" | tee -a "$summary"; }

# lease_step NAME SECONDS DEVICE COMMAND: its output in NAME.log, a line in the summary.
lease_step() {
    local name=$1 limit=$2 command=$4 log=$kept/$1.log left=$((deadline - SECONDS)) start=$SECONDS code status
    if [ "$3" = real ] && [ "$BATCHNORM_REQUIRE_GPU" = 0 ]; then
        lease_say "$(printf '%-18s %-10s' "$name" 'NOT TRIED'): the software device cannot"
        return
    fi
    if [ "$left" -le 3 ]; then
        lease_say "$(printf '%-18s %-10s' "$name" SKIPPED): no time left of $deadline s"
        failed=$((failed + 1))
        return
    fi
    # 2 seconds to die in are within the deadline.
    [ "$limit" -le $((left - 2)) ] || limit=$((left - 2))
    timeout -k 2 "$limit" bash -o pipefail -c "$command" >"$log" 2>&1 </dev/null &
    child=$!
    { wait "$child"; } 2>/dev/null # the shell's own word on a kill
    code=$?
    child=''
    case $code in
    0) status=ok ;;
    3) status='NO DEVICE' ;;
    124 | 137) status='TIMED OUT' ;;
    127) status='NOT HERE' ;;
    *) status=FAILED ;;
    esac
    if [ "$status" = FAILED ]; then
        if grep -qa '^ModuleNotFoundError' "$log"; then status='NOT HERE'; fi
        if [ "$without" = 1 ] && grep -qaE 'CUDA driver|libcuda' "$log"; then status='NO DEVICE'; fi
    fi
    [ "$status" = ok ] || failed=$((failed + 1))
    lease_cut "$log"
    lease_say "$(printf '%-18s %-10s %3d %4d s' "$name" "$status" "$code" $((SECONDS - start)))  $(
        lease_word "$status" "$log" | cut -c 1-100
    )"
}

# What a step ended with: its last line, but where it failed by a panic what that says.
lease_word() {
    local panic=''
    [ "$1" = ok ] || panic=$(grep -a -A 1 -m 1 ' panicked at ' "$2" | sed -n 2p)
    if [ -n "$panic" ]; then printf '%s\n' "$panic"; else grep -a . "$2" | tail -n 1; fi
}

lease_cut() {
    local size half=$((most_of_a_log / 2))
    size=$(stat -c %s "$1")
    [ "$size" -gt "$most_of_a_log" ] || return 0
    { head -c "$half" "$1" && printf '\n[%d bytes are cut out here]\n' $((size - 2 * half)) && tail -c "$half" "$1"; } >"$1.cut"
    mv "$1.cut" "$1"
}

# Another name first: what is there is whole, whenever this ends.
lease_archive() {
    local size
    tar -C "$scratch" -czf "$out/lease.tar.gz.part" lease && mv "$out/lease.tar.gz.part" "$out/lease.tar.gz"
    cp "$summary" "$out/summary.txt"
    size=$(stat -c %s "$out/lease.tar.gz")
    [ "$size" -lt "$most_of_an_archive" ] || lease_say "lease.tar.gz is $size bytes: more than $most_of_an_archive"
}

# However it ends.
lease_end() {
    local code=$?
    trap - EXIT TERM INT HUP
    if [ -n "$child" ]; then
        kill "$child" 2>/dev/null # timeout, which passes it on
        { wait "$child"; } 2>/dev/null
    fi
    [ "$code" != 143 ] || echo 'ENDED FROM OUTSIDE' >>"$summary"
    printf '%d steps did not end well; %d s of %d\n' "$failed" "$SECONDS" "$deadline" >>"$summary"
    lease_archive
    printf '\n' && cat "$summary"
    rm -rf "$scratch"
    exit "$code"
}
