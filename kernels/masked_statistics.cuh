// Statistics of the values that count for a mask. Values that do not count are read and left out by selection, never by
// a product: what stands there may be anything.
#pragma once
#include "places.cuh"

/// What some values of a channel come to that count: their mean is `base + offset`, and `squares` are about it.
struct alignas(16) Counted {
    double count, base, offset, squares;
};
/// Chan's formula, of parts that count from bases of their own: there is no value that all have in common, since any
/// may be one that does not count.
struct ChanFrom {
    static __device__ void merge(Counted &into, const Counted &other) {
        if (other.count == 0) return;
        if (into.count == 0) {
            into = other;
            return;
        }
        const double count = into.count + other.count, share = other.count / count;
        const double delta = (other.base - into.base) + (other.offset - into.offset);
        into.offset += delta * share;
        into.squares += other.squares + delta * delta * into.count * share;
        into.count = count;
    }
};

/// `Moments` of the values that count, whose number differs from lane to lane.
template <class T, int W> struct CountedMoments {
    using A = AccOf<T>;
    unsigned vectors = 0, without = (1u << W) - 1; // lanes without a pivot
    unsigned count[W];
    A pivot[W], sum[W], square[W], fresh[W];

    __device__ CountedMoments() {
#pragma unroll
        for (int i = 0; i < W; i++) {
            count[i] = 0;
            pivot[i] = sum[i] = square[i] = fresh[i] = 0;
        }
    }
    __device__ void add(const Vector<T, W> &vector, const Kept<W> &kept) {
#pragma unroll
        for (int i = 0; i < W; i++) {
            const bool counts = kept.of(i);
            const A d = counts ? Element<T>::widen(vector.get(i)) - pivot[i] : A(0);
            count[i] += counts;
            sum[i] += d;
            fresh[i] = fma_rn(d, d, fresh[i]);
        }
    }
    /// Before the first of a batch is added: in lanes that have none, the mean of those that count becomes the pivot.
    template <unsigned N> __device__ void begin(const Vector<T, W> (&x)[N], const Kept<W> (&kept)[N]) {
        if (without == 0) return;
#pragma unroll
        for (int i = 0; i < W; i++) {
            A one = 0, sum = 0;
            unsigned found = 0;
#pragma unroll
            for (unsigned k = 0; k < N; k++) {
                if (!kept[k].of(i)) continue;
                const A value = Element<T>::widen(x[k].get(i));
                if (found == 0) one = value;
                sum += value - one;
                found++;
            }
            if (found == 0 || !(without >> i & 1)) continue;
            pivot[i] = one + sum * reciprocal<A>(found);
            without &= ~(1u << i);
        }
    }
    /// After the last of them.
    __device__ void end(unsigned n) {
        vectors += n;
        if (ends_segment(vectors, n)) move();
    }
    __device__ void move() {
#pragma unroll
        for (int i = 0; i < W; i++) {
            if (count[i] == 0) continue;
            const A n = A(count[i]), each = reciprocal<A>(count[i]);
            const A to = pivot[i] + sum[i] * each, d = to - pivot[i], left = sum[i] - n * d;
            square[i] = square[i] + fresh[i] - d * (sum[i] + left);
            pivot[i] = to;
            sum[i] = left;
            fresh[i] = 0;
        }
    }
    /// What a lane comes to, by a number that only the loop around knows.
    __device__ Counted part(int lane) const {
        unsigned values = 0;
        double total = 0, squares = 0, base = 0;
#pragma unroll
        for (int i = 0; i < W; i++) {
            if (i == lane) values = count[i], total = sum[i], squares = double(square[i]) + fresh[i], base = pivot[i];
        }
        if (values == 0) return {0, 0, 0, 0};
        const double each = total / values;
        squares -= total * each;
        return {double(values), base, each, squares < 0 ? 0 : squares}; // NaN stays
    }
};

template <class A> struct CountedShared {
    Counted stage[THREADS], columns[COLUMNS<A>];
};
/// As `reduce`, of parts whose counts differ: `own(i)` is that of a lane, which only the loop around knows.
template <class A, int W, class Own>
__device__ void reduce_counted(const Geometry &g, const Walk<u64> &walk, Own own, Counted *partials,
                               CountedShared<A> &shared) {
    const unsigned tiles = gridDim.x / g.slices;
    if (g.slice_channels == 1) {
        Counted all = own(0);
#pragma unroll 1
        for (int i = 1; i < W; i++) ChanFrom::merge(all, own(i));
        all = fold<ChanFrom>(shared.stage, all, threadIdx.x, g.threads, 1);
        if (threadIdx.x == 0) partials[u64(walk.slice) * tiles + walk.tile] = all;
        return;
    }
    Counted *const columns = shared.columns;
    const unsigned width = columns_of(g), rows = g.threads / width;
#pragma unroll 1
    for (int i = 0; i < W; i++) {
        const Counted column = fold<ChanFrom>(shared.stage, own(i), threadIdx.x / width, rows, width);
        if (threadIdx.x < width) columns[threadIdx.x * W + i] = column;
    }
    __syncthreads();
    const unsigned run = g.inner, channels = channels_of(g, walk.slice);
    for (unsigned d = half_above(run); d > 0; d /= 2) {
        for (unsigned e = threadIdx.x; e < channels * run; e += blockDim.x) {
            const unsigned j = e % run;
            if (j < d && j + d < run) ChanFrom::merge(columns[e], columns[e + d]);
        }
        __syncthreads();
    }
    for (unsigned c = threadIdx.x; c < channels; c += blockDim.x) {
        partials[(u64(walk.slice) * g.slice_channels + c) * tiles + walk.tile] = columns[c * run];
    }
}

template <class T, int W>
__device__ void masked_stats(const Geometry &g, const Places &places, const T *x, Counted *partials) {
    using A = AccOf<T>;
    // Vectors of a batch: as many as registers hold beside four sums and a count of each lane.
    constexpr unsigned N = AHEAD / 2;
    __shared__ CountedShared<A> shared;
    PlaceWalk<W> walk(g, places, Walk<u64>::of_block(g, false));
    CountedMoments<T, W> moments;
    const auto add = [&](const auto &at, unsigned n, bool aligned) {
        constexpr unsigned M = sizeof(at) / sizeof(at[0]);
        Vector<T, W> some[M] = {};
        Kept<W> kept[M];
        load_some(x, at, n, aligned, false, some);
        walk.look(g, at, n, kept);
        moments.begin(some, kept);
#pragma unroll
        for (unsigned k = 0; k < M; k++) moments.add(some[k], kept[k]);
        moments.end(n);
    };
    if (W == 1 || g.aligned) {
        by_some<N, Forth>(g, walk, walk.count, [&](const Spot(&at)[N], unsigned n) { add(at, n, true); });
    } else {
        by_some<1, Forth>(g, walk, walk.count, [&](const Spot(&at)[1], unsigned n) { add(at, n, false); });
    }
    reduce_counted<A, W>(g, walk, [&](int i) { return moments.part(i); }, partials, shared);
}

/// What a mask makes of its sums.
struct MaskRules {
    /// Added to the number of values that count.
    double count_eps;
    /// What a channel is of which none does: running statistics stay, take zeros, or all is NaN.
    unsigned all_masked, reserved;
};
enum AllMasked : unsigned { KEEP, ZERO, NAN_OF_ALL };

__device__ inline Counted warp_merge(Counted own) {
    for (int distance = 16; distance > 0; distance /= 2) {
        const Counted other = {__shfl_down_sync(~0u, own.count, distance), __shfl_down_sync(~0u, own.base, distance),
                               __shfl_down_sync(~0u, own.offset, distance),
                               __shfl_down_sync(~0u, own.squares, distance)};
        ChanFrom::merge(own, other);
    }
    return {__shfl_sync(~0u, own.count, 0), __shfl_sync(~0u, own.base, 0), __shfl_sync(~0u, own.offset, 0),
            __shfl_sync(~0u, own.squares, 0)};
}

/// Adds to the number of values, which takes the mean towards 0 and the squares' distances from there.
__device__ inline Spread with_count_eps(Spread of, double count, double count_eps) {
    if (count == 0 || count_eps == 0) return of;
    const double less = (of.base + of.offset) * (count_eps / (count + count_eps)), distance = less * of.scale;
    if (less == 0) return of;
    return {of.base, of.offset - less, of.squares + count * distance * distance, of.scale};
}

template <class A>
__device__ void finish_masked(unsigned c, unsigned channels, double count, const Spread &exact, const MaskRules &rules,
                              const Outputs<A> &out, double *counts) {
    Spread of = with_count_eps(exact, count, rules.count_eps);
    const bool none = count == 0;
    if (none) {
        const double value = rules.all_masked == NAN_OF_ALL ? __longlong_as_double(0x7ff8000000000000LL) : 0;
        of = {0, value, value, 1};
    }
    const double n = none ? 1 : count + rules.count_eps, mean = of.base + of.offset, scale = of.scale;
    const double scaled = of.squares / n, var = scaled / scale / scale;
    const A rounded = A(mean);
    if (out.mean) out.mean[c] = rounded;
    if (out.mean_rest) out.mean_rest[c] = A(or_zero((of.base - double(rounded)) + of.offset));
    if (out.invstd)
        out.invstd[c] = A(1 / (scale == 1 ? sqrt(var + out.eps) : hypot(sqrt(scaled) / scale, sqrt(out.eps))));
    if (counts) counts[c] = count;
    // A record's count says what moves by it: nothing where none counts, or as much as by a batch of zeros or of NaN.
    const double moves = !none ? count : rules.all_masked == KEEP ? 0 : 2;
    if (out.record) write_record(out.record, c, channels, of.base, of.offset, var, moves);
    if (out.nonfinite && !(isfinite(mean) && isfinite(var))) atomicOr(out.nonfinite, 1u);
    const Running<A> &running = out.running;
    if (!running.mean || (none && rules.all_masked == KEEP)) return;
    const double over = (running.has(Running<A>::BIASED) || count == 1 ? count : count - 1) + rules.count_eps;
    const double batch_var = none ? of.squares : of.squares / over / scale / scale;
    running.take(c, mean, batch_var, count == 1 && running.has(Running<A>::KEEP_VAR_OF_ONE));
}

template <class T>
__device__ void masked_finalize(const Merge &merge, const Outputs<AccOf<T>> &out, const Places &places,
                                const MaskRules &rules, const T *x, const Counted *partials, double *counts) {
    using A = AccOf<T>;
    const unsigned c = warp_channel(), lane = threadIdx.x % 32;
    if (c >= merge.lie.channels) return;
    Counted own = {0, 0, 0, 0};
    for (unsigned tile = lane; tile < merge.tiles; tile += 32) {
        ChanFrom::merge(own, partials[u64(c) * merge.tiles + tile]);
    }
    const Counted all = warp_merge(own);
    Spread of = {all.base, all.offset, all.squares, 1};
    const bool small = is_small<A>(out.eps, u64(all.count), of.squares);
    if (all.count > 0 && (small || !isfinite(of.squares))) {
        const auto keeps = [&](u64 n, u64 at) { return places.bytes[places.each > 0 ? at / places.each : n] != 0; };
        of = wide_moments(merge.count, all.count, c, merge.lie, x, small ? of.base : 0, small, keeps);
    }
    if (lane > 0) return;
    finish_masked(c, merge.lie.channels, all.count, of, rules, out, counts);
    out.save_parameters(c);
}

/// What the values that count in the parts of a batch come to together, and what follows from that. Of every part and
/// in `merged`, array by array: means, what rounding left of them, biased variances, and of each channel how many
/// count.
template <class A>
__device__ void masked_merge(unsigned channels, unsigned parts, const double *counted, const MaskRules &rules,
                             const Outputs<A> &out, double *merged) {
    const unsigned c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= channels) return;
    Counted all = {0, 0, 0, 0};
#pragma unroll 1
    for (unsigned part = 0; part < parts; part++) {
        const double *const of = counted + u64(part) * 4 * channels + c;
        const double mean = of[0], count = of[3 * u64(channels)], base = or_zero(mean);
        ChanFrom::merge(all, {count, base, (mean - base) + of[channels], of[2 * u64(channels)] * count});
    }
    const double mean = all.base + all.offset;
    merged[c] = mean;
    merged[channels + c] = or_zero((all.base - mean) + all.offset);
    merged[2 * u64(channels) + c] = all.count > 0 ? all.squares / all.count : 0;
    merged[3 * u64(channels) + c] = all.count;
    finish_masked(c, channels, all.count, {all.base, all.offset, all.squares, 1}, rules, out, nullptr);
}
