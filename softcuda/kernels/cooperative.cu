// Batch normalization of rows x C (channels last) by all blocks of a cooperative launch together: a block keeps its
// rows in shared memory, statistics cross the blocks through global memory and a barrier, and x is read once.
#include "element.cuh"

/// Waits until every block of the grid has come here. `word` is 0 before the first launch and comes back to that state
/// in its low 31 bits; each barrier flips its top bit. All blocks must be resident: a cooperative launch.
__device__ void grid_barrier(unsigned *word) {
    __syncthreads();
    if (threadIdx.x == 0) {
        // The top bit cannot flip before this block has arrived.
        unsigned before, now;
        asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(before) : "l"(word) : "memory");
        const unsigned arrival = blockIdx.x == 0 ? 0x80000000u - (gridDim.x - 1) : 1u;
        asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(word), "r"(arrival) : "memory");
        do {
            asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(word) : "memory");
        } while (((before ^ now) & 0x80000000u) == 0);
    }
    __syncthreads();
}

/// Sums `own[k]` of channel `column * width + k` over the rows of threads of a block, into `of_block`. Another call
/// must have a barrier of the block before it.
template <int width>
__device__ void sum_rows(const float (&own)[width], int column, int lane_row, int lane_rows, int channels,
                         float *scratch, float *of_block) {
    for (int k = 0; k < width; k++) scratch[lane_row * channels + column * width + k] = own[k];
    __syncthreads();
    for (int channel = threadIdx.x; channel < channels; channel += blockDim.x) {
        float sum = 0;
        for (int row = 0; row < lane_rows; row++) sum += scratch[row * channels + channel];
        of_block[channel] = sum;
    }
}

/// `partial` holds 2 x blocks x C. C is a number of whole vectors that divides the block's threads.
/// Dynamic shared memory: `tile_rows` rows of x (a multiple of the rows that the threads span), then
/// width * threads + 2 * C floats. Rows of a block beyond `tile_rows` are read again instead.
template <class T>
__device__ void normalize_grid(const T *x, T *y, const float *weight, const float *bias, float *mean, float *var,
                               float *partial, unsigned *barrier, int rows, int channels, int tile_rows, float eps) {
    using E = Element<T>;
    constexpr int width = WIDTH<T>;
    extern __shared__ uint4 shared[];
    const int columns = channels / width, lane_rows = blockDim.x / columns;
    const int column = threadIdx.x % columns, lane_row = threadIdx.x / columns;
    T *const tile = reinterpret_cast<T *>(shared);
    float *const scratch = reinterpret_cast<float *>(tile + size_t(tile_rows) * channels);
    float *const block_sums = scratch + width * blockDim.x, *const means = block_sums + channels;
    const int own_rows = (rows + gridDim.x - 1) / gridDim.x;
    const int first = min(int(blockIdx.x) * own_rows, rows), count = min(own_rows, rows - first);
    const auto place = [&](int row) { return size_t(first + row) * channels + column * width; };
    const auto slot = [&](int row) { return row * channels + column * width; };

    float sums[width];
    for (int k = 0; k < width; k++) sums[k] = 0;
    for (int row = lane_row; row < count; row += lane_rows) {
        Vector<T> vector;
        if (row < tile_rows) {
            vector = load_streaming(x + place(row));
            *reinterpret_cast<Vector<T> *>(tile + slot(row)) = vector;
        } else {
            vector = load(x + place(row));
        }
        for (int k = 0; k < width; k++) sums[k] += E::widen(vector.element[k]);
    }

    // The sum of all blocks' sums, in the order of the blocks.
    const auto all_blocks = [&](float *of_blocks, float *to) {
        sum_rows<width>(sums, column, lane_row, lane_rows, channels, scratch, block_sums);
        for (int channel = threadIdx.x; channel < channels; channel += blockDim.x)
            of_blocks[size_t(blockIdx.x) * channels + channel] = block_sums[channel];
        grid_barrier(barrier);
        for (int channel = threadIdx.x; channel < channels; channel += blockDim.x) {
            float sum = 0;
            for (int block = 0; block < gridDim.x; block++)
                sum += __ldcg(of_blocks + size_t(block) * channels + channel);
            to[channel] = div_rn(sum, float(rows));
        }
        __syncthreads();
    };
    all_blocks(partial, means);

    const auto again = [&](int row) {
        return row < tile_rows ? *reinterpret_cast<const Vector<T> *>(tile + slot(row))
                               : load_streaming(x + place(row));
    };
    float center[width];
    for (int k = 0; k < width; k++) center[k] = means[column * width + k], sums[k] = 0;
    for (int row = lane_row; row < count; row += lane_rows) {
        const Vector<T> vector = again(row);
        for (int k = 0; k < width; k++) {
            const float d = E::widen(vector.element[k]) - center[k];
            sums[k] = fma_rn(d, d, sums[k]);
        }
    }
    float *const vars = block_sums; // read no more once all blocks have passed the barrier
    all_blocks(partial + size_t(gridDim.x) * channels, vars);

    if (blockIdx.x == 0) {
        for (int channel = threadIdx.x; channel < channels; channel += blockDim.x) {
            mean[channel] = means[channel];
            var[channel] = vars[channel];
        }
    }
    float scale[width], offset[width];
    for (int k = 0; k < width; k++) {
        const int channel = column * width + k;
        scale[k] = weight[channel] * div_rn(1.0f, sqrt_rn(vars[channel] + eps));
        offset[k] = bias[channel];
    }
    for (int row = lane_row; row < count; row += lane_rows) {
        const Vector<T> vector = again(row);
        Vector<T> out;
        for (int k = 0; k < width; k++)
            out.element[k] = E::narrow(fma_rn(E::widen(vector.element[k]) - center[k], scale[k], offset[k]));
        store_streaming(y + place(row), out);
    }
}

#define KERNEL(name, T)                                                                                                \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        normalize_grid_##name(const T *x, T *y, const float *weight, const float *bias, float *mean, float *var,       \
                              float *partial, unsigned *barrier, int rows, int channels, int tile_rows, float eps) {   \
        normalize_grid(x, y, weight, bias, mean, var, partial, barrier, rows, channels, tile_rows, eps);               \
    }

KERNEL(f32, float)
KERNEL(f16, __half)
KERNEL(bf16, __nv_bfloat16)
