// The gradient that flows back through the statistics of the values that count.
#pragma once
#include "backward.cuh"
#include "places.cuh"

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
template <int W, class T, class Index, class Act>
__device__ void masked_slowly(const Geometry &g, PlaceWalk<W, Index> walk, const Channels<AccOf<T>> &by,
                              const Tensors<T> &t, const Act &act, const Shares<AccOf<T>> &shares) {
    using E = Element<T>;
    using A = AccOf<T>;
#pragma unroll 1
    for (; walk.count > 0; walk.count--, walk.next(g)) {
        const Kept<W> kept = walk.apart(g, walk.places.bytes + walk.at.place, walk.at.rest);
        unsigned bits = 0;
#pragma unroll
        for (int i = 0; i < W; i++) bits |= unsigned(kept.of(i)) << i;
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

/// The gradient of x, through statistics where a value counts.
template <class T, int W, class Passed>
__device__ Vector<T, W> masked_gradient(const Coefs<AccOf<T>, W> &coefs, const Through<AccOf<T>, W> &through,
                                        const Kept<W> &kept, const Vector<T, W> &x, const Passed &passed) {
    using A = AccOf<T>;
    Vector<T, W> grad_x = {};
    grad_x.fill([&](int i) {
        const A own = widened<T>(passed, i), distance = add_rn(Element<T>::widen(x.get(i)), -coefs.mean[i]);
        const A centered = fma_rn(-distance, through.slope[i], add_rn(own, -through.mean_g[i]));
        return mul_rn(coefs.scale[i], kept.of(i) ? centered : own);
    });
    return grad_x;
}

/// The gradients of x and of the residual.
template <class T, int W>
__device__ void masked_backward_apply(const Geometry &g, const Channels<AccOf<T>> &by, const Tensors<T> &t,
                                      const EveryActivation<AccOf<T>> &act, const Places &places,
                                      const Shares<AccOf<T>> &shares) {
    using A = AccOf<T>;
    __shared__ Shared<A> shared;
    PlaceWalk<W> walk(g, places, Walk<u64>::of_block(g, true));
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
        store<T, W>(t.grad_x, at, masked_gradient<T>(coefs, through, kept, pair.x, passed), aligned);
    };
    if constexpr (W > 1) {
        if (aligned && act.activation <= RELU) {
            constexpr unsigned N = W > 4 ? PAIRS / 2 : PAIRS;
            return by_some<N, Forth>(g, walk, walk.count, [&](const Spot(&at)[N], unsigned n) {
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
    by_some<N, Forth>(g, walk, walk.count, [&](Spot(&at)[N], unsigned n) {
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
