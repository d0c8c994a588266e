#!/usr/bin/env python3
"""Reads what batchnorm-formats wrote by the systems' own libraries, and compares every number.

    pip install h5py numpy ml_dtypes safetensors msgpack onnx onnxruntime keras jax flax torch tensorflow-cpu
    pip install --no-deps tf_keras
    cargo run -p batchnorm-formats --example samples -- formats/tests/data OUT
    python scripts/check-formats.py OUT [--write formats/tests/READ_BY.md]

Files are given to as many readers as there are: the general one of the container (h5py, numpy, msgpack)
and the system itself, which loads them into a model of its own and, where that is meant, infers by it.
A library that is not installed is named as missing, and fails nothing. Ends with status 1 where a
number differs.
"""

import argparse
import importlib
import json
import os
import sys
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

NAMES = ["weight", "bias", "running_mean", "running_var"]
rows, missing, failures = [], {}, []


def version(name):
    """The module's version, or None where it is not installed."""
    try:
        module = importlib.import_module(name)
        return f"{name} {getattr(module, '__version__', '')}".strip()
    except ImportError as error:
        missing[name] = str(error)
        return None


def same(got, want, what):
    got = np.asarray(got, dtype=np.float64).reshape(-1)
    if got.shape != np.shape(want) or not np.array_equal(got, np.asarray(want)):
        raise AssertionError(f"{what}: got {got}, expected {want}")


def infer(layer, x, axis, eps):
    """y of a layer in f64."""
    shape = [1] * x.ndim
    shape[axis] = -1
    of = lambda name, default: np.reshape(layer[name] or [default], shape)
    return (x - of("running_mean", 0)) / np.sqrt(of("running_var", 1) + eps) * of("weight", 1) + of("bias", 0)


def close(got, want, what):
    error = np.max(np.abs(np.asarray(got, dtype=np.float64) - want)) / max(1, np.max(np.abs(want)))
    if not error <= 1e-5:
        raise AssertionError(f"{what}: inference differs by {error}")


def check(entry, reader, function):
    """Runs one reader over one file, and notes the outcome."""
    name = version(reader)
    if name is None:
        return
    try:
        shown = function()
    except Exception as error:  # the row says what went wrong
        failures.append(f"{entry['file']}: {name}: {error!r}")
        shown = f"**{type(error).__name__}**: {error}"
    rows.append((entry["file"], entry["what"], name, shown))


def present(layer, names=NAMES):
    return [layer[name] for name in names if layer[name] is not None]


# --- containers


def by_h5py(path, entry):
    import h5py

    with h5py.File(path) as file:
        for index, layer in enumerate(entry["layers"]):
            arrays = h5_arrays(file, path.name, layer, index)
            for got, want in zip(arrays, present(layer), strict=True):
                same(got, want, layer["name"])
    return "all arrays"


def h5_arrays(file, name, layer, index):
    """The arrays of a layer, by the layout that the name says."""
    if name.endswith(".weights.h5"):
        group = file["layers"]["batch_normalization" + (f"_{index}" if index else "")]["vars"]
        assert group.attrs["name"] == layer["name"]
        return [group[str(i)][()] for i in range(len(group))]
    root = file["model_weights"] if "model_weights" in file else file
    assert layer["name"] in list(map(str, root.attrs["layer_names"]))
    group = root[layer["name"]]
    return [group[str(name)][()] for name in group.attrs["weight_names"]]


def by_numpy(path, entry):
    arrays = np.load(path)
    (layer,) = entry["layers"]
    for key, want in zip(arrays.files, present(layer), strict=True):
        same(arrays[key], want, key)
    return "all arrays"


def by_safetensors(path, entry):
    import ml_dtypes  # noqa: F401, teaches NumPy bfloat16
    from safetensors.numpy import load_file

    arrays = load_file(path)
    for layer in entry["layers"]:
        for name in NAMES:
            key = f"{layer['name']}.{name}"
            assert (key in arrays) == (layer[name] is not None), key
            if key in arrays:
                same(arrays[key], layer[name], key)
    return "all arrays"


def by_msgpack(path, entry):
    import msgpack

    def array(code, data):
        assert code == 1
        shape, dtype, raw = msgpack.unpackb(data)
        return np.frombuffer(raw, dtype).reshape(shape)

    tree = msgpack.unpackb(path.read_bytes(), ext_hook=array)
    flax_arrays(tree, entry)
    return "all arrays"


def flax_arrays(tree, entry):
    for layer in entry["layers"]:
        params, stats = tree["params"].get(layer["name"], {}), tree["batch_stats"][layer["name"]]
        got = {"weight": params.get("scale"), "bias": params.get("bias"), "running_mean": stats["mean"], "running_var": stats["var"]}
        for name in NAMES:
            assert (got[name] is None) == (layer[name] is None), name
            if got[name] is not None:
                same(got[name], layer[name], name)


# --- systems


def by_torch(path, entry):
    import torch

    if path.suffix == ".pt":
        state = torch.load(path, weights_only=True)
    else:
        from safetensors.torch import load_file

        state = load_file(path)
    for layer in entry["layers"]:
        affine = layer["weight"] is not None
        bn = torch.nn.BatchNorm2d(len(layer["running_mean"]), affine=affine or layer["bias"] is not None)
        if not affine and layer["bias"] is not None:
            bn.weight = None  # what `bias=` without `affine` would be
        prefix = layer["name"] + "."
        own = {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
        bn.to(next(value.dtype for value in own.values() if value.is_floating_point()))
        if "num_batches_tracked" not in own:
            own["num_batches_tracked"] = torch.tensor(0)
        bn.load_state_dict(own)
        for name in NAMES:
            if layer[name] is not None:
                same(getattr(bn, name).detach().double(), layer[name], name)
        if layer["num_batches_tracked"] is not None:
            assert bn.num_batches_tracked == layer["num_batches_tracked"]
        x = torch.linspace(-2, 2, 2 * len(layer["running_mean"])).reshape(2, -1, 1, 1)
        with torch.no_grad():
            close(bn.eval().float()(x), infer(layer, x.double().numpy(), 1, bn.eps), layer["name"])
    return "load_state_dict, all arrays and counters, inference"


def keras_layer(keras, layer, **more):
    affine = {"scale": layer["weight"] is not None, "center": layer["bias"] is not None}
    return keras.layers.BatchNormalization(name=layer["name"] or None, **affine, **more)


def by_keras(path, entry):
    import keras

    layers = entry["layers"]
    if path.suffix == ".keras" or path.name == "keras3_legacy.h5":
        model = keras.saving.load_model(path)
        found, shown = [model.get_layer(layer["name"]) for layer in layers], "load_model"
    elif path.suffix == ".npz":
        model = keras.Sequential([keras.Input((len(layers[0]["running_mean"]),)), keras_layer(keras, layers[0])])
        arrays = np.load(path)
        model.set_weights([arrays[key] for key in arrays.files])
        found, shown = model.layers, "set_weights"
    else:
        # One batch normalization behind the other: what new files are for.
        inputs = [keras.Input((len(layer["running_mean"]),)) for layer in layers]
        if path.name == "keras3.weights.h5":
            inputs = [keras.Input((3, 3, 4))]
            conv = keras.layers.Conv2D(6, 2, name="conv")
            first, second = (keras_layer(keras, layer) for layer in layers)
            model = keras.Sequential([inputs[0], first, conv, second], name="net")
            found = [first, second]
        else:
            found = [keras_layer(keras, layer) for layer in layers]
            model = keras.Model(inputs, [bn(x) for bn, x in zip(found, inputs)])
        by_name = not path.name.endswith(".weights.h5")
        model.load_weights(path, **({"by_name": True} if by_name else {}))
        shown = "load_weights(by_name=True)" if by_name else "load_weights"
    for bn, layer in zip(found, layers, strict=True):
        for got, want in zip(bn.get_weights(), present(layer), strict=True):
            same(got, want, layer["name"])
        shape = [2] + [1] * (len(bn.input.shape) - 2) + [len(layer["running_mean"])]
        x = np.linspace(-2, 2, int(np.prod(shape))).reshape(shape)
        close(bn(x.astype("float32"), training=False), infer(layer, x, -1, bn.epsilon), layer["name"])
    return f"{shown}, all arrays, inference"


def by_tf_keras(path, entry):
    import tf_keras as keras

    layers = entry["layers"]
    if path.name == "keras2_model.h5":
        model = keras.models.load_model(path)
        found, shown = [model.get_layer(layer["name"]) for layer in layers], "load_model"
    else:
        inputs = [keras.Input((len(layer["running_mean"]),)) for layer in layers]
        found = [keras_layer(keras, layer) for layer in layers]
        model = keras.Model(inputs, [bn(x) for bn, x in zip(found, inputs)])
        model.load_weights(path, by_name=True)
        shown = "load_weights(by_name=True)"
    for bn, layer in zip(found, layers, strict=True):
        for got, want in zip(bn.get_weights(), present(layer), strict=True):
            same(got, want, layer["name"])
        shape = [2] + [1] * (len(bn.input.shape) - 2) + [len(layer["running_mean"])]
        x = np.linspace(-2, 2, int(np.prod(shape))).reshape(shape)
        close(bn(x.astype("float32"), training=False), infer(layer, x, -1, bn.epsilon), layer["name"])
    return f"{shown}, all arrays, inference"


def by_flax(path, entry):
    import flax
    import flax.linen as nn

    tree = flax.serialization.msgpack_restore(path.read_bytes())
    flax_arrays(tree, entry)
    for layer in entry["layers"]:
        bn = nn.BatchNorm(use_running_average=True, use_scale=layer["weight"] is not None, use_bias=layer["bias"] is not None)
        variables = {"params": tree["params"][layer["name"]], "batch_stats": tree["batch_stats"][layer["name"]]}
        x = np.linspace(-2, 2, 2 * len(layer["running_mean"])).reshape(2, -1)
        close(bn.apply(variables, x.astype("float32")), infer(layer, x, -1, bn.epsilon), layer["name"])
    return "msgpack_restore, all arrays, inference"


def by_onnx(path, entry):
    import onnx

    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    (layer,) = entry["layers"]
    (node,) = [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    for key, name in zip(node.input[1:], NAMES):
        same(arrays[key], layer[name], name)
    attributes = {attribute.name: attribute.f for attribute in node.attribute}
    assert attributes["epsilon"] == np.float32(layer["eps"]), attributes
    assert attributes["momentum"] == np.float32(1 - layer["momentum_new"]), attributes
    return "check_model, all arrays, epsilon, momentum"


def by_onnxruntime(path, entry):
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (layer,) = entry["layers"]
    shape = [2, len(layer["running_mean"]), 3, 2]
    x = np.linspace(-2, 2, int(np.prod(shape))).reshape(shape)
    (y, *_) = session.run(None, {session.get_inputs()[0].name: x.astype("float32")})
    close(y, infer(layer, x, 1, layer["eps"]), layer["name"])
    return "inference"


def readers(name):
    if name.endswith((".h5", ".keras")):
        # Keras 1's layout is nothing that Keras 3 loads; Keras 2's by names.
        of_keras = name not in ("keras1_weights.h5", "new_keras1.h5", "keras2_model.h5")
        general = [] if name.endswith(".keras") else [("h5py", by_h5py)]
        old = [("tf_keras", by_tf_keras)] if "keras2" in name else []
        return general + ([("keras", by_keras)] if of_keras else []) + old
    return {
        "pt": [("torch", by_torch)],
        "safetensors": [("safetensors", by_safetensors), ("torch", by_torch)],
        "npz": [("numpy", by_numpy), ("keras", by_keras)],
        "msgpack": [("msgpack", by_msgpack), ("flax", by_flax)],
        "onnx": [("onnx", by_onnx), ("onnxruntime", by_onnxruntime)],
    }[name.rsplit(".", 1)[1]]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what the example `samples` wrote")
    parser.add_argument("--write", type=Path, help="write the table there")
    arguments = parser.parse_args()
    for entry in json.loads((arguments.folder / "manifest.json").read_text()):
        path = arguments.folder / entry["file"]
        for reader, function in readers(entry["file"]):
            check(entry, reader, lambda: function(path, entry))
    lines = [
        "# What reads the files that this crate writes",
        "",
        "By `scripts/check-formats.py`: every number is compared, exactly where it is stored and within 1e-5 behind an",
        "inference. *changed* is a file of the system's own with other numbers in its layers, *new* one made by this crate.",
        "",
        "| file | | read by | outcome |",
        "|---|---|---|---|",
    ]
    lines += [f"| `{file}` | {what} | {reader} | {shown} |" for file, what, reader, shown in rows]
    if missing:
        lines += ["", f"Not installed here, so not tried: {', '.join(sorted(missing))}."]
    text = "\n".join(lines) + "\n"
    print(text)
    if arguments.write:
        arguments.write.write_text(text)
    for failure in failures:
        print(failure, file=sys.stderr)
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
