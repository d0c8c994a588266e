//! In which order a tensor's axes lie in memory.
use super::{Shape, check_elements};
use crate::{Error, Result};

/// The order of a tensor's axes in memory, slowest first: a permutation after which the tensor is row-major.
///
/// Frameworks describe a tensor by dims and strides, in elements. Where its memory is dense, an operation takes it as
/// it lies, whatever the order: [`shape`](Self::shape) is what to call an engine with, and the slice is the memory from
/// its first element on. An operation reads and writes all its tensors by one [`Shape`], so that y, a residual and the
/// gradients must lie in the same order: [`strides`](Self::strides) are those to make them with, and
/// [`check`](Self::check) refuses others, which would be read as other elements without any error.
///
/// ```
/// use batchnorm::{MemoryOrder, Shape};
/// let (n, c, h, w) = (8, 3, 5, 7);
/// // An NCHW view of channels-last memory.
/// let order = MemoryOrder::new(&[n, c, h, w], &[h * w * c, 1, w * c, c])?;
/// assert_eq!(order.axes(), [0, 2, 3, 1]); // permuted by these it is row-major: NHWC
/// assert_eq!(order.inverse(), [0, 3, 1, 2]); // and by these it is NCHW again
/// assert_eq!(order.shape(1)?, Shape::new(&[n, h, w, c], 3)?);
/// assert_eq!(order.place_of(1), Some(3));
///
/// order.check("residual", &[n, c, h, w], &order.strides())?;
/// let error = order.check("residual", &[n, c, h, w], &[c * h * w, h * w, w, 1]).unwrap_err();
/// assert_eq!(
///     error.to_string(),
///     "residual: expected dims [8, 3, 5, 7] with strides [105, 1, 21, 3], as x lies, got dims [8, 3, 5, 7] with \
///      strides [105, 35, 7, 1]"
/// );
/// # Ok::<(), batchnorm::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct MemoryOrder {
    dims: Vec<usize>,
    axes: Vec<usize>,
}

impl MemoryOrder {
    /// That of `dims` with `strides` in elements. The strides of axes of size 1 do not matter, nor do any where there
    /// are no elements; such axes stay behind the one that precedes them.
    ///
    /// # Errors
    /// [`Error::Invalid`] where the ranks differ, the number of elements overflows, or the memory is not dense: it has
    /// gaps, as a part of a tensor has; or elements overlap, as where an axis is broadcast by stride 0. Such a tensor
    /// wants a copy, in [row-major](Self::row_major) order.
    pub fn new(dims: &[usize], strides: &[usize]) -> Result<Self> {
        check_elements(dims)?;
        check_rank(dims, strides)?;
        if dims.contains(&0) {
            return Self::row_major(dims);
        }
        let mut axes = wide_axes(dims, strides)?;
        for k in (0..dims.len()).filter(|&k| dims[k] == 1) {
            let before = |&axis: &usize| Some(axis) == k.checked_sub(1);
            axes.insert(axes.iter().position(before).map_or(0, |place| place + 1), k);
        }
        Ok(Self { dims: dims.into(), axes })
    }

    /// That of row-major memory: the last axis is the fastest.
    ///
    /// # Errors
    /// [`Error::Invalid`] where the number of elements overflows.
    pub fn row_major(dims: &[usize]) -> Result<Self> {
        check_elements(dims)?;
        Ok(Self { dims: dims.into(), axes: (0..dims.len()).collect() })
    }

    /// The tensor's dims, in its own order.
    pub fn dims(&self) -> &[usize] {
        &self.dims
    }
    /// The axes, slowest first: the argument of a permutation that makes the tensor row-major.
    pub fn axes(&self) -> &[usize] {
        &self.axes
    }
    /// The argument of the permutation back: where each axis of the tensor is among [`axes`](Self::axes).
    pub fn inverse(&self) -> Vec<usize> {
        let mut inverse = vec![0; self.axes.len()];
        self.axes.iter().enumerate().for_each(|(place, &axis)| inverse[axis] = place);
        inverse
    }
    /// Where an axis of the tensor is in memory order; none where it has no such axis.
    pub fn place_of(&self, axis: usize) -> Option<usize> {
        self.axes.iter().position(|&a| a == axis)
    }
    /// Whether the axes lie as they are numbered, so that nothing needs a permutation.
    pub fn is_row_major(&self) -> bool {
        self.axes.iter().enumerate().all(|(place, &axis)| place == axis)
    }

    /// The strides of a dense tensor of the same dims in this order: for y, and for gradients.
    pub fn strides(&self) -> Vec<usize> {
        let mut strides = vec![1; self.dims.len()];
        let mut dense = 1;
        for &axis in self.axes.iter().rev() {
            strides[axis] = dense;
            dense *= self.dims[axis].max(1);
        }
        strides
    }

    /// Refuses a tensor beside x, named `what`, that does not lie as x does: other dims, or other strides of an axis of
    /// more than one element.
    ///
    /// # Errors
    /// [`Error::Invalid`] that shows dims and strides of both.
    pub fn check(&self, what: &'static str, dims: &[usize], strides: &[usize]) -> Result<()> {
        let wanted = self.strides();
        let same = |k: usize| self.dims[k] == 1 || wanted[k] == strides[k];
        let lies = self.dims == dims
            && wanted.len() == strides.len()
            && (dims.contains(&0) || (0..dims.len()).all(same));
        if lies {
            return Ok(());
        }
        let reason = format!(
            "expected dims {:?} with strides {wanted:?}, as x lies, got dims {dims:?} with strides {strides:?}",
            self.dims
        );
        Err(Error::invalid(what, reason))
    }

    /// The shape of the tensor with its channels on `axis` (of its own numbering), as it lies in memory:
    /// [`Shape::strided`] of its dims and strides.
    ///
    /// # Errors
    /// [`Error::Invalid`] where `axis` is not an axis, or there are no channels.
    pub fn shape(&self, axis: usize) -> Result<Shape> {
        let wide: Vec<usize> = self.axes.iter().copied().filter(|&k| self.dims[k] > 1).collect();
        Ok(Shape::new(&self.dims, axis)?.lying(&self.dims, &wide, axis))
    }
}

/// Refuses another number of strides than of dims.
pub(super) fn check_rank(dims: &[usize], strides: &[usize]) -> Result<()> {
    if dims.len() == strides.len() {
        return Ok(());
    }
    let reason = format!("expected {} for dims {dims:?}, got {strides:?}", dims.len());
    Err(Error::invalid("strides", reason))
}

/// The axes of more than one element, slowest first. Refuses memory that has gaps or overlaps; there are elements.
pub(super) fn wide_axes(dims: &[usize], strides: &[usize]) -> Result<Vec<usize>> {
    let mut axes: Vec<usize> = (0..dims.len()).filter(|&k| dims[k] > 1).collect();
    axes.sort_by_key(|&k| std::cmp::Reverse(strides[k]));
    let mut dense = 1;
    for &k in axes.iter().rev() {
        if strides[k] != dense {
            let reason = format!(
                "expected dense memory, stride {dense} on axis {k}; got {strides:?} for dims {dims:?}"
            );
            return Err(Error::invalid("strides", reason));
        }
        dense *= dims[k];
    }
    Ok(axes)
}

#[cfg(test)]
#[path = "order_tests.rs"]
mod tests;
