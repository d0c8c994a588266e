//! Axes as they lie in memory.
use burn_flex::{FlexTensor, Layout};

/// The order of a tensor's axes in which its memory is dense, slowest first; the tensor's own order where
/// none is.
#[derive(Debug, Clone)]
pub(crate) struct Order {
    axes: Vec<usize>,
    /// Whether it is another one than the tensor's.
    moves: bool,
}

impl Order {
    pub fn of(layout: &Layout) -> Self {
        let mut axes: Vec<usize> = (0..layout.num_dims()).collect();
        if !layout.is_contiguous() {
            // Stable, so that axes of size 1 that share a stride stay in order.
            axes.sort_by_key(|&axis| std::cmp::Reverse(layout.strides()[axis]));
            if !layout.permute(&axes).is_contiguous() {
                axes.sort_unstable();
            }
        }
        let moves = axes.iter().enumerate().any(|(k, &axis)| k != axis);
        Self { axes, moves }
    }
    /// Where an axis of the tensor is among them.
    pub fn place_of(&self, axis: usize) -> usize {
        self.axes.iter().position(|&a| a == axis).unwrap_or(axis)
    }
    /// A tensor with its axes in this order, dense: copied only where its memory lies otherwise.
    pub fn apply(&self, t: FlexTensor) -> FlexTensor {
        let layout = self.moves.then(|| t.layout().permute(&self.axes));
        let t = match layout {
            Some(layout) => t.with_layout(layout),
            None => t,
        };
        if t.is_contiguous() { t } else { t.to_contiguous() }
    }
    /// The axes of such a tensor as they were.
    pub fn undo(&self, t: FlexTensor) -> FlexTensor {
        if !self.moves {
            return t;
        }
        let mut back = vec![0; self.axes.len()];
        self.axes.iter().enumerate().for_each(|(k, &axis)| back[axis] = k);
        let layout = t.layout().permute(&back);
        t.with_layout(layout)
    }
}
