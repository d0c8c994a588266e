#!/usr/bin/env python3
"""Makes golden cases: batch normalization by PyTorch in float64, one safetensors file per case.

    python scripts/golden.py --out tests/golden --set standard
    python scripts/golden.py --out /tmp/extra --set extra
    python scripts/golden.py --out /tmp --shape 8 6 5 5 --dtype f16 --activation relu --residual

tests/golden/README.md describes the format. Inputs are drawn in float64 and rounded to the case's
dtype; everything after that is float64 on the rounded inputs. Needs torch and safetensors.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

F64 = torch.float64
DTYPES = {"f64": F64, "f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


ACTIVATIONS = {
    "identity": lambda z, case: z,
    "relu": lambda z, case: F.relu(z),
    "leaky_relu": lambda z, case: F.leaky_relu(z, case.negative_slope),
    "relu6": lambda z, case: F.relu6(z),
    "silu": lambda z, case: F.silu(z),
    "hardswish": lambda z, case: F.hardswish(z),
    "gelu": lambda z, case: F.gelu(z),
}


@dataclass
class Case:
    """What is asked for; `seed` decides the numbers."""

    name: str
    shape: tuple
    axis: int = 1
    dtype: str = "f32"
    activation: str = "identity"
    negative_slope: float = 0.01
    residual: bool = False
    eps: float = 1e-5
    momentum: float = 0.1
    mean: float = 0.0
    std: float = 1.0
    constant_channel: int | None = None  # this channel holds `mean` + 3.25 everywhere
    running_at_mean: bool = False  # running statistics near those of x, not near 0 and 1
    weight_scale: float = 1.0  # 0: no weight
    bias_scale: float = 1.0  # 0: no bias
    grad_scale: float = 1.0
    seed: int = 0


def inputs(case):
    """The tensors that a step starts from, as they are stored."""
    generator = torch.Generator().manual_seed(case.seed)
    normal = lambda shape: torch.randn(shape, dtype=F64, generator=generator)
    uniform = lambda shape: torch.rand(shape, dtype=F64, generator=generator)
    dtype = DTYPES[case.dtype]
    parameters = F64 if dtype == F64 else torch.float32
    channels = case.shape[case.axis]

    x = case.mean + case.std * normal(case.shape)
    if case.constant_channel is not None:
        x.select(case.axis, case.constant_channel).fill_(case.mean + 3.25)
    tensors = {"x": x.to(dtype), "grad_y": (case.grad_scale * normal(case.shape)).to(dtype)}
    if case.residual:
        tensors["residual"] = normal(case.shape).to(dtype)
    weight = case.weight_scale * (uniform(channels) * 2 - 0.5)
    bias = case.bias_scale * normal(channels)
    if case.weight_scale:
        tensors["weight"] = weight.to(parameters)
    if case.bias_scale:
        tensors["bias"] = bias.to(parameters)
    tensors["running_mean"] = normal(channels) * 0.5
    tensors["running_var"] = uniform(channels) + 0.5
    if case.running_at_mean:
        tensors["running_mean"] = case.mean + case.std * tensors["running_mean"]
        tensors["running_var"] = case.std**2 * tensors["running_var"]
    return tensors


def step(case, given, training):
    """One forward and backward in float64: the computed tensors by name, and running statistics."""
    # Copies: what is float64 already must not share its gradient with another step.
    leaf = lambda name: given[name].to(F64, copy=True).requires_grad_() if name in given else None
    x, residual, weight, bias = map(leaf, ["x", "residual", "weight", "bias"])
    # Channels second, densely: PyTorch's channels-last sums lose digits.
    moved = x.unsqueeze(0) if case.axis == 0 else x
    axis = max(case.axis, 1)
    moved = moved.movedim(axis, 1).contiguous()
    # Less a constant per channel, which changes nothing but PyTorch's rounding at large means: in
    # float64 at mean 1e8 it is off by ten times what one rounding of the mean costs.
    first = moved.detach()[0].flatten(1)[:, 0] if moved.dim() > 2 else moved.detach()[0]
    mean, var = given["running_mean"] - first, given["running_var"].clone()
    centered = moved - first.reshape(-1, *[1] * (moved.dim() - 2))
    y = F.batch_norm(centered, mean, var, weight, bias, training, case.momentum, case.eps)
    y = y.movedim(1, axis).reshape(case.shape)
    if residual is not None:
        y = y + residual
    y = ACTIVATIONS[case.activation](y, case)
    y.backward(given["grad_y"].to(F64))
    leaves = {"x": x, "residual": residual, "weight": weight, "bias": bias}
    computed = {"y": y.detach()}
    computed |= {f"grad_{name}": t.grad for name, t in leaves.items() if t is not None}
    return computed, mean + first, var


def compute(case):
    """All tensors of the case's file."""
    tensors = inputs(case)
    training, running_mean, running_var = step(case, tensors, True)
    frozen, _, _ = step(case, tensors, False)
    tensors |= training | {f"{name}_eval": t for name, t in frozen.items()}
    channels = tensors["x"].to(F64).movedim(case.axis, 0).reshape(case.shape[case.axis], -1)
    # Counted from the first value, so that large means cost no digits.
    first = channels[:, :1]
    tensors["batch_mean"] = (first + (channels - first).mean(1, keepdim=True)).squeeze(1)
    tensors["batch_var"] = (channels - first).var(1, correction=0)
    tensors["new_running_mean"], tensors["new_running_var"] = running_mean, running_var
    return tensors


def save(case, folder):
    metadata = {
        "axis": str(case.axis),
        "eps": str(case.eps),
        "momentum": str(case.momentum),
        "activation": case.activation,
        "dtype": case.dtype,
        **({"negative_slope": str(case.negative_slope)} if case.activation == "leaky_relu" else {}),
        "torch": torch.__version__,
    }
    tensors = {name: t.contiguous() for name, t in compute(case).items()}
    save_file(tensors, folder / f"{case.name}.safetensors", metadata)


def standard():
    """One case per layout, dtype and epilogue, and those that naive variances fail."""
    return [
        Case("nc_f32", (16, 8), seed=100),
        Case("ncl_f32_relu", (4, 6, 10), activation="relu", seed=101),
        Case("nchw_f32", (4, 5, 7, 6), seed=102),
        Case("nchw_f64", (3, 4, 5, 5), dtype="f64", seed=103),
        Case("nhwc_f32_relu", (4, 7, 6, 8), 3, activation="relu", seed=104),
        Case("nhwc_f16_add_relu", (4, 4, 4, 16), 3, "f16", "relu", True, seed=105),
        Case("nchw_bf16_relu", (4, 8, 6, 6), dtype="bf16", activation="relu", seed=106),
        Case("ncdhw_f32", (2, 3, 4, 5, 6), seed=107),
        Case("nchw_f32_large_mean", (8, 3, 9, 9), mean=1e4, seed=108),
        Case("nchw_f32_constant_channel", (4, 3, 5, 5), constant_channel=1, seed=109),
        Case(
            "nchw_f16_eps1e-3_momentum0.01", (4, 8, 6, 6), dtype="f16", eps=1e-3, momentum=0.01,
            seed=110,
        ),
        Case("middle_axis_f32", (3, 4, 5, 6), 2, seed=111),
    ]


def extra():
    """Ranks, axes, tails, and the edges of every dtype."""
    relu, both = {"activation": "relu"}, {"activation": "relu", "residual": True}
    cases = []

    def add(name, shape, axis=1, dtype="f32", **options):
        cases.append(Case(name, shape, axis, dtype, seed=1000 + len(cases), **options))

    # Ranks and axes. On axis 0 there is no batch: C x L.
    for dtype in DTYPES:
        add(f"unbatched_cl_{dtype}", (5, 40), 0, dtype, **relu)
        add(f"nc_{dtype}_pairs", (2, 70), 1, dtype, residual=True)  # per activation: N x CHW
        add(f"rank5_last_axis_{dtype}", (2, 3, 2, 5, 7), 4, dtype, **both)
        add(f"rank5_middle_axis_{dtype}", (3, 2, 6, 3, 4), 2, dtype, **both)
        add(f"rank4_axis0_{dtype}", (6, 3, 5, 4), 0, dtype)
        add(f"rank6_{dtype}", (2, 3, 2, 3, 2, 3), 3, dtype, **relu)
        add(f"no_weight_{dtype}", (4, 3, 9), 1, dtype, weight_scale=0, **relu)
        add(f"no_bias_{dtype}", (4, 9, 3), 2, dtype, bias_scale=0)
        add(f"no_parameters_{dtype}", (4, 3, 9), 1, dtype, weight_scale=0, bias_scale=0, **both)
    # Channel counts that leave a tail behind every width.
    for channels in (1, 3, 35, 67):
        for dtype in DTYPES:
            add(f"nchw_c{channels}_{dtype}", (5, channels, 5, 3), 1, dtype, **both)
            add(f"nhwc_c{channels}_{dtype}", (5, 5, 3, channels), 3, dtype, **both)
    # Many values per channel.
    for dtype in DTYPES:
        add(f"big_nchw_{dtype}", (33, 17, 29, 31), 1, dtype, **relu)
    add("big_nhwc_f32", (33, 29, 31, 17), 3, residual=True)
    add("big_nhwc_bf16", (33, 29, 31, 17), 3, "bf16", **both)
    # The edges of f16: sums of squares far beyond it, outputs beyond it, outputs below it.
    add("f16_x_near_overflow", (6, 6, 5, 5), 1, "f16", mean=3e4, std=8e3, **relu)
    add("f16_y_overflows", (6, 6, 5, 5), 1, "f16", weight_scale=6e4, **both)
    add("f16_grad_x_overflows", (6, 6, 5, 5), 1, "f16", weight_scale=1e3, grad_scale=1e2)
    for dtype, tiny in (("f16", 1e-7), ("f16", 2e-8), ("bf16", 1e-40), ("f32", 1e-44)):
        add(
            f"{dtype}_y_underflows_{tiny:g}", (6, 6, 5, 5), 1, dtype,
            weight_scale=tiny, bias_scale=tiny, **relu,
        )
    add("f16_x_subnormal", (6, 6, 5, 5), 1, "f16", std=1e-6, **relu)
    add("bf16_huge", (6, 6, 5, 5), 1, "bf16", mean=1e18, std=1e17, **relu)
    add("f32_huge", (6, 6, 5, 5), 1, "f32", mean=1e18, std=1e18, **relu)
    # Large means: what a naive variance fails. With running statistics there, too.
    large = [("f32", 1e4, 1.0), ("f32", 1e4, 1e-1), ("f32", 1e6, 1.0), ("f32", 1e6, 100.0)]
    large += [("f32", 1e8, 100.0), ("f64", 1e4, 1.0), ("f64", 1e6, 1.0), ("f64", 1e8, 1.0)]
    large += [("f64", 1e8, 1e-3), ("f16", 1e4, 100.0), ("bf16", 1e4, 1e3), ("bf16", 1e8, 1e7)]
    for dtype, mean, std in large:
        for layout, shape, axis in (("nchw", (8, 5, 9, 9), 1), ("nhwc", (8, 9, 9, 5), 3)):
            add(
                f"{layout}_{dtype}_mean{mean:g}_std{std:g}", shape, axis, dtype,
                mean=mean, std=std, running_at_mean=True, **relu,
            )
    # A constant channel's variance is exactly 0, its y exactly the bias.
    for dtype in DTYPES:
        for mean in (0.0, 1e4):
            options = {"mean": mean, "constant_channel": 2, "running_at_mean": True}
            add(f"constant_nchw_{dtype}_mean{mean:g}", (4, 5, 6, 6), 1, dtype, **options)
            add(f"constant_nhwc_{dtype}_mean{mean:g}", (4, 6, 6, 5), 3, dtype, **options)
    # What the step is told.
    for dtype in ("f64", "f32", "f16"):
        for momentum in (0.0, 1.0):
            add(f"momentum{momentum:g}_{dtype}", (4, 5, 6), 1, dtype, momentum=momentum)
        for eps in (1e-3, 1e-12, 10.0):
            add(f"eps{eps:g}_{dtype}", (4, 6, 5), 2, dtype, eps=eps, **relu)
            add(f"eps{eps:g}_small_std_{dtype}", (4, 6, 5), 2, dtype, eps=eps, std=1e-4)
    # Two values per channel: the terms of grad_x cancel but for eps / (var + eps) of them.
    for dtype in ("f64", "f32"):
        options = {"eps": 1e-12, "std": 1e-3}
        add(f"nc_{dtype}_pairs_cancel", (2, 12), 1, dtype, **options)
    add("nchw_bf16_add", (4, 6, 5, 5), 1, "bf16", residual=True)
    return cases


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--set", choices=["standard", "extra"], help="a whole set of cases")
    parser.add_argument("--name", default="case", help="the file's name, without .safetensors")
    parser.add_argument("--shape", type=int, nargs="+", default=[4, 8, 6, 6])
    parser.add_argument("--axis", type=int, default=1, help="channel axis")
    parser.add_argument("--dtype", choices=DTYPES, default="f32")
    parser.add_argument("--activation", choices=ACTIVATIONS, default="identity")
    parser.add_argument("--negative-slope", type=float, default=0.01, help="of leaky_relu")
    parser.add_argument("--residual", action="store_true", help="added before the activation")
    parser.add_argument("--eps", type=float, default=1e-5)
    parser.add_argument("--momentum", type=float, default=0.1, help="weight of the new value")
    parser.add_argument("--mean", type=float, default=0.0, help="of x")
    parser.add_argument("--std", type=float, default=1.0, help="of x")
    parser.add_argument("--constant-channel", type=int, help="this channel is constant")
    parser.add_argument("--running-at-mean", action="store_true", help="running ~ those of x")
    parser.add_argument("--weight-scale", type=float, default=1.0, help="0: no weight")
    parser.add_argument("--bias-scale", type=float, default=1.0, help="0: no bias")
    parser.add_argument("--grad-scale", type=float, default=1.0, help="of grad_y")
    parser.add_argument("--seed", type=int, default=0)
    arguments = vars(parser.parse_args())
    folder, chosen = arguments.pop("out"), arguments.pop("set")
    folder.mkdir(parents=True, exist_ok=True)
    arguments["shape"] = tuple(arguments["shape"])
    sets = {"standard": standard, "extra": extra, None: lambda: [Case(**arguments)]}
    cases = sets[chosen]()
    for case in cases:
        save(case, folder)
        print(folder / f"{case.name}.safetensors")


if __name__ == "__main__":
    main()
