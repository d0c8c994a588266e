//! What a graph may do with the layer.
use crate::support::{Pair, apart, device, leaf, loss, pair, values, wave, wave_on};
use batchnorm_burn::{Activation, BatchNormConfig};
use burn::module::Param;
use burn::tensor::{DType, Device, Tensor};

/// Two forwards of one layer before a backward: each has its own statistics.
#[test]
fn a_layer_applied_twice() {
    let Pair { ours, burns } = pair(3, DType::F64);
    let (x, other) = (leaf([4, 3, 5], DType::F64), leaf([4, 3, 5], DType::F64));
    let y = ours.forward(ours.forward(x.clone()).powf_scalar(2.0));
    let wanted = burns.forward(burns.forward(other.clone()).powf_scalar(2.0));
    assert!(apart(&y, &wanted) < 1e-11);
    let (got, want) = (loss(&y).backward(), loss(&wanted).backward());
    assert!(apart(&x.grad(&got).unwrap(), &other.grad(&want).unwrap()) < 1e-10);
    let grads = (ours.gamma.val().grad(&got).unwrap(), burns.gamma.val().grad(&want).unwrap());
    assert!(apart(&grads.0, &grads.1) < 1e-10);
}

/// Forwards of two batches, and their backwards in the other order.
#[test]
fn graphs_that_overlap() {
    let Pair { ours, burns } = pair(3, DType::F64);
    let inputs: Vec<_> = (1..4).map(|k| leaf([2 * k, 3, 5], DType::F64)).collect();
    let ys: Vec<_> = inputs.iter().map(|x| ours.forward(x.clone())).collect();
    for (x, y) in inputs.iter().zip(&ys).rev() {
        let other = x.clone().detach().require_grad();
        let wanted = burns.forward(other.clone());
        let (got, want) = (loss(y).backward(), loss(&wanted).backward());
        assert!(apart(&x.grad(&got).unwrap(), &other.grad(&want).unwrap()) < 1e-11);
    }
}

/// x, y and its gradient used elsewhere too: nothing that another holds is written over.
#[test]
fn tensors_that_others_hold_stay() {
    let Pair { ours, burns } = pair(3, DType::F64);
    let run = |forward: &dyn Fn(Tensor<3>) -> Tensor<3>| {
        let x = leaf([4, 3, 5], DType::F64);
        let inner = x.clone() * 1.5;
        let y = forward(inner.clone());
        let out = y.clone() + y.clone() * inner.clone() + inner.clone();
        let before = values(&inner);
        let grads = loss(&out).backward();
        assert_eq!(values(&inner), before);
        x.grad(&grads).unwrap()
    };
    let (got, want) = (run(&|x| ours.forward(x)), run(&|x| burns.forward(x)));
    assert!(apart(&got, &want) < 1e-10);
    // x as its own residual.
    let got = run(&|x| ours.forward_add(x.clone(), x));
    let want = run(&|x| burns.forward(x.clone()) + x);
    assert!(apart(&got, &want) < 1e-10);
    // Inference in place, where the input's memory is somebody else's as well.
    let layer = BatchNormConfig::new(3).init(&Device::flex());
    let x = wave([4, 3, 5], DType::F64).without_autodiff();
    let before = values(&x);
    layer.forward(x.clone());
    assert_eq!(values(&x), before);
    let part = x.clone().narrow(0, 1, 2);
    layer.forward(part);
    assert_eq!(values(&x), before);
}

/// Only what asks for a gradient gets one.
#[test]
fn gradients_of_some() {
    let Pair { mut ours, burns } = pair(3, DType::F64);
    let x = wave([4, 3, 5], DType::F64);
    ours.beta = ours.beta.set_require_grad(false);
    let y = ours.forward(x.clone());
    let wanted = burns.forward(x.clone());
    let (got, want) = (loss(&y).backward(), loss(&wanted).backward());
    assert!(x.grad(&got).is_none() && ours.beta.val().grad(&got).is_none());
    let grads = (ours.gamma.val().grad(&got).unwrap(), burns.gamma.val().grad(&want).unwrap());
    assert!(apart(&grads.0, &grads.1) < 1e-11);
    // The residual alone.
    ours.gamma = ours.gamma.set_require_grad(false);
    let ours = ours.with_activation(Activation::Silu);
    let residual = leaf([4, 3, 5], DType::F64);
    let grads = loss(&ours.forward_add(x.clone(), residual.clone())).backward();
    let other = leaf([4, 3, 5], DType::F64);
    let wanted = burn::tensor::activation::silu(burns.forward(x).detach() + other.clone());
    let want = loss(&wanted).backward();
    assert!(apart(&residual.grad(&grads).unwrap(), &other.grad(&want).unwrap()) < 1e-6);
    // None at all.
    let y = ours.forward(wave([4, 3, 5], DType::F64));
    assert!(y.is_autodiff() && !y.is_require_grad());
}

/// burn's other plan for what a graph keeps: x is computed again for the way back.
#[test]
fn checkpointed_graphs() {
    let device = device().gradient_checkpointing();
    let run = |forward: &dyn Fn(Tensor<3>) -> Tensor<3>, x: &Tensor<3>| {
        let y = forward(x.clone() * 2.0 + 1.0);
        let grads = (y.clone() * y).sum().backward();
        x.grad(&grads).unwrap().without_autodiff()
    };
    let Pair { mut ours, burns } = pair(3, DType::F64);
    let x = leaf([4, 3, 5], DType::F64);
    let want = run(&|x| burns.forward(x), &x);
    assert!(apart(&run(&|x| ours.forward(x), &x), &want) < 1e-10);

    let moved =
        |t: Tensor<1>| Param::from_tensor(Tensor::from_data(t.to_data(), (&device, DType::F64)));
    (ours.gamma, ours.beta) = (moved(ours.gamma.val()), moved(ours.beta.val()));
    let x = wave_on(&device, [4, 3, 5], DType::F64).require_grad();
    assert!(
        x.device().gradient_checkpointing_strategy()
            != Device::flex().autodiff().gradient_checkpointing_strategy()
    );
    assert!(apart(&run(&|x| ours.forward(x), &x), &want) < 1e-10);
}
