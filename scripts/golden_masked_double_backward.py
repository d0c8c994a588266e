"""Writes golden cases of kind `double_backward` by a mask, of which torch's autograd makes everything.

    python scripts/golden_masked_double_backward.py tests/golden/frameworks

Needs torch, numpy and safetensors.
"""

import json
import os
import sys

import numpy as np
import torch
from safetensors.numpy import save_file

# name: dims, channel axis, whether the mask is without the last axis instead of the channels, what is added to the count
CASES = {
    "double_backward_masked_ncl": ([4, 3, 6], 1, False, 0.0),
    "double_backward_masked_nlc": ([4, 5, 3], 2, False, 0.0),
    "double_backward_masked_keras": ([4, 5, 3], 2, True, 1e-7),
    "double_backward_masked_large_count": ([5, 2, 4], 1, True, 0.25),
}
EPS = 1e-3


def forward(x, weight, bias, kept, axis, mask_eps):
    """Normalizes all values by the statistics of those that are kept, and a SiLU."""
    others = [k for k in range(x.ndim) if k != axis]
    along = [1] * x.ndim
    along[axis] = -1
    count = kept.sum(others, keepdim=True) + mask_eps
    mean = (x * kept).sum(others, keepdim=True) / count
    var = (kept * (x - mean) ** 2).sum(others, keepdim=True) / count
    z = (x - mean) / torch.sqrt(var + EPS) * weight.reshape(along) + bias.reshape(along)
    return torch.nn.functional.silu(z)


def main():
    for seed, (name, (dims, axis, without_last, mask_eps)) in enumerate(CASES.items()):
        random = np.random.default_rng(seed)
        normal = lambda *dims: torch.tensor(random.standard_normal(dims))
        channels = dims[axis]
        x, grad_y, v_x = [normal(*dims) for _ in range(3)]
        x = 1.5 * x + 3
        weight, bias, v_weight, v_bias = [normal(channels) for _ in range(4)]
        of_mask = [d for k, d in enumerate(dims) if k != (len(dims) - 1 if without_last else axis)]
        mask = torch.tensor((random.random(of_mask) < 0.6).astype(np.float64))
        kept = mask.unsqueeze(-1 if without_last else axis).expand(dims)
        given = [x, grad_y, weight, bias]
        for tensor in given:
            tensor.requires_grad_()
        y = forward(x, weight, bias, kept, axis, mask_eps)
        grads = torch.autograd.grad(y, [x, weight, bias], grad_y, create_graph=True)
        loss = sum((v * grad).sum() for v, grad in zip([v_x, v_weight, v_bias], grads))
        doubled = torch.autograd.grad(loss, given)
        tensors = {"x": x, "grad_y": grad_y, "weight": weight, "bias": bias, "mask": mask, "y": y}
        tensors |= {"v_x": v_x, "v_weight": v_weight, "v_bias": v_bias}
        tensors |= dict(zip(["grad_x", "grad_weight", "grad_bias"], grads))
        tensors |= dict(zip(["gg_x", "gg_grad_y", "gg_weight", "gg_bias"], doubled))
        tensors |= {"running_mean": torch.zeros(channels).double(), "running_var": torch.ones(channels).double()}
        metadata = {
            "kind": "double_backward",
            "dtype": "f64",
            "axis": axis,
            "eps": EPS,
            "activation": "silu",
            "training": True,
            "mask_without_last": without_last,
            "mask_eps": mask_eps,
            "torch": torch.__version__,
        }
        text = {key: json.dumps(value) for key, value in metadata.items()}
        arrays = {key: np.ascontiguousarray(value.detach().numpy()) for key, value in tensors.items()}
        save_file(arrays, os.path.join(sys.argv[1], f"{name}.safetensors"), text)


main()
