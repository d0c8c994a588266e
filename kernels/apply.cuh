// The pass that writes y.
#pragma once
#include "extremes.cuh"

/// `y = activation(normalize(x) [+ residual])`; y may be x.
template <class T, int W, class Act>
__device__ void apply(const Geometry &g, const Channels<AccOf<T>> &by, const T *x, const T *residual, T *y,
                      unsigned char *mask, const Act &act) {
    using A = AccOf<T>;
    constexpr unsigned AHEAD = Act::GENERAL ? 2 : 4;
    __shared__ Shared<A> shared;
    auto walk = Walk<u64>::of_block(g, true);
    if (Coefs<A, W>::prepare(g, walk.slice, by, shared.values())) {
        return apply_slowly<W>(g, walk, by, x, residual, y, mask, act);
    }
    const Coefs<A, W> coefs(g, walk, shared.values());
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
                unsigned ones;
                xs[k] = coefs.output(xs[k], residual, rs[k], act, ones);
                store<T, W>(y, at[k], xs[k], k > 0 || g.aligned);
                if (mask) mask[at[k]] = ones;
            }
        }
    }
}
