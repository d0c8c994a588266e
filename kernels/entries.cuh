// The entry points of one type of elements; README.md lists them.
#pragma once
#include "backward.cuh"

#define TILED(name, T, W)                                                                                              \
    KERNEL stats_##name(const Geometry g, const T *x, double2 *partials) { stats<T, W>(g, x, partials); }              \
    KERNEL apply_##name(const Geometry g, const Channels<AccOf<T>> by, const Given<AccOf<T>> given, const T *x,        \
                        const T *residual, T *y, unsigned char *mask, unsigned relu) {                                 \
        apply<T, W>(g, by, given, x, residual, y, mask, Relu{relu != 0});                                              \
    }                                                                                                                  \
    KERNEL backward_sums_##name(const Geometry g, const Channels<AccOf<T>> by, const T *x, const T *grad_y,            \
                                const unsigned char *mask, unsigned source, double2 *partials, T *grad_x,              \
                                T *grad_residual) {                                                                    \
        backward_sums<T, W>(g, by, {x, grad_y, mask, source, grad_x, grad_residual}, Relu{}, partials);                \
    }                                                                                                                  \
    KERNEL backward_apply_##name(const Geometry g, const Channels<AccOf<T>> by, const T *x, const T *grad_y,           \
                                 const unsigned char *mask, unsigned source, const AccOf<T> *coefs, T *grad_x,         \
                                 T *grad_residual) {                                                                   \
        backward_apply<T, W>(g, by, {x, grad_y, mask, source, grad_x, grad_residual}, Relu{}, coefs);                  \
    }

#define ENTRIES(name, T)                                                                                               \
    TILED(name##_v, T, 16 / sizeof(T))                                                                                 \
    TILED(name##_s, T, 1)                                                                                              \
    KERNEL stats_finalize_##name(const Merge merge, const Outputs<AccOf<T>> out, const T *x,                           \
                                 const double2 *partials) {                                                            \
        stats_finalize(merge, out, x, partials);                                                                       \
    }                                                                                                                  \
    KERNEL eval_##name(unsigned channels, const Given<AccOf<T>> given, const AccOf<T> *weight, const AccOf<T> *bias) { \
        eval<AccOf<T>>(channels, given, weight, bias);                                                                 \
    }                                                                                                                  \
    KERNEL backward_finalize_##name(const Merge merge, const Channels<AccOf<T>> by, const T *x, const T *grad_y,       \
                                    const unsigned char *mask, unsigned source, const Gradients<AccOf<T>> out,         \
                                    unsigned accumulate, const double2 *partials) {                                    \
        backward_finalize<T>(merge, by, {x, grad_y, mask, source}, Relu{}, out, accumulate, partials);                 \
    }

#define MERGE_STATS(name, A)                                                                                           \
    KERNEL merge_stats_##name(unsigned channels, unsigned parts, const double *records, const Running<A> running,      \
                              double *merged) {                                                                        \
        merge_stats(channels, parts, records, running, merged);                                                        \
    }
