//! Any rank and channel axis folds to outer x channels x inner; nothing past this door knows rank.
use crate::{Error, Result};

/// A tensor as batch normalization sees it: element `(o, c, i)` lies at
/// `(o * channels + c) * inner + i`.
///
/// | tensor | call | outer, channels, inner |
/// |---|---|---|
/// | N x C | `Shape::new(&[n, c], 1)` | n, c, 1 |
/// | NCHW | `Shape::new(&[n, c, h, w], 1)` | n, c, h * w |
/// | NHWC | `Shape::new(&[n, h, w, c], 3)` | n * h * w, c, 1 |
/// | channels on axis k | `Shape::new(&dims, k)` | product before, `dims[k]`, product after |
/// | channels on the last axis | `Shape::from_end(&dims, -1)` | product before, the last, 1 |
/// | a vector of one sample, C | `Shape::new(&[c], 0)` | 1, c, 1 |
/// | a mean for every position | `Shape::per_activation(&[n, c, h, w])` | n, c * h * w, 1 |
/// | a view with strides | `Shape::strided(&dims, &strides, axis)` | as it lies in memory |
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    batch: usize,
    outer: usize,
    channels: usize,
    inner: usize,
}

impl Shape {
    /// Folds row-major `dims` around its channel `axis`.
    ///
    /// # Errors
    /// [`Error::Invalid`] where `axis` is not an axis, the channel count is 0, or the number of
    /// elements overflows `usize`.
    pub fn new(dims: &[usize], axis: usize) -> Result<Self> {
        let Some(&channels) = dims.get(axis) else {
            let reason = format!("expected less than the rank {}, got {axis}", dims.len());
            return Err(Error::invalid("axis", reason));
        };
        if channels == 0 {
            return Err(Error::invalid("channels", "expected at least 1, got 0"));
        }
        // Zeros aside, so that no part of the product overflows where the whole does not.
        let mut nonzero = dims.iter().filter(|&&d| d > 0);
        if nonzero.try_fold(1usize, |product, &d| product.checked_mul(d)).is_none() {
            return Err(Error::invalid("dims", format!("the product of {dims:?} overflows")));
        }
        Ok(Self {
            batch: if axis == 0 { 1 } else { dims[0] },
            outer: dims[..axis].iter().product(),
            channels,
            inner: dims[axis + 1..].iter().product(),
        })
    }

    /// As [`Shape::new`], with an axis that counts from the end where it is negative, as Keras, Flax and
    /// TensorFlow have it: -1 is the last one.
    ///
    /// ```
    /// # use batchnorm::Shape;
    /// let dims = [8, 5, 7, 3];
    /// assert_eq!(Shape::from_end(&dims, -1)?, Shape::new(&dims, 3)?);
    /// assert_eq!(Shape::from_end(&dims, 1)?, Shape::new(&dims, 1)?);
    /// # Ok::<(), batchnorm::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Shape::new`].
    pub fn from_end(dims: &[usize], axis: isize) -> Result<Self> {
        let rank = dims.len();
        let from_start = match axis {
            0.. => Some(axis.unsigned_abs()),
            _ => rank.checked_sub(axis.unsigned_abs()),
        };
        let Some(axis) = from_start.filter(|&axis| axis < rank) else {
            let reason = format!("expected from -{rank} to less than the rank {rank}, got {axis}");
            return Err(Error::invalid("axis", reason));
        };
        Self::new(dims, axis)
    }

    /// One mean for every position of a sample: `dims` is batch first, everything behind it is a
    /// channel (cuDNN's per-activation mode).
    ///
    /// # Errors
    /// As [`Shape::new`]; `dims` must have a first axis.
    pub fn per_activation(dims: &[usize]) -> Result<Self> {
        let Some((&batch, sample)) = dims.split_first() else {
            return Err(Error::invalid("dims", "expected a batch axis, got none"));
        };
        let mut positions = sample.iter();
        let Some(positions) = positions.try_fold(1usize, |product, &d| product.checked_mul(d))
        else {
            return Err(Error::invalid("dims", format!("the product of {dims:?} overflows")));
        };
        Self::new(&[batch, positions], 1)
    }

    /// A view with `strides` (in elements), as frameworks describe permuted tensors: an NCHW view
    /// of channels-last memory is `Shape::strided(&[n, c, h, w], &[h * w * c, 1, w * c, c], 1)`.
    ///
    /// The memory must be dense, each element in it once; the strides of axes of size 1 do not
    /// matter. The slice given to an operation is that memory, from its first element on.
    ///
    /// # Errors
    /// As [`Shape::new`]; also where the ranks differ or the memory has gaps or overlaps.
    pub fn strided(dims: &[usize], strides: &[usize], axis: usize) -> Result<Self> {
        let logical = Self::new(dims, axis)?;
        if dims.len() != strides.len() {
            let reason = format!("expected {} for dims {dims:?}, got {strides:?}", dims.len());
            return Err(Error::invalid("strides", reason));
        }
        if logical.is_empty() {
            return Ok(logical);
        }
        let mut order: Vec<usize> = (0..dims.len()).filter(|&k| dims[k] > 1).collect();
        order.sort_by_key(|&k| std::cmp::Reverse(strides[k]));
        let mut dense = 1;
        for &k in order.iter().rev() {
            if strides[k] != dense {
                let reason = format!(
                    "expected dense memory, stride {dense} on axis {k}; got {strides:?} for dims {dims:?}"
                );
                return Err(Error::invalid("strides", reason));
            }
            dense *= dims[k];
        }
        let Some(place) = order.iter().position(|&k| k == axis) else {
            // One channel lies anywhere: all elements share its mean.
            return Ok(Self { outer: 1, inner: logical.len(), ..logical });
        };
        let product = |axes: &[usize]| axes.iter().map(|&k| dims[k]).product();
        Ok(Self { outer: product(&order[..place]), inner: product(&order[place + 1..]), ..logical })
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.outer * self.channels * self.inner
    }
    /// Whether there are no elements: an empty batch.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Size of the first axis, 1 where that is the channel axis. The arithmetic does not need it;
    /// limits of libraries are expressed in it.
    pub fn batch(&self) -> usize {
        self.batch
    }
    /// Product of the axes before the channels, as they lie in memory.
    pub fn outer(&self) -> usize {
        self.outer
    }
    /// Number of channels, C.
    pub fn channels(&self) -> usize {
        self.channels
    }
    /// Product of the axes behind the channels, as they lie in memory.
    pub fn inner(&self) -> usize {
        self.inner
    }
    /// How many values share one mean, m.
    pub fn per_channel(&self) -> usize {
        self.outer * self.inner
    }
    /// Indices of channel `c`, in memory order.
    pub(crate) fn channel(self, c: usize) -> impl Iterator<Item = usize> + Clone {
        let start = move |o| (o * self.channels + c) * self.inner;
        (0..self.outer).flat_map(move |o| start(o)..start(o) + self.inner)
    }
}

/// As messages show it: `4 x 64 x 3136 (outer x channels x inner, batch 4)`.
impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { batch, outer, channels, inner } = self;
        write!(f, "{outer} x {channels} x {inner} (outer x channels x inner, batch {batch})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folded(shape: Result<Shape>) -> (usize, usize, usize, usize) {
        let s = shape.unwrap();
        (s.batch, s.outer, s.channels, s.inner)
    }

    #[test]
    fn every_layout_folds() {
        assert_eq!(folded(Shape::new(&[8, 3], 1)), (8, 8, 3, 1));
        assert_eq!(folded(Shape::new(&[8, 3, 5, 7], 1)), (8, 8, 3, 35));
        assert_eq!(folded(Shape::new(&[8, 5, 7, 3], 3)), (8, 280, 3, 1));
        assert_eq!(folded(Shape::new(&[8, 2, 3, 4, 5], 2)), (8, 16, 3, 20));
        assert_eq!(folded(Shape::new(&[3], 0)), (1, 1, 3, 1));
        assert_eq!(folded(Shape::new(&[3, 9], 0)), (1, 1, 3, 9));
        assert_eq!(folded(Shape::new(&[0, 3, 4], 1)), (0, 0, 3, 4));
        assert_eq!(folded(Shape::from_end(&[8, 2, 3, 4, 5], -3)), (8, 16, 3, 20));
        assert_eq!(folded(Shape::from_end(&[3], -1)), (1, 1, 3, 1));
        assert_eq!(folded(Shape::per_activation(&[8, 3, 5, 7])), (8, 8, 105, 1));
        assert_eq!(folded(Shape::per_activation(&[8])), (8, 8, 1, 1));
    }

    #[test]
    fn strides_fold_as_memory_lies() {
        let dims = [8, 3, 5, 7];
        assert_eq!(folded(Shape::strided(&dims, &[105, 35, 7, 1], 1)), (8, 8, 3, 35));
        assert_eq!(folded(Shape::strided(&dims, &[105, 1, 21, 3], 1)), (8, 280, 3, 1));
        // N and H swapped in memory: the channels lie between them.
        assert_eq!(folded(Shape::strided(&dims, &[21, 7, 168, 1], 1)), (8, 40, 3, 7));
        // Strides of axes of size 1 are arbitrary.
        assert_eq!(folded(Shape::strided(&[8, 3, 1, 1], &[3, 1, 77, 0], 1)), (8, 8, 3, 1));
        assert_eq!(folded(Shape::strided(&[8, 1, 5], &[5, 99, 1], 1)), (8, 1, 1, 40));
        assert_eq!(folded(Shape::strided(&[0, 3], &[0, 0], 1)), (0, 0, 3, 1));
    }

    #[test]
    fn bad_shapes_say_both_sides() {
        let message = |shape: Result<Shape>| shape.unwrap_err().to_string();
        assert_eq!(message(Shape::new(&[2, 3], 2)), "axis: expected less than the rank 2, got 2");
        for axis in [2, -3, isize::MAX, isize::MIN] {
            let expected = format!("axis: expected from -2 to less than the rank 2, got {axis}");
            assert_eq!(message(Shape::from_end(&[2, 3], axis)), expected);
        }
        assert_eq!(
            message(Shape::from_end(&[], 0)),
            "axis: expected from -0 to less than the rank 0, got 0"
        );
        assert_eq!(message(Shape::new(&[2, 0], 1)), "channels: expected at least 1, got 0");
        assert!(message(Shape::new(&[usize::MAX, 2], 1)).starts_with("dims: the product of ["));
        assert!(message(Shape::new(&[0, 2, usize::MAX], 1)).starts_with("dims: the product of ["));
        assert!(message(Shape::per_activation(&[1, usize::MAX, 2])).starts_with("dims"));
        assert!(message(Shape::per_activation(&[])).starts_with("dims"));
        for strides in [&[3, 0][..], &[4, 1], &[3, 1, 1], &[1, 3], &[3, usize::MAX]] {
            let error = message(Shape::strided(&[2, 3], strides, 1));
            assert!(error.starts_with("strides: expected"), "{error}");
        }
    }
}
