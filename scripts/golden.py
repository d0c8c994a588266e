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


@dataclass
class Case:
    """What is asked for; `seed` decides the numbers."""

    name: str
    shape: tuple
    axis: int = 1
    dtype: str = "f32"
    activation: str = "identity"
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
    mean, var = given["running_mean"].clone(), given["running_var"].clone()
    # Channels second, densely: PyTorch's channels-last sums lose digits.
    moved = x.unsqueeze(0) if case.axis == 0 else x
    axis = max(case.axis, 1)
    moved = moved.movedim(axis, 1).contiguous()
    y = F.batch_norm(moved, mean, var, weight, bias, training, case.momentum, case.eps)
    y = y.movedim(1, axis).reshape(case.shape)
    if residual is not None:
        y = y + residual
    if case.activation == "relu":
        y = F.relu(y)
    y.backward(given["grad_y"].to(F64))
    leaves = {"x": x, "residual": residual, "weight": weight, "bias": bias}
    computed = {"y": y.detach()}
    computed |= {f"grad_{name}": t.grad for name, t in leaves.items() if t is not None}
    return computed, mean, var


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


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--set", choices=["standard", "extra"], help="a whole set of cases")
    parser.add_argument("--name", default="case", help="the file's name, without .safetensors")
    parser.add_argument("--shape", type=int, nargs="+", default=[4, 8, 6, 6])
    parser.add_argument("--axis", type=int, default=1, help="channel axis")
    parser.add_argument("--dtype", choices=DTYPES, default="f32")
    parser.add_argument("--activation", choices=["identity", "relu"], default="identity")
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
    sets = {"standard": standard, None: lambda: [Case(**arguments)]}
    cases = sets[chosen]()
    for case in cases:
        save(case, folder)
        print(folder / f"{case.name}.safetensors")


if __name__ == "__main__":
    main()
