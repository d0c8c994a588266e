//! What a layer is made of. `Result` is the standard one here, as the derived code has it.
use crate::pool::Pools;
use crate::{BatchNorm, Error};
use batchnorm::{Activation, OneValue, Variance};
use burn::config::Config;
use burn::module::{Param, RunningState};
use burn::tensor::{Device, Tensor};

/// What a [`BatchNorm`] is made of: as burn's, with the same names and defaults, and the same file.
#[derive(Config, Debug)]
pub struct BatchNormConfig {
    /// The number of channels, more than 0.
    pub num_features: usize,
    /// What is added to the variance, finite and more than 0. Default: 1e-5
    #[config(default = 1e-5)]
    pub epsilon: f64,
    /// The weight of a batch in the running statistics, 0 to 1. Default: 0.1
    #[config(default = 0.1)]
    pub momentum: f64,
}

impl BatchNormConfig {
    /// A layer on this device: gamma and the running variance of ones, beta and the running mean of zeros.
    ///
    /// # Panics
    /// Where [`try_init`](Self::try_init) has an error, as burn's.
    pub fn init(&self, device: &Device) -> BatchNorm {
        self.try_init(device).unwrap_or_else(|error| panic!("{error}"))
    }

    /// The same.
    ///
    /// # Errors
    /// [`Error::Config`] of no channels, of an epsilon that is not finite and above 0, of a momentum that is none
    /// of 0 to 1.
    pub fn try_init(&self, device: &Device) -> crate::Result<BatchNorm> {
        let Self { num_features, epsilon, momentum } = *self;
        let numbers = [
            ("num_features", "at least 1", num_features as f64, num_features > 0),
            ("epsilon", "a finite number above 0", epsilon, epsilon.is_finite() && epsilon > 0.0),
            ("momentum", "0 to 1", momentum, (0.0..=1.0).contains(&momentum)),
        ];
        for (what, expected, got, is_right) in numbers {
            if !is_right {
                return Err(Error::Config { what, expected, got });
            }
        }
        Ok(BatchNorm {
            gamma: Param::from_tensor(Tensor::ones([num_features], device)),
            beta: Param::from_tensor(Tensor::zeros([num_features], device)),
            training: Param::from_bool(true),
            running_mean: RunningState::new(Tensor::zeros([num_features], device)),
            running_var: RunningState::new(Tensor::ones([num_features], device)),
            momentum,
            epsilon,
            activation: Activation::Identity,
            variance: Variance::Biased,
            one_value: OneValue::ZeroVariance,
            pools: Pools::default(),
        })
    }
}
