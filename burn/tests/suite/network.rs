//! A small convolutional network, trained with either layer from the same weights.
use crate::support::{device, values, wave};
use burn::module::{Module, ModuleMapper, Param};
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{Linear, LinearConfig};
use burn::optim::{GradientsParams, SgdConfig};
use burn::tensor::activation::{log_softmax, relu};
use burn::tensor::{DType, Int, Tensor, TensorData};

/// Sets every parameter that is a matrix or a kernel to numbers that depend on its shape alone.
struct Start;
impl ModuleMapper for Start {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if D < 2 {
            return param;
        }
        param.map(|t| ((wave(t.dims(), DType::F32) * 3.0).sin() * 0.3).detach().require_grad())
    }
}

/// The same program, with the layer that `use` names.
macro_rules! trained {
    ($($layer:ident)::+) => {{
        use $($layer)::+::{BatchNorm, BatchNormConfig};
        #[derive(Module, Debug)]
        struct Network {
            conv: Conv2d,
            first: BatchNorm,
            again: Conv2d,
            second: BatchNorm,
            head: Linear,
        }
        impl Network {
            fn logits(&self, x: Tensor<4>) -> Tensor<2> {
                let y = relu(self.first.forward(self.conv.forward(x)));
                let y = relu(self.second.forward(self.again.forward(y)));
                self.head.forward(y.flatten::<2>(1, 3))
            }
        }
        let device = device();
        let conv = |from, to| Conv2dConfig::new([from, to], [3, 3]).with_bias(false).init(&device);
        let network = Network {
            conv: conv(1, 8),
            first: BatchNormConfig::new(8).init(&device),
            again: conv(8, 8),
            second: BatchNormConfig::new(8).with_epsilon(1e-5).init(&device),
            head: LinearConfig::new(8 * 16, 4).with_bias(false).init(&device),
        };
        let mut network = network.map(&mut Start);
        let x = wave([16, 1, 8, 8], DType::F32);
        let labels: Vec<i64> = (0..16).map(|i| i * 7 % 4).collect();
        let labels = Tensor::<1, Int>::from_data(TensorData::new(labels, [16]), &device);
        let loss = |logits: Tensor<2>, labels: Tensor<1, Int>| {
            -log_softmax(logits, 1).gather(1, labels.unsqueeze_dim::<2>(1)).mean()
        };
        let mut sgd = SgdConfig::new().init();
        let mut losses = vec![];
        for _ in 0..30 {
            let loss = loss(network.logits(x.clone()), labels.clone());
            losses.extend(values(&loss));
            let grads = GradientsParams::from_grads(loss.backward(), &network);
            network = sgd.step(0.05, network, grads);
        }
        let (x, labels) = (x.without_autodiff(), labels.without_autodiff());
        losses.extend(values(&loss(network.valid().logits(x), labels)));
        losses
    }};
}

#[test]
fn the_import_alone_changes() {
    let (ours, burns): (Vec<f64>, Vec<f64>) = (trained!(batchnorm_burn), trained!(burn::nn));
    assert!(ours[29] < 0.8 * ours[0], "{ours:?}");
    for (k, (ours, burns)) in ours.iter().zip(&burns).enumerate() {
        // What rounding makes of it in 30 steps.
        assert!((ours - burns).abs() < 2e-3 * burns.abs().max(0.1), "{k}: {ours} {burns}");
    }
}
