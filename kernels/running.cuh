// Running statistics: what a batch does to those of a channel.
#pragma once
#include "extremes.cuh"

/// Running statistics, and the rules by which a batch moves them: bits of `rules`.
template <class A> struct Running {
    double factor, var_factor;
    A *mean, *var;
    /// Per channel, or null: updates that were left out since the batch was not finite.
    double *skipped;
    unsigned rules, reserved;

    /// The variance of the batch is over its number of values, not one less.
    static constexpr unsigned BIASED = 1;
    /// A channel whose mean or variance is not finite leaves its statistics alone.
    static constexpr unsigned SKIP_NONFINITE = 2;
    /// A single value per channel leaves the running variance alone.
    static constexpr unsigned KEEP_VAR_OF_ONE = 4;
    /// A batch without values has a mean and a variance of NaN.
    static constexpr unsigned NAN_OF_NONE = 8;
    /// The factors are one over the number of batches, which those that a channel has skipped are not among.
    static constexpr unsigned AVERAGES = 16;

    __device__ bool has(unsigned rule) const { return (rules & rule) != 0; }
    /// The weight of the new value in a channel.
    __device__ double weight(double of_all, unsigned c) const {
        const double left_out = has(AVERAGES) && skipped ? skipped[c] : 0;
        return left_out > 0 && of_all > 0 ? 1 / fmax(1.0, 1 / anew(of_all) - left_out) : of_all;
    }
    /// A batch of `count` values: `squares` are those of their distances from `mean`, times `scale` twice.
    __device__ void update(unsigned c, double count, double batch_mean, double squares, double scale) const {
        if (!mean || (count == 0 && !has(NAN_OF_NONE))) return;
        double batch_var = squares / (has(BIASED) || count == 1 ? count : count - 1) / scale / scale;
        if (count == 0) batch_mean = batch_var = not_a_number();
        take(c, batch_mean, batch_var, count == 1 && has(KEEP_VAR_OF_ONE));
    }
    /// A batch of this mean and variance, or of the mean alone.
    __device__ void take(unsigned c, double batch_mean, double batch_var, bool keeps_var) const {
        if (has(SKIP_NONFINITE) && !(isfinite(A(batch_mean)) && isfinite(A(batch_var)))) {
            if (skipped) skipped[c] += 1;
            return;
        }
        blend(mean + c, weight(factor, c), batch_mean);
        if (!keeps_var) blend(var + c, weight(var_factor, c), batch_var);
    }

  private:
    static __device__ double not_a_number() { return __longlong_as_double(0x7ff8000000000000LL); }
    /// `r <- (1 - factor) * r + factor * batch`; a factor of 1 replaces what is not finite, too.
    static __device__ void blend(A *running, double factor, double batch) {
        *running = A(factor == 1 ? batch : (1 - factor) * *running + factor * batch);
    }
};
