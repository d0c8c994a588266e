//! Outputs, statistics and gradients of both layers.
use crate::support::{Pair, apart, device, leaf, loss, pair, wave};
use batchnorm_burn::{Activation, BatchNormConfig, OneValue, Variance};
use burn::module::Module;
use burn::nn;
use burn::tensor::{DType, Device, Tensor, activation};

/// Several steps of both layers over other inputs: y, running statistics, three gradients.
fn steps<const D: usize>(dims: [usize; D], dtype: DType, bar: f64) {
    let Pair { ours, burns } = pair(dims[1], dtype);
    for step in 0..3 {
        let case = format!("{dims:?} {dtype:?} step {step}");
        let start = (leaf(dims, dtype) * (1.0 + 0.5 * f64::from(step))).detach();
        let (x, theirs) = (start.clone().require_grad(), start.require_grad());
        let (y, wanted) = (ours.forward(x.clone()), burns.forward(theirs.clone()));
        assert_eq!(y.dtype(), dtype);
        assert!(apart(&y, &wanted) < bar, "{case}: {}", apart(&y, &wanted));
        for (got, wanted) in [
            (ours.running_mean.value_sync(), burns.running_mean.value_sync()),
            (ours.running_var.value_sync(), burns.running_var.value_sync()),
        ] {
            assert!(apart(&got, &wanted) < bar, "{case}: statistics");
        }
        let (got, want) = (loss(&y).backward(), loss(&wanted).backward());
        let grad = (x.grad(&got).unwrap(), theirs.grad(&want).unwrap());
        assert!(apart(&grad.0, &grad.1) < 10.0 * bar, "{case}: {}", apart(&grad.0, &grad.1));
        for (mine, other) in [(&ours.gamma, &burns.gamma), (&ours.beta, &burns.beta)] {
            let (mine, other) = (mine.val().grad(&got).unwrap(), other.val().grad(&want).unwrap());
            assert_eq!(mine.dtype(), dtype);
            // Sums over all values.
            assert!(apart(&mine, &other) < 100.0 * bar, "{case}: {}", apart(&mine, &other));
        }
    }
    let x = wave(dims, dtype);
    let (ours, burns) = (ours.valid(), burns.valid());
    let x = x.without_autodiff();
    let apart = apart(&ours.forward(x.clone()), &burns.forward(x));
    assert!(apart < bar, "{dims:?} {dtype:?} inference: {apart}");
}

#[test]
fn ranks_2_to_5_in_every_type() {
    for (dtype, bar) in
        [(DType::F64, 1e-12), (DType::F32, 1e-5), (DType::F16, 2e-2), (DType::BF16, 2e-1)]
    {
        steps([7, 3], dtype, bar);
        steps([4, 5, 9], dtype, bar);
        steps([4, 3, 5, 2], dtype, bar);
        steps([2, 17, 3, 1, 4], dtype, bar);
        steps([33, 1, 1], dtype, bar);
    }
}

/// Channels last, slices and axes in any order, and what is not dense.
#[test]
fn views_are_read_as_they_lie() {
    type View = fn(Tensor<4>) -> Tensor<4>;
    let views: [View; 9] = [
        |t| t.permute([0, 3, 1, 2]),
        |t| t.narrow(0, 1, 2).permute([0, 3, 1, 2]),
        |t| t.narrow(0, 1, 1).permute([0, 3, 1, 2]),
        |t| t.narrow(2, 1, 3).permute([0, 3, 1, 2]),
        |t| t.narrow(1, 2, 1).permute([0, 3, 1, 2]),
        |t| t.permute([1, 3, 0, 2]),
        |t| t.permute([2, 3, 1, 0]),
        |t| t.narrow(1, 0, 1).expand([4, 6, 5, 3]).permute([0, 3, 1, 2]),
        |t| t.flip([1, 3]).permute([0, 3, 1, 2]),
    ];
    for (k, view) in views.into_iter().enumerate() {
        let Pair { ours, burns } = pair(3, DType::F64);
        let (base, other) = (leaf([4, 4, 5, 3], DType::F64), leaf([4, 4, 5, 3], DType::F64));
        let (y, wanted) = (ours.forward(view(base.clone())), burns.forward(view(other.clone())));
        assert!(apart(&y, &wanted) < 1e-12, "view {k}");
        let (got, want) = (loss(&y).backward(), loss(&wanted).backward());
        let (got, want) = (base.grad(&got).unwrap(), other.grad(&want).unwrap());
        assert!(apart(&got, &want) < 1e-11, "view {k}: {}", apart(&got, &want));
        // And where the statistics are the running ones, in place if the memory is nobody else's.
        let (ours, burns) = (ours.valid(), burns.valid());
        let x = || view(wave([4, 4, 5, 3], DType::F64).without_autodiff());
        let (y, wanted) = (ours.forward(x()), burns.forward(x()));
        assert!(apart(&y, &wanted) < 1e-12, "view {k}, inference");
    }
}

/// burn's composition of an activation.
fn composed(z: Tensor<4>, by: Activation) -> Tensor<4> {
    match by {
        Activation::Identity => z,
        Activation::Relu => activation::relu(z),
        Activation::LeakyRelu { negative_slope } => activation::leaky_relu(z, negative_slope),
        Activation::Relu6 => z.clamp(0.0, 6.0),
        Activation::Silu => activation::silu(z),
        Activation::HardSwish => z.clone() * ((z + 3.0).clamp(0.0, 6.0) / 6.0),
        _ => activation::gelu(z),
    }
}

#[test]
fn every_epilogue_in_one_pass() {
    for by in Activation::ALL {
        for (added, trains) in [(true, true), (true, false), (false, true), (false, false)] {
            let case = format!("{by} {added} {trains}");
            let Pair { ours, burns } = pair(3, DType::F64);
            let mut ours = ours.with_activation(by);
            let mut burns = burns;
            ours.training = ours.training.with_value(trains);
            burns.training = burns.training.with_value(trains);
            assert_eq!(ours.activation(), by);
            let inputs = || (leaf([4, 4, 5, 3], DType::F64), leaf([4, 5, 4, 3], DType::F64));
            let ((x, r), (x2, r2)) = (inputs(), inputs());
            // Channels last, the residual in another order of memory.
            let seen = |t: &Tensor<4>| t.clone().permute([0, 3, 1, 2]);
            let beside = |t: &Tensor<4>| t.clone().permute([0, 3, 2, 1]);
            let (y, wanted) = if added {
                let y = ours.forward_add(seen(&x), beside(&r));
                (y, composed(burns.forward(seen(&x2)) + beside(&r2), by))
            } else {
                (ours.forward(seen(&x)), composed(burns.forward(seen(&x2)), by))
            };
            assert!(apart(&y, &wanted) < 1e-6, "{case}: {}", apart(&y, &wanted));
            let (got, want) = (loss(&y).backward(), loss(&wanted).backward());
            let bar = 1e-5;
            let grads = (x.grad(&got).unwrap(), x2.grad(&want).unwrap());
            assert!(apart(&grads.0, &grads.1) < bar, "{case}: {}", apart(&grads.0, &grads.1));
            if added {
                let grads = (r.grad(&got).unwrap(), r2.grad(&want).unwrap());
                assert!(apart(&grads.0, &grads.1) < bar, "{case}: {}", apart(&grads.0, &grads.1));
            }
            for (mine, other) in [(&ours.gamma, &burns.gamma), (&ours.beta, &burns.beta)] {
                let grads = (mine.val().grad(&got).unwrap(), other.val().grad(&want).unwrap());
                assert!(apart(&grads.0, &grads.1) < 10.0 * bar, "{case}");
            }
        }
    }
}

/// Frozen as burn freezes: statistics stay, and gradients flow as through an affine map.
#[test]
fn frozen_layers_keep_their_statistics() {
    let Pair { ours, burns } = pair(3, DType::F64);
    let before = ours.running_mean.value();
    let (ours, burns) = (ours.freeze(), burns.freeze());
    let (x, other) = (leaf([4, 3, 5], DType::F64), leaf([4, 3, 5], DType::F64));
    let (y, wanted) = (ours.forward(x.clone()), burns.forward(other.clone()));
    assert!(apart(&y, &wanted) < 1e-12);
    assert!(apart(&ours.running_mean.value_sync(), &before) == 0.0);
    let (got, want) = (loss(&y).backward(), loss(&wanted).backward());
    assert!(apart(&x.grad(&got).unwrap(), &other.grad(&want).unwrap()) < 1e-12);
    assert!(ours.gamma.val().grad(&got).is_none());
    // Only the statistics, weights going on.
    let Pair { mut ours, mut burns } = pair(3, DType::F64);
    ours.training = ours.training.with_value(false);
    burns.training = burns.training.with_value(false);
    let (y, wanted) = (ours.forward(x.clone()), burns.forward(other.clone()));
    let (got, want) = (loss(&y).backward(), loss(&wanted).backward());
    let grads = (ours.gamma.val().grad(&got).unwrap(), burns.gamma.val().grad(&want).unwrap());
    assert!(apart(&grads.0, &grads.1) < 1e-11);
}

/// burn's running variance is biased, PyTorch's is not.
#[test]
fn the_running_variance_is_burns_or_pytorchs() {
    let x = wave([4, 2, 3], DType::F32);
    let of = |variance| {
        let layer = BatchNormConfig::new(2).with_momentum(1.0).init(&device());
        let layer = layer.with_variance(variance);
        assert_eq!(layer.variance(), variance);
        layer.forward(x.clone());
        layer.running_var.value_sync()
    };
    let burns = nn::BatchNormConfig::new(2).with_momentum(1.0).init(&device());
    burns.forward(x.clone());
    let biased = burns.running_var.value_sync();
    assert!(apart(&of(Variance::Biased), &biased) < 2e-6);
    assert!(apart(&of(Variance::Unbiased), &(biased * (12.0 / 11.0))) < 2e-6);
}

#[test]
fn one_value_per_channel_is_burns_unless_refused() {
    let Pair { ours, burns } = pair(3, DType::F64);
    let x = wave([1, 3], DType::F64);
    let (y, wanted) = (ours.forward(x.clone()), burns.forward(x.clone()));
    assert!(apart(&y, &wanted) < 1e-12);
    let var = (ours.running_var.value_sync(), burns.running_var.value_sync());
    assert!(apart(&var.0, &var.1) < 1e-12);
    let ours = ours.with_one_value(OneValue::Refuse);
    assert!(ours.try_forward(x).is_err());
    assert!(apart(&ours.running_var.value_sync(), &var.1) < 1e-12);
}

#[test]
fn an_empty_batch_leaves_statistics_alone() {
    let Pair { ours, .. } = pair(3, DType::F32);
    let x = Tensor::<4>::zeros([0, 3, 2, 2], &device()).require_grad();
    let before = ours.running_var.value_sync();
    let y = ours.forward(x.clone());
    assert_eq!(y.dims(), [0, 3, 2, 2]);
    assert!(apart(&ours.running_var.value_sync(), &before) == 0.0);
    let grads = y.sum().backward();
    assert_eq!(x.grad(&grads).unwrap().dims(), [0, 3, 2, 2]);
    assert_eq!(ours.gamma.val().grad(&grads).unwrap().dims(), [3]);
}

/// Parameters and statistics of any type, with activations of any other.
#[test]
fn types_may_differ() {
    for kept in [DType::F16, DType::BF16, DType::F32, DType::F64] {
        for dtype in [DType::F16, DType::BF16, DType::F32, DType::F64] {
            let (ours, exact) = (pair(3, kept).ours, pair(3, DType::F64).ours);
            let x = leaf([4, 3, 4, 4], dtype);
            let y = ours.forward(x.clone());
            let wanted = exact.forward(x.clone().cast(DType::F64));
            assert_eq!((y.dtype(), ours.running_mean.value_sync().dtype()), (dtype, kept));
            assert!(apart(&y.clone().cast(DType::F64), &wanted) < 4e-2, "{kept:?} {dtype:?}");
            let mean = ours.running_mean.value_sync().cast(DType::F64);
            assert!(apart(&mean, &exact.running_mean.value_sync()) < 1e-2, "{kept:?} {dtype:?}");
            let grads = loss(&y).backward();
            let gamma = ours.gamma.val().grad(&grads).unwrap();
            assert_eq!((x.grad(&grads).unwrap().dtype(), gamma.dtype()), (dtype, kept));
        }
    }
}

/// A layer of a device with autodiff, and an input of one without: inference, as burn has it.
#[test]
fn the_device_of_the_input_decides() {
    let Pair { ours, burns } = pair(3, DType::F32);
    let x = wave([4, 3, 5], DType::F32).without_autodiff();
    let before = ours.running_mean.value();
    let (y, wanted) = (ours.forward(x.clone()), burns.forward(x));
    assert!(apart(&y, &wanted) < 1e-5);
    assert_eq!(y.is_autodiff(), wanted.is_autodiff());
    assert!(apart(&ours.running_mean.value_sync(), &before) == 0.0);
    // And a plain layer: nothing trains.
    let plain = BatchNormConfig::new(3).init(&Device::flex());
    let burns = nn::BatchNormConfig::new(3).init(&Device::flex());
    let x = wave([4, 3, 5], DType::F32).without_autodiff();
    assert!(apart(&plain.forward(x.clone()), &burns.forward(x)) < 1e-5);
}
