// Which vectors of a tensor a thread takes, and how what its lanes sum becomes one part of each channel. See README.md.
#pragma once
#include "element.cuh"

constexpr unsigned THREADS = 256;
/// Two blocks of that many threads fit a multiprocessor.
#define KERNEL extern "C" __global__ void __launch_bounds__(256, 2)
/// Elements of a row of a slice that has several channels, at most.
template <class A> constexpr unsigned COLUMNS = 2048 / sizeof(A);

struct Geometry {
    u64 vectors, tile, row, width, inner;
    unsigned slices, slice_channels, channels, threads, aligned;
    /// How often a row of a slice of several channels has them, one after the other: more than 1 where rows are dealt
    /// out to groups and the channels are not the axis behind them.
    unsigned positions;
};
/// Vectors of a row of a slice that has its channels once.
__device__ inline unsigned columns_of(const Geometry &g) { return unsigned(g.width) / anew(g.positions); }

/// Where the values of a channel are: `together` channels lie side by side, `positions` times, before the next so many.
struct Lie {
    u64 channels, inner;
    unsigned together, positions;

    __device__ static Lie of(const Geometry &g) {
        const bool runs = g.slice_channels == 1;
        return {g.channels, g.inner, g.slice_channels, runs ? 1 : g.positions};
    }
    /// The `n`th value of a channel.
    __device__ u64 at(u64 channel, u64 n) const {
        const u64 outer = n / inner, row = outer / positions, position = outer % positions;
        const u64 before = channel / together * together;
        return ((row * channels + before) * positions + position * together + (channel - before)) * inner + n % inner;
    }
};

/// `threadIdx.x`, of which the compiler forgets what it has computed: a loop around does not keep that in registers.
__device__ inline unsigned thread_anew() {
    unsigned thread = threadIdx.x;
    asm volatile("" : "+r"(thread));
    return thread;
}

/// The vectors of a thread, one after the other. `Index` has room for the number of vectors of a tensor.
template <class Index> struct Walk {
    unsigned slice, tile;
    /// The vector's place in the tensor, and in its row of the slice.
    Index at, v;
    /// How many there are.
    unsigned count;
    Index step_at, step_v;

    /// Of this tile of this slice, those from the thread's step `first` on.
    __device__ Walk(const Geometry &g, unsigned slice, unsigned tile, unsigned first = 0) : slice(slice), tile(tile) {
        const unsigned thread = thread_anew();
        const u64 n = tile * g.tile + u64(first) * g.threads + thread;
        const u64 end = min((tile + u64(1)) * g.tile, g.vectors);
        const Index width = g.width, row = g.row;
        v = n % g.width;
        at = Index(n / g.width) * row + slice * width + v;
        step_v = g.threads % width;
        step_at = g.threads / width * row + step_v;
        const bool works = thread < g.threads && n < end && slice * width + v < row;
        count = works ? unsigned((end - n + g.threads - 1) / g.threads) : 0;
    }
    /// Of the block's tile. `last_first`: blocks begin with what the pass before read last, which the cache still has.
    static __device__ Walk of_block(const Geometry &g, bool last_first) {
        const unsigned block = last_first ? gridDim.x - 1 - blockIdx.x : blockIdx.x;
        return {g, block % g.slices, block / g.slices};
    }
    __device__ void next(const Geometry &g) {
        const Index width = g.width, row = g.row;
        at += step_at;
        v += step_v;
        if (v >= width) {
            v -= width;
            at += row - width;
        }
    }
    __device__ void previous(const Geometry &g) {
        const Index width = g.width, row = g.row;
        at -= step_at;
        if (v < step_v) {
            v += width;
            at -= row - width;
        }
        v -= step_v;
    }
};

/// Which way a thread goes over its vectors.
struct Forth {
    template <class Any> static __device__ void step(Any &walk, const Geometry &g) { walk.next(g); }
};
struct Back {
    template <class Any> static __device__ void step(Any &walk, const Geometry &g) { walk.previous(g); }
};
struct Nothing {
    template <class... Any> __device__ void operator()(const Any &...) const {}
};
/// Loads all items of a batch by `load(at, true)`.
template <class Load> __device__ auto each(Load load) {
    return [=](const auto &at, auto &items) {
#pragma unroll
        for (unsigned k = 0; k < sizeof(at) / sizeof(at[0]); k++) items[k] = load(at[k], true);
    };
}
/// Goes over `left` vectors from `walk` on, a multiple of `N`, by straight code: no load depends on a condition, and
/// all loads of a batch of `N` are in flight before the first is waited for. `fetch(at, items)` loads what belongs to
/// the vectors of a batch, `use(item, at, true)` is called in their order, `after(N)` after each batch. A walk is a
/// `Walk`, or what has its place and its steps.
template <unsigned N, class Way, class Item, class AnyWalk, class Fetch, class Use, class After>
__device__ __forceinline__ void in_batches(const Geometry &g, AnyWalk &walk, unsigned left, Fetch fetch, Use use,
                                           After after) {
#pragma unroll 1
    for (; left > 0; left -= N) {
        Item items[N];
        decltype(walk.at) at[N];
#pragma unroll
        for (unsigned k = 0; k < N; k++) {
            at[k] = walk.at;
            Way::step(walk, g);
        }
        fetch(at, items);
#pragma unroll
        for (unsigned k = 0; k < N; k++) use(items[k], at[k], true);
        after(N);
    }
}

/// The same of any number of vectors, whose loads are as far ahead of their use, but which are used in a loop: where
/// they do not make up a batch, or what is done with one is too long to stand there several times. Where they are not
/// `aligned`, one at a time. `begin` is called with each batch, and its number, before its first vector is used.
template <unsigned N, class Way, class AnyWalk, class Load, class Use, class Begin, class After>
__device__ __forceinline__ void in_turn(const Geometry &g, AnyWalk &walk, unsigned left, bool aligned, Load load,
                                        Use use, Begin begin, After after) {
    using Item = decltype(load(walk.at, true));
#pragma unroll 1
    for (unsigned here; left > 0; left -= here) {
        here = aligned ? min(N, left) : 1;
        Item items[N];
        items[0] = load(walk.at, aligned);
        auto ahead = walk;
#pragma unroll
        for (unsigned k = 1; k < N; k++) {
            if (k < here) {
                Way::step(ahead, g);
                items[k] = load(ahead.at, true);
            }
        }
        begin(items, here);
#pragma unroll 1
        for (unsigned k = 0; k < here; k++) {
            use(items[0], walk.at, aligned);
            Way::step(walk, g);
#pragma unroll
            for (unsigned k = 1; k < N; k++) items[k - 1] = items[k];
        }
        after(here);
    }
}

/// The channels, within their slice, of the lanes of a thread's vectors: by one division at most.
template <int W> struct Lanes {
    unsigned channel[W];

    template <class Index> __device__ Lanes(const Geometry &g, const Walk<Index> &walk) {
        const bool runs = g.slice_channels == 1;
        // A thread stays in its column.
        const unsigned first = runs ? 0 : thread_anew() % columns_of(g) * W, inner = anew(unsigned(g.inner));
        unsigned c = runs ? 0 : inner == 1 ? first : first / inner, rest = runs ? 0 : first - c * inner;
#pragma unroll
        for (int i = 0; i < W; i++) {
            channel[i] = c;
            const bool ends = !runs && ++rest == inner;
            c += ends;
            rest = ends ? 0 : rest;
        }
    }
};
/// The channel of one of them, which only the loop around knows.
template <int W, class Index> __device__ unsigned channel_of(const Geometry &g, const Walk<Index> &walk, int i) {
    return g.slice_channels == 1 ? 0 : (thread_anew() % columns_of(g) * W + i) / unsigned(g.inner);
}
/// Channels of a slice; the last may have fewer.
__device__ inline unsigned channels_of(const Geometry &g, unsigned slice) {
    return min(g.slice_channels, g.channels - slice * g.slice_channels);
}

/// What some values of a channel come to.
struct Part {
    double count, first, second;
};

/// Sums.
struct Add {
    static __device__ void merge(Part &into, const Part &other) {
        into.first += other.first;
        into.second += other.second;
    }
};
/// Distance of the mean from a value that all parts have in common, and squares about the mean: Chan's formula.
struct Chan {
    static __device__ void merge(Part &into, const Part &other) {
        if (other.count == 0) return;
        const double count = into.count + other.count, share = other.count / count;
        const double delta = other.first - into.first;
        into.first += delta * share;
        into.second += other.second + delta * delta * into.count * share;
        into.count = count;
    }
};

/// Values by channel of a slice, in shared memory.
template <class A> struct Table {
    A *values;
    unsigned stride;

    __device__ A &at(unsigned what, unsigned channel) const { return values[what * stride + channel]; }
    /// Those of a thread's lanes; 0 where it has no vectors.
    template <int W> __device__ void read(unsigned what, const Lanes<W> &lanes, bool has_vectors, A (&to)[W]) const {
#pragma unroll
        for (int i = 0; i < W; i++) to[i] = has_vectors ? at(what, lanes.channel[i]) : A(0);
    }
};

/// Memory of a block; what one step leaves there, the next overwrites.
template <class A> union Shared {
    A table[5][COLUMNS<A>];
    struct {
        Part stage[THREADS];
        double2 columns[COLUMNS<A>];
    } parts;

    __device__ Table<A> values() { return {table[0], COLUMNS<A>}; }
};

__device__ inline unsigned half_above(unsigned n) { return n > 1 ? 1u << (31 - __clz(n - 1)) : 0; }

/// Merges the parts of threads that are `stride` apart, `rows` of them; what comes back counts in row 0.
template <class Rule, class P>
__device__ P fold(P *stage, P own, unsigned row, unsigned rows, unsigned stride) {
    const bool works = row < rows;
    if (works) stage[threadIdx.x] = own;
    __syncthreads();
    for (unsigned d = half_above(rows); d > 0; d /= 2) {
        if (works && row < d && row + d < rows) {
            Rule::merge(own, stage[threadIdx.x + d * stride]);
            stage[threadIdx.x] = own;
        }
        __syncthreads();
    }
    return own;
}

/// Merges what the lanes of all threads have, and writes a part for each channel of the slice.
template <class A, int W, class Rule>
__device__ void reduce(const Geometry &g, const Walk<u64> &walk, Part (&own)[W], double2 *partials, Shared<A> &shared) {
    const unsigned tiles = gridDim.x / g.slices;
    Part *const stage = shared.parts.stage;
    __syncthreads();
    if (g.slice_channels == 1) {
#pragma unroll
        for (int i = 1; i < W; i++) Rule::merge(own[0], own[i]);
        const Part all = fold<Rule>(stage, own[0], threadIdx.x, g.threads, 1);
        if (threadIdx.x == 0) partials[u64(walk.slice) * tiles + walk.tile] = {all.first, all.second};
        return;
    }
    double2 *const columns = shared.parts.columns;
    const unsigned width = columns_of(g), rows = g.threads / width;
#pragma unroll
    for (int i = 0; i < W; i++) {
        const Part column = fold<Rule>(stage, own[i], threadIdx.x / width, rows, width);
        if (threadIdx.x < width) columns[threadIdx.x * W + i] = {column.first, column.second};
    }
    __syncthreads();
    // The columns of a channel, of equal counts: those that `d` has merged so far are 2d apart.
    const unsigned run = g.inner, channels = channels_of(g, walk.slice);
    const double each = double((min((walk.tile + u64(1)) * g.tile, g.vectors) - walk.tile * g.tile) / width);
    for (unsigned d = half_above(run); d > 0; d /= 2) {
        for (unsigned e = threadIdx.x; e < channels * run; e += blockDim.x) {
            const unsigned j = e % run;
            if (j < d && j + d < run) {
                const auto part = [&](unsigned e, unsigned j) {
                    const unsigned merged = (run - j + 2 * d - 1) / (2 * d);
                    return Part{each * merged, columns[e].x, columns[e].y};
                };
                Part into = part(e, j);
                Rule::merge(into, part(e + d, j + d));
                columns[e] = {into.first, into.second};
            }
        }
        __syncthreads();
    }
    for (unsigned c = threadIdx.x; c < channels; c += blockDim.x) {
        const u64 channel = u64(walk.slice) * g.slice_channels + c;
        partials[channel * tiles + walk.tile] = columns[c * run];
    }
}
