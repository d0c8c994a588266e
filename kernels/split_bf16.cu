// Split kernels of bf16 tensors.
#include "entries.cuh"

ENTRIES(bf16, __nv_bfloat16)
