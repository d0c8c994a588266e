//! Activations of a block of values that are in the accumulating type, and products with their
//! derivatives: the definition stands in `epilogue.rs`.
use super::super::simd::{GROUP, ROOM, Simd};
use crate::engine::Activation;
use crate::{Element, Real};
use std::hint::select_unpredictable;
use std::sync::atomic::{Ordering, compiler_fence};

/// Memory for a block of values, in whole groups.
pub type Block<A> = [A; ROOM];

/// The values of the accumulating type from which on a value counts as one of the kinks, or as beyond
/// it: where it rounds to that in the tensor's type.
#[derive(Debug, Clone, Copy)]
pub struct Kinks<A> {
    /// The largest that rounds to 0.
    pub zero: A,
    /// The largest that rounds to -3.
    pub minus_three: A,
    /// The least that rounds to 3.
    pub three: A,
    /// The least that rounds to 6.
    pub six: A,
}

impl<A: Real> Kinks<A> {
    pub fn of<E: Element<Acc = A>>() -> Self {
        let (half, three) = (E::HALF_STEP_AT_THREE, A::from_f64(3.0));
        Self {
            zero: E::ROUNDS_TO_ZERO,
            minus_three: half - three,
            three: three - half,
            six: three + three - half - half,
        }
    }
}

/// Replaces the first `n` values by their activations. A zero keeps its sign.
pub fn values<A: Real>(simd: Simd, activation: Activation, z: &mut Block<A>, n: usize) {
    let (zero, one, six) = (A::default(), A::from_f64(1.0), A::from_f64(6.0));
    simd.vectorize(
        #[inline(always)]
        |_| match activation {
            Activation::Identity => (),
            Activation::Relu => each(
                z,
                n,
                #[inline(always)]
                |z| if z < zero { zero } else { z },
            ),
            Activation::LeakyRelu { negative_slope } => {
                let slope = A::from_f64(negative_slope);
                each(
                    z,
                    n,
                    #[inline(always)]
                    move |z| if z > zero { z } else { slope * z },
                );
            }
            Activation::Relu6 => each(
                z,
                n,
                #[inline(always)]
                |z| clamp(z, zero, six),
            ),
            Activation::Silu => each(
                z,
                n,
                #[inline(always)]
                |z| z * sigmoid(z).0,
            ),
            Activation::HardSwish => {
                let (three, sixth) = (A::from_f64(3.0), one / six);
                each(
                    z,
                    n,
                    #[inline(always)]
                    move |z| z * (clamp(z + three, zero, six) * sixth),
                );
            }
            Activation::Gelu => each(
                z,
                n,
                #[inline(always)]
                |z| z * normal(z).0,
            ),
        },
    );
}

/// Multiplies `n` gradients by the derivatives of the activation at `z`. A derivative of 0 stops what
/// is not finite, too.
pub fn differentiate<A: Real>(
    simd: Simd,
    activation: Activation,
    kinks: Kinks<A>,
    z: &Block<A>,
    g: &mut Block<A>,
    n: usize,
) {
    let (zero, one) = (A::default(), A::from_f64(1.0));
    simd.vectorize(
        #[inline(always)]
        |_| match activation {
            Activation::Identity => (),
            Activation::Relu | Activation::LeakyRelu { .. } | Activation::Relu6 => {
                let interval = Interval::of(activation, kinks);
                let slope = A::from_f64(activation.negative_slope());
                multiply(
                    z,
                    g,
                    n,
                    #[inline(always)]
                    move |z| interval.choose(z, one, slope),
                );
            }
            Activation::Silu => multiply(
                z,
                g,
                n,
                #[inline(always)]
                |z| {
                    let (s, rest) = sigmoid(z);
                    s * (one + z * rest)
                },
            ),
            Activation::HardSwish => {
                let (third, half) = (A::from_f64(1.0 / 3.0), A::from_f64(0.5));
                multiply(
                    z,
                    g,
                    n,
                    #[inline(always)]
                    move |z| {
                        let below = select_unpredictable(z < kinks.three, z * third + half, one);
                        select_unpredictable(z <= kinks.minus_three, zero, below)
                    },
                );
            }
            Activation::Gelu => {
                let density = A::from_f64(0.398_942_280_401_432_7); // 1 / sqrt(2 pi)
                multiply(
                    z,
                    g,
                    n,
                    #[inline(always)]
                    move |z| {
                        let (p, e) = normal(z);
                        p + z * e * density
                    },
                );
            }
        },
    );
}

/// The first derivatives of an activation that is curved at `n` values z, and the second ones, which make the
/// same of what they have in common.
pub fn derivatives<A: Real>(
    simd: Simd,
    activation: Activation,
    kinks: Kinks<A>,
    z: &Block<A>,
    (first, second): (&mut Block<A>, &mut Block<A>),
    n: usize,
) {
    let (zero, one, two) = (A::default(), A::from_f64(1.0), A::from_f64(2.0));
    simd.vectorize(
        #[inline(always)]
        |_| match activation {
            Activation::Silu => both(
                z,
                (first, second),
                n,
                #[inline(always)]
                |z| {
                    let (s, rest) = sigmoid(z);
                    (s * (one + z * rest), s * rest * (two + z * (rest - s)))
                },
            ),
            Activation::HardSwish => {
                let (third, half) = (A::from_f64(1.0 / 3.0), A::from_f64(0.5));
                both(
                    z,
                    (first, second),
                    n,
                    #[inline(always)]
                    move |z| {
                        let (is_below, is_above) = (z <= kinks.minus_three, z >= kinks.three);
                        let first = select_unpredictable(z < kinks.three, z * third + half, one);
                        let second = select_unpredictable(is_below | is_above, zero, third);
                        (select_unpredictable(is_below, zero, first), second)
                    },
                );
            }
            Activation::Gelu => {
                let density = A::from_f64(0.398_942_280_401_432_7); // 1 / sqrt(2 pi)
                both(
                    z,
                    (first, second),
                    n,
                    #[inline(always)]
                    move |z| {
                        let (p, e) = normal(z);
                        let near = clamp(z, zero - A::FAR, A::FAR); // whose square is in range
                        (p + z * e * density, (two - near * near) * e * density)
                    },
                );
            }
            _ => (),
        },
    );
}

/// Replaces `n` values by 1 where the derivative is 1, by 0 where it is not: of an activation that has
/// two derivatives.
pub fn ones<A: Real>(
    simd: Simd,
    activation: Activation,
    kinks: Kinks<A>,
    z: &mut Block<A>,
    n: usize,
) {
    let (zero, one) = (A::default(), A::from_f64(1.0));
    let interval = Interval::of(activation, kinks);
    simd.vectorize(
        #[inline(always)]
        |_| {
            each(
                z,
                n,
                #[inline(always)]
                |z| interval.choose(z, one, zero),
            );
        },
    );
}

/// The numbers where the derivative is 1: those above the first bound and below the second one, and NaN or
/// not.
#[derive(Clone, Copy)]
struct Interval<A> {
    above: A,
    /// NaN where there is no such bound.
    below: A,
    has_nan: bool,
}

impl<A: Real> Interval<A> {
    fn of(activation: Activation, kinks: Kinks<A>) -> Self {
        let none = A::from_f64(f64::NAN);
        let below = if activation == Activation::Relu6 { kinks.six } else { none };
        let has_nan = !matches!(activation, Activation::LeakyRelu { .. });
        Self { above: kinks.zero, below, has_nan }
    }
    /// The first value for what is within, the second one for what is not.
    #[inline(always)]
    fn choose(self, z: A, within: A, outside: A) -> A {
        let of_nan = if self.has_nan { within } else { outside };
        let value = select_unpredictable(z > self.above, within, of_nan);
        let value = select_unpredictable(z <= self.above, outside, value);
        select_unpredictable(z >= self.below, outside, value)
    }
}

/// NaN stays NaN.
#[inline(always)]
fn clamp<A: Real>(v: A, least: A, most: A) -> A {
    let v = if v < least { least } else { v };
    if v > most { most } else { v }
}

/// `s = 1 / (1 + exp(-z))` and `1 - s`, both with all their digits.
#[inline(always)]
fn sigmoid<A: Real>(z: A) -> (A, A) {
    let (zero, one) = (A::default(), A::from_f64(1.0));
    let is_negative = z < zero;
    let e = A::exp_sum(if is_negative { z } else { zero - z }, zero);
    let large = one / (one + e);
    let small = e * large;
    if is_negative { (small, large) } else { (large, small) }
}

/// `P(X <= z)` of the standard normal distribution, and `exp(-z^2 / 2)`.
#[inline(always)]
fn normal<A: Real>(z: A) -> (A, A) {
    let (zero, half, one, four) =
        (A::default(), A::from_f64(0.5), A::from_f64(1.0), A::from_f64(4.0));
    let is_negative = z < zero;
    let a = if is_negative { zero - z } else { z };
    let a = if a > A::FAR { A::FAR } else { a };
    // The square in two parts: the error of one would be multiplied by it.
    let upper = a.upper_half();
    let e = A::exp_sum(zero - upper * upper * half, zero - (a - upper) * (a + upper) * half);
    let t = four / (a + four);
    let beyond = e * t * A::mills(one - (t + t));
    (if is_negative { beyond } else { one - beyond }, e)
}

/// Replaces values, a group at a time.
#[inline(always)]
fn each<A: Real>(z: &mut Block<A>, n: usize, f: impl Fn(A) -> A) {
    for group in &mut z.as_chunks_mut::<GROUP>().0[..n.div_ceil(GROUP)] {
        let mut values = *group;
        for value in &mut values {
            *value = f(*value);
        }
        *group = values;
        // Several groups at a time would take more registers than there are.
        compiler_fence(Ordering::SeqCst);
    }
}

/// Multiplies gradients by derivatives, a group at a time. Choices are no branches here: with one, a
/// compiler takes a lane of each group apart.
#[inline(always)]
fn multiply<A: Real>(z: &Block<A>, g: &mut Block<A>, n: usize, derivative: impl Fn(A) -> A) {
    let groups = n.div_ceil(GROUP);
    let z = &z.as_chunks::<GROUP>().0[..groups];
    for (g, z) in g.as_chunks_mut::<GROUP>().0[..groups].iter_mut().zip(z) {
        let (z, mut values) = (*z, *g);
        for l in 0..GROUP {
            let d = derivative(z[l]);
            values[l] = select_unpredictable(d == A::default(), d, values[l] * d);
        }
        *g = values;
        compiler_fence(Ordering::SeqCst);
    }
}

/// Two values of each, a group at a time.
#[inline(always)]
fn both<A: Real>(
    z: &Block<A>,
    (first, second): (&mut Block<A>, &mut Block<A>),
    n: usize,
    f: impl Fn(A) -> (A, A),
) {
    let groups = n.div_ceil(GROUP);
    let z = &z.as_chunks::<GROUP>().0[..groups];
    let first = &mut first.as_chunks_mut::<GROUP>().0[..groups];
    let second = &mut second.as_chunks_mut::<GROUP>().0[..groups];
    for ((z, first), second) in z.iter().zip(first).zip(second) {
        let (z, zeros) = (*z, [A::default(); GROUP]);
        let (mut a, mut b) = (zeros, zeros);
        for l in 0..GROUP {
            (a[l], b[l]) = f(z[l]);
        }
        (*first, *second) = (a, b);
        compiler_fence(Ordering::SeqCst);
    }
}
