// Resident kernels of f16 tensors.
#include "resident_entries.cuh"

RESIDENT(f16, __half)
