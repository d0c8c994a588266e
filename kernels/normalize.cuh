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

/// What a channel is normalized by.
template <class A> struct Values {
    A mean, mean_rest, invstd, weight, bias;

    /// What its elements are computed by.
    __device__ void coefs(A &mean_of, A &scale_of, A &bias_of) const {
        mean_of = mean;
        scale_of = mul_rn(weight, invstd);
        bias_of = mean_rest == 0 ? bias : fma_rn(-mean_rest, scale_of, bias);
    }
    /// Whether it needs more than these: see extremes.cuh. Statistics and weights that are not finite, and an invstd of
    /// 0, spoil it either way.
    __device__ bool is_extreme() const {
        using R = Range<A>;
        const A times = fabs(weight), from = fabs(mean), scale = times * invstd;
        const bool counts = invstd > 0 && isfinite(invstd) && isfinite(from) && isfinite(times);
        const bool far = from > R::MEAN || scale > R::SCALE || (scale < R::LEAST && times >= R::LEAST);
        return counts && (invstd < 1 / R::INVSTD || invstd > R::INVSTD || far);
    }
};

template <class A> struct Channels {
    const A *mean, *mean_rest, *invstd, *weight, *bias;

    __device__ Values<A> of(u64 c) const {
        return {mean[c], mean_rest ? mean_rest[c] : A(0), invstd[c], weight ? weight[c] : A(1), bias ? bias[c] : A(0)};
    }
    __device__ bool is_extreme(u64 c) const { return of(c).is_extreme(); }
};

/// Statistics that are given, as a forward uses and saves them: mean and variance, or a record.
template <class A> struct Given {
    double eps;
    const A *mean, *var;
    const double *record;
    /// Where a backward finds what was used; an optimizer may change the parameters in between.
    A *saved_mean, *saved_mean_rest, *saved_invstd, *saved_weight, *saved_bias;
    unsigned *nonfinite;
};

/// What normalizes: what a pass before has made of the batch's statistics, or what `given` ones come to.
template <class A> struct Normalizer {
    /// Where statistics are given, weight and bias alone.
    Channels<A> by;
    Given<A> given;
    u64 channels;

    __device__ bool is_given() const { return given.var || given.record; }
    __device__ Values<A> of(u64 c) const {
        if (!is_given()) return by.of(c);
        bool finite;
        return made(c, finite);
    }
    /// Those of a channel that is given.
    __device__ Values<A> made(u64 c, bool &finite) const {
        const double *const record = given.record;
        const double mean = record ? record[c] : given.mean[c], rest = record ? record[channels + c] : 0;
        const double var = record ? record[2 * channels + c] : given.var[c];
        const A rounded = A(mean);
        finite = isfinite(mean) && isfinite(var);
        return {rounded, A(or_zero((mean - rounded) + rest)), A(1 / sqrt(var + given.eps)),
                by.weight ? by.weight[c] : A(1), by.bias ? by.bias[c] : A(0)};
    }
    /// Keeps what a channel that is given was normalized by.
    __device__ void save(u64 c) const {
        bool finite;
        const Values<A> values = made(c, finite);
        if (given.saved_mean) given.saved_mean[c] = values.mean;
        if (given.saved_mean_rest) given.saved_mean_rest[c] = values.mean_rest;
        if (given.saved_invstd) given.saved_invstd[c] = values.invstd;
        if (given.saved_weight) given.saved_weight[c] = values.weight;
        if (given.saved_bias) given.saved_bias[c] = values.bias;
        if (given.nonfinite && !finite) atomicOr(given.nonfinite, 1u);
    }
};

/// The coefficients of a thread's lanes.
template <class A, int W> struct Coefs {
    A mean[W], scale[W], bias[W];

    /// The block computes those of the slice's channels together, as the table's first three values. What comes back is
    /// whether any of them is extreme.
    template <class By>
    static __device__ bool prepare(const Geometry &g, unsigned slice, const By &by, const Table<A> &table) {
        bool any = false;
        for (unsigned k = threadIdx.x; k < channels_of(g, slice); k += blockDim.x) {
            const Values<A> values = by.of(u64(slice) * g.slice_channels + k);
            values.coefs(table.at(0, k), table.at(1, k), table.at(2, k));
            any |= values.is_extreme();
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
template <class T, class Loop>
__device__ void by_epilogue(const T *residual, const void *mask, Loop loop) {
    if constexpr (!SPECIALIZES<T>) {
        loop(Has<ASKED>(), Has<ASKED>());
    } else if (mask) {
        loop(Has<PRESENT>(), Has<PRESENT>());
    } else if (residual) {
        loop(Has<PRESENT>(), Has<ABSENT>());
    } else {
        loop(Has<ABSENT>(), Has<ABSENT>());
    }
}
