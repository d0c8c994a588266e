#!/usr/bin/env python3
"""Packs the PTX that ships, a file for each module or several: texts of several targets, and of types that
differ in little else, share most of what they say.

    scripts/ptx_files.py pack TEXTS FOLDER     NAME.sm_XX.ptx to NAME+NAME.sm_XX.sm_YY.ptx.lzma
    scripts/ptx_files.py unpack FOLDER TEXTS   and back
    scripts/ptx_files.py tidy TEXTS            makes these texts smaller, of which ptxas makes the same machine code

A file is an LZMA file of the texts, each module's lowest target first, with a 0 behind each. One that has not changed
keeps its bytes, whatever version of the packer made them.
"""
import lzma
import pathlib
import re
import sys

# Nothing in a text is aligned.
FILTER = {"id": lzma.FILTER_LZMA1, "preset": 9 | lzma.PRESET_EXTREME, "lc": 2, "lp": 0, "pb": 0}
# Which types of a kind of module go together, and which kinds, where they have the same targets: together they are a
# tenth to a sixth smaller, and whoever loads one unpacks the others, too, in milliseconds.
TOGETHER = (("bf16", "f16"), ("f32", "f64"))
KINDS = (("resident", "resident_any"), ("split", "split_any"))


def parts(path):
    """Names and targets of `NAME+NAME.sm_XX.sm_YY.ptx`, packed or not."""
    names, *targets = path.name.split(".ptx")[0].split(".sm_")
    return names.split("+"), [int(target) for target in targets]


def texts(folder):
    """The texts of a folder's files by module, and of each by target."""
    found = {}
    for path in folder.glob("*.ptx.lzma"):
        names, targets = parts(path)
        unpacked = iter(lzma.decompress(path.read_bytes(), lzma.FORMAT_ALONE).split(b"\0"))
        for name in names:
            found[name] = {target: next(unpacked) for target in targets}
    return found


def files(folder):
    """The file of each module."""
    return {name: path for path in folder.glob("*.ptx.lzma") for name in parts(path)[0]}


def groups(modules):
    """Names of modules that go into one file."""
    left = dict(modules)

    def together(kinds, types):
        names = [f"{kind}_{of}" for kind in kinds for of in types]
        is_one = all(one in left for one in names) and len({tuple(sorted(left[one])) for one in names}) == 1
        return names if is_one else []

    for name in sorted(modules):
        if name not in left:
            continue
        kind, _, dtype = name.rpartition("_")
        kinds = next((kinds for kinds in KINDS if kind in kinds), (kind,))
        types = next((types for types in TOGETHER if dtype in types), (dtype,))
        several = ((kinds, types), (kinds, (dtype,)), ((kind,), types))
        names = next(filter(None, (together(*one) for one in several)), [name])
        yield names
        left = {one: of for one, of in left.items() if one not in names}


def pack(folder, packed):
    packed.mkdir(parents=True, exist_ok=True)
    modules = {}
    for path in folder.glob("*.ptx"):
        (name,), (target,) = parts(path)
        modules.setdefault(name, {})[target] = path.read_bytes()
    wanted = set()
    for names in groups(modules):
        targets = sorted(modules[names[0]])
        path = packed / "".join(["+".join(names), *(f".sm_{target}" for target in targets), ".ptx.lzma"])
        whole = b"".join(modules[name][target] + b"\0" for name in names for target in targets)
        wanted.add(path)
        if not path.exists() or lzma.decompress(path.read_bytes(), lzma.FORMAT_ALONE) != whole:
            path.write_bytes(lzma.compress(whole, lzma.FORMAT_ALONE, filters=[FILTER]))
    for path in set(packed.iterdir()) - wanted:
        path.unlink()


def unpack(packed, folder):
    folder.mkdir(parents=True, exist_ok=True)
    for name, by_target in texts(packed).items():
        for target, text in by_target.items():
            (folder / f"{name}.sm_{target}.ptx").write_bytes(text)


def numbered(function):
    """A function whose registers are numbered from 1, each kind's in the order in which they appear. What the compiler
    gives them are numbers from before it has left out most of its instructions: code that two functions have in common
    reads differently in each. Packed, that takes a tenth."""
    declared = r"(\.reg \.\w+\s+%([a-z]+))<\d+>"
    new = {kind: {} for _, kind in re.findall(declared, function)}

    def renamed(register):
        kind, number = register.groups()
        if kind not in new:
            return register[0]  # %clock64, say
        return f"%{kind}{new[kind].setdefault(number, len(new[kind]) + 1)}"

    function = re.sub(r"%([a-z]+)(\d+)\b", renamed, function)
    return re.sub(declared, lambda found: f"{found[1]}<{len(new[found[2]]) + 1}>", function)


def tidy(*files):
    for path in files:
        text = re.sub(r"[ \t]*//.*", "", path.read_text())
        text = re.sub(r"(?m)^\s*\n", "", text)
        path.write_text("".join(map(numbered, re.split(r"(?m)^(?=\.visible \.entry)", text))))


if __name__ == "__main__":
    commands = {"pack": (pack, 2), "unpack": (unpack, 2), "tidy": (tidy, len(sys.argv) - 2)}
    command, takes = commands.get(next(iter(sys.argv[1:]), None), (None, None))
    if len(sys.argv) - 2 != takes:
        sys.exit(__doc__)
    command(*map(pathlib.Path, sys.argv[2:]))
