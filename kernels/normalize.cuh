// What forward and backward do with every element by its channel's coefficients.
#pragma once
#include "geometry.cuh"

template <class A> struct Channels {
    const A *mean, *mean_rest, *invstd, *weight, *bias;
};

/// The coefficients of a thread's lanes.
template <class A, int W> struct Coefs {
    A mean[W], scale[W], bias[W];

    /// Computes those of the slice's channels together, as the table's first three values.
    template <class Index>
    __device__ Coefs(const Geometry &g, const Walk<Index> &walk, const Channels<A> &by, const Table<A> &table) {
        for (unsigned k = threadIdx.x; k < channels_of(g, walk.slice); k += blockDim.x) {
            const u64 c = u64(walk.slice) * g.slice_channels + k;
            const A scale = by.weight ? mul_rn(by.weight[c], by.invstd[c]) : by.invstd[c];
            const A rest = by.mean_rest ? by.mean_rest[c] : A(0), bias = by.bias ? by.bias[c] : A(0);
            table.at(0, k) = by.mean[c];
            table.at(1, k) = scale;
            table.at(2, k) = rest == 0 ? bias : fma_rn(-rest, scale, bias);
        }
        __syncthreads();
        *this = Coefs(g, walk, table);
    }
    /// Those that the table holds.
    template <class Index> __device__ Coefs(const Geometry &g, const Walk<Index> &walk, const Table<A> &table) {
        table.lanes(0, g, walk, mean);
        table.lanes(1, g, walk, scale);
        table.lanes(2, g, walk, bias);
    }
    /// The one expression of forward, and of backward where it recomputes the ReLU: the same bits.
    __device__ A normalize(int i, A x) const { return fma_rn(add_rn(x, -mean[i]), scale[i], bias[i]); }

    /// `[relu](normalize(x) [+ residual])`; `passes`: of each lane, whether it is above zero.
    template <class T>
    __device__ Vector<T, W> output(Vector<T, W> x, bool adds, Vector<T, W> residual, bool relu, unsigned &passes) const {
        using E = Element<T>;
        passes = 0;
#pragma unroll
        for (int i = 0; i < W; i++) {
            A value = normalize(i, E::widen(x.element[i]));
            if (adds) value = add_rn(value, E::widen(residual.element[i]));
            passes |= unsigned(!(value <= E::ZERO)) << i;
            x.element[i] = E::narrow(relu && value <= 0 ? A(0) : value); // NaN stays
        }
        return x;
    }
    /// The gradient of x through frozen statistics.
    template <class T> __device__ Vector<T, W> scaled(Vector<T, W> passed) const {
        using E = Element<T>;
#pragma unroll
        for (int i = 0; i < W; i++) passed.element[i] = E::narrow(mul_rn(scale[i], E::widen(passed.element[i])));
        return passed;
    }
};

/// `y = [relu](normalize(x) [+ residual])`; y may be x.
template <class T, int W>
__device__ void apply(const Geometry &g, const Channels<AccOf<T>> &by, const T *x, const T *residual, T *y,
                      unsigned char *mask, bool relu) {
    using A = AccOf<T>;
    constexpr unsigned AHEAD = 4;
    __shared__ Shared<A> shared;
    auto walk = Walk<u64>::of_block(g, true);
    const Coefs<A, W> coefs(g, walk, by, shared.values());
    for (unsigned begin = 0, here; begin < walk.count; begin += here) {
        here = min(at_once<W>(AHEAD, g.aligned), walk.count - begin);
        Vector<T, W> xs[AHEAD], rs[AHEAD];
        u64 at[AHEAD];
#pragma unroll
        for (unsigned k = 0; k < AHEAD; k++) {
            if (k < here) {
                at[k] = walk.at;
                xs[k] = load_last<T, W>(x, walk.at, k > 0 || g.aligned);
                if (residual) rs[k] = load_last<T, W>(residual, walk.at, k > 0 || g.aligned);
                walk.next(g);
            }
        }
#pragma unroll
        for (unsigned k = 0; k < AHEAD; k++) {
            if (k < here) {
                unsigned passes;
                xs[k] = coefs.output(xs[k], residual, rs[k], relu, passes);
                store<T, W>(y, at[k], xs[k], k > 0 || g.aligned);
                if (mask) mask[at[k]] = passes;
            }
        }
    }
}
