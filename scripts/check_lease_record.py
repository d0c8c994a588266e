#!/usr/bin/env python3
"""Tries lease_record.py on a made-up archive: what it finds must be what the archive was made with.

    scripts/check_lease_record.py
"""
import io
import json
import pathlib
import subprocess
import sys
import tarfile
import tempfile

SCRIPT = pathlib.Path(__file__).parent / "lease_record.py"
MULTIPROCESSORS, RATE = 132, 4.2e12
COSTS = {"turn": 2600, "barrier": 4100, "merge": 250, "tile": 640, "launch": 1800, "bandwidth": 4_200_000}


def turns():
    for channels in (16, 32, 64):
        for blocks in (1, 2, 8, 33, 66, 131, 262):
            for rounds in (1, 4):
                moved = 2 * 16 * 256 * blocks * (2 * MULTIPROCESSORS // blocks)
                waits = COSTS["barrier"] + COSTS["merge"] * -(-blocks * channels // 2048) if blocks > 1 else 0
                seconds = 1e-9 * (COSTS["launch"] + rounds * (COSTS["turn"] + waits)) + rounds * moved / RATE
                yield {"measure": "turn", "blocks": blocks, "channels": channels, "rounds": rounds, "seconds": seconds}


def tiles():
    # By more bytes per second than a copy moves.
    for size, blocks in ((1 << 29, 2112), (1 << 31, 2000)):
        seconds = 1e-9 * (2 * COSTS["launch"] + -(-blocks // MULTIPROCESSORS) * COSTS["tile"]) + size / (1.1 * RATE)
        yield {"measure": "tile", "bytes": size, "seconds": seconds, "plan": f"1 slices of 8 channels: {blocks} blocks"}


def speed(peer, seconds, **more):
    line = {"peer": peer, "op": "bwd_relu", "shape": [256, 512, 28, 28], "layout": "nhwc", "dtype": "f16"}
    return line | {"threads": 0, **({"median_s": seconds} if seconds else {})} | more


def archive(path, device, without=()):
    def jsonl(lines):
        return "".join(json.dumps(line) + "\n" for line in lines)

    row = {"measure": "row", "step": "forward", "all_channels": 64, "row_bytes": 32, "bytes": 4 << 20, "seconds": 1e-6}
    offset = {"measure": "offset", "step": "forward", "shape": "256x512", "at_once": True, "seconds": 2e-6, "plan": ""}
    host = {"measure": "host", "step": "forward", "shape": "256x1024", "layout": "nc", "tracked": True}
    files = {
        "summary.txt": "batchnorm, leased device, commit 1234\n0 steps did not end well; 480 s of 510\n",
        "versions.log": "commit 1234\nrustc 1.89.0\n2026-12-24 10:11 UTC\nbin/speed:\nlibc\n",
        "device.log": f"{device}, capability 90, driver for CUDA 13000, 1 of 2 MiB free\nmultiprocessors: {MULTIPROCESSORS}\n",
        "copy.log": "MiB per tensor, GB/s\n   16    9000.5    9100.0\n 1024    4200.0    4300.0\n 4096    4200.0    4250.0\n",
        "modules-cold.log": "split_f32 sm_75: 900.0 ms\n16 modules in 12000.0 ms\n",
        "turns.jsonl": jsonl(turns()),
        "tiles.jsonl": jsonl(tiles()),
        "offsets.jsonl": jsonl([offset]),
        "rows.jsonl": jsonl([row]),
        "reads.jsonl": jsonl([{"measure": "read", "kernel": "read_plain_8", "shared_bytes": 0, "gb_per_s": 3900.0}]),
        "host.jsonl": jsonl([host | {"host_s": 9e-6, "call_s": 1e-5, "device_s": None}]),
        "repeats.jsonl": jsonl([{"measure": "repeats", "count": 1000, "differ": 0}]),
        # Stopped in the middle of a line.
        "speed-cuda.jsonl": jsonl([speed("batchnorm-cuda", 2e-4)]) + '{"peer": "batchn',
        "speed-cudnn.jsonl": jsonl([speed("batchnorm-cudnn", 3e-4), speed("batchnorm-cudnn", 0, dtype="bf16", error="no | bf16")]),
        "ncu-infer.log": "DRAM Throughput 90\n",
        "report/report.md": "# a report\n",
    }
    with tarfile.open(path, "w:gz") as out:
        for name, text in files.items():
            if name in without:
                continue
            member = tarfile.TarInfo(f"lease/{name}")
            member.size = len(text.encode())
            out.addfile(member, io.BytesIO(text.encode()))


def run(scratch, archive_of):
    command = [sys.executable, SCRIPT, archive_of, "--records", scratch / "records"]
    return subprocess.run(command, capture_output=True, text=True)


def check(truth, what):
    if not truth:
        sys.exit(f"check_lease_record: {what}")


def main():
    with tempfile.TemporaryDirectory() as folder:
        scratch = pathlib.Path(folder)
        archive(scratch / "whole", "NVIDIA H200")
        ended = run(scratch, scratch / "whole")
        check(ended.returncode == 0, ended.stderr)
        record = scratch / "records/cuda-h200/2026-12-24"
        lines = (record / "costs.txt").read_text().splitlines()
        found = dict(line.split(" = ") for line in lines if not line.startswith("#"))
        check(found.pop("device") == "NVIDIA H200", "the device of costs.txt")
        found = {name: int(value) for name, value in found.items()}
        near = found.keys() == COSTS.keys() and all(abs(found[name] - value) <= 2 for name, value in COSTS.items())
        check(near, f"costs: {found}, not {COSTS}")
        for name, text in (
            ("measured.md", "| read_plain_8 | 0 | 3900.0 | 0.43 |"),
            ("measured.md", "| PTX, nothing cached | 16 modules in 12000.0 ms |"),
            ("measured.md", "| 1000 | 0 |"),
            ("measured.md", "| forward | 256x512 | at once | 2.0 |"),
            ("cudnn.md", "| bwd_relu | 256x512x28x28 | nhwc | f16 | 200.0 | 300.0 | 1.50 |"),
            ("cudnn.md", "| bwd_relu | 256x512x28x28 | nhwc | bf16 | no / bf16 |"),
            ("README.md", "Not in the archive: speed-split.jsonl, "),
            ("README.md", "0 steps did not end well"),
            ("report.md", "# a report"),
            ("ncu-infer.txt", "DRAM"),
            ("speed-cuda.jsonl", '"batchn'),
        ):
            check(text in (record / name).read_text(), f"{name} does not say {text}")
        # A second one of that day, which has no costs: they need turns.
        archive(scratch / "part", "NVIDIA H200", without=["turns.jsonl", "report/report.md"])
        ended = run(scratch, scratch / "part")
        check(ended.returncode == 0 and "missing: what costs.txt is made of" in ended.stdout, ended.stdout + ended.stderr)
        second = record.with_name("2026-12-24-2")
        check(second.is_dir() and not (second / "costs.txt").exists(), "a second record of a day")
        archive(scratch / "software", "softcuda sm_90")
        check(run(scratch, scratch / "software").returncode == 1, "a record of the software device")


if __name__ == "__main__":
    main()
