// Elements of a tensor, the type they are summed in, and 16 bytes of them at a time.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

template <class T> struct Element;

template <> struct Element<float> {
    using Acc = float;
    static __device__ float widen(float value) { return value; }
    static __device__ float narrow(float value) { return value; }
};
template <> struct Element<double> {
    using Acc = double;
    static __device__ double widen(double value) { return value; }
    static __device__ double narrow(double value) { return value; }
};
template <> struct Element<__half> {
    using Acc = float;
    static __device__ float widen(__half value) { return __half2float(value); }
    static __device__ __half narrow(float value) { return __float2half_rn(value); }
};
template <> struct Element<__nv_bfloat16> {
    using Acc = float;
    static __device__ float widen(__nv_bfloat16 value) { return __bfloat162float(value); }
    static __device__ __nv_bfloat16 narrow(float value) { return __float2bfloat16_rn(value); }
};

/// How many elements 16 bytes hold.
template <class T> constexpr int WIDTH = 16 / sizeof(T);

template <class T> struct alignas(16) Vector {
    T element[WIDTH<T>];
};

template <class T> __device__ Vector<T> load(const T *from) {
    uint4 bits = *reinterpret_cast<const uint4 *>(from);
    return reinterpret_cast<Vector<T> &>(bits);
}
/// What will not be read again.
template <class T> __device__ Vector<T> load_streaming(const T *from) {
    uint4 bits = __ldcs(reinterpret_cast<const uint4 *>(from));
    return reinterpret_cast<Vector<T> &>(bits);
}
template <class T> __device__ void store_streaming(T *to, Vector<T> vector) {
    __stcs(reinterpret_cast<uint4 *>(to), reinterpret_cast<uint4 &>(vector));
}

// Rounded to nearest, whatever the compiler's flags are.
__device__ inline float fma_rn(float a, float b, float c) { return __fmaf_rn(a, b, c); }
__device__ inline double fma_rn(double a, double b, double c) { return __fma_rn(a, b, c); }
__device__ inline float div_rn(float a, float b) { return __fdiv_rn(a, b); }
__device__ inline double div_rn(double a, double b) { return __ddiv_rn(a, b); }
__device__ inline float sqrt_rn(float a) { return __fsqrt_rn(a); }
__device__ inline double sqrt_rn(double a) { return __dsqrt_rn(a); }
