//! Exponentials without a call, a branch or a fused multiplication: loops over them become vector
//! code, and give the same bits on every level and machine.

/// What [`f32`] and [`f64`] compute activations with.
pub trait Math: Sized {
    /// `exp(x + rest)` for x from -infinity to 0 and a rest that is below a tenth: within 1.5 units in
    /// the last place, subnormal results too. NaN stays NaN.
    #[doc(hidden)]
    fn exp_sum(x: Self, rest: Self) -> Self;
    /// The number without the lower half of its digits: its square is exact.
    #[doc(hidden)]
    fn upper_half(self) -> Self;
    /// A polynomial in `q = (a - 4) / (a + 4)` for a of 0 and more, which is
    /// `(1 + a / 4) * exp(a^2 / 2) * P(X > a)`, X of the standard normal distribution.
    #[doc(hidden)]
    fn mills(q: Self) -> Self;
    /// From here on, `exp(-a^2 / 2)` is 0.
    #[doc(hidden)]
    const FAR: Self;
}

macro_rules! math {
    ($t:ident, $bits:ident, $signed:ident, $mantissa:expr, $bias:expr, $least:expr, $half:expr,
     $ln_2:expr, $ln_2_rest:expr, $far:expr, $exp:expr, $mills:expr) => {
        impl Math for $t {
            /// Cody and Waite: `x = n * ln(2) + r`, `exp(r)` by Taylor's series.
            #[inline(always)]
            fn exp_sum(x: $t, rest: $t) -> $t {
                // 1.5 times the power of two whose last place is 1: what is added to it is rounded to
                // a whole number, which stands in its lower bits.
                const WHOLE: $t = 1.5 * (1u64 << $mantissa) as $t;
                let x = if x < $least { $least } else { x };
                let shifted = x * std::$t::consts::LOG2_E + WHOLE;
                let n = shifted - WHOLE;
                let r = (x - n * $ln_2) - n * $ln_2_rest + rest;
                let mut sum: $t = $exp[0];
                for coefficient in &$exp[1..] {
                    sum = sum * r + coefficient;
                }
                // By two powers of two, as one may be below the least normal number.
                let n = (shifted.to_bits() as $signed).wrapping_sub(WHOLE.to_bits() as $signed);
                let (half, other) = (n >> 1, n.wrapping_sub(n >> 1));
                let power =
                    |n: $signed| $t::from_bits((n.wrapping_add($bias) as $bits) << $mantissa);
                (sum * r * r + r + 1.0) * power(half) * power(other)
            }
            #[inline(always)]
            fn upper_half(self) -> $t {
                $t::from_bits(self.to_bits() & !((1 << $half) - 1))
            }
            #[inline(always)]
            fn mills(q: $t) -> $t {
                let mut sum: $t = $mills[0];
                for coefficient in &$mills[1..] {
                    sum = sum * q + coefficient;
                }
                sum
            }
            const FAR: $t = $far;
        }
    };
}
// What `exp` begins its numbers with are 1 / k!, of the highest power first; `exp(r) = 1 + r + r^2 * ..`.
math!(
    f32,
    u32,
    i32,
    23,
    127,
    -105.0,
    12,
    355.0 / 512.0,
    -2.121_944_4e-4,
    15.0,
    [1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5f32],
    [
        -4.327_705_8e-7f32,
        -3.933_014e-5,
        3.341_334_7e-5,
        3.909_467_2e-4,
        -8.699_886_4e-4,
        -1.878_057_8e-3,
        1.509_916_2e-2,
        -4.663_168e-2,
        9.678_434_6e-2,
        -1.519_741e-1,
        1.888_212_9e-1,
    ]
);
math!(
    f64,
    u64,
    i64,
    52,
    1023,
    -746.0,
    27,
    6.931_471_803_691_238e-1,
    1.908_214_929_270_587_7e-10,
    39.0,
    [
        1.0 / 6_227_020_800.0,
        1.0 / 479_001_600.0,
        1.0 / 39_916_800.0,
        1.0 / 3_628_800.0,
        1.0 / 362_880.0,
        1.0 / 40_320.0,
        1.0 / 5040.0,
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5f64,
    ],
    [
        8.508_280_771_623_737e-11f64,
        -2.999_445_507_813_274e-11,
        -9.326_612_704_670_926e-10,
        -1.468_406_691_246_797_7e-10,
        5.356_900_960_863_089e-9,
        4.461_231_943_245_354e-9,
        -2.171_661_753_999_473_3e-8,
        -3.994_349_035_559_805e-8,
        6.811_574_237_786_468e-8,
        2.561_962_754_138_193_4e-7,
        -1.574_591_834_623_092_2e-7,
        -1.480_402_761_480_994_4e-6,
        1.791_646_910_298_780_2e-7,
        8.786_277_975_709_413e-6,
        -4.770_615_878_536_427e-7,
        -5.777_375_434_069_356_5e-5,
        3.333_607_735_295_814e-5,
        4.077_046_168_524_771_4e-4,
        -8.699_230_917_619_934e-4,
        -1.885_047_241_846_578e-3,
        1.509_914_372_272_946_9e-2,
        -4.663_046_448_990_915e-2,
        9.678_435_018_555_373e-2,
        -1.519_741_604_929_730_8e-1,
        1.888_212_826_039_378_8e-1,
    ]
);

#[cfg(test)]
#[path = "math_tests.rs"]
mod tests;
