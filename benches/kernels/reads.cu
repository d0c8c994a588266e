// Ways of reading a tensor, for measuring which brings most bytes in: loads that a thread has in flight, their cache
// hints, and copies to shared memory that pass the L1 cache by. scripts/gpu_probe.py launches them.

using u64 = unsigned long long;

struct Plain {
    static __device__ float4 load(const float4 *from) { return *from; }
};
/// For what is not read again.
struct Streaming {
    static __device__ float4 load(const float4 *from) { return __ldcs(from); }
};

/// One after another, so that no compiler adds a vector up before those behind it are asked for.
__device__ inline float added(float sum, float4 v) {
    return __fadd_rn(__fadd_rn(__fadd_rn(__fadd_rn(sum, v.x), v.y), v.z), v.w);
}

/// Vectors 0 to `count`, a multiple of what the grid reads in a step; `out` is written where nothing is read, so that
/// the loads are not left out.
template <class Way, int N> __device__ void read(const float4 *from, u64 count, float *out) {
    u64 threads = u64(gridDim.x) * blockDim.x;
    float sum = 0;
    for (u64 i = u64(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += N * threads) {
        float4 loaded[N];
#pragma unroll
        for (int k = 0; k < N; k++) loaded[k] = Way::load(from + i + k * threads);
#pragma unroll
        for (int k = N - 1; k >= 0; k--) sum = added(sum, loaded[k]);
    }
    if (sum == 12345.0f) *out = sum;
}

#define READ(way, Way, N)                                                                                              \
    extern "C" __global__ void __launch_bounds__(256, 2) read_##way##_##N(const float4 *from, u64 count, float *out) { \
        read<Way, N>(from, count, out);                                                                                \
    }
READ(plain, Plain, 1)
READ(plain, Plain, 2)
READ(plain, Plain, 4)
READ(plain, Plain, 8)
READ(streaming, Streaming, 1)
READ(streaming, Streaming, 2)
READ(streaming, Streaming, 4)
READ(streaming, Streaming, 8)

#if __CUDA_ARCH__ >= 800
extern __shared__ float4 kept[];

/// Each thread copies N vectors to places of its own and waits for them.
template <int N> __device__ void copy(const float4 *from, u64 count, float *out) {
    u64 threads = u64(gridDim.x) * blockDim.x;
    float sum = 0;
    for (u64 i = u64(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += N * threads) {
#pragma unroll
        for (int k = 0; k < N; k++) {
            unsigned to = __cvta_generic_to_shared(kept + k * blockDim.x + threadIdx.x);
            asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from + i + k * threads) : "memory");
        }
        asm volatile("cp.async.wait_all;" ::: "memory");
#pragma unroll
        for (int k = N - 1; k >= 0; k--) sum = added(sum, kept[k * blockDim.x + threadIdx.x]);
    }
    if (sum == 12345.0f) *out = sum;
}

#define COPY(N)                                                                                                        \
    extern "C" __global__ void __launch_bounds__(256, 2) read_async_##N(const float4 *from, u64 count, float *out) {   \
        copy<N>(from, count, out);                                                                                     \
    }
COPY(4)
COPY(8)
COPY(16)
#endif
