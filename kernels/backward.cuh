// The backward: the sums of every channel, then the gradients of x and residual.
#pragma once
#include "normalize.cuh"
#include "statistics.cuh"

/// What decides whether a gradient passes the ReLU.
enum Gate : unsigned {
    /// There is no ReLU.
    OPEN,
    /// The output, computed again from x.
    RECOMPUTE,
    /// What the forward left.
    MASK,
};

template <class T> struct Tensors {
    const T *x, *grad_y;
    const unsigned char *mask;
    unsigned gate;
    T *grad_x, *grad_residual;
};

/// A few vectors of a thread.
template <class T, int W, unsigned AHEAD> struct Batch {
    using A = AccOf<T>;
    Vector<T, W> x[AHEAD], g[AHEAD];
    unsigned passes[AHEAD];
    u64 at[AHEAD];
    unsigned count;

    __device__ Batch(const Tensors<T> &t, Walk &walk, unsigned begin, bool reads_x, bool aligned) {
        count = min(at_once<W>(AHEAD, aligned), walk.count - begin);
#pragma unroll
        for (unsigned k = 0; k < AHEAD; k++) {
            if (k < count) {
                at[k] = walk.at;
                if (reads_x) x[k] = load<T, W>(t.x, walk.at, k > 0 || aligned);
                g[k] = load<T, W>(t.grad_y, walk.at, k > 0 || aligned);
                passes[k] = t.gate == MASK ? t.mask[walk.at] : ~0u;
                walk.next();
            }
        }
    }
    /// What passes of lane `i`.
    __device__ A gated(const Coefs<A, W> &coefs, unsigned gate, unsigned k, int i) const {
        const A value = Element<T>::widen(g[k].element[i]);
        if (gate == RECOMPUTE) {
            return coefs.normalize(i, Element<T>::widen(x[k].element[i])) <= Element<T>::ZERO ? A(0) : value;
        }
        return passes[k] >> i & 1 ? value : A(0);
    }
};

/// `sum(g)` and `sum(g * (x - mean))` of each channel of a tile. With outputs, the gradients through frozen statistics.
template <class T, int W>
__device__ void backward_sums(const Geometry &g, const Channels<AccOf<T>> &by, const Tensors<T> &t,
                              double2 *partials) {
    using E = Element<T>;
    using A = AccOf<T>;
    constexpr unsigned AHEAD = 2;
    __shared__ Shared<A> shared;
    Walk walk(g, false);
    const Coefs<A, W> coefs(g, walk, by, shared);
    Part parts[W];
    A sum[W], product[W];
#pragma unroll
    for (int i = 0; i < W; i++) {
        parts[i] = {0, 0, 0};
        sum[i] = product[i] = 0;
    }
    for (unsigned begin = 0; begin < walk.count;) {
        Batch<T, W, AHEAD> batch(t, walk, begin, true, g.aligned);
#pragma unroll
        for (unsigned k = 0; k < AHEAD; k++) {
            if (k < batch.count) {
                Vector<T, W> grad_x, grad_residual;
#pragma unroll
                for (int i = 0; i < W; i++) {
                    const A passed = batch.gated(coefs, t.gate, k, i);
                    sum[i] += passed;
                    product[i] = fma_rn(passed, E::widen(batch.x[k].element[i]) - coefs.mean[i], product[i]);
                    grad_x.element[i] = E::narrow(coefs.scale[i] * passed);
                    grad_residual.element[i] = E::narrow(passed);
                }
                if (t.grad_x) store<T, W>(t.grad_x, batch.at[k], grad_x, k > 0 || g.aligned);
                if (t.grad_residual) store<T, W>(t.grad_residual, batch.at[k], grad_residual, k > 0 || g.aligned);
            }
        }
        begin += batch.count;
        if (begin % SEGMENT == 0 || begin == walk.count) {
#pragma unroll
            for (int i = 0; i < W; i++) {
                parts[i].first += sum[i];
                parts[i].second += product[i];
                sum[i] = product[i] = 0;
            }
        }
    }
    reduce<A, W, Add>(g, walk, parts, partials, shared);
}

template <class A> struct Gradients {
    const A *mean_rest, *invstd, *total_sums;
    A *grad_weight, *grad_bias, *sums, *coefs;
    unsigned *nonfinite;
};

template <class A>
__device__ void backward_finalize(const Merge &merge, const Gradients<A> &out, bool accumulate,
                                  const double2 *partials) {
    const unsigned c = warp_channel(), lane = threadIdx.x % 32;
    if (c >= merge.channels) return;
    Part own = {0, 0, 0};
    if (partials) {
        for (unsigned tile = lane; tile < merge.tiles; tile += 32) {
            const double2 part = partials[u64(c) * merge.tiles + tile];
            Add::merge(own, {0, part.x, part.y});
        }
    }
    const Part all = warp_merge<Add>(own);
    if (lane != 0) return;

    // The tiles subtracted the rounded mean.
    const double rest = out.mean_rest ? out.mean_rest[c] : 0, invstd = out.invstd[c];
    const double sum = all.first, product = all.second - or_zero(rest * sum), sum_xhat = product * invstd;
    const u64 channels = merge.channels;
    if (out.sums) {
        out.sums[c] = A(sum);
        out.sums[channels + c] = A(sum_xhat);
        if (c == 0) out.sums[2 * channels] = A(merge.count);
    }
    if (out.grad_weight) out.grad_weight[c] = A((accumulate ? out.grad_weight[c] : 0.0) + sum_xhat);
    if (out.grad_bias) out.grad_bias[c] = A((accumulate ? out.grad_bias[c] : 0.0) + sum);
    if (out.coefs) {
        const A *const total = out.total_sums;
        const double m = total ? double(total[2 * channels]) : double(merge.count);
        const double mean_g = (total ? double(total[c]) : sum) / m;
        const double slope = (total ? double(total[channels + c]) : sum_xhat) / m * invstd;
        out.coefs[c] = A(mean_g - or_zero(rest * slope));
        out.coefs[channels + c] = A(slope);
    }
    if (out.nonfinite && !(isfinite(sum) && isfinite(sum_xhat))) atomicOr(out.nonfinite, 1u);
}

/// The gradients, by coefficients that sums have set; without those, through frozen statistics.
template <class T, int W>
__device__ void backward_apply(const Geometry &g, const Channels<AccOf<T>> &by, const Tensors<T> &t,
                               const AccOf<T> *further) {
    using E = Element<T>;
    using A = AccOf<T>;
    constexpr unsigned AHEAD = 2;
    __shared__ Shared<A> shared;
    Walk walk(g, true);
    const Coefs<A, W> coefs(g, walk, by, shared, true, further);
    A mean_g[W], slope[W];
#pragma unroll
    for (int i = 0; i < W; i++) {
        mean_g[i] = coefs.of(3, g, walk, i, shared);
        slope[i] = coefs.of(4, g, walk, i, shared);
    }
    const bool reads_x = further || t.gate == RECOMPUTE;
    for (unsigned begin = 0; begin < walk.count;) {
        Batch<T, W, AHEAD> batch(t, walk, begin, reads_x, g.aligned);
#pragma unroll
        for (unsigned k = 0; k < AHEAD; k++) {
            if (k < batch.count) {
                Vector<T, W> grad_x, grad_residual;
#pragma unroll
                for (int i = 0; i < W; i++) {
                    const A passed = batch.gated(coefs, t.gate, k, i);
                    A centered = passed;
                    if (further) {
                        const A distance = add_rn(E::widen(batch.x[k].element[i]), -coefs.mean[i]);
                        centered = fma_rn(-distance, slope[i], add_rn(passed, -mean_g[i]));
                    }
                    grad_x.element[i] = E::narrow(mul_rn(coefs.scale[i], centered));
                    grad_residual.element[i] = E::narrow(passed);
                }
                if (t.grad_x) store<T, W>(t.grad_x, batch.at[k], grad_x, k > 0 || g.aligned);
                if (t.grad_residual) store<T, W>(t.grad_residual, batch.at[k], grad_residual, k > 0 || g.aligned);
            }
        }
        begin += batch.count;
    }
}
