// Split kernels of f64 tensors.
#include "entries.cuh"

ENTRIES(f64, double)
MERGE_STATS(f64, double)
