// What follows z = weight * xhat + bias (+ residual): values and derivatives, as src/engine/epilogue.rs defines them.
#pragma once
#include "element.cuh"

/// As the library numbers them.
enum Activation : unsigned { IDENTITY, RELU, LEAKY_RELU, RELU6, SILU, HARD_SWISH, GELU };

/// What a derivative is taken from.
enum Source : unsigned {
    /// It is 1.
    ONE,
    /// z, computed again from x.
    FROM_X,
    /// The bits that the forward left.
    FROM_MASK,
    /// z, computed again from x and the residual.
    FROM_RESIDUAL,
};

// Functions of f32 by the approximations of the hardware, which the tests hold to the tolerance of f32.
__device__ inline float exp_of(float x) { return __expf(x); }
__device__ inline double exp_of(double x) { return exp(x); }
__device__ inline float sigmoid(float z) { return __fdividef(1.0f, 1.0f + exp_of(-z)); }
__device__ inline double sigmoid(double z) { return 1 / (1 + exp_of(-z)); }
/// `(1 + erf(z / sqrt(2))) / 2`, of f64 without the cancellation of that for negative z.
__device__ inline float normal_cdf(float z) { return 0.5f + 0.5f * erff(0.70710678f * z); }
__device__ inline double normal_cdf(double z) { return 0.5 * erfc(-0.70710678118654752440 * z); }

// Each has `value`, `derivative` for a tensor of T, whose rounding decides at kinks, and `is_one`: whether the
// derivative is 1, the bit of a mask. Constants beside STEP and ZERO are what rounds to a kink.

/// None, or a ReLU.
struct Relu {
    static constexpr bool GENERAL = false;
    bool relu;

    // NaN stays, and the sign of a zero.
    template <class A> __device__ A value(A z) const { return relu && z < 0 ? A(0) : z; }
    template <class T> __device__ bool is_one(AccOf<T> z) const { return !(z <= Element<T>::ZERO); }
    template <class Use> __device__ void with(Use use) const { use(*this); }
};

template <class A> struct LeakyRelu {
    A slope;
    __device__ A value(A z) const { return z > 0 ? z : slope * z; }
    template <class T> __device__ bool is_one(A z) const { return z > Element<T>::ZERO; }
    template <class T> __device__ A derivative(A z) const { return is_one<T>(z) ? A(1) : slope; }
};
template <class A> struct Relu6 {
    __device__ A value(A z) const { return z < 0 ? A(0) : z >= 6 ? A(6) : z; }
    template <class T> __device__ bool is_one(A z) const {
        return !(z <= Element<T>::ZERO || z >= 6 - 2 * Element<T>::STEP);
    }
    template <class T> __device__ A derivative(A z) const { return is_one<T>(z) ? 1 : 0; }
};
template <class A> struct Silu {
    __device__ A value(A z) const { return z * sigmoid(z); }
    template <class T> __device__ bool is_one(A) const { return false; }
    template <class T> __device__ A derivative(A z) const {
        const A s = sigmoid(z);
        return s * (1 + z * (1 - s));
    }
};
template <class A> struct HardSwish {
    __device__ A value(A z) const { return z * (fmin(fmax(z + 3, A(0)), A(6)) / 6); }
    template <class T> __device__ bool is_one(A) const { return false; }
    template <class T> __device__ A derivative(A z) const {
        if (z <= -3 + Element<T>::STEP) return 0;
        return z < 3 - Element<T>::STEP ? z / 3 + A(0.5) : A(1);
    }
};
template <class A> struct Gelu {
    __device__ A value(A z) const { return z * normal_cdf(z); }
    template <class T> __device__ bool is_one(A) const { return false; }
    template <class T> __device__ A derivative(A z) const {
        return normal_cdf(z) + z * (exp_of(A(-0.5) * z * z) * A(0.39894228040143267794));
    }
};

/// Any of them, by number: kernels of their own, so that those above need no more registers for it.
template <class A> struct AnyActivation {
    static constexpr bool GENERAL = true;
    unsigned activation;
    /// The derivative where the mask has no 1.
    A slope;

    /// Calls `use` with the one that it is; the question is asked once for all lanes.
    template <class Use> __device__ void with(Use use) const {
        switch (activation) {
        case LEAKY_RELU: return use(LeakyRelu<A>{slope});
        case RELU6: return use(Relu6<A>{});
        case SILU: return use(Silu<A>{});
        case HARD_SWISH: return use(HardSwish<A>{});
        case GELU: return use(Gelu<A>{});
        }
    }
};

/// A gradient times a derivative; where that is 0, it stops infinities, too.
template <class A> __device__ A times(A derivative, A g) { return derivative == 0 ? A(0) : derivative * g; }
