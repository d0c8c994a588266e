// Channels whose numbers leave the range of their type on the way from x to y: deviations, means or scales that are
// huge or tiny. Their elements are computed one at a time in f64, by distances that a power of two has brought to unit
// size. A block takes this path where any channel of its slice is one.
#pragma once
#include "normalize.cuh"

/// The power of two that a number is 1 to 2 times; at least the least normal one.
__device__ inline double power_below(double value) {
    return fmax(__longlong_as_double(__double_as_longlong(value) & 0x7ff0000000000000), 0x1p-1022);
}

/// A channel, extreme or not.
template <class A> struct Channel {
    A mean, scale, bias;
    bool extreme;
    /// invstd is `power`, 1 at most, times `factor`; the mean and its rest are multiplied by that power.
    double power, factor, wide_mean, wide_rest, weight;

    __device__ Channel(const Values<A> &of) : extreme(of.is_extreme()) {
        of.coefs(mean, scale, bias);
        power = fmin(power_below(of.invstd), 1.0);
        factor = of.invstd / power;
        wide_mean = of.mean * power;
        wide_rest = of.mean_rest * power;
        weight = of.weight;
        if (extreme) bias = of.bias;
    }
    __device__ double xhat(double x) const { return mul_rn(add_rn(fma_rn(x, power, -wide_mean), -wide_rest), factor); }
    /// As `Coefs::normalize`, whose bits it has where the channel is not extreme.
    __device__ A normalize(A x) const {
        return extreme ? A(fma_rn(weight, xhat(x), double(bias))) : fma_rn(add_rn(x, -mean), scale, bias);
    }
    /// The gradient of x; `coefs` as in `Through`, by which an extreme channel multiplies xhat.
    __device__ A gradient(A x, A passed, A mean_g, A slope) const {
        if (extreme) return A((double(passed) - mean_g - xhat(x) * slope) * (power * factor) * weight);
        return mul_rn(scale, fma_rn(-add_rn(x, -mean), slope, add_rn(passed, -mean_g)));
    }
};

/// Whether any channel of the slice is extreme; the whole block asks.
template <class A> __device__ bool any_extreme(const Geometry &g, unsigned slice, const Channels<A> &by) {
    bool any = false;
    for (unsigned k = threadIdx.x; k < channels_of(g, slice); k += blockDim.x) {
        any |= by.is_extreme(u64(slice) * g.slice_channels + k);
    }
    return __syncthreads_or(any);
}

/// As `apply`, of a thread's vectors.
template <int W, class T, class Index, class By, class Act>
__device__ void apply_slowly(const Geometry &g, Walk<Index> walk, const By &by, const T *x, const T *residual, T *y,
                             unsigned char *mask, const Act &act) {
    using E = Element<T>;
    using A = AccOf<T>;
    const unsigned each = anew(g.slice_channels);
    x = anew(x), y = anew(y);
#pragma unroll 1
    for (; walk.count > 0; walk.count--, walk.next(g)) {
        unsigned ones = 0;
#pragma unroll 1
        for (int i = 0; i < W; i++) {
            const u64 at = u64(walk.at) * W + i;
            const u64 c = u64(walk.slice) * each + channel_of<W>(g, walk, i);
            const Channel<A> channel(by.of(c));
            A value = channel.normalize(E::widen(x[at]));
            if (residual) value = add_rn(value, E::widen(residual[at]));
            act.with([&](const auto &activation) {
                ones |= unsigned(activation.template is_one<T>(value)) << i;
                y[at] = E::narrow(activation.value(value));
            });
        }
        if (mask) mask[walk.at] = ones;
    }
}
