//! Pairs of layers, and numbers for them.
use anyhow::{Result, ensure};
use batchnorm_candle::{BatchNorm, BatchNormConfig, batch_norm};
use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{VarBuilder, VarMap};

pub const CPU: Device = Device::Cpu;

/// This layer and candle's over equal variables that are not 1 and 0.
pub struct Pair {
    pub maps: [VarMap; 2],
    pub ours: BatchNorm,
    pub candles: candle_nn::BatchNorm,
}

pub fn pair(channels: usize, dtype: DType) -> Result<Pair> {
    pair_of(channels, dtype, BatchNormConfig::default())
}

pub fn pair_of(channels: usize, dtype: DType, config: BatchNormConfig) -> Result<Pair> {
    let maps = [VarMap::new(), VarMap::new()];
    let builder = |k: usize| VarBuilder::from_varmap(&maps[k], dtype, &CPU).pp("layer1.bn1");
    let ours = batch_norm(channels, config, builder(0))?;
    let candles = candle_nn::batch_norm(channels, config, builder(1))?;
    for (k, name) in ["weight", "bias", "running_mean", "running_var"].iter().enumerate() {
        let (scale, shift) = [(0.5, 1.0), (0.3, -0.2), (0.1, 0.05), (0.2, 1.5)][k];
        let value = wave(&[channels], dtype)?.affine(scale, shift)?;
        for map in &maps {
            if let Some(var) = map.data().lock().unwrap().get(&format!("layer1.bn1.{name}")) {
                var.set(&value)?;
            }
        }
    }
    Ok(Pair { maps, ours, candles })
}

/// Numbers that repeat nowhere.
pub fn wave(dims: &[usize], dtype: DType) -> Result<Tensor> {
    let len: usize = dims.iter().product();
    let values: Vec<f64> = (0..len).map(|i| (i as f64 * 0.7391).sin() * 2.0 + 0.4).collect();
    Ok(Tensor::from_vec(values, dims, &CPU)?.to_dtype(dtype)?)
}

pub fn var(dims: &[usize], dtype: DType) -> Result<Var> {
    Ok(Var::from_tensor(&wave(dims, dtype)?)?)
}

/// The largest difference.
pub fn apart(a: &Tensor, b: &Tensor) -> Result<f64> {
    ensure!(a.dims() == b.dims(), "{:?} beside {:?}", a.dims(), b.dims());
    let (a, b) = (a.to_dtype(DType::F64)?, b.to_dtype(DType::F64)?);
    Ok((a - b)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f64>()?)
}

/// The sum of a tensor's values, each times a number of its own, so that its gradient is these numbers.
pub fn loss(y: &Tensor) -> Result<Tensor> {
    let by = (wave(y.dims(), DType::F64)? * 1.3)?.cos()?;
    Ok((y.to_dtype(DType::F64)? * by)?.sum_all()?)
}

pub fn named(map: &VarMap, name: &str) -> Var {
    map.data().lock().unwrap()[&format!("layer1.bn1.{name}")].clone()
}

/// Gradients of [`loss`] of y, by these variables.
pub fn gradients(y: &Tensor, by: &[&Tensor]) -> Result<Vec<Tensor>> {
    let all = loss(y)?.backward()?;
    let of = |t: &&Tensor| all.get(t).cloned().ok_or_else(|| anyhow::anyhow!("no gradient"));
    by.iter().map(of).collect()
}
