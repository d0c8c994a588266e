//! How a layer renormalizes: which bounds r and d have, and which statistics they are taken by.
use super::super::Config;
use super::super::config::Python;
use crate::{Error, NonFinite, RenormClip, Result};
use std::fmt;

/// Batch renormalization (Ioffe 2017): in training a channel's y is `(xhat * r + d) * weight + bias`, where r and d
/// lead from the batch's statistics to the kept ones, as far as their bounds let them. So what a layer computes
/// depends less on which samples are in a batch, and on how many. Gradients take r and d as constants.
///
/// ```
/// # use batchnorm::{BatchNorm, Config, Cpu, Renorm, RenormClip, Shape};
/// # fn main() -> batchnorm::Result<()> {
/// let config = Config::default().renorm(Renorm::paper(1.0, 0.0)); // plain batch normalization at first
/// let mut bn = BatchNorm::new(&Cpu::default(), 1, config)?;
/// let (shape, x) = (Shape::new(&[2, 1], 1)?, [1f32, 3.0]);
/// let (y, _saved) = bn.forward(&shape, &x)?;
/// assert!((y[1] - 1.0).abs() < 1e-4);
/// bn.set_renorm_clip(RenormClip::paper(3.0, 5.0))?;
/// let (y, _saved) = bn.forward(&shape, &x)?;
/// assert!(y[0] > 0.5); // the kept mean is still near 0
/// # Ok(())
/// # }
/// ```
///
/// The variance that moves the kept ones is biased, whatever [`Config::variance`] says, and
/// [`Config::momentum`] is the weight of a batch in the statistics that evaluation takes. It takes one more
/// pass over x than a forward without does.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(default, deny_unknown_fields)
)]
#[non_exhaustive]
pub struct Renorm {
    /// Bounds of r and d.
    pub clip: RenormClip,
    /// The weight of a batch in the pair of statistics that r and d are taken by, 0 to 1: what Keras'
    /// `renorm_momentum` leaves of 1. Absent where they are taken by those of evaluation, as in the paper.
    pub momentum: Option<f64>,
}

impl Default for Renorm {
    fn default() -> Self {
        Self::keras()
    }
}

impl Renorm {
    /// Keras' defaults, of 3.14 and of 2: no bounds, a pair of its own with a `renorm_momentum` of 0.99.
    pub const fn keras() -> Self {
        Self { clip: RenormClip::NONE, momentum: Some(0.01) }
    }
    /// The paper's: one pair of statistics, and [`RenormClip::paper`].
    pub const fn paper(r_max: f64, d_max: f64) -> Self {
        Self { clip: RenormClip::paper(r_max, d_max), momentum: None }
    }
    /// With these bounds.
    pub const fn clip(self, clip: RenormClip) -> Self {
        Self { clip, ..self }
    }
    /// With a pair of its own that a batch has this weight in, 0 to 1.
    pub const fn momentum(self, momentum: f64) -> Self {
        Self { momentum: Some(momentum), ..self }
    }

    /// Refuses numbers and rules that have no meaning.
    pub(in crate::layer) fn check(&self, config: &Config) -> Result<()> {
        self.clip.check()?;
        self.momentum.map_or(Ok(()), crate::engine::check_momentum)?;
        let got = match config {
            Config { track_running_stats: false, .. } => "a layer that keeps no running statistics",
            Config { non_finite: NonFinite::Skip, .. } => "non_finite=skip",
            Config { ghost: Some(_), .. } => "ghost batches",
            _ => return Ok(()),
        };
        let expected = "expected a layer that keeps the statistics of every whole batch";
        Err(Error::invalid("renorm", format!("{expected}, got {got}")))
    }
}

/// `rmin=0.5, rmax=2.0, dmax=1.0, momentum=0.01`, of what there is.
impl fmt::Display for Renorm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RenormClip { r_min, r_max, d_max } = self.clip;
        let all = [("rmin", r_min), ("rmax", r_max), ("dmax", d_max), ("momentum", self.momentum)];
        let all = all.into_iter().filter_map(|(name, value)| Some((name, value?)));
        f.write_str("(")?;
        for (k, (name, value)) in all.enumerate() {
            write!(f, "{}{name}={}", if k > 0 { ", " } else { "" }, Python(value))?;
        }
        f.write_str(")")
    }
}
