// Batch normalization of N x C x S (S: elements of a plane), a block per channel, any S: two passes over the tensor
// forward, two backward.
#include "block.cuh"
#include "element.cuh"

template <class T> struct Forward {
    using Acc = typename Element<T>::Acc;
    const T *x;
    T *y;
    const Acc *weight, *bias;
    Acc *running_mean, *running_var;
    Acc *mean, *invstd;
    Acc eps, momentum;
    int images, channels, plane;
};

template <class T> __device__ void forward(const Forward<T> &args) {
    using E = Element<T>;
    using Acc = typename E::Acc;
    const int channel = blockIdx.x;
    const auto begin_of = [&](int image) { return (size_t(image) * args.channels + channel) * args.plane; };

    // Sums about a value of the channel lose less than sums about 0.
    __shared__ Acc origin;
    if (threadIdx.x == 0) origin = E::widen(args.x[begin_of(0)]);
    __syncthreads();

    Pair<Acc> sums = {0, 0};
    const auto count = [&](T value) {
        const Acc d = E::widen(value) - origin;
        sums.first += d;
        sums.second = fma_rn(d, d, sums.second);
    };
    for (int image = 0; image < args.images; image++) {
        const size_t begin = begin_of(image);
        for_each<WIDTH<T>>(
            begin, begin + args.plane,
            [&](size_t i) {
                const Vector<T> x = load(args.x + i);
                for (int k = 0; k < WIDTH<T>; k++) count(x.element[k]);
            },
            [&](size_t i) { count(args.x[i]); });
    }
    sums = block_sum(sums);
    const Acc n = Acc(args.images) * Acc(args.plane);
    const Acc shift = div_rn(sums.first, n);
    const Acc mean = origin + shift, squares = fma_rn(-shift, sums.first, sums.second);
    const Acc invstd = div_rn(Acc(1), sqrt_rn(div_rn(squares, n) + args.eps));
    if (threadIdx.x == 0) {
        args.mean[channel] = mean;
        args.invstd[channel] = invstd;
        const Acc old_mean = args.running_mean[channel], old_var = args.running_var[channel];
        args.running_mean[channel] = fma_rn(args.momentum, mean - old_mean, old_mean);
        args.running_var[channel] = fma_rn(args.momentum, div_rn(squares, n - 1) - old_var, old_var);
    }

    const Acc scale = args.weight[channel] * invstd, bias = args.bias[channel];
    const auto normalize = [&](T x) { return E::narrow(fma_rn(E::widen(x) - mean, scale, bias)); };
    for (int image = 0; image < args.images; image++) {
        const size_t begin = begin_of(image);
        for_each<WIDTH<T>>(
            begin, begin + args.plane,
            [&](size_t i) {
                const Vector<T> x = load_streaming(args.x + i);
                Vector<T> y;
                for (int k = 0; k < WIDTH<T>; k++) y.element[k] = normalize(x.element[k]);
                store_streaming(args.y + i, y);
            },
            [&](size_t i) { args.y[i] = normalize(args.x[i]); });
    }
}

template <class T> struct Backward {
    using Acc = typename Element<T>::Acc;
    const T *x, *grad_y;
    T *grad_x;
    const Acc *weight, *mean, *invstd;
    Acc *grad_weight, *grad_bias;
    int images, channels, plane;
};

template <class T> __device__ void backward(const Backward<T> &args) {
    using E = Element<T>;
    using Acc = typename E::Acc;
    const int channel = blockIdx.x;
    const auto begin_of = [&](int image) { return (size_t(image) * args.channels + channel) * args.plane; };
    const Acc mean = args.mean[channel], invstd = args.invstd[channel];

    Pair<Acc> sums = {0, 0}; // of the gradient, and of the gradient times the normalized x
    const auto count = [&](T x, T grad_y) {
        const Acc g = E::widen(grad_y);
        sums.first += g;
        sums.second = fma_rn(g, (E::widen(x) - mean) * invstd, sums.second);
    };
    for (int image = 0; image < args.images; image++) {
        const size_t begin = begin_of(image);
        for_each<WIDTH<T>>(
            begin, begin + args.plane,
            [&](size_t i) {
                const Vector<T> x = load(args.x + i), grad_y = load(args.grad_y + i);
                for (int k = 0; k < WIDTH<T>; k++) count(x.element[k], grad_y.element[k]);
            },
            [&](size_t i) { count(args.x[i], args.grad_y[i]); });
    }
    sums = block_sum(sums);
    if (threadIdx.x == 0) {
        args.grad_bias[channel] = sums.first;
        args.grad_weight[channel] = sums.second;
    }

    const Acc n = Acc(args.images) * Acc(args.plane), scale = args.weight[channel] * invstd;
    const Acc mean_g = div_rn(sums.first, n), slope = div_rn(sums.second, n);
    const auto gradient = [&](T x, T grad_y) {
        const Acc normalized = (E::widen(x) - mean) * invstd;
        return E::narrow(scale * fma_rn(-normalized, slope, E::widen(grad_y) - mean_g));
    };
    for (int image = 0; image < args.images; image++) {
        const size_t begin = begin_of(image);
        for_each<WIDTH<T>>(
            begin, begin + args.plane,
            [&](size_t i) {
                const Vector<T> x = load_streaming(args.x + i), grad_y = load_streaming(args.grad_y + i);
                Vector<T> grad_x;
                for (int k = 0; k < WIDTH<T>; k++) grad_x.element[k] = gradient(x.element[k], grad_y.element[k]);
                store_streaming(args.grad_x + i, grad_x);
            },
            [&](size_t i) { args.grad_x[i] = gradient(args.x[i], args.grad_y[i]); });
    }
}

#define KERNELS(name, T)                                                                                               \
    extern "C" __global__ void __launch_bounds__(256) forward_##name(Forward<T> args) { forward(args); }               \
    extern "C" __global__ void __launch_bounds__(256) backward_##name(Backward<T> args) { backward(args); }

KERNELS(f64, double)
KERNELS(f32, float)
KERNELS(f16, __half)
KERNELS(bf16, __nv_bfloat16)
