//! What a graph holds: several forwards before a backward, several backwards, threads, memory.
use crate::support::{CPU, Pair, apart, gradients, loss, named, pair, var, wave};
use anyhow::Result;
use batchnorm_candle::{Activation, BatchNorm};
use candle_core::{DType, Tensor, Var};
use candle_nn::ModuleT;

#[test]
fn two_forwards_before_a_backward() -> Result<()> {
    let Pair { maps, ours, candles } = pair(3, DType::F64)?;
    let x = var(&[4, 3, 5], DType::F64)?;
    let twice = |f: &dyn Fn(&Tensor) -> candle_core::Result<Tensor>| f(&f(&x)?.sqr()?);
    let (y, wanted) = (twice(&|x| ours.forward_train(x))?, twice(&|x| candles.forward_train(x))?);
    let got = gradients(&y, &[&x, &named(&maps[0], "weight")])?;
    let want = gradients(&wanted, &[&x, &named(&maps[1], "weight")])?;
    assert!(apart(&got[0], &want[0])? < 1e-9);
    assert!(apart(&got[1], &want[1])? < 1e-9);
    Ok(())
}

/// One output that goes two ways, and one graph that is walked twice.
#[test]
fn an_output_is_used_twice() -> Result<()> {
    let Pair { ours, candles, .. } = pair(3, DType::F64)?;
    let x = var(&[4, 3, 5], DType::F64)?;
    let both = |y: Tensor| -> Result<Tensor> { Ok((loss(&y)? + y.sqr()?.sum_all()?)?) };
    let (got, want) = (both(ours.forward_train(&x)?)?, both(candles.forward_train(&x)?)?);
    let wanted = want.backward()?.get(&x).unwrap().clone();
    for _ in 0..2 {
        assert!(apart(got.backward()?.get(&x).unwrap(), &wanted)? < 1e-10);
    }
    Ok(())
}

#[test]
fn a_step_between_forward_and_backward_changes_no_gradient() -> Result<()> {
    let Pair { maps, ours, .. } = pair(3, DType::F64)?;
    let x = var(&[4, 3, 5], DType::F64)?;
    let y = ours.forward_train(&x)?;
    let before = gradients(&y, &[&x])?;
    named(&maps[0], "weight").set(&Tensor::zeros(3, DType::F64, &CPU)?)?;
    ours.forward_train(&wave(&[6, 3, 5], DType::F64)?)?;
    assert_eq!(apart(&gradients(&y, &[&x])?[0], &before[0])?, 0.0);
    Ok(())
}

/// Only what asks for a gradient gets one; where nothing does, nothing is kept.
#[test]
fn what_asks_for_no_gradient_gets_none() -> Result<()> {
    let Pair { ours, candles, maps } = pair(3, DType::F64)?;
    let x = wave(&[4, 3, 5], DType::F64)?;
    let y = ours.forward_add(&x, &x, true)?;
    let grads = loss(&y)?.backward()?;
    assert!(grads.get(&x).is_none());
    candles.forward_train(&x)?;
    assert!(grads.get(&named(&maps[0], "weight")).is_some());
    let bare = BatchNorm::new_no_bias(
        3,
        ours.running_mean().copy()?.detach(),
        ours.running_var().copy()?.detach(),
        1e-5,
    )?;
    assert!(!bare.forward_train(&x)?.track_op());
    // A residual alone.
    let z = Var::from_tensor(&x)?;
    let y = bare.with_activation(Activation::Relu).forward_add(&x, &z, true)?;
    let wanted = ((bn_of(&x)? + z.as_tensor())?).relu()?;
    assert!(apart(&y, &wanted)? < 1e-12);
    assert!(apart(&gradients(&y, &[&z])?[0], &gradients(&wanted, &[&z])?[0])? < 1e-12);
    Ok(())
}

fn bn_of(x: &Tensor) -> Result<Tensor> {
    let (zeros, ones) = (Tensor::zeros(3, DType::F64, &CPU)?, Tensor::ones(3, DType::F64, &CPU)?);
    Ok(candle_nn::BatchNorm::new_no_bias(3, zeros, ones, 1e-5)?.forward_t(x, true)?)
}

#[test]
fn threads_share_a_layer() -> Result<()> {
    let Pair { ours, candles, .. } = pair(3, DType::F64)?;
    let wanted = {
        let x = var(&[4, 3, 5], DType::F64)?;
        gradients(&candles.forward_train(&x)?.sqr()?, &[&x])?.remove(0)
    };
    std::thread::scope(|scope| {
        let one = || -> Result<()> {
            for _ in 0..20 {
                let x = var(&[4, 3, 5], DType::F64)?;
                let y = ours.forward_train(&x)?.sqr()?;
                assert!(apart(&gradients(&y, &[&x])?[0], &wanted)? < 1e-10);
            }
            Ok(())
        };
        let all: Vec<_> = (0..4).map(|_| scope.spawn(one)).collect();
        all.into_iter().try_for_each(|thread| thread.join().unwrap())
    })
}
