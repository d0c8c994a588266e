// Mean and variance of every channel: the parts of tiles, then what they come to.
//
// A thread sums distances from a pivot, the mean of what it has read, a segment at a time. Where that turns out to be
// far from the segment's own mean, the segment, still in cache, is read again about that. So the squares do not cancel,
// and the error does not grow with the mean. Segments, lanes, threads and tiles are merged by Chan's formula in f64, as
// distances from the channel's first value.
#pragma once
#include "geometry.cuh"

/// Vectors of a thread that are summed in the accumulating type.
constexpr unsigned SEGMENT = 32;
/// A pivot is far if its squared distance from the mean is more than this many variances.
constexpr int FAR = 4;
/// Vectors that are loaded before the first is used.
constexpr unsigned AHEAD = 4;

/// What the mean of a channel counts from.
template <class T> __device__ AccOf<T> base_of(const T *x, u64 channel, u64 inner) {
    const AccOf<T> first = Element<T>::widen(x[channel * inner]);
    return isfinite(first) ? first : AccOf<T>(0);
}

/// Sums and squares of distances; `first`: these are the thread's first vectors, which set the pivot.
template <class T, int W> struct Segment {
    using A = AccOf<T>;
    A sum[W], square[W];

    __device__ void read(const T *x, Walk &walk, unsigned n, bool first, bool aligned, A (&pivot)[W]) {
#pragma unroll
        for (int i = 0; i < W; i++) sum[i] = square[i] = 0;
        for (unsigned begin = 0, here; begin < n; begin += here) {
            Vector<T, W> ahead[AHEAD];
            here = min(at_once<W>(AHEAD, aligned), n - begin);
#pragma unroll
            for (unsigned k = 0; k < AHEAD; k++) {
                if (k < here) {
                    ahead[k] = load<T, W>(x, walk.at, k > 0 || aligned);
                    walk.next();
                }
            }
            if (first && begin == 0) set(pivot, ahead, here);
#pragma unroll
            for (unsigned k = 0; k < AHEAD; k++) {
                if (k < here) {
#pragma unroll
                    for (int i = 0; i < W; i++) {
                        const A d = Element<T>::widen(ahead[k].element[i]) - pivot[i];
                        sum[i] += d;
                        square[i] = fma_rn(d, d, square[i]);
                    }
                }
            }
        }
    }
    /// Where nothing is known: the mean of a few values.
    static __device__ void set(A (&pivot)[W], const Vector<T, W> (&few)[AHEAD], unsigned n) {
#pragma unroll
        for (int i = 0; i < W; i++) {
            const A one = Element<T>::widen(few[0].element[i]);
            A sum = 0;
#pragma unroll
            for (unsigned k = 1; k < AHEAD; k++) {
                if (k < n) sum += Element<T>::widen(few[k].element[i]) - one;
            }
            pivot[i] = one + sum / A(n);
        }
    }
    __device__ bool far(unsigned n) const {
        bool any = false;
#pragma unroll
        for (int i = 0; i < W; i++) any |= A(1 + FAR) * sum[i] * sum[i] > A(FAR) * A(n) * square[i];
        return any;
    }
};

template <class T, int W> __device__ void stats(const Geometry &g, const T *x, double2 *partials) {
    using A = AccOf<T>;
    __shared__ Shared<A> shared;
    Walk walk(g, false);
    A base[W], pivot[W];
    double offset[W], squares[W];
#pragma unroll
    for (int i = 0; i < W; i++) base[i] = pivot[i] = offset[i] = squares[i] = 0;
    Segment<T, W> segment;
    for (unsigned done = 0; done < walk.count;) {
        const unsigned n = min(SEGMENT, walk.count - done);
        const Walk start = walk;
        segment.read(x, walk, n, done == 0, g.aligned, pivot);
        if (segment.far(n)) {
#pragma unroll
            for (int i = 0; i < W; i++) pivot[i] += segment.sum[i] / A(n);
            walk = start;
            segment.read(x, walk, n, false, g.aligned, pivot);
        }
        const double each = 1.0 / n, share = double(n) / (done + n), both = done * share;
#pragma unroll
        for (int i = 0; i < W; i++) {
            if (done == 0) base[i] = pivot[i];
            const double sum = segment.sum[i], own = segment.square[i] - sum * sum * each;
            const double delta = (double(pivot[i]) - base[i]) + sum * each - offset[i];
            offset[i] += delta * share;
            squares[i] += (own < 0 ? 0 : own) + delta * delta * both; // NaN stays
            pivot[i] = A(base[i] + offset[i]);
        }
        done += n;
    }

    A *const bases = shared.table[0];
    for (unsigned c = threadIdx.x; c < channels_of(g, walk); c += blockDim.x) {
        bases[c] = base_of(x, u64(walk.slice) * g.slice_channels + c, g.inner);
    }
    __syncthreads();
    Part parts[W];
#pragma unroll
    for (int i = 0; i < W; i++) {
        parts[i] = {double(walk.count), 0, 0};
        if (walk.count > 0) {
            parts[i].first = (double(base[i]) - bases[channel_of<W>(g, walk, i)]) + offset[i];
            parts[i].second = squares[i];
        }
    }
    reduce<A, W, Chan>(g, walk, parts, partials, shared);
}

struct Merge {
    u64 count, tile_count;
    unsigned tiles, channels;
    u64 inner;
};
template <class A> struct Outputs {
    double eps, factor;
    A *mean, *mean_rest, *invstd, *running_mean, *running_var, *record;
    unsigned *nonfinite;
};

/// The channel of a warp.
__device__ inline unsigned warp_channel() { return blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32; }

template <class Rule> __device__ Part warp_merge(Part own) {
    for (int distance = 16; distance > 0; distance /= 2) {
        const Part other = {__shfl_down_sync(~0u, own.count, distance), __shfl_down_sync(~0u, own.first, distance),
                            __shfl_down_sync(~0u, own.second, distance)};
        Rule::merge(own, other);
    }
    return {__shfl_sync(~0u, own.count, 0), __shfl_sync(~0u, own.first, 0), __shfl_sync(~0u, own.second, 0)};
}

/// `r <- (1 - factor) * r + factor * batch`.
template <class A> __device__ void blend(A *running, double factor, double batch) {
    *running = A((1 - factor) * *running + factor * batch);
}

/// The definition, for channels whose sums are not finite: an infinity or a NaN among the values, or squares beyond
/// f32.
template <class T> __device__ Part wide_moments(const Merge &merge, unsigned channel, const T *x, double *base) {
    const auto sum = [&](auto term) {
        Part part = {0, 0, 0};
        for (u64 n = threadIdx.x % 32; n < merge.count; n += 32) {
            const u64 outer = n / merge.inner, i = n % merge.inner;
            const u64 at = (outer * merge.channels + channel) * merge.inner + i;
            part.first += term(double(Element<T>::widen(x[at])));
        }
        return warp_merge<Add>(part).first;
    };
    const double mean = sum([](double x) { return x; }) / merge.count;
    *base = mean;
    return {double(merge.count), 0, sum([&](double x) { return (x - mean) * (x - mean); })};
}

template <class T>
__device__ void stats_finalize(const Merge &merge, const Outputs<AccOf<T>> &out, const T *x, const double2 *partials) {
    using A = AccOf<T>;
    const unsigned c = warp_channel(), lane = threadIdx.x % 32;
    if (c >= merge.channels) return;
    Part own = {0, 0, 0};
    for (unsigned tile = lane; tile < merge.tiles; tile += 32) {
        const double2 part = partials[u64(c) * merge.tiles + tile];
        const u64 count = min(merge.tile_count, merge.count - tile * merge.tile_count);
        Chan::merge(own, {double(count), part.x, part.y});
    }
    Part all = warp_merge<Chan>(own);
    double base = merge.count > 0 ? base_of(x, c, merge.inner) : 0;
    if (!isfinite(all.second)) all = wide_moments(merge, c, x, &base);
    if (lane != 0) return;

    const double mean = base + all.first, var = merge.count > 0 ? all.second / merge.count : 0;
    const A rounded = A(mean);
    if (out.mean) out.mean[c] = rounded;
    if (out.mean_rest) out.mean_rest[c] = A(or_zero((base - double(rounded)) + all.first));
    if (out.invstd) out.invstd[c] = A(1 / sqrt(var + out.eps));
    if (out.running_mean && merge.count > 0) {
        blend(out.running_mean + c, out.factor, mean);
        blend(out.running_var + c, out.factor, all.second / (merge.count - 1.0));
    }
    if (out.record) {
        out.record[c] = rounded;
        out.record[merge.channels + c] = A(var);
        if (c == 0) out.record[u64(2) * merge.channels] = A(merge.count);
    }
    if (out.nonfinite && !(isfinite(mean) && isfinite(var))) atomicOr(out.nonfinite, 1u);
}

/// Statistics that are given, as a forward uses and saves them.
template <class A>
__device__ void eval(unsigned channels, double eps, const A *mean, const A *var, A *saved_mean, A *saved_rest,
                     A *invstd, unsigned *nonfinite) {
    const unsigned c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= channels) return;
    if (saved_mean) saved_mean[c] = mean[c];
    if (saved_rest) saved_rest[c] = 0;
    invstd[c] = A(1 / sqrt(double(var[c]) + eps));
    if (nonfinite && !(isfinite(mean[c]) && isfinite(var[c]))) atomicOr(nonfinite, 1u);
}

/// Merges records of the parts of a batch: each the means, the biased variances, the count.
template <class A>
__device__ void merge_stats(unsigned channels, unsigned parts, const A *records, double factor, A *running_mean,
                            A *running_var, A *mean, A *var) {
    const unsigned c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= channels) return;
    Part all = {0, 0, 0};
    for (unsigned part = 0; part < parts; part++) {
        const A *const record = records + part * (u64(2) * channels + 1);
        const double count = record[u64(2) * channels];
        Chan::merge(all, {count, double(record[c]), double(record[u64(channels) + c]) * count});
    }
    mean[c] = A(all.first);
    var[c] = A(all.count > 0 ? all.second / all.count : 0);
    if (running_mean && all.count > 0) {
        blend(running_mean + c, factor, all.first);
        blend(running_var + c, factor, all.second / (all.count - 1));
    }
}
