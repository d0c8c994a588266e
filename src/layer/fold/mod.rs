//! Layers for deployment: a normalization by running statistics is `x * scale + shift`, which the layer
//! before or after it can do.
use super::BatchNorm;
use crate::{Activation, Element, Engine, Error, Memory, Real, Result};

mod layout;
pub use layout::WeightLayout;

/// What a [`BatchNorm`] does in evaluation: `y = activation(x * scale + shift)` with
/// `scale = weight / sqrt(running_var + eps)` and `shift = bias - running_mean * scale`, C values each, in f64.
///
/// A folded layer computes the same but for rounding, its own and that of its weight's type.
///
/// ```
/// # use batchnorm::{BatchNorm, Config, Reference, WeightLayout};
/// # fn main() -> batchnorm::Result<()> {
/// # let bn = BatchNorm::<f32, _>::new(&Reference, 64, Config::default())?;
/// let conv_weight = vec![0.1f32; 64 * 3 * 7 * 7]; // a convolution of 3 to 64 channels, without a bias
/// let conv = WeightLayout::conv(&[64, 3, 7, 7]).pads_with_zeros(true);
/// let folded = bn.scale_shift()?.fold_into_preceding(&conv, &conv_weight, None)?;
/// assert_eq!((folded.weight.len(), folded.bias.len()), (conv_weight.len(), 64));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct ScaleShift {
    scale: Vec<f64>,
    shift: Vec<f64>,
    activation: Activation,
}

/// Weight and bias of a layer that does what a normalization did beside it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Folded<E> {
    /// In the layout that was given.
    pub weight: Vec<E>,
    /// One value per output channel, whether the layer had a bias or not.
    pub bias: Vec<E>,
}

impl<P: Real, M: Memory, G: Engine<Memory = M>> BatchNorm<P, G> {
    /// This layer's evaluation as a scale and a shift, which it takes off the device.
    ///
    /// # Errors
    /// [`Error::Invalid`] where it has no running statistics, as it normalizes by every batch's own then, or
    /// a scale or a shift is not finite; [`Error::Length`] where public values have another length by now;
    /// the memory's refusal.
    pub fn scale_shift(&self) -> Result<ScaleShift> {
        self.check_lengths()?;
        let (memory, config) = (self.engine().memory(), self.config());
        let Some(running) = self.running() else {
            let reason =
                "expected a layer that tracks them, got one that normalizes by every batch's own";
            return Err(Error::invalid("running statistics", reason));
        };
        let host = |buf: &M::Buf<P>| memory.download(M::view(buf));
        let param = |param: Option<&super::Param<M, P>>| param.map(|p| host(&p.value)).transpose();
        let (weight, bias) = (param(self.weight())?, param(self.bias())?);
        let (mean, var) = (host(&running.mean)?, host(&running.var)?);
        ScaleShift::of(config.activation, config.eps, [weight, bias], [mean, var])
    }
}

impl ScaleShift {
    fn of<P: Real>(
        activation: Activation,
        eps: f64,
        [weight, bias]: [Option<Vec<P>>; 2],
        [mean, var]: [Vec<P>; 2],
    ) -> Result<Self> {
        let or = |values: &Option<Vec<P>>, c: usize, absent: f64| {
            values.as_ref().map_or(absent, |values| values[c].to_f64())
        };
        let channels = mean.len();
        let mut of = Self { scale: vec![], shift: vec![], activation };
        for c in 0..channels {
            let scale = or(&weight, c, 1.0) / (var[c].to_f64() + eps).sqrt();
            let shift = or(&bias, c, 0.0) - mean[c].to_f64() * scale;
            if !(scale.is_finite() && shift.is_finite()) {
                let got = format!("got a scale of {scale} and a shift of {shift} in channel {c}");
                return Err(Error::invalid(
                    "scale and shift",
                    format!("expected finite ones, {got}"),
                ));
            }
            of.scale.push(scale);
            of.shift.push(shift);
        }
        Ok(of)
    }

    /// What a channel's values are multiplied by.
    pub fn scale(&self) -> &[f64] {
        &self.scale
    }
    /// What is added then.
    pub fn shift(&self) -> &[f64] {
        &self.shift
    }
    /// What comes after both.
    pub fn activation(&self) -> Activation {
        self.activation
    }

    /// Folds the normalization into the layer before it: its output channels are the normalization's, and the
    /// activation stays behind it. Exact whatever the layer's padding, stride and dilation.
    ///
    /// `weight' = weight * scale[out]`, `bias' = bias * scale + shift`, computed in f64.
    ///
    /// # Errors
    /// [`Error::Invalid`] where the shape is not one of that layout, the groups do not divide the channels, the
    /// output channels are not the normalization's, or a result is beyond the type; [`Error::Length`] for a
    /// weight or a bias of another length.
    pub fn fold_into_preceding<E: Element>(
        &self,
        layout: &WeightLayout,
        weight: &[E],
        bias: Option<&[E]>,
    ) -> Result<Folded<E>> {
        check(layout, weight, bias)?;
        self.check_channels("output channels", layout.out_channels())?;
        let weight = layout.channels().zip(weight).map(|([o, _], w)| f64_of(*w) * self.scale[o]);
        let bias_of = |o: usize| bias.map_or(0.0, |bias| f64_of(bias[o]));
        let bias = (0..layout.out_channels()).map(|o| bias_of(o) * self.scale[o] + self.shift[o]);
        Ok(Folded { weight: narrow("weight", weight)?, bias: narrow("bias", bias)? })
    }

    /// Folds the normalization into the layer after it, whose input channels are the normalization's.
    ///
    /// `weight' = weight * scale[in]`, `bias'[o] = bias[o] + sum(weight * shift[in])` over the weights of output
    /// channel o, computed in f64.
    ///
    /// # Errors
    /// As [`fold_into_preceding`](Self::fold_into_preceding), for the input channels; and [`Error::Invalid`] where
    /// no fold is exact: there is an activation between the two, or a shift that is not 0 and a layer that pads
    /// its input with zeros or is transposed.
    pub fn fold_into_following<E: Element>(
        &self,
        layout: &WeightLayout,
        weight: &[E],
        bias: Option<&[E]>,
    ) -> Result<Folded<E>> {
        check(layout, weight, bias)?;
        self.check_channels("input channels", layout.in_channels())?;
        if self.activation != Activation::Identity {
            let got = format!("expected none before the layer, got {}", self.activation);
            return Err(Error::invalid("activation", got));
        }
        let shifted = self.shift.iter().position(|&shift| shift != 0.0);
        if let (Some(c), Some(layer)) = (shifted, layout.shift_is_lost()) {
            let expected = format!("expected 0 in every channel before {layer}");
            let got = format!("got {} in channel {c}", self.shift[c]);
            return Err(Error::invalid("shift", format!("{expected}; {got}")));
        }
        let mut sums = vec![0.0; layout.out_channels()];
        let mut scaled = Vec::with_capacity(weight.len());
        for ([o, i], &w) in layout.channels().zip(weight) {
            sums[o] += f64_of(w) * self.shift[i];
            scaled.push(f64_of(w) * self.scale[i]);
        }
        if let Some(bias) = bias {
            sums.iter_mut().zip(bias).for_each(|(sum, &bias)| *sum += f64_of(bias));
        }
        Ok(Folded { weight: narrow("weight", scaled)?, bias: narrow("bias", sums)? })
    }

    fn check_channels(&self, what: &'static str, of_layer: usize) -> Result<()> {
        let own = self.scale.len();
        if of_layer == own {
            return Ok(());
        }
        let got = format!("expected the normalization's {own}, got a layer of {of_layer}");
        Err(Error::invalid(what, got))
    }
}

fn check<E: Element>(layout: &WeightLayout, weight: &[E], bias: Option<&[E]>) -> Result<()> {
    layout.check()?;
    let length = |what, got, expected| match got == expected {
        true => Ok(()),
        false => Err(Error::Length { what, expected, got }),
    };
    length("weight", weight.len(), layout.len())?;
    bias.map_or(Ok(()), |bias| length("bias", bias.len(), layout.out_channels()))
}

fn f64_of<E: Element>(v: E) -> f64 {
    v.widen().to_f64()
}

/// Rounded to the type, which may be too small.
fn narrow<E: Element>(what: &'static str, values: impl IntoIterator<Item = f64>) -> Result<Vec<E>> {
    let narrow_one = |(i, v): (usize, f64)| {
        let narrow = E::narrow(E::Acc::from_f64(v));
        if f64_of(narrow).is_finite() || !v.is_finite() {
            return Ok(narrow);
        }
        let got = format!("got {v} as element {i} of the folded layer");
        Err(Error::invalid(what, format!("expected what {} holds, {got}", E::DTYPE)))
    };
    values.into_iter().enumerate().map(narrow_one).collect()
}
