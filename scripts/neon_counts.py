#!/usr/bin/env python3
"""What the CPU engine executes by NEON for the tensors of benches/cpu-counts.txt, counted in QEMU.

    scripts/check-neon.sh --counts    builds what this needs, and prints for each case instructions for each element,
                                      those by AVX2 of that file, and their ratio: 2 where each does half as much

Where a ratio is far above 2, a loop has lost its vectors: `objdump -d` of `target/aarch64-unknown-linux-gnu/release/speed`
shows which. Counts are of the compiler at hand, on one thread.
"""
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

import cpu_counts

PLUGIN = pathlib.Path(__file__).with_name("qemu_counts.c")


def plugin(qemu, folder):
    """The plugin, built for a QEMU: before 9 that takes the first version of its interface."""
    said = subprocess.run([*qemu, "--version"], check=True, stdout=subprocess.PIPE, text=True).stdout
    version = 1 if int(re.search(r"version (\d+)", said)[1]) < 9 else 2
    made = pathlib.Path(folder) / "counts.so"
    command = ["cc", "-O2", "-shared", "-fPIC", f"-DVERSION={version}", "-o", made, PLUGIN]
    subprocess.run(command, check=True)
    return made


def counts(qemu, program, cases):
    """Instructions of one run of each case: of two runs after others, half."""
    requests = []
    for op, shape, layout, dtype in cases:
        requests.append({"cmd": "prep", "op": op, "shape": shape, "layout": layout, "dtype": dtype})
        requests += [{"cmd": "time", "n": n, "warm": 0} for n in (1, 1, 3)]
    with tempfile.TemporaryDirectory() as folder:
        log = pathlib.Path(folder) / "counts"
        command = [*qemu, "-plugin", plugin(qemu, folder), program, "--worker", "cpu"]
        environment = dict(os.environ, COUNTS=str(log), RAYON_NUM_THREADS="1")
        asked = "".join(json.dumps(request) + "\n" for request in requests)
        done = subprocess.run(command, input=asked, stdout=subprocess.PIPE, text=True, env=environment)
        answers = [json.loads(line) for line in done.stdout.splitlines()]
        wrong = [answer["why"] for answer in answers if answer.get("ok") is False]
        counted = [int(line) for line in log.read_text().split()] if log.exists() else []
    if wrong or done.returncode or not len(counted) == len(answers) == len(requests):
        what = f"{len(requests)} answers and counts, got {len(answers)} and {len(counted)}, status {done.returncode}"
        sys.exit(f"speed --worker cpu, in QEMU: expected {what} {wrong[:1]}")
    return [(three - one) / 2 for one, three in zip(counted[2::4], counted[3::4])]


def main():
    program, *qemu = sys.argv[1:]
    every = cpu_counts.CASES
    cases = [(op, shape, layout, dtype) for shape, layout, ops in every for dtype in ops for op in ops[dtype]]
    avx2 = {}
    for line in cpu_counts.FILE.read_text().splitlines():
        if not line.startswith("#"):
            *case, instructions, _ = line.split()
            avx2[tuple(case)] = float(instructions)
    print(f"# {'case':42} {'NEON':>8} {'AVX2':>8} {'ratio':>6}")
    for (op, shape, layout, dtype), count in zip(cases, counts(qemu, program, cases)):
        elements = 1
        for n in shape:
            elements *= n
        name, neon = "x".join(map(str, shape)), count / elements
        known = avx2.get((name, layout, dtype, op))
        beside = f"{known:8.3f} {neon / known:6.2f}" if known else ""
        print(f"{name:14} {layout:4} {dtype:4} {op:18} {neon:10.3f} {beside}".rstrip())


if __name__ == "__main__":
    main()
