//! The pseudo-random numbers of inputs.

/// Splitmix64: small, and the same values everywhere.
pub struct Random(pub u64);

impl Random {
    pub fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
    /// Mean 0, variance 1, never beyond 3.5: a sum of four uniform values.
    pub fn normal(&mut self) -> f64 {
        3f64.sqrt() * ((0..4).map(|_| self.uniform()).sum::<f64>() - 2.0)
    }
}
