#!/usr/bin/env python3
"""Asks a CUDA driver what no test asks: python's standard library and the driver are all it needs.

    scripts/gpu_probe.py device            what it is; exit status 3 where there is none
    scripts/gpu_probe.py copy              GB/s, read and written, of copies on the device
    scripts/gpu_probe.py modules FOLDER    how long PTX (*.sm_NN.ptx, packed or not) takes to load, and what of registers
                                           and memory the driver's compiler gave each kernel
    scripts/gpu_probe.py cubins FOLDER     how long machine code (*.cubins.lzma of build-cubins.py) takes
    scripts/gpu_probe.py reads FOLDER      GB/s of the ways of reading of benches/kernels/reads.cu, as JSON lines
    scripts/gpu_probe.py bits A B          compares the tensors of two folders of *.safetensors bit for bit; exit
                                           status 1 where any differs or none compares

BATCHNORM_REQUIRE_GPU=0 takes the tests' software device, where LD_LIBRARY_PATH leads to libsoftcuda.so.
"""

import ctypes
import gzip
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


def texts(folder, capability):
    """Of each module's PTX for a capability, by name: the target and the text."""
    found = {}
    unpack = {".lzma": lzma.decompress, ".gz": gzip.decompress}
    for path in Path(folder).glob("*.sm_*.ptx*"):
        names, *targets = re.sub(r"\.ptx.*", "", path.name).split(".sm_")
        # One file has the texts of several modules and targets, with a 0 behind each.
        texts = iter(unpack.get(path.suffix, bytes)(path.read_bytes()).split(b"\0"))
        for name in names.split("+"):
            for target, text in zip(map(int, targets), texts):
                if found.get(name, (0,))[0] < target <= capability:
                    found[name] = target, text
    if not found:
        leave(f"{folder}: no PTX for capability {capability}", 1)
    for name, (target, text) in sorted(found.items()):
        yield name, target, text


def modules(folder):
    driver = Driver()
    count, total = 0, 0.0
    for name, target, text in texts(folder, driver.capability()):
        module, begin = ctypes.c_void_p(), time.perf_counter()
        driver("cuModuleLoadData", ctypes.byref(module), text + b"\0")
        seconds = time.perf_counter() - begin
        lines, more = [], 0.0
        for entry in re.findall(rb"\.entry\s+(\w+)", text):
            function, values, begin = ctypes.c_void_p(), [], time.perf_counter()
            driver("cuModuleGetFunction", ctypes.byref(function), module, entry)
            more += time.perf_counter() - begin  # a driver may load each when it is asked for
            for what, number in FUNCTION.items():
                value = ctypes.c_int()
                driver("cuFuncGetAttribute", ctypes.byref(value), number, function)
                values.append(f"{what} {value.value:4}")
            lines.append(f"    {entry.decode():32} {', '.join(values)}")
        count, total = count + 1, total + seconds + more
        print(f"{name} sm_{target}: {seconds * 1e3:.1f} ms, its functions {more * 1e3:.1f} ms", *lines, sep="\n")
    print(f"{count} modules in {total * 1e3:.1f} ms")


def machine_code(packed, capability):
    """The target and cubin of a file of build-cubins.py for a capability."""
    unpacked, at, found = lzma.decompress(packed), 0, None
    while at < len(unpacked):
        target, length, _ = struct.unpack_from("<IIQ", unpacked, at)
        if target <= capability and target // 10 == capability // 10:
            found = target, unpacked[at + 16 : at + 16 + length]
        at += 16 + length + -length % 16
    return found


def cubins(folder):
    driver = Driver()
    count, refused, total = 0, 0, 0.0
    for path in sorted(Path(folder).glob("*.cubins.lzma")):
        begin = time.perf_counter()
        found = machine_code(path.read_bytes(), driver.capability())
        if not found:
            leave(f"{path.name}: none for capability {driver.capability()}", 1)
        unpacked, module = time.perf_counter(), ctypes.c_void_p()
        code = driver.library.cuModuleLoadData(ctypes.byref(module), found[1])
        end = time.perf_counter()
        count, refused, total = count + 1, refused + bool(code), total + end - begin
        answer = f"refused: {code} ({driver.words(code)})" if code else f"{(end - unpacked) * 1e3:.1f} ms"
        print(f"{path.name.split('.')[0]} sm_{found[0]}: unpacked in {(unpacked - begin) * 1e3:.1f} ms, loaded: {answer}")
    print(f"{count} modules of machine code in {total * 1e3:.1f} ms, {refused} of them refused")
    sys.exit(0 if 0 < count and not refused else 1)


def reads(folder):
    driver = Driver()
    software = os.environ.get("BATCHNORM_REQUIRE_GPU") == "0"
    # The software device does not know the newest instructions, and has no cache.
    ((_, _, text),) = texts(folder, 75 if software else driver.capability())
    module, out, start, end = (ctypes.c_void_p() for _ in range(4))
    driver("cuModuleLoadData", ctypes.byref(module), text + b"\0")
    blocks, block = 2 * driver.attribute(16), 256
    step = 16 * blocks * block * 16  # bytes of a step of the largest kernel
    size = step * (1 if software else max(1, (1 << 30) // step))
    tensor, result = ctypes.c_uint64(), ctypes.c_uint64()
    driver("cuMemAlloc_v2", ctypes.byref(tensor), ctypes.c_size_t(size))
    driver("cuMemAlloc_v2", ctypes.byref(result), ctypes.c_size_t(4))
    driver("cuMemsetD32_v2", tensor, ctypes.c_uint(0x3F8CCCCD), ctypes.c_size_t(size // 4))
    for event in (start, end):
        driver("cuEventCreate", ctypes.byref(event), 0)
    arguments = tensor, ctypes.c_uint64(size // 16), result
    pointers = (ctypes.c_void_p * 3)(*(ctypes.addressof(argument) for argument in arguments))
    # What the kernels that keep a tensor in shared memory leave to the L1 cache.
    most = driver.attribute(97) if software else min(driver.attribute(97), driver.attribute(81) // 2 - 1024) // 256 * 256
    for entry in re.findall(rb"\.entry\s+(\w+)", text):
        function, name = ctypes.c_void_p(), entry.decode()
        driver("cuModuleGetFunction", ctypes.byref(function), module, entry)
        driver("cuFuncSetAttribute", function, 8, most)
        least = 16 * block * int(name.rsplit("_", 1)[1]) if "async" in name else 0
        for shared in sorted({least, most}):
            times = []
            for _ in range(2 if software else 9):
                driver("cuEventRecord", start, None)
                driver("cuLaunchKernel", function, blocks, 1, 1, block, 1, 1, shared, None, pointers, None)
                driver("cuEventRecord", end, None)
                driver("cuEventSynchronize", end)
                ms = ctypes.c_float()
                driver("cuEventElapsedTime", ctypes.byref(ms), start, end)
                times.append(ms.value * 1e-3)
            seconds = statistics.median(times[1:])
            line = {"measure": "read", "kernel": name, "shared_bytes": shared, "bytes": size, "seconds": seconds}
            print(json.dumps(line | {"gb_per_s": round(size / seconds * 1e-9, 1) if seconds else None}))


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
    commands = {"device": (device, 0), "copy": (copy, 0), "modules": (modules, 1), "cubins": (cubins, 1)}
    commands |= {"reads": (reads, 1), "bits": (bits, 2)}
    command, count = commands.get(sys.argv[1] if len(sys.argv) > 1 else "", (None, 0))
    if command is None or len(sys.argv) != 2 + count:
        sys.exit(__doc__)
    command(*sys.argv[2:])


if __name__ == "__main__":
    main()
