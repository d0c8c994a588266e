"""Writes golden cases of kind `optimizer` whose rules torch.optim does not have, or not by default.

    python scripts/golden_optimizers.py keras tests/golden/frameworks
    python scripts/golden_optimizers.py torch tests/golden/frameworks

Needs torch, or keras 3 with tensorflow (the one backend that keeps float64), numpy and safetensors. Keras rounds its
learning rate, momentum, betas and weight decay to float32: those here are exact there.
"""

import json
import os
import sys

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import numpy as np  # noqa: E402
from safetensors.numpy import save_file  # noqa: E402

# Both in one process do not load.
if sys.argv[1] == "keras":
    import keras
else:
    import torch

CHANNELS, RATES = 5, [0.125, 0.125, 0.03125, 0.5, 0.0078125, 0.25]
ADAM = {"betas": [0.875, 0.9990234375], "eps": 1e-7}
# Gradients that shrink: what AMSGrad keeps is greater than what it would forget.
SHORT = {"betas": [0.5, 0.25], "eps": 1e-3}
# name: (algorithm, options, weight decay, how each step's gradient is scaled)
CASES = {
    "keras_sgd": ("keras_sgd", {"momentum": 0.875, "nesterov": False}, 0.0, 1.0),
    "keras_sgd_plain": ("keras_sgd", {"momentum": 0.0, "nesterov": False}, 0.125, 1.0),
    "keras_sgd_nesterov_decay": ("keras_sgd", {"momentum": 0.75, "nesterov": True}, 0.0625, 1.0),
    "keras_adam": ("keras_adam", {**ADAM, "amsgrad": False}, 0.0, 1.0),
    "keras_adam_large_eps_decay": ("keras_adam", {**SHORT, "amsgrad": False}, 0.0625, 1.0),
    "keras_adam_amsgrad": ("keras_adam", {**SHORT, "amsgrad": True}, 0.0, 0.5),
    "adam_amsgrad_decay": ("adam", {**SHORT, "amsgrad": True}, 0.0625, 0.5),
    "adamw_amsgrad": ("adamw", {**SHORT, "amsgrad": True}, 0.0625, 0.5),
}


def by_keras(algorithm, options, decay, values, grads):
    """The values after each step, of a list of vectors."""
    decay = decay or None
    if algorithm == "keras_sgd":
        optimizer = keras.optimizers.SGD(RATES[0], weight_decay=decay, **options)
    else:
        (beta_1, beta_2), rest = options["betas"], {"epsilon": options["eps"], "amsgrad": options["amsgrad"]}
        optimizer = keras.optimizers.Adam(RATES[0], beta_1, beta_2, weight_decay=decay, **rest)
    variables = [keras.Variable(value, dtype="float64") for value in values]
    optimizer.build(variables)
    for rate, grad in zip(RATES, grads):
        optimizer.learning_rate = rate
        optimizer.apply([keras.ops.convert_to_tensor(g, dtype="float64") for g in grad], variables)
        yield [keras.ops.convert_to_numpy(variable) for variable in variables]


def by_torch(algorithm, options, decay, values, grads):
    parameters = [torch.nn.Parameter(torch.tensor(value)) for value in values]
    optimizer = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[algorithm](
        parameters, lr=RATES[0], weight_decay=decay, **options
    )
    for rate, grad in zip(RATES, grads):
        optimizer.param_groups[0]["lr"] = rate
        for parameter, g in zip(parameters, grad):
            parameter.grad = torch.tensor(g)
        optimizer.step()
        yield [parameter.detach().numpy().copy() for parameter in parameters]


def main():
    system, to = sys.argv[1:]
    for seed, (name, (algorithm, options, decay, scale)) in enumerate(CASES.items()):
        by = by_keras if algorithm.startswith("keras") else by_torch
        if by.__name__ != f"by_{system}":
            continue
        random = np.random.default_rng(seed)
        values = [1 + 0.5 * random.standard_normal(CHANNELS), random.standard_normal(CHANNELS)]
        grads = [[scale**i * random.standard_normal(CHANNELS) for _ in values] for i in range(len(RATES))]
        tensors = {"weight": values[0], "bias": values[1]}
        for i, (grad, after) in enumerate(zip(grads, by(algorithm, options, decay, values, grads))):
            for which, (of, grad_of) in enumerate([("weight", "grad_weight"), ("bias", "grad_bias")]):
                tensors[f"{grad_of}_{i}"] = grad[which]
                tensors[f"{of}_{i}"] = after[which]
        metadata = {
            "kind": "optimizer",
            "dtype": "f64",
            "algorithm": algorithm,
            "options": options,
            "lr": RATES,
            "steps": len(RATES),
            "weight_decay": decay,
            **{f"{of}_{what}_factor": 1.0 for of in ("weight", "bias") for what in ("lr", "decay")},
            "freeze_weight": False,
            "freeze_bias": False,
            "written_by": f"keras {keras.__version__}" if by is by_keras else f"torch {torch.__version__}",
        }
        text = {key: json.dumps(value) for key, value in metadata.items()}
        save_file(tensors, os.path.join(to, f"{name}.safetensors"), text)


main()
