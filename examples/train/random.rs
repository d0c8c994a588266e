//! A small generator of random numbers: the same seed gives the same numbers in every version of
//! this example, which no library promises.

/// SplitMix64 (Steele, Lea and Flood, 2014).
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// `purpose` keeps apart what one seed is used for: weights, one shuffle and the next.
    pub fn new(seed: u64, purpose: u64) -> Self {
        let mut random = Self(seed);
        random.0 = random.next_u64() ^ purpose;
        random.0 = random.next_u64();
        random
    }

    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// 0 to `n` - 1. The top bits of the product: for the sizes here, as good as uniform.
    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next_u64()) * n as u128) >> 64) as usize
    }

    /// Above 0, up to 1.
    fn uniform(&mut self) -> f64 {
        ((self.next_u64() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    /// `len` Gaussian numbers of mean 0, by Box and Muller.
    pub fn normals(&mut self, len: usize, deviation: f64) -> Vec<f32> {
        let mut normal = || {
            let radius = (-2.0 * self.uniform().ln()).sqrt();
            deviation * radius * (std::f64::consts::TAU * self.uniform()).cos()
        };
        (0..len).map(|_| normal() as f32).collect()
    }

    /// Puts `items` into random order, in place.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for end in (1..items.len()).rev() {
            items.swap(end, self.below(end + 1));
        }
    }
}
