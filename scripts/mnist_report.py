#!/usr/bin/env python3
"""Checks what scripts/mnist_pytorch.py ran, and makes its tables and plots.

    python scripts/mnist_report.py DIR   # needs matplotlib

Reads DIR/runs.jsonl or runs.jsonl.gz, writes DIR/report.md and curves, start and rates as .svg and
.png. Fails, and says where, unless
- at the start (steps 0 to 20) every test loss is PyTorch's within ROUNDING;
- over 100 steps the median seed is no further from PyTorch in f64 than AS_FAR times PyTorch's own in f32:
  where a ReLU's input is within rounding of 0, one seed goes another way and the next does not;
- at the end of every run that trains every accuracy is PyTorch's within a point, by both statistics;
- the largest learning rate that trains is the same, or the next one.
"""

import argparse
import collections
import gzip
import json
import statistics
import sys
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt

IMAGES = 10_000  # in the test set
START = 20
ROUNDING = 2e-6  # relative
AS_FAR = 10
POINT = 1.0
TRAINS = 90.0  # percent of the test images
OURS, THEIRS, EXACT = "batchnorm", "torch", "torch-f64"
NETWORKS = {True: "with", False: "without"}
# Okabe and Ito's, as in the plots of `train`.
COLOURS = {True: "#0072b2", False: "#d55e00"}


def read(folder):
    """Lines by run, activation, learning rate, normalization, seed and system."""
    plain, packed = folder / "runs.jsonl", folder / "runs.jsonl.gz"
    with plain.open() if plain.exists() else gzip.open(packed, "rt") as file:
        lines = [json.loads(line) for line in file]
    key = lambda line: tuple(line[k] for k in ["run", "activation", "learning_rate", "normalize", "seed"])
    runs = collections.defaultdict(dict)
    for line in lines:
        if "versions" not in line:
            runs[key(line)][line["system"]] = line
    return dict(sorted(runs.items(), key=lambda item: (*item[0][:3], not item[0][3], item[0][4])))


def group(runs, name):
    """By activation, learning rate and normalization: the systems' lines of every seed."""
    groups = collections.defaultdict(dict)
    for (run, *of, seed), systems in runs.items():
        if run == name:
            groups[tuple(of)][seed] = systems
    return groups


def distance(a, b, until=None):
    """The largest relative difference of two curves' losses; infinite where one has none."""
    pairs = [(p[1], q[1]) for p, q in zip(a["curve"], b["curve"], strict=True) if until is None or p[0] <= until]
    return max(abs(p - q) / q if p is not None and q is not None else float("inf") for p, q in pairs)


def accuracy(line, by_population=False):
    """In percent, at the end."""
    return line["population"][1] if by_population else 100 * line["curve"][-1][2] / IMAGES


def spread(values, digits=2):
    low, high = min(values), max(values)
    return f"{low:.{digits}f}" if low == high else f"{low:.{digits}f} to {high:.{digits}f}"


def table(head, rows):
    yield "| " + " | ".join(head) + " |"
    yield "|---" * len(head) + "|"
    yield from ("| " + " | ".join(map(str, row)) + " |" for row in rows)
    yield ""


def start(runs, failures):
    rows = []
    for (activation, rate, normalize), seeds in group(runs, "start").items():
        row = [activation, rate, NETWORKS[normalize]]
        between = lambda a, b, until=None: [distance(s[a], s[b], until) for s in seeds.values()]
        first = between(OURS, THEIRS, START)
        ours, theirs = between(OURS, EXACT), between(THEIRS, EXACT)
        at = f"start, {activation}, rate {rate}, {NETWORKS[normalize]}"
        for seed, near in zip(seeds, first, strict=True):
            if near > ROUNDING:
                failures.append(f"{at}, seed {seed}: {near:.1e} from PyTorch until step {START}")
        far, allowed = statistics.median(ours), statistics.median(theirs)
        if far > AS_FAR * allowed:
            failures.append(f"{at}: {far:.1e} from f64, PyTorch {allowed:.1e}")
        rows.append([*row, f"{max(first):.1e}"])
        for values in [ours, theirs]:
            rows[-1] += [f"{statistics.median(values):.1e} ({max(values):.1e})"]
    yield f"## The first 100 steps, seeds {', '.join(map(str, seeds))}\n"
    yield (
        "Largest relative difference of the test loss, tested every 5 steps; "
        "median over the seeds, and in brackets the largest.\n"
    )
    head = ["activation", "rate", "batch normalization", f"here from PyTorch, steps 0 to {START} (largest)"]
    yield from table([*head, "here from PyTorch in f64, to step 100", "PyTorch in f32 from that in f64"], rows)


def ends(runs, failures):
    rows = []
    for (activation, rate, normalize), seeds in group(runs, "curves").items():
        for by_population in [False, True] if normalize else [False]:
            ours, theirs = ([accuracy(s[system], by_population) for s in seeds.values()] for system in (OURS, THEIRS))
            rule = ["moving", "population"][by_population] if normalize else "-"
            for seed, a, b in zip(seeds, ours, theirs, strict=True):
                if max(a, b) >= TRAINS and abs(a - b) > POINT:
                    failures.append(
                        f"end, {activation}, rate {rate}, {NETWORKS[normalize]}, {rule}, seed {seed}: {a:.2f} %, PyTorch {b:.2f} %"
                    )
            apart = [a - b for a, b in zip(ours, theirs, strict=True)]
            means = [f"{statistics.mean(values):.2f} ({spread(values)})" for values in (ours, theirs)]
            largest = max(apart, key=abs)
            rows.append(
                [
                    activation,
                    rate,
                    NETWORKS[normalize],
                    rule,
                    *means,
                    f"{statistics.mean(apart):+.2f}",
                    f"{largest:+.2f}",
                ]
            )
    yield f"## After 5,000 steps, seeds {', '.join(map(str, seeds))}\n"
    yield (
        "Test accuracy in percent: the mean over the seeds, and their range; differences in points, here less PyTorch. "
        "Here, by population statistics, it is rounded to 0.1.\n"
    )
    head = ["activation", "rate", "batch normalization", "statistics", "here", "PyTorch"]
    yield from table([*head, "mean difference", "largest of a seed"], rows)


def largest_rates(runs):
    """By activation, normalization and system: the largest rate of the search at which all seeds train."""
    best = {}
    for (activation, rate, normalize), seeds in group(runs, "rates").items():
        for system in (OURS, THEIRS):
            best.setdefault((activation, normalize, system), 0)
            if all(accuracy(s[system]) >= TRAINS for s in seeds.values()):
                best[activation, normalize, system] = rate
    return best


def rates(runs, failures):
    rows, best = [], largest_rates(runs)
    for (activation, rate, normalize), seeds in group(runs, "rates").items():
        cells = [spread([accuracy(s[system]) for s in seeds.values()]) for system in (OURS, THEIRS)]
        rows.append([activation, NETWORKS[normalize], rate, *cells])
    rows.sort(key=lambda row: row[:2])
    yield f"## The largest learning rate that trains, seeds {', '.join(map(str, seeds))}\n"
    yield f"It trains where after 1,000 steps at least {TRAINS:.0f} % of the test images are right, in every seed.\n"
    summary = []
    for (activation, normalize, system), ours in best.items():
        if system == OURS:
            theirs = best[activation, normalize, THEIRS]
            summary.append([activation, NETWORKS[normalize], ours, theirs])
            if not ours / 2 <= theirs <= 2 * ours:
                failures.append(f"largest rate, {activation}, {NETWORKS[normalize]}: {ours}, PyTorch {theirs}")
    yield from table(["activation", "batch normalization", "here", "PyTorch"], summary)
    yield "Test accuracy in percent after 1,000 steps, over the seeds; 0 where what comes out are no numbers:\n"
    yield from table(["activation", "batch normalization", "rate", "here", "PyTorch"], rows)


def grid(columns):
    figure, axes = plt.subplots(1, columns, figsize=(4.2 * columns, 3.6), squeeze=False, layout="constrained")
    for axis in axes[0]:
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes[0]


def legend(figure, axes):
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", title="batch normalization")
    return figure


STYLES = {OURS: dict(linewidth=1.6), THEIRS: dict(linewidth=1.2, linestyle=(0, (2, 1.5)), color="black")}


def lines(axis, normalize, system, x, seeds):
    """The mean over the seeds, and their range as a band."""
    label = f"{NETWORKS[normalize]}, {dict(batchnorm='here', torch='PyTorch')[system]}"
    style = dict(color=COLOURS[normalize]) | STYLES[system]
    columns = list(zip(*seeds, strict=True))
    axis.plot(x, [statistics.mean(c) for c in columns], label=label, **style)
    if system == OURS:
        axis.fill_between(
            x, *zip(*((min(c), max(c)) for c in columns)), color=COLOURS[normalize], alpha=0.18, linewidth=0
        )


def plot_curves(runs):
    groups = group(runs, "curves")
    panels = sorted({of[:2] for of in groups}, reverse=True)
    figure, axes = grid(len(panels))
    for axis, panel in zip(axes, panels, strict=True):
        axis.set(title=f"{panel[0]}, learning rate {panel[1]:g}", xlabel="training steps", ylim=(80, 100))
        for (*of, normalize), seeds in groups.items():
            for system in (OURS, THEIRS) if tuple(of) == panel else ():
                curves = [s[system]["curve"] for s in seeds.values()]
                lines(
                    axis,
                    normalize,
                    system,
                    [p[0] for p in curves[0]],
                    [[p[2] / IMAGES * 100 for p in c] for c in curves],
                )
    axes[0].set_ylabel("test accuracy (%)")
    return legend(figure, axes)


def plot_start(runs):
    groups = group(runs, "start")
    panels = sorted({of[0] for of in groups}, reverse=True)
    figure, axes = grid(len(panels))
    for axis, activation in zip(axes, panels, strict=True):
        axis.set(title=activation, xlabel="training steps", yscale="log")
        for (of, _, normalize), seeds in groups.items():
            for system in (OURS, THEIRS) if of == activation else ():
                label = f"{NETWORKS[normalize]}, {dict(batchnorm='here', torch='PyTorch f32')[system]}"
                style = dict(color=COLOURS[normalize], linestyle="-" if system == OURS else "--")
                for s in seeds.values():
                    pairs = zip(s[system]["curve"], s[EXACT]["curve"], strict=True)
                    points = [(p[0], max(abs(p[1] - q[1]) / q[1], 1e-9)) for p, q in pairs]
                    axis.plot(*zip(*points), label=label, linewidth=0.8, alpha=0.8, **style)
                    label = None
    axes[0].set_ylabel("test loss: relative distance\nfrom PyTorch in f64")
    return legend(figure, axes)


def plot_rates(runs):
    groups = group(runs, "rates")
    panels = sorted({of[0] for of in groups}, reverse=True)
    figure, axes = grid(len(panels))
    for axis, activation in zip(axes, panels, strict=True):
        axis.set(title=f"{activation}, after 1,000 steps", xlabel="learning rate", ylim=(0, 100))
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:g}")
        axis.axhline(TRAINS, color="gray", linewidth=0.8, linestyle=":")
        for normalize in (True, False):
            found = {of[1]: s for of, s in groups.items() if of[0] == activation and of[2] == normalize}
            for system in (OURS, THEIRS):
                by_rate = [[accuracy(s[system]) for s in seeds.values()] for seeds in found.values()]
                lines(axis, normalize, system, list(found), list(zip(*by_rate, strict=True)))
    axes[0].set_ylabel("test accuracy (%)")
    return legend(figure, axes)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR")
    folder = parser.parse_args().folder
    runs = read(folder)
    for name in ("start", "curves", "rates"):
        if len({tuple(seeds) for seeds in group(runs, name).values()}) != 1:
            sys.exit(f"{folder}: expected runs of {name}, of the same seeds for all; mnist_pytorch.py goes on")
    failures, text = [], []
    for part in (start, ends, rates):
        text += part(runs, failures)
    outside = [f"Outside of what is stated: {len(failures)}", *(f"- {failure}" for failure in failures)]
    (folder / "report.md").write_text("\n".join(["# MNIST beside PyTorch\n", *outside, "", *text]).rstrip() + "\n")
    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "mnist", "font.size": 9})
    for name, plot in dict(curves=plot_curves, start=plot_start, rates=plot_rates).items():
        figure = plot(runs)
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
        figure.savefig(folder / f"{name}.png", dpi=110)
    print("\n".join(outside))
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
