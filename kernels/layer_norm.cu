// Layer normalization over the features of each row, x [rows, features]: a team of threads takes a row, a warp where
// rows are short and a block where they are long. All arithmetic is in f64, so that no row of f32 leaves its range.
#include "element.cuh"
#include <cstddef>
#include <type_traits>

enum : unsigned { VARIANCE, STD, BOTH }; // what eps is added to

/// The tensor, and what its rows are divided by.
struct LayerNorm {
    u64 rows, features;
    double eps;
    unsigned rule; // VARIANCE, ..
    unsigned team; // threads of a row: 32, or those of a block
};
/// What a backward takes of each row, `rows` of each: the mean, what rounding left of it, and the deviation, of which
/// eps is a part where it is added to the variance.
template <class A> struct Rows {
    A *mean, *mean_rest, *std;
};

// The library's test in src/engine/cuda/layer_norm.rs reads these lines.
#define FIELD(type, field, place) static_assert(offsetof(type, field) == place, "the library has it elsewhere")
#define SIZE(type, bytes) static_assert(sizeof(type) == bytes, "the library has it in another size")
SIZE(LayerNorm, 32);
FIELD(LayerNorm, rows, 0);
FIELD(LayerNorm, features, 8);
FIELD(LayerNorm, eps, 16);
FIELD(LayerNorm, rule, 24);
FIELD(LayerNorm, team, 28);
SIZE(Rows<float>, 24);
FIELD(Rows<float>, mean, 0);
FIELD(Rows<float>, mean_rest, 8);
FIELD(Rows<float>, std, 16);

constexpr unsigned BLOCK = 256, WARPS = BLOCK / 32, COLUMNS = 32, STAGED = 256;

template <class T> __device__ double wide(T value) { return double(Element<T>::widen(value)); }
template <class T> __device__ T narrowed(double value) {
    const AccOf<T> acc = value;
    if constexpr (std::is_same_v<T, __nv_bfloat16>) { // not by the instruction of newer targets: one text serves all
        const unsigned bits = __float_as_uint(acc), rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
        return __ushort_as_bfloat16(isnan(acc) ? bits >> 16 | 0x40 : rounded);
    } else {
        return Element<T>::narrow(acc);
    }
}

/// The power of two that a positive number is 1 to 2 times; 1 for what is no normal number.
__device__ inline double power_below(double value) {
    const u64 exponent = __double_as_longlong(value) & 0x7ff0000000000000;
    return exponent == 0 || exponent == 0x7ff0000000000000 ? 1 : __longlong_as_double(exponent);
}

/// Of the values of a team's threads, by `op`, to all of them; in an order that the team's size alone decides.
template <class Op> __device__ double team_reduce(unsigned team, double value, double *shared, Op op) {
    for (unsigned d = 16; d > 0; d /= 2) value = op(value, __shfl_xor_sync(~0u, value, d));
    if (team == 32) return value;
    __syncthreads(); // what was there has been read
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
    __syncthreads();
    value = shared[0];
    for (unsigned warp = 1; warp < team / 32; warp++) value = op(value, shared[warp]);
    return value;
}
__device__ inline double team_sum(unsigned team, double value, double *shared) {
    return team_reduce(team, value, shared, [](double a, double b) { return a + b; });
}

/// What turns a value of a row into its xhat, `(x * power - mean - rest) * factor`, and what of xhat flows back through
/// the deviation: `through`, 1 where nothing is added to the root. The power of two keeps distances in range.
struct Row {
    double power, mean, rest, factor, through;

    __device__ Row() {}
    __device__ Row(const LayerNorm &by, double mean, double rest, double std) {
        const double outside = by.rule == VARIANCE ? 0 : by.eps, divisor = std + outside, inverse = 1 / divisor;
        power = inverse > 0 && inverse < 0x1p-1022 ? 0x1p-1022 : fmin(power_below(inverse), 1.0);
        this->mean = mean * power;
        this->rest = rest * power;
        factor = inverse / power;
        // A constant row has no deviation: nothing flows through it.
        through = isnan(std) ? std : std > 0 && isfinite(std) ? divisor / std : 0;
    }
    __device__ double xhat(double x) const { return (x * power - mean - rest) * factor; }
};

/// Mean in two numbers, and the deviation.
struct Statistics {
    double mean, rest, std;
};

/// By distances from the first value, then once more from the mean that those gave, whose own rounding the second pass
/// tells. `unit`: a power of two to count in.
template <class T>
__device__ Statistics statistics(const LayerNorm &by, const T *x, unsigned lane, double unit, double *shared) {
    const double scale = 1 / unit, count = double(by.features);
    double first = wide(x[0]) * scale;
    if (!isfinite(first)) first = 0;
    double sum = 0;
    for (u64 c = lane; c < by.features; c += by.team) sum += wide(x[c]) * scale - first;
    double offset = team_sum(by.team, sum, shared) / count;
    double distances = 0, squares = 0;
    for (u64 c = lane; c < by.features; c += by.team) {
        const double distance = wide(x[c]) * scale - first - offset;
        distances += distance;
        squares += distance * distance;
    }
    const double left = team_sum(by.team, distances, shared) / count;
    const double var = team_sum(by.team, squares, shared) / count - left * left;
    offset += or_zero(left);
    const double mean = first + offset;
    const double std = sqrt(var < 0 ? 0 : var) * unit, root = sqrt(by.eps);
    const double large = fmax(std, root), small = fmin(std, root), ratio = large > 0 ? small / large : 0;
    // The hypotenuse, so that no square leaves the range.
    const double with_eps = isfinite(std) ? large * sqrt(1 + ratio * ratio) : std;
    return {mean * unit, or_zero(first - mean + offset) * unit, by.rule == STD ? std : with_eps};
}

template <class T>
__device__ Statistics statistics(const LayerNorm &by, const T *x, unsigned lane, double *shared) {
    if constexpr (sizeof(T) == 8) { // the squares of all others are numbers of f64
        double largest = 0;
        for (u64 c = lane; c < by.features; c += by.team) {
            const double size = fabs(x[c]);
            if (isfinite(size)) largest = fmax(largest, size);
        }
        largest = team_reduce(by.team, largest, shared, [](double a, double b) { return fmax(a, b); });
        return statistics(by, x, lane, power_below(largest), shared);
    }
    return statistics(by, x, lane, 1, shared);
}

/// Calls `row` with the number of each row that is this team's.
template <class Each> __device__ void each_row(const LayerNorm &by, Each each) {
    const unsigned teams = blockDim.x / by.team;
    u64 row = u64(blockIdx.x) * teams + threadIdx.x / by.team;
    for (; row < by.rows; row += u64(gridDim.x) * teams) each(row);
}

template <class T, class A>
__device__ void forward(const LayerNorm &by, const T *x, const A *weight, const A *bias, T *y, const Rows<A> &saved,
                        A *saved_weight, unsigned *nonfinite) {
    __shared__ double shared[WARPS];
    const unsigned lane = threadIdx.x % by.team;
    if (saved_weight && blockIdx.x == 0) {
        for (u64 c = threadIdx.x; c < by.features; c += blockDim.x) saved_weight[c] = weight ? weight[c] : A(1);
    }
    each_row(by, [&](u64 at) {
        const T *const from = x + at * by.features;
        T *const to = y + at * by.features;
        const Statistics of = statistics(by, from, lane, shared);
        const Row row(by, of.mean, of.rest, of.std);
        for (u64 c = lane; c < by.features; c += by.team) {
            const double w = weight ? weight[c] : A(1), b = bias ? bias[c] : A(0);
            to[c] = narrowed<T>(row.xhat(wide(from[c])) * w + b);
        }
        if (lane == 0) {
            if (!isfinite(of.mean) || !isfinite(of.std)) atomicOr(nonfinite, 1u);
            if (saved.mean) {
                saved.mean[at] = A(of.mean);
                saved.mean_rest[at] = A(or_zero(of.mean - double(saved.mean[at]) + of.rest));
                saved.std[at] = A(of.std);
            }
        }
    });
}

template <class A> __device__ Row row_of(const LayerNorm &by, const Rows<A> &saved, u64 at) {
    return Row(by, saved.mean[at], saved.mean_rest[at], saved.std[at]);
}

template <class T, class A>
__device__ void backward(const LayerNorm &by, const Rows<A> &saved, const A *weight, const T *x, const T *grad_y,
                         T *grad_x) {
    __shared__ double shared[WARPS];
    const unsigned lane = threadIdx.x % by.team;
    const double count = double(by.features);
    each_row(by, [&](u64 at) {
        const u64 start = at * by.features;
        const Row row = row_of(by, saved, at);
        double sum = 0, dot = 0;
        for (u64 c = lane; c < by.features; c += by.team) {
            const double g = wide(grad_y[start + c]) * double(weight[c]);
            sum += g;
            dot += g * row.xhat(wide(x[start + c]));
        }
        const double mean = team_sum(by.team, sum, shared) / count;
        const double slope = team_sum(by.team, dot, shared) / count * row.through;
        for (u64 c = lane; c < by.features; c += by.team) {
            const double g = wide(grad_y[start + c]) * double(weight[c]);
            const double centered = g - mean - row.xhat(wide(x[start + c])) * slope;
            grad_x[start + c] = narrowed<T>(centered * row.factor * row.power);
        }
    });
}

/// Sums of g and of g * xhat over `chunk` rows for 32 features: two for each chunk and feature.
template <class T, class A>
__device__ void sums(const LayerNorm &by, u64 chunk, const Rows<A> &saved, const T *x, const T *grad_y,
                     double *partials) {
    __shared__ Row staged[STAGED];
    __shared__ double2 parts[WARPS][COLUMNS];
    const u64 tiles = (by.features + COLUMNS - 1) / COLUMNS, part = blockIdx.x / tiles;
    const unsigned column = threadIdx.x % COLUMNS, first = threadIdx.x / COLUMNS;
    const u64 c = blockIdx.x % tiles * COLUMNS + column;
    const u64 begin = part * chunk, end = min(begin + chunk, by.rows);
    double sum = 0, dot = 0;
    for (u64 from = begin; from < end; from += STAGED) {
        __syncthreads(); // rows that were staged have been read
        if (from + threadIdx.x < end) staged[threadIdx.x] = row_of(by, saved, from + threadIdx.x);
        __syncthreads();
        const unsigned rows = unsigned(min(u64(STAGED), end - from));
        for (unsigned r = first; c < by.features && r < rows; r += WARPS) {
            const u64 at = (from + r) * by.features + c;
            const double g = wide(grad_y[at]);
            sum += g;
            dot += g * staged[r].xhat(wide(x[at]));
        }
    }
    parts[first][column] = {sum, dot};
    __syncthreads();
    if (first == 0 && c < by.features) {
        for (unsigned other = 1; other < WARPS; other++) {
            sum += parts[other][column].x;
            dot += parts[other][column].y;
        }
        partials[2 * (part * by.features + c)] = sum;
        partials[2 * (part * by.features + c) + 1] = dot;
    }
}

/// The chunks' sums of each feature, one after the other.
template <class A>
__device__ void finalize(u64 features, unsigned chunks, const double *partials, unsigned accumulate, A *grad_weight,
                         A *grad_bias, unsigned *nonfinite) {
    const u64 c = u64(blockIdx.x) * blockDim.x + threadIdx.x;
    if (c >= features) return;
    double sum = 0, dot = 0;
    for (unsigned chunk = 0; chunk < chunks; chunk++) {
        sum += partials[2 * (chunk * features + c)];
        dot += partials[2 * (chunk * features + c) + 1];
    }
    if (!isfinite(sum) || !isfinite(dot)) atomicOr(nonfinite, 1u);
    if (grad_weight) grad_weight[c] = A((accumulate ? double(grad_weight[c]) : 0) + dot);
    if (grad_bias) grad_bias[c] = A((accumulate ? double(grad_bias[c]) : 0) + sum);
}

#define KERNEL extern "C" __global__ void __launch_bounds__(BLOCK)
#define LAYER_NORM(name, T)                                                                                            \
    KERNEL layer_norm_##name(LayerNorm by, const T *x, const AccOf<T> *weight, const AccOf<T> *bias, T *y,             \
                             Rows<AccOf<T>> saved, AccOf<T> *saved_weight, unsigned *nonfinite) {                      \
        forward(by, x, weight, bias, y, saved, saved_weight, nonfinite);                                               \
    }                                                                                                                  \
    KERNEL layer_norm_backward_##name(LayerNorm by, Rows<AccOf<T>> saved, const AccOf<T> *weight, const T *x,          \
                                      const T *grad_y, T *grad_x) {                                                    \
        backward(by, saved, weight, x, grad_y, grad_x);                                                                \
    }                                                                                                                  \
    KERNEL layer_norm_sums_##name(LayerNorm by, u64 chunk, Rows<AccOf<T>> saved, const T *x, const T *grad_y,          \
                                  double *partials) {                                                                  \
        sums(by, chunk, saved, x, grad_y, partials);                                                                   \
    }
#define LAYER_NORM_FINALIZE(name, A)                                                                                   \
    KERNEL layer_norm_finalize_##name(u64 features, unsigned chunks, const double *partials, unsigned accumulate,      \
                                      A *grad_weight, A *grad_bias, unsigned *nonfinite) {                             \
        finalize(features, chunks, partials, accumulate, grad_weight, grad_bias, nonfinite);                           \
    }

LAYER_NORM(f64, double)
LAYER_NORM(f32, float)
LAYER_NORM(f16, __half)
LAYER_NORM(bf16, __nv_bfloat16)
LAYER_NORM_FINALIZE(f64, double)
LAYER_NORM_FINALIZE(f32, float)
