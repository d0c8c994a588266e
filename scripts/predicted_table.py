#!/usr/bin/env python3
"""What the kernels should reach on an H200, by a model: a page of kernels/README.md, and no measurement.

    scripts/predicted_table.py            writes the page between its marks in kernels/README.md
    scripts/predicted_table.py --check    fails where it is another one
    scripts/predicted_table.py --print    prints it

It reads kernels/plans.txt (how the Cuda engine cuts tensors of ResNet-50, and its costs) and kernels/machine-code.txt
(what the compiler made of the loops for sm_90). The page says what is assumed.
"""
import difflib
import math
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
README, PLANS, FIGURES = (ROOT / "kernels" / name for name in ("README.md", "plans.txt", "machine-code.txt"))
MARKS = ("<!-- predicted -->\n", "<!-- end of predicted -->\n")

MULTIPROCESSORS, SLOTS, L2 = 132, 264, 60 << 20
CLOCK = 1.98e9
CAP = 0.93  # of a copy's rate, where nothing else bounds a phase
NEEDED = 35 << 10  # bytes that a multiprocessor must have in flight for that, where it only reads
ISSUED = 2.8  # of its four instructions per clock
CACHED, HIT = 0.75, 0.5  # the part of the L2 that holds what was read last; what a byte from there costs

# Fractions of the copy's rate at the fewest bytes, by what is computed and how large a tensor is.
BAR = {"inference": 0.92, "forward, split": 0.58, "backward, split": 0.52}
BAR_OF = {
    "256x256x56x56": {"forward": 0.75, "backward": 0.58},
    "256x64x112x112": {"forward": 0.60, "backward": 0.52},
}
MOST_US = 8.0  # below 4 MB


def bar(layout, shape, step, size):
    """A fraction, or None where there is no bar."""
    if step in BAR:
        return BAR[step]
    if layout == "nhwc" and shape in BAR_OF:
        return BAR_OF[shape][step]
    if size >= 50e6:
        return 0.85 if step == "forward" else 0.80
    return 0.65 if size >= 10e6 else None


class Kernels:
    """Loops of the kernels for sm_90, from the committed figures."""

    def __init__(self, text):
        self.loops, self.blocks, name, wanted = {}, {}, None, False
        for line in text.splitlines():
            if re.fullmatch(r"\w+\.sm_\d+", line):
                wanted = line.endswith(".sm_90")
            elif wanted and (kernel := re.match(r" (\w+): (\d+) registers, (\d+) blocks", line)):
                name = kernel[1]
                self.loops[name], self.blocks[name] = [], int(kernel[3])
            elif wanted and line.startswith("  loads"):
                of = [float(n) for n in re.findall(r"[\d.]+(?= |$)", line.replace("16 B", ""))]
                self.loops[name].append(dict(zip(("loads", "in_flight", "stores", "instructions"), of)))

    def hot(self, name):
        """Of the loops that load most at a time, one for each case, the slowest."""
        return max(self.loops[name], key=lambda loop: (loop["in_flight"], loop["loads"], loop["instructions"]))

    def rate(self, name, reads, blocks=None, loop=None):
        """The part of the copy's rate that a loop reaches, where `reads` of its bytes are read; and what bounds it."""
        loop = loop or self.hot(name)
        flight = loop["in_flight"] * 16 * 256 * min(self.blocks[name], blocks or 8)
        # Latency falls with the load: half the bytes in flight is more than half the rate.
        latency = math.sqrt(min(1.0, flight / (NEEDED * reads))) if reads else 1.0
        bytes_per_clock = ISSUED * 32 * 16 / loop["instructions"]
        issue = min(1.0, bytes_per_clock / (COPY / MULTIPROCESSORS / CLOCK))
        return CAP * min(latency, issue), "loads in flight" if latency < issue else "instructions"

    def alone(self, name):
        """How many times its fair share a block gets that is alone on its multiprocessor, which fits two."""
        return 2 * self.rate(name, 1.0, 1)[0] / self.rate(name, 1.0, 2)[0]

    def writing(self, name):
        """The loop that stores most of what was kept at a time; others take what is left, or numbers out of range."""
        stores = [loop for loop in self.loops[name] if loop["stores"] and not loop["loads"]]
        return max(stores, key=lambda loop: loop["stores"])


def again(size):
    """Bytes that reading again what was read last is worth."""
    hits = min(size, CACHED * L2)
    return hits * HIT + (size - hits)


def together(units, read, wait, write, most):
    """Seconds until units have done all their slices. `units`: how many there are, slices of each, and when these
    begin; each slice is read, waited for and written. Those that move anything share the rate alike, none has more than
    `most` of it; `read` and `write` are seconds at the whole rate."""
    left = [[(False, late)] + slices * [(True, read), (False, wait), (True, write)] for _, slices, late in units]
    left, seconds = [steps[::-1] for steps in left], 0.0
    while any(left):
        moving = sum(count for (count, *_), steps in zip(units, left) if steps and steps[-1][0])
        rate = min(most, 1 / max(moving, 1))
        passed = min(amount / rate if moves else amount for moves, amount in (steps[-1] for steps in left if steps))
        seconds += passed
        for steps in filter(None, left):
            moves, amount = steps.pop()
            amount -= passed * rate if moves else passed
            if amount > 1e-12:
                steps.append((moves, amount))
    return seconds


def parse(text):
    costs, rows = {}, []
    for line in text.splitlines():
        parts = [part.strip() for part in line.split(" | ")]
        if parts[0] == "costs":
            costs = {name: int(value) for name, value in (part.split() for part in parts[1:])}
        elif len(parts) == 6:
            rows.append(parts)
    return costs, rows


class Prediction:
    """Seconds of a step, and where they go."""

    def __init__(self, kernels, costs, dtype, row):
        _, self.layout, self.shape, self.step, family, plan = row
        self.dtype, self.plan = dtype, plan
        element = 4 if dtype == "f32" else 2
        self.size = math.prod(int(n) for n in self.shape.split("x")) * element
        tensors = 2 if self.step.startswith("backward") else 1
        # A copy is a launch, too.
        self.floor = (tensors + 1) * self.size / COPY + costs["launch"] * 1e-9
        self.lost, self.in_step = {}, 0.0
        if self.step == "inference":
            self.seconds = self.split(kernels, costs, [("apply", 1, 1)], 0)
        elif family == "split" and tensors == 1:
            self.seconds = self.split(kernels, costs, [("stats", 1, 0), ("apply", 1, 1)], self.size)
        elif family == "split":
            passes = [("backward_sums", 2, 0), ("backward_apply", 2, 1)]
            self.seconds = self.split(kernels, costs, passes, 2 * self.size)
        else:
            self.seconds = self.resident(kernels, costs, tensors)
        self.fraction = self.floor / self.seconds
        self.bar = bar(self.layout, self.shape, self.step, self.size)

    def lose(self, what, seconds):
        self.lost[what] = self.lost.get(what, 0.0) + max(0.0, seconds)

    def lose_rate(self, why, moved, rate):
        self.lose("ramps", moved / COPY * (1 / CAP - 1))
        self.lose(why, moved / COPY * (1 / rate - 1 / CAP))

    def split(self, kernels, costs, passes, read_again):
        seconds = 0.0
        for name, reads, writes in passes:
            moved = (reads + writes) * self.size
            if read_again and writes:  # the second pass, of which the cache has the end
                moved += again(read_again) - read_again
            rate, why = kernels.rate(f"{name}_{self.dtype}_v", reads / (reads + writes))
            seconds += moved / COPY / rate
            self.lose_rate(why, moved, rate)
        launches = len(passes) + (len(passes) > 1)
        self.lose("launches", (launches - 1) * costs["launch"] * 1e-9)
        self.lose("read again", again(read_again) / COPY)
        return seconds + launches * costs["launch"] * 1e-9

    def resident(self, kernels, costs, tensors):
        def find(pattern):
            found = re.search(pattern, self.plan)
            return [int(n) for n in found.groups()] if found else None

        slices, channels = find(r"(\d+) slices of (\d+) channels")
        groups, blocks = find(r"by (\d+) groups of (\d+) blocks") or (slices, 1)
        kept, steps, lanes = find(r"(\d+) of (\d+) steps of vectors of (\d+)")
        (threads,) = find(r"(\d+) threads")
        name = f"{'backward' if tensors == 2 else 'forward'}_resident_{self.dtype}"
        rows = 1 if self.layout == "nhwc" else 0
        short = rows and channels * 16 // lanes < 128 and slices > 1
        dear = {True: 1.05 if channels * 16 // lanes >= 64 else 1.3, False: 1.0}[bool(short)]
        units = min(groups, SLOTS // blocks)  # that there are at a time
        rounds = -(-slices // units)
        alone = kernels.alone(name)
        share = min(1.0, units * blocks / SLOTS * alone)
        read = tensors * self.size / rounds
        spilled = again(read * (1 - kept / steps)) if kept < steps else 0.0
        reads, why = kernels.rate(name, 1.0, 2)
        writes, why_writes = kernels.rate(name, 0.0, 2, kernels.writing(name))
        write = self.size / rounds
        moved = dear / share / COPY * ((read + spilled) / reads + write / writes)
        wait = costs["turn"]
        if blocks > 1:
            wait += costs["barrier"] + -(-blocks * channels // 2048) * costs["merge"]
        wait *= 1e-9
        # Half of them begin half a round later; or all at once.
        late = (tensors + 1) * self.size / rounds / COPY / 2 if rounds > 1 and units > 1 else 0.0
        parts = [dear / COPY * bytes * rounds / slices for bytes in ((read + spilled) / reads, write / writes)]
        early, more = -(-units // 2), slices % units or units  # so many have a slice more than others

        def when(late):
            ends = [(min(early, more), rounds, 0.0), (max(early - more, 0), rounds - 1, 0.0)]
            ends += [(max(more - early, 0), rounds, late), (min(units - more, units - early), rounds - 1, late)]
            ends = [end for end in ends if end[0] > 0]
            return together(ends, parts[0], wait, parts[1], alone * blocks / SLOTS)

        seconds = when(late)
        self.lose("read again", rounds * spilled / COPY)
        self.lose_rate(why, rounds * (read + spilled), reads)
        self.lose_rate(why_writes, rounds * write, writes)
        self.lose("short rows", rounds * moved * (1 - 1 / dear))
        self.lose("idle blocks", rounds * moved * (1 - share))
        self.lose("waiting", seconds - rounds * moved)
        self.in_step = when(0.0) - seconds
        return seconds + costs["launch"] * 1e-9

    def limiters(self):
        """What most is lost by, beside the floor."""
        most = sorted(self.lost.items(), key=lambda item: -item[1])
        parts = [(what, seconds / self.seconds) for what, seconds in most]
        return ", ".join(f"{what} {100 * part:.0f} %" for what, part in parts[:2] if part >= 0.03) or "-"

    def misses(self):
        if self.size < 4e6 and self.step not in BAR:
            return self.seconds * 1e6 > MOST_US
        return self.bar is not None and round(self.fraction, 2) < self.bar

    def reason(self):
        """What most is lost by, of what is no part of the bar."""
        lost = {what: seconds for what, seconds in self.lost.items() if self.step not in BAR or what != "read again"}
        return max(lost, key=lost.get)

    def cells(self, kind):
        """Plan, figure, bar and what is lost."""
        small, misses = self.size < 4e6, self.misses()
        seconds = [self.seconds] + [self.seconds + self.in_step] * (self.in_step > 0)
        figures = [f"{s * 1e6:.1f} us" if small else f"{self.floor / s:.2f}" for s in seconds]
        figure = figures[0] + "".join(f" ({other})" for other in figures[1:])
        goal = f"{MOST_US:.0f} us" if small else "-" if self.bar is None else f"{self.bar:.2f}"
        plan = "`apply`" if self.step == "inference" else "split" if kind else self.brief()
        return f"{plan} | {'*' * misses}{figure}{'*' * misses} | {goal} | {self.limiters()}"

    def brief(self):
        groups = re.search(r"(\d+) groups of (\d+) blocks", self.plan)
        kept = re.search(r"(\d+) of (\d+) steps", self.plan)
        text = f"{groups[1]} x {groups[2]}" if groups else "blocks" if kept else "split"
        return text + (f", {100 * int(kept[1]) // int(kept[2])} % kept" if kept and kept[1] != kept[2] else "")


# By what is lost most: why no change of these kernels mends it, and what would.
REASONS = {
    "read again": "shared memory and L2 hold less than the tensor, whose rest is read twice; a device with more of them",
    "waiting": "nothing moves while all blocks wait: in the last round always, which of small tensors is the only one, and in others where what the rest has to move is done sooner; a larger batch, a cheaper turn, or hardware clusters for groups of at most 8 blocks",
    "launches": "three launches against a few microseconds of traffic, where one by waiting blocks would be no faster; hardware clusters",
    "ramps": "phases of reading and writing begin and end; within the model's error",
    "idle blocks": "fewer slices than blocks, and none large enough to share; a larger batch",
    "loads in flight": "registers leave no room for more loads; `cp.async` into shared memory",
    "instructions": "more instructions than the memory leaves time for; fewer conversions, or packed arithmetic",
    "short rows": "wider slices would keep less; a device with more shared memory",
}


def page(kernels, costs, rows):
    cases, everything = {}, []
    for row in rows:
        for dtype in ["f16", "bf16"] if row[0] == "f16" else [row[0]]:
            prediction = Prediction(kernels, costs, dtype, row)
            everything.append(prediction)
            what, _, split = prediction.step.partition(", ")
            kind = {"": "", "split": ", `Family::Split`"}[split] + (", inference" if what == "inference" else "")
            cases.setdefault((dtype, row[1], row[2], kind), {})["forward" if what == "inference" else what] = prediction
    out = [
        "## Predicted for an H200\n",
        "Nothing here was measured: `scripts/predicted_table.py` makes it from `plans.txt` and `machine-code.txt`, and CI fails",
        "where it is old. A *fraction* is the time of a device-to-device copy, its launch included, that moves as many bytes as the",
        "step must (reads and writes added), over the step's time. The model is about 0.1 wrong either way; which rows are slow, and why, is firmer.\n",
        f"Assumed: a copy of {COPY / 1e12:.1f} TB/s; a phase reaches {CAP} of it, less where fewer than {NEEDED >> 10} KiB of loads are in",
        "flight for each multiprocessor (by the square root of what is missing, since latency falls with the load) or where its",
        f"loop's instructions take more than {ISSUED} of 4 issue slots a clock at {CLOCK / 1e9:.2f} GHz; {CACHED} of the {L2 >> 20} MB cache holds what was",
        f"read last, at {HIT} of the price; a turn of a block {costs['turn'] / 1e3:.1f} us, {costs['barrier'] / 1e3:.1f} us more where blocks wait for each other,",
        f"{costs['merge'] / 1e3:.1f} us for each 2048 partial sums, {costs['launch'] / 1e3:.1f} us a launch; cold cache, nothing else on the device.\n",
        "Where each group takes several slices, half of the groups begin half a round later than the others. All that move something",
        "share the rate alike, which keeps them as far apart as they began; a block alone on its multiprocessor gets 1.9 times its share, by",
        "the loads that it has in flight. In parentheses: if all groups went in step, so that none moves anything while another waits.\n",
        "*Plan*: groups x blocks of a group, `blocks` where each takes a slice by itself, `split` where several launches are taken.",
        "*Lost to*: parts of the step's time.\n",
        "| case | MB | plan | forward | bar | lost to | plan | backward | bar | lost to |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    missed, lines = [], {}
    for (dtype, layout, shape, kind), steps in cases.items():
        cells = []
        for what in ("forward", "backward"):
            prediction = steps.get(what)
            if prediction is None:
                cells.append("| | | ")
                continue
            misses = prediction.misses()
            cells.append(prediction.cells(kind))
            if misses:
                missed.append((prediction, (f"{layout.upper()} {shape}{kind}, {what}", dtype)))
        size = next(iter(steps.values())).size / 1e6
        place = layout.upper() if shape.count("x") > 1 else "N x C"
        lines.setdefault((f"{place} {shape}{kind} | {size:.0f} | {' | '.join(cells)} |"), []).append(dtype)
    out += [f"| {', '.join(dtypes)} {line}" for line, dtypes in lines.items()]
    out += ["", f"{len(missed)} of {sum(p.bar is not None or p.size < 4e6 for p in everything)} figures miss their bars, in italics, by what is lost most:\n"]
    reasons = {}
    for prediction, (case, dtype) in missed:
        reasons.setdefault(prediction.reason(), {}).setdefault(case, []).append(dtype)
    out += ["| lost to | why it stays, and what would mend it | cases |", "|---|---|---|"]
    for why, names in reasons.items():
        listed = "; ".join(f"{', '.join(dtypes)} {case}" for case, dtypes in names.items())
        out.append(f"| {why} | {REASONS[why]} | {listed} |")
    return "\n".join(out) + "\n"


def main(arguments):
    global COPY
    costs, rows = parse(PLANS.read_text())
    COPY = costs["bandwidth"] * 1e6
    text = page(Kernels(FIGURES.read_text()), costs, rows)
    before, rest = README.read_text().split(MARKS[0])
    committed, after = rest.split(MARKS[1])
    if arguments == ["--print"]:
        print(text)
    elif arguments == ["--check"]:
        if text != committed:
            sys.stderr.writelines(difflib.unified_diff(committed.splitlines(True), text.splitlines(True), "committed", "made"))
            sys.exit("predicted_table: kernels/README.md has another page: run scripts/predicted_table.py")
    elif not arguments:
        README.write_text(before + MARKS[0] + text + MARKS[1] + after)
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
