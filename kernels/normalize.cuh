// What forward and backward do with every element by its channel's coefficients.
#pragma once
#include "geometry.cuh"

template <class A> struct Channels {
    const A *mean, *mean_rest, *invstd, *weight, *bias;
};

/// The coefficients of a thread's lanes.
template <class A, int W> struct Coefs {
    A mean[W], scale[W], bias[W];

    /// Computes those of the slice's channels together. `has_further`: two more values by channel, zeros if null.
    __device__ Coefs(const Geometry &g, const Walk &walk, const Channels<A> &by, Shared<A> &shared,
                     bool has_further = false, const A *further = nullptr) {
        for (unsigned k = threadIdx.x; k < channels_of(g, walk); k += blockDim.x) {
            const u64 c = u64(walk.slice) * g.slice_channels + k;
            const A scale = by.weight ? mul_rn(by.weight[c], by.invstd[c]) : by.invstd[c];
            const A rest = by.mean_rest ? by.mean_rest[c] : A(0), bias = by.bias ? by.bias[c] : A(0);
            shared.table[0][k] = by.mean[c];
            shared.table[1][k] = scale;
            shared.table[2][k] = rest == 0 ? bias : fma_rn(-rest, scale, bias);
            if (has_further) {
                shared.table[3][k] = further ? further[c] : A(0);
                shared.table[4][k] = further ? further[g.channels + c] : A(0);
            }
        }
        __syncthreads();
#pragma unroll
        for (int i = 0; i < W; i++) {
            mean[i] = of(0, g, walk, i, shared);
            scale[i] = of(1, g, walk, i, shared);
            bias[i] = of(2, g, walk, i, shared);
        }
    }
    static __device__ A of(int what, const Geometry &g, const Walk &walk, int i, const Shared<A> &shared) {
        return walk.count > 0 ? shared.table[what][channel_of<W>(g, walk, i)] : A(0);
    }
    /// The one expression of forward, and of backward where it recomputes the ReLU: the same bits.
    __device__ A normalize(int i, A x) const { return fma_rn(add_rn(x, -mean[i]), scale[i], bias[i]); }
};

/// `y = [relu](normalize(x) [+ residual])`; y may be x.
template <class T, int W>
__device__ void apply(const Geometry &g, const Channels<AccOf<T>> &by, const T *x, const T *residual, T *y,
                      unsigned char *mask, bool relu) {
    using E = Element<T>;
    using A = AccOf<T>;
    constexpr unsigned AHEAD = 4;
    __shared__ Shared<A> shared;
    Walk walk(g, true);
    const Coefs<A, W> coefs(g, walk, by, shared);
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
                walk.next();
            }
        }
#pragma unroll
        for (unsigned k = 0; k < AHEAD; k++) {
            if (k < here) {
                unsigned passes = 0;
#pragma unroll
                for (int i = 0; i < W; i++) {
                    A value = coefs.normalize(i, E::widen(xs[k].element[i]));
                    if (residual) value = add_rn(value, E::widen(rs[k].element[i]));
                    passes |= unsigned(!(value <= E::ZERO)) << i;
                    xs[k].element[i] = E::narrow(relu && value <= 0 ? A(0) : value); // NaN stays
                }
                store<T, W>(y, at[k], xs[k], k > 0 || g.aligned);
                if (mask) mask[at[k]] = passes;
            }
        }
    }
}
