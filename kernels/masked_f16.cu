// Kernels of f16 tensors of which a mask says what counts.
#include "masked_entries.cuh"

MASKED(f16, __half)
MASKED_RESIDENT(f16, __half)
