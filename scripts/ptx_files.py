#!/usr/bin/env python3
"""Packs the PTX that ships, a file for each module: the texts of its targets share most of what they say.

    scripts/ptx_files.py pack TEXTS FOLDER     NAME.sm_XX.ptx to NAME.sm_XX.sm_YY.ptx.lzma
    scripts/ptx_files.py unpack FOLDER TEXTS   and back

A file is an LZMA file of the texts, the lowest target first, with a 0 behind each. One that has not changed keeps its
bytes, whatever version of the packer made them.
"""
import lzma
import pathlib
import sys

# Nothing in a text is aligned.
FILTER = {"id": lzma.FILTER_LZMA1, "preset": 9 | lzma.PRESET_EXTREME, "lc": 2, "lp": 0, "pb": 0}


def parts(path):
    """Name and targets of `NAME.sm_XX.sm_YY.ptx`, packed or not."""
    name, *targets = path.name.split(".ptx")[0].split(".sm_")
    return name, [int(target) for target in targets]


def pack(texts, folder):
    folder.mkdir(parents=True, exist_ok=True)
    modules = {}
    for path in texts.glob("*.ptx"):
        name, (target,) = parts(path)
        modules.setdefault(name, {})[target] = path.read_bytes()
    wanted = set()
    for name, by_target in modules.items():
        targets = sorted(by_target)
        path = folder / "".join([name, *(f".sm_{target}" for target in targets), ".ptx.lzma"])
        whole = b"".join(by_target[target] + b"\0" for target in targets)
        wanted.add(path)
        if not path.exists() or lzma.decompress(path.read_bytes(), lzma.FORMAT_ALONE) != whole:
            path.write_bytes(lzma.compress(whole, lzma.FORMAT_ALONE, filters=[FILTER]))
    for path in set(folder.iterdir()) - wanted:
        path.unlink()


def unpack(folder, texts):
    texts.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*.ptx.lzma"):
        name, targets = parts(path)
        found = lzma.decompress(path.read_bytes(), lzma.FORMAT_ALONE).split(b"\0")
        for target, text in zip(targets, found):
            (texts / f"{name}.sm_{target}.ptx").write_bytes(text)


if __name__ == "__main__":
    commands = {"pack": pack, "unpack": unpack}
    if len(sys.argv) != 4 or sys.argv[1] not in commands:
        sys.exit(__doc__)
    commands[sys.argv[1]](*map(pathlib.Path, sys.argv[2:]))
