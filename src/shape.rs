//! Any rank and channel axis folds to outer x channels x inner; nothing past this door knows rank.
use crate::{Error, Result};

mod order;

pub use order::MemoryOrder;

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
/// | channels on several axes | `Shape::with_axes(&dims, &[1, 2])` | product before, product of these, product after |
/// | channels as Wolfram places them | `Shape::interleaving(&dims, true)` | product before, the last, 1 |
/// | a vector of one sample, C | `Shape::new(&[c], 0)` | 1, c, 1 |
/// | a mean for every position | `Shape::per_activation(&[n, c, h, w])` | n, c * h * w, 1 |
/// | a view with strides | `Shape::strided(&dims, &strides, axis)` | as it lies in memory |
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    batch: usize,
    outer: usize,
    channels: usize,
    inner: usize,
    /// Whether another axis lies outside of the first one, so that a row is not one piece of memory.
    is_interleaved: bool,
    /// How often a row has the channels of a group one after the other, where those of several are channels apart.
    dealt: Option<Dealt>,
}

/// Rows that are dealt out to groups, whose channels are channels of one tensor though other axes lie between rows
/// and channels: element `(r, g, p, c, i)` of channel `g * C + c` lies at
/// `(((r * groups + g) * positions + p) * C + c) * inner + i`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Dealt {
    pub groups: usize,
    pub positions: usize,
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
        check_elements(dims)?;
        if channels == 0 {
            return Err(Error::invalid("channels", "expected at least 1, got 0"));
        }
        Ok(Self {
            batch: if axis == 0 { 1 } else { dims[0] },
            outer: dims[..axis].iter().product(),
            channels,
            inner: dims[axis + 1..].iter().product(),
            is_interleaved: false,
            dealt: None,
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
        Self::new(dims, from_start(dims.len(), axis)?)
    }

    /// One mean for every position of several `axes`, over all other axes: Flax's and Keras 2's lists of axes.
    ///
    /// An axis may count from the end, and they may stand in any order. The channels, and so every parameter and
    /// running statistic, lie as these axes do in a row-major tensor: flattened, Flax's parameters of several
    /// dimensions. Nothing is copied, so the axes must be neighbours, but for axes of size 1.
    ///
    /// ```
    /// # use batchnorm::Shape;
    /// let dims = [8, 5, 7, 3]; // N, H, W, C
    /// let shape = Shape::with_axes(&dims, &[-1, 2])?; // a mean for each of 7 columns and 3 channels
    /// assert_eq!((shape.outer(), shape.channels(), shape.inner()), (8 * 5, 7 * 3, 1));
    /// assert_eq!(Shape::with_axes(&dims, &[1, 2, 3])?, Shape::per_activation(&dims)?);
    /// let error = Shape::with_axes(&dims, &[1, 3]).unwrap_err();
    /// assert_eq!(
    ///     error.to_string(),
    ///     "axes: expected neighbours, got [1, 3] of dims [8, 5, 7, 3]: axis 2 of size 7 lies between them, \
    ///      transpose it away"
    /// );
    /// # Ok::<(), batchnorm::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Shape::new`]; [`Error::Invalid`] also where there are no axes, one of them twice, or two of them
    /// with another axis between them.
    pub fn with_axes(dims: &[usize], axes: &[isize]) -> Result<Self> {
        let mut is_channel = vec![false; dims.len()];
        for &axis in axes {
            let k = from_start(dims.len(), axis)?;
            if std::mem::replace(&mut is_channel[k], true) {
                let reason = format!("expected each axis once, got axis {k} twice in {axes:?}");
                return Err(Error::invalid("axes", reason));
            }
        }
        let channel_axes = || (0..dims.len()).filter(|&k| is_channel[k]);
        // Where an axis of size 1 stands says nothing about memory.
        let mut wide = channel_axes().filter(|&k| dims[k] != 1);
        let Some(first) = wide.next().or_else(|| channel_axes().next()) else {
            return Err(Error::invalid("axes", "expected at least 1, got none"));
        };
        let last = wide.next_back().unwrap_or(first);
        if let Some(k) = (first..last).find(|&k| !is_channel[k] && dims[k] != 1) {
            let reason = format!(
                "expected neighbours, got {axes:?} of dims {dims:?}: axis {k} of size {} lies between them, \
                 transpose it away",
                dims[k]
            );
            return Err(Error::invalid("axes", reason));
        }
        check_elements(dims)?;
        let channels = channel_axes().map(|k| dims[k]).product();
        let averaged = |from: usize, to: usize| {
            (from..to).filter(|&k| !is_channel[k]).map(|k| dims[k]).product::<usize>()
        };
        let (outer, inner) = (averaged(0, first), averaged(first, dims.len()));
        let batch = if is_channel[0] { 1 } else { dims[0] };
        Ok(Self { batch, ..Self::new(&[outer, channels, inner], 1)? })
    }

    /// The channels where Wolfram's option `Interleaving` has them: on the last axis (true), or on the first
    /// one of a sample (false, the default there). `dims` begin with the batch, as a list of samples does; a
    /// single sample alone is `Shape::from_end(&dims, -1)` or `Shape::new(&dims, 0)`.
    ///
    /// ```
    /// # use batchnorm::Shape;
    /// assert_eq!(Shape::interleaving(&[8, 5, 7, 3], true)?, Shape::new(&[8, 5, 7, 3], 3)?);
    /// assert_eq!(Shape::interleaving(&[8, 3, 5, 7], false)?, Shape::new(&[8, 3, 5, 7], 1)?);
    /// # Ok::<(), batchnorm::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Shape::new`]; [`Error::Invalid`] also where there is no axis behind the batch.
    pub fn interleaving(dims: &[usize], interleaving: bool) -> Result<Self> {
        if dims.len() < 2 {
            let reason = format!("expected a batch axis and at least one behind it, got {dims:?}");
            return Err(Error::invalid("dims", reason));
        }
        Self::from_end(dims, if interleaving { -1 } else { 1 })
    }

    /// One mean for every position of a sample: `dims` is batch first, everything behind it is a
    /// channel (cuDNN's per-activation mode, ONNX' `spatial=0`).
    ///
    /// # Errors
    /// As [`Shape::new`]; `dims` must have a first axis.
    pub fn per_activation(dims: &[usize]) -> Result<Self> {
        let Some((&batch, sample)) = dims.split_first() else {
            return Err(Error::invalid("dims", "expected a batch axis, got none"));
        };
        Self::new(&[batch, checked_product(dims, sample.iter().copied())?], 1)
    }

    /// A view with `strides` (in elements), as frameworks describe permuted tensors: an NCHW view
    /// of channels-last memory is `Shape::strided(&[n, c, h, w], &[h * w * c, 1, w * c, c], 1)`.
    ///
    /// The memory must be dense, each element in it once; the strides of axes of size 1 do not
    /// matter. The slice given to an operation is that memory, from its first element on. [`MemoryOrder`] says in
    /// which order it lies, and whether other tensors do.
    ///
    /// # Errors
    /// As [`Shape::new`]; also where the ranks differ or the memory has gaps or overlaps.
    pub fn strided(dims: &[usize], strides: &[usize], axis: usize) -> Result<Self> {
        let logical = Self::new(dims, axis)?;
        order::check_rank(dims, strides)?;
        if logical.is_empty() {
            return Ok(logical);
        }
        Ok(logical.lying(dims, &order::wide_axes(dims, strides)?, axis))
    }

    /// This shape, of row-major `dims` with the channels on `axis`, where the axes of more than one element lie in
    /// another order.
    fn lying(self, dims: &[usize], order: &[usize], axis: usize) -> Self {
        if self.is_empty() {
            return self;
        }
        let is_interleaved = axis != 0 && dims[0] > 1 && order[0] != 0;
        let logical = Self { is_interleaved, ..self };
        let Some(place) = order.iter().position(|&k| k == axis) else {
            // One channel lies anywhere: all elements share its mean.
            return Self { outer: 1, inner: logical.len(), ..logical };
        };
        let product = |axes: &[usize]| axes.iter().map(|&k| dims[k]).product();
        Self { outer: product(&order[..place]), inner: product(&order[place + 1..]), ..logical }
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
    /// Elements of a row, a place of the first axis; none where they do not lie in one piece.
    pub(crate) fn row_len(&self) -> Option<usize> {
        (!self.is_interleaved && self.batch > 0).then(|| self.len() / self.batch)
    }
    /// So many rows of it, which lie in one piece, as a tensor.
    pub(crate) fn of_rows(self, rows: usize) -> Self {
        let scaled = |size: usize| size / self.batch.max(1) * rows;
        // With one channel the rows may be a part of either.
        match self.outer.is_multiple_of(self.batch.max(1)) {
            true => Self { batch: rows, outer: scaled(self.outer), ..self },
            false => Self { batch: rows, inner: scaled(self.inner), ..self },
        }
    }
    /// The channels of so many groups, row i being in group i mod `groups`, as the channels of one tensor: group by
    /// group. Where the channels are not the axis behind the rows, and there are several, its rows are
    /// [dealt](Self::dealt). None where a row is not one piece; `groups` divides the rows.
    pub(crate) fn of_strided_groups(self, groups: usize) -> Option<Self> {
        let row_len = self.row_len()?;
        let rows = self.batch / groups;
        let grouped = Self { batch: rows, outer: rows, channels: groups * self.channels, ..self };
        if self.channels == 1 || self.outer == self.batch {
            return Some(Self { inner: row_len / self.channels, ..grouped });
        }
        let positions = self.outer / self.batch;
        let dealt = Some(Dealt { groups, positions });
        Some(Self { outer: rows * positions, dealt, ..grouped })
    }
    /// How rows are dealt out to groups, if they are: an engine that does not know of it must not be asked.
    pub(crate) fn dealt(&self) -> Option<Dealt> {
        self.dealt
    }
    /// So many rows of one group of those, as a tensor of that group's channels alone.
    pub(crate) fn of_dealt_rows(self, rows: usize) -> Self {
        let (groups, positions) = self.dealt.map_or((1, 1), |of| (of.groups, of.positions));
        let (outer, channels) = (rows * positions, self.channels / groups);
        Self { batch: rows, outer, channels, dealt: None, ..self }
    }
    /// Indices of channel `c`, in memory order.
    pub(crate) fn channel(self, c: usize) -> impl Iterator<Item = usize> + Clone {
        let start = move |o| (o * self.channels + c) * self.inner;
        (0..self.outer).flat_map(move |o| start(o)..start(o) + self.inner)
    }
}

/// Which axis of so many is meant; those below 0 count from the end.
fn from_start(rank: usize, axis: isize) -> Result<usize> {
    let from_start = match axis {
        0.. => Some(axis.unsigned_abs()),
        _ => rank.checked_sub(axis.unsigned_abs()),
    };
    from_start.filter(|&axis| axis < rank).ok_or_else(|| {
        let reason = format!("expected from -{rank} to less than the rank {rank}, got {axis}");
        Error::invalid("axis", reason)
    })
}

/// Refuses dims whose product overflows, zeros aside: so no part of it overflows where the whole does not.
fn check_elements(dims: &[usize]) -> Result<()> {
    checked_product(dims, dims.iter().copied().filter(|&d| d > 0)).map(drop)
}

/// The product of some sizes of `dims`.
fn checked_product(dims: &[usize], mut sizes: impl Iterator<Item = usize>) -> Result<usize> {
    let product = sizes.try_fold(1usize, |product, size| product.checked_mul(size));
    product.ok_or_else(|| Error::invalid("dims", format!("the product of {dims:?} overflows")))
}

/// As messages show it: `4 x 64 x 3136 (outer x channels x inner, batch 4)`.
impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { batch, outer, channels, inner, .. } = self;
        write!(f, "{outer} x {channels} x {inner} (outer x channels x inner, batch {batch})")
    }
}

#[cfg(test)]
#[path = "shape_tests.rs"]
mod tests;
