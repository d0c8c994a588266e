// Where the bytes of a mask are that says which values count, and a thread's way over its vectors with them.
#pragma once
#include "pairs.cuh"

/// A mask: a byte for every place, 0 where values do not count.
struct Places {
    const unsigned char *bytes;
    /// Elements that lie together and have one place. 0: every position has one, which all its channels share.
    u64 each;
    /// What a step of all threads adds to a place, and to what is behind it of its elements; what a new row adds.
    u64 step, step_rest, wrap;
};
/// A vector: where it is, its first element's place, and how many elements that, of a position's channels the row,
/// has before it.
struct Spot {
    u64 at, place, rest;
};
/// How the places of a vector's lanes lie.
enum Form : unsigned {
    /// They are one.
    ONE_PLACE,
    /// Neighbours that are read at once.
    ROW,
    APART,
};

/// The bytes of the lanes of a vector.
template <int W> struct Kept {
    static constexpr int WORDS = (W + 3) / 4;
    unsigned word[WORDS];

    __device__ bool of(int i) const { return (word[i / 4] & 0xffu << i % 4 * 8) != 0; }
    /// Those that lie together, at a multiple of their number.
    __device__ void read(const unsigned char *from) {
        if constexpr (W == 8) {
            const uint2 both = *reinterpret_cast<const uint2 *>(from);
            word[0] = both.x, word[1] = both.y;
        } else if constexpr (W == 4) {
            word[0] = *reinterpret_cast<const unsigned *>(from);
        } else if constexpr (W == 2) {
            word[0] = *reinterpret_cast<const unsigned short *>(from);
        } else {
            word[0] = *from;
        }
    }
};

/// The vectors of a thread, with their places.
template <int W, class Index = u64> struct PlaceWalk : Walk<Index> {
    using Base = Walk<Index>;
    using Base::v;
    const Places &places;
    Spot at;
    Form form;

    __device__ PlaceWalk(const Geometry &g, const Places &places, const Base &of) : Base(of), places(places) {
        const u64 from = Base::at;
        at = {from, 0, 0};
        form = ONE_PLACE;
        const bool runs = g.slice_channels == 1;
        if (places.each > 0) {
            at.place = from * W / places.each;
            at.rest = from * W - at.place * places.each;
        } else if (runs) {
            at.place = (from / g.row * g.width + u64(v)) * W;
        } else {
            at.rest = unsigned(v * W) % unsigned(g.inner);
            at.place = from / g.row * g.inner + at.rest;
        }
        const bool one = places.each > 0 ? places.each % W == 0 : g.inner == 1;
        const bool together = places.each > 0 ? places.each == 1 : runs;
        const bool aligned = u64(places.bytes) % W == 0;
        form = W == 1 || one ? ONE_PLACE : together && aligned ? ROW : APART;
    }
    __device__ void next(const Geometry &g) {
        const Index before = v;
        Base::next(g);
        at.at = Base::at;
        at.place += places.step;
        if (places.each > 0) {
            at.rest += places.step_rest;
            const bool ends = at.rest >= places.each;
            at.place += ends;
            at.rest -= ends ? places.each : 0;
        }
        if (v < before) at.place += places.wrap;
    }
    __device__ void previous(const Geometry &g) {
        const Index before = v;
        Base::previous(g);
        at.at = Base::at;
        at.place -= places.step;
        if (places.each > 0) {
            const bool begins = at.rest < places.step_rest;
            at.place -= begins;
            at.rest += (begins ? places.each : 0) - places.step_rest;
        }
        if (v > before) at.place -= places.wrap;
    }
    /// Those of a vector's lanes, whatever their form, the first of which has this place and this many elements of it
    /// before.
    __device__ Kept<W> apart(const Geometry &g, const unsigned char *from, u64 rest) const {
        // From one place to the next, and over the end of its elements or of the row.
        const u64 period = places.each > 0 ? places.each : g.inner;
        const u64 near = places.each > 0 ? 0 : 1, over = places.each > 0 ? 1 : 1 - period;
        const unsigned again = unsigned(min(period, u64(W)));
        unsigned left = unsigned(min(period - rest, u64(W)));
        unsigned char bytes[W];
#pragma unroll
        for (int i = 0; i < W; i++) {
            bytes[i] = *from;
            const bool ends = --left == 0;
            from += ends ? over : near;
            left = ends ? again : left;
        }
        Kept<W> kept = {};
#pragma unroll
        for (int i = 0; i < W; i++) kept.word[i / 4] |= unsigned(bytes[i]) << i % 4 * 8;
        return kept;
    }
    /// The bytes of the first `n` vectors of a batch, of the others 0: what form they have is asked once for all.
    template <unsigned N> __device__ void look(const Geometry &g, const Spot (&at)[N], unsigned n, Kept<W> (&kept)[N]) {
        const unsigned char *from[N];
        // Of vectors that there are none of, those of the first one are read.
#pragma unroll
        for (unsigned k = 0; k < N; k++) from[k] = places.bytes + (k < n ? at[k].place : at[0].place);
        if (form == ONE_PLACE) {
            unsigned char one[N];
#pragma unroll
            for (unsigned k = 0; k < N; k++) one[k] = *from[k];
#pragma unroll
            for (unsigned k = 0; k < N; k++) {
#pragma unroll
                for (int i = 0; i < Kept<W>::WORDS; i++) kept[k].word[i] = one[k] ? ~0u : 0;
            }
        } else if (form == ROW) {
#pragma unroll
            for (unsigned k = 0; k < N; k++) kept[k].read(from[k]);
        } else {
            u64 rest[N];
#pragma unroll
            for (unsigned k = 0; k < N; k++) rest[k] = k < n ? at[k].rest : at[0].rest, kept[k] = {};
#pragma unroll
            for (unsigned k = 0; k < N; k++) kept[k] = apart(g, from[k], rest[k]);
        }
#pragma unroll
        for (unsigned k = 0; k < N; k++) {
#pragma unroll
            for (int i = 0; i < Kept<W>::WORDS; i++) kept[k].word[i] = k < n ? kept[k].word[i] : 0;
        }
    }
};

/// Loads the first `n` vectors of a batch.
template <class T, int W, unsigned N>
__device__ __forceinline__ void load_some(const T *from, const Spot (&at)[N], unsigned n, bool aligned, bool last,
                                          Vector<T, W> (&to)[N]) {
    if (aligned) {
#pragma unroll
        for (unsigned k = 0; k < N; k++) {
            if (k < n) to[k] = last ? load_last<T, W>(from, at[k].at, true) : load<T, W>(from, at[k].at, true);
        }
    } else {
#pragma unroll
        for (unsigned k = 0; k < N; k++) {
            if (k < n) to[k] = load<T, W>(from, at[k].at, false);
        }
    }
}
/// Goes over `left` of a thread's vectors, `N` at a time, and what is left of them. `use(at, n)` is called with where
/// they are.
template <unsigned N, class Way, class AnyWalk, class Use>
__device__ __forceinline__ void by_some(const Geometry &g, AnyWalk &walk, unsigned left, Use use) {
#pragma unroll 1
    for (unsigned n; left > 0; left -= n) {
        n = min(N, left);
        Spot at[N];
#pragma unroll
        for (unsigned k = 0; k < N; k++) {
            at[k] = walk.at;
            Way::step(walk, g);
        }
        use(at, n);
    }
}
