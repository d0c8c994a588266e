#!/usr/bin/env python3
"""Assembles the PTX that ships, kernels/ptx, to the machine code in cubins/packed, which the feature `cubins` loads.

    scripts/build-cubins.py              builds what PTX has changed; --all: everything
    scripts/build-cubins.py --check      fails where what is committed is not what the PTX makes, or is too large: of
                                         each module for one target, by turns; --all: for all of them

ptxas is the one that scripts/build-ptx.sh installs, which must have run before: its code is the same on every
machine, so what is committed can be checked. A target whose code is that of a lower one of its generation has no file
of its own, as a device runs what was made for a lower minor version.

A file NAME.cubins.lzma holds the machine code of one module for every target, lowest first, so that what they have in
common is packed once. Each begins with 16 bytes, little endian: the target (u32, 86 for sm_86), the bytes of its code
(u32) and a hash of the file of packed PTX that it was made of (u64, FNV-1a): what does not match the PTX that ships beside it
is not taken. Zeros fill the code up to a multiple of 16 bytes.
"""
import argparse
import concurrent.futures
import lzma
import os
import pathlib
import struct
import subprocess
import sys
import tempfile

import machine_code
import ptx_files

ROOT = pathlib.Path(__file__).resolve().parent.parent
PTX, PACKED = ROOT / "kernels/ptx", ROOT / "cubins/packed"
ENDING = ".cubins.lzma"
TARGETS = (80, 86, 89, 90, 100, 120)
MOST = 4_000_000  # bytes, all files together

# Instructions are 16 bytes, and so is what precedes each cubin.
FILTER = {"id": lzma.FILTER_LZMA1, "preset": 9 | lzma.PRESET_EXTREME, "lc": 0, "lp": 4, "pb": 4, "dict_size": 1 << 23}


def fnv(data):
    """64 bits of FNV-1a."""
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return value


def sources():
    """Packed PTX by module."""
    return {name: path.read_bytes() for name, path in ptx_files.files(PTX).items()}


def entries(unpacked):
    """Target, hash and cubin of each in a file."""
    at = 0
    while at < len(unpacked):
        target, length, source = struct.unpack_from("<IIQ", unpacked, at)
        yield target, source, unpacked[at + 16 : at + 16 + length]
        at += 16 + length + -length % 16


def code(cubin):
    """What a device executes: the sections of instructions and constants, by name."""
    (offset,) = struct.unpack_from("<Q", cubin, 40)
    count, names = struct.unpack_from("<HH", cubin, 60)
    headers = [struct.unpack_from("<IIQQQQ", cubin, offset + 64 * i) for i in range(count)]
    start = headers[names][4]
    found = {}
    for name, _, _, _, begin, length in headers:
        name = cubin[start + name : cubin.index(b"\0", start + name)]
        if name.startswith((b".text.", b".nv.constant")):
            found[name] = cubin[begin : begin + length]
    return found


def assembled(text, target):
    with tempfile.TemporaryDirectory() as folder:
        # The same name wherever it is made: the code may hold it.
        pathlib.Path(folder, "module.ptx").write_bytes(text)
        command = [machine_code.ptxas(), f"-arch=sm_{target}", "module.ptx", "-o", "module.cubin"]
        subprocess.run(command, cwd=folder, check=True)
        return pathlib.Path(folder, "module.cubin").read_bytes()


def made(module, packed):
    """The unpacked file of a module that has this packed PTX."""
    out, last = b"", {}
    for target in TARGETS:
        cubin = assembled(machine_code.text_for(module, target), target)
        generation, instructions = target // 10, code(cubin)
        if last.get(generation) == instructions:
            continue
        last[generation] = instructions
        out += struct.pack("<IIQ", target, len(cubin), fnv(packed)) + cubin + b"\0" * (-len(cubin) % 16)
    return out


def is_right(module, packed, target):
    """Whether what is committed of a module has, for this target, what its PTX makes."""
    cubin = assembled(machine_code.text_for(module, target), target)
    known = {of: (source, code) for of, source, code in entries(committed(module)) if of <= target}
    serving = max((of for of in known if of // 10 == target // 10), default=0)
    if not serving or any(source != fnv(packed) for source, _ in known.values()):
        return False
    return known[target][1] == cubin if target in known else code(known[serving][1]) == code(cubin)


def committed(name):
    path = PACKED / (name + ENDING)
    return lzma.decompress(path.read_bytes(), lzma.FORMAT_ALONE) if path.exists() else b""


def is_old(name, packed):
    known = {source for _, source, _ in entries(committed(name))}
    return known != {fnv(packed)}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--all", action="store_true")
    arguments = parser.parse_args()
    modules, wrong = sources(), []
    names = sorted(name for name in modules if arguments.check or arguments.all or is_old(name, modules[name]))
    seen = len(names)
    machine_code.ptxas()  # says at once that it is not there
    if arguments.check and not arguments.all:
        # Each target by turns: all targets of a module were made at once, and say of which PTX.
        of = {name: TARGETS[k % len(TARGETS)] for k, name in enumerate(names)}
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            right = pool.map(lambda name: is_right(name, modules[name], of[name]), names)
            wrong += [f"{name}: what is committed is not what its PTX makes" for name, yes in zip(names, right) if not yes]
        seen, names = len(names), []
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for name, unpacked in zip(names, pool.map(lambda name: made(name, modules[name]), names)):
            if committed(name) == unpacked:
                continue
            if arguments.check:
                wrong.append(f"{name}: what is committed is not what its PTX makes")
                continue
            packed = lzma.compress(unpacked, lzma.FORMAT_ALONE, filters=[FILTER])
            (PACKED / (name + ENDING)).write_bytes(packed)
            targets = " ".join(f"sm_{target}" for target, _, _ in entries(unpacked))
            print(f"{name}: {len(packed)} bytes of {len(unpacked)}, {targets}", flush=True)
    for path in PACKED.glob("*"):
        if path.name.removesuffix(ENDING) in modules and path.name.endswith(ENDING):
            continue
        if arguments.check:
            wrong.append(f"{path.name}: of no module")
        else:
            path.unlink()
    size = sum(path.stat().st_size for path in PACKED.glob("*"))
    print(f"{seen} modules seen, {size} bytes in all of {MOST}")
    if size > MOST:
        wrong.append("too large")
    if wrong:
        sys.exit("\n".join(["build-cubins:", *wrong, "run scripts/build-cubins.py"]))


if __name__ == "__main__":
    main()
