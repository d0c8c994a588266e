//! What is refused, and what errors say.
use crate::support::{device, values, wave, wave_on};
use batchnorm_burn::{BatchNorm, BatchNormConfig, Error, OneValue};
use burn::tensor::{DType, Tensor};

fn refused<const D: usize>(layer: &BatchNorm, x: Tensor<D>, says: &str) {
    let before = values(&layer.running_var.value_sync());
    let error = layer.try_forward(x).unwrap_err();
    assert!(error.to_string().contains(says), "{error}");
    assert_eq!(values(&layer.running_var.value_sync()), before);
}

#[test]
fn inputs_that_do_not_fit() {
    let layer = BatchNormConfig::new(3).init(&device());
    refused(&layer, wave([4, 5, 2], DType::F32), "expected x of shape [N, 3, ..], got [4, 5, 2]");
    refused(&layer, wave([3], DType::F32), "expected x of shape [N, 3, ..], got [3]");
    let x = wave([4, 3, 2], DType::F32);
    for (residual, says) in [
        (wave([4, 3, 1], DType::F32), "residual of shape [4, 3, 2], got [4, 3, 1]"),
        (wave([4, 3, 2], DType::F64), "residual of F32, got F64"),
    ] {
        let error = layer.try_forward_add(x.clone(), residual).unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
    }
    let other = wave_on(&device().gradient_checkpointing(), [4, 3, 2], DType::F32);
    let error = layer.try_forward(other).unwrap_err();
    assert!(matches!(error, Error::Device { what: "gamma", .. }), "{error}");
    let layer = layer.with_one_value(OneValue::Refuse);
    refused(&layer, wave([1, 3], DType::F32), "more than 1 value per channel, got 1");
}

#[test]
#[should_panic(expected = "expected x of shape [N, 3, ..], got [4, 5]")]
fn forward_panics_as_burns() {
    BatchNormConfig::new(3).init(&device()).forward(wave([4, 5], DType::F32));
}

/// Fields are open, as burn's are: what is set there is checked before anything is computed.
#[test]
fn fields_that_do_not_fit() {
    let x = || wave([4, 3, 2], DType::F32);
    let layer = || BatchNormConfig::new(3).init(&device());
    let with = |change: fn(&mut BatchNorm)| {
        let mut layer = layer();
        change(&mut layer);
        layer
    };
    refused(&with(|l| l.epsilon = 0.0), x(), "eps");
    refused(&with(|l| l.momentum = 1.5), x(), "1.5");
    let two = || BatchNormConfig::new(2).init(&device());
    let mut layer = layer();
    layer.beta = two().beta;
    refused(&layer, x(), "expected 3 elements, got 2");
    let mut layer = BatchNormConfig::new(3).init(&device());
    layer.running_var = two().running_var;
    refused(&layer, x(), "expected 3 elements, got 2");
}

#[test]
fn configurations_that_have_no_meaning() {
    let config = || BatchNormConfig::new(3);
    for (config, says) in [
        (BatchNormConfig::new(0), "num_features to be at least 1, got 0"),
        (config().with_epsilon(0.0), "epsilon to be a finite number above 0, got 0"),
        (config().with_epsilon(f64::NAN), "got NaN"),
        (config().with_epsilon(f64::INFINITY), "got inf"),
        (config().with_momentum(1.5), "momentum to be 0 to 1, got 1.5"),
        (config().with_momentum(f64::NAN), "got NaN"),
    ] {
        let error = config.try_init(&device()).unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
    }
}
