#!/usr/bin/env python3
"""Makes the files of formats/tests/data that are named more_*, by PyTorch and Keras themselves.

    pip install torch keras jax h5py
    python scripts/formats_fixtures.py formats/tests/data

Of the layer that is made n-th, counted from 1, the i-th weight is n + i/8, the bias -n - i/8, the running
mean 2n + i/8 and the running variance 3n + i/8, as far as it has them.
"""

import os
import sys
from pathlib import Path

os.environ["KERAS_BACKEND"] = "jax"

import numpy as np


def numbers(n, channels):
    step = np.arange(channels) / 8
    return n + step, -n - step, 2 * n + step, 3 * n + step


def torch_files(folder):
    import torch

    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3), torch.nn.BatchNorm1d(3, affine=False))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(2, 2)).sum().backward()
    optimizer.step()
    for n, layer in enumerate([model[1], model[2]], 1):
        state = dict(zip(["weight", "bias", "running_mean", "running_var"], numbers(n, 3)))
        for name, values in state.items():
            if getattr(layer, name) is not None:
                getattr(layer, name).data = torch.tensor(values, dtype=torch.float32)
    # As training scripts save it, and what is refused.
    checkpoint = {"state_dict": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3, "best": None}
    torch.save(checkpoint | {"losses": [1.5, 2.5], "shape": torch.Size([2, 2])}, folder / "more_checkpoint.pt")
    torch.save(model.state_dict(), folder / "more_protocol_4.pt", pickle_protocol=4)
    torch.save(model.state_dict(), folder / "more_before_1_6.pt", _use_new_zipfile_serialization=False)
    torch.save(model, folder / "more_module.pt")


def keras_files(folder):
    import keras

    def norm(**options):
        return keras.layers.BatchNormalization(epsilon=0.25, momentum=0.5, **options)

    def fill(layers):
        for n, layer in enumerate(layers, 1):
            gamma, beta, *statistics = numbers(n, layer.moving_mean.shape[0])
            layer.set_weights([gamma] * layer.scale + [beta] * layer.center + statistics)

    # Models in a model, with names that are there more than once.
    first = keras.Sequential([keras.Input((4,)), norm(name="bn"), keras.layers.Dense(3), norm(name="last", scale=False)], name="block")
    second = keras.Sequential([keras.Input((3,)), norm(name="bn", center=False)], name="block2")
    model = keras.Sequential([keras.Input((4,)), first, second, norm(name="bn")], name="outer")
    fill([first.layers[0], first.layers[2], second.layers[0], model.layers[2]])
    for name in ["more_nested.keras", "more_nested.h5"]:
        model.save(folder / name)
    model.save_weights(folder / "more_nested.weights.h5")

    # Twelve: names in the order of their numbers, not of their letters.
    model = keras.Sequential([keras.Input((1,)), *[norm(name=f"bn{i}") for i in range(12)]], name="many")
    fill(model.layers)
    model.save_weights(folder / "more_many.weights.h5")

    for dtype in ["float16", "bfloat16"]:
        model = keras.Sequential([keras.Input((2,)), norm(name="bn", dtype=dtype)], name="half")
        fill(model.layers)
        model.save_weights(folder / f"more_{dtype}.weights.h5")


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    torch_files(folder)
    keras_files(folder)
