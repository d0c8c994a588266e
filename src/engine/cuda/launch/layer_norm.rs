//! The kernels of `kernels/layer_norm.cu`, as [`super`] has those of channels.
use super::{Bound, submit};
use crate::engine::EpsRule;
use crate::engine::cuda::module::LayerNormKernels;
use crate::engine::pointers::Ptr;
use crate::{Element, Result};

/// The tensor, and what its rows are divided by.
#[repr(C)]
#[derive(Clone, Copy)]
pub(in crate::engine::cuda) struct LayerNorm {
    rows: u64,
    features: u64,
    eps: f64,
    rule: u32,
    team: u32,
}

/// What a backward takes of each row; one value per row each.
#[repr(C)]
#[derive(Clone, Copy)]
pub(in crate::engine::cuda) struct Rows<A> {
    pub mean: Ptr<A>,
    pub mean_rest: Ptr<A>,
    pub std: Ptr<A>,
}

impl<A> Rows<A> {
    /// Nothing is saved.
    pub const NONE: Self = Self { mean: Ptr::NULL, mean_rest: Ptr::NULL, std: Ptr::NULL };
}

const BLOCK: u32 = 256;
/// Features that a block sums, side by side.
const COLUMNS: u64 = 32;
/// Up to here a warp takes a row, beyond a block.
const SHORT: u64 = 1024;
/// Blocks that are enough for any device; each takes another row then.
const MOST_BLOCKS: u64 = 1 << 20;
/// Rows of a chunk, at least, and chunks, at most: they keep two f64 for every feature.
const LEAST_ROWS: u64 = 256;
const MOST_CHUNKS: u64 = 128;

impl LayerNorm {
    pub fn new(rows: usize, features: usize, eps: f64, rule: EpsRule) -> Self {
        let (rows, features) = (rows as u64, features as u64);
        let team = if features <= SHORT { 32 } else { BLOCK };
        Self { rows, features, eps, rule: rule.code(), team }
    }
    /// Of a pass over rows; a forward has something to do without any, too.
    fn blocks(&self) -> u32 {
        let teams = u64::from(BLOCK / self.team);
        self.rows.div_ceil(teams).clamp(1, MOST_BLOCKS) as u32
    }
    /// Rows of a chunk, which the shape alone decides, as they say in which order sums are made.
    fn chunk(&self) -> u64 {
        self.rows.div_ceil(MOST_CHUNKS).max(LEAST_ROWS)
    }
    fn chunks(&self) -> u64 {
        self.rows.div_ceil(self.chunk())
    }
    /// Bytes of the partial sums.
    pub fn partials(&self) -> u64 {
        let pair = 2 * size_of::<f64>() as u64;
        self.chunks().saturating_mul(self.features).saturating_mul(pair)
    }
}

/// The kernels of one type of elements, on a stream.
pub(in crate::engine::cuda) struct RowLauncher<'a> {
    pub kernels: &'a LayerNormKernels,
    pub stream: Bound<'a>,
}

impl RowLauncher<'_> {
    #[allow(clippy::too_many_arguments)] // the kernel has them
    pub fn forward<E: Element>(
        &self,
        by: LayerNorm,
        x: Ptr<E>,
        weight: Ptr<E::Acc>,
        bias: Ptr<E::Acc>,
        y: Ptr<E>,
        saved: Rows<E::Acc>,
        saved_weight: Ptr<E::Acc>,
        nonfinite: Ptr<u32>,
    ) -> Result<()> {
        let arguments = arguments![by, x, weight, bias, y, saved, saved_weight, nonfinite];
        submit(&self.stream, &self.kernels.forward, by.blocks(), BLOCK, arguments)
    }

    pub fn backward<E: Element>(
        &self,
        by: LayerNorm,
        saved: Rows<E::Acc>,
        weight: Ptr<E::Acc>,
        x: Ptr<E>,
        grad_y: Ptr<E>,
        grad_x: Ptr<E>,
    ) -> Result<()> {
        let arguments = arguments![by, saved, weight, x, grad_y, grad_x];
        submit(&self.stream, &self.kernels.backward, by.blocks(), BLOCK, arguments)
    }

    /// The sums of the chunks; nothing where there are no rows.
    pub fn sums<E: Element>(
        &self,
        by: LayerNorm,
        saved: Rows<E::Acc>,
        x: Ptr<E>,
        grad_y: Ptr<E>,
        partials: Ptr<f64>,
    ) -> Result<()> {
        let (chunk, grid) = (by.chunk(), by.chunks() * by.features.div_ceil(COLUMNS));
        if grid == 0 {
            return Ok(());
        }
        let arguments = arguments![by, chunk, saved, x, grad_y, partials];
        submit(&self.stream, &self.kernels.sums, grid as u32, BLOCK, arguments)
    }

    pub fn finalize<A>(
        &self,
        by: LayerNorm,
        partials: Ptr<f64>,
        accumulate: bool,
        grad_weight: Ptr<A>,
        grad_bias: Ptr<A>,
        nonfinite: Ptr<u32>,
    ) -> Result<()> {
        let (features, chunks) = (by.features, by.chunks() as u32);
        let accumulate = u32::from(accumulate);
        let grid = features.div_ceil(u64::from(BLOCK)) as u32;
        let arguments =
            arguments![features, chunks, partials, accumulate, grad_weight, grad_bias, nonfinite];
        submit(&self.stream, &self.kernels.finalize, grid, BLOCK, arguments)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::pointers::assert_layout;

    #[test]
    fn arguments_lie_as_the_kernels_declare_them() {
        assert_layout! {
            include_str!("../../../../kernels/layer_norm.cu");
            "LayerNorm": LayerNorm { rows, features, eps, rule, team }
            "Rows<float>": Rows<f32> { mean, mean_rest, std }
        }
    }

    #[test]
    fn chunks_cover_the_rows_and_are_few() {
        for rows in [0, 1, 255, 256, 257, 32_768, 32_769, 1 << 40] {
            let by = LayerNorm::new(rows, 7, 1e-5, EpsRule::Variance);
            assert!(by.chunks() <= MOST_CHUNKS && by.chunk() >= LEAST_ROWS, "{rows}");
            assert!(by.chunks() * by.chunk() >= rows as u64, "{rows}");
            assert_eq!(by.partials(), by.chunks() * 7 * 16, "{rows}");
        }
    }
}
