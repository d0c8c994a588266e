//! What is done once for each channel of a group: statistics, coefficients, running statistics.
use super::super::super::super::extremes::Limits;
use super::super::super::super::simd::GROUP;
use super::super::{Strip, divided, each, may_round_otherwise, rounded, strip, strip_mut};
use super::ForwardStrip;
use crate::Real;
use std::ops::Range;

/// How a group moves running statistics: means and variances, of sums of squares over `count`.
#[derive(Debug, Clone, Copy)]
pub enum Update {
    /// By a weight for the mean and one for the variance.
    Blend {
        weights: (f64, f64),
        count: f64,
    },
    /// They are sums over groups.
    Add {
        count: f64,
    },
    None,
}

/// What becomes of a strip's statistics.
pub struct Published<'t, A> {
    /// The mean, what rounding left of it, and invstd.
    pub saved: [&'t mut [A]; 3],
    /// Running mean and variance before, and after.
    pub running: ([&'t [f64]; 2], [&'t mut [f64]; 2]),
    pub update: Update,
}

impl<A: Real> Published<'_, A> {
    /// Moves running statistics of some channels of the strip by their means and sums of squares, but those that are
    /// kept.
    pub fn update(
        &mut self,
        here: Range<usize>,
        (means, squares): (&[f64], &[f64]),
        keeps: [bool; 2],
    ) {
        let rules = Rules::new(1, 0.0, 0.0, self.update);
        let (old, new) = &mut self.running;
        for (k, j) in here.enumerate() {
            let by = [means[k], squares[k] / rules.over];
            for which in [0, 1] {
                let moved = rules.moved(which, old[which][j], by[which]);
                new[which][j] = match (keeps[which], rules.is_rounded) {
                    (true, _) => old[which][j],
                    (false, true) => rounded::<A>(moved),
                    (false, false) => moved,
                };
            }
        }
    }
}

/// What a group's statistics are made by.
pub(super) struct Rules {
    count: f64,
    each: f64,
    eps: f64,
    /// Least sum of squares.
    least: f64,
    /// Weights of the running mean and variance, and of the new ones.
    kept: [f64; 2],
    new: [f64; 2],
    /// Whether the new one replaces them.
    replaces: [bool; 2],
    /// What sums of squares are divided by for the running variance.
    over: f64,
    /// Whether running statistics are rounded after every group.
    is_rounded: bool,
}

impl Rules {
    #[inline(always)]
    pub(super) fn new(rows: usize, eps: f64, least_var: f64, update: Update) -> Self {
        let count = rows as f64;
        let (kept, new, over, is_rounded) = match update {
            Update::Blend { weights: (mean, var), count } => {
                ([1.0 - mean, 1.0 - var], [mean, var], count, true)
            }
            Update::Add { count } => ([1.0; 2], [1.0; 2], count, false),
            Update::None => ([1.0; 2], [0.0; 2], 1.0, true),
        };
        let replaces = [is_rounded && new[0] == 1.0, is_rounded && new[1] == 1.0];
        let (each, least) = (1.0 / count, count * least_var);
        Self { count, each, eps, least, kept, new, replaces, over, is_rounded }
    }
    /// A running mean (0) or variance (1) that a group has moved.
    #[inline(always)]
    fn moved(&self, which: usize, old: f64, new: f64) -> f64 {
        let old = if self.replaces[which] { 0.0 } else { old };
        self.kept[which] * old + self.new[which] * new
    }
}

/// What has been found while statistics were made.
pub(super) struct Done {
    /// Some number is not to be trusted.
    pub(super) is_odd: bool,
    /// Some number may have another last digit.
    pub(super) is_doubtful: bool,
}

impl<A: Real> ForwardStrip<A> {
    /// All that is done once for a channel. Fast: a root and a division in f64 take most of the time of groups of few
    /// rows. Those in f32 and a step of Newton's take a third of it and leave an error of less than 2^-44; where that
    /// may change what is rounded to f32, it says so.
    #[inline(always)]
    pub(super) fn finish<const G: usize, const FAST: bool, const EXACT: bool>(
        &mut self,
        of: &Rules,
        first: &Strip<A, G>,
        [weight, bias]: [&[A]; 2],
        to: &mut Published<'_, A>,
    ) -> Done {
        let [mean, rest, invstd] = &mut to.saved;
        let to_mean: &mut Strip<A, G> = strip_mut(mean);
        let to_rest: &mut Strip<A, G> = strip_mut(rest);
        let to_invstd: &mut Strip<A, G> = strip_mut(invstd);
        let ([old_mean, old_var], [new_mean, new_var]) = &mut to.running;
        let (old_mean, old_var): (&Strip<f64, G>, &Strip<f64, G>) =
            (strip(old_mean), strip(old_var));
        let new_mean: &mut Strip<f64, G> = strip_mut(new_mean);
        let new_var: &mut Strip<f64, G> = strip_mut(new_var);
        let (weight, bias): (&Strip<A, G>, &Strip<A, G>) = (strip(weight), strip(bias));
        let (limits, by, by_over) = (Limits::new(), (of.count, of.each), (of.over, 1.0 / of.over));
        let (mut is_odd, mut is_doubtful) = (false, false);
        // Step by step for a group of channels: a processor finds no independent work beyond a few dozen instructions.
        for g in 0..G {
            let (sum, base) = (
                each(
                    #[inline(always)]
                    |l| self.sums[g][l].to_f64(),
                ),
                each(
                    #[inline(always)]
                    |l| first[g][l].to_f64(),
                ),
            );
            let pivot = each(
                #[inline(always)]
                |l| self.pivot[g][l].to_f64(),
            );
            let own = each(
                #[inline(always)]
                |l| self.products[g][l].to_f64() - sum[l] * sum[l] * of.each,
            );
            let offset = each(
                #[inline(always)]
                |l| 0.0 + ((pivot[l] - base[l]) + sum[l] * of.each),
            );
            let square = each(
                #[inline(always)]
                |l| if own[l] < 0.0 { 0.0 } else { own[l] },
            );
            let exact_mean = each(
                #[inline(always)]
                |l| base[l] + offset[l],
            );
            let mean = each(
                #[inline(always)]
                |l| A::from_f64(exact_mean[l]),
            );
            let rest = each(
                #[inline(always)]
                |l| A::from_f64((base[l] - mean[l].to_f64()) + offset[l]),
            );

            let var = each(
                #[inline(always)]
                |l| divided::<A, EXACT>(square[l], by) + of.eps,
            );
            let inverse = if FAST {
                each(
                    #[inline(always)]
                    |l| inverse_root(var[l]),
                )
            } else {
                each(
                    #[inline(always)]
                    |l| 1.0 / var[l].sqrt(),
                )
            };
            let invstd = each(
                #[inline(always)]
                |l| A::from_f64(inverse[l]),
            );
            let scale = each(
                #[inline(always)]
                |l| weight[g][l] * invstd[l],
            );
            let less = each(
                #[inline(always)]
                |l| bias[g][l] - rest[l] * scale[l],
            );
            let less = each(
                #[inline(always)]
                |l| if rest[l] == A::default() { bias[g][l] } else { less[l] },
            );
            for l in 0..GROUP {
                is_odd |= !limits.include(mean[l], invstd[l], (weight[g][l], scale[l]));
            }
            if FAST {
                for inverse in &inverse {
                    is_doubtful |= may_round_otherwise(*inverse, DOUBTFUL);
                }
            }
            if of.least > 0.0 {
                for square in &square {
                    is_odd |= *square < of.least;
                }
            }
            let moved_mean = each(
                #[inline(always)]
                |l| of.moved(0, old_mean[g][l], exact_mean[l]),
            );
            let new = each(
                #[inline(always)]
                |l| divided::<A, false>(square[l], by_over),
            );
            let moved_var = each(
                #[inline(always)]
                |l| of.moved(1, old_var[g][l], new[l]),
            );

            (to_mean[g], to_rest[g], to_invstd[g]) = (mean, rest, invstd);
            (self.means[g], self.scales[g], self.biases[g]) = (mean, scale, less);
            (new_mean[g], new_var[g]) = match of.is_rounded {
                true => (
                    each(
                        #[inline(always)]
                        |l| rounded::<A>(moved_mean[l]),
                    ),
                    each(
                        #[inline(always)]
                        |l| rounded::<A>(moved_var[l]),
                    ),
                ),
                false => (moved_mean, moved_var),
            };
        }
        Done { is_odd, is_doubtful }
    }
}

/// `1 / sqrt(var)` by a root and a division in f32 and a step of Newton's; but for its last [`DOUBTFUL`] digits what it
/// is in f64, where `var` and it are in the range of f32.
#[inline(always)]
fn inverse_root(var: f64) -> f64 {
    let guess = f64::from(1.0 / (var as f32).sqrt());
    guess * (1.5 - 0.5 * var * guess * guess)
}

/// An error of less than 2^-44.
const DOUBTFUL: u32 = 10;

#[cfg(test)]
mod tests {
    use super::*;

    /// Of variances of all sizes: in f32 it is what it is in f64, or known to be doubtful, which is rare.
    #[test]
    fn a_root_by_newton_is_rounded_as_it_should_be() {
        let (mut bits, mut doubtful) = (1_u64, 0);
        const COUNT: usize = 400_000;
        for _ in 0..COUNT {
            bits = bits
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let exponent = 2_f64.powi((bits >> 57) as i32 - 64);
            let var = (1.0 + (bits >> 12) as f64 / (1_u64 << 52) as f64) * exponent;
            let (fast, right) = (inverse_root(var), 1.0 / var.sqrt());
            assert!((fast / right - 1.0).abs() < 2_f64.powi(-44), "{var:e}");
            match may_round_otherwise(fast, DOUBTFUL) {
                true => doubtful += 1,
                false => assert_eq!(fast as f32, right as f32, "{var:e}"),
            }
        }
        assert!(doubtful < COUNT / 10_000, "{doubtful} of {COUNT}");
    }

    #[test]
    fn numbers_near_the_middle_may_be_rounded_otherwise() {
        for middle in [1.0 + 2_f64.powi(-24), 3.0e-5_f32 as f64 * (1.0 + 2_f64.powi(-25))] {
            let middle = f64::from_bits(middle.to_bits() & !0x1fff_ffff | 1 << 28);
            let near = |by: i64| f64::from_bits(middle.to_bits().wrapping_add_signed(by));
            for by in [0, 1, -1, 1000, -1000] {
                assert!(may_round_otherwise(near(by), DOUBTFUL), "{middle} {by}");
            }
            for by in [1030, -1030, 1 << 20, -(1 << 20)] {
                assert!(!may_round_otherwise(near(by), DOUBTFUL), "{middle} {by}");
            }
        }
    }
}
