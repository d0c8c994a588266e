// Resident kernels of f32 tensors for any activation.
#include "resident_entries.cuh"

RESIDENT_ANY(f32, float)
