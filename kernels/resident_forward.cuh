// The training forward in one launch: x is read once, as far as a group's shared memory holds a slice.
//
// Sums across threads are of distances from the channel's first value, in f64. That value is no further from the mean
// than sqrt(count) deviations, so that the squares keep all the digits that f32 has.
#pragma once
#include "resident.cuh"

/// Reads a thread's part of the slice, and keeps what fits.
template <class T, int W>
__device__ Moments<T, W> read_once(const Geometry &g, Steps walk, unsigned spilled, const T *x, const Room &room) {
    Moments<T, W> moments;
    while (moments.count < walk.count) {
        Vector<T, W> ahead[AHEAD];
        const unsigned done = moments.count, here = min(AHEAD, walk.count - done);
#pragma unroll
        for (unsigned k = 0; k < AHEAD; k++) {
            if (k < here) {
                ahead[k] = done + k < spilled ? load<T, W>(x, walk.at, true) : load_last<T, W>(x, walk.at, true);
                walk.next(g);
            }
        }
#pragma unroll
        for (unsigned k = 0; k < AHEAD; k++) {
            if (k < here && done + k >= spilled) room.keep(g, done + k - spilled, ahead[k]);
        }
        moments.add(ahead, here);
    }
    return moments;
}

/// Sums of distances from the channels' first values, and of their squares, over the block.
template <class T, int W>
__device__ void add_moments(const Geometry &g, const Steps &walk, const Moments<T, W> &moments, const Room &room) {
    const double n = moments.count;
    const auto moved = [&](int i) {
        return n == 0 ? 0 : double(moments.pivot[i]) - room.table.at(Room::BASE, channel_of<W>(g, walk, i));
    };
    const auto distances = [&](int i) { return moments.sum[i] + n * moved(i); };
    const auto squares = [&](int i) {
        const double by = moved(i);
        return double(moments.square[i]) + moments.fresh[i] + by * (2 * double(moments.sum[i]) + n * by);
    };
    add_up<W>(g, walk.slice, distances, room, &room.totals->x);
    add_up<W>(g, walk.slice, squares, room, &room.totals->y);
}

/// Mean and variance of the slice's channels, from their totals.
template <class T>
__device__ void finish_slice(const Geometry &g, u64 first, unsigned channels, u64 count, const T *x,
                             const Outputs<float> &out, const Room &room) {
    const auto base = [&](unsigned c) { return room.table.at(Room::BASE, c); };
#pragma unroll 1
    for (unsigned c = threadIdx.x; c < channels; c += blockDim.x) {
        const double sum = room.totals[c].x, mean = sum / count, squares = room.totals[c].y - sum * mean;
        room.totals[c] = {mean, squares < 0 ? 0 : squares}; // NaN stays
    }
    __syncthreads();
#pragma unroll 1
    for (unsigned c = threadIdx.x / 32; c < channels; c += blockDim.x / 32) {
        const bool small = is_small<float>(out.eps, count, room.totals[c].y);
        if (!small && isfinite(room.totals[c].y)) continue;
        const double from = small ? base(c) : 0;
        const Spread of = wide_moments(count, first + c, g.channels, g.inner, x, from, small);
        __syncwarp(); // all lanes have read what one writes now
        if (threadIdx.x % 32 == 0) room.totals[c] = {(from - base(c)) + of.offset, of.squares};
    }
    __syncthreads();
#pragma unroll 1
    for (unsigned c = threadIdx.x; c < channels; c += blockDim.x) {
        finish_stats(first + c, g.channels, count, {base(c), room.totals[c].x, room.totals[c].y, 1}, out);
    }
}

/// Vectors of x, and of the residual, that are loaded before the first is used: registers allow no more.
template <class Act> constexpr unsigned FEW = Act::GENERAL ? 1 : 2;

/// What the forward ends with.
template <class T, class Act> struct Target {
    const T *residual;
    T *y;
    unsigned char *mask;
    Act act;

    /// `n` vectors of y; `x` gives the k-th when it is needed.
    template <int W, class X>
    __device__ void write(const Coefs<float, W> &coefs, const unsigned (&at)[FEW<Act>], unsigned n, X x) const {
        Vector<T, W> rs[FEW<Act>];
#pragma unroll
        for (unsigned k = 0; k < FEW<Act>; k++) {
            if (k < n && residual) rs[k] = load_last<T, W>(residual, at[k], true);
        }
#pragma unroll
        for (unsigned k = 0; k < FEW<Act>; k++) {
            if (k < n) {
                unsigned ones;
                const auto out = coefs.output(x(k), residual, rs[k], act, ones);
                store<T, W>(y, at[k], out, true);
                if (mask) mask[at[k]] = ones;
            }
        }
    }
};

template <class T, class Act>
__device__ void forward_resident(const Geometry &g, const Group &group, const Outputs<float> &out, u64 count,
                                 const T *x, const Target<T, Act> &to) {
    constexpr int W = 16 / sizeof(T);
    extern __shared__ uint4 shared[];
    const Room room(shared, g, g.threads * group.kept);
    // First, where registers are free: the blocks share the channels.
#pragma unroll 1
    for (unsigned c = blockIdx.x * blockDim.x + threadIdx.x; c < g.channels; c += gridDim.x * blockDim.x) {
        out.save_parameters(c);
    }
    const unsigned member = blockIdx.x % group.blocks;
    for (unsigned slice = blockIdx.x / group.blocks; slice < g.slices; slice += gridDim.x / group.blocks) {
        const Steps walk(g, slice, member);
        const unsigned channels = channels_of(g, slice);
        const u64 first = u64(slice) * g.slice_channels;
#pragma unroll 1
        for (unsigned c = threadIdx.x; c < channels; c += blockDim.x) {
            room.table.at(Room::BASE, c) = base_of(x, first + c, g.inner);
        }
        const auto moments = read_once<T, W>(g, walk, spilled(g, group, member), x, room);
        __syncthreads();
        add_moments(g, walk, moments, room);
        meet(g, group, channels, room, [&] { finish_slice(g, first, channels, count, x, out, room); });

        const Channels<float> by = {out.mean, out.mean_rest, out.invstd, out.weight, out.bias};
        if (Coefs<float, W>::prepare(g, slice, by, room.table)) {
            apply_slowly<W>(g, Steps(g, slice, member), by, x, to.residual, to.y, to.mask, to.act);
            continue;
        }
        const Coefs<float, W> coefs(g, walk, room.table);
        const unsigned spills = min(spilled(g, group, anew(member)), walk.count);
        const Steps kept(g, slice, member, spills);
        Steps back = kept, on = kept;
        for (unsigned left = spills, here; left > 0; left -= here) {
            unsigned at[FEW<Act>];
            Vector<T, W> xs[FEW<Act>];
            here = min(FEW<Act>, left);
#pragma unroll
            for (unsigned k = 0; k < FEW<Act>; k++) {
                if (k < here) {
                    back.previous(g);
                    at[k] = back.at;
                    xs[k] = load_last<T, W>(x, back.at, true);
                }
            }
            to.write(coefs, at, here, [&](unsigned k) { return xs[k]; });
        }
        for (unsigned step = 0, here; step < kept.count; step += here) {
            unsigned at[FEW<Act>];
            here = min(FEW<Act>, kept.count - step);
#pragma unroll
            for (unsigned k = 0; k < FEW<Act>; k++) {
                if (k < here) {
                    at[k] = on.at;
                    on.next(g);
                }
            }
            to.write(coefs, at, here, [&](unsigned k) { return room.again<T, W>(g, step + k); });
        }
    }
}
