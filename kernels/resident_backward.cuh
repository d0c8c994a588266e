// The backward through the batch's statistics in one launch: x and the gradient of y are read once, as far as a group's
// shared memory holds a slice. What is kept of the gradient is what passes the ReLU; of other activations all of it,
// whose derivatives are computed twice.
#pragma once
#include "masked_backward.cuh"
#include "resident.cuh"

/// Reads a thread's part of the slice, and keeps what fits.
template <class T, int W, class Act>
__device__ Sums<float, W> read_once(const Geometry &g, Steps walk, unsigned spilled, const Coefs<float, W> &coefs,
                                    unsigned kept, const Tensors<T> &t, const Act &act, const Room &room) {
    Sums<float, W> sums;
    const auto write = [&](const auto &passed, unsigned at, bool) {
        if (t.grad_residual) store<T, W>(t.grad_residual, at, rounded<T>(passed), true);
    };
    const auto keep_at = [&](const auto &pair, unsigned step) {
        room.keep(g, step, pair.x);
        room.keep(g, kept + step, pair.g);
    };
    // What does not fit is put where the first that does will be.
    const auto keep = [&](const auto &pair, int step) { keep_at(pair, max(step, 0)); };
    const auto keep_some = [&](const auto &pair, int step) {
        if (step >= 0) keep_at(pair, step);
    };
    // Registers allow no more where z is computed for any activation.
    constexpr unsigned N = Act::GENERAL ? 1 : FEW;
    const int first = -int(min(spilled, walk.count));
    read_pairs<N>(g, walk, first, kept > 0, true, sums, coefs, t, act, write, keep_some, keep);
    return sums;
}

/// What follows from the totals of the slice's channels.
template <class T, class Act>
__device__ void finish_slice(const Geometry &g, unsigned slice, u64 count, const Channels<float> &by,
                             const Tensors<T> &t, const Act &act, const Gradients<float> &out, bool accumulate,
                             const Room &room) {
    const unsigned channels = channels_of(g, slice);
    const u64 first = u64(slice) * g.slice_channels;
    // Of an extreme channel they are not what is wanted.
    bool any = false;
#pragma unroll 1
    for (unsigned c = threadIdx.x; c < channels; c += blockDim.x) {
        const double2 total = room.totals[c];
        const bool again = are_lost<T>(total.x, total.y) || by.is_extreme(first + c);
        room.table.at(Room::BASE, c) = again;
        any |= again;
    }
    if (__syncthreads_or(any)) {
#pragma unroll 1
        for (unsigned c = threadIdx.x / 32; c < channels; c += blockDim.x / 32) {
            if (room.table.at(Room::BASE, c) == 0) continue;
            const Part all = wide_sums(count, first + c, Lie::of(g), 16 / sizeof(T), by, t, act);
            if (threadIdx.x % 32 == 0) room.totals[c] = {all.first, all.second};
        }
        __syncthreads();
    }
#pragma unroll 1
    for (unsigned c = threadIdx.x; c < channels; c += blockDim.x) {
        const double2 total = room.totals[c];
        const bool of_xhat = room.table.at(Room::BASE, c) != 0;
        finish_gradients(first + c, g.channels, count, total.x, total.y, of_xhat, by, out, accumulate);
    }
}

/// The gradient of x behind the sums where a mask says what counts: of what is read again, and of what was kept, the
/// last vectors first.
template <class T, int W, class Act>
__device__ void masked_rest(const Geometry &g, const Group &group, const Steps &all, unsigned member,
                            const Channels<float> &by, const Tensors<T> &t, const Act &act, const Places &places,
                            const Shares<float> &shares, const Room &room) {
#pragma unroll 1
    for (unsigned c = threadIdx.x; c < channels_of(g, all.slice); c += blockDim.x) {
        shares.of(u64(all.slice) * g.slice_channels + c, by, room.table.at(3, c), room.table.at(4, c));
    }
    const Coefs<float, W> coefs(g, all, room.table);
    const Through<float, W> through(g, all, room.table);
    const unsigned spills = min(spilled(g, group, member), all.count);
#pragma unroll 1
    for (unsigned part = 0; part < 2; part++) {
        const unsigned first = part == 0 ? 0 : spills;
        unsigned step = (part == 0 ? spills : all.count) - first;
        if (step == 0) continue;
        PlaceWalk<W, unsigned> walk(g, places, Steps(g, all.slice, member, first + step - 1));
        // Registers allow no more than one at a time where z is computed for any activation.
#pragma unroll 1
        while (step-- > 0) {
            const Spot at[1] = {walk.at};
            Pair<T, W, Act, FromAny> pair;
            Kept<W> kept[1];
            if (part == 0) {
                pair.x = load_last<T, W>(t.x, at[0].at, true), pair.g = load_last<T, W>(t.grad_y, at[0].at, true);
            } else {
                pair.x = room.again<T, W>(g, step), pair.g = room.again<T, W>(g, group.kept + step);
            }
            pair.look(t, at[0].at, true);
            walk.look(g, at, 1, kept);
            const auto passed = pair.passed(coefs, t, act);
            store<T, W>(t.grad_x, at[0].at, masked_gradient<T>(coefs, through, kept[0], pair.x, passed), true);
            walk.previous(g);
        }
    }
}

/// `MASKED`: a mask says what counts, whose `places` and `shares` they are.
template <class T, bool MASKED = false, class Act>
__device__ void backward_resident(const Geometry &g, const Group &group, const Channels<float> &by,
                                  const Gradients<float> &out, u64 count, const Tensors<T> &t, const Act &act,
                                  bool accumulate, const Places &places = {}, const Shares<float> &shares = {}) {
    constexpr int W = 16 / sizeof(T);
    extern __shared__ uint4 shared[];
    const Room room(shared, g, 2 * g.threads * group.kept);
    begin(group);
    if (threadIdx.x == 0) room.arrival[2] = blockIdx.x % group.blocks;
    __syncthreads();
    for (unsigned slice = blockIdx.x / group.blocks; slice < g.slices; slice += gridDim.x / group.blocks) {
        {
            const unsigned member = room.arrival[2], spills = spilled(g, group, member);
            Steps walk(g, slice, member);
            if (threadIdx.x == 0) room.arrival[1] = slice;
            Coefs<float, W>::prepare(g, slice, by, room.table);
            const Coefs<float, W> coefs(g, walk, room.table);
            const auto sums = read_once<T, W>(g, walk, spills, coefs, group.kept, t, act, room);
            double2 lanes[W];
#pragma unroll
            for (int i = 0; i < W; i++) lanes[i] = {double(sums.sum[i]), double(sums.product[i])};
            add_up(g, room.arrival[1], lanes, room);
        }
        // The sums take all registers.
        slice = room.arrival[1];
        meet(g, group, channels_of(g, slice), room,
             [&] { finish_slice(g, slice, anew(count), by, t, act, out, accumulate, room); });
        slice = room.arrival[1];

        const unsigned member = room.arrival[2];
        Steps on(g, slice, member);
        if constexpr (MASKED) {
            const Shares<float> of = {out.coefs, shares.counts, shares.values, shares.count_eps, g.channels};
            if (any_extreme(g, slice, by)) {
                masked_slowly<W>(g, PlaceWalk<W, unsigned>(g, places, on), by, t, act, of);
            } else {
                masked_rest<T, W>(g, group, on, member, by, t, act, places, of, room);
            }
            continue;
        }
        if (any_extreme(g, slice, by)) {
            backward_slowly<W>(g, on, by, t, act, out.coefs, nullptr);
            continue;
        }
        const unsigned spills = min(spilled(g, group, member), on.count);
        const Coefs<float, W> coefs(g, on, room.table);
        const Through<float, W> through(g, on, out.coefs, room.table);
        if (spills > 0) {
            on = Steps(g, slice, member, spills);
            Steps back = on;
            const auto load = [&](unsigned at, bool) { return Pair<T, W, Act, FromAny>(t, at, true, true, true); };
            const auto use = [&](auto pair, unsigned at, bool) {
                const auto passed = pair.passed(coefs, t, act);
                store<T, W>(t.grad_x, at, through.gradient(coefs, pair.x, passed), true);
            };
            back.previous(g);
            const unsigned whole = Act::GENERAL ? 0 : spills / PAIRS * PAIRS;
            in_turn<FEW, Back>(g, back, spills - whole, true, load, use, Nothing(), Nothing());
            if constexpr (!Act::GENERAL) {
                in_batches<PAIRS, Back, decltype(load(0, true))>(g, back, whole, each(load), use, Nothing());
            }
        }
        if constexpr (Act::GENERAL) {
            unsigned step = 0;
            const auto load = [&](unsigned at, bool) {
                Pair<T, W, Act, FromAny> pair;
                pair.look(t, at, true);
                return pair;
            };
            const auto use = [&](auto pair, unsigned at, bool) {
                pair.x = room.again<T, W>(g, step), pair.g = room.again<T, W>(g, group.kept + step++);
                store<T, W>(t.grad_x, at, through.gradient(coefs, pair.x, pair.passed(coefs, t, act)), true);
            };
            in_turn<4, Forth>(g, on, on.count, true, load, use, Nothing(), Nothing());
        } else {
#pragma unroll 2
            for (unsigned step = 0; step < on.count; step++) {
                const auto x = room.again<T, W>(g, step), passed = room.again<T, W>(g, group.kept + step);
                store<T, W>(t.grad_x, on.at, through.gradient(coefs, x, passed), true);
                on.next(g);
            }
        }
    }
}
