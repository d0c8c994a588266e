// What the blocks of a group do together: each sums over the slice it shares with the others, the last one to arrive
// merges the sums, and none goes on before it has. See README.md.
#pragma once
#include "backward.cuh"

struct Group {
    unsigned blocks, kept;
    /// Groups that begin at once; as many after them begin `late` nanoseconds later.
    unsigned early, late;
    double2 *partials;
    unsigned *words;
};

/// Half of the groups that the device has at first begin half a round later, so that they read and write while the
/// others wait. What sets groups apart lasts: they share the memory's rate, none overtakes.
__device__ inline void begin(const Group &group) {
    if (blockIdx.x / group.blocks - group.early < group.early) __nanosleep(group.late);
}

/// Shared memory of a block: vectors that it keeps, and what its threads need of each other.
struct Room {
    uint4 *kept;
    unsigned *arrival;
    /// Two sums for each channel.
    double2 *totals;
    Table<float> table;
    /// Partial sums of one of the two.
    double *stage;

    /// Values of the table by channel: those of `Coefs` and of `Through`, and what means count from.
    static constexpr unsigned VALUES = 6, BASE = 5;

    __device__ Room(uint4 *shared, const Geometry &g, unsigned vectors) : kept(shared) {
        arrival = reinterpret_cast<unsigned *>(shared + vectors);
        totals = reinterpret_cast<double2 *>(arrival + 4);
        table = {reinterpret_cast<float *>(totals + g.slice_channels), g.slice_channels};
        const unsigned values = (VALUES * g.slice_channels + 1) / 2 * 2; // what follows is aligned to 8 bytes
        stage = reinterpret_cast<double *>(table.values + values);
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

/// Two sums of a thread, of which all of a block's come to those of a channel.
__device__ inline double2 operator+(double2 a, double2 b) { return {a.x + b.x, a.y + b.y}; }
__device__ inline double2 from_below(double2 sums, unsigned distance) {
    return {__shfl_down_sync(~0u, sums.x, distance), __shfl_down_sync(~0u, sums.y, distance)};
}

/// Adds up both sums of the `N` lanes of all threads whose columns, of `width`, make up a channel, `inner` lanes of a
/// row: first the rows that a warp has, then those of the warps; always in the same order.
template <int N>
__device__ void add_up(double2 (&sums)[N], unsigned width, unsigned threads, unsigned channels, unsigned inner,
                       double *stage, double2 *to) {
    width = anew(width);
    const unsigned thread = thread_anew(), lane = thread % 32;
    unsigned slot = thread / 32, slots = blockDim.x / 32, column = lane;
    bool writes = lane < width;
    // The rows of threads in a warp; threads that do not work have zeros.
    unsigned rows = width > 1 ? (31 + width) / width : 32;
    if (width > 1) column = thread % width;
    if (width > 32) {
        slot = thread / width;
        slots = threads / width;
        writes = thread < threads;
        rows = 1;
    }
#pragma unroll 1
    for (unsigned d = half_above(rows); d > 0; d /= 2) {
        const bool adds = lane + d * width < 32;
#pragma unroll
        for (int i = 0; i < N; i++) {
            const double2 other = from_below(sums[i], d * width);
            if (adds) sums[i] = sums[i] + other;
        }
    }
    // As many threads for each channel as there are, or as it has sums.
    const unsigned parts = inner * slots;
    unsigned team = 32;
    while (team > 1 && (team >= 2 * parts || channels * team > blockDim.x)) team /= 2;
    // One sum after the other, so that the stage takes half the room, which keeps vectors instead.
#pragma unroll 1
    for (unsigned which = 0; which < 2; which++) {
        if (writes) {
#pragma unroll
            for (int i = 0; i < N; i++) stage[(slot * N + i) * width + column] = which == 0 ? sums[i].x : sums[i].y;
        }
        __syncthreads();
#pragma unroll 1
        for (unsigned first = thread - lane; first < channels * team; first += blockDim.x) {
            const unsigned c = (first + lane) / team;
            double sum = 0;
            if (c < channels) {
#pragma unroll 1
                for (unsigned part = lane % team; part < parts; part += team) {
                    const unsigned s = inner == 1 ? part : part / inner, e = c * inner + (part - s * inner);
                    sum += stage[(s * N + e % N) * width + e / N];
                }
            }
#pragma unroll 1
            for (unsigned d = team / 2; d > 0; d /= 2) sum += __shfl_down_sync(~0u, sum, d);
            if (c < channels && lane % team == 0) (which == 0 ? to[c].x : to[c].y) = sum;
        }
        __syncthreads();
    }
}

/// The same of the vectors of a slice. Where all lanes are of one channel they are added before the threads are.
template <int W>
__device__ void add_up(const Geometry &g, unsigned slice, double2 (&lanes)[W], const Room &room) {
    const bool runs = g.slice_channels == 1;
    if (runs || g.inner % W == 0) {
        double2 sums[1] = {lanes[0]};
#pragma unroll
        for (int i = 1; i < W; i++) sums[0] = sums[0] + lanes[i];
        const unsigned inner = runs ? 1 : unsigned(g.inner) / W, width = runs ? 1 : columns_of(g);
        add_up(sums, width, g.threads, channels_of(g, slice), inner, room.stage, room.totals);
    } else {
        add_up(lanes, columns_of(g), g.threads, channels_of(g, slice), g.inner, room.stage, room.totals);
    }
}

/// The sums of all blocks of the group, in their order.
__device__ inline void merge_blocks(const Geometry &g, const Group &group, unsigned channels, const Room &room) {
    constexpr unsigned AT_ONCE = 8;
    const unsigned first_block = blockIdx.x / anew(group.blocks) * group.blocks;
    const double2 *const parts = anew(group.partials) + u64(first_block) * g.slice_channels;
    for (unsigned first = 0; first < channels; first += blockDim.x) {
        const unsigned width = min(blockDim.x, channels - first), rows = blockDim.x / width;
        const unsigned c = first + threadIdx.x % width, row = threadIdx.x / width;
        double2 sums[1] = {{0, 0}};
        const unsigned end = row < rows ? group.blocks : 0;
#pragma unroll 1
        for (unsigned block = row; block < end; block += AT_ONCE * rows) {
            double2 some[AT_ONCE];
#pragma unroll
            for (unsigned k = 0; k < AT_ONCE; k++) {
                some[k] = {0, 0};
                if (block + k * rows < end) some[k] = __ldcg(parts + u64(block + k * rows) * g.slice_channels + c);
            }
#pragma unroll
            for (unsigned k = 0; k < AT_ONCE; k++) sums[0] = sums[0] + some[k];
        }
        add_up(sums, width, rows * width, width, 1, room.stage, room.totals + first);
    }
}

/// Whether this block is the last of its group to arrive; what the others wrote before is then there to read. `before`:
/// the word as it found it.
__device__ inline bool arrive(const Geometry &g, const Group &group, unsigned channels, unsigned *word,
                              const Room &room, unsigned &before) {
    for (unsigned c = threadIdx.x; c < channels; c += blockDim.x) {
        anew(group.partials)[u64(blockIdx.x) * g.slice_channels + c] = room.totals[c];
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
    constexpr unsigned SHORTEST = 32, LONGEST = 256; // nanoseconds between polls
    unsigned *const word = anew(group.words) + blockIdx.x / anew(group.blocks) * 32;
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
        // Relaxed: each acquire would empty the cache that the multiprocessor's other blocks read through. Ever less
        // often, as all polls of a group go to one place, up to a bound on how late this block can be.
        for (unsigned pause = SHORTEST;; pause = min(2 * pause, LONGEST)) {
            asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(word) : "memory");
            if ((before ^ now) & TOP) break;
            __nanosleep(pause);
        }
        asm volatile("fence.acq_rel.gpu;" ::: "memory");
    }
    __syncthreads();
}
