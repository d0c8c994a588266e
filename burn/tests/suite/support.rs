//! Pairs of layers, and numbers for them.
use batchnorm_burn::{BatchNorm, BatchNormConfig};
use burn::module::{Param, RunningState};
use burn::nn;
use burn::tensor::{DType, Device, Tensor, TensorData};

/// Flex, with gradients.
pub fn device() -> Device {
    Device::flex().autodiff()
}

/// This layer and burn's with equal parameters and statistics that are not 1 and 0.
pub struct Pair {
    pub ours: BatchNorm,
    pub burns: nn::BatchNorm,
}

pub fn pair(channels: usize, dtype: DType) -> Pair {
    let mut ours = BatchNormConfig::new(channels).init(&device());
    let mut burns = nn::BatchNormConfig::new(channels).init(&device());
    let of = |scale: f64, shift: f64| {
        let values = wave([channels], DType::F64) * scale + shift;
        values.cast(dtype).detach()
    };
    let (gamma, beta, mean, var) = (of(0.5, 1.0), of(0.3, -0.2), of(0.1, 0.05), of(0.2, 1.5));
    macro_rules! set {
        ($($layer:ident),*) => {$(
            $layer.gamma = Param::from_tensor(gamma.clone());
            $layer.beta = Param::from_tensor(beta.clone());
            $layer.running_mean = RunningState::new(mean.clone());
            $layer.running_var = RunningState::new(var.clone());
        )*};
    }
    set!(ours, burns);
    Pair { ours, burns }
}

/// Numbers that repeat nowhere.
pub fn wave<const D: usize>(dims: [usize; D], dtype: DType) -> Tensor<D> {
    wave_on(&device(), dims, dtype)
}

pub fn wave_on<const D: usize>(device: &Device, dims: [usize; D], dtype: DType) -> Tensor<D> {
    let len: usize = dims.iter().product();
    let values: Vec<f64> = (0..len).map(|i| (i as f64 * 0.7391).sin() * 2.0 + 0.4).collect();
    let data = TensorData::new(values, dims).convert_dtype(dtype);
    Tensor::from_data(data, (device, dtype))
}

/// The same, with a gradient.
pub fn leaf<const D: usize>(dims: [usize; D], dtype: DType) -> Tensor<D> {
    wave(dims, dtype).require_grad()
}

pub fn values<const D: usize>(t: &Tensor<D>) -> Vec<f64> {
    t.to_data().convert::<f64>().try_to_vec().unwrap()
}

/// The largest difference; NaN where only one is NaN, which no bar lets pass.
pub fn apart<const D: usize>(a: &Tensor<D>, b: &Tensor<D>) -> f64 {
    assert_eq!(a.dims(), b.dims());
    let pairs = values(a).into_iter().zip(values(b));
    pairs.fold(0.0, |most: f64, (a, b)| {
        let apart = if a == b || a.is_nan() && b.is_nan() { 0.0 } else { (a - b).abs() };
        if apart.is_nan() || most.is_nan() { f64::NAN } else { most.max(apart) }
    })
}

/// The sum of a tensor's values, each times a number of its own, so that its gradient is these numbers.
pub fn loss<const D: usize>(y: &Tensor<D>) -> Tensor<1> {
    let by = (wave(y.dims(), DType::F64) * 1.3).cos();
    (y.clone().cast(DType::F64) * by).sum()
}
