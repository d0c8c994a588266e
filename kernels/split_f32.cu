// Split kernels of f32 tensors.
#include "entries.cuh"

ENTRIES(f32, float)
MERGE_STATS(f32, float)
