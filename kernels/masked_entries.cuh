// The entry points of one type of elements for tensors of which a mask says what counts; README.md lists them.
#pragma once
#include "masked_backward.cuh"
#include "masked_statistics.cuh"
#include "resident_backward.cuh"
#include <cstddef>

// The library's test in src/engine/cuda/masked.rs reads these lines.
#define FIELD(type, field, place) static_assert(offsetof(type, field) == place, "the library has it elsewhere")
#define SIZE(type, bytes) static_assert(sizeof(type) == bytes, "the library has it in another size")
SIZE(Places, 40);
FIELD(Places, bytes, 0);
FIELD(Places, each, 8);
FIELD(Places, step, 16);
FIELD(Places, step_rest, 24);
FIELD(Places, wrap, 32);
SIZE(MaskRules, 16);
FIELD(MaskRules, count_eps, 0);
FIELD(MaskRules, all_masked, 8);
FIELD(MaskRules, reserved, 12);
SIZE(Shares<float>, 40);
FIELD(Shares<float>, coefs, 0);
FIELD(Shares<float>, counts, 8);
FIELD(Shares<float>, values, 16);
FIELD(Shares<float>, count_eps, 24);
FIELD(Shares<float>, channels, 32);

#define MASKED_TILED(name, T, W)                                                                                       \
    KERNEL masked_stats_##name(const Geometry g, const Places places, const T *x, Counted *partials) {                 \
        masked_stats<T, W>(g, places, x, partials);                                                                    \
    }                                                                                                                  \
    KERNEL masked_backward_apply_##name(const Geometry g, const Channels<AccOf<T>> by, const T *x, const T *grad_y,    \
                                        const unsigned char *mask, unsigned source, const T *residual,                 \
                                        const EveryActivation<AccOf<T>> act, const Places places,                      \
                                        const Shares<AccOf<T>> shares, T *grad_x, T *grad_residual) {                  \
        const Tensors<T> tensors = {x, grad_y, mask, source, grad_x, grad_residual, residual};                         \
        masked_backward_apply<T, W>(g, by, tensors, act, places, shares);                                              \
    }

#define MASKED(name, T)                                                                                                \
    MASKED_TILED(name##_v, T, 16 / sizeof(T))                                                                          \
    MASKED_TILED(name##_s, T, 1)                                                                                       \
    KERNEL masked_finalize_##name(const Merge merge, const Outputs<AccOf<T>> out, const Places places,                 \
                                  const MaskRules rules, const T *x, const Counted *partials, double *counts) {        \
        masked_finalize<T>(merge, out, places, rules, x, partials, counts);                                            \
    }

/// Of what f32, f16 and bf16 have their statistics in, and of f64.
#define MASKED_MERGE(name, A)                                                                                          \
    KERNEL masked_merge_##name(unsigned channels, unsigned parts, const double *counted, const MaskRules rules,        \
                               const Outputs<A> out, double *merged) {                                                 \
        masked_merge(channels, parts, counted, rules, out, merged);                                                    \
    }

/// In one launch; not of f64.
#define MASKED_RESIDENT(name, T)                                                                                       \
    KERNEL masked_backward_resident_##name(const Geometry g, const Group group, const Channels<float> by,              \
                                           const Gradients<float> out, u64 count, const T *x, const T *grad_y,         \
                                           const unsigned char *mask, unsigned source, const T *residual,              \
                                           const EveryActivation<float> act, unsigned accumulate, T *grad_x,           \
                                           T *grad_residual, const Places places, const Shares<float> shares) {        \
        const Tensors<T> tensors = {x, grad_y, mask, source, grad_x, grad_residual, residual};                         \
        backward_resident<T, true>(g, group, by, out, count, tensors, act, accumulate, places, shares);                \
    }
