#!/usr/bin/env python3
"""Turns the archive of `run.sh --lease` into a record of speed: benches/record/cuda-DEVICE/DATE.

    scripts/lease_record.py lease.tar.gz [--records benches/record]

The record has the lines of the speed table and its report, measured.md (copies, reads, turns, rows, host time, loading of
modules), cudnn.md (what cuDNN refuses, and where it is faster) and costs.txt, the constants of plans, which the `Cuda`
engine takes on that model of device from then on. Python's standard library is all it needs. What the archive has not is
said in README.md, where what was noticed is to be added by hand.
"""
import argparse
import json
import pathlib
import re
import statistics
import sys
import tarfile


def fail(text):
    sys.exit(f"lease_record: {text}")


class Lease:
    """The files of an archive."""

    def __init__(self, path):
        self.files = {}
        with tarfile.open(path) as archive:
            for member in archive:
                if member.isfile():
                    name = member.name.removeprefix("./").removeprefix("lease/")
                    self.files[name] = archive.extractfile(member).read()

    def text(self, name):
        return self.files.get(name, b"").decode(errors="replace")

    def lines(self, name):
        """The JSON objects of a file; one that was stopped in the middle of a line has a last one that is none."""
        for line in self.text(name).splitlines():
            try:
                value = json.loads(line)
            except ValueError:
                continue
            if isinstance(value, dict):
                yield value

    def device(self):
        found = re.match(r"(.+), capability (\d+), driver for CUDA (\d+)", self.text("device.log"))
        if not found:
            fail("device.log does not say which device it was")
        return found[1]

    def multiprocessors(self):
        found = re.search(r"^multiprocessors: (\d+)", self.text("device.log"), re.M)
        return int(found[1]) if found else 0

    def date(self):
        found = re.search(r"^(\d{4}-\d\d-\d\d) ", self.text("versions.log"), re.M)
        return found[1] if found else fail("versions.log does not say when it was")

    def copies(self):
        """GB/s of the median copy, by MiB of a tensor."""
        rows = re.findall(r"^ *(\d+) +([\d.]+) +([\d.]+)$", self.text("copy.log"), re.M)
        return {int(mib): float(median) for mib, median, _ in rows}


def folder_name(device):
    words = re.sub(r"[^a-z0-9]+", "-", device.lower().replace("nvidia", "")).strip("-")
    return f"cuda-{words}"


# What costs a plan has, from measurements of turns.


def rounds(lines, bandwidth, multiprocessors):
    """Nanoseconds of one more round, beside its bytes, by blocks of a group and channels of a slice; of a launch beside
    its one round where no block waits."""
    seconds = {(t["blocks"], t["channels"], t["rounds"]): t["seconds"] for t in lines}
    counts = sorted({rounds for *_, rounds in seconds})
    if len(counts) < 2:
        return {}, None
    few, many = counts[0], counts[-1]
    found, launches = {}, []
    for blocks, channels, count in seconds:
        if count != few or (blocks, channels, many) not in seconds:
            continue
        # A vector of 16 bytes for each thread of each block, read and written.
        moved = 2 * 16 * 256 * blocks * (2 * multiprocessors // blocks)
        round = (seconds[blocks, channels, many] - seconds[blocks, channels, few]) / (many - few)
        found[blocks, channels] = 1e9 * (round - moved / bandwidth)
        if blocks == 1:
            launches.append(1e9 * (seconds[blocks, channels, few] - few * round))
    return found, statistics.median(launches) if launches else None


def line_through(points):
    """Offset and slope of the line that is nearest to points."""
    xs, ys = zip(*points)
    x, y = statistics.mean(xs), statistics.mean(ys)
    across = sum((a - x) ** 2 for a in xs)
    slope = sum((a - x) * (b - y) for a, b in points) / across if across else 0.0
    return y - slope * x, slope


def tile(lines, launch, multiprocessors):
    """Nanoseconds that a multiprocessor takes for a tile beside its bytes, by two passes that only read, each of two
    launches; None where not measured. The time that bytes take is what the two differ by."""
    passes = []
    for line in lines:
        if blocks := re.search(r": (\d+) blocks", line["plan"]):
            passes.append((line["bytes"], -(-int(blocks[1]) // multiprocessors), 1e9 * line["seconds"] - 2 * launch))
    if len(passes) < 2:
        return None
    (few, tiles, time), (many, tiles_of_many, longer) = sorted(passes)[0], sorted(passes)[-1]
    # time = bytes * each + tiles * what is asked
    return (time * many - longer * few) / (tiles * many - tiles_of_many * few)


def costs(lease):
    """Constants of plans by name, as far as they were measured."""
    copies, found = lease.copies(), {}
    large = [rate for mib, rate in copies.items() if mib >= 256]
    if not large or not lease.multiprocessors():
        return found
    bandwidth = 1e9 * statistics.median(large)
    found["bandwidth"] = round(bandwidth * 1e-6)
    turns, launch = rounds(list(lease.lines("turns.jsonl")), bandwidth, lease.multiprocessors())
    alone = [turn for (blocks, _), turn in turns.items() if blocks == 1]
    if not alone:
        return found
    turn = statistics.median(alone)
    found["turn"] = round(turn)
    found["launch"] = round(launch)
    # Every 2048 partial sums of a group are a step of its last block.
    waits = [(-(-blocks * channels // 2048), round - turn) for (blocks, channels), round in turns.items() if blocks > 1]
    if len({steps for steps, _ in waits}) > 1:
        barrier, merge = line_through(waits)
        found["barrier"], found["merge"] = round(barrier), round(merge)
    sums = tile(lease.lines("tiles.jsonl"), launch, lease.multiprocessors())
    if sums is not None:
        found["tile"] = round(sums)
    return {name: max(0, value) for name, value in found.items()}


def costs_text(lease, found):
    text = ["# Of a lease on this device: scripts/lease_record.py says how they follow from turns.jsonl and copy.log."]
    text += [f"device = {lease.device()}", *(f"{name} = {value}" for name, value in sorted(found.items()))]
    return "\n".join(text) + "\n"


# What a reader is shown.


def table(head, rows):
    if not rows:
        return "Not measured.\n"
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def microseconds(seconds):
    return f"{1e6 * seconds:.1f}" if seconds else "-"


def measured(lease, found):
    parts = [f"# {lease.device()}: what was measured beside the speed table\n"]

    def section(title, head, rows, text=""):
        parts.append(f"## {title}\n\n{text}{table(head, rows)}")

    section("Copies on the device", ["MiB", "GB/s, read and written"], [[m, f"{r:.0f}"] for m, r in lease.copies().items()])
    rows = []
    for name, step in (("PTX, nothing cached", "modules-cold"), ("PTX, cached", "modules-warm"), ("machine code", "cubins")):
        last = lease.text(f"{step}.log").strip().splitlines()[-1:]
        rows += [[name, *last]]
    section("Loading all modules", ["from", "took"], [row for row in rows if len(row) == 2])
    rate = max(lease.copies().values(), default=0)
    rows = [
        [r["kernel"], r["shared_bytes"], r["gb_per_s"], f"{r['gb_per_s'] / rate:.2f}" if rate and r["gb_per_s"] else "-"]
        for r in lease.lines("reads.jsonl")
    ]
    section("Reading", ["kernel", "shared bytes of a block", "GB/s", "of the best copy"], rows)
    rows = [
        [t["blocks"], t["channels"], t["rounds"], microseconds(t["seconds"])] for t in lease.lines("turns.jsonl")
    ]
    section("Turns of groups", ["blocks", "channels of a slice", "rounds", "us"], rows)
    rows = [[t["bytes"] >> 20, microseconds(t["seconds"]), gb(t)] for t in lease.lines("tiles.jsonl")]
    section("Statistics alone", ["MiB", "us", "GB/s"], rows)
    rows = [
        [o["step"], o["shape"], "at once" if o["at_once"] else "half of them later", microseconds(o["seconds"])]
        for o in lease.lines("offsets.jsonl")
    ]
    section("When groups begin", ["step", "shape", "groups begin", "us"], rows)
    rows = [
        [r["step"], r["all_channels"], r["row_bytes"], microseconds(r["seconds"]), gb(r)]
        for r in lease.lines("rows.jsonl")
    ]
    section("Width of rows", ["step", "channels", "bytes of a row", "us", "GB/s at least traffic"], rows)
    rows = [
        [h["step"], h["shape"], h["layout"], "on" if h["tracked"] else "off"]
        + [microseconds(h[key]) for key in ("host_s", "call_s", "device_s")]
        for h in lease.lines("host.jsonl")
    ]
    head = ["step", "shape", "layout", "event tracking", "host us of a call", "us of a call", "device us in a graph"]
    section("Small tensors", head, rows)
    repeats = list(lease.lines("repeats.jsonl"))
    section("The largest group, repeated", ["launches", "that differ"], [[r["count"], r["differ"]] for r in repeats])
    section("Costs for plans, as in costs.txt", ["name", "value"], sorted(found.items()))
    return "\n".join(parts)


def gb(row):
    return f"{row['bytes'] / row['seconds'] * 1e-9:.0f}" if row["seconds"] else "-"


def case(line):
    return line["op"], "x".join(map(str, line["shape"])), line["layout"], line["dtype"]


def cudnn(lease):
    def medians(name, peer):
        return {case(l): l["median_s"] for l in lease.lines(name) if l.get("peer") == peer and "median_s" in l}

    ours, theirs = medians("speed-cuda.jsonl", "batchnorm-cuda"), medians("speed-cudnn.jsonl", "batchnorm-cudnn")
    refused = {case(l): l["error"] for l in lease.lines("speed-cudnn.jsonl") if "error" in l}
    both = sorted(((theirs[c] / ours[c], c) for c in ours if c in theirs))
    rows = [[*c, microseconds(ours[c]), microseconds(theirs[c]), f"{ratio:.2f}"] for ratio, c in both]
    head = ["operation", "shape", "layout", "dtype"]
    text = f"# {lease.device()}: cuDNN beside our kernels\n\nCases where cuDNN is faster have a multiple below 1: a rule of "
    text += f"`Gpu` may give it those.\n\n{table([*head, 'ours us', 'cuDNN us', 'multiple'], rows)}\n## Refused\n\n"
    text += table([*head, "why"], [[*c, why.replace("|", "/")] for c, why in sorted(refused.items())])
    golden = lease.text("golden-cudnn.log").strip()
    return text + ("\n## Golden cases\n\n```text\n" + golden[-3000:] + "\n```\n" if golden else "")


def readme(lease, missing):
    versions = lease.text("versions.log").split("\nbin/")[0]
    commit = re.search(r"^commit .+$", versions, re.M)
    text = [f"# {lease.device()}, {lease.date()}\n", commit[0] if commit else "commit unknown", ""]
    text += ["Made by `run.sh --lease` and `scripts/lease_record.py`; the device's clocks were left as they were.\n"]
    if missing:
        text += [f"Not in the archive: {', '.join(missing)}.\n"]
    text += ["## Steps\n", "```text", lease.text("summary.txt").strip(), "```\n"]
    text += ["## Versions\n", "```text", versions.strip(), "```\n"]
    return "\n".join(text)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("archive", type=pathlib.Path)
    parser.add_argument("--records", type=pathlib.Path, default=pathlib.Path(__file__).parent.parent / "benches/record")
    arguments = parser.parse_args()
    lease = Lease(arguments.archive)
    device = lease.device()
    if device.startswith("softcuda"):
        fail("a lease of the software device is no record: its times say nothing")
    base = arguments.records / folder_name(device) / lease.date()
    out, count = base, 1
    while out.exists():
        count += 1
        out = base.with_name(f"{base.name}-{count}")
    out.mkdir(parents=True)

    wanted = ["copy.log", "turns.jsonl", "tiles.jsonl", "offsets.jsonl", "rows.jsonl", "reads.jsonl", "host.jsonl", "repeats.jsonl", "report/report.md"]
    wanted += [f"speed-{name}.jsonl" for name in ("cuda", "split", "resident", "untracked", "cudnn", "torch", "compile")]
    missing = [name for name in wanted if not lease.text(name).strip()]
    for name, data in lease.files.items():
        path = pathlib.PurePosixPath(name)
        if name.endswith(".jsonl") and len(path.parts) == 1 or path.parts[0] == "report" and len(path.parts) == 2:
            (out / path.name).write_bytes(data)
        elif path.name.startswith("ncu-") and len(path.parts) == 1:
            (out / path.with_suffix(".txt").name).write_bytes(data)
    found = costs(lease)
    if {"bandwidth", "turn", "launch"} <= found.keys():
        (out / "costs.txt").write_text(costs_text(lease, found))
    else:
        missing.append("what costs.txt is made of")
    (out / "measured.md").write_text(measured(lease, found))
    (out / "cudnn.md").write_text(cudnn(lease))
    (out / "README.md").write_text(readme(lease, missing))
    print(out)
    for name in missing:
        print(f"missing: {name}")


if __name__ == "__main__":
    main()
