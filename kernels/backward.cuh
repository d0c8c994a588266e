// The backward: the sums of every channel, then the gradients of x and residual.
#pragma once
#include "apply.cuh"
#include "statistics.cuh"

template <class T> struct Tensors {
    const T *x, *grad_y;
    const unsigned char *mask;
    /// What the derivative of the activation is taken from.
    unsigned source;
    T *grad_x, *grad_residual;
    /// Read where that is the residual.
    const T *residual;
};

/// The gradient of z in lane `i` of a vector, from that of y.
template <class T, class Act>
__device__ AccOf<T> passed(const Channel<AccOf<T>> &channel, const Tensors<T> &t, const Act &act, AccOf<T> x,
                           u64 vector, unsigned i, u64 at) {
    using E = Element<T>;
    using A = AccOf<T>;
    A g = E::widen(t.grad_y[at]);
    if (t.source == ONE) return g;
    if constexpr (Act::GENERAL) {
        if (t.source == FROM_MASK) return t.mask[vector] >> i & 1 ? g : times(act.slope, g);
        A z = channel.normalize(x);
        if (t.source == FROM_RESIDUAL) z = add_rn(z, E::widen(t.residual[at]));
        act.with([&](const auto &activation) { g = times(activation.template derivative<T>(z), g); });
        return g;
    } else {
        const bool one = t.source == FROM_X ? act.template is_one<T>(channel.normalize(x)) : t.mask[vector] >> i & 1;
        return one ? g : A(0);
    }
}

/// Of each lane, the sums of what passes, and of that times the distance of x from the mean; those of a segment apart.
template <class A, int W> struct Sums {
    A sum[W], product[W], fresh_sum[W], fresh_product[W];

    __device__ Sums() {
#pragma unroll
        for (int i = 0; i < W; i++) sum[i] = product[i] = fresh_sum[i] = fresh_product[i] = 0;
    }
    __device__ void add(int i, A passed, A distance) {
        fresh_sum[i] += passed;
        fresh_product[i] = fma_rn(passed, distance, fresh_product[i]);
    }
    __device__ void end_segment() {
#pragma unroll
        for (int i = 0; i < W; i++) {
            sum[i] += fresh_sum[i];
            product[i] += fresh_product[i];
            fresh_sum[i] = fresh_product[i] = 0;
        }
    }
};

/// A few vectors of a thread.
template <class T, int W, unsigned AHEAD, class Index, class Act> struct Batch {
    using A = AccOf<T>;
    Vector<T, W> x[AHEAD], g[AHEAD], residual[Act::GENERAL ? AHEAD : 1];
    unsigned ones[AHEAD];
    Index at[AHEAD];
    unsigned count;

    Batch() = default;
    __device__ Batch(const Geometry &geometry, const Tensors<T> &t, Walk<Index> &walk, unsigned begin, bool reads_x) {
        count = min(at_once<W>(AHEAD, geometry.aligned), walk.count - begin);
#pragma unroll
        for (unsigned k = 0; k < AHEAD; k++) {
            if (k < count) {
                read(t, k, walk.at, reads_x, k > 0 || geometry.aligned, false);
                walk.next(geometry);
            }
        }
    }
    /// Reads the k-th vector. `last`: it will not be read again.
    __device__ void read(const Tensors<T> &t, unsigned k, Index place, bool reads_x, bool aligned, bool last) {
        at[k] = place;
        if (reads_x) x[k] = last ? load_last<T, W>(t.x, place, aligned) : load<T, W>(t.x, place, aligned);
        g[k] = last ? load_last<T, W>(t.grad_y, place, aligned) : load<T, W>(t.grad_y, place, aligned);
        look(t, k, aligned);
    }
    /// Reads what else the derivatives of the k-th take.
    __device__ void look(const Tensors<T> &t, unsigned k, bool aligned) {
        ones[k] = t.source == FROM_MASK ? t.mask[at[k]] : ~0u;
        if constexpr (Act::GENERAL) {
            if (t.source == FROM_RESIDUAL) residual[k] = load<T, W>(t.residual, at[k], aligned);
        }
    }
    /// The k-th gradient of z. Of a ReLU it takes the place of that of y.
    __device__ auto passed(const Coefs<A, W> &coefs, const Tensors<T> &t, const Act &act, unsigned k) {
        using E = Element<T>;
        if constexpr (Act::GENERAL) {
            Wide<A, W> wide;
#pragma unroll
            for (int i = 0; i < W; i++) wide.element[i] = E::widen(g[k].get(i));
            if (t.source == FROM_MASK) {
#pragma unroll
                for (int i = 0; i < W; i++) {
                    if (!(ones[k] >> i & 1)) wide.element[i] = times(act.slope, wide.element[i]);
                }
                return wide;
            }
            act.with([&](const auto &activation) {
#pragma unroll
                for (int i = 0; i < W; i++) {
                    A z = coefs.normalize(i, E::widen(x[k].get(i)));
                    if (t.source == FROM_RESIDUAL) z = add_rn(z, E::widen(residual[k].get(i)));
                    wide.element[i] = times(activation.template derivative<T>(z), wide.element[i]);
                }
            });
            return wide;
        } else {
            if (t.source == FROM_X) {
                ones[k] = 0;
#pragma unroll
                for (int i = 0; i < W; i++) {
                    const A z = coefs.normalize(i, E::widen(x[k].get(i)));
                    ones[k] |= unsigned(act.template is_one<T>(z)) << i;
                }
            }
            if (t.source != ONE) g[k].keep(ones[k]);
            return g[k];
        }
    }
    /// Adds what has passed of the k-th.
    template <class Passed>
    __device__ void add_to(Sums<A, W> &sums, const Coefs<A, W> &coefs, unsigned k, const Passed &passed) const {
#pragma unroll
        for (int i = 0; i < W; i++) {
            const A distance = Element<T>::widen(x[k].get(i)) - coefs.mean[i];
            sums.add(i, widened<T>(passed, i), distance);
        }
    }
};

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
            const Channel<A> channel(by, c);
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
    constexpr unsigned AHEAD = Act::GENERAL ? 1 : 2;
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
    for (unsigned begin = 0; begin < walk.count;) {
        Batch<T, W, AHEAD, u64, Act> batch(g, t, walk, begin, true);
        const auto write = [&](unsigned k, const auto &passed) {
            if (t.grad_residual) store<T, W>(t.grad_residual, batch.at[k], rounded<T>(passed), k > 0 || g.aligned);
            if (t.grad_x) { store<T, W>(t.grad_x, batch.at[k], coefs.template scaled<T>(passed), k > 0 || g.aligned); }
        };
#pragma unroll
        for (unsigned k = 0; k < AHEAD; k++) {
            if (k < batch.count) {
                const auto passed = batch.passed(coefs, t, act, k);
                batch.add_to(sums, coefs, k, passed);
                if constexpr (Act::GENERAL) write(k, passed);
            }
        }
        if constexpr (!Act::GENERAL) {
#pragma unroll
            for (unsigned k = 0; k < AHEAD; k++) {
                if (k < batch.count) write(k, batch.g[k]);
            }
        }
        begin += batch.count;
        if (begin % SEGMENT == 0) sums.end_segment();
    }
    sums.end_segment();
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
__device__ Part wide_sums(u64 count, unsigned c, u64 channels, u64 inner, unsigned W, const Channels<AccOf<T>> &by,
                          const Tensors<T> &t, const Act &act) {
    const Channel<AccOf<T>> channel(by, c);
    Part part = {0, 0, 0};
#pragma unroll 1
    for (u64 n = thread_anew() % 32; n < count; n += 32) {
        const u64 outer = n / inner, at = (outer * channels + c) * inner + n % inner;
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
    if (c >= merge.channels) return;
    Part own = {0, 0, 0};
    if (partials) {
        for (unsigned tile = lane; tile < merge.tiles; tile += 32) {
            const double2 part = partials[u64(c) * merge.tiles + tile];
            Add::merge(own, {0, part.x, part.y});
        }
    }
    Part all = warp_merge<Add>(own);
    const bool again = partials && t.grad_y && (by.is_extreme(c) || are_lost<T>(all.first, all.second));
    if (again) { all = wide_sums(merge.count, c, merge.channels, merge.inner, merge.lanes, by, t, act); }
    if (lane == 0) finish_gradients(c, merge.channels, merge.count, all.first, all.second, again, by, out, accumulate);
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
        table.lanes(3, g, walk, mean_g);
        table.lanes(4, g, walk, slope);
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
    constexpr unsigned AHEAD = Act::GENERAL ? 1 : 2;
    __shared__ Shared<A> shared;
    auto walk = Walk<u64>::of_block(g, true);
    if (Coefs<A, W>::prepare(g, walk.slice, by, shared.values())) {
        return backward_slowly<W>(g, walk, by, t, act, further, nullptr);
    }
    const Coefs<A, W> coefs(g, walk, shared.values());
    const Through<A, W> through(g, walk, further, shared.values());
    const bool reads_x = further || t.source == FROM_X || t.source == FROM_RESIDUAL;
    for (unsigned begin = 0; begin < walk.count;) {
        Batch<T, W, AHEAD, u64, Act> batch(g, t, walk, begin, reads_x);
#pragma unroll
        for (unsigned k = 0; k < AHEAD; k++) {
            if (k < batch.count) {
                const auto passed = batch.passed(coefs, t, act, k);
                if (t.grad_residual) store<T, W>(t.grad_residual, batch.at[k], rounded<T>(passed), k > 0 || g.aligned);
                if (!t.grad_x) continue;
                const auto grad_x =
                    further ? through.gradient(coefs, batch.x[k], passed) : coefs.template scaled<T>(passed);
                store<T, W>(t.grad_x, batch.at[k], grad_x, k > 0 || g.aligned);
            }
        }
        begin += batch.count;
    }
}
