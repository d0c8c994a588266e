//! Refusals: candle's errors, which show both sides; nothing has changed.
use crate::support::{CPU, Pair, pair, var, wave};
use anyhow::Result;
use batchnorm_candle::{BatchNorm, BatchNormConfig, batch_norm};
use candle_core::{DType, Tensor, Var};
use candle_nn::{ModuleT, VarBuilder, VarMap};

fn refuses<T>(got: candle_core::Result<T>, sides: &[&str]) {
    let Err(error) = got else { panic!("expected an error that says {sides:?}") };
    let text = error.to_string();
    assert!(sides.iter().all(|side| text.contains(side)), "{text}");
}

#[test]
fn of_inputs() -> Result<()> {
    let Pair { ours, .. } = pair(3, DType::F32)?;
    let before = ours.running_var().to_vec1::<f32>()?;
    let x = |dims: &[usize]| wave(dims, DType::F32);
    refuses(ours.forward_train(&x(&[3])?), &["[N, 3, ..]", "[3]"]);
    refuses(ours.forward_train(&x(&[2, 4, 5])?), &["[N, 3, ..]", "[2, 4, 5]"]);
    refuses(ours.forward_t(&x(&[])?, false), &["[N, 3, ..]", "[]"]);
    for dtype in [DType::U8, DType::U32, DType::I64] {
        let x = Tensor::zeros((4, 3), dtype, &CPU)?;
        refuses(ours.forward_train(&x), &["f16, bf16, f32 or f64", dtype.as_str()]);
    }
    // One value per channel.
    refuses(ours.forward_train(&x(&[1, 3])?), &["1"]);
    refuses(ours.forward_add(&x(&[2, 3, 4])?, &x(&[2, 3, 5])?, true), &["[2, 3, 4]", "[2, 3, 5]"]);
    let other = wave(&[2, 3, 4], DType::F64)?;
    refuses(ours.forward_add(&x(&[2, 3, 4])?, &other, true), &["f32", "f64"]);
    assert_eq!(ours.running_var().to_vec1::<f32>()?, before);
    // Evaluation has nothing against one value.
    ours.forward_t(&x(&[1, 3])?, false)?;
    Ok(())
}

#[test]
fn of_layers() -> Result<()> {
    let vars = VarMap::new();
    let vb = || VarBuilder::from_varmap(&vars, DType::F32, &CPU);
    let config = |eps, momentum| BatchNormConfig { eps, momentum, ..Default::default() };
    refuses(batch_norm(3, -1.0, vb()), &["from 0 on", "-1"]);
    refuses(batch_norm(3, f64::NAN, vb()), &["from 0 on", "NaN"]);
    refuses(batch_norm(3, config(1e-5, 1.5), vb()), &["0 to 1", "1.5"]);
    let config = BatchNormConfig { remove_mean: false, ..Default::default() };
    refuses(batch_norm(3, config, vb()), &["true", "false"]);
    let of = |n: usize| wave(&[n], DType::F32);
    refuses(BatchNorm::new(3, of(3)?, of(3)?, of(4)?, of(3)?, 1e-5), &["weight", "[3]", "[4]"]);
    refuses(BatchNorm::new_no_bias(2, of(2)?, of(3)?, 1e-5), &["running_var", "[2]", "[3]"]);
    let one = var(&[3], DType::F32)?.into_inner();
    let twice = BatchNorm::new_no_bias(3, one.clone(), one, 1e-5);
    refuses(twice, &["running_mean", "running_var", "one variable"]);
    let whole = Tensor::zeros(3, DType::U8, &CPU)?;
    refuses(BatchNorm::new_no_bias(3, whole, of(3)?, 1e-5), &["f16, bf16, f32 or f64", "u8"]);
    Ok(())
}

/// A batch of nothing leaves everything as it is.
#[test]
fn empty_batches_pass() -> Result<()> {
    let Pair { ours, .. } = pair(3, DType::F32)?;
    let before = ours.running_mean().to_vec1::<f32>()?;
    let x = Var::zeros((0, 3, 5), DType::F32, &CPU)?;
    for train in [true, false] {
        let y = ours.forward_t(&x, train)?;
        assert_eq!(y.dims(), [0, 3, 5]);
    }
    assert_eq!(ours.running_mean().to_vec1::<f32>()?, before);
    Ok(())
}
