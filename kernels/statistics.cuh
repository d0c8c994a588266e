// Mean and variance of every channel: the parts of tiles, then what they come to.
//
// A thread sums distances from a pivot, the mean of its first few values, which moves to the mean of all it has read
// after every segment. What a pivot is away from the mean, those first values count as variance, too, so that the
// squares lose three bits at most where they are taken from it: the error does not grow with the mean. Lanes, threads
// and tiles are merged by Chan's formula in f64, as distances from the channel's first value.
#pragma once
#include "running.cuh"

/// Vectors of a thread between which the pivot stays, about.
constexpr unsigned SEGMENT = 32;
/// Vectors of a batch.
constexpr unsigned AHEAD = 8;
/// Whether a segment has ended among the last `n` of `count`.
__device__ inline bool ends_segment(unsigned count, unsigned n) { return count % SEGMENT < n; }

/// What the mean of a channel counts from, whose first value is there.
template <class T> __device__ AccOf<T> base_of(const T *x, u64 at) {
    const AccOf<T> first = Element<T>::widen(x[at]);
    return isfinite(first) ? first : AccOf<T>(0);
}
/// Of a slice's channel.
template <int W, class T> __device__ AccOf<T> base_of(const T *x, const Geometry &g, unsigned slice, unsigned c) {
    return base_of(x, slice * g.width * W + c * g.inner);
}

/// `1 / n` within a part of 100,000, by two of Newton's steps from what the exponent says: where a pivot lies need not
/// be exact, but on every device the same, as what hardware approximates is not.
template <class A> __device__ A reciprocal(unsigned n) {
    const float of = float(n);
    float each = __uint_as_float(0x7ef311c7u - __float_as_uint(of));
    each *= __fmaf_rn(-of, each, 2.0f);
    each *= __fmaf_rn(-of, each, 2.0f);
    return each;
}

/// Of each lane, the values that a thread has read: sums of their distances from the pivot, and of the squares.
template <class T, int W> struct Moments {
    using A = AccOf<T>;
    unsigned count = 0;
    A pivot[W], sum[W], square[W];
    /// Squares of the segment.
    A fresh[W];

    __device__ Moments() {
#pragma unroll
        for (int i = 0; i < W; i++) pivot[i] = sum[i] = square[i] = fresh[i] = 0;
    }
    __device__ void add(const Vector<T, W> &vector) {
#pragma unroll
        for (int i = 0; i < W; i++) {
            const A d = Element<T>::widen(vector.get(i)) - pivot[i];
            sum[i] += d;
            fresh[i] = fma_rn(d, d, fresh[i]);
        }
    }
    /// Before the first of `n` vectors is added: where nothing is known, the mean of these becomes the pivot.
    template <unsigned N> __device__ void begin(const Vector<T, W> (&few)[N], unsigned n) {
        if (count > 0) return;
        const A each = reciprocal<A>(n);
#pragma unroll
        for (int i = 0; i < W; i++) {
            const A one = Element<T>::widen(few[0].get(i));
            A sum = 0;
#pragma unroll
            for (unsigned k = 1; k < N; k++) {
                if (k < n) sum += Element<T>::widen(few[k].get(i)) - one;
            }
            pivot[i] = one + sum * each;
        }
    }
    /// After the last of them.
    __device__ void end(unsigned n) {
        count += n;
        if (ends_segment(count, n)) move();
    }
    __device__ void move() {
        const A n = A(count), each = reciprocal<A>(count);
#pragma unroll
        for (int i = 0; i < W; i++) {
            const A to = pivot[i] + sum[i] * each, d = to - pivot[i], left = sum[i] - n * d;
            square[i] = square[i] + fresh[i] - d * (sum[i] + left);
            pivot[i] = to;
            sum[i] = left;
            fresh[i] = 0;
        }
    }
};

/// Adds a thread's vectors: first those before the last `whole`, which give the pivot, by `load`, then these in whole
/// batches by `fetch`. `other(vector)` is called with the former, `keep` with these.
template <class T, int W, class Index, class Load, class Fetch, class Other, class Keep>
__device__ __forceinline__ void read_moments(const Geometry &g, Walk<Index> &walk, unsigned whole, bool aligned,
                                             Moments<T, W> &moments, Load load, Fetch fetch, Other other, Keep keep) {
    const auto begin = [&](const auto &few, unsigned n) { moments.begin(few, n); };
    const auto end = [&](unsigned n) { moments.end(n); };
    const auto add = [&](auto first) {
        return [&, first](const Vector<T, W> &vector, Index, bool) {
            first(vector);
            moments.add(vector);
        };
    };
    in_turn<AHEAD / 2, Forth>(g, walk, walk.count - whole, aligned, load, add(other), begin, end);
    in_batches<AHEAD, Forth, Vector<T, W>>(g, walk, whole, fetch, add(keep), end);
}
/// How many of `count` vectors come in whole batches of `n`, where the first one does not.
__device__ inline unsigned whole_batches(unsigned count, unsigned n) { return count > 0 ? (count - 1) / n * n : 0; }

template <class T, int W> __device__ void stats(const Geometry &g, const T *x, double2 *partials) {
    using A = AccOf<T>;
    __shared__ Shared<A> shared;
    auto walk = Walk<u64>::of_block(g, false);
    Moments<T, W> moments;
    const bool aligned = W == 1 || g.aligned;
    const auto from = [&](u64 at, bool aligned) { return load<T, W>(x, at, aligned); };
    const unsigned whole = aligned ? whole_batches(walk.count, AHEAD) : 0;
    read_moments(g, walk, whole, aligned, moments, from, each(from), Nothing(), Nothing());

    A *const bases = shared.table[0];
    for (unsigned c = threadIdx.x; c < channels_of(g, walk.slice); c += blockDim.x) {
        bases[c] = base_of<W>(x, g, walk.slice, c);
    }
    __syncthreads();
    Part parts[W];
    const Lanes<W> lanes(g, walk);
#pragma unroll
    for (int i = 0; i < W; i++) {
        parts[i] = {double(walk.count), 0, 0};
        if (walk.count > 0) {
            const double sum = moments.sum[i], each = sum / walk.count;
            const double squares = double(moments.square[i]) + moments.fresh[i] - sum * each;
            parts[i].first = (double(moments.pivot[i]) - bases[lanes.channel[i]]) + each;
            parts[i].second = squares < 0 ? 0 : squares; // NaN stays
        }
    }
    reduce<A, W, Chan>(g, walk, parts, partials, shared);
}

struct Merge {
    u64 count, tile_count;
    Lie lie;
    /// Elements of a vector.
    unsigned tiles, lanes;
};
template <class A> struct Outputs {
    double eps;
    Running<A> running;
    A *mean, *mean_rest, *invstd;
    double *record;
    unsigned *nonfinite;
    /// What is applied, and where a backward finds it: an optimizer may change it in between.
    const A *weight, *bias;
    A *saved_weight, *saved_bias;

    /// Keeps a channel's weight and bias; ones and zeros where absent.
    __device__ void save_parameters(unsigned c) const {
        if (saved_weight) saved_weight[c] = weight ? weight[c] : A(1);
        if (saved_bias) saved_bias[c] = bias ? bias[c] : A(0);
    }
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

/// What the values of a channel come to: the mean is `base + offset`, and `squares` those of distances from it times
/// `scale`.
struct Spread {
    double base, offset, squares, scale;
};

/// From an eps and a variance below which squares are computed anew: those of the type end at 1e-45 (f64: 5e-324), and
/// have lost digits before.
template <class A> struct Small;
template <> struct Small<float> {
    static constexpr double EPS = 1e-30, VAR = 1e-25;
};
template <> struct Small<double> {
    static constexpr double EPS = 1e-270, VAR = 1e-265;
};
template <class A> __device__ bool is_small(double eps, u64 count, double squares) {
    return eps < Small<A>::EPS && squares < count * Small<A>::VAR;
}

struct Largest {
    static __device__ void merge(Part &into, const Part &other) { into.first = fmax(into.first, other.first); }
};

/// The definition, for channels whose sums are not finite (an infinity or a NaN among the values, or squares beyond the
/// type) or whose squares are `small`. The mean counts from `base`: 0 where distances from a value may overflow. Of all
/// `values` those that `keeps(number, place)` counts, of which there are `count`.
template <class T, class Count, class Keeps>
__device__ Spread wide_moments(u64 values, Count count, unsigned channel, const Lie &lie, const T *x, double base,
                               bool small, Keeps keeps) {
    const auto each = [&](auto rule, auto term) {
        Part part = {0, 0, 0};
#pragma unroll 1
        for (u64 n = thread_anew() % 32; n < values; n += 32) {
            const u64 at = lie.at(channel, n);
            if (keeps(n, at)) rule.merge(part, {0, term(double(Element<T>::widen(x[at]))), 0});
        }
        return warp_merge<decltype(rule)>(part).first;
    };
    // f64 has nothing wider: sums and squares of its values stay in range as those of multiples.
    constexpr bool WIDEST = sizeof(AccOf<T>) == 8;
    const double shrink = WIDEST && !small ? 0x1p-64 : 1;
    const double from = base * shrink, offset = each(Add(), [&](double x) { return x * shrink - from; }) / count;
    double scale = 1;
    if (WIDEST) {
        const double reach = each(Largest(), [&](double x) { return fabs(x * shrink - from - offset); });
        const double power = power_below(reach);
        if (reach > 0 && isfinite(1 / power)) scale = 1 / power;
    }
    const double squares = each(Add(), [&](double x) {
        const double distance = (x * shrink - from - offset) * scale;
        return distance * distance;
    });
    return {base, offset / shrink, squares, scale * shrink};
}

template <class T>
__device__ Spread wide_moments(u64 count, unsigned channel, const Lie &lie, const T *x, double base, bool small) {
    return wide_moments(count, count, channel, lie, x, base, small, [](u64, u64) { return true; });
}

/// A channel's part of a record: the mean, `base + offset`, and what rounding left of it; the variance; the count.
__device__ inline void write_record(double *record, unsigned c, u64 channels, double base, double offset, double var,
                                    double count) {
    const double mean = base + offset;
    record[c] = mean;
    record[channels + c] = or_zero((base - mean) + offset);
    record[2 * channels + c] = var;
    if (c == 0) record[3 * channels] = count;
}

template <class A>
__device__ void finish_stats(unsigned c, unsigned channels, u64 count, const Spread &of, const Outputs<A> &out) {
    const double base = of.base, offset = of.offset, scale = of.scale;
    const double mean = base + offset, scaled = count > 0 ? of.squares / count : 0, var = scaled / scale / scale;
    const A rounded = A(mean);
    if (out.mean) out.mean[c] = rounded;
    if (out.mean_rest) out.mean_rest[c] = A(or_zero((base - double(rounded)) + offset));
    if (out.invstd)
        out.invstd[c] = A(1 / (scale == 1 ? sqrt(var + out.eps) : hypot(sqrt(scaled) / scale, sqrt(out.eps))));
    out.running.update(c, count, mean, of.squares, scale);
    if (out.record) write_record(out.record, c, channels, base, offset, var, count);
    if (out.nonfinite && !(isfinite(mean) && isfinite(var))) atomicOr(out.nonfinite, 1u);
}

template <class T>
__device__ void stats_finalize(const Merge &merge, const Outputs<AccOf<T>> &out, const T *x, const double2 *partials) {
    const unsigned c = warp_channel(), lane = threadIdx.x % 32;
    if (c >= merge.lie.channels) return;
    Part own = {0, 0, 0};
    for (unsigned tile = lane; tile < merge.tiles; tile += 32) {
        const double2 part = partials[u64(c) * merge.tiles + tile];
        const u64 count = min(merge.tile_count, merge.count - tile * merge.tile_count);
        Chan::merge(own, {double(count), part.x, part.y});
    }
    const Part all = warp_merge<Chan>(own);
    Spread of = {merge.count > 0 ? double(base_of(x, merge.lie.at(c, 0))) : 0, all.first, all.second, 1};
    const bool small = is_small<AccOf<T>>(out.eps, merge.count, of.squares);
    if (small || !isfinite(of.squares)) { of = wide_moments(merge.count, c, merge.lie, x, small ? of.base : 0, small); }
    if (lane > 0) return;
    finish_stats(c, merge.lie.channels, merge.count, of, out);
    out.save_parameters(c);
}

/// What a backward wants of statistics that are given, where no pass over a tensor keeps it.
template <class A>
__device__ void eval(u64 channels, const Given<A> &given, const A *weight, const A *bias) {
    const Normalizer<A> by = {{nullptr, nullptr, nullptr, weight, bias}, given, channels};
    const unsigned c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c < channels) by.save(c);
}

/// Merges records of the parts of a batch into one. Means count from that of the first part that has values, so that
/// large ones keep their digits.
template <class A>
__device__ void merge_stats(u64 channels, unsigned parts, const double *records, const Running<A> &running,
                            double *merged) {
    const unsigned c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= channels) return;
    Part all = {0, 0, 0};
    double base = 0;
    for (unsigned part = 0; part < parts; part++) {
        const double *const record = records + part * (3 * channels + 1);
        const double count = record[3 * channels];
        if (all.count == 0 && count > 0) base = or_zero(record[c]);
        const double offset = (record[c] - base) + record[channels + c];
        Chan::merge(all, {count, offset, record[2 * channels + c] * count});
    }
    write_record(merged, c, channels, base, all.first, all.count > 0 ? all.second / all.count : 0, all.count);
    running.update(c, all.count, base + all.first, all.second, 1);
}
