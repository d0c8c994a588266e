// What threads exchange: shuffles, votes, shared memory, integer atomics.
#include <stdint.h>

#define PUT(value) out[op++ * n + i] = (value)

/// A block of whole warps per piece of the input.
extern "C" __global__ void shuffles(const uint32_t *in, uint32_t *out, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x, lane = threadIdx.x % 32;
    const uint32_t value = in[i];
    int op = 0;
    PUT(__shfl_sync(~0u, value, 5));
    PUT(__shfl_sync(~0u, value, value)); // any lane, by its low five bits
    PUT(__shfl_sync(~0u, value, lane * 7, 8));
    PUT(__shfl_up_sync(~0u, value, 1));
    PUT(__shfl_up_sync(~0u, value, 3, 8));
    PUT(__shfl_down_sync(~0u, value, 7));
    PUT(__shfl_down_sync(~0u, value, 2, 4));
    PUT(__shfl_xor_sync(~0u, value, 16));
    PUT(__shfl_xor_sync(~0u, value, 5, 16));
    // The lanes of one half only; then those of the other.
    uint32_t part;
    if (lane < 16)
        part = __shfl_xor_sync(0xffffu, value, 3);
    else
        part = __shfl_down_sync(0xffff0000u, value, 1);
    PUT(part);
    const unsigned long long wide = __shfl_xor_sync(~0u, (unsigned long long)(value) << 20 | value, 9);
    PUT(uint32_t(wide));
    PUT(uint32_t(wide >> 32));
}

extern "C" __global__ void votes(const uint32_t *in, uint32_t *out, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x, lane = threadIdx.x % 32;
    const uint32_t value = in[i];
    int op = 0;
    PUT(__ballot_sync(~0u, value & 1));
    PUT(__ballot_sync(~0u, int32_t(value) > 0));
    PUT(__any_sync(~0u, value % 64 == 0));
    PUT(__all_sync(~0u, value % 64 != 0));
    const uint32_t some = __ballot_sync(~0u, value & 2);
    uint32_t among; // lanes vote among their own
    if (value & 2)
        among = __ballot_sync(some, value & 4);
    else
        among = __ballot_sync(~some, value & 8);
    PUT(among);
    PUT(__popc(__ballot_sync(~0u, value & 1) & (1u << lane) - 1)); // the rank among those that are set
    PUT(__syncthreads_count(value & 1));
    PUT(__syncthreads_and(value != 0));
    PUT(__syncthreads_or(value % 1024 == 0));
}

/// A bit per element that is above 0, as words: what a ReLU keeps for its gradient.
extern "C" __global__ void sign_masks(const float *in, uint32_t *out, int n) {
    const int stride = gridDim.x * blockDim.x;
    const int whole = (n + 31) & -32; // every lane of a warp votes
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < whole; i += stride) {
        const uint32_t word = __ballot_sync(~0u, i < n && in[i] > 0);
        if (threadIdx.x % 32 == 0) out[i / 32] = word;
    }
}

/// Of a matrix of any size, in tiles of 32 x 32 without bank conflicts; block: 32 x 8.
extern "C" __global__ void transpose(const uint32_t *in, uint32_t *out, int rows, int columns) {
    __shared__ uint32_t tile[32][33];
    const int column = blockIdx.x * 32 + threadIdx.x, row = blockIdx.y * 32 + threadIdx.y;
    for (int k = 0; k < 32; k += 8)
        if (column < columns && row + k < rows)
            tile[threadIdx.y + k][threadIdx.x] = in[size_t(row + k) * columns + column];
    __syncthreads();
    const int out_column = blockIdx.y * 32 + threadIdx.x, out_row = blockIdx.x * 32 + threadIdx.y;
    for (int k = 0; k < 32; k += 8)
        if (out_column < rows && out_row + k < columns)
            out[size_t(out_row + k) * rows + out_column] = tile[threadIdx.x][threadIdx.y + k];
}

/// A histogram of 64 bins, gathered in shared memory, and reductions of all values whose order does not matter.
/// `totals`: sum, smallest, largest, smallest and largest signed, and, or, xor, count, unused, sum of squares in 64
/// bits, product of what is made odd.
extern "C" __global__ void atomics(const uint32_t *in, uint32_t *histogram, uint32_t *totals, uint32_t *seen, int n) {
    __shared__ uint32_t bins[64];
    for (int bin = threadIdx.x; bin < 64; bin += blockDim.x) bins[bin] = 0;
    __syncthreads();
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
        const uint32_t value = in[i];
        atomicAdd(&bins[value % 64], 1);
        atomicAdd(&totals[0], value);
        atomicMin(&totals[1], value);
        atomicMax(&totals[2], value);
        atomicMin(reinterpret_cast<int32_t *>(&totals[3]), int32_t(value));
        atomicMax(reinterpret_cast<int32_t *>(&totals[4]), int32_t(value));
        atomicAnd(&totals[5], value | 0xf0f0f0f0);
        atomicOr(&totals[6], value & 0x0f0ff0f0);
        atomicXor(&totals[7], value);
        // Every old value is one that was not there before: the host sorts them.
        seen[i] = atomicInc(&totals[8], 999999);
        atomicAdd(reinterpret_cast<unsigned long long *>(&totals[10]), (unsigned long long)(value)*value);
        // A product by compare-and-swap, of odd numbers: it does not depend on the order either.
        uint32_t found = 1, expected;
        do {
            expected = found;
            found = atomicCAS(&totals[12], expected, expected * (value | 1));
        } while (found != expected);
    }
    __syncthreads();
    for (int bin = threadIdx.x; bin < 64; bin += blockDim.x) atomicAdd(&histogram[bin], bins[bin]);
}

/// Sorts 16 values per thread in an array of its own, indexed by values that only the run decides.
extern "C" __global__ void sort_local(const int32_t *in, int32_t *out, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    int32_t values[16];
#pragma unroll 1
    for (int k = 0; k < 16; k++) {
        const int32_t value = in[k * n + i];
        int place = k;
#pragma unroll 1
        for (; place > 0 && values[place - 1] > value; place--) values[place] = values[place - 1];
        values[place] = value;
    }
#pragma unroll 1
    for (int k = 0; k < 16; k++) out[k * n + i] = values[k];
}

/// Loads and stores of every width: 8 to 64 bits, and two or four of them together.
extern "C" __global__ void widths(const uint8_t *in, uint8_t *out, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    out[i] = in[i] + 1;
    reinterpret_cast<uint16_t *>(out + n)[i] = reinterpret_cast<const uint16_t *>(in)[i] + 1;
    reinterpret_cast<uint32_t *>(out + 3 * n)[i] = reinterpret_cast<const uint32_t *>(in)[i] + 1;
    reinterpret_cast<uint64_t *>(out + 7 * n)[i] = reinterpret_cast<const uint64_t *>(in)[i] + 1;
    uchar4 bytes = reinterpret_cast<const uchar4 *>(in)[i];
    reinterpret_cast<uchar4 *>(out + 15 * n)[i] = make_uchar4(bytes.w, bytes.z, bytes.y, bytes.x);
    ushort4 shorts = reinterpret_cast<const ushort4 *>(in)[i];
    reinterpret_cast<ushort4 *>(out + 19 * n)[i] = make_ushort4(shorts.w, shorts.z, shorts.y, shorts.x);
    uint4 words = reinterpret_cast<const uint4 *>(in)[i];
    reinterpret_cast<uint4 *>(out + 27 * n)[i] = make_uint4(words.w, words.z, words.y, words.x);
    ulonglong2 longs = reinterpret_cast<const ulonglong2 *>(in)[i];
    reinterpret_cast<ulonglong2 *>(out + 43 * n)[i] = make_ulonglong2(longs.y, longs.x);
}
