#!/usr/bin/env python3
"""Writes tests/state/: state dicts as torch saves them, and what torch computes with them.

    pip install torch safetensors
    python scripts/state_fixtures.py

Each case is a file NAME.safetensors, the module's state dict as it is; expected.safetensors holds
NAME.input and NAME.output, an evaluation by that module. Made with torch 2.15, safetensors 0.8.
"""
import pathlib

import torch
from safetensors.torch import save_file
from torch import nn

CHANNELS = 5
DIRECTORY = pathlib.Path(__file__).parent.parent / "tests" / "state"


def trained(seed=1, **config):
    """A layer after two training steps, so that nothing in it is a default."""
    torch.manual_seed(seed)
    bn = nn.BatchNorm2d(CHANNELS, **config)
    optimizer = torch.optim.SGD(bn.parameters(), lr=0.5) if list(bn.parameters()) else None
    for _ in range(2):
        loss = (bn(torch.randn(4, CHANNELS, 3, 3) * 2 + 1) - 0.5).pow(3).mean()
        if optimizer:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return bn.eval()


class Block(nn.Module):
    def __init__(self, seed):
        super().__init__()
        self.bn1 = trained(seed)
        self.conv1 = nn.Conv2d(CHANNELS, CHANNELS, 1, bias=False)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer1 = nn.Sequential(Block(1), Block(2))


def main():
    expected = {}

    def case(name, module, layer, state=None):
        dtype = next((p.dtype for p in layer.parameters()), torch.float32)
        torch.manual_seed(2)
        x = (torch.randn(2, CHANNELS, 3, 2) * 2 + 1).to(dtype)
        with torch.no_grad():
            expected[f"{name}.output"] = layer(x).contiguous()
        expected[f"{name}.input"] = x
        save_file(state or module.state_dict(), DIRECTORY / f"{name}.safetensors")

    DIRECTORY.mkdir(parents=True, exist_ok=True)
    for name, layer in {
        "float": trained(),
        "half": trained().half(),
        "bfloat16": trained().bfloat16(),
        "double": trained().double(),
        "affine_false": trained(affine=False),
        "track_running_stats_false": trained(track_running_stats=False),
        "bias_false": trained(bias=False),
    }.items():
        case(name, layer, layer)
    network = Network().eval()
    case("network", network, network.layer1[0].bn1)
    old = trained()
    state = {k: v for k, v in old.state_dict().items() if k != "num_batches_tracked"}
    case("version1", old, old, state)
    save_file(expected, DIRECTORY / "expected.safetensors")


if __name__ == "__main__":
    main()
