// Resident kernels of bf16 tensors for any activation.
#include "resident_entries.cuh"

RESIDENT_ANY(bf16, __nv_bfloat16)
