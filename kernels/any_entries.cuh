// Those of the entry points of one type of elements in which an activation stands, for any of them; README.md lists
// them.
#pragma once
#include "backward.cuh"

#define ANY_TILED(name, T, W)                                                                                          \
    KERNEL apply_any_##name(const Geometry g, const Channels<AccOf<T>> by, const Given<AccOf<T>> given, const T *x,    \
                            const T *residual, T *y, unsigned char *mask, const AnyActivation<AccOf<T>> act) {         \
        apply<T, W>(g, by, given, x, residual, y, mask, act);                                                          \
    }                                                                                                                  \
    KERNEL backward_sums_any_##name(const Geometry g, const Channels<AccOf<T>> by, const T *x, const T *grad_y,        \
                                    const unsigned char *mask, unsigned source, const T *residual,                     \
                                    const AnyActivation<AccOf<T>> act, double2 *partials, T *grad_x,                   \
                                    T *grad_residual) {                                                                \
        backward_sums<T, W>(g, by, {x, grad_y, mask, source, grad_x, grad_residual, residual}, act, partials);         \
    }                                                                                                                  \
    KERNEL backward_apply_any_##name(const Geometry g, const Channels<AccOf<T>> by, const T *x, const T *grad_y,       \
                                     const unsigned char *mask, unsigned source, const T *residual,                    \
                                     const AnyActivation<AccOf<T>> act, const AccOf<T> *coefs, T *grad_x,              \
                                     T *grad_residual) {                                                               \
        backward_apply<T, W>(g, by, {x, grad_y, mask, source, grad_x, grad_residual, residual}, act, coefs);           \
    }

#define ANY_ENTRIES(name, T)                                                                                           \
    ANY_TILED(name##_v, T, 16 / sizeof(T))                                                                             \
    ANY_TILED(name##_s, T, 1)                                                                                          \
    KERNEL backward_finalize_any_##name(const Merge merge, const Channels<AccOf<T>> by, const T *x, const T *grad_y,   \
                                        const unsigned char *mask, unsigned source, const T *residual,                 \
                                        const AnyActivation<AccOf<T>> act, const Gradients<AccOf<T>> out,              \
                                        unsigned accumulate, const double2 *partials) {                                \
        const Tensors<T> tensors = {x, grad_y, mask, source, nullptr, nullptr, residual};                              \
        backward_finalize<T>(merge, by, tensors, act, out, accumulate, partials);                                      \
    }
