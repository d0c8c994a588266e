#!/usr/bin/env python3
"""Times PyTorch over the table of the `speed` example and writes the same JSON lines.

    python scripts/bench_pytorch.py --device cpu --threads 2 > pytorch.jsonl
    python scripts/bench_pytorch.py --device cuda --compile --filter "bwd nhwc" > pytorch.jsonl
    cargo run --release -p examples --bin report -- ours.jsonl pytorch.jsonl --out report

The cases are those of benches/table/table.json, the data those of benches/table/data.rs, so that
`check` (sums of absolute values) must be what `speed --json` writes. Peers are torch-eager-DEVICE,
with --compile also torch-compile-DEVICE, and floors, which only move as much memory. On a CUDA
device times are those of events, each run behind reads that sweep the L2 cache; threads is 0.
Needs torch and numpy.
"""

import argparse
import json
import random
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

TABLE = Path(__file__).parent.parent / "benches" / "table" / "table.json"
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
SEEDS = {"x": 1, "grad_y": 7, "residual": 13}
TURN = 0.06  # seconds of timed work


def values(n, seed):
    """Element i in N, C, ... order, as benches/table/data.rs has it."""
    h = np.arange(n, dtype=np.uint32)
    h += np.uint32(seed)
    h *= np.uint32(2654435761)
    h ^= h >> np.uint32(15)
    h *= np.uint32(2246822519)
    h >>= np.uint32(8)
    return h.astype(np.float32) * np.float32(4.0 / 16777216.0) - np.float32(1.5)


def tensor(case, name, device):
    shape = case["shape"]
    data = torch.from_numpy(values(int(np.prod(shape)), SEEDS[name])).reshape(shape)
    data = data.to(device=device, dtype=DTYPES[case["dtype"]])
    if case["layout"] != "nhwc":
        return data.contiguous()
    last = (0, *range(2, len(shape)), 1)
    first = (0, len(shape) - 1, *range(1, len(shape) - 1))
    return data.permute(last).contiguous().permute(first)


def cases(words, quick, large=False):
    table = json.loads(TABLE.read_text())
    table = table["large"] if large else table
    for row in table["shapes"]:
        if quick and not row.get("quick"):
            continue
        for dtype in ["f32"] if quick else row["dtypes"]:
            for layout in row["layouts"]:
                for op in table["ops"]:
                    case = dict(op=op, shape=row["shape"], layout=layout, dtype=dtype)
                    parts = [op, "x".join(map(str, row["shape"])), layout, dtype]
                    if all(any(word in part for part in parts) for word in words):
                        yield case


class Clock:
    """Seconds of one run: on the host by its clock, on a CUDA device between two events."""

    def __init__(self, device):
        self.cuda = device == "cuda"
        if self.cuda:
            properties = torch.cuda.get_device_properties(0)
            cache = max(getattr(properties, "L2_cache_size", 0), 32 << 20)
            self.sweep = torch.zeros(cache // 2, dtype=torch.float32, device=device)

    def __call__(self, run):
        if not self.cuda:
            start = time.perf_counter()
            result = run()
            seconds = time.perf_counter() - start
            del result  # freeing is not what is timed
            return seconds
        # By reading: what is written would be on its way to memory while the run is timed.
        self.sweep.max()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        # Long enough for the host to have everything launched when the device begins.
        torch.cuda._sleep(500_000)
        start.record()
        result = run()
        end.record()
        torch.cuda.synchronize()
        del result
        return start.elapsed_time(end) * 1e-3


def layer(x, weight, bias, mean, var, residual, training, relu):
    y = F.batch_norm(x, mean, var, weight, bias, training, 0.1, 1e-5)
    if residual is not None:
        y = y + residual
    return F.relu(y) if relu else y


def total(value):
    return float(value.detach().abs().sum(dtype=torch.float64))


def peer(case, device, function):
    """What to time, and the sums of what it computes."""
    op, c = case["op"], case["shape"][1]
    index = torch.arange(c, dtype=torch.float64)
    weight = (0.5 + (index % 7) / 7.0).float().to(device)
    bias = ((index % 5) / 5.0 - 0.3).float().to(device)
    mean, var = torch.zeros(c, device=device), torch.ones(c, device=device)
    x, relu = tensor(case, "x", device), "relu" in op
    residual = tensor(case, "residual", device) if "add" in op else None
    if op == "infer":

        def run():
            with torch.no_grad():
                return function(x, weight, bias, mean, var, residual, False, relu)

        return run, [total(run())]
    inputs = [v for v in (x, weight, bias, residual) if v is not None]
    for value in inputs:
        value.requires_grad_(True)

    def forward():
        return function(x, weight, bias, mean, var, residual, True, relu)

    if not op.startswith("bwd"):
        return forward, [total(forward())]
    y, grad_y = forward(), tensor(case, "grad_y", device)

    def backward():
        return torch.autograd.grad(y, inputs, grad_y, retain_graph=True)

    return backward, [total(gradient) for gradient in backward()[:3]]


def floor(case, device):
    """What moves as much memory as the operation must, and its name."""
    n = int(np.prod(case["shape"])) * DTYPES[case["dtype"]].itemsize // 4
    x, y, z, w = (torch.ones(n, device=device) for _ in range(4))

    def copy():
        z.copy_(x)

    def add():
        torch.add(x, y, out=z)

    def both():
        torch.add(x, y, out=z)
        w.copy_(y)

    if case["op"].startswith("bwd"):
        # PyTorch has no one operation for two outputs: `both` reads y once more than it must.
        return ("floor:add_2R2W", both) if "add" in case["op"] else ("floor:add_2R1W", add)
    return ("floor:add_2R1W", add) if "add" in case["op"] else ("floor:copy_1R1W", copy)


def write(line):
    print(json.dumps(line), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], help="cuda where there is one")
    parser.add_argument("--threads", type=int, help="on the CPU")
    parser.add_argument("--filter", default="", help="words that a case's name must have")
    parser.add_argument("--quick", action="store_true", help="some shapes, f32")
    parser.add_argument("--large", action="store_true", help="the shapes of batches that fill a GPU instead")
    parser.add_argument("--rounds", type=int, default=3, help="turns per peer and case")
    parser.add_argument("--compile", action="store_true", help="also torch.compile")
    arguments = parser.parse_args()
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("--device cuda: this PyTorch sees no CUDA device")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    threads = 0 if device == "cuda" else torch.get_num_threads()
    version = f"torch {torch.__version__}"
    if device == "cuda":
        version += f", cuDNN {torch.backends.cudnn.version()}, {torch.cuda.get_device_name()}"
    names = ["eager", "compile"] if arguments.compile else ["eager"]
    names = [f"torch-{name}-{device}" for name in names]
    write({"versions": {name: version for name in names}, "threads": threads})
    clock, order = Clock(device), random.Random(1)
    chosen = list(cases(arguments.filter.split(), arguments.quick, arguments.large))
    if not chosen:
        sys.exit(f"no case has all of the words {arguments.filter!r}")
    for case in chosen:
        name, run = floor(case, device)
        peers = {name: (run, None)}
        for name in names:
            function = layer
            if "compile" in name:
                torch._dynamo.reset()
                function = torch.compile(layer, dynamic=False)
            try:
                peers[name] = peer(case, device, function)
            except RuntimeError as error:
                write({"peer": name, **case, "threads": threads, "error": str(error)[:200]})
        times = {name: [] for name in peers}
        for _ in range(arguments.rounds):
            turn = list(peers)
            order.shuffle(turn)
            for name in turn:
                run = peers[name][0]
                clock(run)
                n = max(1, min(200, int(TURN / max(clock(run), 1e-6))))
                times[name] += [clock(run) for _ in range(n)]
        for name, seconds in times.items():
            line = {"peer": name, **case, "threads": threads, "n": len(seconds)}
            line |= {"median_s": statistics.median(seconds), "min_s": min(seconds)}
            write(line | {"check": peers[name][1]})


if __name__ == "__main__":
    main()
