// Resident kernels of bf16 tensors.
#include "resident_entries.cuh"

RESIDENT(bf16, __nv_bfloat16)
