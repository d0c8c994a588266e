// The training forward in one launch: x is read once, as far as a group's shared memory holds a slice.
//
// Sums across threads are of distances from the channel's first value, in f64. That value is no further from the mean
// than sqrt(count) deviations, so that the squares keep all the digits that f32 has.
#pragma once
#include "resident.cuh"

/// Reads a thread's part of the slice, and keeps what fits.
template <class T, int W>
__device__ Moments<T, W> read_once(const Geometry &g, Steps walk, unsigned spilled, unsigned kept, const T *x,
                                   const Room &room) {
    Moments<T, W> moments;
    // What does not fit is put where the first that does will be.
    int step = -int(min(spilled, walk.count));
    const unsigned whole = kept > 0 ? whole_batches(walk.count, AHEAD) : 0;
    const auto from = [&](unsigned at, bool) { return load<T, W>(x, at, true); };
    const auto fetch = [&](const auto &at, auto &items) { load_all(x, at, step >= 0, items); };
    const auto keep = [&](const auto &vector) { room.keep(g, max(step++, 0), vector); };
    const auto keep_some = [&](const auto &vector) { step < 0 ? void(step++) : keep(vector); };
    read_moments(g, walk, whole, true, moments, from, fetch, keep_some, keep);
    return moments;
}

/// Sums of distances from the channels' first values, and of their squares, over the block.
template <class T, int W>
__device__ void add_moments(const Geometry &g, const Steps &walk, const Moments<T, W> &moments, const Room &room) {
    const double n = moments.count;
    const Lanes<W> lanes(g, walk);
    double2 sums[W];
#pragma unroll
    for (int i = 0; i < W; i++) {
        const double by = n == 0 ? 0 : double(moments.pivot[i]) - room.table.at(Room::BASE, lanes.channel[i]);
        const double sum = moments.sum[i], squares = double(moments.square[i]) + moments.fresh[i];
        sums[i] = {sum + n * by, squares + by * (2 * sum + n * by)};
    }
    add_up(g, room.arrival[1], sums, room);
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
        const Spread of = wide_moments(count, first + c, Lie::of(g), x, from, small);
        __syncwarp(); // all lanes have read what one writes now
        if (threadIdx.x % 32 == 0) room.totals[c] = {(from - base(c)) + of.offset, of.squares};
    }
    __syncthreads();
#pragma unroll 1
    for (unsigned c = threadIdx.x; c < channels; c += blockDim.x) {
        finish_stats(first + c, g.channels, count, {base(c), room.totals[c].x, room.totals[c].y, 1}, out);
    }
}

/// What the forward ends with.
template <class T, class Act> struct Target {
    const T *residual;
    T *y;
    unsigned char *mask;
    Act act;

    /// `left` vectors of y from `walk` on, those of whole batches last. `load_x(at)` gives what is to be loaded of x at
    /// a place, `x_of` what it is.
    template <class Way, int W, class LoadX, class XOf>
    __device__ void write(const Geometry &g, Steps walk, unsigned left, const Coefs<float, W> &coefs, LoadX load_x,
                          XOf x_of) const {
        constexpr unsigned N = SPECIALIZES<T> ? 4 : 2;
        const auto step = [&](auto adds, auto masks, auto loop) {
            struct Item {
                decltype(load_x(0)) x;
                Vector<T, W> residual;
            };
            const auto load = [&](unsigned at, bool) {
                Item item = {};
                item.x = load_x(at);
                if (adds.is(residual)) item.residual = load_last<T, W>(residual, at, true);
                return item;
            };
            const auto use = [&](const Item &item, unsigned at, bool) {
                unsigned ones;
                const auto out = coefs.output(x_of(item.x), adds.is(residual), item.residual, act, ones);
                store<T, W>(y, at, out, true);
                if (masks.is(mask)) mask[at] = ones;
            };
            loop(load, use);
        };
        const bool hot = !Act::GENERAL && (residual || !mask);
        const unsigned whole = hot ? left / N * N : 0;
        step(Has<ASKED>(), Has<ASKED>(), [&](auto load, auto use) {
            in_turn<N, Way>(g, walk, left - whole, true, load, use, Nothing(), Nothing());
        });
        if constexpr (!Act::GENERAL) {
            const auto batches = [&](auto load, auto use) {
                in_batches<N, Way, decltype(load(walk.at, true))>(g, walk, whole, each(load), use, Nothing());
            };
            if constexpr (!SPECIALIZES<T>) {
                step(Has<ASKED>(), Has<ASKED>(), batches);
            } else if (residual) {
                step(Has<PRESENT>(), Has<ASKED>(), batches);
            } else {
                step(Has<ABSENT>(), Has<ABSENT>(), batches);
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
    begin(group);
    if (threadIdx.x == 0) room.arrival[2] = blockIdx.x % group.blocks;
    __syncthreads();
    for (unsigned slice = blockIdx.x / group.blocks; slice < g.slices; slice += gridDim.x / group.blocks) {
        unsigned member = room.arrival[2];
        const Steps walk(g, slice, member);
#pragma unroll 1
        for (unsigned c = threadIdx.x; c < channels_of(g, slice); c += blockDim.x) {
            room.table.at(Room::BASE, c) = base_of<W>(x, g, slice, c);
        }
        const auto moments = read_once<T, W>(g, walk, spilled(g, group, member), group.kept, x, room);
        if (threadIdx.x == 0) room.arrival[1] = slice;
        __syncthreads();
        add_moments(g, walk, moments, room);
        slice = room.arrival[1];
        const unsigned channels = channels_of(g, slice);
        const u64 first = u64(slice) * g.slice_channels;
        meet(g, group, channels, room, [&] { finish_slice(g, first, channels, anew(count), x, out, room); });

        // What was read took all registers.
        slice = room.arrival[1], member = room.arrival[2];
        const Channels<float> by = {out.mean, out.mean_rest, out.invstd, out.weight, out.bias};
        if (Coefs<float, W>::prepare(g, slice, by, room.table)) {
            apply_slowly<W>(g, Steps(g, slice, member), by, x, to.residual, to.y, to.mask, to.act);
            continue;
        }
        Steps kept(g, slice, member);
        const Coefs<float, W> coefs(g, kept, room.table);
        const unsigned spills = min(spilled(g, group, member), kept.count);
        if (spills > 0) {
            kept = Steps(g, slice, member, spills);
            Steps back = kept;
            back.previous(g);
            to.template write<Back>(
                g, back, spills, coefs, [&](unsigned at) { return load_last<T, W>(x, at, true); },
                [](const auto &x) { return x; });
        }
        unsigned step = 0;
        to.template write<Forth>(
            g, kept, kept.count, coefs, [](unsigned) { return Nothing(); },
            [&](Nothing) { return room.again<T, W>(g, step++); });
    }
}
