// Split kernels of f16 tensors for any activation.
#include "any_entries.cuh"

ANY_ENTRIES(f16, __half)
