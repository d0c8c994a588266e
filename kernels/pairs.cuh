// What a thread of a backward reads: pairs of vectors, what passes the activation, and its sums.
#pragma once
#include "apply.cuh"
#include "statistics.cuh"
#include <type_traits>

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

/// What the derivative of the activation is taken from: known where a loop is compiled, or asked for in it.
template <int SOURCE> struct From {
    static constexpr bool ASKED = SOURCE < 0;
    static constexpr int FROM = SOURCE;
    template <class T> static __device__ bool is(const Tensors<T> &t, Source source) {
        return ASKED ? t.source == source : SOURCE == source;
    }
};
using FromAny = From<-1>;

/// Calls `loop` for the source of a ReLU's derivatives: a loop of its own for each.
template <class T, class Loop>
__device__ void by_source(unsigned source, Loop loop) {
    if constexpr (!SPECIALIZES<T>) {
        loop(FromAny());
    } else if (source == FROM_X) {
        loop(From<FROM_X>());
    } else if (source == FROM_MASK) {
        loop(From<FROM_MASK>());
    } else {
        loop(From<ONE>());
    }
}

/// A vector of x and of the gradient of y, and what else its derivatives take.
template <class T, int W, class Act, class Known> struct Pair {
    using A = AccOf<T>;
    Vector<T, W> x, g, residual;
    unsigned ones;

    Pair() = default;
    /// `last`: it will not be read again.
    __device__ Pair(const Tensors<T> &t, u64 at, bool reads_x, bool aligned, bool last) {
        if (reads_x) x = last ? load_last<T, W>(t.x, at, aligned) : load<T, W>(t.x, at, aligned);
        g = last ? load_last<T, W>(t.grad_y, at, aligned) : load<T, W>(t.grad_y, at, aligned);
        look(t, at, aligned);
    }
    /// Those of a batch. The bits of all come in one word: none is then waited for before all loads are on their way.
    template <class Index, unsigned N>
    static __device__ void read(const Tensors<T> &t, const Index (&at)[N], bool last, Pair (&pairs)[N]) {
        Vector<T, W> x[N], g[N];
        load_both(t, at, last, x, g);
        unsigned all = 0;
#pragma unroll
        for (unsigned k = 0; k < N; k++) {
            pairs[k].x = x[k], pairs[k].g = g[k];
            pairs[k].look(t, at[k], true);
            all |= pairs[k].ones << 8 * k;
        }
        if constexpr (std::is_same_v<Known, From<FROM_MASK>>) {
            all = anew(all);
#pragma unroll
            for (unsigned k = 0; k < N; k++) pairs[k].ones = all >> 8 * k;
        }
    }
    template <class Index, unsigned N>
    static __device__ void load_both(const Tensors<T> &t, const Index (&at)[N], bool last, Vector<T, W> (&x)[N],
                                     Vector<T, W> (&g)[N]) {
        const T *xs[N], *gs[N];
#pragma unroll
        for (unsigned k = 0; k < N; k++) xs[k] = place(t.x + u64(at[k]) * W), gs[k] = place(t.grad_y + u64(at[k]) * W);
        if (last) {
#pragma unroll
            for (unsigned k = 0; k < N; k++)
                x[k] = load_last<T, W>(xs[k], 0, true), g[k] = load_last<T, W>(gs[k], 0, true);
        } else {
#pragma unroll
            for (unsigned k = 0; k < N; k++) x[k] = load<T, W>(xs[k], 0, true), g[k] = load<T, W>(gs[k], 0, true);
        }
    }
    /// Reads what else the derivatives take.
    __device__ void look(const Tensors<T> &t, u64 at, bool aligned) {
        ones = Known::is(t, FROM_MASK) ? t.mask[at] : ~0u;
        if constexpr (Act::GENERAL) {
            if (Known::is(t, FROM_RESIDUAL)) residual = load<T, W>(t.residual, at, aligned);
        }
    }
    /// The gradient of z. Of a ReLU it takes the place of that of y.
    __device__ auto passed(const Coefs<A, W> &coefs, const Tensors<T> &t, const Act &act) {
        using E = Element<T>;
        if constexpr (Act::GENERAL) {
            Wide<A, W> wide;
#pragma unroll
            for (int i = 0; i < W; i++) wide.element[i] = E::widen(g.get(i));
            if (t.source == ONE) return wide;
            if (t.source == FROM_MASK) {
#pragma unroll
                for (int i = 0; i < W; i++) {
                    if (!(ones >> i & 1)) wide.element[i] = times(act.slope, wide.element[i]);
                }
                return wide;
            }
            act.with([&](const auto &activation) {
#pragma unroll
                for (int i = 0; i < W; i++) {
                    A z = coefs.normalize(i, E::widen(x.get(i)));
                    if (t.source == FROM_RESIDUAL) z = add_rn(z, E::widen(residual.get(i)));
                    wide.element[i] = times(activation.template derivative<T>(z), wide.element[i]);
                }
            });
            return wide;
        } else {
            if (Known::is(t, FROM_X)) {
                ones = 0;
#pragma unroll
                for (int i = 0; i < W; i++) {
                    const A z = coefs.normalize(i, E::widen(x.get(i)));
                    ones |= unsigned(act.template is_one<T>(z)) << i;
                }
            }
            if (!Known::is(t, ONE)) g.keep(ones);
            return g;
        }
    }
    /// Adds what has passed.
    template <class Passed>
    __device__ void add_to(Sums<A, W> &sums, const Coefs<A, W> &coefs, const Passed &passed) const {
#pragma unroll
        for (int i = 0; i < W; i++) {
            const A distance = Element<T>::widen(x.get(i)) - coefs.mean[i];
            sums.add(i, widened<T>(passed, i), distance);
        }
    }
};

/// Pairs of a batch of straight code, and of others.
constexpr unsigned PAIRS = 4, FEW = 2;
/// Of one beside sums: as many as registers hold where z is computed again, too.
template <class T> __device__ constexpr unsigned pairs_from(int source) {
    return sizeof(T) == 2 && (source == FROM_X || !SPECIALIZES<T>) ? 3 : PAIRS;
}

/// How many of `count` come in whole batches.
template <class T> __device__ unsigned whole_pairs(unsigned count, unsigned source) {
    constexpr unsigned LESS = pairs_from<T>(FROM_X);
    return pairs_from<T>(source) == PAIRS ? count / PAIRS * PAIRS : count / LESS * LESS;
}

/// Adds a thread's pairs: `N` at a time, and where they are `hot`, those that make up whole batches in these, last.
/// `write(passed, at, aligned)` is called with what passes of each, `other(pair, step)` with those that are in no
/// batch, `keep` likewise with the others. Steps count from `step`, below 0 for those that will be read again.
template <unsigned N, class T, int W, class Act, class Index, class Write, class Other, class Keep>
__device__ __forceinline__ void read_pairs(const Geometry &g, Walk<Index> &walk, int step, bool hot, bool aligned,
                                           Sums<AccOf<T>, W> &sums, const Coefs<AccOf<T>, W> &coefs,
                                           const Tensors<T> &t, const Act &act, Write write, Other other, Keep keep) {
    const auto after = [&](unsigned n) {
        if (ends_segment(step, n)) sums.end_segment();
    };
    const auto use = [&](auto keep) {
        return [&, keep](auto pair, Index at, bool aligned) {
            if constexpr (Act::GENERAL) keep(pair, step); // as it is, and registers are free
            const auto passed = pair.passed(coefs, t, act);
            pair.add_to(sums, coefs, passed);
            write(passed, at, aligned);
            if constexpr (!Act::GENERAL) keep(pair, step);
            step++;
        };
    };
    const auto load = [&](Index at, bool aligned) { return Pair<T, W, Act, FromAny>(t, at, true, aligned, false); };
    constexpr bool BATCHES = !Act::GENERAL && W > 1;
    const unsigned whole = BATCHES && hot ? whole_pairs<T>(walk.count, t.source) : 0;
    in_turn<N, Forth>(g, walk, walk.count - whole, aligned, load, use(other), Nothing(), after);
    if constexpr (BATCHES) {
        by_source<T>(t.source, [&](auto known) {
            constexpr unsigned BATCH = pairs_from<T>(decltype(known)::FROM);
            constexpr bool KEEPS = !std::is_same_v<Keep, Nothing>;
            using Item = Pair<T, W, Act, decltype(known)>;
            const auto fetch = [&](const auto &at, auto &pairs) { Item::read(t, at, KEEPS && step >= 0, pairs); };
            in_batches<BATCH, Forth, Item>(g, walk, whole, fetch, use(keep), after);
        });
    }
    sums.end_segment();
}
