//! Where a mask has the place of an element.
use crate::{Error, Result, Shape};

/// How the places of a mask stand for the elements of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Places {
    /// All channels of a position have one: the shape without its channels.
    Positions { channels: usize, inner: usize },
    /// So many neighbours have one: the shape without its last axis.
    Neighbours(usize),
}

impl Places {
    /// Those of a mask without the channels, or without the last axis where its length is given: which may be one of
    /// several that the channels are on.
    pub fn new(shape: &Shape, last: Option<usize>) -> Result<Self> {
        let (channels, inner) = (shape.channels(), shape.inner());
        let Some(last) = last else { return Ok(Self::Positions { channels, inner }) };
        if shape.is_empty() {
            return Ok(Self::Neighbours(last.max(1)));
        }
        if last > 0 && inner.is_multiple_of(last) {
            return Ok(Self::Neighbours(last));
        }
        if inner == 1 && last == channels {
            return Ok(Self::Positions { channels, inner });
        }
        if inner == 1 && last > 0 && channels.is_multiple_of(last) {
            return Ok(Self::Neighbours(last));
        }
        let reason = format!(
            "expected a last axis that divides the {inner} elements behind the channels, or the {channels} \
             channels where nothing is behind them, got one of {last}"
        );
        Err(Error::invalid("mask", reason))
    }
    /// The place of the element at `i`.
    pub fn of(self, i: usize) -> usize {
        match self {
            Self::Positions { channels, inner } => i / (channels * inner) * inner + i % inner,
            Self::Neighbours(each) => i / each,
        }
    }
}
