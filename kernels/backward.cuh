// The backward: the sums of every channel, then the gradients of x and residual.
#pragma once
#include "pairs.cuh"

/// The gradients of a thread's vectors, as far as there is room for them in `t`; `coefs` as in `backward_apply`. What
/// passes is added up where there are `parts`: see `finish_gradients`. An extreme channel changes no bit of another.
template <int W, class T, class Index, class Act>
__device__ void backward_slowly(const Geometry &geometry, Walk<Index> walk, const Channels<AccOf<T>> &by,
                                const Tensors<T> &t, const Act &act, const AccOf<T> *coefs, Part *parts) {
    using E = Element<T>;
    using A = AccOf<T>;
    Sums<A, W> sums;
    const unsigned count = walk.count;
#pragma unroll 1
    for (; walk.count > 0; walk.count--, walk.next(geometry)) {
        if (parts && (count - walk.count) % SEGMENT == 0) sums.end_segment();
#pragma unroll 1
        for (int i = 0; i < W; i++) {
            const u64 at = u64(walk.at) * W + i,
                      c = u64(walk.slice) * geometry.slice_channels + channel_of<W>(geometry, walk, i);
            const Channel<A> channel(by.of(c));
            const bool reads_x = parts || coefs || t.source == FROM_X || t.source == FROM_RESIDUAL;
            const A x = reads_x ? E::widen(t.x[at]) : A(0);
            const A g = passed(channel, t, act, x, walk.at, i, at);
            if (parts) {
#pragma unroll
                for (int lane = 0; lane < W; lane++) { // by numbers that the compiler knows: registers have no others
                    if (lane != i) continue;
                    if (channel.extreme) {
                        parts[lane].first += g;
                        parts[lane].second += g * channel.xhat(x);
                    } else {
                        sums.add(lane, g, x - channel.mean);
                    }
                }
            }
            if (t.grad_residual) t.grad_residual[at] = E::narrow(g);
            if (!t.grad_x) continue;
            const A frozen =
                channel.extreme ? A(g * (channel.power * channel.factor) * channel.weight) : mul_rn(channel.scale, g);
            const A gradient = coefs ? channel.gradient(x, g, coefs[c], coefs[geometry.channels + c]) : frozen;
            t.grad_x[at] = E::narrow(gradient);
        }
    }
    if (!parts) return;
    sums.end_segment();
#pragma unroll
    for (int i = 0; i < W; i++) {
        parts[i].first += sums.sum[i];
        parts[i].second += sums.product[i];
    }
}

/// `sum(g)` and `sum(g * (x - mean))` of each channel of a tile. With outputs, the gradients through frozen statistics.
template <class T, int W, class Act>
__device__ void backward_sums(const Geometry &g, const Channels<AccOf<T>> &by, const Tensors<T> &t, const Act &act,
                              double2 *partials) {
    using A = AccOf<T>;
    __shared__ Shared<A> shared;
    auto walk = Walk<u64>::of_block(g, false);
    Part parts[W];
    const bool any_extreme = Coefs<A, W>::prepare(g, walk.slice, by, shared.values());
    if (any_extreme && (t.grad_x || t.grad_residual)) {
#pragma unroll
        for (int i = 0; i < W; i++) parts[i] = {0, 0, 0};
        backward_slowly<W>(g, walk, by, t, act, nullptr, parts);
        return reduce<A, W, Add>(g, walk, parts, partials, shared);
    }
    const Coefs<A, W> coefs(g, walk, shared.values());
    Sums<A, W> sums;
    const bool aligned = W == 1 || g.aligned, writes = t.grad_x || t.grad_residual;
    const auto write = [&](const auto &passed, u64 at, bool aligned) {
        if (t.grad_residual) store<T, W>(t.grad_residual, at, rounded<T>(passed), aligned);
        if (t.grad_x) store<T, W>(t.grad_x, at, coefs.template scaled<T>(passed), aligned);
    };
    const bool hot = !Act::GENERAL && W > 1 && aligned && !writes;
    read_pairs<FEW>(g, walk, 0, hot, aligned, sums, coefs, t, act, write, Nothing(), Nothing());
#pragma unroll
    for (int i = 0; i < W; i++) parts[i] = {0, double(sums.sum[i]), double(sums.product[i])};
    reduce<A, W, Add>(g, walk, parts, partials, shared);
}

template <class A> struct Gradients {
    const A *total_sums;
    A *grad_weight, *grad_bias, *sums, *coefs;
    unsigned *nonfinite;
};

/// What follows from a channel's sums, of gradients and of gradients times the distance from the rounded mean, or times
/// xhat.
template <class A>
__device__ void finish_gradients(unsigned c, u64 channels, u64 count, double sum, double product, bool of_xhat,
                                 const Channels<A> &by, const Gradients<A> &out, bool accumulate) {
    const bool extreme = by.is_extreme(c);
    const double rest = extreme || !by.mean_rest ? A(0) : by.mean_rest[c], invstd = extreme ? A(1) : by.invstd[c];
    const double sum_xhat = of_xhat || extreme ? product : (product - or_zero(rest * sum)) * invstd;
    if (out.sums) {
        out.sums[c] = A(sum);
        out.sums[channels + c] = A(sum_xhat);
        if (c == 0) out.sums[2 * channels] = A(count);
    }
    if (out.grad_weight) out.grad_weight[c] = A((accumulate ? out.grad_weight[c] : 0.0) + sum_xhat);
    if (out.grad_bias) out.grad_bias[c] = A((accumulate ? out.grad_bias[c] : 0.0) + sum);
    if (out.coefs) {
        const A *const total = out.total_sums;
        const double m = total ? double(total[2 * channels]) : double(count);
        const double mean_g = (total ? double(total[c]) : sum) / m;
        const double slope = (total ? double(total[channels + c]) : sum_xhat) / m * invstd;
        out.coefs[c] = A(mean_g - or_zero(rest * slope));
        out.coefs[channels + c] = A(slope);
    }
    if (out.nonfinite && !(isfinite(sum) && isfinite(sum_xhat))) atomicOr(out.nonfinite, 1u);
}

/// Whether sums are to be made again. Of halves they cannot be beyond f32: that of gradients is as it is.
template <class T> __device__ bool are_lost(double sum, double product) {
    return isfinite(sum) ? !isfinite(product) : Element<T>::ZERO != Element<__half>::ZERO;
}

/// The sums by the definition, of gradients and of gradients times xhat. `W` as in the mask.
template <class T, class Act>
__device__ Part wide_sums(u64 count, unsigned c, const Lie &lie, unsigned W, const Channels<AccOf<T>> &by,
                          const Tensors<T> &t, const Act &act) {
    const Channel<AccOf<T>> channel(by.of(c));
    Part part = {0, 0, 0};
#pragma unroll 1
    for (u64 n = thread_anew() % 32; n < count; n += 32) {
        const u64 at = lie.at(c, n);
        const auto x = Element<T>::widen(t.x[at]);
        const double g = passed(channel, t, act, x, at / W, at % W, at);
        part.first += g;
        part.second += g * channel.xhat(x);
    }
    return warp_merge<Add>(part);
}

/// `t.grad_y` is null where the pass before has overwritten it.
template <class T, class Act>
__device__ void backward_finalize(const Merge &merge, const Channels<AccOf<T>> &by, const Tensors<T> &t, const Act &act,
                                  const Gradients<AccOf<T>> &out, bool accumulate, const double2 *partials) {
    const unsigned c = warp_channel(), lane = threadIdx.x % 32;
    if (c >= merge.lie.channels) return;
    Part own = {0, 0, 0};
    if (partials) {
        for (unsigned tile = lane; tile < merge.tiles; tile += 32) {
            const double2 part = partials[u64(c) * merge.tiles + tile];
            Add::merge(own, {0, part.x, part.y});
        }
    }
    Part all = warp_merge<Add>(own);
    const bool again = partials && t.grad_y && (by.is_extreme(c) || are_lost<T>(all.first, all.second));
    if (again) { all = wide_sums(merge.count, c, merge.lie, merge.lanes, by, t, act); }
    if (lane == 0)
        finish_gradients(c, merge.lie.channels, merge.count, all.first, all.second, again, by, out, accumulate);
}

/// The part of x's gradient that flows through the statistics, by lane.
template <class A, int W> struct Through {
    A mean_g[W], slope[W];

    /// `coefs`: what the sums came to; without those nothing flows.
    template <class Index>
    __device__ Through(const Geometry &g, const Walk<Index> &walk, const A *coefs, const Table<A> &table) {
        for (unsigned k = threadIdx.x; k < channels_of(g, walk.slice); k += blockDim.x) {
            const u64 c = u64(walk.slice) * g.slice_channels + k;
            table.at(3, k) = coefs ? coefs[c] : A(0);
            table.at(4, k) = coefs ? coefs[g.channels + c] : A(0);
        }
        __syncthreads();
        read(g, walk, table);
    }
    /// What a block has put there.
    template <class Index> __device__ Through(const Geometry &g, const Walk<Index> &walk, const Table<A> &table) {
        __syncthreads();
        read(g, walk, table);
    }
    template <class Index> __device__ void read(const Geometry &g, const Walk<Index> &walk, const Table<A> &table) {
        const Lanes<W> lanes(g, walk);
        table.read(3, lanes, walk.count > 0, mean_g);
        table.read(4, lanes, walk.count > 0, slope);
    }
    /// The gradient of x.
    template <class T, class Passed>
    __device__ Vector<T, W> gradient(const Coefs<A, W> &coefs, const Vector<T, W> &x, const Passed &passed) const {
        using E = Element<T>;
        Vector<T, W> grad_x;
        grad_x.fill([&](int i) {
            const A distance = add_rn(E::widen(x.get(i)), -coefs.mean[i]);
            const A centered = fma_rn(-distance, slope[i], add_rn(widened<T>(passed, i), -mean_g[i]));
            return mul_rn(coefs.scale[i], centered);
        });
        return grad_x;
    }
};

/// The gradients, by coefficients that sums have set; without those, through frozen statistics.
template <class T, int W, class Act>
__device__ void backward_apply(const Geometry &g, const Channels<AccOf<T>> &by, const Tensors<T> &t, const Act &act,
                               const AccOf<T> *further) {
    using A = AccOf<T>;
    __shared__ Shared<A> shared;
    auto walk = Walk<u64>::of_block(g, true);
    if (Coefs<A, W>::prepare(g, walk.slice, by, shared.values())) {
        return backward_slowly<W>(g, walk, by, t, act, further, nullptr);
    }
    const Coefs<A, W> coefs(g, walk, shared.values());
    const Through<A, W> through(g, walk, further, shared.values());
    const bool aligned = W == 1 || g.aligned;
    const bool reads_x = further || t.source == FROM_X || t.source == FROM_RESIDUAL;
    const bool hot = !Act::GENERAL && W > 1 && aligned && further && t.grad_x;
    const unsigned whole = hot ? whole_pairs<T>(walk.count, t.source) : 0;
    const auto write = [&](const auto &passed, u64 at, bool aligned) {
        if (t.grad_residual) store<T, W>(t.grad_residual, at, rounded<T>(passed), aligned);
    };
    const auto load = [&](u64 at, bool aligned) { return Pair<T, W, Act, FromAny>(t, at, reads_x, aligned, true); };
    const auto use = [&](auto pair, u64 at, bool aligned) {
        const auto passed = pair.passed(coefs, t, act);
        write(passed, at, aligned);
        if (!t.grad_x) return;
        const auto grad_x = further ? through.gradient(coefs, pair.x, passed) : coefs.template scaled<T>(passed);
        store<T, W>(t.grad_x, at, grad_x, aligned);
    };
    in_turn<FEW, Forth>(g, walk, walk.count - whole, aligned, load, use, Nothing(), Nothing());
    if constexpr (!Act::GENERAL && W > 1) {
        by_source<T>(t.source, [&](auto known) {
            using Item = Pair<T, W, Act, decltype(known)>;
            const auto fetch = [&](const auto &at, auto &pairs) { Item::read(t, at, true, pairs); };
            const auto use = [&](Item pair, u64 at, bool) {
                const auto passed = pair.passed(coefs, t, act);
                write(passed, at, true);
                store<T, W>(t.grad_x, at, through.gradient(coefs, pair.x, passed), true);
            };
            in_batches<pairs_from<T>(decltype(known)::FROM), Forth, Item>(g, walk, whole, fetch, use, Nothing());
        });
    }
}
