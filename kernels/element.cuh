// Elements of a tensor, the type they are summed in, and some of them at a time.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

using u64 = unsigned long long;

/// ZERO and STEP: ROUNDS_TO_ZERO and HALF_STEP_AT_THREE of src/element.rs. So 3 - STEP and 6 - 2 STEP round to 3 and
/// 6; 0 where nothing is rounded.
template <class T> struct Element;

template <> struct Element<float> {
    using Acc = float;
    static constexpr float ZERO = 0, STEP = 0;
    static __device__ float widen(float value) { return value; }
    static __device__ float narrow(float value) { return value; }
};
template <> struct Element<double> {
    using Acc = double;
    static constexpr double ZERO = 0, STEP = 0;
    static __device__ double widen(double value) { return value; }
    static __device__ double narrow(double value) { return value; }
};
template <> struct Element<__half> {
    using Acc = float;
    static constexpr float ZERO = 0x1p-25f, STEP = 0x1p-10f;
    static __device__ float widen(__half value) { return __half2float(value); }
    static __device__ __half narrow(float value) { return __float2half_rn(value); }
};
template <> struct Element<__nv_bfloat16> {
    using Acc = float;
    static constexpr float ZERO = 0x1p-134f, STEP = 0x1p-7f;
    static __device__ float widen(__nv_bfloat16 value) {
        return __uint_as_float(unsigned(__bfloat16_as_ushort(value)) << 16); // as newer targets have an instruction for
    }
    static __device__ __nv_bfloat16 narrow(float value) { return __ushort_as_bfloat16(bits(value)); }
    static __device__ unsigned short bits(float value) {
#if __CUDA_ARCH__ >= 800
        return __bfloat16_as_ushort(__float2bfloat16_rn(value));
#else
        // As older targets have no instruction for: to even; a NaN stays one.
        const unsigned bits = __float_as_uint(value);
        return isnan(value) ? 0x7fff : bits + 0x7fff + (bits >> 16 & 1) >> 16;
#endif
    }
};
/// Whether loops are compiled for each case apart. Not those of 16 bits for targets that are a text of their own before
/// sm_80, whose multiprocessors have three times the instructions for each byte that memory gives them.
#if __CUDA_ARCH__ >= 800
template <class T> constexpr bool SPECIALIZES = true;
#else
template <class T> constexpr bool SPECIALIZES = sizeof(T) > 2;
#endif
template <class T> using AccOf = typename Element<T>::Acc;

/// 16 bytes of elements, or one.
template <class T, int W> struct alignas(W * sizeof(T)) Vector {
    T element[W];

    __device__ T get(int i) const { return element[i]; }
    __device__ void read(const T *from) {
#pragma unroll
        for (int i = 0; i < W; i++) element[i] = from[i];
    }
    /// Sets every element to what `value` gives, rounded.
    template <class Value> __device__ void fill(Value value) {
#pragma unroll
        for (int i = 0; i < W; i++) element[i] = Element<T>::narrow(value(i));
    }
    /// Leaves those whose bits are set; the others become 0.
    __device__ void keep(unsigned bits) {
#pragma unroll
        for (int i = 0; i < W; i++) {
            if (!(bits >> i & 1)) element[i] = Element<T>::narrow(AccOf<T>(0));
        }
    }
};

/// What the compiler is to compute here and not before, where it would be kept in registers for a path that is hardly
/// ever taken.
__device__ inline unsigned anew(unsigned value) {
    asm volatile("" : "+r"(value));
    return value;
}
__device__ inline u64 anew(u64 value) {
    asm volatile("" : "+l"(value));
    return value;
}
__device__ inline double anew(double value) {
    asm volatile("" : "+d"(value));
    return value;
}
template <class P> __device__ P *anew(P *value) {
    asm volatile("" : "+l"(value));
    return value;
}

/// The same of a place in global memory, which it stays for the compiler.
template <class T> __device__ const T *place(const T *at) {
    return static_cast<const T *>(__cvta_global_to_generic(anew(u64(__cvta_generic_to_global(at)))));
}

/// The same values before they are rounded.
template <class A, int W> struct Wide {
    A element[W];
};
template <class T, int W> __device__ AccOf<T> widened(const Vector<T, W> &vector, int i) {
    return Element<T>::widen(vector.get(i));
}
template <class T, class A, int W> __device__ A widened(const Wide<A, W> &wide, int i) { return wide.element[i]; }

__device__ inline unsigned narrow_pair(__half, float low, float high) {
    const __half2 pair = __floats2half2_rn(low, high);
    return reinterpret_cast<const unsigned &>(pair);
}
__device__ inline unsigned narrow_pair(__nv_bfloat16, float low, float high) {
#if __CUDA_ARCH__ >= 800
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return reinterpret_cast<const unsigned &>(pair);
#else
    using E = Element<__nv_bfloat16>;
    return E::bits(low) | unsigned(E::bits(high)) << 16;
#endif
}

/// Of 16 bits two in a word, as they are loaded: elements of their own would take a register each.
template <class T> struct alignas(16) Vector<T, 8> {
    unsigned word[4];

    __device__ T get(int i) const {
        const unsigned short half = word[i / 2] >> (i % 2 * 16);
        return reinterpret_cast<const T &>(half);
    }
    __device__ void read(const T *from) {
        const auto *const halves = reinterpret_cast<const unsigned short *>(from);
#pragma unroll
        for (int i = 0; i < 4; i++) word[i] = halves[2 * i] | unsigned(halves[2 * i + 1]) << 16;
    }
    template <class Value> __device__ void fill(Value value) {
#pragma unroll
        for (int i = 0; i < 4; i++) word[i] = narrow_pair(T(), value(2 * i), value(2 * i + 1));
    }
    __device__ void keep(unsigned bits) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            word[i] &= (bits >> 2 * i & 1 ? 0xffffu : 0) | (bits >> 2 * i & 2 ? 0xffff0000u : 0);
        }
    }
};

template <class T, int W> __device__ const Vector<T, W> &rounded(const Vector<T, W> &vector) { return vector; }
template <class T, int W> __device__ Vector<T, W> rounded(const Wide<AccOf<T>, W> &wide) {
    Vector<T, W> vector;
    vector.fill([&](int i) { return wide.element[i]; });
    return vector;
}

/// The vector at `at`, counted in vectors; `aligned`: whether the tensor starts at a multiple of 16 bytes.
template <class T, int W> __device__ __forceinline__ Vector<T, W> load(const T *from, u64 at, bool aligned) {
    Vector<T, W> vector;
    if constexpr (W == 1) {
        vector.element[0] = from[at];
    } else if (aligned) {
        uint4 bits = reinterpret_cast<const uint4 *>(from)[at];
        vector = reinterpret_cast<Vector<T, W> &>(bits);
    } else {
        vector.read(from + at * W);
    }
    return vector;
}
/// The same, of what will not be read again.
template <class T, int W> __device__ __forceinline__ Vector<T, W> load_last(const T *from, u64 at, bool aligned) {
    if constexpr (W > 1) {
        if (aligned) {
            uint4 bits = __ldcs(reinterpret_cast<const uint4 *>(from) + at);
            return reinterpret_cast<Vector<T, W> &>(bits);
        }
    }
    return load<T, W>(from, at, false);
}
/// Those at some places of an aligned tensor; `last`: none will be read again. The places are computed once for either.
template <class T, int W, class Index, unsigned N>
__device__ __forceinline__ void load_all(const T *from, const Index (&at)[N], bool last, Vector<T, W> (&to)[N]) {
    const T *places[N];
#pragma unroll
    for (unsigned k = 0; k < N; k++) places[k] = place(from + u64(at[k]) * W);
    if (last) {
#pragma unroll
        for (unsigned k = 0; k < N; k++) to[k] = load_last<T, W>(places[k], 0, true);
    } else {
#pragma unroll
        for (unsigned k = 0; k < N; k++) to[k] = load<T, W>(places[k], 0, true);
    }
}
template <class T, int W> __device__ __forceinline__ void store(T *to, u64 at, Vector<T, W> vector, bool aligned) {
    if constexpr (W == 1) {
        to[at] = vector.element[0];
    } else if (aligned) {
        __stcs(reinterpret_cast<uint4 *>(to) + at, reinterpret_cast<uint4 &>(vector));
    } else {
#pragma unroll
        for (int i = 0; i < W; i++) to[at * W + i] = vector.get(i);
    }
}

// Rounded once each, and never fused otherwise: forward and backward compute the same bits.
__device__ inline float fma_rn(float a, float b, float c) { return __fmaf_rn(a, b, c); }
__device__ inline double fma_rn(double a, double b, double c) { return __fma_rn(a, b, c); }
__device__ inline float mul_rn(float a, float b) { return __fmul_rn(a, b); }
__device__ inline double mul_rn(double a, double b) { return __dmul_rn(a, b); }
__device__ inline float add_rn(float a, float b) { return __fadd_rn(a, b); }
__device__ inline double add_rn(double a, double b) { return __dadd_rn(a, b); }

/// Nothing where it is not finite: NaN would hide an infinity.
__device__ inline double or_zero(double value) { return isfinite(value) ? value : 0; }
