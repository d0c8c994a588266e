//! Axes as they lie in memory.
use candle_core::{Result, Tensor};

/// The order of a tensor's axes in which its memory is dense, slowest first; the tensor's own order where
/// none is.
pub(crate) struct Order {
    axes: Vec<usize>,
    /// Whether it is another one than the tensor's.
    moves: bool,
}

impl Order {
    pub fn of(x: &Tensor) -> Result<Self> {
        let mut axes: Vec<usize> = (0..x.rank()).collect();
        if !x.is_contiguous() {
            // Stable, so that axes of size 1 that share a stride stay in order.
            axes.sort_by_key(|&axis| std::cmp::Reverse(x.stride()[axis]));
            if !x.permute(axes.as_slice())?.is_contiguous() {
                axes.sort_unstable();
            }
        }
        let moves = axes.iter().enumerate().any(|(k, &axis)| k != axis);
        Ok(Self { axes, moves })
    }
    /// Where an axis of the tensor is among them.
    pub fn place_of(&self, axis: usize) -> usize {
        self.axes.iter().position(|&a| a == axis).unwrap_or(axis)
    }
    /// A tensor with its axes in this order, dense: copied only where its memory lies otherwise.
    pub fn apply(&self, t: &Tensor) -> Result<Tensor> {
        if self.moves { t.permute(self.axes.as_slice())?.contiguous() } else { t.contiguous() }
    }
    /// The axes of such a tensor as they were.
    pub fn undo(&self, t: Tensor) -> Result<Tensor> {
        if !self.moves {
            return Ok(t);
        }
        let mut back = vec![0; self.axes.len()];
        self.axes.iter().enumerate().for_each(|(k, &axis)| back[axis] = k);
        t.permute(back.as_slice())
    }
}
