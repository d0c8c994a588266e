#!/usr/bin/env python3
"""Asks a CUDA driver what no test asks: python's standard library and the driver are all it needs.

    scripts/gpu_probe.py device            what it is; exit status 3 where there is none
    scripts/gpu_probe.py copy              GB/s, read and written, of copies on the device
    scripts/gpu_probe.py modules FOLDER    how long PTX (*.sm_NN.ptx, .lzma or not) takes to load, and what of registers
                                           and memory the driver's compiler gave each kernel
    scripts/gpu_probe.py bits A B          compares the tensors of two folders of *.safetensors bit for bit; exit
                                           status 1 where any differs or none compares

BATCHNORM_REQUIRE_GPU=0 takes the tests' software device, where LD_LIBRARY_PATH leads to libsoftcuda.so.
"""

import ctypes
import json
import lzma
import os
import re
import statistics
import struct
import sys
import time
from pathlib import Path

ATTRIBUTES = {"multiprocessors": 16, "clock kHz": 13, "memory clock kHz": 36, "bus bits": 37, "L2 bytes": 38}
ATTRIBUTES |= {"shared bytes of a multiprocessor": 81, "of a block": 97, "registers of a multiprocessor": 82}
FUNCTION = {"registers": 4, "local": 3, "shared": 1, "threads": 0}  # of cuFuncGetAttribute


def leave(text, status=3):
    print(text)
    sys.exit(status)


class Driver:
    """The calls of one driver, on its first device."""

    def __init__(self):
        software = os.environ.get("BATCHNORM_REQUIRE_GPU") == "0"
        self.library = self.open(["libsoftcuda.so"] if software else ["libcuda.so.1", "libcuda.so"])
        code = self.library.cuInit(0)
        if code:
            leave(f"the driver finds no device: cuInit answers {code} ({self.words(code)})")
        self.device, context = ctypes.c_int(), ctypes.c_void_p()
        self("cuDeviceGet", ctypes.byref(self.device), 0)
        self("cuDevicePrimaryCtxRetain", ctypes.byref(context), self.device)
        self("cuCtxSetCurrent", context)

    @staticmethod
    def open(names):
        why = []
        for name in names:
            try:
                return ctypes.CDLL(name)
            except OSError as error:
                why.append(str(error))
        leave(f"no CUDA driver: {'; '.join(why)}")

    def words(self, code):
        text = ctypes.c_char_p()
        self.library.cuGetErrorName(code, ctypes.byref(text))
        return (text.value or b"?").decode()

    def __call__(self, name, *arguments):
        code = getattr(self.library, name)(*arguments)
        if code:
            leave(f"{name} answers {code} ({self.words(code)})", 1)

    def attribute(self, number):
        value = ctypes.c_int()
        self("cuDeviceGetAttribute", ctypes.byref(value), number, self.device)
        return value.value

    def capability(self):
        return 10 * self.attribute(75) + self.attribute(76)


def device():
    driver, name, version = Driver(), ctypes.create_string_buffer(100), ctypes.c_int()
    driver("cuDeviceGetName", name, 100, driver.device)
    driver("cuDriverGetVersion", ctypes.byref(version))
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    driver("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
    text = f"{name.value.decode()}, capability {driver.capability()}, driver for CUDA {version.value}"
    print(f"{text}, {free.value >> 20} of {total.value >> 20} MiB free")
    for what, number in ATTRIBUTES.items():
        value = ctypes.c_int()
        code = driver.library.cuDeviceGetAttribute(ctypes.byref(value), number, driver.device)
        print(f"{what}: {value.value if not code else driver.words(code)}")


def copy():
    driver = Driver()
    handles = [ctypes.c_void_p() for _ in range(2)]
    start, end = handles
    for handle in handles:
        driver("cuEventCreate", ctypes.byref(handle), 0)
    print("MiB per tensor, GB/s of the median and the best of 20 copies")
    for mib in [1] if os.environ.get("BATCHNORM_REQUIRE_GPU") == "0" else [16, 64, 256, 1024, 4096]:
        tensors = [ctypes.c_uint64() for _ in range(2)]
        for i, tensor in enumerate(tensors):
            driver("cuMemAlloc_v2", ctypes.byref(tensor), ctypes.c_size_t(mib << 20))
            driver("cuMemsetD8_v2", tensor, ctypes.c_ubyte(90 + i), ctypes.c_size_t(mib << 20))
        times = []
        for _ in range(23):
            driver("cuEventRecord", start, None)
            driver("cuMemcpyDtoDAsync_v2", tensors[1], tensors[0], ctypes.c_size_t(mib << 20), None)
            driver("cuEventRecord", end, None)
            driver("cuEventSynchronize", end)
            ms = ctypes.c_float()
            driver("cuEventElapsedTime", ctypes.byref(ms), start, end)
            times.append(ms.value * 1e-3)
        rates = [2 * (mib << 20) / t * 1e-9 for t in (statistics.median(times[3:]), min(times[3:])) if t > 0]
        print(f"{mib:5}  {'  '.join(f'{rate:8.1f}' for rate in rates) or 'no time passed'}")
        for tensor in tensors:
            driver("cuMemFree_v2", tensor)


def modules(folder):
    driver = Driver()
    found = {}
    for path in Path(folder).iterdir():
        match = re.fullmatch(r"(.+)\.sm_(\d+)\.ptx(\.lzma)?", path.name)
        if match and int(match[2]) <= driver.capability():
            found[match[1]] = max(found.get(match[1], (0, path)), (int(match[2]), path))
    if not found:
        leave(f"{folder}: no PTX for capability {driver.capability()}", 1)
    total = 0.0
    for name, (target, path) in sorted(found.items()):
        text = path.read_bytes()
        text = lzma.decompress(text) if path.suffix == ".lzma" else text
        module, begin = ctypes.c_void_p(), time.perf_counter()
        driver("cuModuleLoadData", ctypes.byref(module), text + b"\0")
        seconds = time.perf_counter() - begin
        total += seconds
        print(f"{name} sm_{target}: {seconds * 1e3:.1f} ms")
        for entry in re.findall(rb"\.entry\s+(\w+)", text):
            function, values = ctypes.c_void_p(), []
            driver("cuModuleGetFunction", ctypes.byref(function), module, entry)
            for what, number in FUNCTION.items():
                value = ctypes.c_int()
                driver("cuFuncGetAttribute", ctypes.byref(value), number, function)
                values.append(f"{what} {value.value:4}")
            print(f"    {entry.decode():32} {', '.join(values)}")
    print(f"{len(found)} modules in {total * 1e3:.1f} ms")


def tensors(path):
    """Name, bytes of a value, and all of them."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    for name, entry in sorted(header.items()):
        begin, end = entry["data_offsets"]
        yield name, int(re.search(r"\d+", entry["dtype"])[0]) // 8, data[8 + length + begin : 8 + length + end]


def bits(a, b):
    same = total = 0
    for path in sorted(Path(a).glob("*.safetensors")):
        other = Path(b) / path.name
        if not other.exists():
            print(f"{path.name}: not in {b}")
            continue
        there = {name: data for name, _, data in tensors(other)}
        for name, size, data in tensors(path):
            total += 1
            if data == there.get(name):
                same += 1
                continue
            second = there.get(name, b"")
            places = range(0, len(data), size)
            count = sum(data[i : i + size] != second[i : i + size] for i in places)
            print(f"{path.stem} {name}: {count} of {len(places)} values differ")
    print(f"{same} of {total} tensors are the same in every bit")
    sys.exit(0 if 0 < same == total else 1)


def main():
    commands = {"device": (device, 0), "copy": (copy, 0), "modules": (modules, 1), "bits": (bits, 2)}
    command, count = commands.get(sys.argv[1] if len(sys.argv) > 1 else "", (None, 0))
    if command is None or len(sys.argv) != 2 + count:
        sys.exit(__doc__)
    command(*sys.argv[2:])


if __name__ == "__main__":
    main()
