// The backward through the batch's statistics in one launch: x and the gradient of y are read once, as far as a group's
// shared memory holds a slice. What is kept of the gradient is what passes the ReLU; of other activations all of it,
// whose derivatives are computed twice.
#pragma once
#include "resident.cuh"

/// Pairs of vectors that are loaded before the first is used.
template <class Act> constexpr unsigned PAIRS = Act::GENERAL ? 1 : 2;
template <class T, class Act> using BatchOf = Batch<T, 16 / sizeof(T), PAIRS<Act>, unsigned, Act>;

/// Reads a thread's part of the slice, and keeps what fits.
template <class T, int W, class Act>
__device__ Sums<float, W> read_once(const Geometry &g, Steps walk, unsigned spilled, const Coefs<float, W> &coefs,
                                    unsigned kept, const Tensors<T> &t, const Act &act, const Room &room) {
    Sums<float, W> sums;
    for (unsigned done = 0; done < walk.count;) {
        BatchOf<T, Act> batch;
        batch.count = min(PAIRS<Act>, walk.count - done);
#pragma unroll
        for (unsigned k = 0; k < PAIRS<Act>; k++) {
            if (k < batch.count) {
                batch.read(t, k, walk.at, true, true, done + k >= spilled);
                walk.next(g);
            }
        }
#pragma unroll
        for (unsigned k = 0; k < PAIRS<Act>; k++) {
            if (k < batch.count) {
                const auto passed = batch.passed(coefs, t, act, k);
                batch.add_to(sums, coefs, k, passed);
                if (Act::GENERAL && t.grad_residual)
                    store<T, W>(t.grad_residual, batch.at[k], rounded<T>(passed), true);
            }
        }
#pragma unroll
        for (unsigned k = 0; k < PAIRS<Act>; k++) {
            if (k < batch.count) {
                if (!Act::GENERAL && t.grad_residual) store<T, W>(t.grad_residual, batch.at[k], batch.g[k], true);
                if (done + k >= spilled) {
                    room.keep(g, done + k - spilled, batch.x[k]);
                    room.keep(g, kept + done + k - spilled, batch.g[k]);
                }
            }
        }
        done += batch.count;
        if (done % SEGMENT == 0) sums.end_segment();
    }
    sums.end_segment();
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
            const Part all = wide_sums(count, first + c, g.channels, g.inner, 16 / sizeof(T), by, t, act);
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

template <class T, class Act>
__device__ void backward_resident(const Geometry &g, const Group &group, const Channels<float> &by,
                                  const Gradients<float> &out, u64 count, const Tensors<T> &t, const Act &act,
                                  bool accumulate) {
    constexpr int W = 16 / sizeof(T);
    extern __shared__ uint4 shared[];
    const Room room(shared, g, 2 * g.threads * group.kept);
    const unsigned member = blockIdx.x % group.blocks, spills = spilled(g, group, member);
    for (unsigned slice = blockIdx.x / group.blocks; slice < g.slices; slice += gridDim.x / group.blocks) {
        {
            Steps walk(g, slice, member);
            Coefs<float, W>::prepare(g, slice, by, room.table);
            const Coefs<float, W> coefs(g, walk, room.table);
            if (threadIdx.x == 0) room.arrival[1] = slice;
            const auto sums = read_once<T, W>(g, walk, spills, coefs, group.kept, t, act, room);
            add_up<W>(g, walk.slice, [&](int i) { return double(sums.sum[i]); }, room, &room.totals->x);
            add_up<W>(g, walk.slice, [&](int i) { return double(sums.product[i]); }, room, &room.totals->y);
        }
        // The sums take all registers.
        slice = room.arrival[1];
        meet(g, group, channels_of(g, slice), room,
             [&] { finish_slice(g, slice, count, by, t, act, out, accumulate, room); });
        slice = room.arrival[1];

        const Steps walk(g, slice, member);
        if (any_extreme(g, slice, by)) {
            backward_slowly<W>(g, walk, by, t, act, out.coefs, nullptr);
            continue;
        }
        const unsigned spilled = min(spills, walk.count);
        const Steps kept(g, slice, member, spilled);
        const Coefs<float, W> coefs(g, walk, room.table);
        const Through<float, W> through(g, walk, out.coefs, room.table);
        Steps back = kept, on = kept;
        for (unsigned left = spilled; left > 0;) {
            BatchOf<T, Act> batch;
            batch.count = min(PAIRS<Act>, left);
#pragma unroll
            for (unsigned k = 0; k < PAIRS<Act>; k++) {
                if (k < batch.count) {
                    back.previous(g);
                    batch.read(t, k, back.at, true, true, true);
                }
            }
#pragma unroll
            for (unsigned k = 0; k < PAIRS<Act>; k++) {
                if (k < batch.count) {
                    const auto passed = batch.passed(coefs, t, act, k);
                    const auto grad_x = through.gradient(coefs, batch.x[k], passed);
                    store<T, W>(t.grad_x, batch.at[k], grad_x, true);
                }
            }
            left -= batch.count;
        }
        for (unsigned step = 0; step < kept.count; step++) {
            const auto x = room.again<T, W>(g, step), held = room.again<T, W>(g, group.kept + step);
            if constexpr (Act::GENERAL) {
                Batch<T, W, 1, unsigned, Act> one;
                one.at[0] = on.at, one.x[0] = x, one.g[0] = held;
                one.look(t, 0, true);
                store<T, W>(t.grad_x, on.at, through.gradient(coefs, x, one.passed(coefs, t, act, 0)), true);
            } else {
                store<T, W>(t.grad_x, on.at, through.gradient(coefs, x, held), true);
            }
            on.next(g);
        }
    }
}
