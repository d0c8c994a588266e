//! A small convolutional network, trained with either layer from the same weights.
use crate::support::{CPU, wave};
use anyhow::Result;
use candle_core::{DType, Module, Tensor};
use candle_nn::{ModuleT, Optimizer, VarBuilder, VarMap};

/// The same program, with the layer that `use` names.
macro_rules! trained {
    ($layer:ident) => {{
        use $layer::{BatchNorm, BatchNormConfig, batch_norm};
        let map = VarMap::new();
        let vb = VarBuilder::from_varmap(&map, DType::F32, &CPU);
        let config = BatchNormConfig { eps: 1e-5, remove_mean: true, affine: true, momentum: 0.1 };
        let first: BatchNorm = batch_norm(8, config, vb.pp("bn1"))?;
        let second: BatchNorm = batch_norm(8, 1e-5, vb.pp("bn2"))?;
        let conv = candle_nn::conv2d_no_bias(1, 8, 3, Default::default(), vb.pp("conv1"))?;
        let again = candle_nn::conv2d_no_bias(8, 8, 3, Default::default(), vb.pp("conv2"))?;
        let head = candle_nn::linear(8 * 16, 4, vb.pp("head"))?;
        start(&map)?;
        let x = wave(&[16, 1, 8, 8], DType::F32)?;
        let labels = Tensor::from_vec((0..16u32).map(|i| i * 7 % 4).collect(), 16, &CPU)?;
        let mut sgd = candle_nn::SGD::new(map.all_vars(), 0.05)?;
        let run = |train: bool| -> Result<Tensor> {
            let y = first.forward_t(&conv.forward(&x)?, train)?.relu()?;
            let y = second.forward_t(&again.forward(&y)?, train)?.relu()?;
            let logits = head.forward(&y.flatten_from(1)?)?;
            Ok(candle_nn::loss::cross_entropy(&logits, &labels)?)
        };
        let mut losses = vec![];
        for _ in 0..30 {
            let loss = run(true)?;
            sgd.backward_step(&loss)?;
            losses.push(loss.to_scalar::<f32>()?);
        }
        losses.push(run(false)?.to_scalar::<f32>()?);
        losses
    }};
}

/// Sets what is not a layer's to numbers that depend on its name alone.
fn start(map: &VarMap) -> Result<()> {
    let data = map.data().lock().unwrap();
    for (name, var) in data.iter().filter(|(name, _)| !name.starts_with("bn")) {
        let phase = name.bytes().map(f64::from).sum::<f64>();
        var.set(&((wave(var.dims(), DType::F32)? + phase)?.sin()? * 0.3)?)?;
    }
    Ok(())
}

#[test]
fn the_import_alone_changes() -> Result<()> {
    let (ours, candles): (Vec<f32>, Vec<f32>) = (trained!(batchnorm_candle), trained!(candle_nn));
    assert!(ours[29] < 0.8 * ours[0], "{ours:?}");
    for (k, (ours, candles)) in ours.iter().zip(&candles).enumerate() {
        // What rounding makes of it in 30 steps.
        assert!((ours - candles).abs() < 2e-3 * candles.abs().max(0.1), "{k}: {ours} {candles}");
    }
    Ok(())
}
