//! The layer, with burn's habits.
use crate::flex::{Batch, Call, TYPES};
use crate::op::{self, Tensors};
use crate::pool::Pools;
use crate::{Error, Result};
use batchnorm::{Activation, OneValue, Variance};
use burn::module::{Content, DisplaySettings, Flag, Module, ModuleDisplay, Param, RunningState};
use burn::tensor::{DType, Tensor};

/// Batch normalization over all axes but the second, of any rank from 2 on: a drop-in for burn's
/// `nn::BatchNorm`, with its fields, so that records of either load into the other.
///
/// Made by a [`BatchNormConfig`](crate::BatchNormConfig). [`forward`](Self::forward) trains where burn's layer
/// does: x lies on a device with autodiff, and [`training`](Self::training) is enabled. It normalizes by the
/// batch then and moves the running statistics; otherwise by these. Gradients flow in either case: by running statistics as through an
/// affine map, for layers that are frozen.
#[derive(Module, Debug)]
#[module(custom_display)]
pub struct BatchNorm {
    /// The weight, length C.
    pub gamma: Param<Tensor<1>>,
    /// The bias, length C.
    pub beta: Param<Tensor<1>>,
    /// Whether the layer trains on a device with autodiff; `freeze` of burn's modules disables it.
    pub training: Param<Flag>,
    /// The running mean, length C.
    pub running_mean: RunningState<Tensor<1>>,
    /// The running variance, length C: see [`with_variance`](Self::with_variance).
    pub running_var: RunningState<Tensor<1>>,
    /// The weight of a batch in the running statistics, 0 to 1.
    pub momentum: f64,
    /// What is added to the variance, more than 0.
    pub epsilon: f64,
    #[module(skip)]
    pub(crate) activation: Activation,
    #[module(skip)]
    pub(crate) variance: Variance,
    #[module(skip)]
    pub(crate) one_value: OneValue,
    #[module(skip)]
    pub(crate) pools: Pools,
}

impl BatchNorm {
    /// With this activation behind the normalization, in the same pass.
    pub fn with_activation(self, activation: Activation) -> Self {
        Self { activation, ..self }
    }
    /// With this variance of a batch in the running one: [`Variance::Biased`] over its m values per channel, as
    /// burn's layer has it, unless another is said; [`Variance::Unbiased`] over m - 1, as PyTorch has it. What
    /// normalizes the batch itself is biased in both.
    ///
    /// A record holds either, and does not say which. Of one batch size, one is the other times m / (m - 1).
    pub fn with_variance(self, variance: Variance) -> Self {
        Self { variance, ..self }
    }
    /// With this meaning of a training batch that has one value per channel: one of variance 0, as in burn,
    /// unless another is said; [`OneValue::Refuse`] has PyTorch's error.
    pub fn with_one_value(self, one_value: OneValue) -> Self {
        Self { one_value, ..self }
    }
    /// What follows the normalization.
    pub fn activation(&self) -> Activation {
        self.activation
    }
    /// Which variance of a batch the running one takes.
    pub fn variance(&self) -> Variance {
        self.variance
    }
    /// What a training batch with one value per channel is.
    pub fn one_value(&self) -> OneValue {
        self.one_value
    }

    /// The activation of the normalized x, of shape `[N, C, ..]` and any rank from 2 on; y has the same.
    ///
    /// # Panics
    /// Where [`try_forward`](Self::try_forward) has an error, as burn's.
    pub fn forward<const D: usize>(&self, input: Tensor<D>) -> Tensor<D> {
        self.try_forward(input).unwrap_or_else(|error| panic!("{error}"))
    }
    /// `activation(norm(x) + residual)` in one pass, both of shape `[N, C, ..]` and of one type.
    ///
    /// # Panics
    /// Where [`try_forward_add`](Self::try_forward_add) has an error.
    pub fn forward_add<const D: usize>(&self, input: Tensor<D>, residual: Tensor<D>) -> Tensor<D> {
        self.try_forward_add(input, residual).unwrap_or_else(|error| panic!("{error}"))
    }
    /// [`forward`](Self::forward) with an error instead of a panic.
    ///
    /// # Errors
    /// A rank below 2, other channels, parameters that are not of one length, a type that is none of f16, bf16,
    /// f32 and f64, a device that is none of Flex's, an epsilon or a momentum out of range; one value per channel
    /// where that is refused. Nothing has changed then.
    pub fn try_forward<const D: usize>(&self, input: Tensor<D>) -> Result<Tensor<D>> {
        self.run(input, None)
    }
    /// [`forward_add`](Self::forward_add) with an error instead of a panic.
    ///
    /// # Errors
    /// As [`try_forward`](Self::try_forward); a residual of another shape, type or device than x.
    pub fn try_forward_add<const D: usize>(
        &self,
        input: Tensor<D>,
        residual: Tensor<D>,
    ) -> Result<Tensor<D>> {
        self.run(input, Some(residual))
    }

    fn run<const D: usize>(&self, x: Tensor<D>, residual: Option<Tensor<D>>) -> Result<Tensor<D>> {
        self.check(&x, residual.as_ref())?;
        let trains = x.is_autodiff() && self.training.is_enabled();
        let running = [&self.running_mean, &self.running_var];
        // As burn's layer, which takes updates of other threads in where it trains.
        let running = running.map(|t| if trains { t.value_sync() } else { t.value() });
        let (factor, variance, one_value) = (self.momentum, self.variance, self.one_value);
        let call = Call {
            eps: self.epsilon,
            activation: self.activation,
            batch: trains.then_some(Batch { factor, variance, one_value }),
            pools: self.pools.clone(),
        };
        let (gamma, beta) = (self.gamma.val(), self.beta.val());
        let (y, moved) = op::apply(&call, Tensors { x, residual, gamma, beta, running })?;
        if let Some([mean, var]) = moved {
            self.running_mean.update(mean);
            self.running_var.update(var);
        }
        Ok(y)
    }

    /// Of what tensors say by themselves; the engine checks the rest, before it computes.
    fn check<const D: usize>(&self, x: &Tensor<D>, residual: Option<&Tensor<D>>) -> Result<()> {
        for (what, t) in [("x", Some(x)), ("residual", residual)] {
            if let Some(device) = t.map(Tensor::device).filter(|device| !op::is_flex(device)) {
                return Err(op::elsewhere(what, &device));
            }
        }
        if !matches!(x.dtype(), DType::F16 | DType::BF16 | DType::F32 | DType::F64) {
            return Err(Error::DType { what: "x", expected: TYPES.into(), got: x.dtype() });
        }
        let [channels] = self.gamma.shape().dims();
        let got = x.dims();
        if D < 2 || got[1] != channels {
            let expected = format!("[N, {channels}, ..]");
            return Err(Error::Shape { what: "x", expected, got: got.to_vec() });
        }
        let Some(residual) = residual else { return Ok(()) };
        if residual.dims() != got {
            let expected = format!("{got:?}");
            return Err(Error::Shape { what: "residual", expected, got: residual.dims().to_vec() });
        }
        if residual.dtype() != x.dtype() {
            let expected = format!("{:?}", x.dtype());
            return Err(Error::DType { what: "residual", expected, got: residual.dtype() });
        }
        Ok(())
    }
}

impl ModuleDisplay for BatchNorm {
    fn custom_settings(&self) -> Option<DisplaySettings> {
        DisplaySettings::new().with_new_line_after_attribute(false).optional()
    }

    fn custom_content(&self, content: Content) -> Option<Content> {
        let [num_features] = self.beta.shape().dims();
        let mut content = content
            .add("num_features", &num_features)
            .add("momentum", &self.momentum)
            .add("epsilon", &self.epsilon);
        if self.activation != Activation::Identity {
            content = content.add_debug_attribute("activation", &self.activation);
        }
        if !self.training.is_enabled() {
            content = content.add("training", &self.training);
        }
        content.optional()
    }
}
