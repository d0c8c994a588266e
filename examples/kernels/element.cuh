// A thread for every element.
#pragma once

using u64 = unsigned long long;

/// This thread's element, where there are as many.
__device__ inline u64 element() { return u64(blockIdx.x) * blockDim.x + threadIdx.x; }
