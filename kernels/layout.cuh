// Where the fields of what the library passes by value lie. The library's test in src/engine/cuda/arguments.rs reads
// these lines: a field that one side moves fails on either.
#pragma once
#include "resident.cuh"
#include <cstddef>

#define FIELD(type, field, place) static_assert(offsetof(type, field) == place, "the library has it elsewhere")
#define SIZE(type, bytes) static_assert(sizeof(type) == bytes, "the library has it in another size")

SIZE(Geometry, 64);
FIELD(Geometry, vectors, 0);
FIELD(Geometry, tile, 8);
FIELD(Geometry, row, 16);
FIELD(Geometry, width, 24);
FIELD(Geometry, inner, 32);
FIELD(Geometry, slices, 40);
FIELD(Geometry, slice_channels, 44);
FIELD(Geometry, channels, 48);
FIELD(Geometry, threads, 52);
FIELD(Geometry, aligned, 56);
FIELD(Geometry, positions, 60);
SIZE(Channels<float>, 40);
FIELD(Channels<float>, mean, 0);
FIELD(Channels<float>, mean_rest, 8);
FIELD(Channels<float>, invstd, 16);
FIELD(Channels<float>, weight, 24);
FIELD(Channels<float>, bias, 32);
SIZE(Given<float>, 80);
FIELD(Given<float>, eps, 0);
FIELD(Given<float>, mean, 8);
FIELD(Given<float>, var, 16);
FIELD(Given<float>, record, 24);
FIELD(Given<float>, saved_mean, 32);
FIELD(Given<float>, saved_mean_rest, 40);
FIELD(Given<float>, saved_invstd, 48);
FIELD(Given<float>, saved_weight, 56);
FIELD(Given<float>, saved_bias, 64);
FIELD(Given<float>, nonfinite, 72);
SIZE(Merge, 48);
FIELD(Merge, count, 0);
FIELD(Merge, tile_count, 8);
FIELD(Merge, lie, 16);
FIELD(Merge, tiles, 40);
FIELD(Merge, lanes, 44);
SIZE(Lie, 24);
FIELD(Lie, channels, 0);
FIELD(Lie, inner, 8);
FIELD(Lie, together, 16);
FIELD(Lie, positions, 20);
SIZE(Running<float>, 48);
FIELD(Running<float>, factor, 0);
FIELD(Running<float>, var_factor, 8);
FIELD(Running<float>, mean, 16);
FIELD(Running<float>, var, 24);
FIELD(Running<float>, skipped, 32);
FIELD(Running<float>, rules, 40);
FIELD(Running<float>, reserved, 44);
SIZE(Outputs<float>, 128);
FIELD(Outputs<float>, eps, 0);
FIELD(Outputs<float>, running, 8);
FIELD(Outputs<float>, mean, 56);
FIELD(Outputs<float>, mean_rest, 64);
FIELD(Outputs<float>, invstd, 72);
FIELD(Outputs<float>, record, 80);
FIELD(Outputs<float>, nonfinite, 88);
FIELD(Outputs<float>, weight, 96);
FIELD(Outputs<float>, bias, 104);
FIELD(Outputs<float>, saved_weight, 112);
FIELD(Outputs<float>, saved_bias, 120);
SIZE(Gradients<float>, 48);
FIELD(Gradients<float>, total_sums, 0);
FIELD(Gradients<float>, grad_weight, 8);
FIELD(Gradients<float>, grad_bias, 16);
FIELD(Gradients<float>, sums, 24);
FIELD(Gradients<float>, coefs, 32);
FIELD(Gradients<float>, nonfinite, 40);
SIZE(Group, 32);
FIELD(Group, blocks, 0);
FIELD(Group, kept, 4);
FIELD(Group, early, 8);
FIELD(Group, late, 12);
FIELD(Group, partials, 16);
FIELD(Group, words, 24);
SIZE(AnyActivation<float>, 8);
FIELD(AnyActivation<float>, activation, 0);
FIELD(AnyActivation<float>, slope, 4);
SIZE(AnyActivation<double>, 16);
FIELD(AnyActivation<double>, activation, 0);
FIELD(AnyActivation<double>, slope, 8);
