//! Records and configurations of either layer, in the other.
use crate::support::{Pair, apart, pair, values, wave};
use batchnorm_burn::{BatchNorm, BatchNormConfig};
use burn::config::Config;
use burn::module::Module;
use burn::nn;
use burn::store::ModuleRecord;
use burn::tensor::{DType, Tensor};

fn state(gamma: Tensor<1>, beta: Tensor<1>, mean: Tensor<1>, var: Tensor<1>) -> Vec<Vec<f64>> {
    [gamma, beta, mean, var].iter().map(values).collect()
}
macro_rules! state_of {
    ($layer:expr) => {{
        let layer = &$layer;
        let (mean, var) = (layer.running_mean.value_sync(), layer.running_var.value_sync());
        state(layer.gamma.val(), layer.beta.val(), mean, var)
    }};
}

#[test]
fn records_load_both_ways() {
    let Pair { ours, burns } = pair(5, DType::F32);
    ours.forward(wave([4, 5, 3], DType::F32));
    let mine = state_of!(ours);
    let bytes = ours.clone().into_record().into_bytes().unwrap();
    let record = ModuleRecord::from_bytes(bytes).unwrap();
    assert_eq!(record.len(), 4);
    let device = crate::support::device();
    let loaded = nn::BatchNormConfig::new(5).init(&device).load_record(record);
    assert_eq!(state_of!(loaded), mine);

    burns.forward(wave([4, 5, 3], DType::F32) * 0.5);
    let theirs = state_of!(burns);
    assert_ne!(mine, theirs);
    let path = std::env::temp_dir().join(format!("batchnorm-burn-{}.bpk", std::process::id()));
    burns.clone().into_record().save(&path).unwrap();
    let record = ModuleRecord::load(&path).unwrap();
    let loaded = BatchNormConfig::new(5).init(&device).try_load_record(record).unwrap();
    assert_eq!(state_of!(loaded), theirs);
    std::fs::remove_file(path).unwrap(); // which is read when its values are asked for
    let x = wave([4, 5, 3], DType::F32).without_autodiff();
    let (loaded, burns) = (loaded.valid(), burns.valid());
    assert!(apart(&loaded.forward(x.clone()), &burns.forward(x)) < 1e-5);
}

/// A network with one of either names its layer's tensors the same.
#[test]
fn networks_exchange_records() {
    #[derive(Module, Debug)]
    struct Ours {
        linear: nn::Linear,
        norm: BatchNorm,
    }
    #[derive(Module, Debug)]
    struct Burns {
        linear: nn::Linear,
        norm: nn::BatchNorm,
    }
    let device = crate::support::device();
    let linear = || nn::LinearConfig::new(3, 5).init(&device);
    let burns = Burns { linear: linear(), norm: pair(5, DType::F32).burns };
    let theirs = state_of!(burns.norm);
    let ours = Ours { linear: linear(), norm: BatchNormConfig::new(5).init(&device) };
    let ours = ours.load_record(burns.into_record());
    assert_eq!(state_of!(ours.norm), theirs);
    assert_eq!(ours.num_params(), 3 * 5 + 5 + 4 * 5);
    // Optimizers find the parameters, and not the statistics.
    assert!(ours.norm.gamma.is_require_grad() && ours.norm.beta.is_require_grad());
}

#[test]
fn configurations_are_one_file() {
    let ours = BatchNormConfig::new(7).with_epsilon(1e-3).with_momentum(0.25);
    let theirs = nn::BatchNormConfig::new(7).with_epsilon(1e-3).with_momentum(0.25);
    let dir = std::env::temp_dir();
    let path = dir.join(format!("batchnorm-burn-config-{}.json", std::process::id()));
    theirs.save(&path).unwrap();
    let loaded = BatchNormConfig::load(&path).unwrap();
    assert_eq!((loaded.num_features, loaded.epsilon, loaded.momentum), (7, 1e-3, 0.25));
    ours.save(&path).unwrap();
    let loaded = nn::BatchNormConfig::load(&path).unwrap();
    std::fs::remove_file(path).unwrap();
    assert_eq!((loaded.num_features, loaded.epsilon, loaded.momentum), (7, 1e-3, 0.25));
}

#[test]
fn it_displays_as_burns() {
    let Pair { ours, burns } = pair(5, DType::F32);
    assert_eq!(ours.to_string(), burns.to_string());
    assert!(ours.with_activation(batchnorm_burn::Activation::Relu).to_string().contains("Relu"));
}
