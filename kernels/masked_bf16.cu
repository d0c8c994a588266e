// Kernels of bf16 tensors of which a mask says what counts.
#include "masked_entries.cuh"

MASKED(bf16, __nv_bfloat16)
MASKED_RESIDENT(bf16, __nv_bfloat16)
