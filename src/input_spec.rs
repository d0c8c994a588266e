//! What is known of an input before its data: some dims fixed, others free.
use std::fmt;

use crate::{Error, Result, Shape};

/// The dims that every input of a layer has, the free ones aside: Keras' `InputSpec`, Wolfram's port
/// `"Input" -> {n1, n2, ...}`. Each input's own dims are held to it on the way to their [`Shape`], so that a
/// tensor of other dims is an error even where it folds to as many channels.
///
/// ```
/// # use batchnorm::{BatchNorm, Config, InputSpec, Reference};
/// # fn main() -> batchnorm::Result<()> {
/// let spec = InputSpec::new(&[None, Some(2), Some(3)], &[1])?; // any number of samples of 2 x 3
/// let mut bn = BatchNorm::new(&Reference, spec.channels(), Config::default())?;
/// let x = [1f32; 24];
/// bn.forward(&spec.shape(&[4, 2, 3])?, &x)?;
/// let error = spec.shape(&[6, 2, 2]).unwrap_err();
/// assert_eq!(error.to_string(), "input: expected dims [_, 2, 3], got [6, 2, 2]");
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct InputSpec {
    dims: Vec<Option<usize>>,
    axes: Vec<isize>,
    channels: usize,
}

impl InputSpec {
    /// Inputs of `dims`, where `None` is free (the batch, most often), with channels on `axes` as
    /// [`Shape::with_axes`] takes them: one, or several neighbours.
    ///
    /// # Errors
    /// As [`Shape::with_axes`], for which a free axis has a size other than 1; [`Error::Invalid`] also where a
    /// channel axis is free.
    pub fn new(dims: &[Option<usize>], axes: &[isize]) -> Result<Self> {
        const FREE: usize = 2;
        let sizes: Vec<usize> = dims.iter().map(|size| size.unwrap_or(FREE)).collect();
        let channels = Shape::with_axes(&sizes, axes)?.channels();
        // As many channels with other sizes for the free axes: none of them is a channel axis.
        let sizes: Vec<usize> = dims.iter().map(|size| size.unwrap_or(FREE + 1)).collect();
        if Shape::with_axes(&sizes, axes)?.channels() != channels {
            let reason = format!("expected axes of fixed size, got {axes:?} of {}", Dims(dims));
            return Err(Error::invalid("axes", reason));
        }
        Ok(Self { dims: dims.to_vec(), axes: axes.to_vec(), channels })
    }

    /// Number of channels of every such input.
    pub fn channels(&self) -> usize {
        self.channels
    }
    /// What every input has, free where there is none.
    pub fn dims(&self) -> &[Option<usize>] {
        &self.dims
    }

    /// An input of these `dims`.
    ///
    /// # Errors
    /// [`Error::Invalid`] with both where the rank or a fixed size is another; as [`Shape::with_axes`].
    pub fn shape(&self, dims: &[usize]) -> Result<Shape> {
        let mut pairs = self.dims.iter().zip(dims);
        if self.dims.len() == dims.len() && pairs.all(|(fixed, d)| fixed.is_none_or(|f| f == *d)) {
            return Shape::with_axes(dims, &self.axes);
        }
        let reason = format!("expected dims {}, got {dims:?}", Dims(&self.dims));
        Err(Error::invalid("input", reason))
    }
}

/// As messages show them: `[_, 3, 32, 32]`.
struct Dims<'a>(&'a [Option<usize>]);

impl fmt::Display for Dims<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sizes = self.0.iter().map(|size| size.map_or("_".into(), |size| size.to_string()));
        write!(f, "[{}]", sizes.collect::<Vec<_>>().join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_dims_are_free_and_fixed_ones_are_held_to() {
        let spec = InputSpec::new(&[None, Some(5), None, Some(3)], &[-1]).unwrap();
        assert_eq!((spec.channels(), spec.dims().len()), (3, 4));
        for dims in [[8, 5, 7, 3], [0, 5, 1, 3]] {
            assert_eq!(spec.shape(&dims), Shape::new(&dims, 3));
        }
        for dims in [&[8, 6, 7, 3][..], &[8, 5, 7, 4], &[8, 5, 3], &[8, 5, 7, 3, 1], &[]] {
            let expected = format!("input: expected dims [_, 5, _, 3], got {dims:?}");
            assert_eq!(spec.shape(dims).unwrap_err().to_string(), expected);
        }
        let several = InputSpec::new(&[None, Some(5), Some(3)], &[1, 2]).unwrap();
        assert_eq!(several.shape(&[8, 5, 3]), Shape::per_activation(&[8, 5, 3]));
    }

    #[test]
    fn bad_specs_say_both_sides() {
        let message = |dims: &[Option<usize>], axes: &[isize]| {
            InputSpec::new(dims, axes).unwrap_err().to_string()
        };
        assert_eq!(
            message(&[None, None, Some(3)], &[1]),
            "axes: expected axes of fixed size, got [1] of [_, _, 3]"
        );
        assert_eq!(
            message(&[None, Some(3)], &[2]),
            "axis: expected from -2 to less than the rank 2, got 2"
        );
        assert_eq!(message(&[None, Some(0)], &[1]), "channels: expected at least 1, got 0");
        assert!(
            message(&[Some(2), None, Some(3)], &[0, 2]).starts_with("axes: expected neighbours")
        );
    }
}
