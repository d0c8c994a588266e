//! Numbers and gradients, by candle's composed layer.
use crate::support::{Pair, apart, gradients, named, pair, pair_of, var};
use anyhow::Result;
use batchnorm_candle::{Activation, BatchNorm, BatchNormConfig};
use candle_core::{DType, Tensor};
use candle_nn::ModuleT;

const RANKS: [&[usize]; 5] =
    [&[6, 3], &[4, 3, 5], &[2, 3, 4, 5], &[2, 3, 2, 3, 2], &[2, 3, 1, 2, 1, 3]];

#[test]
fn of_every_rank_in_training_and_evaluation() -> Result<()> {
    for (dtype, bar) in [(DType::F32, 2e-5), (DType::F64, 1e-12)] {
        for dims in RANKS {
            for train in [true, false] {
                let Pair { maps, ours, candles } = pair(3, dtype)?;
                let x = var(dims, dtype)?;
                let (y, wanted) = (ours.forward_t(&x, train)?, candles.forward_t(&x, train)?);
                let case = format!("{dtype:?} {dims:?} {train}");
                assert!(apart(&y, &wanted)? < bar, "y {case}");
                assert!(apart(ours.running_mean(), candles.running_mean())? < bar, "{case}");
                assert!(apart(ours.running_var(), candles.running_var())? < bar, "{case}");
                let of = |k: usize| [named(&maps[k], "weight"), named(&maps[k], "bias")];
                let [got, want] = [(0, &y), (1, &wanted)].map(|(k, y)| {
                    let [weight, bias] = of(k);
                    gradients(y, &[&x, &weight, &bias])
                });
                for ((got, want), name) in got?.iter().zip(&want?).zip(["x", "weight", "bias"]) {
                    assert!(apart(got, want)? < 40.0 * bar, "grad_{name} {case}");
                }
            }
        }
    }
    Ok(())
}

#[test]
fn without_parameters_and_by_any_momentum_and_eps() -> Result<()> {
    for (affine, momentum, eps) in [(false, 0.1, 1e-5), (true, 1.0, 1e-3), (false, 0.0, 0.5)] {
        let config = BatchNormConfig { eps, remove_mean: true, affine, momentum };
        let Pair { ours, candles, .. } = pair_of(3, DType::F64, config)?;
        assert_eq!(ours.weight_and_bias().is_some(), affine);
        assert_eq!((ours.eps(), ours.momentum()), (eps, momentum));
        let x = var(&[4, 3, 5], DType::F64)?;
        for train in [true, false] {
            let (y, wanted) = (ours.forward_t(&x, train)?, candles.forward_t(&x, train)?);
            assert!(apart(&y, &wanted)? < 1e-12);
            assert!(apart(ours.running_var(), candles.running_var())? < 1e-12);
            let (got, want) = (gradients(&y, &[&x])?, gradients(&wanted, &[&x])?);
            assert!(apart(&got[0], &want[0])? < 1e-11);
        }
    }
    Ok(())
}

/// Channels last, from an offset on, with axes that only seem to lie elsewhere, and some that are not dense.
#[test]
fn views_are_read_as_they_lie() -> Result<()> {
    let Pair { maps, ours, candles } = pair(3, DType::F64)?;
    let base = var(&[4, 4, 5, 3], DType::F64)?;
    let last = |t: &Tensor| t.permute((0, 3, 1, 2));
    let views = [
        last(&base)?,
        last(&base.narrow(0, 1, 2)?)?,
        last(&base.narrow(0, 1, 1)?)?,
        last(&base.narrow(2, 1, 3)?)?,
        last(&base.narrow(1, 2, 1)?)?,
        base.permute((1, 3, 0, 2))?,
        base.permute((2, 3, 1, 0))?,
        last(&base.narrow(1, 0, 1)?.broadcast_as((4, 6, 5, 3))?)?,
    ];
    for x in views {
        let (y, wanted) = (ours.forward_train(&x)?, candles.forward_train(&x)?);
        let case = format!("{:?}", x.layout());
        assert!(apart(&y, &wanted)? < 1e-12, "{case}");
        let of = |k: usize| named(&maps[k], "weight");
        let got = gradients(&y, &[&base, &of(0)])?;
        let want = gradients(&wanted, &[&base, &of(1)])?;
        assert!(apart(&got[0], &want[0])? < 1e-11, "{case}");
        assert!(apart(&got[1], &want[1])? < 1e-11, "{case}");
    }
    // What lies channels last comes out channels last.
    let y = ours.forward_train(&last(&base)?)?;
    assert!(y.permute((0, 2, 3, 1))?.is_contiguous());
    Ok(())
}

/// candle's composition of an activation, where it has one; GELU's by the error function.
fn composed(z: &Tensor, activation: Activation) -> Result<Tensor> {
    Ok(match activation {
        Activation::Identity => z.clone(),
        Activation::Relu => z.relu()?,
        Activation::LeakyRelu { negative_slope } => {
            (z.relu()? - (z.neg()?.relu()? * negative_slope)?)?
        }
        Activation::Relu6 => z.clamp(0.0, 6.0)?,
        Activation::Silu => z.silu()?,
        Activation::HardSwish => (z * ((z + 3.0)?.clamp(0.0, 6.0)? / 6.0)?)?,
        _ => z.gelu_erf()?,
    })
}

#[test]
fn every_epilogue_in_one_pass() -> Result<()> {
    let all = [
        Activation::Identity,
        Activation::Relu,
        Activation::LeakyRelu { negative_slope: 0.1 },
        Activation::Relu6,
        Activation::Silu,
        Activation::HardSwish,
        Activation::Gelu,
    ];
    for (k, activation) in all.into_iter().enumerate() {
        for (affine, added, train) in
            [(true, true, true), (true, false, true), (false, true, true), (true, true, false)]
        {
            let config = BatchNormConfig { affine, ..1e-5.into() };
            let Pair { maps, ours, candles } = pair_of(3, DType::F64, config)?;
            let ours = ours.with_activation(activation);
            assert_eq!(ours.activation(), activation);
            let (x, z) = (var(&[4, 4, 5, 3], DType::F64)?, var(&[4, 5, 4, 3], DType::F64)?);
            // Channels last, the residual in another order of memory.
            let (seen, residual) = (x.permute((0, 3, 1, 2))?, z.permute((0, 3, 2, 1))?);
            let (y, wanted) = if added {
                let wanted = (candles.forward_t(&seen, train)? + &residual)?;
                (ours.forward_add(&seen, &residual, train)?, wanted)
            } else {
                (ours.forward_t(&seen, train)?, candles.forward_t(&seen, train)?)
            };
            let wanted = composed(&wanted, activation)?;
            let case = format!("{k} {affine} {added} {train}");
            assert!(apart(&y, &wanted)? < 1e-6 * f64::from(u8::from(k == 6)) + 1e-12, "{case}");
            let mut by = [vec![x.as_tensor()], vec![x.as_tensor()]];
            let vars = [0, 1].map(|k| {
                let some = affine.then(|| ["weight", "bias"].map(|name| named(&maps[k], name)));
                some.into_iter().flatten().collect::<Vec<_>>()
            });
            for (by, vars) in by.iter_mut().zip(&vars) {
                by.extend(added.then(|| z.as_tensor()));
                by.extend(vars.iter().map(|var| var.as_tensor()));
            }
            let (got, want) = (gradients(&y, &by[0])?, gradients(&wanted, &by[1])?);
            for (k, (got, want)) in got.iter().zip(&want).enumerate() {
                // candle's gradient of GELU is of single precision.
                let bar = if activation == Activation::Gelu { 1e-5 } else { 1e-10 };
                assert!(apart(got, want)? < bar, "gradient {k} of {case}: {}", apart(got, want)?);
            }
        }
    }
    Ok(())
}

#[test]
fn half_precision_keeps_f32_parameters() -> Result<()> {
    for (dtype, bar) in [(DType::F16, 4e-3), (DType::BF16, 3e-2)] {
        let Pair { ours, candles, .. } = pair(3, DType::F64)?;
        let bn = BatchNorm::new(
            3,
            ours.running_mean().to_dtype(DType::F32)?,
            ours.running_var().to_dtype(DType::F32)?,
            candle_core::Var::from_tensor(
                &ours.weight_and_bias().unwrap().0.to_dtype(DType::F32)?,
            )?
            .into_inner(),
            ours.weight_and_bias().unwrap().1.to_dtype(DType::F32)?,
            1e-5,
        )?;
        let x = var(&[4, 3, 4, 4], dtype)?;
        let exact = candle_core::Var::from_tensor(&x.to_dtype(DType::F64)?)?;
        let (y, wanted) = (bn.forward_train(&x)?, candles.forward_train(&exact)?);
        assert_eq!((y.dtype(), bn.running_mean().dtype()), (dtype, DType::F32));
        assert!(apart(&y, &wanted)? < bar);
        assert!(apart(bn.running_var(), candles.running_var())? < 1e-6);
        let weight = bn.weight_and_bias().unwrap().0;
        let grads = gradients(&y, &[&x, weight])?;
        let wanted = gradients(&wanted, &[&exact])?;
        assert_eq!((grads[0].dtype(), grads[1].dtype()), (dtype, DType::F32));
        assert!(apart(&grads[0], &wanted[0])? < bar);
    }
    Ok(())
}

/// Parameters and running statistics of any type, with activations of any other.
#[test]
fn types_may_differ() -> Result<()> {
    for kept in [DType::F16, DType::BF16, DType::F32, DType::F64] {
        for dtype in [DType::F16, DType::BF16, DType::F32, DType::F64] {
            let Pair { ours, .. } = pair(3, DType::F64)?;
            let (weight, bias) = ours.weight_and_bias().unwrap();
            let of = |t: &Tensor| candle_core::Var::from_tensor(&t.to_dtype(kept)?);
            let (weight, bias) = (of(weight)?, of(bias)?);
            let [mean, var_] = [of(ours.running_mean())?, of(ours.running_var())?];
            let (m, v) = (mean.as_tensor().clone(), var_.as_tensor().clone());
            let (w, b) = (weight.as_tensor().clone(), bias.as_tensor().clone());
            let bn = BatchNorm::new(3, m, v, w, b, 1e-5)?;
            let x = var(&[4, 3, 4, 4], dtype)?;
            let wanted = ours.forward_train(&x.to_dtype(DType::F64)?)?;
            let y = bn.forward_train(&x)?;
            assert_eq!((y.dtype(), mean.dtype()), (dtype, kept));
            assert!(apart(&y, &wanted)? < 4e-2, "{kept:?} {dtype:?}");
            // Moved in the variable that was given.
            assert!(apart(&mean, ours.running_mean())? < 1e-2, "{kept:?} {dtype:?}");
            let grads = gradients(&y, &[&x, &weight])?;
            assert_eq!((grads[0].dtype(), grads[1].dtype()), (dtype, kept));
        }
    }
    Ok(())
}

#[test]
fn frozen_statistics_stay_and_gradients_flow() -> Result<()> {
    let Pair { maps, ours, candles } = pair(3, DType::F64)?;
    let ours = ours.frozen(true);
    assert!(ours.is_frozen());
    let (x, before) = (var(&[4, 3, 5], DType::F64)?, ours.running_mean().to_vec1::<f64>()?);
    let (y, wanted) = (ours.forward_train(&x)?, candles.forward_t(&x, false)?);
    assert_eq!(ours.running_mean().to_vec1::<f64>()?, before);
    assert!(apart(&y, &wanted)? < 1e-12);
    let got = gradients(&y, &[&x, &named(&maps[0], "weight")])?;
    let want = gradients(&wanted, &[&x, &named(&maps[1], "weight")])?;
    assert!(apart(&got[0], &want[0])? < 1e-12 && apart(&got[1], &want[1])? < 1e-11);
    Ok(())
}
