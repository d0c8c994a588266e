#!/usr/bin/env python3
"""What ptxas makes of the kernels that ship, seen without a GPU: registers, and what every inner loop does.

    scripts/machine_code.py              writes kernels/machine-code.txt, from kernels/ptx
    scripts/machine_code.py --check      fails where that file says something else, or a kernel misses a bound
    scripts/machine_code.py [--on TARGET] NAME..       prints the figures of these modules (split_f16, say), on sm_TARGET
    scripts/machine_code.py --sass NAME.sm_XX KERNEL    prints a kernel's instructions with what each waits for

ptxas and nvdisasm come from pinned wheels, whose figures are the same on every machine. scripts/build-ptx.sh, which
installs ptxas, must have run before.

A load is *in flight* from its issue to the first instruction that waits for it. Every instruction names, in bits 105
to 121 of its encoding, a scoreboard that its result counts on, and those that it waits for before it issues: so the
loads that a warp has in flight can be counted in the machine code. The figure of a loop is that of the path through it
that has most of them.
"""
import collections
import concurrent.futures
import hashlib
import lzma
import os
import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
FIGURES = ROOT / "kernels/machine-code.txt"
TARGETS = (80, 90)

MOST_REGISTERS = 128  # two blocks of 256 threads for each multiprocessor
# Hot loops are those of straight code over whole batches of vectors, in kernels without general activations, which
# compute longer than they load. How many each kernel has at least, one for each case that it tells apart:
HOT = {
    r"stats_\w+_v": 1,
    r"(apply|backward_sums|backward_apply)_\w+_v": 3,
    r"(forward|backward)_resident_\w+": 5,
    # Loops over stages, which have a loop over what a thread takes of one inside.
    r"double_backward_(sums|apply)_\w+": 1,
    r"masked_(stats|backward_apply)_\w+_v": 1,
}
# Those whose loops are not the innermost ones, and those that take derivatives, which divide, but not by what places need.
STAGED = r"double_backward_(sums|apply)_\w+"
CURVED = r"double_backward_(sums|apply)_curved_\w+"
# Kernels with a loop for any activation beside those, which may divide.
ANY_TOO = r"masked_backward_apply_\w+_v"
# 16-byte loads that each has in flight, at least: in a pass that mostly reads (of the resident kernels, and of those that
# only sum, loops of a batch with as many loads), and in others.
READING, LEAST = 8, 4
READS = r"(stats|backward_sums)_\w+_v|(forward|backward)_resident_\w+"
# With less than READING, and why.
FEWER = {
    # Coefficients and sums of 8 lanes leave room for three pairs, not four, where z is computed again; and where it is
    # not, for four as long as ptxas begins with the first before it loads the last one.
    r"backward_sums_b?f16_v|backward_resident_b?f16": 6,
    # The same of the loop with a mask, on sm_90, for no want of registers.
    r"backward_resident_f32": 6,
}


def cached(requirements, folder):
    """Where a build keeps the wheels of a file of requirements."""
    path = ROOT / "scripts" / requirements
    pins = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    return path, cache / "batchnorm" / f"{folder}-{pins}"


def ptxas():
    wheels = os.environ.get("BATCHNORM_CUDA_WHEELS") or cached("ptx-requirements.txt", "cuda-wheels")[1]
    tool = pathlib.Path(wheels) / "nvidia/cu13/bin/ptxas"
    if not tool.exists():
        sys.exit("machine_code: no ptxas: run scripts/build-ptx.sh first, which installs it")
    return tool


def nvdisasm():
    requirements, wheels = cached("disassembler-requirements.txt", "disassembler")
    tool = wheels / "nvidia/cu13/bin/nvdisasm"
    if not tool.exists():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        pinned = ["--only-binary=:all:", "--require-hashes", "--requirement", requirements]
        wheels.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=wheels.parent) as new:
            environment = os.environ | {"PIP_ROOT_USER_ACTION": "ignore"}
            subprocess.run([*pip, *pinned, "--target", f"{new}/wheels"], check=True, env=environment)
            try:
                os.rename(f"{new}/wheels", wheels)
            except OSError:
                pass  # another run was faster
    return tool


JUMPS = ("BRA", "BRX", "BRXU")

Instruction = collections.namedtuple("Instruction", "predicate operation text waits sets")


class Kernel:
    """A kernel's instructions, and its graph of basic blocks."""

    def __init__(self, name, lines):
        self.name, self.code, self.labels = name, [], {}
        first = None
        for line in lines:
            if label := re.match(r"\s*(\.L_\w+):", line):
                self.labels[label[1]] = len(self.code)
            elif found := re.search(r"/\*[0-9a-f]{4,6}\*/\s+(.*?)\s*;\s*/\* 0x[0-9a-f]{16} \*/", line):
                first = found[1]
            elif first and (found := re.match(r"\s*/\* 0x([0-9a-f]{16}) \*/", line)):
                self.code.append(decoded(first, int(found[1], 16)))
                first = None
        self.cut()
        self.join_alternatives()

    def join_alternatives(self):
        """Of two loads of which one is made, by a predicate, the second counts as none: so the first stands for both."""
        for start, end in self.blocks:
            made = {}
            for i in range(start, end):
                each = self.code[i]
                if not is_wide(each, "LDG") or not each.predicate:
                    continue
                to = re.search(r"\bR\d+", each.text.removeprefix(each.predicate))[0]
                other = each.predicate.replace("@!", "@") if "!" in each.predicate else "@!" + each.predicate[1:]
                if made.pop((to, other), False):
                    self.code[i] = each._replace(operation="ALTERNATIVE")
                else:
                    made[to, each.predicate] = True

    def cut(self):
        """Basic blocks, as ranges of instructions, and where each goes on."""
        code, starts = self.code, {0, *self.labels.values()}
        starts |= {i + 1 for i, each in enumerate(code) if each.operation.split(".")[0] in (*JUMPS, "EXIT", "RET")}
        starts = sorted(start for start in starts if start < len(code))
        self.blocks = list(zip(starts, [*starts[1:], len(code)]))
        index = {start: k for k, (start, _) in enumerate(self.blocks)}
        self.after = []
        for k, (_, end) in enumerate(self.blocks):
            last, to = code[end - 1], []
            name = last.operation.split(".")[0]
            conditional = last.predicate not in ("", "@!PT") or ".DIV" in last.operation or re.search(r"U?P\d,", last.text)
            targets = re.search(r"`\((\.L_\w+)\)|BRANCH_TARGETS ([\w.,]+)", last.text)
            if name in JUMPS and targets:
                to += [index.get(self.labels[target]) for target in (targets[1] or targets[2]).split(",")]
            if (name not in (*JUMPS, "EXIT", "RET") or conditional) and k + 1 < len(self.blocks):
                to.append(k + 1)
            self.after.append([block for block in to if block is not None])

    def loops(self):
        """Natural loops: their header, and the blocks of each. The innermost ones, or, of what works by stages, all."""
        before = collections.defaultdict(list)
        for k, to in enumerate(self.after):
            for block in to:
                before[block].append(k)
        dominators = self.dominators(before)
        loops = collections.defaultdict(set)
        for k, to in enumerate(self.after):
            for header in to:
                if k in dominators and header in dominators[k]:
                    body, left = loops[header], [k]
                    body.add(header)
                    while left:
                        block = left.pop()
                        if block not in body:
                            body.add(block)
                            left += before[block]
        nested = re.fullmatch(STAGED, self.name)
        inner = {h: body for h, body in loops.items() if nested or not any(o in body for o in loops if o != h)}
        return sorted(inner.items())

    def dominators(self, before):
        order, seen, left = [], {0}, [(0, iter(self.after[0]))]
        while left:
            block, to = left[-1]
            following = next((b for b in to if b not in seen), None)
            if following is None:
                order.append(block)
                left.pop()
            else:
                seen.add(following)
                left.append((following, iter(self.after[following])))
        order.reverse()
        dominators, changed = {0: {0}}, True
        while changed:
            changed = False
            for block in order[1:]:
                known = [dominators[b] for b in before[block] if b in dominators]
                new = set.intersection(*known) | {block}
                if dominators.get(block) != new:
                    dominators[block], changed = new, True
        return dominators


def decoded(text, high):
    control = high >> 41
    found = re.match(r"(@!?U?PT?\d?\s+)?(\S+)", text)
    scoreboard = control >> 5 & 7
    return Instruction(
        (found[1] or "").strip(), found[2], text, control >> 11 & 63, None if scoreboard == 7 else scoreboard
    )


def is_wide(each, operation):
    return each.operation.startswith(operation) and ".128" in each.operation


class Loop:
    """What the longest path through a loop does, and the most loads of any that are in flight at a time."""

    def __init__(self, kernel, header, body):
        inside = sorted(body)
        order = self.topological(kernel, header, body)
        longest = {header: (0, 0, 0)}
        flights = {header: {0: 0}}  # by scoreboards that loads are pending on: how many are
        self.in_flight, whole = 0, (0, 0, 0)
        for block in order:
            code = kernel.code[slice(*kernel.blocks[block])]
            length, loads, stores = longest[block]
            loads += sum(is_wide(each, "LDG") for each in code)
            stores += sum(is_wide(each, "STG") for each in code)
            reached = (length + len(code), loads, stores)
            pending = self.fly(code, flights.get(block, {}))
            for to in kernel.after[block]:
                if to in body and to != header:
                    longest[to] = max(longest.get(to, reached), reached)
                    for mask, count in pending.items():
                        of = flights.setdefault(to, {})
                        of[mask] = max(of.get(mask, 0), count)
            if header in kernel.after[block]:
                whole = max(whole, reached)
        self.length, self.loads, self.stores = whole
        code = [each for block in inside for each in kernel.code[slice(*kernel.blocks[block])]]
        self.branches = sum(each.operation.split(".")[0] in ("BRA", "BRX", "BSYNC") for each in code) - 1
        # An integer division takes a reciprocal of what I2F has rounded up, or, of 64 bits, a call; others call for what
        # is subnormal.
        self.divisions = sum(bool(re.match(r"I2F.*\.RP|.*CALL.*\$__internal", each.text)) for each in code)
        self.wide = any(is_wide(each, kind) for each in code for kind in ("LDG", "STG"))

    def fly(self, code, flights):
        """What is in flight after these instructions, of paths on which nothing has waited yet."""
        for each in code:
            waits = each.waits
            if found := re.match(r".*DEPBAR\.LE SB(\d)", each.text):
                waits |= 1 << int(found[1])
            going = {}
            for mask, count in flights.items():
                if mask & waits:
                    self.in_flight = max(self.in_flight, count)
                    continue
                if is_wide(each, "LDG") and each.sets is not None:
                    mask, count = mask | 1 << each.sets, count + 1
                going[mask] = max(going.get(mask, 0), count)
            flights = going
        return flights

    @staticmethod
    def topological(kernel, header, body):
        order, seen, left = [], {header}, [(header, iter(kernel.after[header]))]
        while left:
            block, to = left[-1]
            following = next((b for b in to if b in body and b not in seen), None)
            if following is None:
                order.append(block)
                left.pop()
            else:
                seen.add(following)
                left.append((following, iter(kernel.after[following])))
        return order[::-1]

    def __str__(self):
        moved = self.loads + self.stores
        each = f"{self.length / moved:6.1f}" if moved else "     -"
        return (
            f"  loads {self.loads:2}  in flight {self.in_flight:2}  stores {self.stores:2}  instructions/16 B {each}"
            f"  branches {self.branches:2}  divisions {self.divisions}"
        )


def text_for(module, target):
    """The PTX that a device of this target is given."""
    serving = {}
    for path in (ROOT / "kernels/ptx").glob(f"{module}.sm_*.ptx.lzma"):
        texts = lzma.decompress(path.read_bytes(), lzma.FORMAT_ALONE).split(b"\0")
        targets = map(int, re.findall(r"\.sm_(\d+)", path.name))
        serving |= {of: text for of, text in zip(targets, texts) if of <= target}
    if not serving:
        sys.exit(f"machine_code: no {module} for sm_{target}")
    return serving[max(serving)]


def assembled(module, target):
    """Registers of each kernel of a module, and bytes of local memory; and the kernels."""
    with tempfile.TemporaryDirectory() as scratch:
        ptx, cubin = f"{scratch}/{module}.ptx", f"{scratch}/{module}.cubin"
        pathlib.Path(ptx).write_bytes(text_for(module, target))
        log = subprocess.run(
            [ptxas(), "-v", f"-arch=sm_{target}", ptx, "-o", cubin], check=True, capture_output=True, text=True
        ).stderr
        listing = subprocess.run([nvdisasm(), "-c", "-hex", cubin], check=True, capture_output=True, text=True).stdout
    of = {}
    for part in log.split("Compiling entry function '")[1:]:
        local = [int(n) for n in re.findall(r"(\d+) bytes (?:stack frame|spill)", part)]
        of[part.split("'")[0]] = (int(re.search(r"Used (\d+) registers", part)[1]), max(local))
    parts = re.split(r"\n\.text\.(\w+):\n", listing)
    kernels = [Kernel(name, body.split("\n//---")[0].splitlines()) for name, body in zip(parts[1::2], parts[2::2])]
    return of, sorted(kernels, key=lambda kernel: kernel.name)


def misses(name, loops):
    """Bounds on a kernel's hot loops that they miss."""

    def of(table, otherwise):
        return next((value for names, value in table.items() if re.fullmatch(names, name)), otherwise)

    expected = 0 if "_any_" in name else of(HOT, 0)
    if not expected:
        return
    hot = [loop for loop in loops if loop.loads >= LEAST]
    if len(hot) < expected:
        yield f"{len(hot)} loops over whole batches, of at least {expected}"
    for loop in hot:
        reads = re.fullmatch(READS, name) and loop.loads > LEAST
        least = of(FEWER, READING) if reads else LEAST
        if loop.in_flight < least:
            yield f"a loop has {loop.in_flight} loads in flight, of at least {least}"
    is_judged = hot if re.fullmatch(ANY_TOO, name) else loops
    if any(loop.divisions for loop in is_judged) and not re.fullmatch(CURVED, name):
        yield "divides in a loop over vectors"


def figures(module, target):
    """The lines of a module, and what in it misses a bound."""
    lines, wrong = [f"{module}.sm_{target}"], []
    resources, kernels = assembled(module, target)
    for kernel in kernels:
        registers, local = resources[kernel.name]
        blocks = 65536 // (256 * -(-registers // 8) * 8)
        lines.append(f" {kernel.name}: {registers} registers, {blocks} blocks" + f", {local} BYTES LOCAL" * (local > 0))
        loops = [Loop(kernel, header, body) for header, body in kernel.loops()]
        loops = [loop for loop in loops if loop.wide]
        lines += map(str, loops)
        name = f"{kernel.name} for sm_{target}"
        if registers > MOST_REGISTERS or local:
            wrong.append(f"{name}: {registers} registers and {local} bytes of local memory")
        wrong += [f"{name}: {what}" for what in misses(kernel.name, loops)]
    return lines, wrong


def shown(name, kernel):
    module, target = name.split(".sm_")
    for each in assembled(module, int(target))[1]:
        if each.name == kernel:
            at = collections.defaultdict(list)
            for label, i in each.labels.items():
                at[i].append(label)
            for i, instruction in enumerate(each.code):
                for label in at[i]:
                    print(f"{label}:")
                waits = "".join(str(k) for k in range(6) if instruction.waits >> k & 1)
                sets = "" if instruction.sets is None else f"sets {instruction.sets}"
                print(f"{i:5} {'waits ' + waits if waits else '':12} {sets:6} {instruction.text}")


def main(arguments):
    if arguments[:1] == ["--sass"]:
        return shown(*arguments[1:])
    checks, targets = arguments[:1] == ["--check"], TARGETS
    if arguments[:1] == ["--on"]:
        targets, arguments = (int(arguments[1]),), arguments[2:]
    modules = [] if checks else arguments
    everything = sorted({path.name.split(".")[0] for path in (ROOT / "kernels/ptx").glob("*.lzma")})
    nvdisasm()
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        work = [(module, target) for module in modules or everything for target in targets]
        parts = list(pool.map(lambda of: figures(*of), work))
    text = "\n".join("\n".join(lines) for lines, _ in parts) + "\n"
    wrong = [line for _, lines in parts for line in lines]
    if modules:
        print(text, end="")
    elif not checks:
        FIGURES.write_text(HEAD + text)
    elif FIGURES.read_text() != HEAD + text:
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as made:
            made.write(HEAD + text)
            made.flush()
            subprocess.run(["diff", "-u", FIGURES, made.name])
        wrong.append("kernels/machine-code.txt is not what the PTX makes: run scripts/machine_code.py, and read its diff")
    for line in wrong:
        print(f"machine_code: {line}", file=sys.stderr)
    return 1 if wrong else 0


HEAD = """\
What ptxas 13.0.88 makes of the kernels: written by scripts/machine_code.py, which says what is counted. Registers of a
kernel, and blocks of 256 threads that they leave room for on a multiprocessor; then each innermost loop that moves 16
bytes at a time to or from global memory, by its longest path: 16-byte loads, how many are in flight before the first
is waited for, 16-byte stores, instructions for each 16 bytes that are loaded or stored, branches, divisions by
numbers that only the launch knows, and calls of what divides.

"""

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
