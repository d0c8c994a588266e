//! The order of execution: any that the seed says.

/// A stream of pseudo-random numbers (SplitMix64).
#[derive(Clone, Debug)]
pub(crate) struct Dice {
    state: u64,
}

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// A number below `end`, which is not 0.
    fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(end)) >> 64) as u64
    }

    /// The numbers below `count` in some order.
    pub(crate) fn shuffled(&mut self, count: usize) -> Vec<usize> {
        let mut order: Vec<_> = (0..count).collect();
        for i in (1..count).rev() {
            order.swap(i, self.below(i as u64 + 1) as usize);
        }
        order
    }

    /// The instructions of a warp's turn: from few to many.
    pub(crate) fn turn(&mut self) -> u32 {
        32 << self.below(8)
    }
}

/// The blocks of a grid in some order, without keeping a list of them.
#[derive(Debug)]
pub(crate) struct Blocks {
    count: u64,
    given: u64,
    first: u64,
    step: u64,
}

impl Blocks {
    pub(crate) fn new(count: u64, dice: &mut Dice) -> Self {
        let gcd = |mut a: u64, mut b: u64| {
            while b != 0 {
                (a, b) = (b, a % b);
            }
            a
        };
        let (first, mut step) = (dice.below(count), dice.below(count).max(1));
        while gcd(step, count) != 1 {
            step += 1;
        }
        Self { count, given: 0, first, step }
    }
}

impl Iterator for Blocks {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        if self.given == self.count {
            return None;
        }
        let at = u128::from(self.first) + u128::from(self.step) * u128::from(self.given);
        self.given += 1;
        Some((at % u128::from(self.count)) as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_block_comes_once() {
        for count in [1, 2, 6, 97, 1000, 1024] {
            let mut orders = Vec::new();
            for seed in 0..4 {
                let order: Vec<_> = Blocks::new(count, &mut Dice::new(seed)).collect();
                let mut sorted = order.clone();
                sorted.sort_unstable();
                assert!(sorted.iter().copied().eq(0..count as u32), "{count} blocks, seed {seed}");
                orders.push(order);
            }
            assert!(count < 6 || orders.windows(2).any(|pair| pair[0] != pair[1]));
        }
    }

    #[test]
    fn shuffled_is_a_permutation_that_the_seed_determines() {
        let order = Dice::new(5).shuffled(40);
        assert_eq!(order, Dice::new(5).shuffled(40));
        assert_ne!(order, Dice::new(6).shuffled(40));
        let mut sorted = order;
        sorted.sort_unstable();
        assert!(sorted.into_iter().eq(0..40));
    }
}
