"""Whether a real libcudnn has what src/engine/cudnn calls, and derives the descriptors that it counts on.

    python3 scripts/check_cudnn.py /path/to/libcudnn.so.9

Needs no GPU: descriptors are made on the host, and without a handle the calls themselves are not made.
"""
import ctypes
import itertools
import pathlib
import re
import sys

RAW = pathlib.Path(__file__).parent.parent / "src/engine/cudnn/raw"
VERSIONS = range(90_000, 100_000)  # as src/library.rs has it
FLOAT, DOUBLE, HALF, BFLOAT16 = 0, 1, 2, 9
PER_ACTIVATION, SPATIAL, PERSISTENT = 0, 1, 2
BAD_PARAM = range(2000, 3000)


def symbols():
    """What the engine says that it calls; and that this is what it does call."""
    text = "\n".join(path.read_text() for path in sorted(RAW.glob("*.rs")))
    listed = re.search(r"^symbols!\[(.*?)\];", text, re.S | re.M).group(1)
    listed = set(re.findall(r"cudnn\w+", listed))
    called = set(re.findall(r"\b(?:call!\(|sys::)(cudnn[A-Z]\w+)\(", re.sub(r"\s+", "", text)))
    assert called == listed, f"called and listed differ in {sorted(called ^ listed)}"
    return sorted(listed)


class Cudnn:
    def __init__(self, path):
        self.library = ctypes.CDLL(path)
        self.library.cudnnGetVersion.restype = ctypes.c_size_t

    def __call__(self, name, *arguments):
        status = getattr(self.library, name)(*arguments)
        assert status == 0, f"{name}: {status}"

    def descriptor(self):
        this = ctypes.c_void_p()
        self("cudnnCreateTensorDescriptor", ctypes.byref(this))
        return this

    def read(self, descriptor):
        kind, rank, numbers = ctypes.c_int(), ctypes.c_int(), ctypes.c_int * 8
        dims, strides = numbers(), numbers()
        self("cudnnGetTensorNdDescriptor", descriptor, 8, *map(ctypes.byref, (kind, rank)), dims, strides)
        return kind.value, dims[: rank.value], strides[: rank.value]

    def derived(self, kind, dims, strides, mode):
        x, parameters, numbers = self.descriptor(), self.descriptor(), ctypes.c_int * 4
        self("cudnnSetTensorNdDescriptor", x, kind, 4, numbers(*dims), numbers(*strides))
        assert self.read(x) == (kind, dims, strides)
        self("cudnnDeriveBNTensorDescriptor", parameters, x, mode)
        answer = self.read(parameters)
        for descriptor in (x, parameters):
            self("cudnnDestroyTensorDescriptor", descriptor)
        return answer


def forms():
    """Descriptors as src/engine/cudnn/form.rs makes them: modes, dimensions, strides."""
    for n, c, h in itertools.product((1, 2, 6), (1, 4, 35), (2, 49)):
        yield (SPATIAL, PERSISTENT), [n, c, h, 1], [c * h, h, 1, 1]
        yield (SPATIAL, PERSISTENT), [n, c, h, 1], [h * c, 1, c, c]
    for n, c in itertools.product((2, 9), (1, 6, 640)):
        yield (PER_ACTIVATION, PERSISTENT), [n, c, 1, 1], [c, 1, c, c]


def main():
    cudnn = Cudnn(sys.argv[1])
    names, version = symbols(), cudnn.library.cudnnGetVersion()
    missing = [name for name in names if not hasattr(cudnn.library, name)]
    assert not missing, f"{version} does not export {missing}"
    assert version in VERSIONS, f"version {version} is not in {VERSIONS}"
    checked = 0
    for (modes, dims, strides), kind in itertools.product(forms(), (FLOAT, DOUBLE, HALF, BFLOAT16)):
        for mode in modes:
            parameters = (DOUBLE if kind == DOUBLE else FLOAT, [1, dims[1], 1, 1], [dims[1], 1, 1, 1])
            answer = cudnn.derived(kind, dims, strides, mode)
            assert answer == parameters, f"{kind} {dims} {strides} in mode {mode}: {answer}, not {parameters}"
            checked += 1
    # The calls are there to refuse: no handle is a bad parameter, not a crash.
    null, one, none = ctypes.c_void_p(), ctypes.c_double(1), ctypes.c_size_t(0)
    training = cudnn.library.cudnnBatchNormalizationForwardTrainingEx
    spaces = [null, none, null, none]
    status = training(null, SPATIAL, 0, *[null] * 11, one, null, null, one, *[null] * 3, *spaces)
    assert status in BAD_PARAM, status
    print(f"cuDNN {version}: exports all {len(names)} functions, derives {checked} descriptors as expected")


if __name__ == "__main__":
    main()
