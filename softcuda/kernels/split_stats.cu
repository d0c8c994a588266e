// Statistics of N x C x S with several blocks per channel. Whichever block of a channel finishes last puts the parts
// together, in an order that does not depend on which one that is.
#include "block.cuh"
#include "element.cuh"

struct Part {
    float mean, squares; // squares: the sum of (x - mean)^2
};

/// Grid: splits x channels. `parts`: channels x splits. `tickets`: a zero per channel, and again at the end.
template <class T>
__device__ void split_stats(const T *x, Part *parts, unsigned *tickets, float *mean, float *var, int images,
                            int channels, int plane) {
    using E = Element<T>;
    const int split = blockIdx.x, splits = gridDim.x, channel = blockIdx.y;
    // Every block takes an equal piece of every plane, in whole vectors but for the end.
    const int piece = (plane + splits - 1) / splits + WIDTH<T> - 1 & -WIDTH<T>;
    const int from = min(split * piece, plane), to = min(from + piece, plane);

    // About the first value of the piece, so that little cancels.
    __shared__ float origin;
    if (threadIdx.x == 0) origin = from < to ? E::widen(x[size_t(channel) * plane + from]) : 0;
    __syncthreads();
    Pair<float> sums = {0, 0};
    const auto count = [&](T value) {
        const float d = E::widen(value) - origin;
        sums.first += d;
        sums.second = fma_rn(d, d, sums.second);
    };
    for (int image = 0; image < images; image++) {
        const size_t begin = (size_t(image) * channels + channel) * plane;
        for_each<WIDTH<T>>(
            begin + from, begin + to,
            [&](size_t i) {
                const Vector<T> vector = load_streaming(x + i);
                for (int k = 0; k < WIDTH<T>; k++) count(vector.element[k]);
            },
            [&](size_t i) { count(x[i]); });
    }
    sums = block_sum(sums);

    __shared__ bool last;
    Part *const of_channel = parts + size_t(channel) * splits;
    if (threadIdx.x == 0) {
        Part part = {0, 0};
        if (from < to) {
            const float shift = div_rn(sums.first, float(images) * float(to - from));
            part = {origin + shift, fma_rn(-shift, sums.first, sums.second)};
        }
        of_channel[split] = part;
        __threadfence(); // the part is seen before the ticket
        last = atomicInc(&tickets[channel], splits - 1) == splits - 1;
        __threadfence(); // the ticket is seen before the parts of others
    }
    __syncthreads();
    if (!last) return;

    if (threadIdx.x < 32) {
        // Chan's rule, by lanes and then between them.
        float n = 0, m = 0, squares = 0;
        const auto merge = [&](float other_n, float other_mean, float other_squares) {
            if (other_n == 0) return;
            const float total = n + other_n, d = other_mean - m, share = div_rn(other_n, total);
            m = fma_rn(d, share, m);
            squares = squares + other_squares + d * d * n * share;
            n = total;
        };
        for (int i = threadIdx.x; i < splits; i += 32) {
            const float2 part = __ldcg(reinterpret_cast<const float2 *>(of_channel + i));
            const int begin = min(i * piece, plane), end = min(begin + piece, plane);
            merge(float(images) * float(end - begin), part.x, part.y);
        }
        for (int distance = 16; distance > 0; distance /= 2) {
            const float other_n = __shfl_down_sync(~0u, n, distance), other_mean = __shfl_down_sync(~0u, m, distance),
                        other_squares = __shfl_down_sync(~0u, squares, distance);
            merge(other_n, other_mean, other_squares);
        }
        if (threadIdx.x == 0) {
            mean[channel] = m;
            var[channel] = div_rn(squares, n);
        }
    }
}

#define KERNEL(name, T)                                                                                                \
    extern "C" __global__ void __launch_bounds__(256) split_stats_##name(                                              \
        const T *x, Part *parts, unsigned *tickets, float *mean, float *var, int images, int channels, int plane) {    \
        split_stats(x, parts, tickets, mean, var, images, channels, plane);                                            \
    }

KERNEL(f32, float)
KERNEL(f16, __half)
KERNEL(bf16, __nv_bfloat16)
