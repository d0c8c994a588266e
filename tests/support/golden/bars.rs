//! How far each tensor of a case may be off.
use super::super::tolerance::{Kind, tolerance};
use super::{Case, Content, Entry, parameters_of};
use anyhow::Result;
use batchnorm::DType;

/// The tolerances of one pass: `super::super::tolerance`, with what it needs to know of the case.
///
/// Rounding the mean to the accumulating type shifts `(x - mean) * invstd` of a whole channel by
/// `shift = |mean| * invstd` units of the last place (half of them, to be exact). That costs
///
/// | | |
/// |---|---|
/// | y | `shift * weight` |
/// | grad_weight | `shift * sum(g)`: the weight has no part in it |
/// | grad_x | `shift * weight * invstd * (sum(g * xhat) + xhat * sum(g)) / m`, batch statistics |
///
/// No engine that keeps its mean in that type can do better, the reference included. So the drift
/// is that of y, as everywhere, but for gradients that lose more they get what they lose.
pub struct Bars {
    dtype: DType,
    per_channel: usize,
    eval: bool,
    channels: Vec<Channel>,
}

#[derive(Default)]
struct Channel {
    shift: f64,
    weight: f64,
    invstd: f64,
    max_g: f64,
    max_xhat: f64,
    sum_g: f64,
    sum_g_xhat: f64,
}

impl Bars {
    /// `derivatives` are those of the activation.
    pub fn new(case: &Case, eval: bool, derivatives: &[f64]) -> Result<Self> {
        let prefix = if eval { "running" } else { "batch" };
        let mean = case.tensor(&format!("{prefix}_mean"))?;
        let var = case.tensor(&format!("{prefix}_var"))?;
        let weight = case.optional("weight");
        let mut channels: Vec<Channel> = Vec::with_capacity(mean.len());
        for (c, (mean, var)) in mean.iter().zip(var).enumerate() {
            let invstd = 1.0 / (var + case.eps).sqrt();
            let weight = weight.map_or(1.0, |w| w[c].abs());
            let shift = mean.abs() * invstd;
            channels.push(Channel { shift, weight, invstd, ..Channel::default() });
        }
        let elements = case.tensor("x")?.iter().zip(case.tensor("grad_y")?).zip(derivatives);
        for (i, ((x, grad_y), derivative)) in elements.enumerate() {
            let c = case.channel_of(i);
            let (channel, g) = (&mut channels[c], grad_y * derivative);
            let xhat = (x - mean[c]) * channel.invstd;
            channel.max_g = channel.max_g.max(g.abs());
            channel.max_xhat = channel.max_xhat.max(xhat.abs());
            channel.sum_g += g;
            channel.sum_g_xhat += g * xhat;
        }
        let per_channel = case.shape.per_channel();
        Ok(Self { dtype: case.dtype, per_channel, eval, channels })
    }

    /// For one value of that channel; `max_abs` is the largest golden value of the tensor.
    pub fn tolerance(&self, entry: &Entry, channel: usize, max_abs: f64) -> f64 {
        let (dtype, m) = (self.dtype, self.per_channel as f64);
        let c = &self.channels[channel];
        let drift = c.shift * c.weight;
        match entry.content {
            Content::Statistics | Content::Parameters => {
                tolerance(dtype, Kind::Statistic, max_abs, 0.0)
            }
            Content::Sums => {
                // `tolerance` multiplies by sqrt(m), what a sum of m random values grows by.
                let lost = c.shift * c.sum_g.abs() / m.sqrt();
                let given_mean = entry.name == "grad_weight_eval";
                let drift = if given_mean { drift.max(lost) } else { drift };
                tolerance(dtype, Kind::Sum(self.per_channel), max_abs, drift)
            }
            Content::Elements if entry.name == "grad_x" && !self.eval => {
                // It is a difference of terms: where they cancel (two values per channel, say),
                // what remains is as exact as they are in the accumulating type.
                let terms = c.weight * c.invstd * c.max_g;
                let rounded = tolerance(dtype, Kind::Element, max_abs, drift);
                rounded.max(tolerance(parameters_of(dtype), Kind::Element, terms, drift))
            }
            Content::Elements => tolerance(dtype, Kind::Element, max_abs, drift),
        }
    }
}
