// Kernels of f64 tensors of which a mask says what counts.
#include "masked_entries.cuh"

MASKED(f64, double)
MASKED_MERGE(f64, double)
