// The resident kernels of one type of elements; README.md lists them.
#pragma once
#include "resident_backward.cuh"
#include "resident_forward.cuh"

#define RESIDENT(name, T)                                                                                              \
    KERNEL forward_resident_##name(const Geometry g, const Group group, const Outputs<float> out, u64 count,           \
                                   const T *x, const T *residual, T *y, unsigned char *mask, unsigned relu) {          \
        forward_resident<T>(g, group, out, count, x, {residual, y, mask, relu != 0});                                  \
    }                                                                                                                  \
    KERNEL backward_resident_##name(const Geometry g, const Group group, const Channels<float> by,                     \
                                    const Gradients<float> out, u64 count, const T *x, const T *grad_y,                \
                                    const unsigned char *mask, unsigned gate, unsigned accumulate, T *grad_x,          \
                                    T *grad_residual) {                                                                \
        const Tensors<T> tensors = {x, grad_y, mask, gate, grad_x, grad_residual};                                     \
        backward_resident(g, group, by, out, count, tensors, accumulate);                                              \
    }
