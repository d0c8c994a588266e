// A tensor's elements by channel: blocks bring vectors of 16 bytes to shared memory, where each thread takes the
// elements of one channel, so that what it adds up and computes by are one channel's, however the tensor lies.
#pragma once
#include "element.cuh"

/// How the tensor is cut: a block takes a part of one channel where its runs are long, else of some columns.
struct Cut {
    /// Elements of the tensor, of a channel in a row of all channels, of such a row, and of as many of them as are cut
    /// into columns together. A row of one channel is all of it.
    u64 elements, inner, row, width;
    /// Vectors of a channel, or rows of columns, and those of a part.
    u64 all, chunk;
    /// Vectors that a run touches, at most; or the rows of columns that lie together.
    u64 vectors;
    /// Elements from one run of a channel to the next, or from so many rows of columns to the next; and what of that
    /// the vectors or rows before have not gone.
    u64 step, rest;
    /// What a thread goes from one vector to its next: elements, and vectors of a run or rows.
    u64 next_at, next_number;
    unsigned channels, chunks;
    /// Blocks beside each other that take all columns.
    unsigned tiles;
    /// Whether a block takes a channel.
    unsigned runs;
    /// Elements of a byte of the mask.
    unsigned lanes;
    /// Whether all tensors of the call start at a multiple of 16 bytes.
    unsigned aligned;
    /// Whether vectors may have elements of two runs.
    unsigned ragged;
    /// Where rows are dealt out to groups, each with columns and channels of its own: groups, and the channels of one.
    /// Without, all is of one group.
    unsigned groups, together;
};

/// Which values count for a mask: by a byte of every position, or of so many neighbours. All of them without one.
struct Counting {
    const unsigned char *bytes;
    u64 each;
    /// Of as many elements as have one byte, or of a row of all channels; and of a channel's in that.
    double inverse, inner_inverse;

    /// A quotient by an inverse, without a division.
    static __device__ u64 quotient(u64 a, u64 b, double inverse) {
        u64 q = u64(double(a) * inverse);
        if (q * b > a) q--;
        if (a - q * b >= b) q++;
        return q;
    }
};

constexpr unsigned BLOCK = 256, WARPS = BLOCK / 32;
/// Vectors of each of `N` tensors that a thread has in flight: at least four, as far as there are registers.
template <class T, unsigned N> constexpr unsigned BATCH = sizeof(T) == 8 && N > 4 ? 1 : 2;
/// Columns of a block.
constexpr unsigned TILE_COLUMNS = 64;

/// Where a vector lies, and which of its lanes the block takes: none, or a range.
struct Place {
    u64 at;
    unsigned from, to;

    __device__ bool is_empty() const { return from >= to; }
};

/// A thread's way through its block's part of `N` tensors: the vectors that it moves, and the elements that it
/// computes, stage by stage.
template <class T, unsigned N> struct Way {
    static constexpr unsigned W = 16 / sizeof(T), STAGE = BATCH<T, N> * BLOCK;
    /// Vectors of a row of columns, and rows of a stage of them.
    static constexpr unsigned ACROSS = TILE_COLUMNS / W, ROWS = STAGE / ACROSS;

    unsigned stages;
    /// Of its elements, if it has any.
    unsigned channel;
    /// Vectors that it has yet to move; the run, or the vector itself, of the next, and its number in the run. No
    /// memory holds a tensor of whose parts one thread had more than 32 bits count.
    unsigned count;
    /// Lanes of its vectors that are columns: fewer than all only where vectors are not moved at once.
    unsigned lanes;
    u64 run, number;
    /// What of the part is left for it from this stage on: of elements of a channel, or of a column.
    unsigned left;

    __device__ Way(const Cut &cut, unsigned block) {
        const unsigned t = threadIdx.x;
        constexpr unsigned STEP = BLOCK / ACROSS;
        const unsigned set = set_of(cut, block), group = set % cut.groups;
        const u64 start = column_of(cut, block), column = start + t % TILE_COLUMNS;
        const u64 of_vector = cut.runs ? 0 : start + t % ACROSS * W;
        const u64 begin = (cut.runs ? block % cut.chunks : set / cut.groups) * cut.chunk;
        const u64 here = min(begin + cut.chunk, cut.all) - begin;
        const unsigned first = cut.runs ? t : t / ACROSS;
        stages = unsigned(cut.runs ? (here + STAGE - 1) / STAGE : (here + ROWS - 1) / ROWS);
        const u64 behind = here - first + (cut.runs ? BLOCK : STEP) - 1;
        count = of_vector < cut.width && first < here ? unsigned(cut.runs ? behind / BLOCK : behind / STEP) : 0;
        const u64 outer = (begin + first) / cut.vectors;
        number = begin + first - outer * cut.vectors;
        run = outer * cut.step;
        lanes = W;
        if (cut.runs) {
            channel = block / cut.chunks;
            run += channel * cut.inner;
            left = unsigned(here * W);
        } else {
            channel = group * cut.together + unsigned(column % cut.row / cut.inner);
            run += (group * cut.vectors + number) * cut.width + of_vector;
            lanes = unsigned(min(u64(W), cut.width - of_vector));
            left = column < cut.width ? unsigned(here) : 0;
            // The last row may be shorter.
            if (left > 0 && (begin + here - 1) * cut.width + column >= cut.elements) left--;
        }
    }
    /// The first column of a block of columns, and which part of which group's it takes: part by part.
    static __device__ u64 column_of(const Cut &cut, unsigned block) { return u64(block % cut.tiles) * TILE_COLUMNS; }
    static __device__ unsigned set_of(const Cut &cut, unsigned block) { return block / cut.tiles; }
    /// Where the next vector lies.
    __device__ Place next(const Cut &cut) {
        if (count == 0) return {0, 0, 0};
        count--;
        Place place = {run, 0, W};
        if (cut.runs) {
            const u64 end = run + cut.inner;
            place.at = run / W * W + number * W;
            if (place.at < run) place.from = unsigned(run - place.at);
            if (place.at + W > end) place.to = place.at < end ? unsigned(end - place.at) : 0;
        } else if (place.at + W > cut.elements) {
            place.to = place.at < cut.elements ? unsigned(cut.elements - place.at) : 0;
        }
        run += cut.next_at;
        number += cut.next_number;
        if (number >= cut.vectors) {
            number -= cut.vectors;
            run += cut.rest;
        }
        return place;
    }
    /// How many elements of the next stage it has: the stage's `threadIdx.x`th, and every `BLOCK`th from there.
    __device__ unsigned elements(const Cut &cut) {
        constexpr unsigned TOGETHER = BLOCK / TILE_COLUMNS;
        const unsigned here = min(left, cut.runs ? STAGE * W : ROWS);
        left -= here;
        const unsigned t = threadIdx.x;
        return cut.runs ? (here + BLOCK - 1 - t) / BLOCK : (here + TOGETHER - 1 - t / TILE_COLUMNS) / TOGETHER;
    }
};

/// What `load` gives for the channel of a thread's elements, read once for all threads that have it. `memory` of the
/// block is free until then.
template <class Value, class Load>
__device__ Value of_channel(const Cut &cut, unsigned channel, void *memory, Load load) {
    auto *const table = static_cast<Value *>(memory);
    const unsigned t = threadIdx.x;
    if (t < (cut.runs ? 1 : TILE_COLUMNS)) table[t] = load(channel);
    __syncthreads();
    const Value value = table[cut.runs ? 0 : t % TILE_COLUMNS];
    __syncthreads();
    return value;
}

/// `N` tensors of a stage, in shared memory.
template <class T, unsigned N> struct alignas(16) Staged {
    static constexpr unsigned W = 16 / sizeof(T), EACH = BATCH<T, N>, STAGE = EACH * BLOCK;
    Vector<T, W> vectors[N][STAGE];
    /// Of every vector the byte of the mask, and the lanes that there are.
    unsigned char mask[STAGE], lanes[STAGE];
    /// By a mask of values, which lanes count.
    unsigned char counted[STAGE];

    __device__ T &at(unsigned tensor, unsigned element) { return reinterpret_cast<T *>(vectors[tensor])[element]; }
    __device__ bool bit(unsigned element) const { return mask[element / W] >> element % W & 1; }
    __device__ bool counts(unsigned element) const { return counted[element / W] >> element % W & 1; }
    __device__ bool is_there(const Cut &cut, unsigned element) const {
        return !cut.ragged || lanes[element / W] >> element % W & 1;
    }

    /// Whether 16 bytes are moved at once. A vector of which a run has a part lies within the tensor, too.
    static __device__ bool is_whole(const Cut &cut, const Place &place) {
        return cut.aligned && !place.is_empty() && place.at + W <= cut.elements;
    }
    static __device__ unsigned bits_of(const Cut &cut, const unsigned char *mask, const Place &place) {
        if (cut.lanes == W) return mask[place.at / W];
        unsigned bits = 0;
#pragma unroll 1
        for (unsigned i = place.from; i < place.to; i++) bits |= unsigned(mask[place.at + i] & 1) << i;
        return bits;
    }
    static __device__ unsigned counts_of(const Cut &cut, const Counting &by, const Place &place) {
        const u64 first = place.at + place.from;
        // The place of an element, and of a position's channels the place of its row and where it is in that.
        const u64 period = by.each > 0 ? by.each : cut.inner, row = by.each > 0 ? by.each : cut.row;
        u64 start = Counting::quotient(first, row, by.inverse);
        u64 in_row = first - start * row, within = in_row;
        if (by.each == 0) {
            within -= Counting::quotient(in_row, cut.inner, by.inner_inverse) * cut.inner;
            start *= cut.inner;
        }
        unsigned bits = 0;
#pragma unroll 1
        for (unsigned i = place.from; i < place.to; i++) {
            bits |= unsigned(by.bytes[by.each > 0 ? start : start + within] != 0) << i;
            const bool ends = ++within == period, ends_row = ++in_row == row;
            if (ends) within = 0;
            if (ends_row) in_row = 0, start += by.each > 0 ? 1 : cut.inner;
        }
        return bits;
    }
    /// Brings the next stage of those tensors that there are: all loads are in flight before the first is waited for.
    /// When it returns, all is there; what was there before has been used by the whole block.
    __device__ void fetch(const Cut &cut, const T *const (&from)[N], const unsigned char *bytes, const Counting &by,
                          const Place (&places)[EACH]) {
        Vector<T, W> loaded[N][EACH];
        bool whole[EACH];
        unsigned bits[EACH];
#pragma unroll
        for (unsigned k = 0; k < EACH; k++) {
            whole[k] = is_whole(cut, places[k]);
            bits[k] = 0;
#pragma unroll
            for (unsigned n = 0; n < N; n++) {
                if (from[n] && whole[k]) loaded[n][k] = load<T, W>(from[n] + places[k].at, 0, true);
            }
            if (bytes && !places[k].is_empty()) bits[k] = bits_of(cut, bytes, places[k]);
        }
        __syncthreads();
#pragma unroll
        for (unsigned k = 0; k < EACH; k++) {
            const unsigned slot = threadIdx.x + k * BLOCK;
            const Place &place = places[k];
            mask[slot] = bits[k];
            if (by.bytes) counted[slot] = counts_of(cut, by, place);
            lanes[slot] = (1u << place.to) - (1u << place.from);
#pragma unroll
            for (unsigned n = 0; n < N; n++) {
                if (!from[n]) continue;
                if (whole[k]) {
                    vectors[n][slot] = loaded[n][k];
                } else {
#pragma unroll 1
                    for (unsigned i = place.from; i < place.to; i++) at(n, slot * W + i) = from[n][place.at + i];
                }
            }
        }
        __syncthreads();
    }
    /// Writes what the block has made of one, of so many lanes at most.
    __device__ void flush(const Cut &cut, unsigned tensor, T *to, const Place (&places)[EACH], unsigned lanes) {
#pragma unroll
        for (unsigned k = 0; k < EACH; k++) {
            const unsigned slot = threadIdx.x + k * BLOCK;
            const Place &place = places[k];
            if (is_whole(cut, place) && place.to - place.from == W) {
                store<T, W>(to + place.at, 0, vectors[tensor][slot], true);
            } else {
#pragma unroll 1
                for (unsigned i = place.from; i < min(place.to, lanes); i++) {
                    to[place.at + i] = at(tensor, slot * W + i);
                }
            }
        }
    }
};
