//! Checkpoints and conversions, in both directions.
use crate::support::{CPU, Pair, apart, pair, var, wave};
use anyhow::Result;
use batchnorm_candle::{BatchNorm, batch_norm};
use candle_core::{DType, Module, Tensor};
use candle_nn::{Conv2dConfig, ModuleT, VarBuilder, VarMap};

#[test]
fn either_layer_loads_what_the_other_saved() -> Result<()> {
    for dtype in [DType::F32, DType::F64] {
        for from in [0, 1] {
            let Pair { mut maps, ours, candles } = pair(3, dtype)?;
            let x = wave(&[4, 3, 5], dtype)?;
            if from == 0 {
                ours.forward_train(&x)?
            } else {
                candles.forward_train(&x)?
            };
            let name = format!("batchnorm-candle-{}-{from}-{dtype:?}", std::process::id());
            let path = std::env::temp_dir().join(name);
            maps[from].save(&path)?;
            let loaded = maps[1 - from].load(&path);
            // As those do who only evaluate.
            let read = VarBuilder::from_buffered_safetensors(std::fs::read(&path)?, dtype, &CPU)?;
            std::fs::remove_file(&path)?;
            loaded?;
            let read = batch_norm(3, 1e-5, read.pp("layer1.bn1"))?;
            let wanted = candles.forward_t(&x, false)?;
            assert!(apart(&ours.forward_t(&x, false)?, &wanted)? < 1e-6);
            assert!(apart(&read.forward_t(&x, false)?, &wanted)? < 1e-6);
        }
    }
    Ok(())
}

#[test]
fn a_varmap_holds_the_running_statistics() -> Result<()> {
    let vars = VarMap::new();
    let bn = batch_norm(3, 1e-5, VarBuilder::from_varmap(&vars, DType::F32, &CPU))?;
    let mut names: Vec<_> = vars.data().lock().unwrap().keys().cloned().collect();
    names.sort();
    assert_eq!(names, ["bias", "running_mean", "running_var", "weight"]);
    bn.forward_train(&wave(&[4, 3, 5], DType::F32)?)?;
    let held = vars.data().lock().unwrap()["running_mean"].clone();
    assert_ne!(held.to_vec1::<f32>()?, [0.0; 3]);
    assert_eq!(held.to_vec1::<f32>()?, bn.running_mean().to_vec1::<f32>()?);
    // So does a clone of the layer move them.
    let before = held.to_vec1::<f32>()?;
    bn.clone().forward_train(&wave(&[2, 3, 5], DType::F32)?)?;
    assert_ne!(bn.running_mean().to_vec1::<f32>()?, before);
    Ok(())
}

#[test]
fn candles_layer_and_back() -> Result<()> {
    let Pair { ours, candles, .. } = pair(3, DType::F64)?;
    let x = var(&[4, 3, 5], DType::F64)?;
    let back = BatchNorm::from_candle(&ours.to_candle()?)?;
    let other = BatchNorm::from_candle(&candles)?;
    // They share what they are made of.
    back.forward_train(&x)?;
    candles.forward_train(&x)?;
    for layer in [&ours, &back, &other] {
        assert!(apart(layer.running_var(), candles.running_var())? < 1e-12);
        assert!(apart(&layer.forward_t(&x, false)?, &candles.forward_t(&x, false)?)? < 1e-12);
    }
    let plain = BatchNorm::new_no_bias_with_momentum(
        3,
        ours.running_mean().clone(),
        ours.running_var().clone(),
        1e-3,
        0.3,
    )?;
    let candles = plain.to_candle()?;
    assert!(candles.weight_and_bias().is_none());
    assert_eq!((candles.eps(), candles.momentum()), (1e-3, 0.3));
    assert!(apart(&plain.forward_t(&x, false)?, &candles.forward_t(&x, false)?)? < 1e-12);
    Ok(())
}

#[test]
fn folds_into_a_convolution() -> Result<()> {
    let Pair { ours, .. } = pair(3, DType::F64)?;
    let (weight, bias) = (wave(&[3, 2, 3, 3], DType::F64)?, wave(&[3], DType::F64)?);
    let conv = candle_nn::Conv2d::new(weight, Some(bias), Conv2dConfig::default());
    let x: Tensor = wave(&[2, 2, 6, 6], DType::F64)?;
    let wanted = ours.forward_t(&conv.forward(&x)?, false)?;
    let folded = conv.absorb_bn(&ours.to_candle()?)?;
    assert!(apart(&folded.forward(&x)?, &wanted)? < 1e-11);
    Ok(())
}
