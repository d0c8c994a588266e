// Split kernels of f64 tensors for any activation.
#include "any_entries.cuh"

ANY_ENTRIES(f64, double)
