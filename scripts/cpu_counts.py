#!/usr/bin/env python3
"""What the CPU engine executes for fixed tensors, counted by valgrind: the same on a busy machine as on an idle one.

    scripts/cpu_counts.py            counts and writes benches/cpu-counts.txt
    scripts/cpu_counts.py --check    fails where a count has changed
    scripts/cpu_counts.py --print    counts and prints

Of every case, on one thread with the instructions of AVX2: instructions for each element, and the cache lines that
come from beyond a cache of 1 MiB, as multiples of the lines of one tensor. So a loop that is compiled without vector
instructions, or a pass more over memory, shows in a row of its own; what a machine makes of them does not.

Other compilers make other code: the figures are of the one that the file names, and another one is compared by
cache lines alone. It installs valgrind where that is missing.
"""
import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
FILE = ROOT / "benches" / "cpu-counts.txt"

PLAIN = ["fwd_train", "infer", "bwd", "fwd_train_relu", "bwd_relu"]
ALL = PLAIN + ["fwd_train_add_relu", "bwd_add_relu"]
# In the cache and past it, long runs and short ones, few rows and many.
CASES = [
    ((8, 64, 28, 28), "nchw", {"f32": ALL, "bf16": PLAIN}),
    ((8, 64, 28, 28), "nhwc", {"f32": ALL, "bf16": PLAIN}),
    ((4, 96, 20, 20), "nchw", {"f16": PLAIN}),
    ((4, 96, 20, 20), "nhwc", {"f16": PLAIN}),
    ((8, 256, 7, 7), "nchw", {"f32": PLAIN, "bf16": PLAIN}),
    ((8, 256, 7, 7), "nhwc", {"f32": PLAIN}),
    ((256, 1024), "nc", {"f32": ALL, "bf16": PLAIN, "f16": PLAIN}),
    ((1024, 100), "nc", {"f32": PLAIN}),
    ((32, 64), "nc", {"f32": PLAIN}),
]
WIDTH = {"f32": 4, "bf16": 2, "f16": 2}

# What runs between these is counted. No star behind the name: valgrind would not find it.
ONE = "*::Job>::time"
# A cache like that of a core: the first and the last level that valgrind has.
CACHES = ["--I1=32768,8,64", "--D1=32768,8,64", "--LL=1048576,16,64"]
# How far a count may be from the file's. Tensors lie where the allocator puts them, which a longer path or environment
# moves: so a row begins within a cache line or with it (up to 9 % of the instructions of a row of bf16), and what just
# fits the cache loses some lines. A loop without vector instructions takes twice as many and more, a pass more over
# memory a tensor's lines.
INSTRUCTIONS, LINES, SOME_LINES = 0.12, 0.08, 0.3


def install():
    if shutil.which("valgrind"):
        return
    if not shutil.which("apt-get"):
        sys.exit("expected valgrind, or apt-get to install it: found neither")
    sudo = [] if os.getuid() == 0 else ["sudo"]
    subprocess.run(sudo + ["apt-get", "update", "-qq"], check=True)
    subprocess.run(sudo + ["apt-get", "install", "-y", "-qq", "valgrind"], check=True, stdout=subprocess.DEVNULL)


def build():
    command = ["cargo", "build", "--release", "--locked", "-p", "examples", "--bin", "speed", "--no-default-features"]
    command += ["--target-dir", ROOT / "target" / "counts"]  # without devices: not what other builds have
    made = subprocess.run(command + ["--message-format", "json"], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    for line in made.stdout.splitlines():
        said = json.loads(line) if line.startswith("{") else {}
        if said.get("executable"):
            return said["executable"]
    sys.exit("cargo build: expected a program, got none")


class Worker:
    """`speed --worker cpu` in valgrind; its protocol is in examples/speed/worker.rs."""

    def __init__(self, program, folder):
        self.folder, self.dumps = pathlib.Path(folder), 0
        command = ["valgrind", "--tool=callgrind", "--cache-sim=yes", *CACHES]
        command += [f"--zero-before={ONE}", f"--dump-after={ONE}", f"--callgrind-out-file={folder}/out"]
        environment = dict(os.environ, BATCHNORM_SIMD="avx2", RAYON_NUM_THREADS="1")
        self.process = subprocess.Popen(
            command + [program, "--worker", "cpu"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        )

    def ask(self, **request):
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"speed --worker cpu, in valgrind, ended:\n{self.process.stderr.read()}")
        answer = json.loads(line)
        if answer.get("ok") is False:
            sys.exit(f"{request}: {answer['why']}")
        return answer

    def count(self, op, shape, layout, dtype):
        """Instructions, and lines read or written beyond the last cache, of one run after another."""
        self.ask(cmd="prep", op=op, shape=shape, layout=layout, dtype=dtype)
        self.ask(cmd="time", n=1, warm=1)
        self.dumps += 2
        file = self.folder / f"out.{self.dumps}"
        if not file.exists():
            sys.exit(f"{op} {shape}: expected the {self.dumps}th profile, got none: is {ONE} still a function?")
        said = {}
        for line in file.read_text(errors="replace").splitlines():
            name, _, rest = line.partition(": ")
            said[name] = rest.split()
        # Zeros at the end are left out.
        count = dict(zip(said["events"], map(int, said.get("totals") or said["summary"])))
        return count["Ir"], count.get("DLmr", 0) + count.get("DLmw", 0)


def rows(program):
    with tempfile.TemporaryDirectory() as folder:
        worker = Worker(program, folder)
        for shape, layout, dtypes in CASES:
            for dtype, ops in dtypes.items():
                for op in ops:
                    elements = 1
                    for n in shape:
                        elements *= n
                    instructions, lines = worker.count(op, shape, layout, dtype)
                    tensor = elements * WIDTH[dtype] / 64
                    name = "x".join(map(str, shape))
                    yield f"{name:14} {layout:4} {dtype:4} {op:18}", instructions / elements, lines / tensor


def table(compiler, counted):
    head = f"# Of {compiler}; scripts/cpu_counts.py\n# {'case':42} instructions/element  lines/tensor\n"
    return head + "".join(f"{name} {i:12.3f} {lines:12.2f}\n" for name, i, lines in counted)


def compiler():
    said = subprocess.run(["rustc", "--version"], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    return " ".join(said.split()[:2])


def differences(expected, counted):
    """The rows that are other than the file's, each with both sides."""
    head, *lines = [line for line in expected.splitlines() if line]
    same = compiler() in head
    known = {}
    for line in lines:
        *case, instructions, tensors = line.split()
        if not line.startswith("#"):
            known[" ".join(case)] = float(instructions), float(tensors)
    for name, instructions, lines in counted:
        was = known.pop(" ".join(name.split()), None)
        if was is None:
            yield f"{name}: not in {FILE.name}"
            continue
        # A short call is a count of a few thousand, of which some are little.
        if same and abs(instructions - was[0]) > INSTRUCTIONS * was[0] + 0.02:
            yield f"{name}: expected {was[0]:.3f} instructions for an element, got {instructions:.3f}"
        if abs(lines - was[1]) > LINES * was[1] + SOME_LINES:
            yield f"{name}: expected {was[1]:.2f} tensors' lines, got {lines:.2f}"
    yield from (f"{name}: in {FILE.name} alone" for name in known)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--print", action="store_true")
    parser.add_argument("--program", help="a speed that is built already")
    given = parser.parse_args()
    install()
    counted = list(rows(given.program or build()))
    if given.print:
        print(table(compiler(), counted), end="")
    elif given.check:
        wrong = list(differences(FILE.read_text(), counted))
        print(*wrong, sep="\n")
        if wrong:
            sys.exit(f"{FILE.name}: {len(wrong)} of {len(counted)} rows differ. Meant? scripts/cpu_counts.py writes it anew")
        print(f"{len(counted)} rows as they were")
    else:
        FILE.write_text(table(compiler(), counted))


if __name__ == "__main__":
    main()
