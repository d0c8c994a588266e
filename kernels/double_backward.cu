// The gradients of a backward: sums of every channel, and what they make of the elements. All sums and coefficients are
// in f64, as is what an element adds to them, so that no product of f32 leaves its range; what an activation is taken
// at is what forward and backward compute, the same bits.
#include "extremes.cuh"
#include "staged.cuh"
#include <cstddef>

/// What is read; null where it is absent.
template <class T> struct Reads {
    const T *x, *grad_y, *residual, *v_x, *v_residual;
    const unsigned char *mask;
    Counting counting;
};
template <class T> struct Writes {
    T *gg_grad_y, *gg_x, *gg_residual;
};
/// What follows the normalization, by its number, and what its derivatives are taken from.
template <class A> struct Follows {
    unsigned activation, source;
    /// Where the derivative is not 1.
    A slope;
};
/// What is given and written of every channel.
template <class A> struct Parameters {
    const A *v_weight, *v_bias;
    A *gg_weight, *gg_bias;
    unsigned *nonfinite;
    unsigned accumulate;
    /// Whether gradients flow through the statistics.
    unsigned batch;
    /// Where the sums of a part of a batch go, array by array, and nothing else then; those of all parts.
    double *sums;
    const double *total;
    /// Values of a channel in all parts, and by a mask how many of them count, and what is added to that.
    double values;
    const double *counts;
    double count_eps;
};

// The library's test in src/engine/cuda/launch/double_backward.rs reads these lines.
#define FIELD(type, field, place) static_assert(offsetof(type, field) == place, "the library has it elsewhere")
#define SIZE(type, bytes) static_assert(sizeof(type) == bytes, "the library has it in another size")
SIZE(Cut, 128);
FIELD(Cut, elements, 0);
FIELD(Cut, inner, 8);
FIELD(Cut, row, 16);
FIELD(Cut, width, 24);
FIELD(Cut, all, 32);
FIELD(Cut, chunk, 40);
FIELD(Cut, vectors, 48);
FIELD(Cut, step, 56);
FIELD(Cut, rest, 64);
FIELD(Cut, next_at, 72);
FIELD(Cut, next_number, 80);
FIELD(Cut, channels, 88);
FIELD(Cut, chunks, 92);
FIELD(Cut, tiles, 96);
FIELD(Cut, runs, 100);
FIELD(Cut, lanes, 104);
FIELD(Cut, aligned, 108);
FIELD(Cut, ragged, 112);
FIELD(Cut, groups, 116);
FIELD(Cut, together, 120);
SIZE(Channels<float>, 40);
FIELD(Channels<float>, mean, 0);
FIELD(Channels<float>, mean_rest, 8);
FIELD(Channels<float>, invstd, 16);
FIELD(Channels<float>, weight, 24);
FIELD(Channels<float>, bias, 32);
SIZE(Reads<float>, 80);
FIELD(Reads<float>, x, 0);
FIELD(Reads<float>, grad_y, 8);
FIELD(Reads<float>, residual, 16);
FIELD(Reads<float>, v_x, 24);
FIELD(Reads<float>, v_residual, 32);
FIELD(Reads<float>, mask, 40);
FIELD(Reads<float>, counting, 48);
SIZE(Writes<float>, 24);
FIELD(Writes<float>, gg_grad_y, 0);
FIELD(Writes<float>, gg_x, 8);
FIELD(Writes<float>, gg_residual, 16);
SIZE(Follows<float>, 12);
FIELD(Follows<float>, activation, 0);
FIELD(Follows<float>, source, 4);
FIELD(Follows<float>, slope, 8);
SIZE(Follows<double>, 16);
FIELD(Follows<double>, activation, 0);
FIELD(Follows<double>, source, 4);
FIELD(Follows<double>, slope, 8);
SIZE(Parameters<float>, 88);
FIELD(Parameters<float>, v_weight, 0);
FIELD(Parameters<float>, v_bias, 8);
FIELD(Parameters<float>, gg_weight, 16);
FIELD(Parameters<float>, gg_bias, 24);
FIELD(Parameters<float>, nonfinite, 32);
FIELD(Parameters<float>, accumulate, 40);
FIELD(Parameters<float>, batch, 44);
FIELD(Parameters<float>, sums, 48);
FIELD(Parameters<float>, total, 56);
FIELD(Parameters<float>, values, 64);
FIELD(Parameters<float>, counts, 72);
FIELD(Parameters<float>, count_eps, 80);

/// Sums of a channel: of `g`, `g xhat`, `v`, `v xhat`, `v g`; and, q being `grad_y * a''`, where an activation is
/// curved, of `q`, `q xhat`, `q xhat^2`, `q v`, `q v xhat`, `q r`, `q r xhat`.
constexpr unsigned PLAIN = 5, CURVED = 12;
/// Tensors of a stage; results take the places of the first three.
enum Tensor : unsigned { X, GRAD_Y, V_X, V_RESIDUAL, RESIDUAL };

/// Of a channel: of `v_x`, xhat and alone in u; of `v_x`, `g`, xhat and alone in the gradient of x. The first is also
/// that of the curved part in it.
struct Made {
    double scale, u_xhat, u_one, x_v, x_g, x_xhat, x_one;
};

template <class A, class T, bool IS_CURVED> struct Follow {
    Follows<A> by;

    __device__ A derivative(A z) const {
        if constexpr (IS_CURVED) {
            switch (by.activation) {
            case SILU: return Silu<A>{}.template derivative<T>(z);
            case HARD_SWISH: return HardSwish<A>{}.template derivative<T>(z);
            default: return Gelu<A>{}.template derivative<T>(z);
            }
        } else {
            switch (by.activation) {
            case RELU: return Relu{true}.is_one<T>(z) ? 1 : 0;
            case LEAKY_RELU: return LeakyRelu<A>{by.slope}.template derivative<T>(z);
            default: return Relu6<A>{}.template derivative<T>(z);
            }
        }
    }
    /// Of those that are curved.
    __device__ A second_derivative(A z) const {
        constexpr A FAR = sizeof(A) == 4 ? 15 : 40; // beyond it that of GELU is 0
        switch (by.activation) {
        case SILU: {
            const A s = sigmoid(z), rest = sigmoid(-z);
            return s * rest * (2 + z * (rest - s));
        }
        case HARD_SWISH: return z <= -3 + Element<T>::STEP || z >= 3 - Element<T>::STEP ? A(0) : A(1.0 / 3);
        case GELU:
            z = z > FAR ? FAR : z < -FAR ? -FAR : z;
            return (2 - z * z) * (exp_of(A(-0.5) * z * z) * A(0.39894228040143267794));
        default: return 0;
        }
    }
};

/// What flows in an element.
struct Flows {
    double xhat, slope, g, v, q, r;
};

/// The elements of a stage of `N` tensors.
template <class T, unsigned N, bool IS_CURVED> struct Elements {
    using A = AccOf<T>;
    using E = Element<T>;
    const Reads<T> &from;
    const Follow<A, T, IS_CURVED> follow;
    const Channel<A> channel;

    /// The tensors that are read.
    __device__ void tensors(const T *(&to)[N]) const {
        const T *const all[] = {from.x, from.grad_y, from.v_x, from.v_residual, from.residual};
#pragma unroll
        for (unsigned n = 0; n < N; n++) to[n] = all[n];
    }
    __device__ A read(Staged<T, N> &staged, const T *tensor, unsigned n, unsigned at) const {
        return tensor ? E::widen(staged.at(n, at)) : A(0);
    }
    __device__ Flows flows(Staged<T, N> &staged, unsigned at) const {
        const A x = E::widen(staged.at(X, at)), grad_y = E::widen(staged.at(GRAD_Y, at));
        A slope = 1, second = 0;
        if (follow.by.source == FROM_MASK) {
            slope = staged.bit(at) ? A(1) : follow.by.slope;
        } else if (follow.by.source != ONE) {
            A z = channel.normalize(x);
            if constexpr (N > RESIDUAL) {
                if (follow.by.source == FROM_RESIDUAL) z = add_rn(z, E::widen(staged.at(RESIDUAL, at)));
            }
            slope = follow.derivative(z);
            if (IS_CURVED) second = follow.second_derivative(z);
        }
        const double g = grad_y;
        double r = 0;
        if constexpr (N > V_RESIDUAL) r = read(staged, from.v_residual, V_RESIDUAL, at);
        return {channel.xhat(x),          double(slope),
                times(double(slope), g),  double(read(staged, from.v_x, V_X, at)),
                times(double(second), g), r};
    }
};

/// Memory of a block; sums take the place of what was staged.
template <class T, unsigned N, unsigned K> union Memory {
    Staged<T, N> staged;
    double parts[K][BLOCK];
    __device__ Memory() {}
};

/// `partials`: `K` sums for each part of each channel, or of each column.
template <class T, unsigned K>
__device__ void sums(const Cut &cut, const Channels<AccOf<T>> &by, const Reads<T> &from,
                     const Follows<AccOf<T>> &follows, double *partials) {
    using A = AccOf<T>;
    constexpr unsigned N = K > PLAIN ? 5 : 3;
    __shared__ Memory<T, N, K> memory;
    Way<T, N> way(cut, blockIdx.x);
    const auto values =
        of_channel<Values<A>>(cut, way.channel, &memory, [&](unsigned channel) { return by.of(channel); });
    const Elements<T, N, (K > PLAIN)> element = {from, {follows}, Channel<A>(values)};
    const T *tensors[N];
    element.tensors(tensors);
    double all[K] = {};
#pragma unroll 1
    for (unsigned stage = 0; stage < way.stages; stage++) {
        Place places[BATCH<T, N>];
#pragma unroll
        for (unsigned k = 0; k < BATCH<T, N>; k++) places[k] = way.next(cut);
        memory.staged.fetch(cut, tensors, from.mask, from.counting, places);
        const unsigned count = way.elements(cut);
        unsigned at = threadIdx.x;
#pragma unroll 1
        for (unsigned n = 0; n < count; n++, at += BLOCK) {
            if (!memory.staged.is_there(cut, at)) continue;
            const Flows f = element.flows(memory.staged, at);
            all[0] += f.g;
            all[1] += f.g * f.xhat;
            const double v = !from.counting.bytes || memory.staged.counts(at) ? f.v : 0;
            all[2] += v;
            all[3] += v * f.xhat;
            all[4] += f.v * f.g;
            if constexpr (K > PLAIN) {
                const double of_xhat = f.q * f.xhat, of_v = f.q * f.v, of_r = f.q * f.r;
                all[5] += f.q;
                all[6] += of_xhat;
                all[7] += of_xhat * f.xhat;
                all[8] += of_v;
                all[9] += of_v * f.xhat;
                all[10] += of_r;
                all[11] += of_r * f.xhat;
            }
        }
    }
    __syncthreads();
    auto &parts = memory.parts;
#pragma unroll
    for (unsigned k = 0; k < K; k++) parts[k][threadIdx.x] = all[k];
    __syncthreads();
    // Of a channel all threads' sums are one, of columns those that are so many apart.
    for (unsigned d = BLOCK / 2; d >= (cut.runs ? 1 : TILE_COLUMNS); d /= 2) {
        if (threadIdx.x < d) {
#pragma unroll
            for (unsigned k = 0; k < K; k++) parts[k][threadIdx.x] += parts[k][threadIdx.x + d];
        }
        __syncthreads();
    }
    if (cut.runs) {
        if (threadIdx.x < K) partials[u64(blockIdx.x) * K + threadIdx.x] = parts[threadIdx.x][0];
        return;
    }
    const unsigned block = anew(blockIdx.x), set = way.set_of(cut, block);
    const u64 column = way.column_of(cut, block) + threadIdx.x;
    if (threadIdx.x < TILE_COLUMNS && column < cut.width) {
        double *const to = partials + (set * cut.width + column) * K;
#pragma unroll
        for (unsigned k = 0; k < K; k++) to[k] = parts[k][threadIdx.x];
    }
}

/// What the partial sums of each channel add up to, if there are any, and what follows from that. A warp does so for a
/// channel, or, where those of one are many, a block: a `team`.
template <class A>
__device__ void finalize(const Cut &cut, const Channels<A> &by, const Parameters<A> &parameters, unsigned k_of,
                         unsigned team, const double *partials, Made *made) {
    const u64 c = (u64(blockIdx.x) * BLOCK + threadIdx.x) / team;
    if (c >= cut.channels) return; // a whole team
    const unsigned member = threadIdx.x % team;
    double s[CURVED] = {};
    const u64 columns = cut.runs ? 1 : cut.width / cut.row * cut.inner;
    const u64 group = c / cut.together, first = c % cut.together * cut.inner;
    for (u64 n = member; partials && n < cut.chunks * columns; n += team) {
        const u64 part = n / columns, q = n % columns, set = part * cut.groups + group;
        const u64 column = first + q / cut.inner * cut.row + q % cut.inner;
        const double *const of = partials + (cut.runs ? c * cut.chunks + part : set * cut.width + column) * k_of;
#pragma unroll
        for (unsigned k = 0; k < CURVED; k++) {
            if (k < k_of) s[k] += of[k];
        }
    }
#pragma unroll
    for (unsigned k = 0; k < CURVED; k++) {
        for (unsigned d = 16; d > 0; d /= 2) s[k] += __shfl_xor_sync(~0u, s[k], d);
    }
    if (team > 32) {
        __shared__ double of_warps[WARPS][CURVED];
        if (threadIdx.x % 32 == 0) {
#pragma unroll
            for (unsigned k = 0; k < CURVED; k++) of_warps[threadIdx.x / 32][k] = s[k];
        }
        __syncthreads();
#pragma unroll
        for (unsigned k = 0; k < CURVED; k++) s[k] = 0;
        for (unsigned warp = 0; warp < WARPS; warp++) {
#pragma unroll
            for (unsigned k = 0; k < CURVED; k++) s[k] += of_warps[warp][k];
        }
    }
    if (member != 0) return;
    const bool accumulate = parameters.accumulate;
#pragma unroll
    for (unsigned k = 0; k < CURVED; k++) {
        const u64 at = u64(k) * cut.channels + c;
        if (parameters.sums) parameters.sums[at] = s[k] + (accumulate ? parameters.sums[at] : 0);
        if (parameters.total) s[k] = parameters.total[at];
    }
    if (parameters.sums) return;
    const auto of = by.of(c);
    const double invstd = of.invstd, weight = of.weight, scale = weight * invstd;
    const double v_weight = parameters.v_weight ? parameters.v_weight[c] : A(0);
    const double v_bias = parameters.v_bias ? parameters.v_bias[c] : A(0);
    const double g = s[0], g_xhat = s[1], v = s[2], v_xhat = s[3], v_g = s[4];
    // How many values the statistics are of, what divided their sums, and the mean of xhat over them.
    const double count = parameters.counts ? parameters.counts[c] : parameters.values;
    const double m = count + parameters.count_eps > 0 ? count + parameters.count_eps : 1;
    const double shift =
        parameters.count_eps > 0 ? invstd * (double(of.mean) + of.mean_rest) * (parameters.count_eps / m) : 0;
    const double slope = (v_xhat - shift * v) / m;
    const bool batch = parameters.batch;
    Made out = {scale, v_weight, v_bias, 0, invstd * v_weight, 0, 0};
    if (batch) {
        out.u_xhat = v_weight - scale * slope;
        out.u_one = v_bias - scale * (v / m);
    }
    const double h = scale * s[8] + out.u_xhat * s[6] + out.u_one * s[5] + s[10];
    const double h_xhat = scale * s[9] + out.u_xhat * s[7] + out.u_one * s[6] + s[11];
    double kappa = v_g;
    if (batch) {
        kappa = v_g - v * (g / m) - slope * g_xhat;
        // All that flows to xhat, and of that what is constant over the values that count.
        const double t = v_weight * g - scale * ((v - v / m * count) * (g_xhat / m) + g * slope);
        const double t_xhat = v_weight * g_xhat - 2 * scale * (slope * g_xhat);
        out.x_v = -invstd * (scale * (g_xhat / m));
        out.x_g = invstd * (v_weight - scale * slope);
        out.x_xhat = -(invstd * ((t_xhat + scale * kappa) / m) + scale * (h_xhat / m));
        out.x_one = -(invstd * (t / m) + scale * (h / m)) - out.x_v * (v / m) - out.x_xhat * shift;
    }
    made[c] = out;
    const double of_weight = invstd * kappa + h_xhat;
    if (parameters.gg_weight) {
        parameters.gg_weight[c] = A((accumulate ? double(parameters.gg_weight[c]) : 0) + of_weight);
    }
    if (parameters.gg_bias) parameters.gg_bias[c] = A((accumulate ? double(parameters.gg_bias[c]) : 0) + h);
    if (!isfinite(of_weight) || !isfinite(h)) atomicOr(parameters.nonfinite, 1u);
}

/// What the coefficients make of the elements. Blocks begin with what the pass before read last, which the cache still
/// has.
template <class T, bool IS_CURVED>
__device__ void apply(const Cut &cut, const Channels<AccOf<T>> &by, const Reads<T> &from,
                      const Follows<AccOf<T>> &follows, unsigned batch, const Made *made, const Writes<T> &to) {
    using A = AccOf<T>;
    using E = Element<T>;
    constexpr unsigned N = IS_CURVED ? 5 : 4;
    __shared__ Staged<T, N> staged;
    Way<T, N> way(cut, gridDim.x - 1 - blockIdx.x);
    const auto values =
        of_channel<Values<A>>(cut, way.channel, &staged, [&](unsigned channel) { return by.of(channel); });
    const Made m = of_channel<Made>(cut, way.channel, &staged, [&](unsigned channel) { return made[channel]; });
    const Elements<T, N, IS_CURVED> element = {from, {follows}, Channel<A>(values)};
    const T *tensors[N];
    element.tensors(tensors);
#pragma unroll 1
    for (unsigned stage = 0; stage < way.stages; stage++) {
        Place places[BATCH<T, N>];
#pragma unroll
        for (unsigned k = 0; k < BATCH<T, N>; k++) places[k] = way.next(cut);
        staged.fetch(cut, tensors, from.mask, from.counting, places);
        const unsigned count = way.elements(cut);
        unsigned at = threadIdx.x;
#pragma unroll 1
        for (unsigned n = 0; n < count; n++, at += BLOCK) {
            if (!staged.is_there(cut, at)) continue;
            const Flows f = element.flows(staged, at);
            const double u = m.scale * f.v + m.u_xhat * f.xhat + m.u_one + f.r;
            double x = m.x_g * f.g, h = 0;
            if (batch && (!from.counting.bytes || staged.counts(at))) x += m.x_v * f.v + m.x_xhat * f.xhat + m.x_one;
            if constexpr (IS_CURVED) {
                h = times(f.q, u);
                x += m.scale * h;
            }
            if (to.gg_x) staged.at(X, at) = E::narrow(A(x));
            if (to.gg_grad_y) staged.at(GRAD_Y, at) = E::narrow(A(times(f.slope, u)));
            if (to.gg_residual) staged.at(V_X, at) = E::narrow(A(h));
        }
        __syncthreads();
        if (to.gg_x) staged.flush(cut, X, to.gg_x, places, way.lanes);
        if (to.gg_grad_y) staged.flush(cut, GRAD_Y, to.gg_grad_y, places, way.lanes);
        if (to.gg_residual) staged.flush(cut, V_X, to.gg_residual, places, way.lanes);
    }
}

#define ENTRY extern "C" __global__ void __launch_bounds__(BLOCK, 2)
#define KIND(name, T, kind, K)                                                                                         \
    ENTRY double_backward_sums##kind##_##name(Cut cut, Channels<AccOf<T>> by, Reads<T> from,                           \
                                              Follows<AccOf<T>> follows, double *partials) {                           \
        sums<T, K>(cut, by, from, follows, partials);                                                                  \
    }                                                                                                                  \
    ENTRY double_backward_apply##kind##_##name(Cut cut, Channels<AccOf<T>> by, Reads<T> from,                          \
                                               Follows<AccOf<T>> follows, unsigned batch, const Made *made,            \
                                               Writes<T> to) {                                                         \
        apply<T, (K > PLAIN)>(cut, by, from, follows, batch, made, to);                                                \
    }
#define DOUBLE_BACKWARD(name, T)                                                                                       \
    KIND(name, T, , PLAIN)                                                                                             \
    KIND(name, T, _curved, CURVED)
#define FINALIZE(name, A)                                                                                              \
    ENTRY double_backward_finalize_##name(Cut cut, Channels<A> by, Parameters<A> parameters, unsigned sums,            \
                                          unsigned team, const double *partials, Made *made) {                         \
        finalize(cut, by, parameters, sums, team, partials, made);                                                     \
    }

DOUBLE_BACKWARD(f64, double)
DOUBLE_BACKWARD(f32, float)
DOUBLE_BACKWARD(f16, __half)
DOUBLE_BACKWARD(bf16, __nv_bfloat16)
FINALIZE(f64, double)
FINALIZE(f32, float)
