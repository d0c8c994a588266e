// What the threads of a block do together.
#pragma once

template <class A> struct Pair {
    A first, second;
};

/// The sums over all threads of a block, in every thread; in an order that depends on nothing but the block's size.
/// Every thread must come, once per kernel, and the block must be whole warps.
template <class A> __device__ Pair<A> block_sum(Pair<A> own) {
    __shared__ Pair<A> of_warp[32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    for (int distance = 16; distance > 0; distance /= 2) {
        own.first += __shfl_xor_sync(~0u, own.first, distance);
        own.second += __shfl_xor_sync(~0u, own.second, distance);
    }
    if (lane == 0) of_warp[warp] = own;
    __syncthreads();
    Pair<A> sum = of_warp[0];
    for (int i = 1; i < warps; i++) {
        sum.first += of_warp[i].first;
        sum.second += of_warp[i].second;
    }
    return sum;
}

/// Elements `begin..end` of a tensor, shared out to the threads of a block: `vector(i)` for whole aligned vectors of
/// `width` elements, `scalar(i)` for what stands before and behind them.
template <int width, class ByVector, class ByScalar>
__device__ void for_each(size_t begin, size_t end, ByVector vector, ByScalar scalar) {
    size_t first = (begin + width - 1) / width * width, last = end / width * width;
    if (first > last) first = last = end;
    for (size_t i = first + threadIdx.x * width; i < last; i += blockDim.x * width) vector(i);
    for (size_t i = begin + threadIdx.x; i < first; i += blockDim.x) scalar(i);
    for (size_t i = last + threadIdx.x; i < end; i += blockDim.x) scalar(i);
}
