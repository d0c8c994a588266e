//! Ghost batches: groups of a batch's rows, each normalized by statistics of its own.
use super::parts::Shared;
use super::{BatchNorm, Config};
use crate::engine::{Grouping, rule};
use crate::{DType, Engine, Error, Memory, NonFinite, Op, Real, Request, Result, Shape};
use std::fmt;

mod backward;
mod channels;
mod double_backward;
mod forward;
mod masked;
mod ranks;

pub(super) use forward::present;

rule! {
    /// Which rows are a group.
    GhostRows {
        /// Neighbours: the first `size` rows, the next ones, and so on. PyTorch's wrappers.
        #[default]
        Consecutive,
        /// Row i is in group i mod (rows / size): TensorFlow's `virtual_batch_size`.
        Strided,
    }
}
rule! {
    /// What becomes of a batch that groups of the size do not divide.
    GhostRemainder {
        /// An error.
        #[default]
        Even,
        /// As many groups as full ones and a shorter one would be, as equal as `torch.chunk` makes them:
        /// each of `ceil(rows / groups)` rows, the last of those that are left.
        Chunk,
        /// The last group has the rows that are left.
        ShortLast,
    }
}
rule! {
    /// How the groups of a batch move the running statistics.
    GhostUpdate {
        /// Each as a batch, in their order, each counted: PyTorch's wrappers.
        #[default]
        Sequential,
        /// Together as one batch, by the plain average of their means and of their variances, whatever their
        /// sizes: TensorFlow. A group that has no variance for
        /// [`OneValue::KeepVariance`](crate::OneValue::KeepVariance) is not in that average.
        Average,
    }
}

/// Ghost batches: in training each group of so many rows (places of the first axis) is normalized by its own
/// mean and variance, and its gradients go through those. Evaluation is by the running statistics, as ever.
///
/// ```
/// # use batchnorm::{BatchNorm, Config, Cpu, Ghost, Shape};
/// # fn main() -> batchnorm::Result<()> {
/// let config = Config::default().ghost(Ghost::consecutive(2));
/// let mut bn = BatchNorm::new(&Cpu::default(), 1, config)?;
/// let (y, _saved) = bn.forward(&Shape::new(&[4, 1], 1)?, &[1f32, 3.0, 100.0, 300.0])?;
/// assert!(y.iter().zip([-1.0, 1.0, -1.0, 1.0]).all(|(y, right)| (y - right).abs() < 1e-4));
/// # Ok(())
/// # }
/// ```
///
/// Which variance moves the running one is [`Config::variance`]: TensorFlow's is biased. One value per channel in
/// a group is what [`Config::one_value`] says. Consecutive groups are a call of the engine each, and strided ones
/// a single call where the channels are on the axis behind the rows or there is only one. [`Cpu`](crate::Cpu) takes
/// groups of 2 to 32 rows of 16 channels or more in a single call where there is nothing behind the channels, by a
/// [`Mask`](crate::Mask) too that has a place for each position and counts exactly, unless
/// an activation's derivative takes more than x: running statistics that are averaged, and the parameters' gradients of
/// strided groups, are then summed over the groups in f64. Elsewhere, as channels-last with several
/// positions, strided groups are a single call of [`Cpu`](crate::Cpu), in which a thread takes a group from its first pass
/// to its last and merges in f64 what its rows come to: so bits may differ from those of a batch of these rows, but not by
/// the number of threads. They are one of [`Cuda`](crate::Cuda) and [`Gpu`](crate::Gpu), too, where the channels and what is
/// behind them are at most 512 elements (256 of f64, and where these are not whole vectors of 16 bytes); else they take one
/// more pass over x, and calls for every row. By a mask they do where something is behind the channels
/// that has a place for each position, and where each group moves the running statistics as a batch and may leave them where
/// they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(deny_unknown_fields)
)]
#[non_exhaustive]
pub struct Ghost {
    /// Rows of a group, at least 1.
    pub size: usize,
    /// Which rows are one.
    #[cfg_attr(feature = "serde", serde(default))]
    pub rows: GhostRows,
    /// What becomes of a batch that does not divide.
    #[cfg_attr(feature = "serde", serde(default))]
    pub remainder: GhostRemainder,
    /// How the running statistics move.
    #[cfg_attr(feature = "serde", serde(default))]
    pub update: GhostUpdate,
}

impl Ghost {
    /// Groups of so many neighbours, which must divide the batch, each a batch to the running statistics.
    pub const fn consecutive(size: usize) -> Self {
        let (rows, remainder) = (GhostRows::Consecutive, GhostRemainder::Even);
        Self { size, rows, remainder, update: GhostUpdate::Sequential }
    }
    /// TensorFlow's `virtual_batch_size`: groups of so many rows at equal distances, which must divide the
    /// batch, averaged for the running statistics.
    pub const fn strided(size: usize) -> Self {
        let (rows, remainder) = (GhostRows::Strided, GhostRemainder::Even);
        Self { size, rows, remainder, update: GhostUpdate::Average }
    }
    /// With this for a batch that does not divide.
    pub const fn remainder(self, remainder: GhostRemainder) -> Self {
        Self { remainder, ..self }
    }
    /// With this way to move the running statistics.
    pub const fn update(self, update: GhostUpdate) -> Self {
        Self { update, ..self }
    }

    /// Refuses numbers and rules that have no meaning.
    pub(super) fn check(&self, config: &Config) -> Result<()> {
        let refused = |expected: &str, got: String| {
            Err(Error::invalid("ghost", format!("expected {expected}, got {got}")))
        };
        if self.size == 0 {
            return refused("groups of at least 1 row", "0".into());
        }
        if self.rows == GhostRows::Strided && self.remainder != GhostRemainder::Even {
            let expected = "even where groups are strided, as rows / size is the distance";
            return refused(expected, format!("{:?}", self.remainder).to_lowercase());
        }
        if !config.track_running_stats {
            return refused("running statistics, by which to evaluate", "none".into());
        }
        let skips = config.non_finite == NonFinite::Skip;
        if skips && (self.rows, self.update) != (GhostRows::Consecutive, GhostUpdate::Sequential) {
            let expected = "consecutive groups with sequential updates, which can be skipped";
            return refused(expected, format!("{self} with non_finite=skip"));
        }
        Ok(())
    }

    /// How these groups lie in a batch; none where it is a single group, or has no rows. `takes`: whether a shape that
    /// has all of them can be one call.
    fn grouping(&self, shape: &Shape, takes: impl Fn(&Shape) -> bool) -> Result<Option<Grouping>> {
        let rows = shape.batch();
        if shape.is_empty() {
            return Ok(None);
        }
        if self.remainder == GhostRemainder::Even && !rows.is_multiple_of(self.size) {
            let reason =
                format!("expected rows that groups of {} divide, got {rows} rows", self.size);
            return Err(Error::invalid("ghost", reason));
        }
        let groups = rows.div_ceil(self.size);
        if groups == 1 {
            return Ok(None);
        }
        if shape.row_len().is_none() {
            let reason = "expected rows that lie in one piece each, got strides by which another axis lies \
                          outside of the first one";
            return Err(Error::invalid("ghost", reason));
        }
        Ok(Some(match (self.rows, self.remainder) {
            (GhostRows::Consecutive, GhostRemainder::Chunk) => {
                Grouping::Consecutive(rows.div_ceil(groups))
            }
            (GhostRows::Consecutive, _) => Grouping::Consecutive(self.size),
            (GhostRows::Strided, _)
                if shape.of_strided_groups(groups).is_some_and(|all| takes(&all)) =>
            {
                Grouping::AsChannels(groups)
            }
            (GhostRows::Strided, _) => Grouping::Strided(groups),
        }))
    }
}

/// `32`, `strided(32)`, with what else there is: `32, chunk, average`.
impl fmt::Display for Ghost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = self.size;
        match self.rows {
            GhostRows::Consecutive => write!(f, "{size}")?,
            GhostRows::Strided => write!(f, "strided({size})")?,
        }
        match self.remainder {
            GhostRemainder::Even => {}
            GhostRemainder::Chunk => f.write_str(", chunk")?,
            GhostRemainder::ShortLast => f.write_str(", short_last")?,
        }
        match (self.rows, self.update) {
            (GhostRows::Consecutive, GhostUpdate::Average) => f.write_str(", average"),
            (GhostRows::Strided, GhostUpdate::Sequential) => f.write_str(", sequential"),
            _ => Ok(()),
        }
    }
}

/// Memory that forwards and backwards in groups work in, kept from one to the next. None of it is of a tensor's
/// size.
pub(super) struct Scratch<M: Memory, P: Real> {
    /// Of strided groups that are calls for each row.
    parts: Option<Shared<M, P>>,
    /// Of those by a mask.
    counted: Option<masked::CountedRows<M>>,
    /// Running statistics of groups that are averaged, where each moves its own.
    averaged: Option<channels::Tiles<M, P>>,
    /// Of strided groups that are channels of one call.
    channels: Option<channels::Tiles<M, P>>,
    /// Of the gradients of a backward of strided groups: the sums of one.
    double_sums: Option<M::Buf<f64>>,
    /// Of groups on several ranks.
    ranks: Option<ranks::Records<M>>,
}

impl<M: Memory, P: Real> Default for Scratch<M, P> {
    fn default() -> Self {
        Self {
            parts: None,
            counted: None,
            averaged: None,
            channels: None,
            double_sums: None,
            ranks: None,
        }
    }
}

impl<M: Memory, P: Real> Scratch<M, P> {
    /// For groups of so many rows each.
    fn parts(&mut self, memory: &M, rows: usize, channels: usize) -> Result<&mut Shared<M, P>> {
        let made_for = (rows, channels);
        let shared = match self.parts.take().filter(|shared| shared.made_for == made_for) {
            Some(shared) => shared,
            None => Shared::new(memory, made_for)?,
        };
        Ok(self.parts.insert(shared))
    }
}

impl<P: Real, M: Memory, G: Engine<Memory = M>> BatchNorm<P, G> {
    /// How a training batch of this shape is grouped, if it is.
    ///
    /// By a mask strided groups are calls for each row here: whether that goes otherwise is looked at with the mask.
    pub(super) fn grouping(
        &self,
        shape: &Shape,
        dtype: DType,
        masked: bool,
    ) -> Result<Option<Grouping>> {
        let takes = |all: &Shape| {
            let request = Request::new(Op::ForwardTrain, dtype);
            !masked && (all.dealt().is_none() || self.engine().takes_groups(all, request))
        };
        self.affine.config.ghost.map_or(Ok(None), |ghost| ghost.grouping(shape, takes))
    }
}
