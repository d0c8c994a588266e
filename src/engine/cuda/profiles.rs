//! Devices and shapes that plans are tested with.
use super::costs::Costs;
use super::figures::Figures;
use crate::Shape;

const KIB: u32 = 1 << 10;
const H200: Figures = Figures {
    multiprocessors: 132,
    threads: 2048,
    shared: 228 * KIB,
    shared_block: 227 * KIB,
    shared_reserved: KIB,
    cache: 60 << 20,
    cooperative: true,
    costs: Costs::H200,
};

/// H200, A100, RTX 3090, T4, one that is very small, one without cooperative launches, and less than
/// any device has.
pub(super) const PROFILES: [Figures; 7] = [
    H200,
    Figures {
        multiprocessors: 108,
        shared: 164 * KIB,
        shared_block: 163 * KIB,
        cache: 40 << 20,
        costs: Costs { bandwidth: 1_360_000, ..Costs::H200 },
        ..H200
    },
    Figures {
        multiprocessors: 82,
        threads: 1536,
        shared: 100 * KIB,
        shared_block: 99 * KIB,
        cache: 6 << 20,
        costs: Costs { bandwidth: 819_000, ..Costs::SLOW_F64 },
        ..H200
    },
    Figures {
        multiprocessors: 40,
        threads: 1024,
        shared: 64 * KIB,
        shared_block: 64 * KIB,
        shared_reserved: 0,
        cache: 4 << 20,
        costs: Costs { bandwidth: 280_000, ..Costs::SLOW_F64 },
        ..H200
    },
    Figures {
        multiprocessors: 4,
        threads: 1024,
        shared: 16 * KIB,
        shared_block: 15 * KIB,
        cache: 1 << 20,
        costs: Costs { bandwidth: 130_000, ..Costs::H200 },
        ..H200
    },
    Figures {
        multiprocessors: 20,
        cooperative: false,
        costs: Costs { bandwidth: 650_000, ..Costs::H200 },
        ..H200
    },
    Figures { multiprocessors: 1, threads: 1, shared: 1, shared_block: 1, ..H200 },
];

/// A generator of small numbers, most of them odd sizes of tensors.
pub(super) struct Sizes(pub u64);

impl Sizes {
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        (self.0 >> 33) as usize % limit
    }
    pub fn shape(&mut self) -> Shape {
        let edge = [1, 2, 3, 4, 7, 8, 16, 49, 64, 127, 255, 256, 257, 512, 640];
        let mut size = |limit| match self.below(3) {
            0 => edge[self.below(edge.len())].min(limit),
            _ => 1 + self.below(limit),
        };
        let channels = size(700);
        let inner = size((20_000 / channels).max(1));
        let outer = size((40_000 / (channels * inner)).max(1));
        Shape::new(&[outer, channels, inner], 1).unwrap()
    }
}
