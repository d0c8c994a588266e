//! What a file says of one layer, whatever system wrote it.
use batchnorm::{
    BatchNorm, Config, DType, Engine, Ghost, GhostRows, Momentum, Real, StateDict, Strict, Variance,
};

use crate::{Array, Error, Result};

/// What a file says of one layer; what it does not say is none.
///
/// Names and meanings are PyTorch's, whatever system wrote the file. A running variance is the number
/// that the file has: whether its updates were by the biased or the unbiased variance of the batches
/// cannot be converted, as the number of values per channel is nowhere stored. Inference is exact
/// either way; what differs is how training goes on.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct LayerState {
    /// The widest of the types that the file stores the numbers as.
    pub dtype: DType,
    /// gamma, scale: one number per channel that multiplies.
    pub weight: Option<Vec<f64>>,
    /// beta, offset: one number per channel that is added last.
    pub bias: Option<Vec<f64>>,
    /// The mean that inference normalizes by, per channel.
    pub running_mean: Option<Vec<f64>>,
    /// The variance that inference normalizes by, per channel.
    pub running_var: Option<Vec<f64>>,
    /// The training steps so far; PyTorch's files alone have it.
    pub num_batches_tracked: Option<u64>,
    /// Added to the variance.
    pub eps: Option<f64>,
    /// How fast the running statistics follow: here the weight of the new value, as in PyTorch.
    pub momentum: Option<Momentum>,
    /// The axis of the channels as the file has it, counted from the end where it is negative.
    pub axis: Option<i64>,
    /// Keras' three more variables of a layer with `renorm=True`, which no other system has.
    pub renorm: Option<Renorm>,
    /// How Keras' layer renormalizes: bounds, and the weight of the new value in `renorm_mean` and `renorm_stddev`.
    pub renorm_rules: Option<batchnorm::Renorm>,
    /// TensorFlow's: rows of a ghost batch, see [`batchnorm::Ghost::strided`].
    pub virtual_batch_size: Option<usize>,
}

/// The statistics of batch renormalization as Keras keeps them beside the moving ones.
#[derive(Debug, Clone, PartialEq)]
pub struct Renorm {
    /// `moving_stddev`: the average of `sqrt(var + eps)`.
    pub moving_stddev: Vec<f64>,
    /// `renorm_mean`.
    pub renorm_mean: Vec<f64>,
    /// `renorm_stddev`.
    pub renorm_stddev: Vec<f64>,
}

impl Renorm {
    /// By Keras' names, in its order.
    fn arrays(&self) -> [(&'static str, &[f64]); 3] {
        let Self { moving_stddev, renorm_mean, renorm_stddev } = self;
        [
            ("moving_stddev", moving_stddev),
            ("renorm_mean", renorm_mean),
            ("renorm_stddev", renorm_stddev),
        ]
    }
}

impl LayerState {
    /// Nothing known.
    pub fn new(dtype: DType) -> Self {
        Self {
            dtype,
            weight: None,
            bias: None,
            running_mean: None,
            running_var: None,
            num_batches_tracked: None,
            eps: None,
            momentum: None,
            axis: None,
            renorm: None,
            renorm_rules: None,
            virtual_batch_size: None,
        }
    }

    /// What a layer holds, and its eps and momentum.
    ///
    /// # Errors
    /// Those of [`BatchNorm::state_dict`].
    pub fn of<P: Real, G: Engine>(layer: &BatchNorm<P, G>) -> Result<Self> {
        let dict = layer.state_dict("")?;
        let mut state = Self::from_state_dict(&dict, "")?;
        let values = |name: &str| dict.get::<f64>(name).map(|found| found.map(|(_, v)| v));
        if let (Some(moving_stddev), Some(mean)) = (values("moving_stddev")?, &state.running_mean) {
            // The paper has one pair for both.
            let renorm_mean = values("renorm_mean")?.unwrap_or_else(|| mean.clone());
            let own = values("renorm_stddev")?;
            let renorm_stddev = own.unwrap_or_else(|| moving_stddev.clone());
            state.renorm = Some(Renorm { moving_stddev, renorm_mean, renorm_stddev });
            state.renorm_rules = layer.config().renorm;
        }
        let ghost = layer.config().ghost.filter(|ghost| ghost.rows == GhostRows::Strided);
        state.virtual_batch_size = ghost.map(|ghost| ghost.size);
        state.eps = Some(layer.config().eps);
        state.momentum = Some(layer.config().momentum);
        Ok(state)
    }

    /// A layer on `engine` that holds these numbers; `base` says what the file does not, see
    /// [`config`](Self::config). f32 layers take f16, bf16 and f32 files, f64 layers all.
    ///
    /// # Errors
    /// [`Error::Mismatch`] where the arrays are not of one length; the library's refusals, of f64
    /// numbers for an f32 layer among them.
    pub fn layer<P: Real, G: Engine>(&self, engine: &G, base: Config) -> Result<BatchNorm<P, G>> {
        let config = self.config(base);
        let mut layer = BatchNorm::new(engine, self.channels()?, config)?;
        let mut dict = self.to_state_dict("")?;
        if let (Some(renorm), Some(rules)) = (&self.renorm, config.renorm) {
            let own_pair = if rules.momentum.is_some() { 3 } else { 1 };
            for (name, values) in renorm.arrays().into_iter().take(own_pair) {
                Array::vector(self.dtype, values.to_vec()).insert_into(&mut dict, name)?;
            }
        }
        layer.load_state_dict(&dict, "", Strict::Yes)?;
        Ok(layer)
    }

    /// The configuration of a layer for these numbers: weight, bias and running statistics where they
    /// are there, eps and momentum as the file says them, and the rest of `base`: the defaults of the
    /// system that wrote the file, [`Config::keras`] say, and its rules for training.
    ///
    /// Where there are statistics of renormalization the layer renormalizes: as the file says, else as `base` does,
    /// else by [`batchnorm::Renorm::keras`]. A `virtual_batch_size` is [`batchnorm::Ghost::strided`] with the biased
    /// variance, as TensorFlow has it.
    pub fn config(&self, base: Config) -> Config {
        let tracked = self.running_mean.is_some() || self.running_var.is_some();
        let mut base = base;
        if self.renorm.is_some() {
            let rules = self.renorm_rules.or(base.renorm);
            base = base.renorm(rules.unwrap_or(batchnorm::Renorm::keras()));
        }
        if let Some(size) = self.virtual_batch_size {
            base = base.ghost(Ghost::strided(size)).variance(Variance::Biased);
        }
        base.weight(self.weight.is_some())
            .bias(self.bias.is_some())
            .track_running_stats(tracked)
            .eps(self.eps.unwrap_or(base.eps))
            .momentum(self.momentum.unwrap_or(base.momentum))
    }

    /// The arrays that are there, by PyTorch's names.
    pub fn arrays(&self) -> impl Iterator<Item = (&'static str, &[f64])> {
        let named = [
            ("weight", &self.weight),
            ("bias", &self.bias),
            ("running_mean", &self.running_mean),
            ("running_var", &self.running_var),
        ];
        named.into_iter().filter_map(|(name, values)| Some((name, values.as_deref()?)))
    }

    /// The number of channels.
    ///
    /// # Errors
    /// [`Error::Mismatch`] where there is no array, or where they are not of one length.
    pub fn channels(&self) -> Result<usize> {
        let mut arrays = self.arrays();
        let (first, values) =
            arrays.next().ok_or_else(|| Error::mismatch("state", "an array", "none"))?;
        match arrays.find(|(_, other)| other.len() != values.len()) {
            None => Ok(values.len()),
            Some((name, other)) => {
                let expected = format!("{} values as {first} has them", values.len());
                Err(Error::mismatch(name, expected, other.len()))
            }
        }
    }

    /// As PyTorch's names hold it, each behind `prefix` (`"bn1."`, its dot included).
    ///
    /// # Errors
    /// [`Error::Mismatch`] where the arrays are not of one length; [`Error::Layer`] for a counter
    /// that exceeds i64.
    pub fn to_state_dict(&self, prefix: &str) -> Result<StateDict> {
        self.channels()?;
        let mut dict = StateDict::new();
        for (name, values) in self.arrays() {
            let array = Array::vector(self.dtype, values.to_vec());
            array.insert_into(&mut dict, &format!("{prefix}{name}"))?;
        }
        if let Some(count) = self.num_batches_tracked {
            dict.insert_count(format!("{prefix}num_batches_tracked"), count)?;
        }
        Ok(dict)
    }

    /// What a state dict has under PyTorch's names, each behind `prefix`.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for an array that is not one value per channel, and where they are not of
    /// one length or there is none; [`Error::Layer`] for a type that is not of floating point and for
    /// a counter that is no whole number.
    pub fn from_state_dict(dict: &StateDict, prefix: &str) -> Result<Self> {
        let mut found = Vec::new();
        for name in ["weight", "bias", "running_mean", "running_var"] {
            let full = format!("{prefix}{name}");
            found.push(match dict.get::<f64>(&full)? {
                None => None,
                Some((shape, values)) if shape.len() == 1 => {
                    Some(Array::vector(dict.dtype(&full).unwrap_or(DType::F64), values))
                }
                Some((shape, _)) => {
                    return Err(Error::mismatch(full, "one dimension", format!("{shape:?}")));
                }
            });
        }
        let mut found = found.into_iter();
        let mut next = || found.next().flatten();
        let mut state = Self::from_arrays(next(), next(), next(), next())?;
        state.num_batches_tracked = dict.count(&format!("{prefix}num_batches_tracked"))?;
        Ok(state)
    }

    /// Refuses numbers for which a file's layer has no place, and places for which there are none.
    pub(crate) fn check_fits(&self, layer: &str, there: &Self) -> Result<()> {
        for (name, expected, got) in [
            ("weight", &there.weight, &self.weight),
            ("bias", &there.bias, &self.bias),
            ("running_mean", &there.running_mean, &self.running_mean),
            ("running_var", &there.running_var, &self.running_var),
        ] {
            let len = |values: &Option<Vec<f64>>| values.as_ref().map(Vec::len);
            let shown = |values: &Option<Vec<f64>>| match values {
                Some(values) => format!("{} values", values.len()),
                None => "none".to_string(),
            };
            if len(expected) != len(got) {
                return Err(Error::mismatch(
                    format!("{layer}: {name}"),
                    shown(expected),
                    shown(got),
                ));
            }
        }
        Ok(())
    }

    /// Refuses an eps or a momentum other than the file's, where both say one.
    pub(crate) fn check_says(&self, layer: &str, there: &Self) -> Result<()> {
        if let (Some(expected), Some(got)) = (there.eps, self.eps)
            && expected != got
        {
            return Err(Error::mismatch(format!("{layer}: eps"), expected, got));
        }
        if let (Some(expected), Some(got)) = (there.momentum, self.momentum)
            && expected != got
        {
            return Err(Error::mismatch(format!("{layer}: momentum"), expected, got));
        }
        Ok(())
    }

    /// Of arrays whose meaning is known.
    pub(crate) fn from_arrays(
        weight: Option<Array>,
        bias: Option<Array>,
        mean: Option<Array>,
        var: Option<Array>,
    ) -> Result<Self> {
        let all = [&weight, &bias, &mean, &var];
        let state = Self {
            dtype: widest(all.into_iter().flatten().map(|array| array.dtype)),
            weight: weight.map(|array| array.values),
            bias: bias.map(|array| array.values),
            running_mean: mean.map(|array| array.values),
            running_var: var.map(|array| array.values),
            ..Self::new(DType::F32)
        };
        state.channels()?;
        Ok(state)
    }
}

/// The narrowest type that holds what all of these hold.
pub(crate) fn widest(types: impl Iterator<Item = DType>) -> DType {
    let wider = |a: DType, b: DType| match (a, b) {
        (a, b) if a == b => a,
        (DType::F64, _) | (_, DType::F64) => DType::F64,
        _ => DType::F32, // f16 and bf16 among them
    };
    types.reduce(wider).unwrap_or(DType::F32)
}
