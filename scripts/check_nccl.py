"""Whether a real libnccl has what src/engine/synced/nccl calls, and the results and configuration that it counts on.

    python3 scripts/check_nccl.py /path/to/libnccl.so.2

Needs no GPU: where there is none, a communicator is refused, and it is asked how.
"""
import ctypes
import pathlib
import re
import sys
import time

ROOT = pathlib.Path(__file__).parent.parent
RAW = (ROOT / "src/engine/synced/nccl/raw.rs").read_text()
STATUS = (ROOT / "softcuda/nccl/src/status.rs").read_text()
VERSIONS = range(21_800, 30_000)  # as src/library.rs has it
INVALID_ARGUMENT, IN_PROGRESS = 4, 7
UNSET = -(2**31)


class Config(ctypes.Structure):
    """As raw.rs has it."""

    _fields_ = [
        ("size", ctypes.c_size_t),
        ("magic", ctypes.c_uint),
        ("version", ctypes.c_uint),
        *((name, ctypes.c_int) for name in ("blocking", "cga_cluster_size", "min_ctas", "max_ctas")),
        ("net_name", ctypes.c_char_p),
        ("split_share", ctypes.c_int),
    ]

    @classmethod
    def new(cls, **other):
        fields = {"magic": 0xCAFEBEEF, "version": 21_800, "blocking": 0} | other
        unset = dict.fromkeys(("cga_cluster_size", "min_ctas", "max_ctas", "split_share"), UNSET)
        return cls(size=ctypes.sizeof(cls), net_name=None, **unset, **fields)


class Id(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_byte * 128)]


def main():
    library = ctypes.CDLL(sys.argv[1])
    table = re.search(r"^functions! \{(.*?)^\}", RAW, re.S | re.M).group(1)
    names = re.findall(r"= (nccl\w+)\(", table)
    missing = [name for name in names if not hasattr(library, name)]
    assert len(names) > 10 and not missing, f"it does not export {missing}"
    fields = re.search(r"^struct Config \{(.*?)^\}", RAW, re.S | re.M).group(1)
    assert re.findall(r"(\w+):", fields) == [name for name, _ in Config._fields_], fields

    version = ctypes.c_int()
    assert library.ncclGetVersion(ctypes.byref(version)) == 0
    assert version.value in VERSIONS, f"version {version.value} is not in {VERSIONS}"

    # The texts of results, which the software NCCL answers too.
    library.ncclGetErrorString.restype = ctypes.c_char_p
    library.ncclGetLastError.restype = ctypes.c_char_p
    ours = re.findall(r'c"(.*?)"', STATUS[STATUS.index("const ALL") : STATUS.index("/// An `ncclResult_t`")])
    theirs = [library.ncclGetErrorString(result).decode() for result in range(len(ours))]
    assert [text.split("(")[0] for text in ours] == [text.split("(")[0] for text in theirs], f"{ours}, not {theirs}"

    ids = [Id(), Id()]
    for new in ids:
        assert library.ncclGetUniqueId(ctypes.byref(new)) == 0
    assert bytes(ids[0]) != bytes(ids[1])

    init = library.ncclCommInitRankConfig
    init.argtypes = [ctypes.c_void_p, ctypes.c_int, Id, ctypes.c_int, ctypes.c_void_p]
    comm = ctypes.c_void_p()

    def begin(ranks, rank, config):
        comm.value = None
        return init(ctypes.byref(comm), ranks, ids[0], rank, ctypes.byref(config))

    # Without a driver NCCL says that first: whatever is refused, is so at once and in words.
    began = time.monotonic()
    results = {
        "a rank that is none": begin(2, 5, Config.new()),
        "a configuration that was not initialized": begin(1, 0, Config.new(magic=1)),
        "one that was": begin(1, 0, Config.new()),
    }
    state = ctypes.c_int()
    if results["one that was"] in (0, IN_PROGRESS) and comm.value:
        for _ in range(600):
            assert library.ncclCommGetAsyncError(comm, ctypes.byref(state)) == 0
            if state.value != IN_PROGRESS:
                break
            time.sleep(0.1)
        results["its state"] = state.value
        library.ncclCommAbort(comm)
    for what, result in results.items():
        print(f"{what}: {result}, {library.ncclGetErrorString(result).decode()}")
    print(f"it says: {library.ncclGetLastError(None).decode().strip()}")
    assert results["a rank that is none"] != 0 and results["a configuration that was not initialized"] != 0
    assert time.monotonic() - began < 90
    # No communicator is a bad argument, not a crash.
    null = ctypes.c_void_p()
    gather = library.ncclAllGather(null, null, ctypes.c_size_t(1), 8, null, null)
    reduce = library.ncclAllReduce(null, null, ctypes.c_size_t(1), 8, 0, null, null)
    assert (gather, reduce) == (INVALID_ARGUMENT, INVALID_ARGUMENT), (gather, reduce)
    print(f"NCCL {version.value}: exports all {len(names)} functions, has the results and takes the calls as expected")


if __name__ == "__main__":
    main()
