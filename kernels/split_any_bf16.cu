// Split kernels of bf16 tensors for any activation.
#include "any_entries.cuh"

ANY_ENTRIES(bf16, __nv_bfloat16)
