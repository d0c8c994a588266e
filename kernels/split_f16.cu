// Split kernels of f16 tensors.
#include "entries.cuh"

ENTRIES(f16, __half)
