// Split kernels of f32 tensors for any activation.
#include "any_entries.cuh"

ANY_ENTRIES(f32, float)
