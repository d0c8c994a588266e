//! Shapes that have broken, or could break, an implementation. Tests and benches share them.
use batchnorm::Shape;
use std::sync::LazyLock;

/// Where the channels of a case lie.
#[derive(Debug, Clone, Copy)]
pub enum Layout {
    /// `Shape::new` with this channel axis.
    Axis(usize),
    /// `Shape::per_activation`.
    PerActivation,
    /// `Shape::strided` with these strides and this channel axis.
    Strided(&'static [usize], usize),
}

/// A shape, and why it is here.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    pub dims: &'static [usize],
    pub layout: Layout,
    pub why: &'static str,
}

impl Case {
    pub fn shape(&self) -> Shape {
        match self.layout {
            Layout::Axis(axis) => Shape::new(self.dims, axis),
            Layout::PerActivation => Shape::per_activation(self.dims),
            Layout::Strided(strides, axis) => Shape::strided(self.dims, strides, axis),
        }
        .unwrap()
    }
}

const fn case(dims: &'static [usize], axis: usize, why: &'static str) -> Case {
    Case { dims, layout: Layout::Axis(axis), why }
}

/// The smallest shape with several rows, channels and positions: for products of many options.
pub const SMALL: Case = case(&[3, 5, 7], 1, "channels first, odd plane");

/// Likewise.
pub const CHANNELS_LAST: Case = case(&[2, 3, 3, 5], 3, "channels last");

/// Every shape of the suite; or one by hand: `BATCHNORM_SHAPE=64x256x7x7@1 cargo test --test suite --
/// conformance::cpu`, where `@1` is the channel axis.
pub fn cases() -> &'static [Case] {
    static BY_HAND: LazyLock<Option<[Case; 1]>> = LazyLock::new(|| {
        let text = std::env::var("BATCHNORM_SHAPE").ok()?;
        let case = || {
            let (dims, axis) = text.split_once('@')?;
            let dims: Option<Vec<usize>> = dims.split('x').map(|size| size.parse().ok()).collect();
            Some(case(dims?.leak(), axis.parse().ok()?, "by hand"))
        };
        let expected = || format!("BATCHNORM_SHAPE: expected 64x256x7x7@1, say, got {text:?}");
        Some([case().unwrap_or_else(|| panic!("{}", expected()))])
    });
    BY_HAND.as_ref().map_or(CASES, |case| case)
}

/// Every regime of every engine that we know of.
const CASES: &[Case] = &[
    SMALL,
    case(&[7, 5], 1, "N x C"),
    case(&[64, 32], 1, "N x C, whole vectors"),
    CHANNELS_LAST,
    case(&[2, 3, 4, 5], 2, "middle axis"),
    case(&[4, 1, 6], 1, "one channel"),
    case(&[9], 0, "unbatched vector: evaluation only"),
    case(&[3, 9], 0, "unbatched, channels on axis 0"),
    case(&[3, 4, 5], 0, "channels on axis 0 of three"),
    case(&[2, 3, 4, 3, 5], 1, "5-d, channels first"),
    case(&[2, 3, 4, 3, 5], 4, "5-d, channels last"),
    case(&[2, 2, 3, 2, 5], 2, "5-d, middle axis"),
    case(&[1, 3, 11], 1, "batch of one"),
    case(&[1, 1, 2], 1, "batch of one, one channel, two values"),
    case(&[1, 67, 5], 1, "batch of one, many channels"),
    case(&[1, 5, 1000], 1, "batch of one, long plane"),
    case(&[2, 6], 1, "two values per channel: the gradient all but vanishes"),
    case(&[2, 6, 1], 1, "two values per channel, inner 1"),
    case(&[1, 6, 2], 1, "two values per channel in one row"),
    case(&[0, 3], 1, "empty batch"),
    case(&[0, 5, 4, 3], 1, "empty batch of planes"),
    case(&[4, 3, 0], 1, "empty plane"),
    case(&[5, 3, 2], 1, "inner 2"),
    case(&[4, 35, 3], 1, "inner 3, odd channels"),
    case(&[3, 5, 5], 1, "inner 5"),
    case(&[3, 67, 7], 1, "inner 7, a plane shorter than a vector"),
    case(&[2, 4, 16], 1, "inner 16, whole vectors"),
    case(&[2, 16, 17], 1, "inner 17, a vector and one"),
    case(&[3, 3, 49], 1, "inner 7 x 7"),
    case(&[2, 5, 127], 1, "inner 127, one less than a block"),
    case(&[3, 2, 1000], 1, "inner 1000"),
    case(&[3, 5, 301], 1, "long planes whose bits of a mask each start a byte, several at a time"),
    case(&[2, 1, 20_011], 1, "a plane of more than 20000 elements, prime"),
    case(&[6, 35], 1, "35 channels, inner 1"),
    case(&[5, 67], 1, "67 channels, inner 1"),
    case(&[8, 301], 1, "channels last, 300 and one"),
    case(&[2, 4, 4, 320], 3, "channels last, many channels"),
    case(&[5000, 3], 1, "many rows of 3 channels"),
    case(&[4001, 1], 1, "one channel, inner 1, prime rows"),
    case(&[600, 3, 5], 1, "many short planes"),
    case(&[1, 2, 70_001], 1, "planes larger than a task: cut into pieces"),
    case(&[5, 3, 4001], 1, "few channels of long planes: cut between rows"),
    case(&[3, 17, 1000], 1, "neighbouring channels in one task"),
    case(&[20_001, 3], 1, "short rows joined, the last one shorter, many tasks"),
    case(&[150, 640], 1, "blocks of channels, whole columns in one task"),
    case(&[401, 129], 1, "rows joined two by two, an odd number of them"),
    case(&[90, 130, 5], 1, "blocks of short planes"),
    Case { dims: &[6, 3, 2, 5], layout: Layout::PerActivation, why: "a mean per position" },
    Case {
        dims: &[3, 5, 4, 3],
        layout: Layout::Strided(&[60, 1, 15, 5], 1),
        why: "strides of a channels-last tensor",
    },
    Case {
        dims: &[3, 5, 4, 2],
        layout: Layout::Strided(&[10, 2, 30, 1], 1),
        why: "strides with the channels between rows and columns",
    },
    Case {
        dims: &[3, 1, 4],
        layout: Layout::Strided(&[4, 99, 1], 1),
        why: "strides of one channel: all of it one plane",
    },
];
