// The pass that writes y.
#pragma once
#include "extremes.cuh"

/// `y = activation(normalize(x) [+ residual])`; y may be x. Of statistics that are given, the first tile's blocks keep
/// what a backward wants.
template <class T, int W, class Act>
__device__ void apply(const Geometry &g, const Channels<AccOf<T>> &channels, const Given<AccOf<T>> &given, const T *x,
                      const T *residual, T *y, unsigned char *mask, const Act &act) {
    using A = AccOf<T>;
    __shared__ Shared<A> shared;
    auto walk = Walk<u64>::of_block(g, true);
    const Normalizer<A> by = {channels, given, g.channels};
    if (by.is_given() && walk.tile == 0) {
#pragma unroll 1
        for (unsigned k = threadIdx.x; k < channels_of(g, walk.slice); k += blockDim.x) {
            by.save(u64(walk.slice) * g.slice_channels + k);
        }
    }
    if (Coefs<A, W>::prepare(g, walk.slice, by, shared.values())) {
        return apply_slowly<W>(g, walk, by, x, residual, y, mask, act);
    }
    const Coefs<A, W> coefs(g, walk, shared.values());
    constexpr unsigned N = 4;
    const bool aligned = W == 1 || g.aligned;
    const bool hot = !Act::GENERAL && W > 1 && aligned && (residual || !mask);
    const unsigned whole = hot ? walk.count / N * N : 0;
    const auto step = [&](auto adds, auto masks, auto loop) {
        struct Item {
            Vector<T, W> x, residual;
        };
        const auto load = [=](u64 at, bool aligned) {
            Item item = {};
            item.x = load_last<T, W>(x, at, aligned);
            if (adds.is(residual)) item.residual = load_last<T, W>(residual, at, aligned);
            return item;
        };
        const auto use = [&](const Item &item, u64 at, bool aligned) {
            unsigned ones;
            const auto out = coefs.output(item.x, adds.is(residual), item.residual, act, ones);
            store<T, W>(y, at, out, aligned);
            if (masks.is(mask)) mask[at] = ones;
        };
        loop(load, use);
    };
    step(Has<ASKED>(), Has<ASKED>(), [&](auto load, auto use) {
        in_turn<N, Forth>(g, walk, walk.count - whole, aligned, load, use, Nothing(), Nothing());
    });
    if constexpr (!Act::GENERAL && W > 1) {
        by_epilogue(residual, mask, [&](auto adds, auto masks) {
            step(adds, masks, [&](auto load, auto use) {
                in_batches<N, Forth, decltype(load(walk.at, true))>(g, walk, whole, each(load), use, Nothing());
            });
        });
    }
}
