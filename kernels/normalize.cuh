// What forward and backward do with every element by its channel's coefficients.
#pragma once
#include "activation.cuh"
#include "geometry.cuh"

/// Within these, nothing on the way from x to y overflows or loses digits that count.
template <class A> struct Range;
template <> struct Range<float> {
    static constexpr float INVSTD = 0x1p33f, MEAN = 0x1p100f, SCALE = 0x1p120f, LEAST = 0x1p-100f;
};
template <> struct Range<double> {
    static constexpr double INVSTD = 0x1p400, MEAN = 0x1p960, SCALE = 0x1p1000, LEAST = 0x1p-960;
};

template <class A> struct Channels {
    const A *mean, *mean_rest, *invstd, *weight, *bias;

    /// What a channel's elements are normalized by.
    __device__ void coefs(u64 c, A &mean_of, A &scale_of, A &bias_of) const {
        const A scale = weight ? mul_rn(weight[c], invstd[c]) : invstd[c];
        const A rest = mean_rest ? mean_rest[c] : A(0), given = bias ? bias[c] : A(0);
        mean_of = mean[c];
        scale_of = scale;
        bias_of = rest == 0 ? given : fma_rn(-rest, scale, given);
    }
    /// Whether a channel needs more than these: see extremes.cuh. Statistics and weights that are not finite, and an
    /// invstd of 0, spoil it either way.
    __device__ bool is_extreme(u64 c) const {
        using R = Range<A>;
        const A times = weight ? fabs(weight[c]) : A(1), from = fabs(mean[c]), scale = times * invstd[c];
        const bool counts = invstd[c] > 0 && isfinite(invstd[c]) && isfinite(from) && isfinite(times);
        const bool far = from > R::MEAN || scale > R::SCALE || (scale < R::LEAST && times >= R::LEAST);
        return counts && (invstd[c] < 1 / R::INVSTD || invstd[c] > R::INVSTD || far);
    }
};

/// The coefficients of a thread's lanes.
template <class A, int W> struct Coefs {
    A mean[W], scale[W], bias[W];

    /// The block computes those of the slice's channels together, as the table's first three values. What comes back is
    /// whether any of them is extreme.
    static __device__ bool prepare(const Geometry &g, unsigned slice, const Channels<A> &by, const Table<A> &table) {
        bool any = false;
        for (unsigned k = threadIdx.x; k < channels_of(g, slice); k += blockDim.x) {
            const u64 c = u64(slice) * g.slice_channels + k;
            by.coefs(c, table.at(0, k), table.at(1, k), table.at(2, k));
            any |= by.is_extreme(c);
        }
        return __syncthreads_or(any);
    }
    /// Those that the table holds.
    template <class Index> __device__ Coefs(const Geometry &g, const Walk<Index> &walk, const Table<A> &table) {
        const Lanes<W> lanes(g, walk);
        table.read(0, lanes, walk.count > 0, mean);
        table.read(1, lanes, walk.count > 0, scale);
        table.read(2, lanes, walk.count > 0, bias);
    }
    /// The one expression of forward, and of backward where it recomputes the ReLU: the same bits.
    __device__ A normalize(int i, A x) const { return fma_rn(add_rn(x, -mean[i]), scale[i], bias[i]); }

    /// `activation(normalize(x) [+ residual])`; `ones`: of each lane, whether the derivative is 1.
    template <class T, class Act>
    __device__ Vector<T, W> output(Vector<T, W> x, bool adds, Vector<T, W> residual, const Act &act,
                                   unsigned &ones) const {
        using E = Element<T>;
        ones = 0;
        Vector<T, W> y;
        act.with([&](const auto &activation) {
            y.fill([&](int i) {
                A value = normalize(i, E::widen(x.get(i)));
                if (adds) value = add_rn(value, E::widen(residual.get(i)));
                ones |= unsigned(activation.template is_one<T>(value)) << i;
                return activation.value(value);
            });
        });
        return y;
    }
    /// The gradient of x through frozen statistics.
    template <class T, class Passed> __device__ Vector<T, W> scaled(const Passed &passed) const {
        Vector<T, W> gradient;
        gradient.fill([&](int i) { return mul_rn(scale[i], widened<T>(passed, i)); });
        return gradient;
    }
};

/// Whether there is a tensor: known where a loop is compiled, or asked for in it.
enum Presence { ABSENT, PRESENT, ASKED };
template <Presence PRESENCE> struct Has {
    static __device__ bool is(const void *tensor) {
        return PRESENCE == ASKED ? tensor != nullptr : PRESENCE == PRESENT;
    }
};

/// Calls `loop` for what there is of residual and mask, which comes with a residual alone: a loop of its own for each.
template <class Loop> __device__ void by_epilogue(const void *residual, const void *mask, Loop loop) {
    if (mask) {
        loop(Has<PRESENT>(), Has<PRESENT>());
    } else if (residual) {
        loop(Has<PRESENT>(), Has<ABSENT>());
    } else {
        loop(Has<ABSENT>(), Has<ABSENT>());
    }
}
