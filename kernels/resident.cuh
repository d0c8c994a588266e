// What the blocks of a group do together: each sums over the slice it shares with the others, the last one to arrive
// merges the sums, and none goes on before it has. See README.md.
#pragma once
#include "backward.cuh"

struct Group {
    unsigned blocks, kept;
    double2 *partials;
    unsigned *words;
};

/// Shared memory of a block: vectors that it keeps, and what its threads need of each other.
struct Room {
    uint4 *kept;
    unsigned *arrival;
    /// Two sums for each channel.
    double2 *totals;
    Table<float> table;
    double *stage;

    /// Values of the table by channel: those of `Coefs` and of `Through`, and what means count from.
    static constexpr unsigned VALUES = 6, BASE = 5;

    __device__ Room(uint4 *shared, const Geometry &g, unsigned vectors) : kept(shared) {
        arrival = reinterpret_cast<unsigned *>(shared + vectors);
        totals = reinterpret_cast<double2 *>(arrival + 4);
        table = {reinterpret_cast<float *>(totals + g.slice_channels), g.slice_channels};
        stage = reinterpret_cast<double *>(table.values + VALUES * g.slice_channels);
    }
    /// A thread's own places: no other reads them.
    template <class T, int W> __device__ void keep(const Geometry &g, unsigned step, Vector<T, W> vector) const {
        kept[step * g.threads + threadIdx.x] = reinterpret_cast<uint4 &>(vector);
    }
    template <class T, int W> __device__ Vector<T, W> again(const Geometry &g, unsigned step) const {
        uint4 bits = kept[step * g.threads + threadIdx.x];
        return reinterpret_cast<Vector<T, W> &>(bits);
    }
};

/// A tensor of this family has fewer than 2^32 vectors.
using Steps = Walk<unsigned>;

/// Steps of a block that do not fit.
__device__ inline unsigned spilled(const Geometry &g, const Group &group, unsigned member) {
    const u64 begin = member * g.tile, end = min(begin + g.tile, g.vectors);
    const u64 steps = begin < end ? (end - begin + g.threads - 1) / g.threads : 0;
    return steps > group.kept ? unsigned(steps - group.kept) : 0;
}

/// Adds up the lanes of all threads whose columns, of `width`, make up a channel, `inner` lanes of a row. To every
/// other place of `to`, by channel; always in the same order. `lane_sum` gives what a thread has of each of its `N`
/// lanes.
template <int N, class LaneSum>
__device__ void add_up(LaneSum lane_sum, unsigned width, unsigned threads, unsigned channels, unsigned inner,
                       double *stage, double *to) {
    const unsigned thread = thread_anew(), lane = thread % 32;
    unsigned slot = thread / 32, slots = blockDim.x / 32;
    bool writes = lane < width;
    // The rows of threads in a warp; threads that do not work have zeros.
    unsigned rows = (31 + width) / width;
    if (width > 32) {
        slot = thread / width;
        slots = threads / width;
        writes = thread < threads;
        rows = 1;
    }
#pragma unroll
    for (int i = 0; i < N; i++) {
        double sum = lane_sum(i);
        for (unsigned d = half_above(rows); d > 0; d /= 2) {
            const double other = __shfl_down_sync(~0u, sum, d * width);
            if (lane + d * width < 32) sum += other;
        }
        if (writes) stage[(slot * N + i) * width + thread % width] = sum;
    }
    __syncthreads();
    const unsigned team = inner > 1 ? min(32u, 2 * half_above(inner)) : 1;
    for (unsigned first = thread - lane; first < channels * team; first += blockDim.x) {
        const unsigned c = (first + lane) / team;
        double sum = 0;
        if (c < channels) {
            for (unsigned j = lane % team; j < inner; j += team) {
                const unsigned e = c * inner + j;
                for (unsigned s = 0; s < slots; s++) sum += stage[(s * N + e % N) * width + e / N];
            }
        }
        for (unsigned d = team / 2; d > 0; d /= 2) sum += __shfl_down_sync(~0u, sum, d);
        if (c < channels && lane % team == 0) to[2 * c] = sum;
    }
    __syncthreads();
}

/// The same of the vectors of a slice; where it is one channel, as of one column.
template <int W, class LaneSum>
__device__ void add_up(const Geometry &g, unsigned slice, LaneSum lane_sum, const Room &room, double *to) {
    const bool runs = g.slice_channels == 1;
    const unsigned width = runs ? 1 : g.width, inner = runs ? W : g.inner;
    add_up<W>(lane_sum, width, g.threads, channels_of(g, slice), inner, room.stage, to);
}

/// The sums of all blocks of the group, in their order.
__device__ inline void merge_blocks(const Geometry &g, const Group &group, unsigned channels, const Room &room) {
    const double2 *const parts = group.partials + u64(blockIdx.x - blockIdx.x % group.blocks) * g.slice_channels;
    for (unsigned first = 0; first < channels; first += blockDim.x) {
        const unsigned width = min(blockDim.x, channels - first), rows = blockDim.x / width;
        const unsigned c = first + threadIdx.x % width, row = threadIdx.x / width;
        double2 sums = {0, 0};
        if (row < rows) {
#pragma unroll 8
            for (unsigned block = row; block < group.blocks; block += rows) {
                const double2 part = __ldcg(parts + u64(block) * g.slice_channels + c);
                sums.x += part.x;
                sums.y += part.y;
            }
        }
        double2 *const to = room.totals + first;
        add_up<1>([=](int) { return sums.x; }, width, rows * width, width, 1, room.stage, &to->x);
        add_up<1>([=](int) { return sums.y; }, width, rows * width, width, 1, room.stage, &to->y);
    }
}

/// Whether this block is the last of its group to arrive; what the others wrote before is then there to read. `before`:
/// the word as it found it.
__device__ inline bool arrive(const Geometry &g, const Group &group, unsigned channels, unsigned *word,
                              const Room &room, unsigned &before) {
    for (unsigned c = threadIdx.x; c < channels; c += blockDim.x) {
        group.partials[u64(blockIdx.x) * g.slice_channels + c] = room.totals[c];
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], 1;" : "=r"(before) : "l"(word) : "memory");
        *room.arrival = before;
    }
    __syncthreads();
    before = *room.arrival;
    return (before & 0x7fffffff) == group.blocks - 1;
}

/// `finish` is called in one block of the group, when the totals are those of the group; no block goes on before.
///
/// The word counts blocks that have arrived in its low 31 bits. The last one to arrive sets them back to 0 and flips
/// the top bit, which the others wait for.
template <class Finish>
__device__ void meet(const Geometry &g, const Group &group, unsigned channels, const Room &room, Finish finish) {
    constexpr unsigned TOP = 1u << 31;
    unsigned *const word = group.words + blockIdx.x / group.blocks * 32;
    unsigned before, now;
    const bool alone = group.blocks == 1;
    if (alone || arrive(g, group, channels, word, room, before)) {
        if (!alone) merge_blocks(g, group, channels, room);
        finish();
        __syncthreads();
        if (!alone && threadIdx.x == 0) {
            asm volatile("red.add.release.gpu.global.u32 [%0], %1;" ::"l"(word), "r"(TOP - group.blocks) : "memory");
        }
    } else if (threadIdx.x == 0) {
        do {
            asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(word) : "memory");
        } while (((before ^ now) & TOP) == 0);
    }
    __syncthreads();
}
