// The resident kernels of one type of elements; README.md lists them.
#pragma once
#include "layout.cuh"
#include "resident_backward.cuh"
#include "resident_forward.cuh"

#define RESIDENT(name, T)                                                                                              \
    KERNEL forward_resident_##name(const Geometry g, const Group group, const Outputs<float> out, u64 count,           \
                                   const T *x, const T *residual, T *y, unsigned char *mask, unsigned relu) {          \
        const Target<T, Relu> target = {residual, y, mask, {relu != 0}};                                               \
        forward_resident<T>(g, group, out, count, x, target);                                                          \
    }                                                                                                                  \
    KERNEL backward_resident_##name(const Geometry g, const Group group, const Channels<float> by,                     \
                                    const Gradients<float> out, u64 count, const T *x, const T *grad_y,                \
                                    const unsigned char *mask, unsigned source, unsigned accumulate, T *grad_x,        \
                                    T *grad_residual) {                                                                \
        const Tensors<T> tensors = {x, grad_y, mask, source, grad_x, grad_residual};                                   \
        backward_resident(g, group, by, out, count, tensors, Relu{}, accumulate);                                      \
    }

/// For any activation.
#define RESIDENT_ANY(name, T)                                                                                          \
    KERNEL forward_resident_any_##name(const Geometry g, const Group group, const Outputs<float> out, u64 count,       \
                                       const T *x, const T *residual, T *y, unsigned char *mask,                       \
                                       const AnyActivation<float> act) {                                               \
        const Target<T, AnyActivation<float>> target = {residual, y, mask, act};                                       \
        forward_resident<T>(g, group, out, count, x, target);                                                          \
    }                                                                                                                  \
    KERNEL backward_resident_any_##name(                                                                               \
        const Geometry g, const Group group, const Channels<float> by, const Gradients<float> out, u64 count,          \
        const T *x, const T *grad_y, const unsigned char *mask, unsigned source, const T *residual,                    \
        const AnyActivation<float> act, unsigned accumulate, T *grad_x, T *grad_residual) {                            \
        const Tensors<T> tensors = {x, grad_y, mask, source, grad_x, grad_residual, residual};                         \
        backward_resident(g, group, by, out, count, tensors, act, accumulate);                                         \
    }
