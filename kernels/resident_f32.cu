// Resident kernels of f32 tensors.
#include "resident_entries.cuh"

RESIDENT(f32, float)
