// Resident kernels of f16 tensors for any activation.
#include "resident_entries.cuh"

RESIDENT_ANY(f16, __half)
