// Kernels of f32 tensors of which a mask says what counts.
#include "masked_entries.cuh"

MASKED(f32, float)
MASKED_MERGE(f32, float)
MASKED_RESIDENT(f32, float)
