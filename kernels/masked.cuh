// Statistics of the values that count for a mask, and the gradient that flows back through them. Values that do not
// count are read and left out by selection, never by a product: what stands there may be anything.
#pragma once
#include "backward.cuh"

/// A mask: a byte for every place, 0 where values do not count.
struct Places {
    const unsigned char *bytes;
    /// Elements that lie together and have one place. 0: every position has one, which all its channels share.
    u64 each;
    /// What a step of all threads adds to a place, and to what is behind it of its elements; what a new row adds.
    u64 step, step_rest, wrap;
};
/// A vector: where it is, its first element's place, and how many elements that, of a position's channels the row,
/// has before it.
struct Spot {
    u64 at, place, rest;
};
/// How the places of a vector's lanes lie.
enum Form : unsigned {
    /// They are one.
    ONE_PLACE,
    /// Neighbours that are read at once.
    ROW,
    APART,
};

/// The bytes of the lanes of a vector.
template <int W> struct Kept {
    static constexpr int WORDS = (W + 3) / 4;
    unsigned word[WORDS];

    __device__ bool of(int i) const { return (word[i / 4] & 0xffu << i % 4 * 8) != 0; }
    /// Those that lie together, at a multiple of their number.
    __device__ void read(const unsigned char *from) {
        if constexpr (W == 8) {
            const uint2 both = *reinterpret_cast<const uint2 *>(from);
            word[0] = both.x, word[1] = both.y;
        } else if constexpr (W == 4) {
            word[0] = *reinterpret_cast<const unsigned *>(from);
        } else if constexpr (W == 2) {
            word[0] = *reinterpret_cast<const unsigned short *>(from);
        } else {
            word[0] = *from;
        }
    }
};

/// The vectors of a thread, with their places.
template <int W> struct PlaceWalk : Walk<u64> {
    using Base = Walk<u64>;
    const Places &places;
    Spot at;
    Form form;

    /// `last_first` as in `of_block`.
    __device__ PlaceWalk(const Geometry &g, const Places &places, bool last_first)
        : Base(Base::of_block(g, last_first)), places(places) {
        const u64 from = Base::at;
        at = {from, 0, 0};
        const bool runs = g.slice_channels == 1;
        if (places.each > 0) {
            at.place = from * W / places.each;
            at.rest = from * W - at.place * places.each;
        } else if (runs) {
            at.place = (from / g.row * g.width + v) * W;
        } else {
            at.rest = unsigned(v * W) % unsigned(g.inner);
            at.place = from / g.row * g.inner + at.rest;
        }
        const bool one = places.each > 0 ? places.each % W == 0 : g.inner == 1;
        const bool together = places.each > 0 ? places.each == 1 : runs;
        const bool aligned = u64(places.bytes) % W == 0;
        form = W == 1 || one ? ONE_PLACE : together && aligned ? ROW : APART;
    }
    __device__ void next(const Geometry &g) {
        const u64 before = v;
        Base::next(g);
        at.at = Base::at;
        at.place += places.step;
        if (places.each > 0) {
            at.rest += places.step_rest;
            const bool ends = at.rest >= places.each;
            at.place += ends;
            at.rest -= ends ? places.each : 0;
        }
        if (v < before) at.place += places.wrap;
    }
    /// The bytes of the first `n` vectors of a batch, of the others 0: what form they have is asked once for all.
    template <unsigned N> __device__ void look(const Geometry &g, const Spot (&at)[N], unsigned n, Kept<W> (&kept)[N]) {
        const unsigned char *from[N];
        // Of vectors that there are none of, those of the first one are read.
#pragma unroll
        for (unsigned k = 0; k < N; k++) from[k] = places.bytes + (k < n ? at[k].place : at[0].place);
        if (form == ONE_PLACE) {
            unsigned char one[N];
#pragma unroll
            for (unsigned k = 0; k < N; k++) one[k] = *from[k];
#pragma unroll
            for (unsigned k = 0; k < N; k++) {
#pragma unroll
                for (int i = 0; i < Kept<W>::WORDS; i++) kept[k].word[i] = one[k] ? ~0u : 0;
            }
        } else if (form == ROW) {
#pragma unroll
            for (unsigned k = 0; k < N; k++) kept[k].read(from[k]);
        } else {
            // From one place to the next, and over the end of its elements or of the row.
            const u64 period = places.each > 0 ? places.each : g.inner;
            const u64 near = places.each > 0 ? 0 : 1, over = places.each > 0 ? 1 : 1 - period;
#pragma unroll
            for (unsigned k = 0; k < N; k++) {
                unsigned char bytes[W];
                u64 rest = k < n ? at[k].rest : at[0].rest;
#pragma unroll
                for (int i = 0; i < W; i++) {
                    bytes[i] = *from[k];
                    const bool ends = ++rest == period;
                    from[k] += ends ? over : near;
                    rest = ends ? 0 : rest;
                }
                kept[k] = {};
#pragma unroll
                for (int i = 0; i < W; i++) kept[k].word[i / 4] |= unsigned(bytes[i]) << i % 4 * 8;
            }
        }
#pragma unroll
        for (unsigned k = 0; k < N; k++) {
#pragma unroll
            for (int i = 0; i < Kept<W>::WORDS; i++) kept[k].word[i] = k < n ? kept[k].word[i] : 0;
        }
    }
};

/// What some values of a channel come to that count: their mean is `base + offset`, and `squares` are about it.
struct alignas(16) Counted {
    double count, base, offset, squares;
};
/// Chan's formula, of parts that count from bases of their own: there is no value that all have in common, since any may
/// be one that does not count.
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
    const unsigned width = g.width, rows = g.threads / width;
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

/// Loads the first `n` vectors of a batch.
template <class T, int W, unsigned N>
__device__ __forceinline__ void load_some(const T *from, const Spot (&at)[N], unsigned n, bool aligned, bool last,
                                          Vector<T, W> (&to)[N]) {
    if (aligned) {
#pragma unroll
        for (unsigned k = 0; k < N; k++) {
            if (k < n) to[k] = last ? load_last<T, W>(from, at[k].at, true) : load<T, W>(from, at[k].at, true);
        }
    } else {
#pragma unroll
        for (unsigned k = 0; k < N; k++) {
            if (k < n) to[k] = load<T, W>(from, at[k].at, false);
        }
    }
}
/// Goes over a thread's vectors, `N` at a time, and what is left of them. `use(at, n)` is called with where they are.
template <unsigned N, int W, class Use> __device__ __forceinline__ void by_some(const Geometry &g, PlaceWalk<W> &walk, Use use) {
#pragma unroll 1
    for (unsigned left = walk.count, n; left > 0; left -= n) {
        n = min(N, left);
        Spot at[N];
#pragma unroll
        for (unsigned k = 0; k < N; k++) {
            at[k] = walk.at;
            walk.next(g);
        }
        use(at, n);
    }
}

template <class T, int W>
__device__ void masked_stats(const Geometry &g, const Places &places, const T *x, Counted *partials) {
    using A = AccOf<T>;
    // Vectors of a batch: as many as registers hold beside four sums and a count of each lane.
    constexpr unsigned N = AHEAD / 2;
    __shared__ CountedShared<A> shared;
    PlaceWalk<W> walk(g, places, false);
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
        by_some<N>(g, walk, [&](const Spot(&at)[N], unsigned n) { add(at, n, true); });
    } else {
        by_some<1>(g, walk, [&](const Spot(&at)[1], unsigned n) { add(at, n, false); });
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
        const Counted other = {
            __shfl_down_sync(~0u, own.count, distance), __shfl_down_sync(~0u, own.base, distance),
            __shfl_down_sync(~0u, own.offset, distance), __shfl_down_sync(~0u, own.squares, distance)};
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
    if (c >= merge.channels) return;
    Counted own = {0, 0, 0, 0};
    for (unsigned tile = lane; tile < merge.tiles; tile += 32) {
        ChanFrom::merge(own, partials[u64(c) * merge.tiles + tile]);
    }
    const Counted all = warp_merge(own);
    Spread of = {all.base, all.offset, all.squares, 1};
    const bool small = is_small<A>(out.eps, u64(all.count), of.squares);
    if (all.count > 0 && (small || !isfinite(of.squares))) {
        const auto keeps = [&](u64 n, u64 at) { return places.bytes[places.each > 0 ? at / places.each : n] != 0; };
        of = wide_moments(merge.count, all.count, c, merge.channels, merge.inner, x, small ? of.base : 0, small, keeps);
    }
    if (lane > 0) return;
    finish_masked(c, merge.channels, all.count, of, rules, out, counts);
    out.save_parameters(c);
}

/// What flows through the statistics of the values that count, from the coefficients that are those of all values.
template <class A> struct Shares {
    const A *coefs;
    /// Of each channel, how many values count, of so many.
    const double *counts;
    u64 values;
    double count_eps;
    u64 channels;

    __device__ void of(u64 c, const Channels<A> &by, A &mean_g, A &slope) const {
        const double n = counts[c] + count_eps, more = double(values) / n, wide = coefs[channels + c] * more;
        double mean = coefs[c] * more;
        if (count_eps > 0) {
            // What a larger count takes off the mean flows, too.
            const Values<A> values = by.of(c);
            const double invstd = values.is_extreme() ? double(values.invstd) : 1;
            mean -= wide * invstd * (double(values.mean) + values.mean_rest) * (count_eps / n);
        }
        mean_g = A(mean);
        slope = A(wide);
    }
};

/// Any activation, a ReLU too.
struct ReluOfMask : Relu {
    template <class T> __device__ AccOf<T> derivative(AccOf<T> z) const { return is_one<T>(z) ? 1 : 0; }
};
template <class A> struct EveryActivation : AnyActivation<A> {
    template <class Use> __device__ void with(Use use) const {
        if (this->activation == RELU) return use(ReluOfMask());
        AnyActivation<A>::with(use);
    }
};

/// As `backward_slowly`, of values of which some count.
template <int W, class T, class Act>
__device__ void masked_slowly(const Geometry &g, PlaceWalk<W> walk, const Channels<AccOf<T>> &by, const Tensors<T> &t,
                              const Act &act, const Shares<AccOf<T>> &shares) {
    using E = Element<T>;
    using A = AccOf<T>;
#pragma unroll 1
    for (; walk.count > 0; walk.count--, walk.next(g)) {
        const Spot at[1] = {walk.at};
        Kept<W> kept[1];
        walk.look(g, at, 1, kept);
        unsigned bits = 0;
#pragma unroll
        for (int i = 0; i < W; i++) bits |= unsigned(kept[0].of(i)) << i;
#pragma unroll 1
        for (int i = 0; i < W; i++) {
            const u64 at = walk.at.at * W + i, c = u64(walk.slice) * g.slice_channels + channel_of<W>(g, walk, i);
            const Channel<A> channel(by.of(c));
            const A x = E::widen(t.x[at]), passes = passed(channel, t, act, x, walk.at.at, i, at);
            if (t.grad_residual) t.grad_residual[at] = E::narrow(passes);
            A mean_g, slope, gradient = mul_rn(channel.scale, passes);
            if (channel.extreme) gradient = A(passes * (channel.power * channel.factor) * channel.weight);
            if (bits >> i & 1) {
                shares.of(c, by, mean_g, slope);
                gradient = channel.gradient(x, passes, mean_g, slope);
            }
            t.grad_x[at] = E::narrow(gradient);
        }
    }
}

/// The gradients of x and of the residual.
template <class T, int W>
__device__ void masked_backward_apply(const Geometry &g, const Channels<AccOf<T>> &by, const Tensors<T> &t,
                                      const EveryActivation<AccOf<T>> &act, const Places &places,
                                      const Shares<AccOf<T>> &shares) {
    using A = AccOf<T>;
    using E = Element<T>;
    __shared__ Shared<A> shared;
    PlaceWalk<W> walk(g, places, true);
    const Table<A> table = shared.values();
    if (Coefs<A, W>::prepare(g, walk.slice, by, table)) return masked_slowly<W>(g, walk, by, t, act, shares);
    for (unsigned k = threadIdx.x; k < channels_of(g, walk.slice); k += blockDim.x) {
        shares.of(u64(walk.slice) * g.slice_channels + k, by, table.at(3, k), table.at(4, k));
    }
    const Coefs<A, W> coefs(g, walk, table);
    const Through<A, W> through(g, walk, table);
    const bool aligned = W == 1 || g.aligned;
    const auto load = [&](const auto &at, unsigned n, bool aligned, auto &pairs) {
        constexpr unsigned N = sizeof(at) / sizeof(at[0]);
        Vector<T, W> x[N] = {}, own[N] = {};
        load_some(t.x, at, n, aligned, true, x);
        load_some(t.grad_y, at, n, aligned, true, own);
#pragma unroll
        for (unsigned k = 0; k < N; k++) {
            pairs[k].x = x[k], pairs[k].g = own[k];
            pairs[k].look(t, k < n ? at[k].at : at[0].at, aligned);
        }
    };
    const auto use = [&](auto pair, const Kept<W> &kept, const auto &act, u64 at, bool aligned) {
        const auto passed = pair.passed(coefs, t, act);
        if (t.grad_residual) store<T, W>(t.grad_residual, at, rounded<T>(passed), aligned);
        Vector<T, W> grad_x = {};
        grad_x.fill([&](int i) {
            const A own = widened<T>(passed, i), distance = add_rn(E::widen(pair.x.get(i)), -coefs.mean[i]);
            const A centered = fma_rn(-distance, through.slope[i], add_rn(own, -through.mean_g[i]));
            return mul_rn(coefs.scale[i], kept.of(i) ? centered : own);
        });
        store<T, W>(t.grad_x, at, grad_x, aligned);
    };
    if constexpr (W > 1) {
        if (aligned && act.activation <= RELU) {
            constexpr unsigned N = W > 4 ? PAIRS / 2 : PAIRS;
            return by_some<N>(g, walk, [&](const Spot(&at)[N], unsigned n) {
                Pair<T, W, Relu, FromAny> pairs[N];
                Kept<W> kept[N];
                load(at, n, true, pairs);
                walk.look(g, at, n, kept);
#pragma unroll
                for (unsigned k = 0; k < N; k++) {
                    if (k < n) use(pairs[k], kept[k], Relu(), at[k].at, true);
                }
            });
        }
    }
    constexpr unsigned N = W > 1 ? FEW : PAIRS;
    by_some<N>(g, walk, [&](Spot(&at)[N], unsigned n) {
        Pair<T, W, EveryActivation<A>, FromAny> pairs[N];
        Kept<W> kept[N];
        load(at, n, aligned, pairs);
        walk.look(g, at, n, kept);
#pragma unroll 1
        for (unsigned k = 0; k < n; k++) {
            use(pairs[0], kept[0], act, at[0].at, aligned);
#pragma unroll
            for (unsigned k = 1; k < N; k++) pairs[k - 1] = pairs[k], kept[k - 1] = kept[k], at[k - 1] = at[k];
        }
    });
}
