//! The layer, with candle's habits.
use crate::op::{By, Call, Op};
use crate::order;
#[cfg(feature = "cuda")]
use crate::place::cuda::OnCuda;
use crate::place::{OnHost, Pools, activations, parameters};
use batchnorm::{Activation, dispatch};
use candle_core::{DType, Device, Result, Tensor, Var, bail};
use candle_nn::{BatchNormConfig, Init, ModuleT, VarBuilder};

/// Batch normalization over all axes but the second, of any rank from 2 on: a drop-in for
/// [`candle_nn::BatchNorm`].
///
/// Clones share running statistics and parameters, as clones of candle's tensors do. [`forward_t`](ModuleT)
/// with `train` normalizes by the batch and moves the running statistics, in place, so that a `VarMap` that
/// holds them saves them; without it normalizes by these. Gradients flow in either case: without `train` as
/// through an affine map, for layers whose statistics are frozen.
#[derive(Clone)]
pub struct BatchNorm {
    running_mean: Var,
    running_var: Var,
    weight_and_bias: Option<(Tensor, Tensor)>,
    eps: f64,
    momentum: f64,
    activation: Activation,
    frozen: bool,
    pools: Pools,
}

/// As [`candle_nn::batch_norm()`]: `running_mean`, `running_var`, and `weight` and `bias` where
/// [`affine`](BatchNormConfig::affine), of a `VarBuilder`. One of f16 or bf16 gives them in f32.
///
/// # Errors
/// An eps below 0, a momentum that is none of 0 to 1, `remove_mean: false`; candle's errors of variables.
pub fn batch_norm<C: Into<BatchNormConfig>>(
    num_features: usize,
    config: C,
    vb: VarBuilder,
) -> Result<BatchNorm> {
    let BatchNormConfig { eps, remove_mean, affine, momentum } = config.into();
    if !remove_mean {
        bail!("batch norm: expected remove_mean true, got false: candle_nn's layer has that")
    }
    let dtype = if vb.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    let get = |name, value| vb.get_with_hints_dtype(num_features, name, Init::Const(value), dtype);
    let (mean, var) = (get("running_mean", 0.)?, get("running_var", 1.)?);
    let weight_and_bias = if affine { Some((get("weight", 1.)?, get("bias", 0.)?)) } else { None };
    BatchNorm::made(num_features, mean, var, weight_and_bias, eps, momentum)
}

impl BatchNorm {
    /// A layer of these tensors, length `num_features` each; running statistics that are variables are moved,
    /// others copied.
    ///
    /// # Errors
    /// Lengths that differ, an eps below 0.
    pub fn new(
        num_features: usize,
        running_mean: Tensor,
        running_var: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: f64,
    ) -> Result<Self> {
        let (mean, var) = (running_mean, running_var);
        Self::made(num_features, mean, var, Some((weight, bias)), eps, 0.1)
    }

    /// The same without weight and bias.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn new_no_bias(
        num_features: usize,
        running_mean: Tensor,
        running_var: Tensor,
        eps: f64,
    ) -> Result<Self> {
        Self::made(num_features, running_mean, running_var, None, eps, 0.1)
    }

    /// As [`new`](Self::new), with the weight of a batch in the running statistics, 0 to 1.
    ///
    /// # Errors
    /// As [`new`](Self::new); a momentum that is none of 0 to 1.
    pub fn new_with_momentum(
        num_features: usize,
        running_mean: Tensor,
        running_var: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: f64,
        momentum: f64,
    ) -> Result<Self> {
        let (mean, var) = (running_mean, running_var);
        Self::made(num_features, mean, var, Some((weight, bias)), eps, momentum)
    }

    /// The same without weight and bias.
    ///
    /// # Errors
    /// As [`new_with_momentum`](Self::new_with_momentum).
    pub fn new_no_bias_with_momentum(
        num_features: usize,
        running_mean: Tensor,
        running_var: Tensor,
        eps: f64,
        momentum: f64,
    ) -> Result<Self> {
        Self::made(num_features, running_mean, running_var, None, eps, momentum)
    }

    /// A layer that shares candle's running statistics and parameters. Whether that one has
    /// `remove_mean: false` it does not say; this one never has.
    ///
    /// # Errors
    /// As [`new_with_momentum`](Self::new_with_momentum).
    pub fn from_candle(layer: &candle_nn::BatchNorm) -> Result<Self> {
        let (mean, var) = (layer.running_mean().clone(), layer.running_var().clone());
        let weight_and_bias = layer.weight_and_bias().map(|(w, b)| (w.clone(), b.clone()));
        Self::made(mean.elem_count(), mean, var, weight_and_bias, layer.eps(), layer.momentum())
    }

    /// candle's layer with the same running statistics and parameters, shared, for what takes that one, such as
    /// [`candle_nn::Conv2d::absorb_bn`]. It has no activation.
    ///
    /// # Errors
    /// None but candle's.
    pub fn to_candle(&self) -> Result<candle_nn::BatchNorm> {
        let n = self.running_mean.dim(0)?;
        let (mean, var) = (self.running_mean().clone(), self.running_var().clone());
        match self.weight_and_bias.clone() {
            Some((weight, bias)) => candle_nn::BatchNorm::new_with_momentum(
                n,
                mean,
                var,
                weight,
                bias,
                self.eps,
                self.momentum,
            ),
            None => candle_nn::BatchNorm::new_no_bias_with_momentum(
                n,
                mean,
                var,
                self.eps,
                self.momentum,
            ),
        }
    }

    fn made(
        num_features: usize,
        running_mean: Tensor,
        running_var: Tensor,
        weight_and_bias: Option<(Tensor, Tensor)>,
        eps: f64,
        momentum: f64,
    ) -> Result<Self> {
        if eps.is_nan() || eps < 0. {
            bail!("batch norm: expected eps from 0 on, got {eps}")
        }
        if !(0. ..=1.).contains(&momentum) {
            bail!("batch norm: expected a momentum of 0 to 1, got {momentum}")
        }
        let mut all = vec![("running_mean", &running_mean), ("running_var", &running_var)];
        if let Some((weight, bias)) = &weight_and_bias {
            all.extend([("weight", weight), ("bias", bias)]);
        }
        for (k, (name, tensor)) in all.iter().enumerate() {
            if tensor.dims() != [num_features] {
                let got = tensor.dims();
                bail!("batch norm: expected {name} of shape [{num_features}], got {got:?}")
            }
            parameters(tensor.dtype())?;
            let twin = all[..k].iter().find(|(_, t)| t.id() == tensor.id() && t.is_variable());
            if let Some((other, _)) = twin {
                bail!("batch norm: expected {other} and {name} apart, got one variable for both")
            }
        }
        Ok(Self {
            running_mean: Var::from_tensor(&running_mean)?,
            running_var: Var::from_tensor(&running_var)?,
            weight_and_bias,
            eps,
            momentum,
            activation: Activation::Identity,
            frozen: false,
            pools: Pools::default(),
        })
    }

    /// With this activation behind the normalization, in the same pass.
    pub fn with_activation(self, activation: Activation) -> Self {
        Self { activation, ..self }
    }
    /// With statistics that are frozen, or move again: frozen, `train` is taken as false, whoever says it.
    /// Weight and bias get their gradients all the same.
    pub fn frozen(self, frozen: bool) -> Self {
        Self { frozen, ..self }
    }

    /// Length C.
    pub fn running_mean(&self) -> &Tensor {
        self.running_mean.as_tensor()
    }
    /// Length C, unbiased.
    pub fn running_var(&self) -> &Tensor {
        self.running_var.as_tensor()
    }
    /// What is added to the variance.
    pub fn eps(&self) -> f64 {
        self.eps
    }
    /// The weight of a batch in the running statistics.
    pub fn momentum(&self) -> f64 {
        self.momentum
    }
    /// Length C each.
    pub fn weight_and_bias(&self) -> Option<(&Tensor, &Tensor)> {
        self.weight_and_bias.as_ref().map(|(weight, bias)| (weight, bias))
    }
    /// What follows the normalization.
    pub fn activation(&self) -> Activation {
        self.activation
    }
    /// Whether the statistics are frozen.
    pub fn is_frozen(&self) -> bool {
        self.frozen
    }

    /// [`forward_t`](ModuleT::forward_t) with `train`.
    ///
    /// # Errors
    /// As [`forward_add`](Self::forward_add).
    pub fn forward_train(&self, x: &Tensor) -> Result<Tensor> {
        self.forward_t(x, true)
    }

    /// `activation(norm(x) + residual)` in one pass. The residual has x's shape and type.
    ///
    /// # Errors
    /// A rank below 2, other channels, a type that is none of f16, bf16, f32 and f64, another shape, type or
    /// device of the residual, another device of x than the layer's, one value per channel in training: nothing
    /// has changed then.
    pub fn forward_add(&self, x: &Tensor, residual: &Tensor, train: bool) -> Result<Tensor> {
        if residual.dims() != x.dims() {
            let (expected, got) = (x.dims(), residual.dims());
            bail!("batch norm: expected a residual of shape {expected:?}, got {got:?}")
        }
        if residual.dtype() != x.dtype() {
            let (expected, got) = (x.dtype().as_str(), residual.dtype().as_str());
            bail!("batch norm: expected a residual of {expected}, got {got}")
        }
        self.run(x, Some(residual), train)
    }

    fn run(&self, x: &Tensor, residual: Option<&Tensor>, train: bool) -> Result<Tensor> {
        let channels = self.running_mean.dim(0)?;
        if x.rank() < 2 || x.dim(1)? != channels {
            let got = x.dims();
            bail!("batch norm: expected x of shape [N, {channels}, ..], got {got:?}")
        }
        for (what, other) in [("x", Some(x)), ("residual", residual)] {
            let (expected, got) = (self.running_mean.device(), other.map(Tensor::device));
            if let Some(got) = got.filter(|got| !got.same_device(expected)) {
                let (expected, got) = (expected.location(), got.location());
                bail!("batch norm: expected {what} on {expected:?}, got it on {got:?}")
            }
        }
        let dtype = parameters(x.dtype())?;
        let by_batch = train && !self.frozen;
        // Of another type than activations of this one take: copies, which the batch moves in their place.
        let [mean, var] = [&self.running_mean, &self.running_var].map(|kept| {
            if kept.dtype() == dtype {
                Ok(kept.clone())
            } else {
                Var::from_tensor(&kept.to_dtype(dtype)?)
            }
        });
        let (mean, var) = (mean?, var?);
        let by = if by_batch {
            By::Batch { mean: mean.clone(), var: var.clone(), factor: self.momentum }
        } else {
            By::Running { mean: mean.as_detached_tensor(), var: var.as_detached_tensor() }
        };
        let y = self.apply(x, residual, by, dtype)?;
        for (kept, moved) in [(&self.running_mean, &mean), (&self.running_var, &var)] {
            if by_batch && kept.dtype() != dtype {
                kept.set(&moved.to_dtype(kept.dtype())?)?;
            }
        }
        Ok(y)
    }

    fn apply(
        &self,
        x: &Tensor,
        residual: Option<&Tensor>,
        by: By,
        parameters: DType,
    ) -> Result<Tensor> {
        let order = order::of(x)?;
        let call = Call {
            axis: order.place_of(1).unwrap_or(1),
            eps: self.eps,
            activation: self.activation,
            by,
            residual: residual.is_some(),
        };
        let mut args = vec![order::apply(&order, x)?];
        if let Some(residual) = residual {
            args.push(order::apply(&order, residual)?);
        }
        if let Some((weight, bias)) = &self.weight_and_bias {
            let own = |t: &Tensor| t.to_dtype(parameters)?.contiguous();
            let (weight, bias) = (own(weight)?, own(bias)?);
            match residual {
                None => args.extend([weight, bias]),
                Some(_) => args.push(Tensor::stack(&[weight, bias], 0)?),
            }
        }
        let args: Vec<&Tensor> = args.iter().collect();
        let (dtype, pools) = (activations(x.dtype())?, &self.pools);
        let y = match x.device() {
            Device::Cpu => dispatch!(dtype, E => Op::<OnHost, E>::apply(call, pools, &args)),
            #[cfg(feature = "cuda")]
            Device::Cuda(_) => dispatch!(dtype, E => Op::<OnCuda, E>::apply(call, pools, &args)),
            other => {
                bail!("batch norm: expected a CPU or a CUDA device, got {:?}", other.location())
            }
        }?;
        order::undo(&order, y)
    }
}

impl ModuleT for BatchNorm {
    fn forward_t(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        self.run(x, None, train)
    }
}

impl std::fmt::Debug for BatchNorm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { running_mean, running_var, weight_and_bias, .. } = self;
        f.debug_struct("BatchNorm")
            .field("running_mean", running_mean)
            .field("running_var", running_var)
            .field("weight_and_bias", weight_and_bias)
            .field("eps", &self.eps)
            .field("momentum", &self.momentum)
            .field("activation", &self.activation)
            .field("frozen", &self.frozen)
            .finish_non_exhaustive()
    }
}
