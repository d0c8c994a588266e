// What happens to a parameter, a vector of one value per channel, between two steps of training: the gradient of its
// regularizer, the optimizer's step, and its constraint. And what batch renormalization does with such vectors.
//
// All of it is computed in f64, every operation rounded once and none fused, and rounded to the parameter's type where
// it is stored.
#include "element.cuh"
#include <cstddef>

#define KERNEL extern "C" __global__ void __launch_bounds__(256)
// Four blocks are enough for memory that is so small: with more the compiler spills registers around its divisions.
#define STEP_KERNEL extern "C" __global__ void __launch_bounds__(256, 4)

constexpr unsigned BLOCK = 256;

enum Family : unsigned { MOMENTUM = 0, ADAM = 1, VELOCITY = 2 };
enum Switch : unsigned { NESTEROV = 1, DECAY_APART = 2, AMSGRAD = 4, EPS_FIRST = 8 };

struct StepOptions {
    double lr_factor, weight_decay;
    /// The momentum of SGD, or beta1.
    double beta1;
    /// The dampening of SGD, or beta2.
    double beta2;
    double eps;
    unsigned family, switches;
};

struct NormOptions {
    /// The norm becomes one from `least` to `most`, by this share of the way.
    double least, most, rate;
    /// 1: no norm, negative values become 0.
    unsigned non_negative, reserved;
};

enum RenormSwitch : unsigned { UPDATES = 1, KEEP_VARIANCE = 2, EMPTY_IS_NAN = 4 };

struct RenormOptions {
    double eps;
    /// Bounds of r, and of d on both sides; infinite ones are none.
    double r_min, r_max, d_max;
    /// The weights of a batch: in the mean, in the deviation, in the pair that r and d are taken by.
    double factor, stddev_factor, renorm_factor;
    unsigned switches, reserved;
};

#define SIZE(type, size) static_assert(sizeof(type) == size, #type)
#define FIELD(type, field, offset) static_assert(offsetof(type, field) == offset, #type "." #field)
SIZE(StepOptions, 48);
FIELD(StepOptions, lr_factor, 0);
FIELD(StepOptions, weight_decay, 8);
FIELD(StepOptions, beta1, 16);
FIELD(StepOptions, beta2, 24);
FIELD(StepOptions, eps, 32);
FIELD(StepOptions, family, 40);
FIELD(StepOptions, switches, 44);
SIZE(NormOptions, 32);
FIELD(NormOptions, least, 0);
FIELD(NormOptions, most, 8);
FIELD(NormOptions, rate, 16);
FIELD(NormOptions, non_negative, 24);
FIELD(NormOptions, reserved, 28);
SIZE(RenormOptions, 64);
FIELD(RenormOptions, eps, 0);
FIELD(RenormOptions, r_min, 8);
FIELD(RenormOptions, r_max, 16);
FIELD(RenormOptions, d_max, 24);
FIELD(RenormOptions, factor, 32);
FIELD(RenormOptions, stddev_factor, 40);
FIELD(RenormOptions, renorm_factor, 48);
FIELD(RenormOptions, switches, 56);
FIELD(RenormOptions, reserved, 60);

/// `base` to the power of a whole number, by squaring.
__device__ inline double power(double base, double exponent) {
    double result = 1;
#pragma unroll 1
    for (u64 left = u64(exponent); left > 0; left >>= 1) {
        if (left & 1) result = mul_rn(result, base);
        base = mul_rn(base, base);
    }
    return result;
}

/// What is the same for every value in a step.
struct Step {
    double lr, taken;
    /// Of Adam, by the uncorrected moments: the rate, both corrections within, and what eps comes to.
    double rate, eps;
};

/// One value: the parameter after the step. Buffers that the rule does not have are not touched.
template <Family FAMILY, class A>
__device__ inline double stepped(const StepOptions &by, const Step &step, double w, double g, A *first, A *second,
                                 A *third) {
    if (by.weight_decay != 0) { // 0 adds none of an infinite value
        if (by.switches & DECAY_APART)
            w = mul_rn(w, add_rn(1.0, -mul_rn(step.lr, by.weight_decay)));
        else
            g = add_rn(g, mul_rn(by.weight_decay, w));
    }
    if (FAMILY == ADAM) {
        const double m = add_rn(mul_rn(by.beta1, double(*first)), mul_rn(add_rn(1.0, -by.beta1), g));
        double v = add_rn(mul_rn(by.beta2, double(*second)), mul_rn(add_rn(1.0, -by.beta2), mul_rn(g, g)));
        *first = A(m);
        *second = A(v);
        if (by.switches & AMSGRAD) {
            const double before = *third;
            v = v > before || v != v ? v : before; // NaN stays
            *third = A(v);
        }
        return add_rn(w, -mul_rn(step.rate, m / add_rn(sqrt(v), step.eps)));
    }
    const bool keeps = by.beta1 != 0, nesterov = by.switches & NESTEROV;
    if (FAMILY == VELOCITY) {
        const double own = -mul_rn(step.lr, g);
        if (!keeps) return add_rn(w, own);
        const double velocity = add_rn(mul_rn(by.beta1, double(*first)), own);
        *first = A(velocity);
        return add_rn(w, nesterov ? add_rn(mul_rn(by.beta1, velocity), own) : velocity);
    }
    if (keeps) {
        const double before = *first;
        const double buffer = step.taken == 1 ? g : add_rn(mul_rn(by.beta1, before), mul_rn(add_rn(1.0, -by.beta2), g));
        *first = A(buffer);
        g = nesterov ? add_rn(g, mul_rn(by.beta1, buffer)) : buffer;
    }
    return add_rn(w, -mul_rn(step.lr, g));
}

template <Family FAMILY, class A>
__device__ inline void step_all(u64 count, const StepOptions &by, const Step &step, A *value, const A *grad, A *first,
                                A *second, A *third) {
#pragma unroll 1
    for (u64 i = u64(blockIdx.x) * BLOCK + threadIdx.x; i < count; i += u64(gridDim.x) * BLOCK)
        value[i] = A(stepped<FAMILY>(by, step, value[i], grad[i], first + i, second + i, third + i));
}

/// `steps` holds the number of steps taken so far, and a word in which blocks count themselves: a step adds 1 to the
/// one and leaves the other 0, so that a graph that is replayed goes on counting.
template <class A>
__device__ void optimizer_step(u64 count, const StepOptions &by, const double *lr, double *steps, A *value,
                               const A *grad, A *first, A *second, A *third) {
    __shared__ Step step;
    if (threadIdx.x == 0) {
        step.lr = mul_rn(*lr, by.lr_factor);
        step.taken = add_rn(steps[0], 1.0);
        if (by.family == ADAM) {
            const double root2 = sqrt(add_rn(1.0, -power(by.beta2, step.taken)));
            step.rate = mul_rn(step.lr, root2) / add_rn(1.0, -power(by.beta1, step.taken));
            step.eps = by.switches & EPS_FIRST ? by.eps : mul_rn(by.eps, root2);
        }
    }
    __syncthreads();
    if (by.family == ADAM)
        step_all<ADAM>(count, by, step, value, grad, first, second, third);
    else if (by.family == VELOCITY)
        step_all<VELOCITY>(count, by, step, value, grad, first, second, third);
    else
        step_all<MOMENTUM>(count, by, step, value, grad, first, second, third);
    // Whoever arrives last counts the step: all have read the number by then.
    __syncthreads();
    if (threadIdx.x > 0) return;
    auto *const arrived = reinterpret_cast<unsigned *>(steps + 1);
    __threadfence();
    if (atomicAdd(arrived, 1u) == gridDim.x - 1) {
        __threadfence();
        *arrived = 0;
        steps[0] = step.taken;
    }
}

/// The sum of a block's values, in an order that does not depend on anything, for all of its threads.
__device__ inline double block_sum(double own) {
    __shared__ double sums[BLOCK];
    sums[threadIdx.x] = own;
    for (unsigned half = BLOCK / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) sums[threadIdx.x] = add_rn(sums[threadIdx.x], sums[threadIdx.x + half]);
    }
    __syncthreads();
    return sums[0];
}

/// One block. The loss is `l1 * sum(|w|) + l2 * sum(w * w)`, and its gradient `l1 * sign(w) + 2 * l2 * w`.
template <class A>
__device__ void regularize(u64 count, double l1, double l2, const A *value, A *grad, double *loss,
                           unsigned accumulate_grad, unsigned accumulate_loss) {
    double absolute = 0, squares = 0;
    for (u64 i = threadIdx.x; i < count; i += BLOCK) {
        const double w = value[i];
        absolute = add_rn(absolute, fabs(w));
        squares = add_rn(squares, mul_rn(w, w));
        if (grad) {
            const double sign = w > 0 ? 1 : w < 0 ? -1 : w; // NaN stays
            const double own = add_rn(mul_rn(l1, sign), l2 != 0 ? mul_rn(mul_rn(2.0, l2), w) : 0);
            grad[i] = A(accumulate_grad ? add_rn(double(grad[i]), own) : own);
        }
    }
    if (!loss) return;
    absolute = block_sum(absolute);
    __syncthreads();
    squares = block_sum(squares);
    if (threadIdx.x > 0) return;
    // A factor of 0 leaves out what may be infinite.
    const double own = add_rn(l1 != 0 ? mul_rn(l1, absolute) : 0, l2 != 0 ? mul_rn(l2, squares) : 0);
    *loss = accumulate_loss ? add_rn(*loss, own) : own;
}

/// One block.
template <class A> __device__ void constrain(u64 count, const NormOptions &to, A *value) {
    double factor = 1;
    if (!to.non_negative) {
        double squares = 0;
        for (u64 i = threadIdx.x; i < count; i += BLOCK)
            squares = add_rn(squares, mul_rn(double(value[i]), double(value[i])));
        const double norm = sqrt(block_sum(squares));
        const double within = norm < to.least ? to.least : norm > to.most ? to.most : norm;
        const double wanted = add_rn(mul_rn(to.rate, within), mul_rn(add_rn(1.0, -to.rate), norm));
        factor = wanted / add_rn(1e-7, norm);
    }
    for (u64 i = threadIdx.x; i < count; i += BLOCK) {
        const double w = value[i];
        value[i] = A(to.non_negative ? (w < 0 ? 0.0 : w) : mul_rn(w, factor));
    }
}

/// `(1 - factor) * old + factor * value`; a factor of 1 replaces what is not finite, too.
__device__ inline double blend(double old, double value, double factor) {
    return factor == 1 ? value : add_rn(mul_rn(add_rn(1.0, -factor), old), mul_rn(factor, value));
}

/// What renormalization reads and writes of every channel. Null: no weight, no bias, no pair of its own.
template <class A> struct Renorm {
    const double *record;
    const A *weight, *bias;
    A *mean, *stddev, *var, *renorm_mean, *renorm_stddev, *scale, *shift, *r, *d;
};

/// r and d lead from the batch's statistics to the kept ones, within bounds; NaN stays.
template <class A> __device__ void renormalize(u64 count, const RenormOptions &by, const Renorm<A> &of) {
    const double values = of.record[3 * count];
#pragma unroll 1
    for (u64 c = u64(blockIdx.x) * BLOCK + threadIdx.x; c < count; c += u64(gridDim.x) * BLOCK) {
        double mean = add_rn(of.record[c], of.record[count + c]);
        double stddev = sqrt(add_rn(of.record[2 * count + c], by.eps));
        const double kept_mean = of.renorm_mean ? of.renorm_mean[c] : of.mean[c];
        double kept = of.renorm_stddev ? of.renorm_stddev[c] : of.stddev[c];
        const double least = sqrt(by.eps);
        kept = kept < least ? least : kept;
        double r = stddev / kept, d = add_rn(mean, -kept_mean) / kept;
        r = r < by.r_min ? by.r_min : r > by.r_max ? by.r_max : r;
        d = d < -by.d_max ? -by.d_max : d > by.d_max ? by.d_max : d;
        if (values == 0) {
            r = 1;
            d = 0;
        }
        const double weight = of.weight ? double(of.weight[c]) : 1.0;
        of.r[c] = A(r);
        of.d[c] = A(d);
        of.scale[c] = A(mul_rn(weight, r));
        of.shift[c] = A(add_rn(mul_rn(weight, d), of.bias ? double(of.bias[c]) : 0.0));
        if (!(by.switches & UPDATES) || (values == 0 && !(by.switches & EMPTY_IS_NAN))) continue;
        if (values == 0) mean = stddev = __longlong_as_double(0x7ff8000000000000);
        of.mean[c] = A(blend(of.mean[c], mean, by.factor));
        if (of.renorm_mean) of.renorm_mean[c] = A(blend(of.renorm_mean[c], mean, by.renorm_factor));
        if (values == 1 && (by.switches & KEEP_VARIANCE)) continue;
        const double moved = blend(of.stddev[c], stddev, by.stddev_factor);
        const double var = add_rn(mul_rn(moved, moved), -by.eps);
        of.stddev[c] = A(moved);
        of.var[c] = A(var < 0 ? 0.0 : var);
        if (of.renorm_stddev) of.renorm_stddev[c] = A(blend(of.renorm_stddev[c], stddev, by.renorm_factor));
    }
}

/// The gradients of weight and bias, `r * sum(g * xhat) + d * sum(g)` and `sum(g)`. Null: not asked for.
template <class A>
__device__ void renormalize_backward(u64 count, const A *r, const A *d, const A *sum_g_xhat, const A *sum_g,
                                     A *grad_weight, A *grad_bias, unsigned accumulate) {
#pragma unroll 1
    for (u64 c = u64(blockIdx.x) * BLOCK + threadIdx.x; c < count; c += u64(gridDim.x) * BLOCK) {
        const double g = sum_g[c];
        if (grad_weight) {
            const double own = add_rn(mul_rn(double(r[c]), double(sum_g_xhat[c])), mul_rn(double(d[c]), g));
            grad_weight[c] = A(accumulate ? add_rn(double(grad_weight[c]), own) : own);
        }
        if (grad_bias) grad_bias[c] = A(accumulate ? add_rn(double(grad_bias[c]), g) : g);
    }
}

#define ENTRIES(name, A)                                                                                               \
    STEP_KERNEL optimizer_step_##name(u64 count, const StepOptions by, const double *lr, double *steps, A *value,      \
                                      const A *grad, A *first, A *second, A *third) {                                  \
        optimizer_step(count, by, lr, steps, value, grad, first, second, third);                                       \
    }                                                                                                                  \
    KERNEL regularize_##name(u64 count, double l1, double l2, const A *value, A *grad, double *loss,                   \
                             unsigned accumulate_grad, unsigned accumulate_loss) {                                     \
        regularize(count, l1, l2, value, grad, loss, accumulate_grad, accumulate_loss);                                \
    }                                                                                                                  \
    KERNEL constrain_##name(u64 count, const NormOptions to, A *value) { constrain(count, to, value); }                \
    KERNEL renormalize_##name(u64 count, const RenormOptions by, const Renorm<A> of) { renormalize(count, by, of); }   \
    KERNEL renormalize_backward_##name(u64 count, const A *r, const A *d, const A *sum_g_xhat, const A *sum_g,         \
                                       A *grad_weight, A *grad_bias, unsigned accumulate) {                            \
        renormalize_backward(count, r, d, sum_g_xhat, sum_g, grad_weight, grad_bias, accumulate);                      \
    }

ENTRIES(f32, float)
ENTRIES(f64, double)
